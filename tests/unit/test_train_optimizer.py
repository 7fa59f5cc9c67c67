"""The table of names against the installed libraries, and the optimizer, schedule and clipping made from it."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainingArguments, get_scheduler

from training_study import make_spec, tiny_llama
from understudy.hyperparameters import HYPERPARAMETERS, SCHEDULES
from understudy.train.adapters import lora_config
from understudy.train.gradients import Gradients
from understudy.train.optimizer import LIBRARY_NAMES, arguments_for, make_optimizer, make_schedule, warmup_steps


def test_every_hyperparameter_is_in_the_table() -> None:
    assert set(LIBRARY_NAMES) == set(HYPERPARAMETERS)


@pytest.mark.parametrize("name", LIBRARY_NAMES)
def test_the_installed_version_knows_the_name(name: str) -> None:
    owner, called = LIBRARY_NAMES[name]
    module, _, attribute = owner.rpartition(".")
    target = getattr(importlib.import_module(module), attribute)
    if dataclasses.is_dataclass(target):
        assert called in {field.name for field in dataclasses.fields(target)}
    else:
        assert called in inspect.signature(target).parameters


def test_arguments_carry_every_value() -> None:
    hyperparameters = make_spec(adam_beta1=0.8, adam_beta2=0.95, learning_rate=3e-3).hyperparameters
    assert arguments_for("torch.optim.AdamW", hyperparameters) == {
        "lr": 3e-3,
        "betas": (0.8, 0.95),
        "eps": 1e-8,
        "weight_decay": 0.1,
    }


def test_lora_config_carries_every_value() -> None:
    spec = make_spec(lora_r=6, lora_alpha=12.5, lora_dropout=0.3, use_rslora=True, lora_target_modules="v_proj, q_proj")
    config = lora_config(spec.hyperparameters)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (6, 12.5, 0.3, True)
    assert config.target_modules == {"q_proj", "v_proj"}
    assert lora_config(make_spec().hyperparameters).target_modules == "all-linear"


@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.1, 0.30000000000000004, 0.999])
@pytest.mark.parametrize("steps", [1, 7, 96])
def test_warmup_is_rounded_as_transformers_does(tmp_path: Any, ratio: float, steps: int) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), warmup_steps=ratio, use_cpu=True)
    assert warmup_steps({"warmup_ratio": ratio}, steps) == arguments.get_warmup_steps(steps)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_transformers(name: str) -> None:
    hyperparameters = make_spec(lr_scheduler_type=name, warmup_ratio=0.25, learning_rate=2e-3).hyperparameters
    optimizer = make_optimizer(tiny_llama().requires_grad_(True), hyperparameters)
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2e-3)
    expected = get_scheduler(name, reference, num_warmup_steps=3, num_training_steps=12)
    assert rates(optimizer, make_schedule(optimizer, hyperparameters, 12)) == rates(reference, expected)


def rates(optimizer: torch.optim.Optimizer, schedule: Any) -> list[float]:
    found = []
    for _ in range(12):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_a_polynomial_schedule_may_peak_below_its_usual_end() -> None:
    hyperparameters = make_spec(lr_scheduler_type="polynomial", learning_rate=1e-8).hyperparameters
    optimizer = make_optimizer(tiny_llama().requires_grad_(True), hyperparameters)
    make_schedule(optimizer, hyperparameters, 12)


def test_the_same_weights_decay_as_in_transformers() -> None:
    """Biases and norms are left alone; the reference is the Trainer's own list of names."""
    from transformers import Trainer

    model = tiny_llama(attention_bias=True).requires_grad_(True)
    decaying = {id(model.get_parameter(name)) for name in Trainer.get_decay_parameter_names(None, model)}
    groups = make_optimizer(model, make_spec(weight_decay=0.3).hyperparameters).param_groups
    by_decay = {group["weight_decay"]: {id(parameter) for parameter in group["params"]} for group in groups}
    assert by_decay[0.3] == decaying
    assert by_decay[0.0] == {id(parameter) for parameter in model.parameters()} - decaying


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e9])
def test_clipping_is_torchs(max_norm: float) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    reference = copy.deepcopy(ours)
    gradients = Gradients(list(ours.parameters()))
    for model in (ours, reference):
        model(torch.ones(4, 5)).pow(2).sum().backward()
    expected = nn.utils.clip_grad_norm_(reference.parameters(), max_norm)
    torch.testing.assert_close(gradients.clip_(max_norm), expected)
    for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_gradients_start_anew_but_trouble_stays() -> None:
    layer = nn.Linear(2, 2)
    gradients = Gradients(list(layer.parameters()))
    layer(torch.ones(1, 2)).sum().backward()
    gradients.loss += 5
    gradients.trouble.fill_(1)
    gradients.clear()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() == 0
    assert float(gradients.loss) == 0
    assert float(gradients.trouble) == 1
