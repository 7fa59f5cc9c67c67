"""The list of tasks, and what a task is made of.

A task is a pair (source, target) on the configurations that both have. Sets of tasks:

    matched   target at least 1.6 times the source's parameters, more tokens, tokens per parameter within a factor of 2
    cheap     target at least 1.6 times the parameters, source at least 10 times cheaper in parameters · tokens
    lies      a pair per target, the cheapest one of either set, with a source that misleads
    own       every model called proxy… to every model called target…
    own_lies  the same, with a source that misleads

Half of the targets is for reporting and half for tuning: sorted by size, they take turns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from replays.tables import Cell, Configuration, Key, Table, box, published_rule, published_scale
from understudy.hyperparameters import HYPERPARAMETERS
from understudy.search.clusters import embed
from understudy.search.grid import Grid
from understudy.space import Choices, Space
from understudy.trial import ModelCard

LARGER, CHEAPER, ALIKE = 1.6, 10.0, 2.0
LIES = ("shuffled", "inverted", "mirrored", "unrelated")
FEWEST = 30  # configurations that a pair must share
HALVES = ("reporting", "tuning")


@dataclass(frozen=True)
class Task:
    """Which pair, and what is done to its source. `unrelated` names the cell whose losses stand in for the source's."""

    source: str
    target: str
    lie: str | None = None
    unrelated: str | None = None

    @property
    def id(self) -> str:
        return f"{self.source}_{self.target}" + (f"_{self.lie}" if self.lie else "")


@dataclass(frozen=True)
class Problem:
    """A task with everything that a replay needs; losses are infinite for failed runs.

    `price` is a source run's cost in target runs, `scale` what published rules multiply a source's values by.
    `truncated` has the losses of shorter runs of the target, where the table has any, at a price of their own.
    """

    table: str
    task: Task
    names: tuple[str, ...]
    space: Space
    grid: Grid
    keys: tuple[Key, ...]
    source: tuple[float, ...]
    target: tuple[float, ...]
    price: float
    truncated: tuple[float, ...] | None
    truncated_price: float
    scale: Mapping[str, float]
    defaults: Configuration
    default: Configuration
    rule: Configuration
    cards: tuple[ModelCard, ModelCard]
    tokens: tuple[float, float]

    @property
    def id(self) -> str:
        """A name among the tasks of all tables."""
        return f"{self.table}: {self.task.id}"

    def configuration(self, index: int) -> Configuration:
        return dict(zip(self.names, self.keys[index], strict=True))

    @property
    def configurations(self) -> list[Configuration]:
        return [self.configuration(index) for index in range(len(self.keys))]


def task_sets(table: Table) -> dict[str, list[Task]]:
    """Every set of a table's tasks."""
    if table.space is not None:
        sources = [name for name in table.cells if name.startswith("proxy")]
        targets = [name for name in table.cells if name.startswith("target")]
        own = [Task(source, target) for target in targets for source in sources]
        lies = [Task(task.source, task.target, lie) for task in own[:1] for lie in LIES if lie != "unrelated"]
        return {"own": own, "own_lies": lies}
    pairs = [(s, t) for s in table.cells.values() for t in table.cells.values() if len(shared(s, t)) >= FEWEST]
    larger = [(s, t) for s, t in pairs if t.card.parameters >= LARGER * s.card.parameters]
    matched = [(s, t) for s, t in larger if t.tokens > s.tokens and _alike(s, t)]
    cheap = [(s, t) for s, t in larger if CHEAPER * s.cost <= t.cost]
    lies = [task for s, t in _cheapest([*matched, *cheap]) for task in _lies(table, s, t)]
    named = {name: [Task(s.name, t.name) for s, t in found] for name, found in (("matched", matched), ("cheap", cheap))}
    return {**named, "lies": lies}


def _alike(source: Cell, target: Cell) -> bool:
    ratio = (source.tokens / source.card.parameters) / (target.tokens / target.card.parameters)
    return 1 / ALIKE <= ratio <= ALIKE


def _cheapest(pairs: Sequence[tuple[Cell, Cell]]) -> list[tuple[Cell, Cell]]:
    """For every target, the pair with the cheapest source."""
    best: dict[str, tuple[Cell, Cell]] = {}
    for source, target in sorted(pairs, key=lambda pair: (pair[0].cost, pair[0].name)):
        best.setdefault(target.name, (source, target))
    return list(best.values())


def _lies(table: Table, source: Cell, target: Cell) -> list[Task]:
    """The four lies. The unrelated cell is the one, beside the source, that agrees least with the target by ranks."""
    agreement = {
        name: float(spearmanr(*zip(*_common(cell, target), strict=True)).statistic)
        for name, cell in table.cells.items()
        if name not in (source.name, target.name) and len(shared(cell, target)) >= FEWEST
    }
    least = min(agreement, key=lambda name: (agreement[name], name))
    return [Task(source.name, target.name, lie, least if lie == "unrelated" else None) for lie in LIES]


def _common(a: Cell, b: Cell) -> list[tuple[float, float]]:
    return [(a.losses[key], b.losses[key]) for key in shared(a, b)]


def shared(a: Cell, b: Cell) -> list[Key]:
    """The configurations that both cells have, sorted."""
    return sorted(set(a.losses) & set(b.losses), key=lambda key: [str(v) if isinstance(v, str) else v for v in key])


def halves(table: Table, sets: Mapping[str, Sequence[Task]]) -> dict[str, str]:
    """Which half each target belongs to: sorted by parameters and tokens, they take turns."""
    used = {task.target for tasks in sets.values() for task in tasks}
    order = sorted(used, key=lambda name: (table.cells[name].card.parameters, table.cells[name].tokens, name))
    return {name: HALVES[place % 2] for place, name in enumerate(order)}


def listing(table: Table) -> dict[str, Any]:
    """The list of tasks as it is committed: how many configurations they have, too."""
    sets = task_sets(table)
    rows = {name: [_row(table, task) for task in tasks] for name, tasks in sets.items()}
    return {"halves": halves(table, sets), "sets": rows}


def _row(table: Table, task: Task) -> list[str | int]:
    told = [task.source, task.target, *([task.lie] if task.lie else []), *([task.unrelated] if task.unrelated else [])]
    return [*told, len(_keys(table, task))]


def _keys(table: Table, task: Task) -> list[Key]:
    return shared(table.cells[task.unrelated or task.source], table.cells[task.target])


def problem(table: Table, task: Task) -> Problem:
    """The task with its numbers."""
    source, target = table.cells[task.source], table.cells[task.target]
    short = table.cells.get(task.target.replace("target", "truncated", 1)) if "target" in task.target else None
    keys = _keys(table, task)
    space = table.space or box(table.names, keys)
    losses = [table.cells[task.unrelated or task.source].losses[key] for key in keys]
    configurations = [dict(zip(table.names, key, strict=True)) for key in keys]
    rate = HYPERPARAMETERS["learning_rate"].default
    cards = source.card.model_copy(update={"role": "proxy"}), target.card.model_copy(update={"role": "target"})
    return Problem(
        table=table.name,
        task=task,
        names=table.names,
        space=space,
        grid=table.grid or _corners(space),
        keys=tuple(keys),
        source=tuple(misled(task, space, configurations, losses)),
        target=tuple(target.losses[key] for key in keys),
        price=source.cost / target.cost,
        truncated=tuple(short.losses.get(key, math.inf) for key in keys) if short else None,
        truncated_price=short.cost / target.cost if short else 0.0,
        scale=published_scale(table, source, target),
        defaults=table.defaults,
        default={"learning_rate": rate, **table.defaults},
        rule=published_rule(table, target),
        cards=cards,
        tokens=(source.tokens, target.tokens),
    )


def _corners(space: Space) -> Grid:
    """Four by two points inside the space: a coarse grid over its first two hyperparameters."""
    points = ((0.125, 0.375, 0.625, 0.875), (0.25, 0.75))
    return {
        name: tuple(parameter.from_unit(u) for u in units)
        for (name, parameter), units in zip(space.items(), points, strict=False)
    }


def misled(
    task: Task, space: Space, configurations: Sequence[Configuration], losses: Sequence[float]
) -> Sequence[float]:
    """The source's losses as the task's lie has them; each is a loss that the source does have.

    `inverted` gives the best configuration the worst loss and so on, `mirrored` turns the whole surface around: a
    smooth one, with its optimum in the wrong place. The proxy stage shuffles, so that every seed has its own.
    """
    if task.lie == "inverted":
        ranks = np.argsort(np.argsort(losses, kind="stable"), kind="stable")
        return [sorted(losses, reverse=True)[rank] for rank in ranks]
    if task.lie == "mirrored":
        weights = dict.fromkeys(space, 1.0)
        points = embed(space, configurations, weights)
        turned = embed(space, [_turned(space, each) for each in configurations], weights)
        return [losses[int(np.argmin(((points - point) ** 2).sum(axis=1)))] for point in turned]
    return losses


def _turned(space: Space, values: Configuration) -> Configuration:
    """Every ordered value at the other end of its range; an unordered choice stays."""
    return {
        name: values[name] if isinstance(p, Choices) and not p.ordered else p.from_unit(1 - p.to_unit(values[name]))
        for name, p in space.items()
    }


def best(problem: Problem) -> float:
    """The best loss that a target run can reach."""
    return min(problem.target)


def worst(problem: Problem) -> float:
    """The largest loss of a run that didn't fail: what a failed one counts as."""
    return max(loss for loss in problem.target if math.isfinite(loss))
