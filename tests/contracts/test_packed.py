"""Packed trials against a plain loop over peft, transformers' model and torch's AdamW, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from packed_study import EXAMPLES, largest_gap, train_packed, varied
from reference_loop import reference_losses, with_adapter
from training_study import make_job, make_spec, tiny_llama
from understudy.hyperparameters import SCHEDULES
from understudy.models.loading import load_base
from understudy.train.engine import Engine
from understudy.train.optimizer import make_schedule
from understudy.train.pack import train_pack
from understudy.train.packed import adapters
from understudy.train.packed.trials import Trial
from understudy.trial import Pack

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

EVERYTHING: Mapping[str, Any] = {
    "learning_rate": 2e-2,
    "batch_size": 6,
    "num_train_epochs": 2,
    "weight_decay": 0.5,
    "warmup_ratio": 0.3,
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 0.5,
    "label_smoothing_factor": 0.1,
    "adam_beta2": 0.6,
    "adam_epsilon": 1e-4,
    "lora_alpha": 6,
}
SPLITS = (EXAMPLES.train, EXAMPLES.validation)


# LLM.int8() rounds what its layers read when it evaluates: activations that differ in the last bit can come out 1/127
# apart, and a single one of them moves a loss by 1e-5. Training on CPUs doesn't round.
@pytest.mark.parametrize(
    ("quantization", "tolerance"),
    [
        ("none", 1e-5),
        pytest.param("nf4", 1e-5, marks=pytest.mark.long),
        pytest.param("int8", 5e-4, marks=pytest.mark.long),
    ],
)
def test_every_trial_of_a_pack_is_as_in_a_plain_loop_of_its_own(
    quantization: Any, tolerance: float, tmp_path: Path
) -> None:
    specs = varied()
    assert {spec.hyperparameters["lr_scheduler_type"] for spec in specs} == set(SCHEDULES)
    job = make_job(tmp_path, quantization, evaluations=100)
    records = train_pack(Pack(id="random-000", specs=tuple(specs)), job).records
    examples = Engine(job).examples
    base = load_base(job.inputs.model, job.inputs.execution, "lora")
    for spec, record in zip(specs, records, strict=True):
        result = record.result
        assert [point.step for point in result.curve] == list(range(1, result.steps + 1))
        model = with_adapter(base, spec)
        expected = reference_losses(model, spec, examples.train, examples.validation, result.steps)
        model.unload()
        assert [point.train_loss for point in result.curve] == pytest.approx(expected[::2], rel=1e-5), spec
        assert [point.eval_loss for point in result.curve] == pytest.approx(expected[1::2], rel=tolerance), spec


def without(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    """Let the optimizer of packs take another value of a hyperparameter."""
    step = adapters.Stack.step

    def changed(self: Any, slot: int, rate: float, hyperparameters: Mapping[str, Any]) -> None:
        step(self, slot, rate, {**hyperparameters, name: value})

    monkeypatch.setattr(adapters.Stack, "step", changed)


def scheduled_without(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    """Let the schedules of packs take another value of a hyperparameter."""
    module = import_module("understudy.train.packed.trials")
    monkeypatch.setattr(
        module,
        "make_schedule",
        lambda optimizer, values, steps: make_schedule(optimizer, {**values, name: value}, steps),
    )


LEFT_OUT: Mapping[str, Callable[[pytest.MonkeyPatch], None]] = {
    "clipping": lambda patch: without(patch, "max_grad_norm", 1e9),
    "weight decay": lambda patch: without(patch, "weight_decay", 0.0),
    "betas": lambda patch: without(patch, "adam_beta2", 0.999),
    "epsilon": lambda patch: without(patch, "adam_epsilon", 1e-8),
    "schedule": lambda patch: scheduled_without(patch, "lr_scheduler_type", "constant_with_warmup"),
    "warm-up": lambda patch: scheduled_without(patch, "warmup_ratio", 0.0),
    "label smoothing": lambda patch: patch.setattr(Trial, "smoothing", 0.0),
    "scaling": lambda patch: patch.setattr(adapters, "scaling", lambda _: 1.0),
}


@pytest.mark.parametrize("part", LEFT_OUT)
def test_the_plain_loop_sees_what_is_left_out(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [make_spec("own", **EVERYTHING), *varied()]
    expected = reference_losses(with_adapter(tiny_llama(), specs[0]), specs[0], *SPLITS, steps=9)
    assert largest_gap(train_packed(specs)["own"].losses, expected) < 1e-5
    LEFT_OUT[part](monkeypatch)
    assert largest_gap(train_packed(specs)["own"].losses, expected) > 1e-3
