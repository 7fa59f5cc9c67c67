"""What a finished Optuna study of a proxy says, in the terms of this program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from understudy.errors import UserError
from understudy.hyperparameters import Value
from understudy.search.values import settled
from understudy.space import Choices, Range

FEWEST = 4  # finished trials; from fewer no surface can be told from its noise


@dataclass(frozen=True)
class ProxyStudy:
    """The parameters that all finished trials have, and the trials: the smaller a loss the better, None where one
    failed.
    """

    distributions: dict[str, BaseDistribution]
    space: dict[str, Range | Choices]
    configurations: list[dict[str, Value]]
    losses: list[float | None]

    def best(self, count: int) -> list[dict[str, Value]]:
        """The configurations of the best trials, best first."""
        known = [(loss, place) for place, loss in enumerate(self.losses) if loss is not None]
        return [self.configurations[place] for _, place in sorted(known)[:count]]


def read_study(study: optuna.Study) -> ProxyStudy:
    """The study's finished trials; one that failed counts as a configuration that can't be trained.

    Pruned trials are left out: nobody knows where they would have ended. Raises `UserError` where too few are complete,
    there are several objectives, or a parameter has values that aren't numbers, texts, true or false.
    """
    if len(study.directions) > 1:
        raise UserError(f"study {study.study_name} has {len(study.directions)} objectives; a surface is of one")
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < FEWEST:
        raise UserError(f"study {study.study_name} has {len(complete)} complete trials; a surface needs {FEWEST}")
    distributions = optuna.search_space.intersection_search_space(complete)
    space = {name: parameter(name, each) for name, each in distributions.items()}
    sign = -1.0 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1.0
    configurations: list[dict[str, Value]] = []
    losses: list[float | None] = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)):
        if all(name in trial.params for name in space):  # one that failed early may lack some
            configurations.append({name: native(each, trial.params[name]) for name, each in space.items()})
            losses.append(sign * trial.value if trial.state == TrialState.COMPLETE else None)
    return ProxyStudy(distributions, space, configurations, losses)


def parameter(name: str, distribution: BaseDistribution) -> Range | Choices:
    """A parameter with the values of a distribution; where these have steps it is a choice of them."""
    if isinstance(distribution, CategoricalDistribution):
        if not all(isinstance(choice, float | int | str | bool) for choice in distribution.choices):
            raise UserError(
                f"the choices of {name} must be numbers, texts, true or false, but are {list(distribution.choices)}"
            )
        return Choices(choices=tuple(distribution.choices))
    assert isinstance(distribution, FloatDistribution | IntDistribution), distribution
    low, high, step = distribution.low, distribution.high, distribution.step
    whole = isinstance(distribution, IntDistribution)
    if low == high:
        return Choices(choices=(low,))
    if step is not None and not (whole and step == 1):
        return Choices(choices=tuple(low + i * step for i in range(round((high - low) / step) + 1)))
    return Range(low=low, high=high, log=distribution.log, integer=whole)


def native(parameter: Range | Choices, value: Any) -> Value:
    """A trial's value as the parameter has it."""
    if isinstance(parameter, Range):
        return int(value) if parameter.integer else settled(float(value), parameter)
    if value in parameter.choices:
        return parameter.choices[parameter.choices.index(value)]
    return min(parameter.choices, key=lambda choice: abs(float(choice) - value))  # a step, but for its last digit
