"""The packed engine with one of its tricks switched off, from the outside. What it computes stays the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from understudy.data.encoding import Encoded
from understudy.hyperparameters import Value
from understudy.train.optimizer import arguments_for
from understudy.train.packed import head
from understudy.train.packed.adapters import Stack
from understudy.train.packed.decoder import Decoder
from understudy.train.packed.rows import Corpus, Rows


@dataclass(frozen=True)
class Ablation:
    """What is otherwise than in the engine."""

    words: str
    padded: bool = False
    dequantizing: bool = False
    other_products: bool = False
    patched: Callable[[], AbstractContextManager[None]] = nullcontext


class PaddedCorpus(Corpus):
    """Every row padded to the longest, as a batch of a plain trainer is; the padding goes through all layers."""

    def __init__(self, examples: Sequence[Encoded], device: torch.device) -> None:
        super().__init__(examples, device)
        longest = int(self.lengths.max())
        self._missing = longest - self.lengths
        left, right = (np.zeros((len(examples), longest), dtype=np.int64) for _ in range(2))
        for row, example in enumerate(examples):
            left[row, : len(example.input_ids)] = example.input_ids
            right[row, longest - len(example.input_ids) :] = example.input_ids
        # `rows` takes a row's last tokens for its completion. It looks its targets up in `_host`, where they are the
        # last ones, and the tokens for the model in `_device`; the predicting positions are moved to suit these.
        self.lengths = np.full(len(examples), longest, dtype=np.int64)
        self.completion_starts = self.completion_starts + self._missing
        self._starts = np.arange(len(examples) + 1) * longest
        self._host = right.ravel()
        self._device = torch.from_numpy(left.ravel()).to(device)

    def rows(self, wanted: Sequence[tuple[int, Sequence[int]]], tile: int = 1) -> Rows:
        """As the engine's, but padded."""
        rows = super().rows(wanted, tile)
        examples = np.concatenate([np.asarray(chosen, dtype=np.int64) for _, chosen in wanted])
        counts = self.lengths[examples] - self.completion_starts[examples]
        missing = torch.from_numpy(np.repeat(self._missing[examples], counts)).to(rows.predicting.device)
        return replace(rows, predicting=rows.predicting.index_add(0, rows.answers, missing, alpha=-1))


@contextmanager
def _last_layer_everywhere() -> Iterator[dict[str, Any]]:
    """The last layer and the norm after it at all positions, and only then the choice of those that predict.

    What the norm gives, and its rows, can be found in the dictionary.
    """
    forward, backward, layer, layer_backward = (
        Decoder.forward,
        Decoder.backward,
        Decoder._layer,
        Decoder._layer_backward,
    )
    found: dict[str, Any] = {}

    def forward_then_choose(self: Decoder, rows: Rows, generators: Any) -> tuple[Tensor, Any]:
        found["normed"], tape = forward(self, rows, generators)
        found["rows"] = rows
        return found["normed"].index_select(0, rows.predicting), tape

    def backward_from_chosen(self: Decoder, tape: Any, dchosen: Tensor) -> None:
        rows = tape.rows
        dnormed = dchosen.new_zeros(len(rows.ids), dchosen.shape[1])
        dnormed.index_copy_(0, rows.predicting[rows.answers], dchosen[rows.answers])
        backward(self, tape, dnormed)

    def like_the_others(self: Decoder, which: Any, h: Tensor, rows: Rows, _: bool, *others: Any) -> Any:
        return layer(self, which, h, rows, False, *others)

    def back_like_the_others(
        self: Decoder, which: Any, tape: Any, dh: Tensor, rows: Rows, _: bool, *others: Any
    ) -> Tensor:
        return layer_backward(self, which, tape, dh, rows, False, *others)

    with ExitStack() as patches:
        for name, function in (
            ("forward", forward_then_choose),
            ("backward", backward_from_chosen),
            ("_layer", like_the_others),
            ("_layer_backward", back_like_the_others),
        ):
            patches.enter_context(mock.patch.object(Decoder, name, function))
        yield found


@contextmanager
def _without_result(context: AbstractContextManager[Any]) -> Iterator[None]:
    with context:
        yield


@contextmanager
def _logits_everywhere() -> Iterator[None]:
    """Logits of prompts too, which count nothing in the loss: what transformers does with labels of -100."""
    plain = head.losses_and_gradient

    def of_all_tokens(
        _: Tensor, weight: Tensor, targets: Tensor, smoothing: Tensor | None, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert smoothing is None
        rows, normed = found["rows"], found["normed"]
        places = rows.predicting[rows.answers]
        all_targets = targets.new_zeros(len(normed)).index_copy_(0, places, targets)
        all_weights = weights.new_zeros(len(normed)).index_copy_(0, places, weights)
        losses, gradient = plain(normed, weight, all_targets, None, all_weights)
        return losses[places], gradient[places]

    with _last_layer_everywhere() as found, mock.patch.object(head, "losses_and_gradient", of_all_tokens):
        yield


@contextmanager
def _foreach_adamw() -> Iterator[None]:
    """For each trial `torch.optim.AdamW` over one parameter per matrix, as peft has them, and `clip_grad_norm_`."""
    optimizers: dict[int, tuple[Any, torch.optim.AdamW]] = {}

    def step(self: Stack, slot: int, rate: float, hyperparameters: Mapping[str, Value]) -> None:
        settled = self.settled[slot]
        if id(settled) not in optimizers:
            arguments = arguments_for("torch.optim.AdamW", hyperparameters)
            optimizers[id(settled)] = settled, torch.optim.AdamW(_matrices(settled), foreach=True, **arguments)
        _, optimizer = optimizers[id(settled)]
        (group,) = optimizer.param_groups
        group["lr"] = rate
        torch.nn.utils.clip_grad_norm_(group["params"], float(hyperparameters["max_grad_norm"]), foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    with mock.patch.object(Stack, "step", step):
        yield


def _matrices(settled: Any) -> list[torch.nn.Parameter]:
    """A trial's matrices, each a parameter whose gradient is in place: views of the stacked vectors."""
    parameters = []
    for weights, gradients in zip(settled.values, settled.gradients, strict=True):
        layers = max(1, len(weights.b))
        for matrix, gradient in zip(
            (*weights.a.chunk(layers), *weights.b), (*gradients.a.chunk(layers), *gradients.b), strict=True
        ):
            parameter = torch.nn.Parameter(matrix)
            parameter.grad = gradient
            parameters.append(parameter)
    return parameters


ABLATIONS: Mapping[str, Ablation] = {
    "padding": Ablation("all rows padded to the longest", padded=True),
    "last_layer": Ablation(
        "the last layer at all positions", patched=lambda: _without_result(_last_layer_everywhere())
    ),
    "dequantize": Ablation("the base dequantized in every pass", dequantizing=True),
    "logits": Ablation("the last layer at all positions, and logits of prompts too", patched=_logits_everywhere),
    "foreach": Ablation("AdamW over one parameter per matrix, foreach, for each trial", patched=_foreach_adamw),
    "products": Ablation("the other one of `grouped` and `batched` products", other_products=True),
}
