"""From examples to one long row of tokens, and from there to attention and back.

Notation: N tokens in a pass, a multiple of `ROUND`; S slots of attention, where rows that are about
equally long stand side by side, each rounded up (see `slot_lengths`). Both follow from the rows themselves, so a row's
numbers don't depend on the others. n is the number of completion tokens; token t of a row is predicted at
its position t - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from understudy.data.encoding import Encoded
from understudy.train.upload import to_device

ROUND = 32  # tokens: elementwise kernels treat the last few numbers of a tensor otherwise than the rest
BUCKET = 16  # tokens
OCTAVE = 4  # lengths of slots between a power of two and the next, where starting kernels costs more than padding

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Spans:
    """Which tokens are whose: for each trial its slot in the stack of adapters, its first and one after its last token.

    Every trial has a multiple of `tile` tokens, one after the other from 0 on. `owners` (tiles,) is the slot of each
    tile, on the device.
    """

    each: tuple[tuple[int, int, int], ...]
    tile: int
    owners: Tensor

    @property
    def end(self) -> int:
        """Tokens from here on belong to nobody."""
        return self.each[-1][2]


@dataclass(frozen=True)
class Bucket:
    """Attention's rows of one length: slots `start` to `start + rows * length`."""

    start: int
    rows: int
    length: int


@dataclass(frozen=True)
class Rows:
    """What goes through the base at once. The tensors are on the device.

    Tokens between the trials' shares and at the end belong to nobody; so do predicting positions. They stand in the
    slot after the last one, and their gradients are zero.
    """

    ids: Tensor  # (N,)
    positions: Tensor  # (N,), of each token in its row
    slots: Tensor  # (S,), which token stands in each slot; a row's last one fills it up
    places: Tensor  # (N,), in which slot each token stands
    predicting: Tensor  # (n rounded up,), the tokens at whose positions a completion token is predicted
    answers: Tensor  # (n,), which of `predicting` belong to somebody
    targets: Tensor  # (n,), the completion tokens
    buckets: tuple[Bucket, ...]
    spans: Spans  # of each trial's tokens
    answer_spans: Spans  # of each trial's part of `predicting`
    counts: tuple[int, ...]  # each trial's completion tokens; they sum to n


class Corpus:
    """Tokenised examples as one flat tensor on the device."""

    def __init__(self, examples: Sequence[Encoded], device: torch.device) -> None:
        self.lengths: Indices = np.array([len(example.input_ids) for example in examples], dtype=np.int64)
        self.completion_starts: Indices = np.array(
            [max(example.completion_start, 1) for example in examples], dtype=np.int64
        )
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        flat = np.fromiter((token for example in examples for token in example.input_ids), dtype=np.int64)
        self._host = flat
        self._device = torch.from_numpy(flat).to(device)

    def __len__(self) -> int:
        return len(self.lengths)

    def completion_tokens(self, examples: Sequence[int]) -> int:
        """Tokens that count towards the loss of some examples."""
        chosen = np.asarray(examples, dtype=np.int64)
        return int((self.lengths[chosen] - self.completion_starts[chosen]).sum())

    def tokens(self, examples: Sequence[int]) -> int:
        """Tokens of some examples, prompts included."""
        return int(self.lengths[np.asarray(examples, dtype=np.int64)].sum())

    def rows(self, wanted: Sequence[tuple[int, Sequence[int]]], tile: int = 1) -> Rows:
        """The rows of (a trial's slot in the stack, its examples), trial by trial.

        Each trial's tokens, and its predicting positions, are rounded up to a multiple of `tile`.
        """
        per_trial = [len(chosen) for _, chosen in wanted]
        examples = np.concatenate([np.asarray(chosen, dtype=np.int64) for _, chosen in wanted])
        lengths, starts = self.lengths[examples], self.completion_starts[examples]
        counts = lengths - starts
        token_spans, tokens = _spread(lengths, per_trial, tile)
        answer_spans, answers = _spread(counts, per_trial, tile)
        begins = tokens[np.cumsum(lengths) - lengths]  # where each row begins
        within = _counted(lengths)
        slots, places, buckets = _attention(lengths, slot_lengths(lengths, few=tile > 1), begins)
        predicting = np.repeat(begins + starts - 1, counts) + _counted(counts)
        sources = np.repeat(self._starts[examples], lengths) + within
        firsts = self._starts[examples] + starts
        parts = [
            _placed(sources, tokens, token_spans, 0),
            _placed(within, tokens, token_spans, 0),
            slots,
            _placed(places, tokens, token_spans, len(slots)),
            _placed(predicting, answers, answer_spans, 0),
            answers,
            self._host[np.repeat(firsts, counts) + _counted(counts)],
        ]
        trials = [slot for slot, _ in wanted]
        tiles, owners = _tiles(trials, token_spans, tile)
        answer_tiles, answer_owners = _tiles(trials, answer_spans, tile)
        parts += [owners, answer_owners]
        on_device = to_device([torch.from_numpy(part) for part in parts], self._device.device)
        return Rows(
            ids=self._device[on_device[0]],
            positions=on_device[1],
            slots=on_device[2],
            places=on_device[3],
            predicting=on_device[4],
            answers=on_device[5],
            targets=on_device[6],
            buckets=buckets,
            spans=Spans(_each(trials, token_spans), tiles, on_device[7]),
            answer_spans=Spans(_each(trials, answer_spans), answer_tiles, on_device[8]),
            counts=tuple(int(part.sum()) for part in np.split(counts, np.cumsum(per_trial)[:-1])),
        )


def _counted(lengths: Indices) -> Indices:
    """0, 1, 2, … anew for each length."""
    ends = np.cumsum(lengths)
    counted: Indices = np.arange(int(ends[-1]), dtype=np.int64) - np.repeat(ends - lengths, lengths)
    return counted


def _spread(lengths: Indices, per_trial: Sequence[int], tile: int) -> tuple[list[int], Indices]:
    """Where each trial's share begins when shares are rounded up, with the end; and each single one's place."""
    bounds = np.cumsum([0, *per_trial])
    shares = np.add.reduceat(lengths, bounds[:-1])
    begins = np.cumsum([0, *(-(-shares // tile) * tile)])
    places = np.repeat(begins[:-1], shares) + _counted(shares)
    return begins.tolist(), places


def _each(trials: Sequence[int], bounds: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    return tuple((slot, *span) for slot, span in zip(trials, pairwise(bounds), strict=True))


def _tiles(trials: Sequence[int], bounds: Sequence[int], tile: int) -> tuple[int, Indices]:
    """The largest tile that all shares are a multiple of, and each tile's trial; none where shares aren't rounded."""
    if tile == 1:
        return 1, np.zeros(0, dtype=np.int64)
    shares = np.diff(bounds)
    common = int(np.gcd.reduce(shares))
    return common, np.repeat(np.asarray(trials, dtype=np.int64), shares // max(common, 1))


def _placed(values: Indices, places: Indices, spans: Sequence[int], nobody: int) -> Indices:
    """The values in their places, and `nobody` in between and up to a multiple of `ROUND`."""
    whole = np.full(-(-spans[-1] // ROUND) * ROUND, nobody, dtype=np.int64)
    whole[places] = values
    return whole


def slot_lengths(lengths: Indices, few: bool) -> Indices:
    """How long a row of each length is in attention: rounded up to a multiple of `BUCKET`.

    With `few`, where products are batched as well, also to a multiple of the `OCTAVE`-th part of the power of two
    below: a bucket takes a dozen kernels in each layer, and rows of 200 to 2,000 tokens would make a hundred buckets,
    not fourteen.
    """
    step = np.full_like(lengths, BUCKET)
    if few:
        step = np.maximum(step, 2 ** np.floor(np.log2(lengths)).astype(np.int64) // OCTAVE)
    rounded: Indices = -(-lengths // step) * step
    return rounded


def _attention(lengths: Indices, rounded: Indices, begins: Indices) -> tuple[Indices, Indices, tuple[Bucket, ...]]:
    """The token in each slot, the slot of each row's tokens one after the other, and the buckets, shortest first."""
    slots: list[Indices] = []
    first_slots = np.empty(len(lengths), dtype=np.int64)
    buckets: list[Bucket] = []
    start = 0
    for length in np.unique(rounded):
        rows = np.flatnonzero(rounded == length)
        within = np.minimum(np.arange(length), lengths[rows, None] - 1)  # (rows, length)
        slots.append((begins[rows, None] + within).ravel())
        first_slots[rows] = start + np.arange(len(rows)) * length
        buckets.append(Bucket(start, len(rows), int(length)))
        start += len(rows) * int(length)
    return np.concatenate(slots), np.repeat(first_slots, lengths) + _counted(lengths), tuple(buckets)
