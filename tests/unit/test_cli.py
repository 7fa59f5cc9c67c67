"""What every command does with what goes wrong."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from understudy import interruption

RAISING = """
import signal, sys
from understudy import interruption
from understudy.cli import main, write_settings
from understudy.errors import UserError
def turned(into=TypeError("expected a message argument")):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        return into
def swallowed(then):
    interruption.listen()
    try:
        signal.raise_signal(signal.SIGTERM)
    except interruption.InterruptionError:
        return then
def while_saving(then=OSError("an adapter")):
    interruption.listen()
    with interruption.deferred():
        signal.raise_signal(signal.SIGINT)
        return then
def run(arguments):
    raise {raised}
write_settings.run = run
print("returned", main(["write-settings", "--content", "{{}}", *sys.argv[1:]]))
"""


def run(raised: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call a command in which this is raised, in a process of its own."""
    command = [sys.executable, "-c", RAISING.format(raised=raised), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_nobody_foresaw_is_one_line_on_the_terminal_and_a_traceback_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "it's.log"
    done = run("ValueError('\\n the header is cut off\\nand so on')", "--output", "x", "--log", str(log))
    said = f"understudy write-settings: unexpected ValueError: the header is cut off; the traceback is in {log}\n"
    assert (done.returncode, done.stderr) == (0, said)
    text = log.read_text()
    assert text.startswith("Traceback")
    assert text.endswith(f"and so on\n{said}returned 1\n")


def test_the_log_of_a_failure_outlives_the_next_attempt(tmp_path: Path) -> None:
    log, words = tmp_path / "0003.log", ("--output", "x", "--log", str(tmp_path / "0003.log"))
    for text in ("the first", "the second"):
        run(f"ValueError('{text}')", *words)
        log.unlink()  # as Snakemake does before it tries again
    assert run("SystemExit(0)", *words).returncode == 0
    kept = sorted(tmp_path.glob("*.failed-*"))
    assert [path.name for path in kept] == ["0003.failed-1.log", "0003.failed-2.log"]
    assert ["the first" in path.read_text() for path in kept] == [True, False]
    assert "the second" in kept[1].read_text()


def test_what_ends_without_a_failure_leaves_one_log(tmp_path: Path) -> None:
    for raised in (
        "SystemExit(0)",
        "KeyboardInterrupt",
        "__import__('understudy.interruption').interruption.InterruptionError(15, 'x')",
    ):
        run(raised, "--output", "x", "--log", str(tmp_path / "a.log"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.log"]


def test_without_a_log_the_traceback_stands_above_the_line() -> None:
    done = run("OSError('no errno')", "--output", "x")
    assert done.stdout == "returned 1\n"
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("understudy write-settings: unexpected OSError: no errno; the traceback is above\n")


def test_an_exception_without_a_text() -> None:
    assert "unexpected AssertionError: it says nothing more; the" in run("AssertionError", "--output", "x").stderr


def test_what_ends_a_process_on_purpose_ends_it(tmp_path: Path) -> None:
    done = run("SystemExit(7)", "--output", "x", "--log", str(tmp_path / "a.log"))
    assert (done.returncode, done.stderr, (tmp_path / "a.log").read_text()) == (7, "", "")


@pytest.mark.parametrize("raised", ["KeyboardInterrupt", "turned()", "UserError('a file') from turned()"])
def test_ctrl_c_is_one_line_also_where_a_command_does_not_listen(tmp_path: Path, raised: str) -> None:
    log = tmp_path / "a.log"
    done = run(raised, "--output", "x", "--log", str(log))
    said = "understudy write-settings: interrupted (SIGINT) while nothing was in training; what has finished is kept"
    assert (done.returncode, done.stderr) == (0, f"{said}; start again to go on\n")
    assert log.read_text().endswith("returned 130\n")


def test_what_goes_wrong_after_ctrl_c_is_told_where_a_command_listens(tmp_path: Path) -> None:
    done = run("while_saving()", "--output", "x", "--log", str(tmp_path / "a.log"))
    assert "unexpected OSError: an adapter; the traceback is in" in done.stderr


def test_a_command_that_was_through_when_a_signal_came_has_done_its_work() -> None:
    script = RAISING.replace("raise {raised}", "while_saving(None)").format()
    done = subprocess.run([sys.executable, "-c", script, "--output", "x"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("returned 0\n", "")


@pytest.mark.parametrize("then", ["RecursionError('of a half imported module')", "UserError('no numpy')"])
def test_a_signal_stays_one_where_a_library_swallows_it_and_fails_for_that(tmp_path: Path, then: str) -> None:
    done = run(f"swallowed({then})", "--output", "x", "--log", str(tmp_path / "a.log"))
    said = "understudy write-settings: interrupted (SIGTERM) while nothing was in training; what has finished is kept"
    assert done.stderr == f"{said}; start again to go on\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.log"]
    assert then.partition("(")[0] in (tmp_path / "a.log").read_text()
    assert (tmp_path / "a.log").read_text().endswith("returned 143\n")


@pytest.mark.parametrize(("gone", "number"), [("swallowed(None)", signal.SIGTERM), ("turned(None)", signal.SIGINT)])
def test_a_signal_stays_one_where_a_library_swallows_it_and_goes_on(gone: str, number: signal.Signals) -> None:
    script = RAISING.replace("raise {raised}", gone).format()
    done = subprocess.run([sys.executable, "-c", script, "--output", "x"], capture_output=True, text=True, check=False)
    assert done.stdout == f"returned {128 + number}\n"
    assert done.stderr.startswith(f"understudy write-settings: interrupted ({number.name}) while nothing")


@pytest.mark.parametrize("answer", ["raise ImportError(name) from None", "return write_settings"])
def test_ctrl_c_while_a_command_is_imported(tmp_path: Path, answer: str) -> None:
    script = (
        "import importlib, signal, sys\n"
        "from understudy.cli import main, write_settings\n"
        "real = importlib.import_module\n"
        "def imported(name):\n"
        "    importlib.import_module = real\n"
        "    try: signal.raise_signal(signal.SIGINT)\n"
        f"    except KeyboardInterrupt: {answer}\n"
        "importlib.import_module = imported\n"
        "print(main(sys.argv[1:]))"
    )
    output = tmp_path / "settings.json"
    command = [sys.executable, "-c", script, "write-settings", "--content", "{}", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "130\n"
    assert done.stderr.startswith("understudy write-settings: interrupted (SIGINT)")
    assert not output.exists()


def test_an_ignored_ctrl_c_stays_ignored_and_nothing_is_left_behind() -> None:
    before = signal.getsignal(signal.SIGINT)
    for handler in (signal.SIG_IGN, signal.default_int_handler):
        signal.signal(signal.SIGINT, handler)
        with interruption.remembering_ctrl_c():
            assert (signal.getsignal(signal.SIGINT) is handler) == (handler is signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, before)


def test_an_interruption_has_its_own_exit_code() -> None:
    done = run("__import__('understudy.interruption').interruption.InterruptionError(15, 'in step 3')", "--output", "x")
    assert done.stdout == "returned 143\n"
    assert done.stderr == "understudy write-settings: interrupted (SIGTERM) in step 3; start again to go on\n"
