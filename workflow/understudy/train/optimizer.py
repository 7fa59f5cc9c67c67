"""AdamW, its schedule, and the one table of what the installed libraries call our hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from understudy.hyperparameters import Value
from understudy.models.quantization import bitsandbytes_hidden

# hyperparameter -> (who takes it, what it is called there). Two that share a name there become a tuple, in this order.
LIBRARY_NAMES: Mapping[str, tuple[str, str]] = {
    "learning_rate": ("torch.optim.AdamW", "lr"),
    "batch_size": ("understudy.train.batches.batches", "batch_size"),
    "num_train_epochs": ("transformers.TrainingArguments", "num_train_epochs"),
    "weight_decay": ("torch.optim.AdamW", "weight_decay"),
    "warmup_ratio": ("transformers.TrainingArguments", "warmup_steps"),  # below 1 it is the ratio
    "lr_scheduler_type": ("transformers.get_scheduler", "name"),
    "max_grad_norm": ("torch.nn.utils.clip_grad_norm_", "max_norm"),
    "adam_beta1": ("torch.optim.AdamW", "betas"),
    "adam_beta2": ("torch.optim.AdamW", "betas"),
    "adam_epsilon": ("torch.optim.AdamW", "eps"),
    "label_smoothing_factor": ("torch.nn.functional.cross_entropy", "label_smoothing"),
    "attention_dropout": ("transformers.LlamaConfig", "attention_dropout"),  # and most others
    "lora_r": ("peft.LoraConfig", "r"),
    "lora_alpha": ("peft.LoraConfig", "lora_alpha"),
    "lora_dropout": ("peft.LoraConfig", "lora_dropout"),
    "use_rslora": ("peft.LoraConfig", "use_rslora"),
    "lora_target_modules": ("peft.LoraConfig", "target_modules"),  # there a list of names
}


def arguments_for(owner: str, hyperparameters: Mapping[str, Value]) -> dict[str, Any]:
    """The keyword arguments that `owner` takes from a trial's hyperparameters."""
    found: dict[str, list[Value]] = {}
    for name, (who, called) in LIBRARY_NAMES.items():
        if who == owner and name in hyperparameters:
            found.setdefault(called, []).append(hyperparameters[name])
    return {called: values[0] if len(values) == 1 else tuple(values) for called, values in found.items()}


def make_optimizer(model: nn.Module, hyperparameters: Mapping[str, Value]) -> torch.optim.AdamW:
    """AdamW over everything that requires a gradient.

    As in transformers' Trainer, biases and the weights of norms don't decay. Adapters have neither.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decaying = [parameter for name, parameter in trained.items() if _decays(name, parameter)]
    others = [parameter for name, parameter in trained.items() if not _decays(name, parameter)]
    groups: list[dict[str, Any]] = [{"params": decaying}] if decaying else []
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, fused=True, **arguments_for("torch.optim.AdamW", hyperparameters))


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Norms' weights and biases are the only trained vectors of a transformer; all matrices decay."""
    return parameter.ndim > 1 and not name.endswith("bias")


def warmup_steps(hyperparameters: Mapping[str, Value], steps: int) -> int:
    """Steps with a rising rate, rounded up as transformers does."""
    return math.ceil(float(hyperparameters["warmup_ratio"]) * steps)


def make_schedule(
    optimizer: torch.optim.Optimizer, hyperparameters: Mapping[str, Value], steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """transformers' schedule of that name over `steps` optimizer steps, warmup included."""
    with bitsandbytes_hidden():  # transformers imports peft for it
        from transformers import get_scheduler

    chosen = arguments_for("transformers.get_scheduler", hyperparameters)
    special: dict[str, float] = {}
    if chosen["name"] == "polynomial":  # transformers' end of 1e-7 is refused where the peak is below it
        special["lr_end"] = min(1e-7, float(hyperparameters["learning_rate"]) / 100)
    schedule: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        **chosen,
        optimizer=optimizer,
        num_warmup_steps=warmup_steps(hyperparameters, steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=special,
    )
    return schedule
