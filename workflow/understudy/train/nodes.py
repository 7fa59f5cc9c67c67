"""One trial over several nodes of a SLURM job: `srun` starts one agent per node, and each agent its node's ranks.

    the command, on the job's first node
      └─ srun, one task per node: python -m understudy.train.nodes {folder} {host:port}
           └─ the ranks (torchrun's agent), which meet at the first node

What the agents need and what comes back are files in the trial's entry of the store, which all nodes see.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from pydantic import TypeAdapter

from understudy import devices, interruption, process
from understudy.cluster import ClusterError
from understudy.errors import UnderstudyError, UserError
from understudy.files import read_json, read_model, write_json
from understudy.interruption import InterruptionError
from understudy.store import Store
from understudy.train.launch import Meeting, RankError, out_of_memory, train_on_ranks
from understudy.train.trial import Job
from understudy.trial import TrialRecord, TrialSpec, trial_digest

POLL_SECONDS = 0.5
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
TOLD = 128 + signal.SIGUSR1  # what agents end with whom SLURM told: it tells steps, and this command is in none


def train_on_nodes(spec: TrialSpec, job: Job) -> TrialRecord:
    """Start an agent on each node and wait for them.

    Raises `UserError` outside of a SLURM job with as many nodes as the execution has, `ClusterError` where SLURM
    doesn't answer, `RankError` where a node ends without a result, and `InterruptionError` after a signal.
    """
    nodes = job.inputs.execution.nodes
    host = _first_node(nodes)
    folder = Store(job.store).entry(trial_digest(spec, job.inputs)) / "nodes"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").unlink(missing_ok=True)
    write_json(folder / "spec.json", spec)
    write_json(folder / "job.json", _JOB.dump_python(job, mode="json"))
    cores = job.inputs.execution.threads * job.inputs.execution.processes
    one_each = ["--nodes", str(nodes), "--ntasks", str(nodes), "--ntasks-per-node", "1", "--cpus-per-task", str(cores)]
    together = ["--overlap", "--kill-on-bad-exit=1"]  # beside this command's own step; all end with the first
    agent = [sys.executable, "-m", "understudy.train.nodes", str(folder.resolve()), f"{host}:{_free_port()}"]
    code = _run(["srun", *one_each, *together, *agent])
    if (path := folder / "record.json").exists():
        record = read_model(path, TrialRecord)
        shutil.rmtree(folder, ignore_errors=True)
        return record
    if (found := out_of_memory(spec, job)) is not None:
        shutil.rmtree(folder, ignore_errors=True)
        return found
    if (number := interruption.asked()) is not None or code == TOLD:
        raise InterruptionError(number or signal.SIGUSR1, "on several nodes; the newest checkpoint is kept")
    raise RankError(
        f"trial {spec.id} on {nodes} nodes ended with srun's exit code {code}; the log has the nodes' "
        "messages; nothing was recorded, run the workflow again to go on from the checkpoint, if there is one"
    )


def run_agent(folder: Path, endpoint: str) -> None:
    """What each node does: its ranks train, and the first node writes down what came of it."""
    process.end_with_parent(os.getppid())  # not with the workflow, which is on another machine
    interruption.listen()
    spec, job = read_model(folder / "spec.json", TrialSpec), _JOB.validate_python(read_json(folder / "job.json"))
    devices.lease(job.inputs.execution)
    node = int(os.environ["SLURM_NODEID"])
    record = train_on_ranks(spec, job, Meeting(endpoint, node))
    if node == 0:
        write_json(folder / "record.json", record)


def _first_node(nodes: int) -> str:
    """Where the job's first node is reached: the ranks meet there.

    What SLURM calls a node needn't be a name that others know. `NodeAddr` is where its own daemons find it.
    """
    given, names = _allocation()
    if given != str(nodes):
        here = f"this SLURM job has {given}" if given else "this isn't a SLURM job"
        raise UserError(
            f"`execution.target.nodes` is {nodes}, but {here}; run the study with the SLURM profile, which asks for as "
            "many, or set `nodes: 1`"
        )
    first = _lines(["scontrol", "show", "hostnames", names])[0]
    address = re.search(r"\bNodeAddr=(\S+)", "".join(_lines(["scontrol", "--oneliner", "show", "node", first])))
    return address.group(1) if address else first


def _allocation() -> tuple[str | None, str]:
    """How many nodes this job has, and which. Snakemake's plugin clears the environment; SLURM is asked."""
    if (given := os.environ.get("SLURM_JOB_NUM_NODES")) is not None:
        return given, os.environ["SLURM_JOB_NODELIST"]
    job = os.environ.get("SLURM_JOB_ID")
    found = _lines(["squeue", "--noheader", "--job", job, "--format", "%D %N"]) if job else []
    return (found[0].split()[0], found[0].split()[1]) if found else (None, "")


def _lines(command: list[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(
            f"SLURM doesn't say where the job's nodes are (`{' '.join(command)}`: {done.stderr.strip()}); nothing was "
            "recorded, run the workflow again when it does"
        )
    return done.stdout.splitlines()


def _run(command: list[str]) -> int:
    """Run srun to its end and return its exit code. A signal to this process is passed on, once, to all its tasks.

    As SIGUSR1, which srun forwards; a SIGTERM may make it end the tasks by itself, before they have saved anything.
    """
    told = False
    with interruption.deferred(), subprocess.Popen(command, preexec_fn=_end_with_parent) as srun:
        while True:
            try:
                return srun.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if not told and interruption.asked() is not None:
                    srun.send_signal(signal.SIGUSR1)
                    told = True


def _free_port() -> int:
    """A port that is free on this node just now."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def _end_with_parent() -> None:
    """In the child, before it becomes srun: it is told to end when this process is killed, and ends its step."""
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


_JOB = TypeAdapter(Job)


if __name__ == "__main__":
    try:
        with interruption.prevailing():
            run_agent(Path(sys.argv[1]), sys.argv[2])
    except UnderstudyError as error:
        print(f"understudy, node {os.environ['SLURM_NODEID']}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
