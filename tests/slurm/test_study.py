"""A study through a real SLURM, and through what happens on clusters: its tables are those of a local run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGUSR1
from typing import Any

import polars as pl
import pytest

from workflow.conftest import Study, tiny, wait_until

from .cluster import NEEDS_CLUSTER, Cluster, Job, kill, needs_plugin
from .work import hold, is_told, output, started

TOO_LITTLE_MB = 450  # for what imports torch, beside Snakemake twice; the second attempt has twice as much
PACK = "default-000"
FINALISTS = frozenset(f"rule_train_finalist_wildcards_{rank}_0" for rank in (0, 1))

pytestmark = [*NEEDS_CLUSTER, needs_plugin]


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One core per node, so that jobs that run at the same time are on different ones."""
    with Cluster(tmp_path_factory.mktemp("slurm"), cores=1) as made:
        yield made


def study_in(folder: Path, cache: Path, many: bool, **changes: Any) -> Study:
    """As small as a study can be, but with trials that are long enough to be caught at work.

    With `many` it has packs of every kind. Built-in models are shared.
    """
    small = {"target__trials": 2, "decode__trials": 0, "defaults__batch_size": 1, "defaults__num_train_epochs": 4}
    long = {"space__batch_size": [1, 2], "space__num_train_epochs": {"low": 3.0, "high": 4.0}}
    few = {} if many else {"proxy__sobol": 0, "proxy__grid": {}, "proxy__echo": False}
    return Study(folder, tiny(cache=str(cache), **small, **few, **long, **changes))


@pytest.mark.parametrize("nodes", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_tables_are_those_of_a_local_run_whatever_happens_on_the_cluster(
    cluster: Cluster, tmp_path: Path, nodes: int
) -> None:
    """Out of memory, a requeue, `kill -9` of the main process, a time-out and a lost node.

    On several nodes USR1 and the requeue of a job that has all of them, too.

    Where a target trial is on two nodes, with one process each, the local run has two processes.
    """
    running, many = {"device": "cpu", "checkpoint_minutes": 0}, nodes > 1
    here, there = ({**running, "target": target} for target in ({"processes": nodes}, {"nodes": nodes}))
    local = study_in(tmp_path / "local", tmp_path / "cache", many, execution=here)
    done = local.run()
    assert done.returncode == 0, done.stdout
    little = {"proxy": {"mem_mb": TOO_LITTLE_MB, "max_mem_mb": 4 * TOO_LITTLE_MB}}
    study = study_in(tmp_path / "slurm", tmp_path / "cache", many, execution=there, resources=little)
    for name in ("results/settings", "results/data", "results/models/proxy", ".snakemake"):  # the rest goes by jobs
        shutil.copytree(local.folder / name, study.folder / name)
    shutil.copy(local.results / "pin.json", study.results)
    late, lost = run_through_faults(study, cluster, nodes)

    if nodes == 1:
        assert study.tables() == local.tables()
    else:
        assert_same_tables(study, local)
    assert_histories(cluster.history(), late, lost, told=many)
    targets = [f"train_target/{number}" for number in ("0000", "0001") if many]
    for log in (f"train_pack/{PACK}", *targets, *(f"train_finalist/{n}/0" for n in (0, 1))):
        text = (study.results / "logs" / f"{log}.log").read_text()
        assert re.search(r"^goes on after step [1-9]", text, re.MULTILINE), f"{log} began anew:\n{text}"
    assert re.search(r"an earlier run of this study left [1-9]\d* SLURM jobs behind", output(study))
    assert "Traceback" not in output(study)
    assert not study.processes()


def test_what_slurm_says_of_a_job_that_it_refuses_is_shown(cluster: Cluster, tmp_path: Path) -> None:
    """Whatever the profile is quiet about."""
    nowhere = {role: {"partition": "nowhere"} for role in ("proxy", "target")}
    study = study_in(tmp_path, tmp_path / "cache", many=False, execution={"device": "cpu"}, resources=nowhere)
    with started(study, cluster, "--retries", "0") as run:
        assert run.wait(300) == 1
    assert re.search(r"The job of rule prepare_model for \S+/model.json failed: .*[Ii]nvalid partition", output(study))
    assert "sbatch call" not in output(study)


def run_through_faults(study: Study, cluster: Cluster, nodes: int) -> tuple[str, str]:
    """Run a study twice, to its end. Returns which finalist's time was up, and which one lost a node.

    On one node each, both finalists train at the same time.
    """
    with started(study, cluster) as first:
        pack = f"rule_train_pack_wildcards_{PACK}"
        small = cluster.wait_for_job(pack, seconds=600)  # which runs out of memory
        put_back(study, cluster, cluster.wait_for_job(pack, seconds=600, besides={small.id}), "train-pack", f"/{PACK}/")
        if nodes > 1:
            tell(study, cluster, "0000")
            trial = cluster.wait_for_job("rule_train_target_wildcards_0001", seconds=600)
            put_back(study, cluster, trial, "train-target", "/0001/", node=1)
        left = {caught(study, cluster, nodes).id}
        if nodes == 1:
            left.add(caught(study, cluster, nodes, left).id)
        kill(first.pid, SIGKILL)
    left |= {job.id for job in cluster.jobs()}

    with started(study, cluster) as second:
        late = caught(study, cluster, nodes, left)
        assert left.isdisjoint(job.id for job in cluster.jobs()), "submitted before the earlier run's jobs had gone"
        lost = caught(study, cluster, nodes, {*left, late.id}) if nodes == 1 else None
        cluster.call("scontrol", "update", f"JobId={late.id}", "EndTime=now")
        cluster.wait_for_end(late)
        lost = lost or caught(study, cluster, nodes, {*left, late.id}, FINALISTS - {late.comment})
        node = cluster.names(lost)[-1]  # its command runs on the first
        cluster.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        cluster.hurry(lost)
        assert second.wait(600) == 0, output(study)
    return late.comment, lost.comment


def caught(
    study: Study,
    cluster: Cluster,
    nodes: int,
    besides: Collection[str] = (),
    finalists: Collection[str] = FINALISTS,
) -> Job:
    """The next job of a finalist, stopped after a checkpoint."""
    job = cluster.wait_for_job(*finalists, seconds=600, besides=besides)
    hold(study, "train-finalist", f"/{job.comment.split('_')[-2]}/0/", node=1 if nodes > 1 else None)
    return job


def put_back(study: Study, cluster: Cluster, job: Job, *words: str, node: int | None = None) -> None:
    """Pre-emption that puts a job back into the queue, once the command with these words has a checkpoint."""
    hold(study, *words, node=node)
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


def assert_histories(history: dict[str, list[str]], late: str, lost: str, told: bool) -> None:
    """Each job went as it should; with `told` the first target trial was sent SIGUSR1, and the second was put back."""
    once = ["FAILED", "COMPLETED"]
    assert history[f"rule_train_pack_wildcards_{PACK}"] == ["FAILED", "REQUEUED", "COMPLETED"]
    if told:
        assert history["rule_train_pack_wildcards_grid-000"] == once
        assert history["rule_train_pack_wildcards_sobol-000"] == once
        assert history["rule_train_echo_wildcards_echo-000"][-1] == "COMPLETED"  # whatever the main's end cost it
    assert history["rule_train_target_wildcards_0000"] == (once if told else ["COMPLETED"])
    assert history["rule_train_target_wildcards_0001"] == ["REQUEUED"] * told + ["COMPLETED"]
    assert history[late] == ["CANCELLED", "TIMEOUT", "COMPLETED"]
    assert history[lost] == ["CANCELLED", "REQUEUED", "COMPLETED"]
