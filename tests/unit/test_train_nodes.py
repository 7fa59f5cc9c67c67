"""Several nodes: real agents and ranks on this machine, started by a stand-in for SLURM's `srun`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rank_study import curve
from training_study import make_job, make_spec
from understudy import process
from understudy.cluster import ClusterError
from understudy.errors import UserError
from understudy.interruption import InterruptionError
from understudy.store import Store
from understudy.train.engine import Engine
from understudy.train.launch import RankError, train_alone

SRUN = """#!/bin/bash
# one task per node: as many as --ntasks says, all on this machine; the first that fails ends the others
while [[ $1 == -* ]]; do
    case $1 in --ntasks) tasks=$2; shift 2;; --*=*|--overlap) shift;; *) shift 2;; esac
done
for ((node = 0; node < tasks; node++)); do SLURM_NODEID=$node "$@" & done
code=0
for ((node = 0; node < tasks; node++)); do
    wait -n
    ended=$?
    if ((ended && !code)); then code=$ended; jobs -p | xargs --no-run-if-empty kill; fi
done
exit $code
"""
SCONTROL = """#!/bin/bash
case "$*" in
    "show hostnames node[1-2]") echo node1; echo node2;;
    "--oneliner show node node1") echo "NodeName=node1 NodeAddr=localhost NodeHostName=elsewhere";;
    *) echo "slurm_load_node error" >&2; exit 1;;
esac
"""
SPEC = make_spec(batch_size=5, stage="target")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of two nodes, as its environment and SLURM's commands show it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
    with subprocess.Popen(["true"]) as ended:
        pass
    monkeypatch.setenv(process.STARTED_BY, str(ended.pid))  # the workflow's process, which a second node doesn't have
    return tmp_path


@pytest.mark.long
def test_two_nodes_learn_what_one_process_learns(slurm: Path) -> None:
    alone = Engine(make_job(slurm / "one", micro_batch_size=2)).train(SPEC)
    job = make_job(slurm / "two", micro_batch_size=2, processes=1, nodes=2, strategy="fsdp")
    together = train_alone(SPEC, job)
    assert together.result.status == "complete"
    assert curve(together) == pytest.approx(curve(alone), rel=1e-5)
    assert Store(job.store).find(together.result.digest) == together


@pytest.mark.long
def test_a_node_that_fails_ends_the_trial_with_one_message(slurm: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = make_job(slurm / "two", "nf4", nodes=2)
    with pytest.raises(RankError, match=r"on 2 nodes ended with srun's exit code 2; .* nothing was recorded"):
        train_alone(SPEC.model_copy(update={"method": "full"}), job)  # found out by the ranks
    assert "understudy, node" in capfd.readouterr().err


def test_what_slurm_told_the_nodes_and_not_the_command_is_an_interruption(slurm: Path) -> None:
    (slurm / "bin" / "srun").write_text("#!/bin/bash\nexit $((128 + 10))\n")
    with pytest.raises(InterruptionError, match="SIGUSR1"):
        train_alone(SPEC, make_job(slurm / "two", nodes=2))


def test_a_controller_that_does_not_answer_is_one_message(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[3-4]")
    with pytest.raises(ClusterError, match=r"`scontrol show hostnames node\[3-4\]`: slurm_load_node error"):
        train_alone(SPEC, make_job(slurm / "two", nodes=2))


@pytest.mark.parametrize("given", [None, "1", "3"])
def test_nodes_need_a_job_that_has_as_many(slurm: Path, monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    if given is None:
        monkeypatch.delenv("SLURM_JOB_NUM_NODES")
    else:
        monkeypatch.setenv("SLURM_JOB_NUM_NODES", given)
    what = f"this SLURM job has {given}" if given else "this isn't a SLURM job"
    with pytest.raises(UserError, match=rf"`execution.target.nodes` is 2, but {what}; .* or set `nodes: 1`"):
        train_alone(SPEC, make_job(slurm / "two", nodes=2))
