"""Jobs of a real SLURM that never end for the executor's plugin: pre-empted for good, forgotten, or not to begin."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from understudy.cluster import show_all_jobs
from understudy.cluster_watch import GONE_SECONDS, STAYING_SECONDS, Watch, known, queued, watch_jobs
from understudy.paths import StudyPaths
from workflow.conftest import wait_until

from .cluster import NEEDS_CLUSTER, Cluster, needs_plugin, spoken_to
from .test_study import PACK, study_in
from .work import hold, output, started

pytestmark = NEEDS_CLUSTER

PARTITIONS = (
    "PreemptType=preempt/partition_prio",
    "PreemptMode=REQUEUE",
    "PartitionName=scavenge Nodes=ALL PriorityTier=1 PreemptMode=CANCEL DefMemPerCPU=500",
    "PartitionName=urgent Nodes=ALL PriorityTier=10 DefMemPerCPU=500",
    "PartitionName=short Nodes=ALL PriorityTier=1 MaxTime=1 DefMemPerCPU=500",
    "PartitionName=hidden Nodes=ALL PriorityTier=1 Hidden=YES DefMemPerCPU=500",
)


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """One node of one core; this process talks to it, too."""
    made = Cluster(tmp_path_factory.mktemp("slurm"), nodes=1, cores=1, more=PARTITIONS)
    with spoken_to(made, monkeypatch):
        yield made


def submit(cluster: Cluster, *options: str) -> str:
    return cluster.call("sbatch", "--parsable", "--job-name=run", "--output=/dev/null", "--mem=100", *options).strip()


def test_what_becomes_of_jobs_is_seen(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    lasting = submit(cluster, "--partition=scavenge", "--requeue", "--comment=lasting", "--wrap=sleep 600")
    cluster.wait_for_job("lasting")
    urgent = submit(cluster, "--partition=urgent", "--comment=urgent", "--wrap=sleep 600")
    cluster.wait_for_job("urgent")
    too_long = submit(cluster, "--partition=short", "--time=10", "--comment=too long", "--wrap=true")
    waiting = submit(cluster, "--comment=waiting", "--wrap=true")
    cluster.wait_for_lack("waiting")
    hidden = submit(cluster, "--partition=hidden", "--comment=hidden", "--wrap=true")
    array = submit(cluster, "--array=1-2", "--comment=array", "--wrap=true")
    others = submit(cluster, "--job-name=other", "--comment=other", "--wrap=true")
    forgotten = "4711"
    monkeypatch.setenv("SQUEUE_PARTITION", "urgent")
    monkeypatch.setenv("SQUEUE_ALL", "")  # to be as it was after
    show_all_jobs()

    said: list[str] = []
    watch, ours = Watch(said.append), [lasting, urgent, too_long, waiting, hidden, f"{array}_1", f"{array}_2"]
    assert set(queued("run")) == set(ours)
    assert queued("run")[lasting].state == "PREEMPTED"  # whatever `--requeue` says
    looks = (0.0, STAYING_SECONDS, GONE_SECONDS - 1, GONE_SECONDS)
    found = [watch.look([*ours, forgotten], queued("run"), now) for now in looks]
    assert [set(lost) for lost in found] == [set(), {lasting}, {lasting}, {lasting, forgotten}]
    assert [known(id) for id in (forgotten, others, hidden, f"{array}_2")] == [False, True, True, True]
    (line,) = said
    assert line.startswith(f"SLURM job {too_long} (too long) can't begin as it is: PartitionTimeLimit.")


def test_jobs_that_a_poll_holds_are_cancelled_with_the_others(cluster: Cluster, tmp_path: Path) -> None:
    """At Ctrl-C the plugin's list is empty where a poll is on its way."""
    paths = StudyPaths(tmp_path)
    paths.cluster_runs.touch()
    unused = dict.fromkeys(("check_active_jobs", "report_job_success", "report_job_error"))
    executor = SimpleNamespace(run_uuid="run", cancel_jobs=list, **unused)  # whose list is empty
    watch_jobs(executor, paths, print)
    for name in ("run", "another"):
        submit(cluster, f"--job-name={name}", f"--comment={name}", "--wrap=sleep 600")
    cluster.wait_for_job("run")
    executor.cancel_jobs([])
    cluster.wait_for_job("another")  # there is one core
    assert {job.state for job in queued("run").values()} <= {"CANCELLED", "COMPLETING"}


@pytest.mark.nightly
@needs_plugin
def test_a_study_goes_on_from_the_checkpoint_of_a_job_that_was_preempted_for_good(
    cluster: Cluster, tmp_path: Path
) -> None:
    low = {"proxy": {"partition": "scavenge"}}
    running = {"device": "cpu", "checkpoint_minutes": 0}
    study = study_in(tmp_path, tmp_path / "cache", many=False, execution=running, resources=low)
    with started(study, cluster) as run:
        cluster.wait_for_job(f"rule_train_pack_wildcards_{PACK}", seconds=600)
        hold(study, "train-pack", f"/{PACK}/")
        submit(cluster, "--partition=urgent", "--comment=urgent", "--wrap=sleep 5")
        cluster.wait_for_job("urgent")
        assert run.wait(900) == 0, output(study)
    assert cluster.history()[f"rule_train_pack_wildcards_{PACK}"] == ["PREEMPTED", "COMPLETED"]
    assert "PREEMPTED, and SLURM doesn't put it back into the queue" in output(study)
    log = (study.results / "logs" / "train_pack" / f"{PACK}.log").read_text()
    assert re.search(r"^goes on after step [1-9]", log, re.MULTILINE)


@pytest.mark.nightly
@needs_plugin
@pytest.mark.parametrize("polled", [False, True])
def test_ctrl_c_leaves_no_job_of_a_study_in_the_queue(cluster: Cluster, tmp_path: Path, polled: bool) -> None:
    """Also while the plugin asks SLURM for the states of its jobs, which is slow here."""
    study, slow = study_in(tmp_path, tmp_path / "cache", many=True, execution={"device": "cpu"}), tmp_path / "slow"
    squeue, asked = shutil.which("squeue", path=cluster.environment["PATH"]), tmp_path / "asked"
    slow.mkdir()
    (slow / "squeue").write_text(f'#!/bin/sh\n{squeue} "$@"\necho $@ >> {asked}\nsleep {8 if polled else 0}\n')
    (slow / "squeue").chmod(0o755)
    path = f"{slow}:{cluster.environment['PATH']}"
    with started(study, cluster, PATH=path) as run:
        cluster.wait_for_job(f"rule_train_pack_wildcards_{PACK}", seconds=300)
        if polled:
            asked.unlink(missing_ok=True)
            wait_until(lambda: asked.exists() and "--format=%i|%T --states" in asked.read_text(), seconds=120)
        run.send_signal(signal.SIGINT)
        assert run.wait(120) != 0
        assert "Interrupted." in output(study)
    assert [job for job in cluster.jobs() if job.state in ("PENDING", "RUNNING")] == []
