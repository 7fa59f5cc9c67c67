"""The two-fidelity model as an Optuna sampler.

It can be used without the workflow, with any study of a cheaper model for a proxy:

    proxy.optimize(objective_of_the_small_model, n_trials=50)
    study = optuna.create_study(sampler=TwoFidelitySampler.from_study(proxy, seed=1))
    study.optimize(objective_of_the_large_model, n_trials=10)

or with what the workflow's transfer found:

    regions = read_model(Path("results/transfer/regions.json"), Regions)
    study = optuna.create_study(sampler=TwoFidelitySampler(regions.surface, regions.space, seed=1))

The workflow itself asks `Acquisition`, with the same results, and so doesn't import Optuna for each trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna

from understudy.artifacts import Outlook, Surface
from understudy.hyperparameters import Value
from understudy.search.acquisition import Acquisition
from understudy.search.distributions import distribution, from_optuna, to_optuna
from understudy.search.failures import FAILED
from understudy.search.optuna_study import native, read_study
from understudy.search.surface import RATE, make_surface
from understudy.space import Choices, Range, Space, consistent

BEST = 5  # of a proxy's study, with which a target's begins


class TwoFidelitySampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """Proposes what the two-fidelity model expects to be better than anything so far (see `Acquisition`).

    `surface`, `space`, `hints`, `gain`, `truncated` and `rate` are as there. A trial's parameters have `distributions`,
    where choices with an order are their places in it. A trial fails that has a loss which isn't finite, or the user
    attribute `failed`, or that failed in Optuna's terms. One that was pruned counts by its last value, and as failed
    without one.
    """

    def __init__(
        self,
        surface: Surface,
        space: Space,
        seed: int,
        hints: Sequence[Mapping[str, Value]] = (),
        gain: float = 0.0,
        truncated: Sequence[tuple[Mapping[str, Value], float]] = (),
        rate: str = RATE,
    ) -> None:
        self.surface, self.space = surface, space
        self.distributions = {name: distribution(parameter) for name, parameter in space.items()}
        self._encode: Callable[[Range | Choices, Value], Value] = to_optuna
        self._decode: Callable[[Range | Choices, Value], Value] = from_optuna
        self._acquisition = Acquisition(surface, space, seed, hints, gain, truncated, rate)

    @classmethod
    def from_study(cls, proxy: optuna.Study, seed: int, rate: str = RATE, gain: float = 0.0) -> TwoFidelitySampler:
        """For a study whose objective suggests the same parameters as the proxy's did, by the same distributions.

        The proxy's best trials are the hints. Both studies have a direction of their own. Nothing is rescaled: how far
        the learning rate, called `rate`, is off is learnt from the target's results, from a prior of a factor of 1.8.
        Raises `UserError` where the study can't serve (see `read_study`).
        """
        found = read_study(proxy)
        surface = make_surface(found.space, found.configurations, found.losses)
        sampler = cls(surface, found.space, seed, found.best(BEST), gain, rate=rate)
        sampler.distributions = found.distributions
        sampler._encode, sampler._decode = _as_it_is, native
        return sampler

    @property
    def outlook(self) -> Outlook | None:
        """What the model expects of the last proposal, once there is one."""
        return self._acquisition.outlook

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:  # noqa: ARG002
        """The whole space, with or without finished trials."""
        return dict(self.distributions)

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """All parameters of a trial.

        Raises `ValueError` where a complete trial lacks one of them.
        """
        sign = -1.0 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1.0
        others = [other for other in study.get_trials(deepcopy=False) if self._counts(other, trial)]
        running = [self._values(other.params) for other in others if not other.state.is_finished()]
        told = [other for other in others if other.state.is_finished()]
        losses = [
            math.inf if other.value is None or other.user_attrs.get(FAILED) else sign * float(other.value)
            for other in told
        ]
        values = self._acquisition.choose([self._values(other.params) for other in told], losses, running)
        return {name: self._encode(parameter, values[name]) for name, parameter in self.space.items()}

    def _counts(self, other: Any, trial: Any) -> bool:
        """Whether a proposal for `trial` minds another one; those that wait or ended early have no parameters yet."""
        missing = self.space.keys() - other.params.keys()
        if missing and other.state == optuna.trial.TrialState.COMPLETE:
            raise ValueError(
                f"trial {other.number} is complete without {', '.join(sorted(missing))}, which the surface has; "
                "an objective must suggest all of its parameters"
            )
        waits = other.state == optuna.trial.TrialState.WAITING
        return not (missing or waits or other.number == trial.number)

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:  # noqa: ARG002
        """Never needed in the surface's space.

        Raises `ValueError`: the surface knows nothing of another parameter.
        """
        known = ", ".join(f"{name} by {each}" for name, each in self.distributions.items())
        raise ValueError(
            f"{param_name} isn't in the space of the proxy's surface, or not by {param_distribution}; it has {known}"
        )

    def _values(self, params: Mapping[str, Any]) -> dict[str, Value]:
        values = {name: self._decode(parameter, params[name]) for name, parameter in self.space.items()}
        return consistent(self.space, values)  # what rests may have no place in its distribution


def _as_it_is(_: Range | Choices, value: Value) -> Value:
    return value
