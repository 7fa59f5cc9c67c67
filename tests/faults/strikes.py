"""How faults of each kind strike, and what the program has to say to it.

Each function returns what it has struck, with nothing of the study running any more; None where there is no such thing
yet, or where the study didn't notice. Then the fault has another turn, in the same start if that still runs.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from understudy.errors import UnderstudyError
from understudy.files import read_json

from . import victims
from .faults import Fault, alter
from .running import END_SECONDS, POLL_SECONDS, Running

ADVICE = re.compile(r"delete (\S+) and run the workflow again")
OTHER_RUN = "another run of this study is under way"
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "preempt": signal.SIGUSR1, "stop": signal.SIGSTOP}


@dataclass(frozen=True)
class Blow:
    """What a fault has struck. `path` is a file that it altered, `trial` the id of the trial whose record or weights
    these were.
    """

    what: str
    path: Path | None = None
    trial: str | None = None


def signalled(run: Running, fault: Fault) -> Blow | None:
    """A signal to a living process. It counts where the run ends for it, and not where the process was through."""
    how, whom = fault.kind.split()
    find = {"main": lambda _: [run.process.pid], "worker": victims.commands, "rank": victims.ranks}[whom]
    if not (found := find(run.study)):
        return None
    victim, number = fault.random.choice(found), SIGNALS[how]
    name, command = victims.name(victim), victims.parent(victim) if whom == "rank" else victim
    if not victims.hit(run.study, victim, number):
        return None
    if whom != "main" and run.goes_on_after(command):
        return None
    if (code := run.wait()) == 0:
        return None
    said = "\n".join(run.complaints())
    expected = {
        "worker": rf"understudy {name}\b.*(interrupted \(|died with <Signals\.){number.name}",
        "rank": r"no progress for" if how == "stop" else r"understudy train-\w+: .*(interrupted|nothing was recorded)",
        "main": "",
    }[whom]
    if not re.search(expected, said):
        assert ADVICE.search(said), run.text  # it was through, and the run ended for what was damaged before
        return None
    if whom == "main" and how != "terminate":  # else it tidies up first
        assert code == -number, f"snakemake ended with {code} before it was struck:\n{run.text}"
    return Blow(name)


def damage(run: Running, fault: Fault) -> Blow | None:
    """A file is altered while nothing runs."""
    results, chosen = run.study.results, fault.random
    if not victims.files(results, fault.kind):
        return None
    run.cut_power()
    found = victims.files(results, fault.kind)
    if not found:
        return None
    path = chosen.choice(found)
    trial = None
    if path.name == "record.json" or path.parent.name == "adapter":
        record = path if path.name == "record.json" else path.parent.with_name("record.json")
        with suppress(UnderstudyError):  # it was damaged before
            trial = read_json(record)["spec"]["id"]
    return Blow(f"{path.relative_to(results)}: {alter(path, chosen)}", path, trial)


def clock(run: Running, fault: Fault) -> Blow | None:
    """The clock jumps to and fro while commands run, and times of change are off after; both by two hours at most."""
    results, chosen = run.study.results, fault.random
    until = time.monotonic() + END_SECONDS
    try:
        for _ in range(2):
            for path in run.study.folder.glob("clock.*"):
                path.unlink()
            run.clock.write_text(str(chosen.randint(-7200, 7200)))
            told = set[int]()
            while not (run.ended or (told and told.isdisjoint(victims.commands(run.study)))):
                run.look()
                told = {pid for pid in run.began if run.clock.with_suffix(f".{pid}").exists()}
                assert time.monotonic() < until, f"it hangs:\n{run.text}"
                time.sleep(POLL_SECONDS)
        assert not run.ended or run.process.returncode == 0 or ADVICE.search(run.text), run.text
        run.cut_power()
    finally:
        for path in run.study.folder.glob("clock*"):
            path.unlink()
    if not told:
        return None
    files = [path for path in sorted(results.rglob("*")) if path.is_file() and "store" not in path.parts]
    for path in chosen.sample(files, len(files) // 2):
        moment = time.time() + chosen.uniform(-7200, 7200)
        os.utime(path, (moment, moment))
    return Blow(f"{len(files) // 2} files")


def full_disk(run: Running, _: Fault) -> Blow | None:
    """Not a byte is left. Whoever writes says so, and leaves nothing half written."""
    filler, before = run.study.folder / "filler", run.parts()
    try:
        with filler.open("wb", buffering=0) as handle:
            for size in (2**16, 1):
                fill(handle.write, bytes(size))
        run.wait()
        return _refusal(run, "No space left on device", "free some space", before)
    finally:
        filler.unlink()


def small_files(run: Running, fault: Fault) -> Blow | None:
    """A command may write no more than half a kB into a file."""
    if not (found := victims.commands(run.study)):
        return None
    victim, before = fault.random.choice(found), run.parts()
    name = victims.name(victim)
    try:
        resource.prlimit(victim, resource.RLIMIT_FSIZE, (512, 512))
    except ProcessLookupError:
        return None
    if run.goes_on_after(victim):
        return None
    return _refusal(run, "File too large", "raise the limit on file sizes", before, name)


def read_only(run: Running, _: Fault) -> Blow | None:
    """The results can't be written when the study is started. Nothing is begun."""
    run.cut_power()
    results, before = str(run.study.results), run.parts()
    mount("--bind", results, results)
    try:
        mount("-o", "remount,bind,ro", results)
        refused = Running(run.study)
        while not refused.ended:
            refused.look()
            time.sleep(POLL_SECONDS)
        refused.wait()
        assert not refused.began, f"commands were begun:\n{refused.text}"
        return _refusal(refused, "Read-only file system", "mount it writable", before)
    finally:
        subprocess.run(["umount", results], check=True)


def second_run(run: Running, _: Fault) -> Blow | None:
    """It is refused while the first goes on."""
    second = run.study.run()
    if OTHER_RUN not in second.stdout:
        assert run.ended, f"two runs at once:\n{second.stdout}"
        return None
    assert second.returncode != 0, second.stdout
    assert "Traceback" not in second.stdout, second.stdout
    begun = set(victims.commands(run.study))
    while not run.ended and not set(victims.commands(run.study)) - begun:
        time.sleep(POLL_SECONDS)
    assert not run.ended or run.process.returncode == 0 or ADVICE.search(run.text), run.text
    run.cut_power()
    return Blow("refused, and the first went on")


def _refusal(run: Running, reason: str, advice: str, parts: set[Path], what: str = "") -> Blow | None:
    """The disk refused something, which one message says; None where the run came to its end without, or stopped for
    what was damaged before.
    """
    text = run.text
    if reason not in text:
        assert run.process.returncode == 0 or ADVICE.search(text), text
        return None
    assert run.process.returncode != 0, text
    said = [line for line in run.complaints() if reason in line]
    named = [
        re.match(rf"understudy.*: (\S*/\S*) can't be written or opened: {reason}; {advice}", line) for line in said
    ]
    assert any(named), f"no file is named:\n{text}"
    assert not (left := run.parts() - parts), f"half files were left behind: {left}\n{text}"
    return Blow(f"{what + ', ' if what else ''}{', '.join(match[1] for match in named if match)}")


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def fill(write: Callable[[bytes], int], piece: bytes) -> None:
    """Write until the disk takes no more."""
    with suppress(OSError):
        while True:
            write(piece)


STRIKES: dict[str, Callable[[Running, Fault], Blow | None]] = {
    **dict.fromkeys(SIGNALS, signalled),
    "damage": damage,
    "clock": clock,
    "full": full_disk,
    "small": small_files,
    "read-only": read_only,
    "second": second_run,
}


def strike(run: Running, fault: Fault) -> Blow | None:
    """Let a fault strike whose moment has come."""
    return STRIKES[fault.kind.split()[0]](run, fault)
