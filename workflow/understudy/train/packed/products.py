"""The adapters' products with the tokens of all trials: one group of linear layers at a time, forward and backward.

Notation: N tokens, x (N, in) what a group reads, y_g (N, out_g) what its g-th layer gives, dx and dy_g their gradients.
Of the trial with the tokens in rows k: x_k, A (G r, in) and B_g^T (r, out_g) as in `layout`, s the scaling, p the
dropout, M a mask (of zeros and ones, one per adapted layer as in peft), and

    h_g = s / (1 - p) · (x_k ∘ M_g) A_g^T          y_g,k += h_g B_g^T

There are two ways to take these products, with the same results up to rounding. Here they go from trial to trial with
matrices of the trial's own size: nothing is padded, and on a CPU thread no number depends on the other trials. That is
many small products, which CPUs don't mind and GPUs do: for them `batched` takes all trials at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.train.packed.adapters import Settled, Stack
from understudy.train.packed.layout import GroupWeights
from understudy.train.packed.rows import Spans


@dataclass(frozen=True)
class Applied:
    """What the backward pass needs of one trial: for each adapted layer its masked input, or one input for all."""

    inputs: tuple[Tensor, ...]  # one (n, in) without dropout, else one per adapted layer
    masks: tuple[Tensor, ...]  # (n, in) each, see `masks`; none without dropout
    hidden: Tensor  # (n, G r), scaled


def apply(
    stack: Stack,
    group: int,
    x: Tensor,
    outputs: Sequence[Tensor],
    spans: Spans,
    generators: Sequence[torch.Generator | None],
) -> list[Applied | None]:
    """Add the adapters' products to `outputs` in place.

    `generators` has one for each span whose trial drops out; None switches dropout off, as in evaluation.
    """
    applied: list[Applied | None] = []
    for (slot, start, stop), generator in zip(spans.each, generators, strict=True):
        trial = stack.settled[slot]
        weights, sites = trial.values[group], trial.layout.sites[group]
        if not sites or start == stop:
            applied.append(None)
            continue
        done = _hidden(trial, weights, x[start:stop], generator)
        rank = trial.layout.rank
        for number, (index, b) in enumerate(zip(sites, weights.b, strict=True)):
            outputs[index][start:stop].addmm_(done.hidden[:, number * rank : (number + 1) * rank], b)
        applied.append(done)
    return applied


def apply_backward(
    stack: Stack,
    group: int,
    applied: Sequence[Applied | None],
    doutputs: Sequence[Tensor],
    dx: Tensor | None,
    spans: Spans,
) -> None:
    """Add to the stack's gradients, and to `dx` in place where it is given."""
    for (slot, start, stop), done in zip(spans.each, applied, strict=True):
        if done is None:
            continue
        trial = stack.settled[slot]
        weights, gradients, rank = trial.values[group], trial.gradients[group], trial.layout.rank
        factor = _factor(trial, bool(done.masks))
        dhidden = torch.empty_like(done.hidden)
        for number, index in enumerate(trial.layout.sites[group]):
            columns = slice(number * rank, (number + 1) * rank)
            dy = doutputs[index][start:stop]
            gradients.b[number].addmm_(done.hidden[:, columns].t(), dy)
            torch.addmm(dhidden[:, columns], dy, weights.b[number].t(), beta=0, alpha=factor, out=dhidden[:, columns])
        if not done.masks:
            gradients.a.addmm_(dhidden.t(), done.inputs[0])
            if dx is not None:
                dx[start:stop].addmm_(dhidden, weights.a)
            continue
        for number, (kept, mask) in enumerate(zip(done.inputs, done.masks, strict=True)):
            rows = slice(number * rank, (number + 1) * rank)
            gradients.a[rows].addmm_(dhidden[:, rows].t(), kept)
            if dx is not None:
                dx[start:stop] += masked(dhidden[:, rows] @ weights.a[rows], mask)


def _hidden(trial: Settled, weights: GroupWeights, x: Tensor, generator: torch.Generator | None) -> Applied:
    if generator is None or trial.dropout == 0.0:
        return Applied((x,), (), torch.mm(x, weights.a.t()).mul_(_factor(trial, False)))
    rank, factor = trial.layout.rank, _factor(trial, True)
    hidden = x.new_empty(len(x), len(weights.a))
    drawn = masks((len(weights.b), *x.shape), trial.dropout, generator, x.dtype).unbind()
    inputs = tuple(masked(x, mask) for mask in drawn)
    for number, kept in enumerate(inputs):
        rows = slice(number * rank, (number + 1) * rank)
        torch.addmm(hidden[:, rows], kept, weights.a[rows].t(), beta=0, alpha=factor, out=hidden[:, rows])
    return Applied(inputs, drawn, hidden)


def _factor(trial: Settled, dropping: bool) -> float:
    return trial.scaling / (1.0 - trial.dropout) if dropping else trial.scaling


def masks(shape: tuple[int, ...], dropout: float, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """A mask for numbers of type `dtype`: none of the bits with probability `dropout`, else all of them.

    The probability is rounded to a multiple of 2^-16: each 64 random bits decide about four numbers. With `masked`,
    which is one bitwise product, that takes a quarter of the time of `torch.bernoulli` and a product on CPUs.
    """
    count = math.prod(shape)
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)
    limit = max(round((1.0 - dropout) * 2**16), 1) - 2**15  # of 16 bits with a sign; below it the number stays
    negative = words.view(torch.int16)[:count].to(torch.int32).sub_(limit).bitwise_right_shift_(31)
    return negative.view(shape).to(_INTEGERS[dtype])


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask lets it through, else 0."""
    return x.view(mask.dtype).bitwise_and(mask).view(x.dtype)


_INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
