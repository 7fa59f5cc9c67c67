"""Hyperparameters as Optuna's distributions, and values there and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from understudy.hyperparameters import Value
from understudy.search.quiet import quiet_optuna
from understudy.search.values import settled
from understudy.space import Choices, Range, Space, consistent


def distribution(parameter: Range | Choices) -> Any:
    """Ordered choices become whole numbers, so that a model knows their order."""
    with quiet_optuna() as optuna:
        if isinstance(parameter, Choices):
            if parameter.ordered:
                return optuna.distributions.IntDistribution(0, len(parameter.choices) - 1)
            return optuna.distributions.CategoricalDistribution(parameter.choices)
        if parameter.integer:
            low, high = math.ceil(parameter.low), math.floor(parameter.high)
            return optuna.distributions.IntDistribution(low, high, log=parameter.log)
        return optuna.distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def to_optuna(parameter: Range | Choices, value: Value) -> Value:
    """A value as the parameter's distribution has it; one without a place on its log scale is at the low end."""
    if isinstance(parameter, Choices):
        return parameter.choices.index(value) if parameter.ordered else value
    return value if not parameter.log or float(value) > 0 else parameter.low


def from_optuna(parameter: Range | Choices, value: Value) -> Value:
    """A value of the parameter's distribution, rounded as searched values are."""
    if isinstance(parameter, Choices):
        return parameter.choices[int(value)] if parameter.ordered else value
    return int(value) if parameter.integer else settled(value, parameter)


def as_searched(space: Space, values: Mapping[str, Value]) -> dict[str, Value]:
    """A configuration as it would come back from a study with these distributions."""
    back = {name: from_optuna(parameter, to_optuna(parameter, values[name])) for name, parameter in space.items()}
    return consistent(space, back)
