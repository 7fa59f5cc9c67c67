"""Studies on a cluster: started with the SLURM profile, and their processes found and held while they train."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from training_study import make_job
from understudy.artifacts import Proposal
from understudy.files import write_json
from understudy.paths import StudyPaths
from understudy.sections import RunningSection, TrainingSection
from understudy.trial import TrialSpec
from workflow.conftest import ROOT, Study, tiny, wait_until

from .cluster import Cluster, kill

PROFILE = ROOT / "workflow" / "profiles" / "slurm"
TRIAL = "rule_train_target_wildcards_0000"  # of the study that is ready to train


def ready_to_train(
    folder: Path, spec: TrialSpec, resources: dict[str, Any], device: str, minutes: float = 5, **target: int
) -> Study:
    """A study with all that its first target trial needs; `minutes` pass between its checkpoints."""
    running = {"device": device, "checkpoint_minutes": minutes}
    study = Study(folder, tiny(execution={**running, "target": target}, resources={"target": resources}))
    job = make_job(folder / "made", device=device, packing=None, **target)
    paths = StudyPaths(study.results)
    write_json(paths.settings("training"), TrainingSection(training=job.inputs.training))
    write_json(
        paths.settings("running"),
        RunningSection(running=job.running.model_copy(update={"checkpoint_minutes": minutes})),
    )
    write_json(paths.manifest, job.inputs.data)
    write_json(paths.model("target"), job.inputs.model)
    for split, path in (("train", job.train), ("validation", job.validation)):
        path.rename(paths.data(split))
    proposal = Proposal(number=0, spec=spec, kind="start", sampler="x", visible=(), pending=())
    write_json(paths.execution("target"), {"role": "target", "resolved": job.inputs.execution.model_dump(mode="json")})
    write_json(paths.proposal(0), proposal)
    return study


def only_the_trial(retries: int) -> list[str]:
    """Snakemake's options for it."""
    return [
        "--allowed-rules",
        "train_target",
        "--retries",
        str(retries),
        "--",
        "results/target/trials/0000/result.json",
    ]


@contextmanager
def started(study: Study, cluster: Cluster, *options: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Snakemake with the SLURM profile; what it prints is in `output.txt`. It is asked to end after.

    It looks at its jobs after 2, 14, 36, … seconds: the plugin adds 10 each time that none has ended.
    """
    head = study.command()
    profile = ["--workflow-profile", str(PROFILE), "--slurm-init-seconds-before-status-checks", "2"]
    command = [*head[: head.index("--cores")], *profile, *options]
    with (study.folder / "output.txt").open("a") as log:
        process = subprocess.Popen(
            command,
            env={**cluster.environment, **environment},
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill(process.pid, signal.SIGTERM)
        process.wait()


def output(study: Study) -> str:
    """What all runs of a study printed."""
    return (study.folder / "output.txt").read_text()


def hold(study: Study, *words: str, node: int | None = None) -> int:
    """Wait for a checkpoint of the command with these words, and stop its process; of several nodes, that node's rank.

    So a trial can't be through before what comes next has reached it. SLURM lets a job's processes go on when it ends
    them.
    """
    found: list[int] = []

    def stopped() -> bool:
        command = _worker(study, *words)
        if command is None or not _has_checkpoint(command):
            return False
        found[:] = [command] if node is None else ranks(study, node)
        for pid in found:
            kill(pid, signal.SIGSTOP)
        return bool(found)

    wait_until(stopped, 600)
    return found[0]


def ranks(study: Study, node: int) -> list[int]:
    """The processes that train a trial on one of its job's nodes, by the node's place in the job."""
    return [
        pid
        for pid in study.processes()
        if "--multiprocessing-fork" in _words(pid, "cmdline") and f"SLURM_NODEID={node}" in _words(pid, "environ")
    ]


def environment(pid: int) -> dict[str, str]:
    """What a process was started with."""
    return dict(word.split("=", 1) for word in _words(pid, "environ") if "=" in word)


def is_told(pid: int, number: signal.Signals) -> bool:
    """Whether a signal waits for a process that is stopped."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return any(int(line.split()[1], 16) >> (number - 1) & 1 for line in lines if line.startswith(("SigPnd", "ShdPnd")))


def _worker(study: Study, *words: str) -> int | None:
    """The process that carries out a command of the study, one of whose words has each of these in it."""
    for pid in study.processes():
        line = _words(pid, "cmdline")
        if line[1:3] == ["-m", "understudy"] and all(any(word in part for part in line) for word in words):
            return pid
    return None


def _has_checkpoint(command: int) -> bool:
    """Whether what a command trains can go on later. The command holds the lock of its entry in the store."""
    locks = []
    with suppress(OSError):  # it has ended
        for descriptor in Path(f"/proc/{command}/fd").iterdir():
            with suppress(OSError):
                locks.append(descriptor.readlink())
    return any(
        any(lock.parent.glob("checkpoint/step-*/whole.json"))
        if lock.name == ".lock"
        else lock.with_suffix(".pt").exists()
        for lock in locks
        if lock.name.endswith("lock")
    )


def _words(pid: int, name: str) -> list[str]:
    """The words of a process's command line, or of its environment; none where it has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace").split("\0")
    except OSError:
        return []
