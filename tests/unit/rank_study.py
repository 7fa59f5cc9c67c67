"""Trials for several real processes: many of them in one start of the ranks, which costs seconds each time."""

from __future__ import annotations

import dataclasses
import os
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from training_study import DEVICE, load_tiny, make_job, make_spec, tiny_llama
from understudy import process
from understudy.settings import Quantization
from understudy.train import launch
from understudy.train.checkpoint import local
from understudy.train.engine import Engine
from understudy.train.optimizer import make_optimizer
from understudy.train.ranks import Ranks
from understudy.train.sharding import shard_
from understudy.train.trial import Job
from understudy.trial import TrialRecord, TrialSpec

PATIENCE = timedelta(seconds=60)  # ranks that wait longer than that for each other fail
# AdamW with a large epsilon takes a step that depends on the gradients' scale, as it hardly does otherwise
VALUES = {"learning_rate": 2e-3, "weight_decay": 0.3, "adam_epsilon": 1e-2, "stage": "finalist"}

Case = tuple[TrialSpec, Job]


def make_case(
    root: Path, quantization: Quantization = "none", how: Any = None, in_16_bits: bool = False, **values: Any
) -> Case:
    """A finalist on 15 validation examples, row by row, which no number of ranks above 1 shares evenly.

    `how` is the execution's, the rest the trial's; the checkpoint's file may be `in_16_bits`.
    """
    job = make_job(root, quantization, **{"micro_batch_size": 1, **(how or {})})
    if in_16_bits:
        load_tiny(job).to(torch.bfloat16).save_pretrained(job.inputs.model.path)
    data = job.inputs.data.model_copy(update={"validation_examples": 15, "train_examples": 20})
    spec = make_spec(**{**VALUES, "label_smoothing_factor": 0.1, "batch_size": 5, "max_grad_norm": 0.5, **values})
    return spec, dataclasses.replace(job, inputs=job.inputs.model_copy(update={"data": data}))


def train_cases(cases: dict[str, Case], processes: int, root: Path) -> dict[str, Any]:
    """Every case's record, trained by that many processes; under `shares` what each rank told of its shards."""
    root.mkdir()
    (root / "cases").write_bytes(pickle.dumps(cases))
    spec, job = next(iter(cases.values()))
    inputs = job.inputs.model_copy(
        update={"execution": job.inputs.execution.model_copy(update={"processes": processes})}
    )
    original, launch.run_rank = launch.run_rank, run_cases  # type: ignore[assignment]
    os.environ["CASES"] = str(root / "cases")
    try:
        return launch.train_on_ranks(spec, dataclasses.replace(job, inputs=inputs))  # type: ignore[return-value]
    finally:
        launch.run_rank = original
        del os.environ["CASES"]


def run_cases(_spec: TrialSpec, _job: Job) -> dict[str, Any]:
    """What each process does, as `launch.run_rank` with one trial."""
    process.end_with_parent()
    process.set_threads(1)
    distributed.init_process_group("gloo" if DEVICE == "cpu" else "nccl", timeout=PATIENCE)
    ranks = Ranks(distributed.get_rank(), distributed.get_world_size())
    found: dict[str, Any] = {}
    try:
        for name, (spec, job) in pickle.loads(Path(os.environ["CASES"]).read_bytes()).items():
            found[name] = Engine(job, ranks).train(spec)
        told: list[Any] = [None] * ranks.count
        distributed.all_gather_object(told, shares(job))
        return {**found, "shares": told}
    finally:
        distributed.destroy_process_group()


def shares(job: Job) -> dict[str, Any]:
    """How many numbers of a model and its optimizer's state lie on this rank."""
    model = tiny_llama().train().requires_grad_(True)
    whole = sum(parameter.numel() for parameter in model.parameters())
    shard_(model, job.inputs.execution.model_copy(update={"strategy": "fsdp"}))
    optimizer = make_optimizer(model, make_spec(method="full", learning_rate=1e-2).hyperparameters)
    model(input_ids=torch.arange(8).unsqueeze(0), use_cache=False).logits.square().mean().backward()
    optimizer.step()
    return {
        "whole": whole,
        "model": sum(local(parameter).numel() for parameter in model.parameters()),
        "moments": sum(local(state["exp_avg"]).numel() for state in optimizer.state.values()),
    }


def curve(record: TrialRecord) -> list[float]:
    """All losses of a learning curve."""
    return [value for point in record.result.curve for value in (point.train_loss or 0.0, point.eval_loss)]
