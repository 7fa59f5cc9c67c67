"""A worker whose parent went before the worker could look for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from understudy import process

WORKER = (
    "import os, sys, time; from understudy import process\n"
    "process.end_with_parent(int(sys.argv[1]) if sys.argv[1:] else None); time.sleep(float(os.environ['FOR']))"
)


def run(seconds: float, *arguments: str, **variables: str) -> int:
    """The exit code of a worker that sleeps for some seconds, if it isn't ended before."""
    shell = {**os.environ, **variables, "FOR": str(seconds)}
    return subprocess.run([sys.executable, "-c", WORKER, *arguments], env=shell, timeout=60, check=False).returncode


@pytest.fixture
def ended() -> int:
    """The process id of a process that has ended."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


def test_it_ends_where_the_workflow_or_the_rank_s_agent_is_gone(ended: int) -> None:
    assert run(50, **{process.STARTED_BY: str(ended)}) == -signal.SIGKILL
    assert run(50, str(ended)) == -signal.SIGKILL


def test_it_ends_where_the_workflow_is_dead_and_not_reaped() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as gone:
        assert gone.stdout is not None
        gone.stdout.read()  # until its end, which isn't asked for
        assert run(50, **{process.STARTED_BY: str(gone.pid)}) == -signal.SIGKILL


def test_it_lives_with_its_parent_and_with_a_workflow_that_stands_further_off() -> None:
    assert run(1.5, **{process.STARTED_BY: str(os.getpid())}) == 0
    assert run(1.5, **{process.STARTED_BY: str(os.getppid())}) == 0
    assert run(1.5, **{process.STARTED_BY: "nobody"}) == 0
    assert run(1.5) == 0


def test_every_command_ends_with_the_workflow_that_called_it(ended: int, tmp_path: Path) -> None:
    waiting = tmp_path / "selection.json"
    os.mkfifo(waiting)  # which nobody ever writes to
    command = [sys.executable, "-m", "understudy", "choose-winner", "--selection", str(waiting)]
    command += ["--results", str(waiting), "--output", str(tmp_path / "winner.json")]
    shell = {**os.environ, process.STARTED_BY: str(ended)}
    assert subprocess.run(command, env=shell, timeout=60, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("given", "other", "expected"),
    [
        (None, False, "/package"),
        ("/modules:/package:", False, "/package:/modules"),  # a cluster's module that has torch
        ("/modules", True, "/package"),
    ],
)
def test_commands_find_the_package_and_what_this_interpreter_finds(
    given: str | None, other: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PATH", "PYTHONPATH", process.STARTED_BY):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # so that it is put back
    if given is None:
        monkeypatch.delenv("PYTHONPATH")
    else:
        monkeypatch.setenv("PYTHONPATH", given)
    process.lead_children("/package", other)
    assert os.environ["PYTHONPATH"] == expected
