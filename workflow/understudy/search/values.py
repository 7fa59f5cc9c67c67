"""Rounding, and when two configurations are the same.

Searched values are rounded to a few significant digits: exponentials and logarithms may differ in their last bit from
one mathematical library to the next, and a configuration that differs there would be another trial.
"""

from __future__ import annotations

from collections.abc import Mapping

from understudy.hyperparameters import Value
from understudy.space import Choices, Range, Space, consistent

DIGITS = 6  # significant digits of a searched value
SCALED_DIGITS = 9  # of a rescaled value: enough to get the searched one back


def rounded(value: Value, digits: int = DIGITS) -> Value:
    """A number with a fraction rounded to significant digits; everything else as it is."""
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def from_unit(space: Space, coordinates: list[float]) -> dict[str, Value]:
    """Rounded values at unit coordinates in the space's order; each lies in its range, or rests."""
    values: dict[str, Value] = {}
    for (name, parameter), u in zip(space.items(), coordinates, strict=True):
        values[name] = settled(parameter.from_unit(u), parameter)
    return consistent(space, values)


def settled(value: Value, parameter: Range | Choices) -> Value:
    """A searched value, rounded but not out of its range; a choice as it is."""
    if isinstance(parameter, Choices):
        return value
    value = rounded(value)
    return min(max(value, parameter.low), parameter.high) if isinstance(value, float) else value


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
    return tuple((name, rounded(values[name])) for name in sorted(values))
