"""The adapters' products of all trials at once, for GPUs: notation and meaning as in `products`.

Each trial's tokens are cut into T tiles of the same size n, so that one batched product goes over (T, n, in) and the
tiles' own A, (T, G r, in). All trials have one layout; where a trial's rank is smaller, or it leaves a layer out, its
weights are zero, and so are their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.train.packed.adapters import Stack
from understudy.train.packed.products import masked, masks
from understudy.train.packed.rows import Spans


@dataclass(frozen=True)
class AppliedAtOnce:
    """What the backward pass needs of all trials."""

    inputs: tuple[Tensor, ...]  # one (T, n, in) without dropout, else one per adapted layer
    masks: tuple[Tensor, ...]  # (T, n, in) each; none without dropout
    hidden: tuple[Tensor, ...]  # (T, n, r) of each adapted layer, scaled
    factors: Tensor  # (T, 1, 1)


def apply(
    stack: Stack,
    group: int,
    x: Tensor,
    outputs: Sequence[Tensor],
    spans: Spans,
    generators: Sequence[torch.Generator | None],
) -> AppliedAtOnce | None:
    """Add the adapters' products to `outputs` in place, as `products.apply` does."""
    layers = _adapted(stack, group, spans)
    if not layers:
        return None
    tiles = _in_tiles(x, spans)
    a, bs = _weights(stack, group, spans, x.dtype)
    drawn = _masks(stack, group, x, spans, generators)
    inputs = tuple(masked(tiles, mask) for mask in drawn) if drawn else (tiles,)
    factors = _factors(stack, spans, bool(drawn))
    products = [torch.bmm(own, part.transpose(1, 2)) for own, part in zip(_for_each(inputs, bs), a, strict=True)]
    hidden = tuple(product.mul_(factors) for product in products)
    for index, own, b in zip(layers, hidden, bs, strict=True):
        _in_tiles(outputs[index], spans).baddbmm_(own, b)
    return AppliedAtOnce(inputs, drawn, hidden, factors)


def apply_backward(
    stack: Stack,
    group: int,
    applied: AppliedAtOnce | None,
    doutputs: Sequence[Tensor],
    dx: Tensor | None,
    spans: Spans,
) -> None:
    """Add to the stack's gradients, and to `dx` in place where it is given."""
    if applied is None:
        return
    gradients = stack.all_gradients(group)
    rank = len(gradients.a[0]) // len(gradients.b)
    a, bs = _weights(stack, group, spans, doutputs[0].dtype)
    inputs = _for_each(applied.inputs, bs)
    for number, index in enumerate(_adapted(stack, group, spans)):
        dy = _in_tiles(doutputs[index], spans)
        gradients.b[number].index_add_(0, spans.owners, torch.bmm(applied.hidden[number].transpose(1, 2), dy).float())
        dhidden = torch.bmm(dy, bs[number].transpose(1, 2)).mul_(applied.factors)
        rows = gradients.a[:, number * rank : (number + 1) * rank]
        rows.index_add_(0, spans.owners, torch.bmm(dhidden.transpose(1, 2), inputs[number]).float())
        if dx is None:
            continue
        if applied.masks:
            _in_tiles(dx, spans).add_(masked(torch.bmm(dhidden, a[number]), applied.masks[number]))
        else:
            _in_tiles(dx, spans).baddbmm_(dhidden, a[number])


def _adapted(stack: Stack, group: int, spans: Spans) -> tuple[int, ...]:
    return stack.settled[spans.each[0][0]].layout.sites[group] if spans.end else ()


def _in_tiles(x: Tensor, spans: Spans) -> Tensor:
    """(N, …) as (T, n, …), without those that belong to nobody."""
    return x[: spans.end].view(-1, spans.tile, x.shape[1])


def _for_each(inputs: tuple[Tensor, ...], layers: Sequence[Tensor]) -> Sequence[Tensor]:
    return inputs if len(inputs) == len(layers) else inputs * len(layers)


def _weights(stack: Stack, group: int, spans: Spans, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """For each adapted layer A (T, r, in) and the transpose of B (T, r, out)."""
    weights = stack.all_values(group)
    a = weights.a.to(dtype).index_select(0, spans.owners).chunk(len(weights.b), 1)
    return list(a), [b.to(dtype).index_select(0, spans.owners) for b in weights.b]


def _factors(stack: Stack, spans: Spans, dropping: bool) -> Tensor:
    """In float32 whatever the products are in: rounded, it would be another scale than a solo trial's."""
    return stack.factors(dropping)[spans.owners].view(-1, 1, 1)


def _masks(
    stack: Stack, group: int, x: Tensor, spans: Spans, generators: Sequence[torch.Generator | None]
) -> tuple[Tensor, ...]:
    """Each layer's mask (T, n, in); none where no trial drops anything out.

    A trial draws for the layers that it adapts itself: its draws don't depend on what the others adapt.
    """
    layers, width = _adapted(stack, group, spans), x.shape[1]
    parts: list[tuple[int, int, int, Tensor]] = []
    for (slot, start, stop), generator in zip(spans.each, generators, strict=True):
        trial = stack.settled[slot]
        if generator is None or trial.dropout == 0.0:
            continue
        own = masks((len(trial.own[group]), stop - start, width), trial.dropout, generator, x.dtype)
        parts += [(layers.index(layer), start, stop, mask) for layer, mask in zip(trial.own[group], own, strict=True)]
    if not parts:
        return ()
    whole = parts[0][3].new_full((len(layers), spans.end, width), -1)
    for layer, start, stop, mask in parts:
        whole[layer, start:stop] = mask
    return tuple(mask.view(-1, spans.tile, width) for mask in whole.unbind())
