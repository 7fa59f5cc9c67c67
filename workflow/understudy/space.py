"""The search space: ranges and choices, each mapped to the unit interval.

Notation: u in [0, 1] is a parameter's unit coordinate. A log range maps geometrically. `Choices` of k values
give each one an interval of width 1 / k, in the order given; numeric choices in ascending order count as
ordered, so that boxes and models may treat them as a line.

A conditional parameter rests where its condition doesn't hold: it has the default configuration's value there, and
configurations that differ in nothing else are the same.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from understudy.frozen import Frozen
from understudy.hyperparameters import HYPERPARAMETERS, Value

EVEN = 0.01  # decades by which the steps between choices may differ
WIDE = 10.0  # how many times the first choice the last is, from which uneven ones lie on a log scale, too


def _is_none(value: object) -> bool:
    return value is None


class _Parameter(Frozen):
    when: dict[str, tuple[Value, ...]] | None = Field(
        default=None,
        min_length=1,
        exclude_if=_is_none,
        description="searched hyperparameters further up with the values under which this one is searched; else it has "
        "its default",
    )
    rest: Value | None = Field(
        default=None, exclude_if=_is_none, description="its default, where it has a `when`; not a key"
    )


@functools.lru_cache(maxsize=256)
def _ends(low: float, high: float, log: bool, integer: bool) -> tuple[float, float]:
    pad = 0.5 if integer else 0.0
    low, high = low - pad, high + pad
    return (math.log(low), math.log(high)) if log else (low, high)


def clipped(numbers: Sequence[Any], low: float, high: float) -> list[Any]:
    """Numbers that end at `low` and `high`; by `min` and `max` it would take three times as long."""
    return [low if x < low else high if x > high else x for x in numbers]


class Range(_Parameter):
    """All numbers from `low` to `high`; whole numbers where the hyperparameter is one (`integer`)."""

    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")
    log: bool = Field(default=False, description="search on a logarithmic scale")
    integer: bool = Field(default=False, exclude=True, description="set from the hyperparameter's kind; not a key")

    @model_validator(mode="after")
    def _check(self) -> Range:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"`low` and `high` must be finite, but got low={self.low:g}, high={self.high:g}")
        if self.low >= self.high:
            raise ValueError(f"`low < high` must hold, but got low={self.low:g}, high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"`low > 0` must hold for a log scale, but got low={self.low:g}")
        return self

    @property
    def ordered(self) -> Literal[True]:
        return True

    def _ends(self) -> tuple[float, float]:
        """The range of the continuous coordinate: half a unit wider on each side for whole numbers."""
        return _ends(self.low, self.high, self.log, self.integer)

    @property
    def decades(self) -> float | None:
        """How many factors of ten the unit interval spans; None without a log scale."""
        low, high = self._ends()
        return (high - low) / math.log(10) if self.log else None

    def from_unit(self, u: float) -> Value:
        """The value at unit coordinate `u`, clipped to the range."""
        return self.from_units((u,))[0]

    def from_units(self, units: Sequence[float]) -> list[Value]:
        """As `from_unit`, for many at once."""
        low, high = self._ends()
        span = high - low
        found = [low + u * span for u in clipped(units, 0.0, 1.0)]
        if self.log:
            found = [math.exp(x) for x in found]
        if self.integer:
            least, most = math.ceil(self.low), math.floor(self.high)
            return clipped([round(x) for x in found], least, most)
        return clipped(found, self.low, self.high)

    def to_unit(self, value: Value) -> float:
        """The unit coordinate of a value, clipped to [0, 1]."""
        return self.places((value,))[0]

    def places(self, values: Sequence[Value]) -> list[float]:
        """Where models see values: at their unit coordinates."""
        low, high = self._ends()
        span = high - low
        found = [float(value) for value in values]
        if self.log:
            found = [math.log(x) if x > 0 else low for x in found]
        return clipped([(x - low) / span for x in found], 0.0, 1.0)

    def contains(self, value: Value) -> bool:
        return not isinstance(value, str) and self.low <= value <= self.high

    def widened(self, value: Value) -> Range:
        """The same range, stretched to hold `value`, unless that has no place on its log scale, as a default of 0."""
        x = float(value)
        if self.log and x <= 0:
            return self
        return self.model_copy(update={"low": min(self.low, x), "high": max(self.high, x)})


class Choices(_Parameter):
    """One of some values."""

    choices: tuple[Value, ...] = Field(min_length=1, description="the values")

    @model_validator(mode="after")
    def _check(self) -> Choices:
        if len(set(self.choices)) < len(self.choices):
            raise ValueError(f"`choices` must differ from each other, but got {list(self.choices)}")
        return self

    @property
    def ordered(self) -> bool:
        return _ordered(self.choices)

    @property
    def decades(self) -> float | None:
        """How many factors of ten the unit interval spans by `place`; None where it has no log scale.

        It has one where each choice is as many times the one before it, so that 4, 8, 16, 32 take a quarter each, and
        where choices are uneven and span a factor of ten, such as 1e-5, 2e-5, 5e-5, 1e-4.
        """
        return _log_scale(self.choices)[0]

    def places(self, values: Sequence[Value]) -> list[float]:
        """Where models see choices: in the middles of their intervals, or on the log scale of uneven ones.

        Raises `KeyError` for a value that isn't one.
        """
        count = len(self.choices)
        found = _log_scale(self.choices)[1] or {choice: (i + 0.5) / count for i, choice in enumerate(self.choices)}
        return [found[value] for value in values]

    def from_unit(self, u: float) -> Value:
        """The choice whose interval holds unit coordinate `u`."""
        return self.from_units((u,))[0]

    def from_units(self, units: Sequence[float]) -> list[Value]:
        """As `from_unit`, for many at once."""
        count = len(self.choices)
        return [self.choices[min(max(int(u * count), 0), count - 1)] for u in units]

    def to_unit(self, value: Value) -> float:
        """The middle of a choice's interval; raise `ValueError` for a value that isn't one."""
        return (self.choices.index(value) + 0.5) / len(self.choices)

    def contains(self, value: Value) -> bool:
        return value in self.choices

    def widened(self, value: Value) -> Choices:
        """The same choices and `value`, kept ascending where they were."""
        if value in self.choices:
            return self
        wider = (*self.choices, value)
        return self.model_copy(update={"choices": tuple(sorted(wider)) if self.ordered else wider})


def _ordered(choices: tuple[Value, ...]) -> bool:
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in choices)
    return numeric and list(choices) == sorted(choices)


@functools.lru_cache(maxsize=256)
def _log_scale(choices: tuple[Value, ...]) -> tuple[float | None, dict[Value, float]]:
    """The decades of ordered choices, and their places where these aren't the middles of equal intervals."""
    if not _ordered(choices) or len(choices) < 2 or float(choices[0]) <= 0:
        return None, {}
    logs = [math.log10(float(choice)) for choice in choices]
    steps = [second - first for first, second in itertools.pairwise(logs)]
    span = logs[-1] - logs[0]
    if max(steps) - min(steps) < EVEN:
        return len(logs) * span / len(steps), {}
    if float(choices[-1]) < WIDE * float(choices[0]):
        return None, {}
    return span, {choice: (log - logs[0]) / span for choice, log in zip(choices, logs, strict=True)}


def _shape(value: Any) -> str:
    if isinstance(value, Choices | list | tuple):
        return "choices"
    return "choices" if isinstance(value, Mapping) and "choices" in value else "range"


Parameter = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")],
    Discriminator(_shape),
]


def with_kinds(space: Mapping[str, Range | Choices]) -> dict[str, Range | Choices]:
    """The space with `integer` set from each hyperparameter's kind: JSON doesn't carry it."""
    return {
        name: parameter.model_copy(update={"integer": HYPERPARAMETERS[name].kind is int})
        if isinstance(parameter, Range) and name in HYPERPARAMETERS
        else parameter
        for name, parameter in space.items()
    }


SearchSpace = Annotated[dict[str, Parameter], AfterValidator(with_kinds)]
Space = Mapping[str, Range | Choices]


def at_rest(space: Space, values: Mapping[str, Value]) -> set[str]:
    """The conditional parameters whose condition doesn't hold. One that isn't among the values sets no condition."""
    conditional = [(name, parameter, parameter.when) for name, parameter in space.items() if parameter.when]
    settled, found = dict(values), set()
    for name, parameter, when in conditional:
        if any(settled.get(other, valid[0]) not in valid for other, valid in when.items()):
            assert parameter.rest is not None, "the config sets it"
            settled[name] = parameter.rest
            found.add(name)
    return found


def consistent(space: Space, values: Mapping[str, Value]) -> dict[str, Value]:
    """The values with those that rest at their defaults. What isn't in the space stays as it is."""
    rests = {name: space[name].rest for name in at_rest(space, values)}
    return {**values, **{name: rest for name, rest in rests.items() if rest is not None}}


def widen(space: Space, configurations: list[Mapping[str, Value]]) -> dict[str, Range | Choices]:
    """The space stretched to hold every configuration: what a sampler gets as its one global space."""
    wide = dict(space)
    for values in configurations:
        for name in wide:
            wide[name] = wide[name].widened(values[name])
    return wide
