"""A plain training loop over peft, transformers' model, torch's AdamW and transformers' schedules.

Nothing of the trainer's is in it but the data order and the seed of an adapter's first weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import get_scheduler

from training_study import PAD
from understudy.data.encoding import Encoded
from understudy.train.batches import data_order
from understudy.trial import TrialSpec, derive_seed


def labelled(examples: Sequence[Encoded], pad: int = PAD) -> dict[str, torch.Tensor]:
    """A batch as transformers wants it: padded, with a mask, and with labels of -100 where nothing counts."""
    length = max(len(example.input_ids) for example in examples)
    ids, mask, labels = (torch.full((len(examples), length), value) for value in (pad, 0, -100))
    for row, example in enumerate(examples):
        end = len(example.input_ids)
        ids[row, :end] = torch.tensor(example.input_ids)
        mask[row, :end] = 1
        labels[row, example.completion_start : end] = ids[row, example.completion_start : end]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def with_adapter(base: Any, spec: TrialSpec) -> Any:
    """The base with the trial's fresh adapter in it; `unload` takes it out again. The base itself for full training."""
    values = spec.hyperparameters
    if spec.method == "full":
        return base.requires_grad_(True)
    torch.manual_seed(derive_seed(spec.seed, "adapter"))
    modules = values["lora_target_modules"]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=values["lora_r"],
        lora_alpha=values["lora_alpha"],
        lora_dropout=values["lora_dropout"],
        use_rslora=values["use_rslora"],
        target_modules=modules if modules == "all-linear" else modules.split(","),
    )
    return get_peft_model(base, config)


def training_loss(model: Any, batch: dict[str, torch.Tensor], smoothing: float) -> torch.Tensor:
    """The mean over a batch's completion tokens, with the labels' own shift by one."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:].flatten()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels, label_smoothing=smoothing)


def reference_losses(
    model: Any, spec: TrialSpec, train: Sequence[Encoded], validation: Sequence[Encoded], steps: int
) -> list[float]:
    """Train a model that `with_adapter` gave; its training and validation loss after every step, in turn."""
    values = spec.hyperparameters
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    groups = [
        {"params": [model.get_parameter(name) for name in names if "norm" not in name]},
        {"params": [model.get_parameter(name) for name in names if "norm" in name], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=values["learning_rate"],
        betas=(values["adam_beta1"], values["adam_beta2"]),
        eps=values["adam_epsilon"],
        weight_decay=values["weight_decay"],
    )
    schedule = get_scheduler(values["lr_scheduler_type"], optimizer, math.ceil(values["warmup_ratio"] * steps), steps)
    stream, found = data_order(len(train), spec.seed), []
    held_out = labelled(validation)
    for _ in range(steps):
        batch = labelled([train[index] for index in islice(stream, values["batch_size"])])
        loss = training_loss(model.train(), batch, values["label_smoothing_factor"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), values["max_grad_norm"])
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            found += [loss.item(), model.eval()(**held_out).loss.item()]
    return found
