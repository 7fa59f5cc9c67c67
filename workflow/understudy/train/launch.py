"""One trial by itself, in this process or in as many as the execution says (torchrun's agent, in this process)."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from understudy import devices, interruption, process, watchdog
from understudy.errors import UnderstudyError
from understudy.interruption import InterruptionError
from understudy.train.trial import Job, train_trial
from understudy.trial import TrialRecord, TrialSpec

SHUTDOWN_SECONDS = 5  # after which a rank that doesn't end by itself is killed
PASS_ON_SECONDS = 0.5


class RankError(UnderstudyError):
    """A process of a trial ended without a result. Nothing is recorded, so the trial can run again."""


def train_alone(spec: TrialSpec, job: Job) -> TrialRecord:
    """The record of one trial, from the store or trained with `execution.processes` processes."""

    def train(spec: TrialSpec) -> TrialRecord:
        devices.lease(job.inputs.execution)
        if job.inputs.execution.processes > 1:
            return _train_on_ranks(spec, job)
        from understudy.train.engine import Engine

        return Engine(job).train(spec)

    return train_trial(spec, job, train)


def _train_on_ranks(spec: TrialSpec, job: Job) -> TrialRecord:
    """Start the ranks and wait for them. Raises `RankError` where one of them ends without a result.

    After a signal the ranks end by themselves, all after the same step; then it raises `InterruptionError`.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    execution = job.inputs.execution
    os.environ["OMP_NUM_THREADS"] = str(execution.threads)  # else torchrun sets it, and says so
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=execution.processes,
        run_id=spec.id,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        local_addr="localhost",  # else the host's full name is looked up
        max_restarts=0,
        shutdown_timeout=SHUTDOWN_SECONDS,
        signals_to_handle="SIGHUP,SIGQUIT",  # at these torchrun's agent ends the ranks; others are passed on here
    )
    try:
        with interruption.deferred(), _passing_on_signals():
            ends: dict[int, TrialRecord | InterruptionError] = elastic_launch(config, run_rank)(spec, job)
    except ChildFailedError as error:
        if (number := interruption.asked()) is not None:
            raise InterruptionError(
                number, "before all processes were at work; an earlier checkpoint is kept"
            ) from error
        rank, failure = error.get_first_failure()
        reason = _hung(job) if failure.exitcode == watchdog.EXIT_CODE else _message(failure.message)
        raise RankError(
            f"process {rank} of {execution.processes} of trial {spec.id} ended with exit code {failure.exitcode}: "
            f"{reason}; nothing was recorded, run the workflow again to go on from the checkpoint, if there is one"
        ) from error
    except SignalException as error:
        raise RankError(f"trial {spec.id} was interrupted ({error.sigval.name}); run the workflow again") from error
    if isinstance(ends[0], InterruptionError):
        raise ends[0]
    return ends[0]


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
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        return Engine(job, Ranks(distributed.get_rank(), distributed.get_world_size())).train(spec)
    finally:
        distributed.destroy_process_group()


def _hung(job: Job) -> str:
    return f"no progress for {job.running.watchdog_minutes:g} minutes (`execution.watchdog_minutes`)"


def _message(reported: Any) -> str:
    """The last line of what a rank left behind."""
    text = reported["message"] if isinstance(reported, dict) else str(reported)
    return str(text).strip().splitlines()[-1]
