"""Forward and backward through the decoder's layers, written out.

Nothing but the adapters is trained, so the backward pass needs no gradients of the base's weights, and no autograd:
what it needs of a layer is kept in plain dataclasses, gradients are added in place, and after its attention the last
layer works only at the positions where a completion token is predicted, since nothing else of it is ever read.

Notation: N tokens, n predicting positions (both rounded up, see `rows`), H the hidden size, I the feed-forward
layers', D a head's, h (N, H) the residual stream, d… gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.train.packed import batched, products
from understudy.train.packed.adapters import Stack
from understudy.train.packed.base import Base, Layer, LinearGroup, Norm
from understudy.train.packed.rotary import Rotary
from understudy.train.packed.rows import Rows, Spans


@dataclass
class _Linear:
    """What a group of linear layers leaves for its backward pass."""

    group: LinearGroup
    spans: Spans
    applied: Any


@dataclass
class _Normed:
    source: Tensor
    inverse: Tensor  # (…, 1), 1 / root mean square


@dataclass
class _LayerTape:
    """What a layer leaves for its backward pass."""

    attention_norm: _Normed
    qkv: _Linear
    query_norm: _Normed | None
    key_norm: _Normed | None
    attention: tuple[list[Tensor], list[Tensor]]  # leaves and results of each bucket
    output: _Linear
    feed_forward_norm: _Normed
    gate_up: _Linear
    gate: Tensor
    up: Tensor
    activated: Tensor
    down: _Linear


class Decoder:
    """The base with the adapters of a stack."""

    def __init__(self, base: Base, stack: Stack, longest: int) -> None:
        self.base, self.stack = base, stack
        self._rotary = Rotary(base, longest)
        self._products: Any = batched if stack.batched else products

    def forward(self, rows: Rows, generators: Mapping[int, torch.Generator] | None) -> tuple[Tensor, Tape | None]:
        """The normed hidden states (n rounded up, H) that predict completion tokens, and a tape for `backward`.

        `generators` draws each trial's dropout masks, by slot; without them this is an evaluation: no dropout, no tape.
        """
        base, training = self.base, generators is not None
        turn = self._rotary.at(rows.positions)
        draws = [generators[slot] if generators is not None else None for slot, _, _ in rows.spans.each]
        h = base.embedding[rows.ids]
        layers: list[_LayerTape] = []
        for layer in base.layers:
            last = layer is base.layers[-1]
            h, tape = self._layer(layer, h, rows, last, turn, draws)
            if training:
                layers.append(tape)
        normed, norm = _rms_norm(base.norm, h)
        return normed, Tape(rows, layers, norm, turn) if training else None

    def backward(self, tape: Tape, dnormed: Tensor) -> None:
        """Add the gradients of every trial's adapter to the stack, from those of what `forward` gave."""
        dh = _rms_norm_backward(self.base.norm, tape.norm, dnormed)
        layers = self.base.layers
        for layer in reversed(layers):
            first, last = layer is layers[0], layer is layers[-1]
            dh = self._layer_backward(layer, tape.layers.pop(), dh, tape.rows, last, first, tape.turn)

    def _layer(
        self,
        layer: Layer,
        h: Tensor,
        rows: Rows,
        last: bool,
        turn: tuple[Tensor, ...],
        draws: Sequence[torch.Generator | None],
    ) -> tuple[Tensor, _LayerTape]:
        later_spans = rows.answer_spans if last else rows.spans
        normed, attention_norm = _rms_norm(layer.attention_norm, h)
        (query, key, value), qkv = self._linear(layer.qkv, normed, rows.spans, draws)
        query, query_norm = self._head_norm(layer.query_norm, query)
        key, key_norm = self._head_norm(layer.key_norm, key)
        if layer.rotary:
            query, key = self._rotary.turn(query, key, turn)
        attended, attention = self._attention(layer, query, key, value, rows)
        places = rows.places[rows.predicting] if last else rows.places
        mixed = attended.index_select(0, places)
        (update,), output = self._linear(layer.output, mixed, later_spans, draws)
        h = update.add_(h.index_select(0, rows.predicting) if last else h)
        normed, feed_forward_norm = _rms_norm(layer.feed_forward_norm, h)
        (gate, up), gate_up = self._linear(layer.gate_up, normed, later_spans, draws)
        activated = layer.activation(gate)
        (result,), down = self._linear(layer.down, activated * up, later_spans, draws)
        tape = _LayerTape(
            attention_norm,
            qkv,
            query_norm,
            key_norm,
            attention,
            output,
            feed_forward_norm,
            gate_up,
            gate,
            up,
            activated,
            down,
        )
        return result.add_(h), tape

    def _layer_backward(
        self,
        layer: Layer,
        tape: _LayerTape,
        dh: Tensor,
        rows: Rows,
        last: bool,
        first: bool,
        turn: tuple[Tensor, ...],
    ) -> Tensor:
        dproduct = self._linear_backward(tape.down, [dh])
        dgate = _activation_backward(layer.activation, tape.gate, dproduct * tape.up)
        dup = dproduct.mul_(tape.activated)
        dnormed = self._linear_backward(tape.gate_up, [dgate, dup])
        dh = _rms_norm_backward(layer.feed_forward_norm, tape.feed_forward_norm, dnormed).add_(dh)
        dmixed = self._linear_backward(tape.output, [dh])
        places = rows.places
        if last:  # back from the predicting positions to all tokens
            tokens = rows.predicting[rows.answers]
            dh = _scattered(dh[rows.answers], tokens, len(rows.ids))
            dmixed, places = dmixed[rows.answers], rows.places[tokens]
        dattended = _scattered(dmixed, places, len(rows.slots) + 1)
        dquery, dkey, dvalue = self._attention_backward(tape.attention, dattended, rows)
        if layer.rotary:
            dquery, dkey = self._rotary.turn_back(dquery, dkey, turn)
        dquery = self._head_norm_backward(layer.query_norm, tape.query_norm, dquery)
        dkey = self._head_norm_backward(layer.key_norm, tape.key_norm, dkey)
        dnormed = self._linear_backward(tape.qkv, [dquery, dkey, dvalue], wanted=not first)
        return dh if first else _rms_norm_backward(layer.attention_norm, tape.attention_norm, dnormed).add_(dh)

    def _linear(
        self, group: LinearGroup, x: Tensor, spans: Spans, draws: Sequence[torch.Generator | None]
    ) -> tuple[list[Tensor], _Linear]:
        training = any(draw is not None for draw in draws)
        outputs = [linear.forward(x, training) for linear in group.linears]
        applied = self._products.apply(self.stack, group.index, x, outputs, spans, draws)
        return outputs, _Linear(group, spans, applied)

    def _linear_backward(self, tape: _Linear, doutputs: Sequence[Tensor], wanted: bool = True) -> Tensor:
        """The gradient of what the group reads; nothing useful unless that is `wanted`."""
        dx: Tensor | None = None
        if wanted:
            for linear, dy in zip(tape.group.linears, doutputs, strict=True):
                weight = linear.weight(dy.dtype)
                dx = torch.mm(dy, weight) if dx is None else dx.addmm_(dy, weight)
        self._products.apply_backward(self.stack, tape.group.index, tape.applied, doutputs, dx, tape.spans)
        return doutputs[0] if dx is None else dx

    def _head_norm(self, norm: Norm | None, x: Tensor) -> tuple[Tensor, _Normed | None]:
        if norm is None:
            return x, None
        y, tape = _rms_norm(norm, x.view(len(x), -1, self.base.head_size))
        return y.view_as(x), tape

    def _head_norm_backward(self, norm: Norm | None, tape: _Normed | None, dy: Tensor) -> Tensor:
        if norm is None or tape is None:
            return dy
        return _rms_norm_backward(norm, tape, dy.view_as(tape.source)).view_as(dy)

    def _attention(
        self, layer: Layer, query: Tensor, key: Tensor, value: Tensor, rows: Rows
    ) -> tuple[Tensor, tuple[list[Tensor], list[Tensor]]]:
        """Causal attention within each row (S + 1, heads · D), in slots; leaves and results of its own graph."""
        base = self.base
        slotted = [part.index_select(0, rows.slots) for part in (query, key, value)]
        attended = query.new_empty(len(rows.slots) + 1, query.shape[1])
        attended[-1] = 0.0
        leaves, results = [], []
        repeats = base.heads // base.key_heads
        for bucket in rows.buckets:
            part = slice(bucket.start, bucket.start + bucket.rows * bucket.length)
            own = [source[part].requires_grad_() for source in slotted]
            with torch.enable_grad():
                q, k, v = (leaf.view(bucket.rows, bucket.length, -1, base.head_size).transpose(1, 2) for leaf in own)
                if repeats > 1:
                    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
                mask = _window_mask(layer.window, bucket.length, q.device)
                result = F.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=mask is None, scale=base.scale
                )
            attended[part] = result.detach().transpose(1, 2).reshape(bucket.rows * bucket.length, -1)
            leaves += own
            results.append(result)
        return attended, (leaves, results)

    def _attention_backward(
        self, tape: tuple[list[Tensor], list[Tensor]], dattended: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor, Tensor]:
        leaves, results = tape
        wanted = [
            dattended[bucket.start : bucket.start + bucket.rows * bucket.length]
            .view(bucket.rows, bucket.length, self.base.heads, -1)
            .transpose(1, 2)
            for bucket in rows.buckets
        ]
        gradients = torch.autograd.grad(results, leaves, wanted)
        nobody = [gradient.new_zeros(1, gradient.shape[1]) for gradient in gradients[:3]]
        dquery, dkey, dvalue = (
            torch.cat([*gradients[part::3], nobody[part]]).index_select(0, rows.places) for part in range(3)
        )
        return dquery, dkey, dvalue


@dataclass
class Tape:
    """What the forward pass leaves for the backward pass, which uses it up."""

    rows: Rows
    layers: list[_LayerTape]
    norm: _Normed
    turn: tuple[Tensor, ...]


def _rms_norm(norm: Norm, x: Tensor) -> tuple[Tensor, _Normed]:
    """x / rms(x) · weight along the last dimension, in float32 inside."""
    wide = x.float()
    inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    inverse = inverse.add_(norm.epsilon).rsqrt_()
    return (wide * inverse).to(x.dtype).mul_(norm.weight), _Normed(x, inverse)


def _rms_norm_backward(norm: Norm, tape: _Normed, dy: Tensor) -> Tensor:
    x, inverse = tape.source.float(), tape.inverse
    scaled = (dy * norm.weight).float()
    along = torch.linalg.vecdot(scaled, x).unsqueeze(-1)
    factor = along.mul_(inverse.pow(3)).div_(-x.shape[-1])
    return scaled.mul_(inverse).addcmul_(x, factor).to(dy.dtype)


def _activation_backward(activation: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> Tensor:
    if isinstance(activation, torch.nn.SiLU):
        dx: Tensor = torch.ops.aten.silu_backward(dy, x)
        return dx
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(activation(leaf), leaf, dy)[0]


def _scattered(x: Tensor, places: Tensor, length: int) -> Tensor:
    """Zeros (length, …) with the rows of `x` in their places."""
    return x.new_zeros(length, x.shape[1]).index_copy_(0, places, x)


def _window_mask(window: int | None, length: int, device: torch.device) -> Tensor | None:
    """Who may look at whom (length, length) where a row is longer than the window; else None: plain causal."""
    if window is None or length <= window:
        return None
    steps = torch.arange(length, device=device)
    back = steps[:, None] - steps[None, :]
    return (back >= 0) & (back < window)
