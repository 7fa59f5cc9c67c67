"""A job whose time is nearly up is told by SLURM, saves, and goes on in the next one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from signal import SIGCONT, SIGUSR1

import pytest

from training_study import make_spec
from workflow.conftest import Study, wait_until

from .cluster import NEEDS_CLUSTER, Cluster, kill, needs_plugin
from .work import TRIAL, hold, is_told, only_the_trial, output, ready_to_train, started

pytestmark = [*NEEDS_CLUSTER, needs_plugin]


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node of one core."""
    with Cluster(tmp_path_factory.mktemp("slurm"), nodes=1, cores=1) as made:
        yield made


def long_trial(folder: Path, minutes: float) -> Study:
    """One that SLURM gives three minutes; the profile's signal comes two minutes before these are over, or earlier."""
    spec = make_spec(num_train_epochs=10_000, batch_size=1)
    return ready_to_train(folder, spec, {"runtime": 3, "mem_mb": 3000}, device="cpu", minutes=minutes)


def numbers(logs: Path, name: str, sentence: str) -> set[str]:
    """What stands for the number in a sentence, wherever a log has it; none where the log isn't there."""
    log = logs / name
    return set(re.findall(sentence, log.read_text(), re.MULTILINE)) if log.exists() else set()


@pytest.mark.parametrize("by_time", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_job_whose_time_is_nearly_up_saves_and_the_next_goes_on_there(
    cluster: Cluster, tmp_path: Path, by_time: bool
) -> None:
    """Two Snakemakes are between SLURM and the command; they mustn't end of the signal, which the command would follow.

    By time SLURM itself sends it, before there is any other checkpoint.
    """
    study = long_trial(tmp_path / "study", 60 if by_time else 0)
    logs = study.results / "logs"
    with started(study, cluster, *only_the_trial(retries=1)) as run:
        job = cluster.wait_for_job(TRIAL)
        if not by_time:
            command = hold(study, "train-target", "/0000/")
            cluster.call("scancel", "--signal=USR1", job.id)
            wait_until(lambda: is_told(command, SIGUSR1), 30)
            kill(command, SIGCONT)
        told = f"slurm/rule_train_target/0000/{job.id}.log", r"interrupted \(SIGUSR1\) in step (\d+) of 480000"
        wait_until(lambda: numbers(logs, *told) != set(), 180)
        cluster.wait_for_job(TRIAL, besides={job.id})
        on = "train_target/0000.log", r"^goes on after step (\d+) from"
        wait_until(lambda: numbers(logs, *on) == numbers(logs, *told), 60)
        kill(run.pid)
    cluster.clear()
    assert "Traceback" not in output(study)
