"""What goes through the base and the adapters at once: a step of some trials, or an evaluation of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from understudy import watchdog
from understudy.train.packed import head
from understudy.train.packed.adapters import Stack
from understudy.train.packed.base import Base
from understudy.train.packed.decoder import Decoder
from understudy.train.packed.rows import Corpus, Rows
from understudy.train.packed.trials import Trial, pieces


class Passes:
    """Passes of the trials that sit in a stack of some slots. Sequences have up to `longest` tokens.

    Batched products take at least `tile` tokens from each trial.
    """

    def __init__(self, base: Base, stack: Stack, slots: int, corpus: Corpus, longest: int, tile: int) -> None:
        self._head, self._corpus, self._tile = base.head, corpus, tile
        self._generators = [torch.Generator(device=base.device) for _ in range(slots)]
        self._decoder = Decoder(base, stack, longest)

    def train(self, wanted: Sequence[tuple[Trial, Sequence[int]]], part: int) -> Tensor:
        """Forward and backward through examples of each trial; the share of each trial's loss (trials,).

        `part` is the number of the piece where one trial's batch goes through in several.
        """
        rows = self._corpus.rows([(slot_of(trial), examples) for trial, examples in wanted], self._tile)
        generators = {}
        for trial, _ in wanted:
            slot = slot_of(trial)
            generators[slot] = self._generators[slot].manual_seed(trial.dropout_seed(part))
        hidden, tape = self._decoder.forward(rows, generators)
        assert tape is not None
        weights = [1.0 / self._corpus.completion_tokens(trial.batch) for trial, _ in wanted]
        smoothing = [trial.smoothing for trial, _ in wanted]
        losses, gradient = head.losses_and_gradient(
            hidden[rows.answers],
            self._head,
            rows.targets,
            _per_token(smoothing, rows) if any(smoothing) else None,
            per_token := _per_token(weights, rows),
        )
        self._decoder.backward(tape, torch.zeros_like(hidden).index_copy_(0, rows.answers, gradient))
        losses *= per_token
        watchdog.beat()
        return torch.stack([own.sum() for own in torch.split(losses, list(rows.counts))])

    def evaluate(self, trial: Trial, corpus: Corpus, tokens: int) -> tuple[float, float]:
        """The summed loss of all examples, in nats, and how many completion tokens were foreseen; `tokens` at once."""
        order = np.argsort(corpus.lengths, kind="stable").tolist()
        losses: list[Tensor] = []
        correct: list[Tensor] = []
        for examples in pieces(order, corpus, tokens):
            rows = corpus.rows([(slot_of(trial), examples)], self._tile)
            hidden, _ = self._decoder.forward(rows, None)
            found, hits = head.losses_and_hits(hidden[rows.answers], self._head, rows.targets)
            losses.append(found.sum(dtype=torch.float64))
            correct.append(hits.sum(dtype=torch.float64))
            watchdog.beat()
        loss, hits_all = torch.stack([torch.stack(losses).sum(), torch.stack(correct).sum()]).tolist()
        return float(loss), float(hits_all)


def slot_of(trial: Trial) -> int:
    """The slot of a trial that sits in one."""
    assert trial.slot is not None
    return trial.slot


def _per_token(values: Sequence[float], rows: Rows) -> Tensor:
    """Each trial's value at each of its completion tokens (n,)."""
    spread = torch.from_numpy(np.repeat(np.asarray(values, dtype=np.float32), rows.counts))
    device = rows.targets.device
    return spread.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else spread
