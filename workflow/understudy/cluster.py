"""SLURM jobs outlive the workflow's main process: what a dead run left behind goes before a new run begins.

Every job of a study carries the study's mark in its name. So no job has to be noted, and a run that died in the middle
of a submission leaves none that isn't found. That a study has been run on SLURM is noted before its first job.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.errors import UnderstudyError
from understudy.files import digest
from understudy.paths import StudyPaths
from understudy.settings import LeftBehind

POLL_SECONDS = 2.0
CANCEL_SECONDS = 300.0  # after which a job that doesn't end is reported: SLURM's KillWait is 30 s by default
REMIND_SECONDS = 600.0  # between two lines on what is being waited for
QUERY_SECONDS = 60.0
UNKNOWN_JOBS = "it can't be known whether an earlier run of this study left jobs behind; start again when it does"
NOT_BEGUN = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT")
ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)


class ClusterError(UnderstudyError):
    """The scheduler doesn't do what is asked of it."""


@dataclass(frozen=True)
class QueuedJob:
    """A job that the scheduler knows and that hasn't ended."""

    id: str
    state: str
    comment: str  # rule and wildcards


def mark(root: Path) -> str:
    """What the names of a study's jobs begin with. It follows from the study's folder, wherever that is seen from."""
    return f"understudy-{digest(str(root.resolve()))[:12]}"


def mark_jobs(executor: Any, paths: StudyPaths, own_logs: bool) -> None:
    """Let the SLURM plugin name this run's jobs after the study, and write their logs below the study's own; note it.

    The plugin calls jobs by its run's id, which it reads at each submission. Other executors have no such id and are
    left alone. `own_logs`: the user named no other folder.
    """
    if not hasattr(executor, "run_uuid"):
        return
    executor.run_uuid = f"{mark(paths.root)}_{executor.run_uuid}"
    if own_logs:
        executor.slurm_logdir = paths.cluster_logs.resolve()
    run = {"time": time.time(), "host": os.uname().nodename, "process": os.getpid(), "jobs": executor.run_uuid}
    with paths.cluster_runs.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(run) + "\n")


def unwarned(executor: Any, jobs: Iterable[Any]) -> list[str]:
    """What to say where the SLURM plugin asks for no signal before a job's time is up: one line at most."""
    if not hasattr(executor, "run_uuid") or any(
        "--signal" in str(job.resources.get("slurm_extra", "")) for job in jobs
    ):
        return []
    return [
        "SLURM isn't asked to tell jobs before their time is up (`slurm_extra: --signal=USR1@120` in the profile's "
        "`default-resources`, which `--default-resources` replaces as a whole): what a trial did after its last "
        "checkpoint is lost then"
    ]


def left_behind(root: Path) -> list[QueuedJob]:
    """The study's jobs that SLURM knows and that haven't ended. Raises `ClusterError` where SLURM doesn't answer."""
    listed = call(["squeue", "--noheader", "--user", getpass.getuser(), "--format", "%i|%T|%j|%k"])
    rows = (line.strip().split("|", 3) for line in listed.splitlines() if line.count("|") >= 3)
    jobs = [QueuedJob(id, state, comment) for id, state, name, comment in rows if name.startswith(f"{mark(root)}_")]
    return [job for job in jobs if job.state not in ENDED]


def clear(paths: StudyPaths, way: LeftBehind, say: Callable[[str], None]) -> None:
    """Cancel the jobs that a dead run of the study left behind, or wait for those that run; return when none is left.

    What hasn't begun is cancelled either way: nothing is lost by it, and a job that is held, or waits for what never
    comes, would be waited for without an end. One that runs has its time limit.

    The caller holds the study's lock, so that no living run has jobs. A study that never ran on SLURM has none. Raises
    `ClusterError` where SLURM doesn't answer, or a cancelled job doesn't end.
    """
    if not paths.cluster_runs.exists():
        return
    if shutil.which("squeue") is None:
        say("this study was run on SLURM before, whose commands aren't here: jobs that it left behind can't be seen")
        return
    jobs = left_behind(paths.root)
    if not jobs:
        return
    if way == "cancel":
        what = "cancelling them"
    else:
        what = "cancelling those that haven't begun and waiting for the others (`resources.left_behind: cancel` would "
        what += "end them)"
    say(f"an earlier run of this study left {len(jobs)} SLURM jobs behind: {_named(jobs)}; {what}")
    _until_gone(paths.root, way, jobs, say)


def _until_gone(root: Path, way: LeftBehind, jobs: list[QueuedJob], say: Callable[[str], None]) -> None:
    """Cancel or wait, as `clear` says, until no job is left."""
    cancelled: dict[str, float] = {}  # when, by id
    reminded = time.monotonic()
    while jobs:
        now = time.monotonic()
        unwanted = [job for job in jobs if way == "cancel" or job.state in NOT_BEGUN]
        late = [job for job in unwanted if now - cancelled.setdefault(job.id, now) > CANCEL_SECONDS]
        if late:
            raise ClusterError(
                f"SLURM job {late[0].id} of an earlier run was cancelled {CANCEL_SECONDS:.0f} s ago and is still "
                f"{late[0].state}; see `scontrol show job {late[0].id}`, and start again when it is gone"
            )
        if way == "wait":  # what has begun since is left alone; what is put back into the queue is cancelled then
            _cancel([job.id for job in unwanted], "--state=PENDING")
        else:
            _cancel([job.id for job in unwanted if cancelled[job.id] == now])
        if now - reminded > REMIND_SECONDS:
            reminded = now
            say(f"still waiting for {len(jobs)} SLURM jobs of an earlier run: {_named(jobs)}")
        time.sleep(POLL_SECONDS)
        jobs = left_behind(root)


def _cancel(ids: Sequence[str], *options: str) -> None:
    if ids:
        call(["scancel", *options, *ids])


def _named(jobs: Sequence[QueuedJob]) -> str:
    """The first few of them."""
    return ", ".join(f"{job.id} ({job.comment})" for job in jobs[:5]) + (", …" if len(jobs) > 5 else "")


def show_all_jobs() -> None:
    """Let squeue and scancel pass over none of a study's jobs, here and in children, the plugin's calls among them.

    squeue hides those of hidden partitions, and both leave out what a shell's own defaults say (`SQUEUE_PARTITION`,
    `SCANCEL_STATE` and the like).
    """
    for name in [name for name in os.environ if name.startswith(("SQUEUE_", "SCANCEL_"))]:
        del os.environ[name]
    os.environ["SQUEUE_ALL"] = "1"


def call(command: list[str], so: str = UNKNOWN_JOBS) -> str:
    """What a command of SLURM prints. Raises `ClusterError` where it fails, or doesn't answer, with what follows."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=QUERY_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ClusterError(_silent(command, f"no answer in {QUERY_SECONDS:.0f} s", so)) from error
    except OSError as error:
        raise ClusterError(_silent(command, str(error), so)) from error
    if done.returncode != 0:
        raise ClusterError(_silent(command, done.stderr.strip() or done.stdout.strip(), so))
    return done.stdout


def _silent(command: list[str], why: str, so: str) -> str:
    return f"SLURM doesn't answer (`{command[0]}`: {why}), so {so}"
