"""Rounding, and when two configurations are the same.

Searched values are rounded to a few significant digits: exponentials and logarithms may differ in their last bit from
one mathematical library to the next, and a configuration that differs there would be another trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from understudy.hyperparameters import Value
from understudy.space import Choices, Range, Space, clipped, consistent

DIGITS = 6  # significant digits of a searched value
SCALED_DIGITS = 9  # of a rescaled value: enough to get the searched one back


def rounded(value: Value, digits: int = DIGITS) -> Value:
    """A number with a fraction rounded to significant digits; everything else as it is."""
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def from_unit(space: Space, coordinates: Sequence[float]) -> dict[str, Value]:
    """Rounded values at unit coordinates in the space's order; each lies in its range, or rests."""
    return from_units(space, [(u,) for u in coordinates])[0]


def from_units(space: Space, columns: Sequence[Sequence[float]]) -> list[dict[str, Value]]:
    """As `from_unit` for many points, given one coordinate after the other: columns in the space's order."""
    found = [
        _settled(parameter.from_units(units), parameter)
        for parameter, units in zip(space.values(), columns, strict=True)
    ]
    rows = [dict(zip(space, row, strict=True)) for row in zip(*found, strict=True)]
    if any(parameter.when for parameter in space.values()):
        return [consistent(space, row) for row in rows]
    return rows


def settled(value: Value, parameter: Range | Choices) -> Value:
    """A searched value, rounded but not out of its range; a choice as it is."""
    return _settled((value,), parameter)[0]


def _settled(values: Sequence[Value], parameter: Range | Choices) -> list[Value]:
    if isinstance(parameter, Choices):
        return list(values)
    return clipped(_rounded(values), parameter.low, parameter.high)


def placed(space: Space, values: Mapping[str, Value]) -> dict[str, Value]:
    """The values where a sampler has them: what has no place on a log scale is at its low end, or rests."""
    low = {
        name: parameter.low
        for name, parameter in space.items()
        if isinstance(parameter, Range) and parameter.log and float(values[name]) <= 0
    }
    return consistent(space, {**values, **low})


Identity = tuple[tuple[str, Value], ...]


def identity(values: Mapping[str, Value]) -> Identity:
    """Equal for equal configurations, whatever their order."""
    return identities([values])[0]


def identities(configurations: Sequence[Mapping[str, Value]]) -> list[Identity]:
    """As `identity` for many configurations of the same hyperparameters."""
    if not configurations:
        return []
    names = sorted(configurations[0])
    columns = [_rounded([values[name] for values in configurations]) for name in names]
    return [tuple(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _rounded(values: Sequence[Value]) -> list[Value]:
    """As `rounded`, for many."""
    return [float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value for value in values]
