"""The frozen decoder that all trials share: its weights, without its modules.

The architecture is Llama's and what descends from it: RMS norms before attention and feed-forward, rotary positions,
grouped queries, gated feed-forward layers; biases, norms on queries and keys, and windows where a model has them.

Notation: H the hidden size, D a head's size, W a weight of shape (out, in) as torch's linear layers hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.errors import ModelError
from understudy.packing import PACKABLE
from understudy.train.packed.layout import Group, Site


class FrozenLinear:
    """A frozen linear layer, plain or quantized by bitsandbytes, with the numbers that its own module gives.

    With `dense` its dequantized weights are held as well, else they are dequantized in every pass, forward and
    backward.
    """

    def __init__(self, name: str, module: nn.Module, dense: bool) -> None:
        self.site = Site(name, int(module.in_features), int(module.out_features))  # type: ignore[arg-type]
        self.bias: Tensor | None = module.bias  # type: ignore[assignment]
        self._module = module
        self._int8 = hasattr(module, "state") and hasattr(module.state, "CB")
        self._held = self._dequantized() if dense or not self.quantized else None

    @property
    def quantized(self) -> bool:
        return self._int8 or hasattr(self._module.weight, "quant_state")

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """(N, in) to (N, out)."""
        # LLM.int8() also quantizes its input, except in training on CPUs
        if self._int8 and not (training and x.device.type == "cpu"):
            y: Tensor = self._module(x)
            return y
        linear: Tensor = F.linear(x, self.weight(x.dtype), self.bias)
        return linear

    def weight(self, dtype: torch.dtype) -> Tensor:
        """W, dequantized."""
        return (self._dequantized() if self._held is None else self._held).to(dtype)

    def _dequantized(self) -> Tensor:
        weight: Any = self._module.weight
        if self._int8:
            state: Any = self._module.state
            codes, scales = (weight.CB, weight.SCB) if state.CB is None else (state.CB, state.SCB)
            scaled: Tensor = codes.to(torch.float32).mul_(scales.unsqueeze(1).mul(1.0 / 127.0))
            return scaled
        if self.quantized:
            import bitsandbytes

            dense: Tensor = bitsandbytes.functional.dequantize_4bit(weight.data.view(-1, 1), weight.quant_state)
            return dense
        plain: Tensor = weight.data
        return plain


@dataclass(frozen=True)
class LinearGroup:
    """Linear layers that read the same input; `index` counts the base's groups."""

    index: int
    linears: tuple[FrozenLinear, ...]


@dataclass(frozen=True)
class Norm:
    """An RMS norm."""

    weight: Tensor
    epsilon: float


@dataclass(frozen=True)
class Layer:
    """One layer of the decoder."""

    attention_norm: Norm
    qkv: LinearGroup
    query_norm: Norm | None
    key_norm: Norm | None
    rotary: bool
    window: int | None
    output: LinearGroup
    feed_forward_norm: Norm
    gate_up: LinearGroup
    activation: Callable[[Tensor], Tensor]
    down: LinearGroup


@dataclass(frozen=True)
class Base:
    """A decoder's weights."""

    model: Any  # transformers' model, whose weights these are
    embedding: Tensor  # (V, H)
    layers: tuple[Layer, ...]
    norm: Norm
    head: Tensor  # (V, H)
    heads: int
    key_heads: int
    head_size: int
    scale: float  # of attention scores

    @property
    def groups(self) -> tuple[Group, ...]:
        """The sites of all linear layers, in the order of `LinearGroup.index`."""
        found = [group for layer in self.layers for group in (layer.qkv, layer.output, layer.gate_up, layer.down)]
        return tuple(Group(tuple(linear.site for linear in group.linears)) for group in found)

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def rotary_table(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (length, D) of positions 0 to length - 1, scaled as the model scales them."""
        positions = torch.arange(length, device=self.device).unsqueeze(0)
        cosines, sines = self.model.model.rotary_emb(self.embedding[:1].unsqueeze(0), positions)
        return cosines[0], sines[0]


def read_base(model: Any, dense: bool) -> Base:
    """The weights of a model as `models.loading.load_base` gives it, of one of the `packing.PACKABLE` types.

    Raises `ModelError` for a model that computes anything that isn't written out in `decoder`.
    """
    if (problem := why_unreadable(model)) is not None:
        raise ModelError(
            f"packed trials can't be trained on this model: {problem}. Set `execution.proxy.packed: false`, and trials "
            "are trained one after the other by the model's own code"
        )
    model.eval()  # LLM.int8() computes otherwise in training
    decoder, names = model.model, {id(module): name for name, module in model.named_modules()}
    attention = decoder.layers[0].self_attn
    layers: list[Layer] = []
    for layer in decoder.layers:
        attending, mlp, first = layer.self_attn, layer.mlp, 4 * len(layers)

        def group(index: int, *modules: nn.Module) -> LinearGroup:
            return LinearGroup(index, tuple(FrozenLinear(names[id(module)], module, dense) for module in modules))

        layers.append(
            Layer(
                attention_norm=_norm(layer.input_layernorm),
                qkv=group(first, attending.q_proj, attending.k_proj, attending.v_proj),
                query_norm=_norm(attending.q_norm) if hasattr(attending, "q_norm") else None,
                key_norm=_norm(attending.k_norm) if hasattr(attending, "k_norm") else None,
                rotary=bool(getattr(attending, "use_rope", True)),
                window=_window(attending, model.config),
                output=group(first + 1, attending.o_proj),
                feed_forward_norm=_norm(layer.post_attention_layernorm),
                gate_up=group(first + 2, mlp.gate_proj, mlp.up_proj),
                activation=mlp.act_fn,
                down=group(first + 3, mlp.down_proj),
            )
        )
    return Base(
        model=model,
        embedding=decoder.embed_tokens.weight,
        layers=tuple(layers),
        norm=_norm(decoder.norm),
        head=model.lm_head.weight,
        heads=model.config.num_attention_heads,
        key_heads=model.config.num_key_value_heads,
        head_size=attention.head_dim,
        scale=attention.scaling,
    )


def _norm(module: Any) -> Norm:
    return Norm(module.weight, float(module.variance_epsilon))


def _window(attention: Any, config: Any) -> int | None:
    """How far attention looks back; None for as far as there is. Mistral's model reads it from the config."""
    found: int | None = getattr(attention, "sliding_window", None)
    return config.sliding_window if config.model_type == "mistral" else found


def why_unreadable(model: Any) -> str | None:
    """Why packed trials can't be trained on a model, in words; None where they can."""
    config, kind = model.config, model.config.model_type
    if kind not in PACKABLE:
        return f"it is of type {kind}, and packing is tested on {', '.join(PACKABLE)}"
    if (unread := _unread(model)) != []:
        return f"it has weights that other models of type {kind} don't have ({', '.join(unread[:3])})"
    rope = config.rope_parameters["rope_type"]
    if rope in CHANGING_ROPES:
        return f"its rotary positions (`rope_type: {rope}`) change with the longest row of a batch"
    if type(model.lm_head) is not nn.Linear or model.lm_head.bias is not None:
        return "its head isn't a plain matrix"
    return None


def _unread(model: Any) -> list[str]:
    """The modules with weights that `read_base` doesn't read."""
    decoder = model.model
    read = {id(decoder.embed_tokens), id(decoder.norm), id(model.lm_head)}
    for layer in decoder.layers:
        for part, names in _READ.items():
            inside = getattr(layer, part) if part else layer
            read |= {id(getattr(inside, name, None)) for name in names}
    modules = model.named_modules()
    return [name for name, module in modules if id(module) not in read and any(True for _ in module.parameters(False))]


CHANGING_ROPES = ("dynamic", "longrope")
_READ = {
    "": ("input_layernorm", "post_attention_layernorm"),
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
