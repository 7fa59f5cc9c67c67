"""The grid: the product of some axes, the first axis slowest, in the config's order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from understudy.hyperparameters import Value

Grid = Mapping[str, Sequence[Value]]


def grid_size(grid: Grid) -> int:
    """How many points a grid has; none without axes."""
    return math.prod(len(values) for values in grid.values()) if grid else 0


def grid_points(grid: Grid) -> list[dict[str, Value]]:
    """All points, each with a value per axis."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if grid else []
