"""Made-up problems: a space, a target's losses in it and a proxy's, all drawn at random from a number.

The space has the learning rate and one to nine other hyperparameters. A loss is

    1 + rise(z) + Σ w_i (u_i - o_i)² + Σ offset of a choice + roughness,     z = log10(rate) - optimum - Σ c_i (u_i - ½)

with u_i in unit coordinates. `rise` is steeper far above the best rate than far below, and beyond a cliff a run
diverges; the couplings c_i move the best rate with the other hyperparameters, as batch sizes, ranks and durations do;
weights w_i are lognormal, so that few matter; the roughness is a smooth random function. A table has the losses at
`ROWS` points, each with the noise of one run. How the proxy is related to the target takes turns:

    alike    everything nearly the same, at the rate that the rule for widths expects
    off      the same, but the best rate is 3 to 10 times above or below what the rule expects
    partly   half of the other hyperparameters matter otherwise, categories included; rates off by a factor of 2
    unlike   drawn anew: they agree only as any two of these problems do (Spearman, once rescaled: 0.5 in the median)

The figures here are plain guesses. None was changed after a sampler had been seen on these problems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from replays.tables import Cell, Configuration, Key, Table, model_card, published_scale
from replays.tasks import Problem, Task, problem
from understudy.hyperparameters import HYPERPARAMETERS, Value
from understudy.search.sequences import sobol
from understudy.space import Choices, Range, Space, with_kinds

RELATIONS = ("alike", "off", "partly", "unlike")
ROWS = 1024
MODELS = ("proxy", 512, 10**8), ("target", 2048, 10**9)  # width, parameters
PRICE = 0.05  # of a proxy's run, in target runs
WAVES, ROUGH = 64, 0.01  # of the roughness: how many, and their size
EFFECT = 0.03  # of another hyperparameter, the median
POOL: Space = with_kinds(
    {
        "batch_size": Choices(choices=(4, 8, 16, 32, 64)),
        "num_train_epochs": Range(low=1, high=5),
        "weight_decay": Range(low=0, high=0.3),
        "warmup_ratio": Range(low=0, high=0.3),
        "lr_scheduler_type": Choices(choices=("linear", "cosine", "constant_with_warmup")),
        "lora_r": Choices(choices=(4, 8, 16, 32, 64)),
        "lora_alpha": Choices(choices=(8, 16, 32, 64)),
        "lora_dropout": Range(low=0, high=0.2),
        "max_grad_norm": Range(low=0.1, high=10, log=True),
        "use_rslora": Choices(choices=(False, True)),
        "lora_target_modules": Choices(choices=("all-linear", "q_proj,v_proj", "down_proj,gate_proj,up_proj")),
    }
)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class MadeUp:
    """A problem, and what its losses are without noise: (rows,), infinite where a run diverges."""

    problem: Problem
    relation: str
    truth: Array


@dataclass(frozen=True)
class _Surface:
    """A model's losses, by the formula above; couplings, weights and optima are those of ordered hyperparameters."""

    optimum: float  # log10 of a rate
    height: float
    cliff: float  # decades above the optimum
    couplings: dict[str, float]
    weights: dict[str, float]
    optima: dict[str, float]
    offsets: dict[str, dict[Value, float]]  # of choices without an order, each
    waves: tuple[Array, Array, Array]  # (WAVES, d), (WAVES,), (WAVES,)

    def at(self, space: Space, configurations: Sequence[Configuration]) -> Array:
        """The losses (n,) without noise."""
        columns = {
            name: np.array([parameter.to_unit(values[name]) for values in configurations])
            for name, parameter in space.items()
        }
        z = np.log10([float(values["learning_rate"]) for values in configurations]) - self.optimum
        for name, coupling in self.couplings.items():
            z -= coupling * (columns[name] - 0.5)
        loss = 1 + self.height * np.where(z < 0, 0.35 * np.abs(z) ** 1.7, 0.5 * z**2)
        for name, weight in self.weights.items():
            loss += weight * (columns[name] - self.optima[name]) ** 2
        for name, offsets in self.offsets.items():
            loss += np.array([offsets[values[name]] for values in configurations])
        directions, phases, amplitudes = self.waves
        loss += ROUGH * np.cos(np.stack(list(columns.values()), axis=1) @ directions.T + phases) @ amplitudes
        return np.where(z > self.cliff, np.inf, loss)


def made_up(number: int) -> MadeUp:
    """The problem of a number, always the same."""
    generator = np.random.default_rng([2026, number])
    relation = RELATIONS[number % len(RELATIONS)]
    space = _space(generator)
    target = _drawn(generator, space)
    cards = {role: model_card(role, role, width, parameters) for role, width, parameters in MODELS}
    defaults = {name: HYPERPARAMETERS[name].default for name in space if name != "learning_rate"}
    keys = _keys(space, number)
    cells = {name: Cell(name, card, 1.0, 1.0 if name == "target" else PRICE, {}) for name, card in cards.items()}
    table = Table(f"made up {number:03d}", cells, tuple(space), defaults, space)
    factor = published_scale(table, cells["proxy"], cells["target"])["learning_rate"]
    proxy = _related(relation, generator, space, target)
    proxy = replace(proxy, optimum=proxy.optimum - math.log10(factor))
    configurations = [dict(zip(space, key, strict=True)) for key in keys]
    noise = 10 ** generator.uniform(-2.7, -1.0)  # of a run, as a share of the distance from the best to the median
    surfaces = {"proxy": proxy, "target": target}
    truths = {name: surface.at(space, configurations) for name, surface in surfaces.items()}
    for name, cell in cells.items():
        seen = truths[name] + noise * scale(truths[name]) * generator.standard_normal(len(keys))
        cells[name] = replace(cell, name=f"{name}-{number:03d}", losses=dict(zip(keys, seen.tolist(), strict=True)))
    table = replace(table, cells={cell.name: cell for cell in cells.values()})
    task = Task(cells["proxy"].name, cells["target"].name)
    found = problem(table, task)
    truth = dict(zip(keys, truths["target"].tolist(), strict=True))
    return MadeUp(found, relation, np.array([truth[key] for key in found.keys]))


def scale(losses: Array) -> float:
    """From the best to the median of what didn't diverge."""
    finite = losses[np.isfinite(losses)]
    return float(np.median(finite) - finite.min())


def _space(generator: np.random.Generator) -> Space:
    low, decades = 10 ** generator.uniform(-6, -4.5), generator.uniform(2.5, 4)
    count = int(generator.integers(1, 10))
    others = sorted(generator.choice(len(POOL), count, replace=False).tolist())
    names = list(POOL)
    rate = Range(low=low, high=low * 10**decades, log=True)
    return {"learning_rate": rate, **{names[index]: POOL[names[index]] for index in others}}


def _drawn(generator: np.random.Generator, space: Space) -> _Surface:
    rate = space["learning_rate"]
    assert isinstance(rate, Range)
    ordered = [name for name, parameter in space.items() if parameter.ordered and name != "learning_rate"]
    coupled = [name for name in ordered if generator.random() < 0.4]
    directions = generator.standard_normal((WAVES, len(space))) * 3 / math.sqrt(len(space))
    waves = directions, generator.uniform(0, 2 * math.pi, WAVES), generator.standard_normal(WAVES) / math.sqrt(WAVES)
    low, high = math.log10(rate.low), math.log10(rate.high)
    return _Surface(
        optimum=low + generator.uniform(0.25, 0.75) * (high - low),
        height=generator.uniform(0.1, 0.3),
        cliff=generator.uniform(0.8, 2.0),
        couplings={name: generator.normal(0, 0.4) for name in coupled},
        weights={name: _weight(generator) for name in ordered},
        optima={name: generator.uniform(-0.2, 1.2) for name in ordered},
        offsets={name: _offsets(generator, space, name) for name in space if not space[name].ordered},
        waves=waves,
    )


def _weight(generator: np.random.Generator) -> float:
    return float(EFFECT * generator.lognormal(0, 1))


def _offsets(generator: np.random.Generator, space: Space, name: str) -> dict[Value, float]:
    parameter = space[name]
    assert isinstance(parameter, Choices)
    offsets = _weight(generator) * generator.random(len(parameter.choices))
    return dict(zip(parameter.choices, offsets.tolist(), strict=True))


def _related(relation: str, generator: np.random.Generator, space: Space, target: _Surface) -> _Surface:
    """A proxy's surface; its best rate is as if the models were of one width."""
    anew = _drawn(generator, space)
    if relation == "unlike":
        return anew
    near = replace(
        target,
        optimum=target.optimum + generator.normal(0, 0.1),
        height=target.height * generator.lognormal(0, 0.2),
        weights={name: weight * generator.lognormal(0, 0.2) for name, weight in target.weights.items()},
        optima={name: optimum + generator.normal(0, 0.05) for name, optimum in target.optima.items()},
        waves=anew.waves,
    )
    if relation == "off":
        return replace(near, optimum=near.optimum + generator.choice((-1, 1)) * generator.uniform(0.5, 1.0))
    if relation == "alike":
        return near
    other = [name for name in space if generator.random() < 0.5]
    return replace(
        near,
        optimum=near.optimum + generator.normal(0, 0.3),
        weights={name: (anew if name in other else near).weights[name] for name in near.weights},
        optima={name: (anew if name in other else near).optima[name] for name in near.optima},
        offsets={name: (anew if name in other else near).offsets[name] for name in near.offsets},
    )


def _keys(space: Space, number: int) -> list[Key]:
    """Points of the space, none twice: each has a learning rate of its own."""
    return [tuple(values.values()) for values in sobol(space, number, 0, ROWS)]
