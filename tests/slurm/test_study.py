"""A study through a real SLURM, and through what happens on clusters: its tables are those of a local run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from workflow.conftest import ROOT, Study, tiny, wait_until

from .cluster import Cluster, kill, why_not

PLUGIN = "snakemake_executor_plugin_slurm"
PROFILE = ROOT / "workflow" / "profiles" / "slurm"
TOO_LITTLE_MB = 450  # for what imports torch, beside Snakemake twice; the second attempt has twice as much

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


def study_in(folder: Path, cache: Path, **changes: Any) -> Study:
    """As small as a study with every kind of job can be; built-in models are shared."""
    smallest = {"proxy__sobol": 0, "proxy__grid": {}, "proxy__echo": False, "target__trials": 2, "decode__trials": 0}
    return Study(folder, tiny(cache=str(cache), **smallest, **changes))


def start(study: Study, cluster: Cluster) -> subprocess.Popen[str]:
    """Snakemake with the SLURM profile, polling often; what it prints is in `output.txt`."""
    head = study.command()
    options = ["--workflow-profile", str(PROFILE), "--slurm-init-seconds-before-status-checks", "5"]
    command = [*head[: head.index("--cores")], *options]
    with (study.folder / "output.txt").open("a") as log:
        return subprocess.Popen(
            command, env=cluster.environment, stdout=log, stderr=log, text=True, start_new_session=True
        )


def worker(study: Study, *words: str) -> int | None:
    """The process that carries out a command of the study with these words in it."""
    for pid in study.processes():
        line = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if line[1:3] == ["-m", "understudy"] and set(words) <= set(line):
            return pid
    return None


def test_tables_are_those_of_a_local_run_whatever_happens_on_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    """Out of memory, a requeue, `kill -9` of the main process, a time-out and a lost node, in this order."""
    local = study_in(tmp_path / "local", tmp_path / "cache")
    done = local.run()
    assert done.returncode == 0, done.stdout

    study = study_in(tmp_path / "slurm", tmp_path / "cache", resources={"proxy": {"mem_mb": TOO_LITTLE_MB}})
    first = start(study, cluster)
    try:
        job = cluster.wait_for_job("rule_train_target_wildcards_0000", 300)
        cluster.call("scontrol", "requeue", job.id)
        cluster.hurry(job)
        begun = [cluster.wait_for_job(f"rule_train_finalist_wildcards_{rank}_0", 300) for rank in (0, 1)]
    finally:
        kill(first.pid)
        first.wait()
    left = {job.id for job in begun}

    second = start(study, cluster)
    try:
        late, lost = (cluster.wait_for_job(f"rule_train_finalist_wildcards_{rank}_0", 120, left) for rank in (0, 1))
        assert left.isdisjoint(job.id for job in cluster.jobs()), "submitted before the earlier run's jobs had gone"
        wait_until(lambda: worker(study, "train-finalist", "--rank", "0"), 60)
        os.kill(worker(study, "train-finalist", "--rank", "0") or 0, signal.SIGSTOP)  # else it is through in a moment
        cluster.call("scontrol", "update", f"JobId={late.id}", "EndTime=now")

        cluster.call("scontrol", "update", f"NodeName={lost.node}", "State=DOWN", "Reason=test")
        cluster.hurry(lost)
        assert second.wait(300) == 0, (study.folder / "output.txt").read_text()
    finally:
        kill(second.pid, signal.SIGTERM)
        second.wait()

    assert study.tables() == local.tables()
    history = cluster.history()
    assert history["rule_train_pack_wildcards_default-000"] == ["FAILED", "COMPLETED"]
    assert history["rule_train_target_wildcards_0000"] == ["REQUEUED", "COMPLETED"]
    assert history["rule_train_target_wildcards_0001"] == ["COMPLETED"]
    assert history["rule_train_finalist_wildcards_0_0"] == ["CANCELLED", "TIMEOUT", "COMPLETED"]
    assert history["rule_train_finalist_wildcards_1_0"] == ["CANCELLED", "REQUEUED", "COMPLETED"]
    output = (study.folder / "output.txt").read_text()
    assert "an earlier run of this study left 2 SLURM jobs behind" in output
    assert "Traceback" not in output
    assert not study.processes()


def test_gpus_of_a_job_are_those_of_its_node(cluster: Cluster) -> None:
    """The cluster's own check: what a job asks for is what it sees."""
    command = ["srun", "--gpus=fake:2", "--mem=100", sys.executable, "-c"]
    seen = cluster.call(*command, "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])")
    assert seen.split() == ["0,1"]
