"""Which examples a step sees: a pure function of seed, subset and batch size, whatever runs it.

The data order is one endless stream: a fresh seeded permutation of the subset for each epoch, one after the other.
Batches are cut from the stream without regard to where an epoch ends, so every batch is full and every step has the
same number of examples. With N examples and batch size B, an epoch is N / B steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice

import numpy as np
import torch

from understudy.data.encoding import Encoded
from understudy.trial import ResolvedExecution, derive_seed


def data_order(examples: int, seed: int) -> Iterator[int]:
    """The endless stream of example numbers."""
    for epoch in count():
        generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
        yield from torch.randperm(examples, generator=generator).tolist()


def batches(
    examples: Sequence[Encoded], batch_size: int, steps: int, seed: int, done: int = 0
) -> Iterator[list[Encoded]]:
    """The examples of each step, in the order drawn, without those of the first `done` steps."""
    stream = islice(data_order(len(examples), seed), done * batch_size, None)
    for _ in range(done, steps):
        yield [examples[index] for index in islice(stream, batch_size)]


def micro_batches(batch: Sequence[Encoded], execution: ResolvedExecution, rank: int, ranks: int) -> list[list[Encoded]]:
    """One rank's share of a batch, in pieces of at most `micro_batch_size` examples of similar length.

    Sorted by length, the batch is dealt out like cards, so that all ranks get about the same work. A rank gets
    nothing where the batch has fewer examples than there are ranks. The pieces are cut where padding and passes
    together cost least; without padding, that is as few pieces as can be.
    """
    rows, padded = execution.micro_batch_size, not execution.padding_free
    share = sorted(batch, key=lambda example: len(example.input_ids))[rank::ranks]
    cost = np.zeros(len(share) + 1)  # of the best way to cut the first so many examples
    starts = [0]  # where the last piece of that way starts
    for end, example in enumerate(share, start=1):
        begin = np.arange(max(0, end - rows), end)
        options = cost[begin] + execution.pass_tokens + (end - begin) * (len(example.input_ids) if padded else 0)
        best = int(options.argmin())
        cost[end] = options[best]
        starts.append(int(begin[best]))
    pieces, end = [], len(share)
    while end > 0:
        pieces.append(share[starts[end] : end])
        end = starts[end]
    return pieces[::-1]


def rank_passes(
    batch: Sequence[Encoded], execution: ResolvedExecution, rank: int, ranks: int
) -> Iterator[tuple[list[Encoded], bool]]:
    """One rank's micro-batches, and whether they count.

    Where the model is sharded, every rank gets as many as the one that has most: the missing ones are the batch's
    shortest example, which doesn't count.
    """
    own = micro_batches(batch, execution, rank, ranks)
    yield from ((piece, True) for piece in own)
    if execution.strategy == "fsdp":
        most = max(len(micro_batches(batch, execution, other, ranks)) for other in range(ranks))
        shortest = min(batch, key=lambda example: len(example.input_ids))
        yield from (([shortest], False) for _ in range(most - len(own)))


def completion_tokens(batch: Sequence[Encoded]) -> int:
    """Tokens that count towards the loss of a batch, over all ranks."""
    return sum(len(example.input_ids) - max(example.completion_start, 1) for example in batch)
