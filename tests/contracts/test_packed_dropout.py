"""Dropout of packed trials: peft's, with masks of each trial's own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

from packed_study import EXAMPLES, largest_gap, train_packed, varied
from reference_loop import reference_losses, with_adapter
from training_study import make_spec, tiny_llama
from understudy.data.encoding import Encoded
from understudy.train.batches import data_order
from understudy.train.packed import products
from understudy.train.packed.decoder import Decoder
from understudy.trial import TrialSpec

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

EVERYTHING: Mapping[str, Any] = {"learning_rate": 2e-2, "batch_size": 6, "num_train_epochs": 2, "max_grad_norm": 0.5}
SPLITS = (EXAMPLES.train, EXAMPLES.validation)


class KnownMasks(nn.Module):
    """Stands where peft drops out: multiplies by masks that were drawn elsewhere, one per training pass."""

    def __init__(self, masks: Iterator[torch.Tensor], dropout: float) -> None:
        super().__init__()
        self.masks, self.dropout = masks, dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * next(self.masks) / (1 - self.dropout) if self.training else x


def drawn_masks(
    spec: TrialSpec, monkeypatch: pytest.MonkeyPatch, others: Sequence[TrialSpec] = (), **changes: Any
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
        losses = train_packed([spec, *others], **changes)[spec.id].losses
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


SPEC = make_spec("own", **EVERYTHING, lora_dropout=0.3)


def test_masks_are_the_same_in_any_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, in_company = (drawn_masks(SPEC, monkeypatch, others)[1] for others in ([], varied(lora_dropout=0.2)))
    assert len(alone) == len(in_company) == 9
    for own, other in zip(alone, in_company, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))


def test_masks_differ_between_layers_steps_seeds_and_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    other_seed = SPEC.model_copy(update={"seed": 8, "id": "other"})
    passes, others = drawn_masks(SPEC, monkeypatch, [])[1], drawn_masks(other_seed, monkeypatch, [])[1]
    masks = [mask[:20, :32].flatten() for drawn in (*passes[:3], *others[:3]) for mask in drawn]
    assert len(masks) == 6 * 14
    agreeing = [(a == b).float().mean() for i, a in enumerate(masks) for b in masks[:i]]
    # of independent masks 0.7² + 0.3² agree; the largest of 3486 deviations lies within 5 standard errors
    spread = 5 * math.sqrt(0.58 * 0.42 / len(masks[0]))
    assert max(abs(float(share) - 0.58) for share in agreeing) < spread


def test_pieces_of_a_batch_have_masks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = drawn_masks(SPEC, monkeypatch, tokens=40)[1]  # a row or two at once
    assert len(passes) > 9 + 9
    first = [drawn[0][:8] for drawn in passes if len(drawn[0]) >= 8]
    assert not any(torch.equal(a, b) for i, a in enumerate(first) for b in first[:i])


@pytest.mark.parametrize("dropout", [0.05, 0.3, 0.5, 0.95])
def test_as_many_are_dropped_as_should_be(dropout: float) -> None:
    generator = torch.Generator().manual_seed(1)
    kept = products.masks((4, 1000, 100), dropout, generator, torch.float32) != 0
    error = 4 * math.sqrt(dropout * (1 - dropout) / kept[0].numel())
    for mask in kept:
        assert float((~mask).float().mean()) == pytest.approx(dropout, abs=error)
        for axis in (0, 1):  # and alike in rows and columns: four numbers come from one word
            shares = (~mask).float().mean(axis)
            assert shares.std() == pytest.approx(math.sqrt(dropout * (1 - dropout) / mask.shape[axis]), rel=0.3)
    pairs = kept.view(-1, 4).float()
    together = torch.corrcoef(pairs.t())
    assert float((together - torch.eye(4)).abs().max()) < 4 / math.sqrt(len(pairs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masked_numbers_are_unbiased(dtype: torch.dtype) -> None:
    generator, x = torch.Generator().manual_seed(2), torch.randn(50, 8, dtype=torch.float32).to(dtype)
    drawn = products.masks((4000, *x.shape), 0.3, generator, dtype)
    results = torch.stack([products.masked(x, mask) for mask in drawn]).float()
    assert set(((results == x.float()) | (results == 0)).flatten().tolist()) == {True}
    mean = results.mean(0) / (1 - 0.3)
    error = 5 * x.float().abs() * math.sqrt(0.3 / 0.7 / len(drawn))
    assert bool(((mean - x.float()).abs() <= error).all())


def test_another_seed_gives_another_run_and_evaluation_drops_nothing() -> None:
    """The first evaluation of an adapter that hasn't moved is the base's own."""
    still = {**EVERYTHING, "learning_rate": 1e-12, "warmup_ratio": 0.0}
    specs = [make_spec("a", **still, lora_dropout=0.9), make_spec("b", **still, lora_dropout=0.0)]
    found = train_packed(specs)
    evaluated = {tuple(point.eval_loss for point in found[id].history.curve) for id in "ab"}
    assert len(evaluated) == 1
    twins = [SPEC, SPEC.model_copy(update={"id": "same"}), SPEC.model_copy(update={"id": "other", "seed": 8})]
    found = train_packed(twins)
    assert found["own"].losses == found["same"].losses
    assert found["own"].losses != pytest.approx(found["other"].losses, rel=1e-3)
