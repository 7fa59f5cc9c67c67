"""Jobs for which SLURM's plugin would wait without an end: those that were pre-empted for good, lost, or can't begin.

The plugin leaves a pre-empted job to SLURM, which puts it back into the queue only where the partition's `PreemptMode`
says so; it takes a job that SLURM has forgotten for one that isn't known yet; and where SLURM doesn't answer for a
moment it forgets its jobs itself. The first two are failures here, after which Snakemake submits a job again
(`retries`), and a trial goes on from its checkpoint or comes out of the store. And a run that is interrupted during a
poll, or while jobs wait to be submitted, would leave jobs behind: the plugin cancels those on its list alone, and a
poll takes them from there for as long as it lasts.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from understudy.cluster import NOT_BEGUN, ClusterError, call
from understudy.paths import StudyPaths

GONE_SECONDS = 180.0  # for so long, and at so many looks, a job isn't listed before SLURM is asked whether it knows it
GONE_LOOKS = 3
LEFT = "jobs of this run may go on; the study's next start finds them"
UNKNOWN = "Invalid job id"  # what SLURM says then
STAYING = ("PREEMPTED", "NODE_FAIL")  # what a job passes through on its way back into the queue, or stays in
STAYING_SECONDS = 120.0  # a job that is put back is pending again within seconds
ELSEWHERE = ("cluster", "clusters", "slurm_cluster")  # resources by which the plugin submits to another cluster
# of SLURM's reasons why a job waits those that time doesn't cure, by parts of their names
HOPELESS = (
    *("PartitionTimeLimit", "PartitionNodeLimit", "PartitionConfig", "BadConstraints", "Invalid", "NotAllowed"),
    *("PerJob", "MaxMemPerLimit", "MaxWall", "Held", "held", "JobHold"),
)


@dataclass(frozen=True)
class Queued:
    """A job as the queue shows it."""

    state: str
    reason: str
    comment: str  # rule and wildcards


@dataclass
class Watch:
    """What was seen of a run's jobs so far. `say` is told once of each reason why some can't begin."""

    say: Callable[[str], None]
    _since: dict[str, float] = field(default_factory=dict)  # since when a job isn't listed, or in such a state
    _looks: dict[str, int] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def look(self, ids: Collection[str], queue: Mapping[str, Queued], now: float) -> dict[str, Queued | None]:
        """Of jobs that the run waits for those that stay in a last state, or aren't listed (None). `now` in seconds."""
        found: dict[str, Queued | None] = {}
        for id in ids:
            job = queue.get(id)
            if job is not None and job.state not in STAYING:
                self._since.pop(id, None)
                self._looks.pop(id, None)
                self._tell(id, job)
                continue
            waited = now - self._since.setdefault(id, now)
            self._looks[id] = self._looks.get(id, 0) + 1
            if job is None and waited >= GONE_SECONDS and self._looks[id] >= GONE_LOOKS:
                found[id] = None
            elif job is not None and waited >= STAYING_SECONDS:
                found[id] = job
        return found

    def _tell(self, id: str, job: Queued) -> None:
        hopeless = job.state in NOT_BEGUN and any(part in job.reason for part in HOPELESS)
        if hopeless and job.reason not in self._told:
            self._told.add(job.reason)
            self.say(
                f"SLURM job {id} ({job.comment}) can't begin as it is: {job.reason}. `scontrol show job {id}` says "
                "what it asks for; the config's `resources` say what jobs are to ask for, and at most (`max_runtime`, "
                f"`max_mem_mb`). A held one goes on after `scontrol release {id}`"
            )


class WatchedPlugin:
    """Stands in front of a SLURM executor's polls, and ends what it would wait for without an end, or leave behind.

    `began` is a time of change of this run's beginning, by the clock that files' times have.
    """

    def __init__(self, executor: Any, began: float, say: Callable[[str], None]) -> None:
        self._executor, self._began, self._watch = executor, began, Watch(say)
        self._check, self._cancel = executor.check_active_jobs, executor.cancel_jobs
        self._reported: set[str] = set()
        self._cancelled = False
        executor.check_active_jobs, executor.cancel_jobs = self.check_active_jobs, self.cancel_jobs
        for name in ("report_job_success", "report_job_error"):
            setattr(executor, name, self._noting(getattr(executor, name)))

    async def check_active_jobs(self, active_jobs: Sequence[Any]) -> AsyncIterator[Any]:
        """The jobs that are still to be waited for, as the plugin yields them."""
        self._reported.clear()
        if lost := await asyncio.to_thread(self._lost, active_jobs):
            for job, state in lost:
                self._end(job, state)
        if self._cancelled:
            return
        rest = [job for job in active_jobs if job.external_jobid not in self._reported]
        kept = set()
        async for job in self._check(rest):
            kept.add(job.external_jobid)
            yield job
        for job in rest:
            if job.external_jobid not in kept | self._reported:
                yield job
        if lost:
            self._executor.next_seconds_between_status_checks = None  # soon again

    def cancel_jobs(self, active_jobs: Sequence[Any]) -> None:
        """Cancel the run's jobs: those on the plugin's list, those that a poll holds, and those not submitted yet."""
        self._cancelled = True
        if submissions := getattr(self._executor, "_job_submission_executor", None):
            submissions.shutdown(wait=True, cancel_futures=True)
        try:
            self._cancel(active_jobs)
        finally:
            everywhere = ["--clusters=all"] if getattr(self._executor, "_submitted_job_clusters", None) else []
            try:
                call(["scancel", "--name", self._executor.run_uuid, *everywhere], so=LEFT)
            except ClusterError as error:
                self._watch.say(str(error))

    def _noting(self, report: Callable[..., None]) -> Callable[..., None]:
        def noted(job: Any, *arguments: Any, **named: Any) -> None:
            self._reported.add(job.external_jobid)
            if not self._cancelled:  # what a poll finds then is no news
                report(job, *arguments, **named)

        return noted

    def _lost(self, active_jobs: Sequence[Any]) -> list[tuple[Any, str | None]]:
        """Jobs with the state in which SLURM leaves them; None where it knows them no longer."""
        jobs = {job.external_jobid: job for job in active_jobs if not _elsewhere(job)}
        if not jobs:
            return []
        lost: list[tuple[Any, str | None]] = []
        with suppress(ClusterError):  # it doesn't answer for the moment: nothing is known of the other jobs
            found = self._watch.look(jobs, queued(self._executor.run_uuid), time.monotonic())
            lost += [(jobs[id], job.state) for id, job in found.items() if job is not None]
            lost += [(jobs[id], None) for id, job in found.items() if job is None and not known(id)]
        return lost

    def _end(self, job: Any, state: str | None) -> None:
        """Report a lost job: as failed, unless it has left all that it was to make."""
        if state is None and _has_made(job, self._began):
            self._executor.report_job_success(job)
            return
        what = "has been forgotten by SLURM, which doesn't say how it ended"
        if state is not None:
            what = f"is {state}, and SLURM doesn't put it back into the queue"
        log = job.aux and job.aux.get("slurm_logfile")
        self._executor.report_job_error(
            job, msg=f"SLURM-job '{job.external_jobid}' {what}. ", aux_logs=[str(log)] if log else []
        )


def watch_jobs(executor: Any, paths: StudyPaths, say: Callable[[str], None]) -> None:
    """Let the SLURM plugin wait for no job without an end, once the run is noted. Other executors are left alone."""
    if hasattr(executor, "run_uuid"):
        WatchedPlugin(executor, paths.cluster_runs.stat().st_mtime, say)


def queued(name: str) -> dict[str, Queued]:
    """The jobs of this name that SLURM knows, also those that have ended, by id. Raises `ClusterError`.

    Tasks of an array count one by one.
    """
    options = ["--noheader", "--array", "--states=all", "--name", name, "--format", "%i|%T|%r|%k"]
    listed = call(["squeue", *options])
    rows = (line.strip().split("|", 3) for line in listed.splitlines() if line.count("|") >= 3)
    return {id: Queued(state, reason, comment) for id, state, reason, comment in rows}


def known(id: str) -> bool:
    """Whether SLURM still knows a job. Raises `ClusterError` where it says neither."""
    try:
        call(["scontrol", "--all", "show", "job", id])
    except ClusterError as error:
        if UNKNOWN in str(error) or f"Job {id} not found" in str(error):  # the latter of a task of an array
            return False
        raise
    return True


def _elsewhere(job: Any) -> bool:
    """Whether it was submitted to another cluster, whose jobs aren't listed here."""
    asked = job.job.resources
    return (
        "SBATCH_CLUSTERS" in os.environ
        or any(asked.get(name) for name in ELSEWHERE)
        or re.search(r"(^|[\s'\"])-M", str(asked.get("slurm_extra") or "")) is not None
    )


def _has_made(job: Any, since: float) -> bool:
    """Whether all that a job makes is there, and of this run: files are written whole or not at all."""
    made = [Path(str(path)) for path in job.job.output]
    try:
        return bool(made) and all(path.stat().st_mtime >= since for path in made)
    except OSError:
        return False
