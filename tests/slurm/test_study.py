"""A study through a real SLURM, and through what happens on clusters: its tables are those of a local run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGUSR1
from typing import Any

import polars as pl
import pytest

from workflow.conftest import Study, tiny, wait_until

from .cluster import Cluster, Job, kill, why_not
from .work import hold, is_told, output, started

PLUGIN = "snakemake_executor_plugin_slurm"
TOO_LITTLE_MB = 450  # for what imports torch, beside Snakemake twice; the second attempt has twice as much
GO_ON = ("train_pack/sobol-000", "train_target/0000", "train_finalist/0/0", "train_finalist/1/0")
FINALISTS = tuple(f"rule_train_finalist_wildcards_{rank}_0" for rank in (0, 1))

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.skipif(find_spec(PLUGIN) is None, reason="the extra `slurm` isn't installed"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One core per node, so that jobs that run at the same time are on different ones."""
    made = Cluster(tmp_path_factory.mktemp("slurm"), cores=1)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def study_in(folder: Path, cache: Path, nodes: int, **changes: Any) -> Study:
    """As small as a study with every kind of job can be, but with trials that are long enough to be caught at work.

    Target trials have two processes, on one node or on two. Built-in models are shared.
    """
    small = {"target__trials": 2, "decode__trials": 0, "defaults__batch_size": 1, "defaults__num_train_epochs": 4}
    long = {"space__batch_size": [1, 2], "space__num_train_epochs": {"low": 3.0, "high": 4.0}}
    target = {"nodes": nodes, "processes": 2 // nodes}
    execution = {"device": "cpu", "checkpoint_minutes": 0, "target": target}
    return Study(folder, tiny(cache=str(cache), execution=execution, **small, **long, **changes))


def test_tables_are_those_of_a_local_run_whatever_happens_on_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    """Out of memory, a requeue, USR1, `kill -9` of the main process, a time-out and a lost node."""
    local = study_in(tmp_path / "local", tmp_path / "cache", nodes=1)
    done = local.run()
    assert done.returncode == 0, done.stdout
    little = {"proxy": {"mem_mb": TOO_LITTLE_MB}}
    study = study_in(tmp_path / "slurm", tmp_path / "cache", nodes=2, resources=little)
    for name in ("results/settings", "results/data", "results/models/proxy", ".snakemake"):  # the rest goes by jobs
        shutil.copytree(local.folder / name, study.folder / name)
    shutil.copy(local.results / "pin.json", study.results)
    late, lost = run_through_faults(study, cluster)

    assert_same_tables(study, local)
    assert_histories(cluster.history(), late, lost)
    for log in GO_ON:
        text = (study.results / "logs" / f"{log}.log").read_text()
        assert re.search(r"^goes on after step [1-9]", text, re.MULTILINE), f"{log} began anew:\n{text}"
    assert re.search(r"an earlier run of this study left [1-9]\d* SLURM jobs behind", output(study))
    assert "Traceback" not in output(study)
    assert not study.processes()


def run_through_faults(study: Study, cluster: Cluster) -> tuple[str, str]:
    """Run a study twice, to its end. Returns which finalist's time was up, and which one lost a node."""
    with started(study, cluster) as first:
        put_back(study, cluster, "sobol-000")
        tell(study, cluster, "0000")
        running = cluster.wait_for_job(*FINALISTS, seconds=600)
        hold(study, "train-finalist")
        kill(first.pid, SIGKILL)
    left = {job.id for job in cluster.jobs()}
    assert running.id in left

    with started(study, cluster) as second:
        late = cluster.wait_for_job(*FINALISTS, seconds=600, besides=left)
        assert left.isdisjoint(job.id for job in cluster.jobs()), "submitted before the earlier run's jobs had gone"
        run_late(study, cluster, late)
        lost = cluster.wait_for_job(*set(FINALISTS) - {late.comment}, seconds=600)
        lose_a_node(study, cluster, lost)
        assert second.wait(600) == 0, output(study)
    return late.comment, lost.comment


def put_back(study: Study, cluster: Cluster, pack: str) -> None:
    """Pre-emption that puts a job back into the queue."""
    first = cluster.wait_for_job(f"rule_train_pack_wildcards_{pack}", seconds=600)  # which runs out of memory
    job = cluster.wait_for_job(first.comment, seconds=600, besides={first.id})
    hold(study, "train-pack", f"/{pack}/")
    cluster.call("scontrol", "requeue", job.id)
    cluster.hurry(job)


def tell(study: Study, cluster: Cluster, trial: str) -> None:
    """What SLURM does some time before a job's time is up: it tells steps, not the command that waits for one."""
    job = cluster.wait_for_job(f"rule_train_target_wildcards_{trial}", seconds=600)
    rank = hold(study, "train-target", f"/{trial}/", node=1)
    cluster.call("scancel", "--signal=USR1", job.id)
    wait_until(lambda: is_told(rank, SIGUSR1), 30)
    kill(rank, SIGCONT)
    log = study.results / "logs" / "slurm" / "rule_train_target" / trial / f"{job.id}.log"
    wait_until(lambda: "interrupted (SIGUSR1) on several nodes" in log.read_text(), 120)
    assert "resource_tracker" not in (study.results / "logs" / "train_target" / f"{trial}.log").read_text()


def run_late(study: Study, cluster: Cluster, job: Job) -> None:
    """Let a job's time be up."""
    hold(study, "train-finalist", node=1)
    cluster.call("scontrol", "update", f"JobId={job.id}", "EndTime=now")
    cluster.wait_for_end(job)


def lose_a_node(study: Study, cluster: Cluster, job: Job) -> None:
    """Set one of a job's two nodes down, not the one that its command runs on."""
    hold(study, "train-finalist", node=1)
    cluster.call("scontrol", "update", f"NodeName={cluster.names(job)[1]}", "State=DOWN", "Reason=test")
    cluster.hurry(job)


def assert_same_tables(study: Study, local: Study) -> None:
    """The bytes are the same, but for the digests of trials on two nodes, which say so."""
    found, expected = study.tables(), local.tables()
    assert found["proxy/trials.parquet"] == expected["proxy/trials.parquet"]
    assert found["summary/curves.parquet"] == expected["summary/curves.parquet"]
    trials, others = (pl.read_parquet(each.results / "summary" / "trials.parquet") for each in (study, local))
    on_nodes = trials["stage"].is_in(["target", "finalist"])
    assert (trials["digest"] != others["digest"]).equals(on_nodes)
    text = expected["summary/trials.csv"].decode()
    for own, other in zip(trials["digest"], others["digest"], strict=True):
        text = text.replace(other, own)
    assert found["summary/trials.csv"].decode() == text
    assert trials.drop("digest").equals(others.drop("digest"))


def assert_histories(history: dict[str, list[str]], late: str, lost: str) -> None:
    """Each job went as it should."""
    once = ["FAILED", "COMPLETED"]
    assert history["rule_train_pack_wildcards_default-000"] == once
    assert history["rule_train_pack_wildcards_grid-000"] == once
    assert history["rule_train_pack_wildcards_sobol-000"] == ["FAILED", "REQUEUED", "COMPLETED"]
    assert history["rule_train_echo_wildcards_echo-000"][-1] == "COMPLETED"  # whatever the main process's end cost it
    assert history["rule_train_target_wildcards_0000"] == once
    assert history["rule_train_target_wildcards_0001"] == ["COMPLETED"]
    assert history[late] == ["CANCELLED", "TIMEOUT", "COMPLETED"]
    assert history[lost] == ["CANCELLED", "REQUEUED", "COMPLETED"]
