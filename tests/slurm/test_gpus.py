"""GPUs through a real SLURM: what a trial asks for is what its job has, and what its processes lease.

The GPUs are fake, so a trial comes as far as its processes' first touch of CUDA.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from training_study import make_spec
from workflow.conftest import Study, wait_until

from .cluster import NEEDS_CLUSTER, Cluster, Job, kill, needs_plugin
from .work import TRIAL, environment, only_the_trial, ranks, ready_to_train, started

pytestmark = [*NEEDS_CLUSTER, needs_plugin]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes with four GPUs each, which `nvidia-smi` names after their node."""
    with Cluster(tmp_path_factory.mktemp("slurm"), nodes=2, cores=4) as made:
        lines = "".join(f"GPU {i}: Fake (UUID: GPU-$SLURMD_NODENAME-{i})\n" for i in range(made.gpus))
        program = made.folder / "bin" / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<END\n{lines}END\n")
        program.chmod(0o755)
        yield made


def leased(study: Study, cluster: Cluster, job: Job) -> dict[str, set[str]]:
    """The GPUs that the processes of a running trial see, by their node."""
    names, found = cluster.names(job), {}

    def all_there() -> bool:
        for place, name in enumerate(names):
            for pid in ranks(study, place):
                found.setdefault(name, set()).update(environment(pid)["CUDA_VISIBLE_DEVICES"].split(","))
        return len(found) == len(names)

    wait_until(all_there, 60)
    return found


@pytest.mark.parametrize("nodes", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_a_trial_gets_its_gpus_on_every_node(cluster: Cluster, tmp_path: Path, nodes: int) -> None:
    """Also where nodes have less left than they could have between them."""
    resources = {"gpu_model": "fake", "mem_mb": 3000}
    study = ready_to_train(tmp_path / "study", make_spec(), resources, device="cuda", processes=2, nodes=nodes)
    taking = ["sbatch", "--parsable", "--nodes=2", "--mem=100", "--output=/dev/null", "--wrap=sleep 600"]
    _, freed = (cluster.call(*taking, f"--gres=gpu:{count}").strip() for count in (1, 2))
    with started(study, cluster, *only_the_trial(retries=0), TMPDIR=str(tmp_path)) as process:
        cluster.wait_for_lack(TRIAL)
        cluster.call("scancel", freed)
        job = cluster.wait_for_job(TRIAL)
        shown = cluster.shown(job)
        assert int(shown["NumNodes"]) == nodes
        assert shown["GRES"].startswith("gpu:fake:2(")
        assert leased(study, cluster, job) == {name: {f"GPU-{name}-1", f"GPU-{name}-2"} for name in cluster.names(job)}
        kill(process.pid)
    cluster.clear()


@pytest.mark.nightly
def test_gpus_of_a_job_are_those_of_its_node(cluster: Cluster) -> None:
    """The cluster's own check: what a job asks for is what it sees."""
    command = ["srun", "--gpus=fake:2", "--mem=100", sys.executable, "-c"]
    seen = cluster.call(*command, "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])")
    assert seen.split() == ["0,1"]
