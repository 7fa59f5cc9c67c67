"""The adapters of all trials in training: weights, gradients and AdamW's moments, stacked.

Notation: K slots, P floats in the longest of the trials' flat vectors (see `layout`). Row k of each stacked tensor
(K, P) belongs to the trial in slot k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from understudy.hyperparameters import Value
from understudy.models.quantization import peft_for
from understudy.train.adapters import fresh_adapter, is_wanted
from understudy.train.optimizer import arguments_for
from understudy.train.packed.base import Base
from understudy.train.packed.layout import GroupWeights, Layout
from understudy.trial import TrialSpec


@dataclass
class Weights:
    """One trial's flat vectors, (size,) each, on the host."""

    values: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor

    @property
    def vectors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.values, self.exp_avg, self.exp_avg_sq


@dataclass(frozen=True)
class Settled:
    """A trial in a slot: its layout, and its row of each stacked tensor by group."""

    layout: Layout
    scaling: float  # of the adapter's update: alpha / r, or alpha / sqrt(r)
    dropout: float
    own: tuple[tuple[int, ...], ...]  # each group's sites that the trial itself adapts, as in `Layout.sites`
    values: tuple[GroupWeights, ...]
    gradients: tuple[GroupWeights, ...]


class Stack:
    """K slots for trials, on the device. `settled` holds the trials that are in them.

    With `batched` all trials have one layout, as `Fresh.common_layout` gives it, and the products take them at once.
    """

    def __init__(self, slots: int, size: int, device: torch.device, batched: bool = False) -> None:
        self.batched = batched
        self._values, self._gradients, self._exp_avg, self._exp_avg_sq = (
            torch.zeros(slots, size, dtype=torch.float32, device=device) for _ in range(4)
        )
        self._steps = torch.zeros(slots, dtype=torch.float32, device=device)
        self._factors = torch.zeros(2, slots, dtype=torch.float32, device=device)
        self.settled: dict[int, Settled] = {}

    def put(
        self, slot: int, layout: Layout, weights: Weights, hyperparameters: Mapping[str, Value], steps: int
    ) -> None:
        """Let a trial into a slot that has done so many steps."""
        self._steps[slot] = steps
        for stacked, own in zip(self._states(), weights.vectors, strict=True):
            stacked[slot].zero_()
            stacked[slot, : layout.size] = own
        self._gradients[slot].zero_()
        scale, dropout = scaling(hyperparameters), float(hyperparameters["lora_dropout"])
        self._factors[0, slot], self._factors[1, slot] = scale, scale / (1.0 - dropout)
        self.settled[slot] = Settled(
            layout=layout,
            scaling=scale,
            dropout=dropout,
            own=_own_sites(layout, hyperparameters["lora_target_modules"]),
            values=layout.views(self._values[slot]),
            gradients=layout.views(self._gradients[slot]),
        )

    def take(self, slot: int) -> Weights:
        """Let a trial out of its slot, with a copy of what it holds, on the host."""
        weights = self.copy(slot)
        self.empty(slot)
        return weights

    def empty(self, slot: int) -> None:
        """Let a trial out of its slot without anything."""
        del self.settled[slot]

    def copy(self, slot: int) -> Weights:
        """A copy of what the trial in a slot holds, on the host."""
        size = self.settled[slot].layout.size
        return Weights(*(stacked[slot, :size].to("cpu", copy=True) for stacked in self._states()))

    def all_values(self, group: int) -> GroupWeights:
        """One group's matrices of all slots: A (K, G r, in), and B (K, r, out) of each layer. For a common layout."""
        return self._layout.views(self._values)[group]

    def all_gradients(self, group: int) -> GroupWeights:
        """Their gradients likewise."""
        return self._layout.views(self._gradients)[group]

    def factors(self, dropping: bool) -> Tensor:
        """What the trials' hidden values are multiplied by (K,), where inputs are dropped out and where they aren't."""
        return self._factors[int(dropping)]

    @property
    def _layout(self) -> Layout:
        return next(iter(self.settled.values())).layout

    def clear_gradients(self, slot: int) -> None:
        """Back to zero."""
        self._gradients[slot].zero_()

    def step(self, slot: int, rate: float, hyperparameters: Mapping[str, Value]) -> None:
        """Clip a trial's gradients by their own norm, take one step of torch's fused AdamW, and clear them.

        Nothing waits for the device.
        """
        size = self.settled[slot].layout.size
        gradients = self._gradients[slot, :size]
        arguments = arguments_for("torch.optim.AdamW", hyperparameters)
        norm = torch.linalg.vector_norm(gradients)
        max_norm = float(hyperparameters["max_grad_norm"])
        adamw(
            [self._values[slot, :size]],
            [gradients],
            [self._exp_avg[slot, :size]],
            [self._exp_avg_sq[slot, :size]],
            [],
            [self._steps[slot]],
            foreach=False,
            capturable=False,
            differentiable=False,
            fused=True,
            grad_scale=torch.clamp((norm + 1e-6) / max_norm, min=1.0),  # gradients are divided by it
            found_inf=None,
            has_complex=False,
            amsgrad=False,
            beta1=arguments["betas"][0],
            beta2=arguments["betas"][1],
            lr=rate,
            weight_decay=arguments["weight_decay"],
            eps=arguments["eps"],
            maximize=False,
        )
        gradients.zero_()

    def _states(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._values, self._exp_avg, self._exp_avg_sq


def scaling(hyperparameters: Mapping[str, Value]) -> float:
    """alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023)."""
    rank = int(hyperparameters["lora_r"])
    return float(hyperparameters["lora_alpha"]) / (rank**0.5 if hyperparameters["use_rslora"] else rank)


def _own_sites(layout: Layout, modules: Value) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(index for index in sites if is_wanted(group.sites[index].name, modules))
        for group, sites in zip(layout.groups, layout.sites, strict=True)
    )


class Fresh:
    """Freshly initialised adapters: what peft itself makes with the trial's seed.

    Trials that share seed, rank and sites share the draw, which is kept.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self._kept: dict[tuple[Any, ...], tuple[frozenset[str], dict[str, Tensor]]] = {}

    def layout(self, spec: TrialSpec) -> Layout:
        """Where the trial's weights lie, without padding."""
        return Layout(self._base.groups, int(spec.hyperparameters["lora_r"]), self._draw(spec)[0])

    def common_layout(self, specs: Sequence[TrialSpec]) -> Layout:
        """One layout for all of these trials: the largest rank, every site that one of them adapts.

        Where a trial's own adapter is smaller, its weights are zero, and so are their gradients.
        """
        rank = max(int(spec.hyperparameters["lora_r"]) for spec in specs)
        return Layout(self._base.groups, rank, frozenset().union(*(self._draw(spec)[0] for spec in specs)))

    def weights(self, spec: TrialSpec, layout: Layout) -> Weights:
        """A trial's weights before its first step."""
        _, drawn = self._draw(spec)
        values = torch.zeros(layout.size)
        rank = int(spec.hyperparameters["lora_r"])
        for weights, group, sites in zip(layout.views(values), layout.groups, layout.sites, strict=True):
            blocks = weights.a.view(len(sites), layout.rank, group.inputs)
            for block, index in zip(blocks, sites, strict=True):
                if (name := group.sites[index].name) in drawn:
                    block[:rank] = drawn[name]
        return Weights(values, torch.zeros_like(values), torch.zeros_like(values))

    def _draw(self, spec: TrialSpec) -> tuple[frozenset[str], dict[str, Tensor]]:
        """The adapted sites, and A (r, in) of each; B starts at zero."""
        values = spec.hyperparameters
        key = (spec.seed, values["lora_r"], values["lora_target_modules"])
        if key not in self._kept:
            with fresh_adapter(self._base.model, spec) as model:
                drawn = {
                    name: layer.lora_A["default"].weight.detach().cpu().clone() for name, layer in _lora_layers(model)
                }
            self._kept[key] = frozenset(drawn), drawn
        return self._kept[key]


def save(base: Base, spec: TrialSpec, layout: Layout, values: Tensor, folder: Path) -> None:
    """Write a trial's adapter in PEFT's format, out of `values` on the host; the device's memory isn't touched."""
    rank, state = int(spec.hyperparameters["lora_r"]), dict[str, Tensor]()
    with fresh_adapter(base.model, spec, empty=True) as model:
        adapted = {name for name, _ in _lora_layers(model)}
        for weights, group, sites in zip(layout.views(values), layout.groups, layout.sites, strict=True):
            blocks = weights.a.view(len(sites), layout.rank, group.inputs)
            for block, transposed, index in zip(blocks, weights.b, sites, strict=True):
                if (name := group.sites[index].name) in adapted:
                    state[f"base_model.model.{name}.lora_A.default.weight"] = block[:rank].clone()
                    state[f"base_model.model.{name}.lora_B.default.weight"] = transposed[:rank].t().contiguous()
        model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)


def _lora_layers(model: Any) -> Sequence[tuple[str, Any]]:
    """peft's layers with an adapter, by the name that the base calls them."""
    with peft_for(model.base_model.model):
        from peft.tuners.lora import LoraLayer

    modules = model.base_model.model.named_modules()
    return [(name, module) for name, module in modules if isinstance(module, LoraLayer)]
