"""Configurations as points of the unit cube, for libraries that want vectors.

Ordered hyperparameters have one coordinate, choices without an order one per choice (one-hot).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from replays.tables import Configuration
from understudy.space import Choices, Space


def encode(space: Space, configuration: Configuration) -> list[float]:
    """The point, shape (d,)."""
    point: list[float] = []
    for name, parameter in space.items():
        if isinstance(parameter, Choices) and not parameter.ordered:
            point += [float(configuration[name] == choice) for choice in parameter.choices]
        else:
            point.append(parameter.to_unit(configuration[name]))
    return point


def encoded(space: Space, configurations: Sequence[Configuration]) -> NDArray[np.float64]:
    """The points, shape (n, d)."""
    return np.array([encode(space, each) for each in configurations])


def decode(space: Space, point: Sequence[float]) -> Configuration:
    """The configuration at a point; of a one-hot group the largest counts."""
    found, rest = {}, list(point)
    for name, parameter in space.items():
        if isinstance(parameter, Choices) and not parameter.ordered:
            group, rest = rest[: len(parameter.choices)], rest[len(parameter.choices) :]
            found[name] = parameter.choices[int(np.argmax(group))]
        else:
            found[name] = parameter.from_unit(rest.pop(0))
    return found


def categories(space: Space) -> list[dict[int, float]]:
    """All ways to fix the one-hot coordinates, as values by coordinate; a single empty one without any."""
    groups: list[list[Mapping[int, float]]] = []
    place = 0
    for parameter in space.values():
        if isinstance(parameter, Choices) and not parameter.ordered:
            size = len(parameter.choices)
            groups.append([{place + i: float(i == j) for i in range(size)} for j in range(size)])
            place += size
        else:
            place += 1
    return [{key: value for each in ways for key, value in each.items()} for ways in itertools.product(*groups)]
