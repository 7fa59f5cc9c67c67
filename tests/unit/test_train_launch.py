"""Real processes: ranks that fail, and ranks whose parent is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import training_study
from training_study import make_job, make_spec, target_words
from understudy.artifacts import Proposal
from understudy.errors import UserError
from understudy.store import Store
from understudy.train import launch
from understudy.train.launch import RankError, train_alone
from understudy.trial import TrialSpec, trial_digest

PATIENCE = 60.0  # seconds until a process counts as hanging


@pytest.mark.long
def test_ranks_agree_that_memory_ran_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only rank 1 runs out of memory; rank 0 must hear of it and not wait forever."""
    monkeypatch.setattr(launch, "run_rank", training_study.run_rank_short_of_memory)
    job = make_job(
        tmp_path, processes=2, micro_batch_size=4096, pass_tokens=10**9
    )  # a rank's share goes through at once
    result = train_alone(make_spec(batch_size=1024, num_train_epochs=21), job).result
    assert (result.status, result.objective) == ("out_of_memory", None)
    assert result.message == "memory ran out in step 1 of 1"


@pytest.mark.long
def test_one_rank_that_runs_out_of_memory_before_the_first_step_speaks_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "run_rank", training_study.run_rank_short_of_memory_in_set_up)
    job, spec = make_job(tmp_path, processes=2), make_spec(lora_r=2**16)  # of 230 MB
    record = train_alone(spec, job)
    assert record.result.status == "out_of_memory"
    assert str(record.result.message).startswith("memory ran out while the trial was set up")
    assert Store(job.store).find(trial_digest(spec, job.inputs)) == record


@pytest.mark.long
def test_a_rank_whose_last_words_the_disk_does_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "run_rank", training_study.run_rank_without_last_words)
    job = make_job(tmp_path, processes=2)
    with pytest.raises(RankError, match="a process of trial r0001 ended, and what it had to say couldn't be written"):
        train_alone(make_spec(), job)


@pytest.mark.long
def test_a_users_mistake_is_told_by_the_command(tmp_path: Path) -> None:
    job = make_job(tmp_path, "nf4", processes=2)  # found out by the ranks
    with pytest.raises(UserError, match=r"^`target.method: full` trains the weights themselves"):
        train_alone(make_spec(method="full"), job)


def test_ranks_end_when_the_command_is_killed(tmp_path: Path) -> None:
    with long_training(tmp_path) as (command, ranks):
        command.kill()
        command.wait()
        assert all(ended(pid) for pid in ranks)


@pytest.mark.long
def test_a_killed_rank_ends_the_command_with_one_message(tmp_path: Path) -> None:
    with long_training(tmp_path) as (command, ranks):
        os.kill(ranks[1], signal.SIGKILL)
        assert command.wait(PATIENCE) == 1
        assert all(ended(pid) for pid in ranks)
    said = (tmp_path / "log.txt").read_text()
    assert "process 1 of 2 of trial t0003 ended with exit code -9" in said
    assert "nothing was recorded" in said
    job = make_job(tmp_path, processes=2)
    assert Store(job.store).find(trial_digest(endless(), job.inputs)) is None
    assert not (tmp_path / "result.json").exists()


def endless() -> TrialSpec:
    return make_spec("t0003", stage="target", num_train_epochs=100_000)


@contextmanager
def long_training(root: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """The command train-target with a trial that would take hours; yields it and its two ranks in mid-training."""
    proposal = Proposal(number=3, spec=endless(), kind="start", sampler="transfer", visible=(), pending=())
    words = target_words(root, make_job(root, processes=2), proposal)
    command, ranks = [sys.executable, "-m", "understudy", *words], []
    with (root / "log.txt").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        deadline = time.monotonic() + PATIENCE
        try:
            while len(ranks) < 2 or not all(map(connected, ranks)):
                assert process.poll() is None, (root / "log.txt").read_text()
                assert time.monotonic() < deadline, "the ranks don't start"
                time.sleep(0.2)
                ranks = ranks_of(process.pid)
            yield process, ranks
        finally:
            for pid in filter(alive, [process.pid, *ranks]):
                os.kill(pid, signal.SIGKILL)


def ranks_of(parent: int) -> list[int]:
    """The children that multiprocessing started for torchrun's agent, in order of their start."""
    children: list[int] = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        children += map(int, (task / "children").read_text().split())
    return sorted(pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())


def connected(pid: int) -> bool:
    """Whether a rank has joined the others: gloo's threads run in it."""
    return any("gloo" in (task / "comm").read_text() for task in Path(f"/proc/{pid}/task").iterdir())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ended(pid: int) -> bool:
    """Whether a process ends within a few seconds."""
    deadline = time.monotonic() + 15
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not alive(pid)


def test_a_signal_to_all_processes_leaves_the_resource_tracker_alive() -> None:
    code = """
import os, signal, time
from multiprocessing import resource_tracker
from understudy.train import launch
launch.start_resource_tracker()
tracker = resource_tracker._resource_tracker._pid
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
    os.kill(tracker, number)
time.sleep(0.5)
assert os.waitpid(tracker, os.WNOHANG) == (0, 0), "the tracker has ended"
assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()), "this process is deaf"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
