"""One trial by itself, in this process or in as many as the execution says (torchrun's agent, in this process)."""

from __future__ import annotations

import logging
import multiprocessing
import os
from typing import Any

from understudy import devices, process
from understudy.errors import UnderstudyError
from understudy.train.trial import Job, train_trial
from understudy.trial import TrialRecord, TrialSpec

SHUTDOWN_SECONDS = 5  # after which a rank that doesn't end by itself is killed


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
    """Start the ranks and wait for them. Raises `RankError` where one of them ends without a result."""
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
    )
    try:
        records: dict[int, TrialRecord] = elastic_launch(config, run_rank)(spec, job)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise RankError(
            f"process {rank} of {execution.processes} of trial {spec.id} ended with exit code {failure.exitcode}: "
            f"{_message(failure.message)}; nothing was recorded, run the workflow again to train the trial anew"
        ) from error
    except SignalException as error:
        raise RankError(f"trial {spec.id} was interrupted ({error.sigval.name}); run the workflow again") from error
    return records[0]


def run_rank(spec: TrialSpec, job: Job) -> TrialRecord:
    """What each process does: join the others, train, and leave. Rank 0 writes to the store."""
    agent = multiprocessing.parent_process()
    process.end_with_parent(agent.pid if agent is not None else None)
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


def _message(reported: Any) -> str:
    """The last line of what a rank left behind."""
    text = reported["message"] if isinstance(reported, dict) else str(reported)
    return str(text).strip().splitlines()[-1]
