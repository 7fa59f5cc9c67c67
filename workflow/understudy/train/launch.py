"""One trial by itself, in this process or in as many as the execution says (torchrun's agent, in this process)."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import resource_tracker
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from understudy import devices, disk, interruption, process, watchdog
from understudy.errors import ConfigError, DataError, ModelError, UnderstudyError, UserError
from understudy.interruption import InterruptionError
from understudy.store import Store
from understudy.train.trial import Job, train_trial
from understudy.trial import TrialRecord, TrialSpec, trial_digest

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

LONGEST_WAIT = timedelta(days=1)  # for the others in a sum; the watchdog, which knows what is slow, acts earlier
SHUTDOWN_SECONDS = 5  # after which a rank that doesn't end by itself is killed
PASS_ON_SECONDS = 0.5
# how what torch tells of a rank begins where the user gave something that can't be used
GIVEN = tuple(f"{kind.__name__}: " for kind in (UserError, ConfigError, DataError, ModelError))


class RankError(UnderstudyError):
    """A process of a trial ended without a result. Nothing is recorded, so the trial can run again."""


def train_alone(spec: TrialSpec, job: Job) -> TrialRecord:
    """The record of one trial, from the store or trained with the execution's nodes and processes."""
    execution = job.inputs.execution

    def train(spec: TrialSpec) -> TrialRecord:
        if execution.nodes > 1:
            from understudy.train.nodes import train_on_nodes

            return train_on_nodes(spec, job)
        devices.lease(execution)
        if execution.processes > 1 or execution.strategy == "fsdp":
            return train_on_ranks(spec, job)
        from understudy.train.engine import Engine

        return Engine(job).train(spec)

    return train_trial(spec, job, train, only=True)


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of several nodes meet: the first node's host and port, and which of the nodes this one is."""

    endpoint: str
    node: int


def train_on_ranks(spec: TrialSpec, job: Job, meeting: Meeting | None = None) -> TrialRecord:
    """Start this node's ranks and wait for them; without a meeting there is one node.

    Returns the record of the node's first rank. Raises `RankError` where a rank ends without a result.
    After a signal the ranks end by themselves, all after the same step; then it raises `InterruptionError`.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    start_resource_tracker()
    execution = job.inputs.execution
    os.environ["OMP_NUM_THREADS"] = str(execution.threads)  # else torchrun sets it, and says so
    config = LaunchConfig(
        min_nodes=execution.nodes,
        max_nodes=execution.nodes,
        nproc_per_node=execution.processes,
        run_id=spec.id,
        rdzv_backend="static" if meeting else "c10d",  # static: each node's ranks have the same numbers every time
        rdzv_endpoint=meeting.endpoint if meeting else "localhost:0",  # a free port
        rdzv_configs={"rank": meeting.node} if meeting else {},
        local_addr=None if meeting else "localhost",  # else the host's full name is looked up
        max_restarts=0,
        shutdown_timeout=SHUTDOWN_SECONDS,
        signals_to_handle="SIGHUP,SIGQUIT",  # at these torchrun's agent ends the ranks; others are passed on here
    )
    try:
        with interruption.deferred(), _passing_on_signals():
            ends: dict[int, TrialRecord | InterruptionError] = elastic_launch(config, run_rank)(spec, job)
    except ChildFailedError as error:
        return _after_failure(error, spec, job, meeting)
    except (UnpicklingError, EOFError) as error:  # torch leaves a rank's last words in a file, which was cut off
        disk.require_room(Path(tempfile.gettempdir()))
        raise RankError(
            f"a process of trial {spec.id} ended, and what it had to say couldn't be written; nothing was recorded, "
            "run the workflow again to go on from the checkpoint, if there is one"
        ) from error
    except SignalException as error:
        raise RankError(f"trial {spec.id} was interrupted ({error.sigval.name}); run the workflow again") from error
    end = ends[min(ends)]
    if isinstance(end, InterruptionError):
        raise end
    return end


def _after_failure(error: ChildFailedError, spec: TrialSpec, job: Job, meeting: Meeting | None) -> TrialRecord:
    """What comes of ranks that ended without a result: the record that memory ran out, or an error that says why."""
    if (number := interruption.asked()) is not None:
        raise InterruptionError(number, "before all processes were at work; an earlier checkpoint is kept") from error
    if (found := out_of_memory(spec, job)) is not None:
        if meeting is not None:  # the other nodes wait for this one, until srun ends them because it failed
            raise RankError(f"memory ran out on node {meeting.node}; the store has the record") from error
        return found
    rank, failure = error.get_first_failure()
    told = _told(failure.message)
    if told.startswith(GIVEN):
        raise UserError(told.partition(": ")[2]) from error
    reason = _hung(job) if failure.exitcode == watchdog.EXIT_CODE else told.splitlines()[-1]
    raise RankError(
        f"process {rank} of {job.inputs.execution.world_size} of trial {spec.id} ended with exit code "
        f"{failure.exitcode}: {reason}; nothing was recorded, run the workflow again to go on from the checkpoint, if "
        "there is one"
    ) from error


def start_resource_tracker() -> None:
    """Start multiprocessing's helper so that SIGUSR1 doesn't end it; SIGTERM and SIGINT it ignores by itself.

    SLURM sends the signal to all processes of a step. It stays blocked in the helper, which inherits this mask.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def out_of_memory(spec: TrialSpec, job: Job) -> TrialRecord | None:
    """What a rank left in the store when it ran out of memory where it couldn't tell the others, before it ended."""
    found = Store(job.store).find(trial_digest(spec, job.inputs))
    return found if found is not None and found.result.status == "out_of_memory" else None


@contextmanager
def _passing_on_signals() -> Iterator[None]:
    """While this process waits for its children, tell them when it is asked to end.

    Each is told again and again: it may not listen yet, and once it has heard it doesn't mind.
    """
    done = threading.Event()

    def pass_on() -> None:
        while not done.wait(PASS_ON_SECONDS):
            if (number := interruption.asked()) is not None:
                for pid in [child.pid for child in multiprocessing.active_children() if child.pid is not None]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)

    thread = threading.Thread(target=pass_on, name="pass-on-signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def run_rank(spec: TrialSpec, job: Job) -> TrialRecord | InterruptionError:
    """What each process does: join the others, train, and leave. Rank 0 writes to the store.

    An interruption is returned, so that torchrun's agent lets every rank come to its end.
    """
    agent = multiprocessing.parent_process()
    process.end_with_parent(agent.pid if agent is not None else None)
    try:
        with interruption.deferred():
            interruption.listen()
            with watchdog.watching(job.running.watchdog_minutes, f"a process of trial {spec.id}"):
                return _train_as_rank(spec, job)
    except InterruptionError as error:
        return error


def _train_as_rank(spec: TrialSpec, job: Job) -> TrialRecord:
    process.set_threads(job.inputs.execution.threads)
    import torch
    from torch import distributed

    from understudy.train.engine import Engine
    from understudy.train.ranks import Ranks

    on_gpu = job.inputs.execution.device == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=LONGEST_WAIT)
    ranks = Ranks(distributed.get_rank(), distributed.get_world_size())
    ranks.meet(torch.device("cuda" if on_gpu else "cpu"))
    engine = Engine(job, ranks)
    try:
        record = engine.train(spec)
    except InterruptionError:
        distributed.destroy_process_group()  # every rank does; one that fails alone would wait for the others here
        raise
    if engine.speaks_for_all:
        os._exit(1)  # the others wait for this rank; that it is gone ends them
    distributed.destroy_process_group()
    return record


def _hung(job: Job) -> str:
    return f"no progress for {job.running.watchdog_minutes:g} minutes (`execution.watchdog_minutes`)"


def _told(reported: Any) -> str:
    """What a rank left behind: its error, or what torch makes of a signal."""
    text = reported["message"] if isinstance(reported, dict) else str(reported)
    return str(text).strip() or "without a word"
