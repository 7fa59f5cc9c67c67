"""Jobs for which SLURM's plugin would wait without an end: those that were pre-empted for good, lost, or can't begin.

The plugin leaves a pre-empted job to SLURM, which puts it back into the queue only where the partition's `PreemptMode`
says so, and takes a job that SLURM has forgotten for one that isn't known yet. Both are failures here, after which
Snakemake submits a job again (`retries`): a trial goes on from its checkpoint, and one that had ended comes out of the
store.
"""

from __future__ import annotations

import asyncio
import getpass
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from understudy.cluster import ClusterError, call

GONE_SECONDS = 180.0  # for so long, and at so many looks, before a job counts as lost
GONE_LOOKS = 3
STAYING = ("PREEMPTED", "NODE_FAIL")  # what a job passes through on its way back into the queue, or stays in
STAYING_SECONDS = 120.0  # a job that is put back is pending again within seconds
# of SLURM's reasons why a job waits those that time doesn't cure, by parts of their names
HOPELESS = (
    *("PartitionTimeLimit", "PartitionNodeLimit", "PartitionConfig", "BadConstraints", "Invalid", "NotAllowed"),
    *("PerJob", "MaxMemPerLimit", "MaxWall", "Held", "held"),
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
    _since: dict[str, float] = field(default_factory=dict)  # since when a job is gone, or in such a state
    _looks: dict[str, int] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def look(self, ids: Collection[str], queue: Mapping[str, Queued], now: float) -> dict[str, str]:
        """Of jobs that the run waits for those that are lost, with what SLURM says of them. `now` in seconds."""
        lost = {}
        for id in ids:
            job = queue.get(id) or queue.get(id.partition("_")[0])
            if job is not None and job.state not in STAYING:
                self._since.pop(id, None)
                self._looks.pop(id, None)
                self._tell(id, job)
                continue
            waited = now - self._since.setdefault(id, now)
            self._looks[id] = self._looks.get(id, 0) + 1
            if job is not None and waited >= STAYING_SECONDS:
                lost[id] = f"SLURM-job '{id}' is {job.state}, and SLURM doesn't put it back into the queue."
            elif job is None and waited >= GONE_SECONDS and self._looks[id] >= GONE_LOOKS:
                lost[id] = f"SLURM-job '{id}' is gone from the queue, and nothing says how it ended."
        return lost

    def _tell(self, id: str, job: Queued) -> None:
        hopeless = job.state == "PENDING" and any(part in job.reason for part in HOPELESS)
        if hopeless and job.reason not in self._told:
            self._told.add(job.reason)
            self.say(
                f"SLURM job {id} ({job.comment}) can't begin as it is: {job.reason}. `scontrol show job {id}` says "
                "what it asks for; what it should ask for, and at most, stands in the config's `resources` (`mem_mb`, "
                "`runtime`, `max_mem_mb`, `max_runtime`). It waits until you cancel it or the limit changes"
            )


def watch_jobs(executor: Any, say: Callable[[str], None]) -> None:
    """Let the SLURM plugin report jobs as failed that it would wait for without an end.

    Other executors are left alone.
    """
    if not hasattr(executor, "run_uuid"):
        return
    check, watch = executor.check_active_jobs, Watch(say)

    async def check_active_jobs(active_jobs: list[Any]) -> AsyncIterator[Any]:
        lost: dict[str, str] = {}
        try:
            queue = await asyncio.to_thread(queued)
            lost = watch.look([job.external_jobid for job in active_jobs], queue, time.monotonic())
        except ClusterError:  # SLURM doesn't answer for the moment: nothing is known of any job
            pass
        for job in active_jobs:
            if job.external_jobid in lost:
                executor.report_job_error(job, msg=lost[job.external_jobid])
        async for job in check([job for job in active_jobs if job.external_jobid not in lost]):
            yield job

    executor.check_active_jobs = check_active_jobs


def queued() -> dict[str, Queued]:
    """The user's jobs that SLURM knows, also those that have ended, by id. Raises `ClusterError`."""
    listed = call(["squeue", "--noheader", "--states=all", "--user", getpass.getuser(), "--format", "%i|%T|%r|%k"])
    rows = (line.strip().split("|", 3) for line in listed.splitlines() if line.count("|") >= 3)
    return {id: Queued(state, reason, comment) for id, state, reason, comment in rows}
