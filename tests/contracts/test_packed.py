"""Packed trials against a plain loop over peft, transformers' model and torch's AdamW, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_study import EXAMPLES, train_packed, varied
from reference_loop import reference_losses, with_adapter
from torch import nn
from training_study import make_job, make_spec, tiny_llama

from understudy.data.encoding import Encoded
from understudy.hyperparameters import SCHEDULES
from understudy.models.loading import load_base
from understudy.train.batches import data_order
from understudy.train.engine import Engine
from understudy.train.optimizer import make_schedule
from understudy.train.pack import train_pack
from understudy.train.packed import adapters, products
from understudy.train.packed.decoder import Decoder
from understudy.train.packed.trials import Trial
from understudy.trial import Pack, TrialSpec

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


def largest_gap(found: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


# LLM.int8() rounds what its layers read when it evaluates: activations that differ in the last bit can come out 1/127
# apart, and a single one of them moves a loss by 1e-5. Training on CPUs doesn't round.
@pytest.mark.parametrize(("quantization", "tolerance"), [("none", 1e-5), ("nf4", 1e-5), ("int8", 5e-4)])
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


class KnownMasks(nn.Module):
    """Stands where peft drops out: multiplies by masks that were drawn elsewhere, one per training pass."""

    def __init__(self, masks: Iterator[torch.Tensor], dropout: float) -> None:
        super().__init__()
        self.masks, self.dropout = masks, dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * next(self.masks) / (1 - self.dropout) if self.training else x


def drawn_masks(
    spec: TrialSpec, monkeypatch: pytest.MonkeyPatch, others: Sequence[TrialSpec] = ()
) -> tuple[list[float], list[list[torch.Tensor]]]:
    """A trial's losses in a pack, and the masks of each pass: for each adapted layer (tokens, in), in model order."""
    passes: list[list[torch.Tensor]] = []
    draw, dropout = products.masks, spec.hyperparameters["lora_dropout"]

    def recorded(shape: Any, rate: float, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
        masks = draw(shape, rate, generator, dtype)
        if rate == dropout:
            passes[-1].extend(mask != 0 for mask in masks)
        return masks

    def new_pass(self: Any, *arguments: Any) -> Any:
        passes.append([])
        return forward(self, *arguments)

    forward = Decoder.forward
    with monkeypatch.context() as patch:
        patch.setattr(products, "masks", recorded)
        patch.setattr(Decoder, "forward", new_pass)
        losses = train_packed([spec, *others])[spec.id].losses
    return losses, [masks for masks in passes if masks]


def as_rows(mask: torch.Tensor, batch: Sequence[Encoded], predicting: bool) -> torch.Tensor:
    """A mask (tokens, in) as (rows, longest, in); what nobody reads is kept."""
    rows = torch.ones(len(batch), max(len(example.input_ids) for example in batch), mask.shape[1])
    first = 0
    for row, example in zip(rows, batch, strict=True):
        start, end = (
            (example.completion_start - 1, len(example.input_ids) - 1) if predicting else (0, len(example.input_ids))
        )
        row[start:end] = mask[first : first + end - start]
        first += end - start
    assert first == len(mask)
    return rows


def with_known_masks(spec: TrialSpec, passes: Sequence[Sequence[torch.Tensor]]) -> Any:
    """peft's model that drops out by masks of a pack."""
    model, stream = with_adapter(tiny_llama(), spec), data_order(len(EXAMPLES.train), spec.seed)
    batches = [[EXAMPLES.train[index] for index in islice(stream, spec.hyperparameters["batch_size"])] for _ in passes]
    names = [name for name, _ in model.named_modules() if name.endswith("lora_dropout.default")]
    assert len(names) == len(passes[0]) == 2 * 7
    for number, name in enumerate(names):
        at_answers = number >= 7 + 3  # after its attention the last layer works at predicting positions only
        own = [as_rows(masks[number], batch, at_answers) for masks, batch in zip(passes, batches, strict=True)]
        model.set_submodule(name, KnownMasks(iter(own), spec.hyperparameters["lora_dropout"]))
    return model


def test_dropout_is_pefts_with_the_packs_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec("own", **EVERYTHING, lora_dropout=0.3)
    losses, passes = drawn_masks(spec, monkeypatch, varied(lora_dropout=0.2))
    expected = reference_losses(with_known_masks(spec, passes), spec, *SPLITS, steps=9)
    assert largest_gap(losses, expected) < 1e-5
    plain = spec.model_copy(update={"hyperparameters": {**spec.hyperparameters, "lora_dropout": 0.0}})
    assert largest_gap(train_packed([plain])["own"].losses, expected) > 1e-3
