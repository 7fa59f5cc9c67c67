"""Syne Tune's transfer methods: bounding box, zero-shot and quantile-based transfer."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice, lograndint, loguniform, randint, uniform
from syne_tune.optimizer.baselines import BOTorch
from syne_tune.optimizer.schedulers.single_objective_scheduler import SingleObjectiveScheduler
from syne_tune.optimizer.schedulers.transfer_learning.bounding_box import BoundingBox
from syne_tune.optimizer.schedulers.transfer_learning.quantile_based.quantile_based_searcher import (
    QuantileBasedSurrogateSearcher,
)
from syne_tune.optimizer.schedulers.transfer_learning.transfer_learning_task_evaluation import (
    TransferLearningTaskEvaluations,
)
from syne_tune.optimizer.schedulers.transfer_learning.zero_shot import ZeroShotTransfer

from replays.replay import Seen, View
from replays.simple import finite, proxy_runs
from replays.tables import Configuration
from understudy.process import set_threads
from understudy.space import Choices, Range
from understudy.trial import derive_seed

METRIC = "loss"


class _Syne(ABC):
    """What the three have in common: the space, the proxy's evaluations, and libraries that draw from global seeds."""

    _scaled = False  # whether the proxy's configurations are rescaled by the published rule

    def start(self, view: View, seed: int) -> None:
        set_threads(1)
        self._view, self._seed = view, seed
        self._space = {name: _domain(parameter) for name, parameter in view.space.items()}
        with _calm(seed):
            self._begin({"proxy": self._evaluations(proxy_runs(view, self._scaled))}, seed)

    @abstractmethod
    def _begin(self, evaluations: dict[str, TransferLearningTaskEvaluations], seed: int) -> None:
        """Set the method up with what the proxy found, by task."""

    def _evaluations(self, proxy: Sequence[Seen]) -> TransferLearningTaskEvaluations:
        rows = [
            {name: _to_syne(self._view.space[name], run.configuration[name]) for name in self._space} for run in proxy
        ]
        losses = np.array(finite([run.loss for run in proxy]))
        return TransferLearningTaskEvaluations(self._space, pd.DataFrame(rows), [METRIC], losses[:, None, None, None])

    def _from_syne(self, config: dict[str, Any]) -> Configuration:
        return {name: _from_syne(self._view.space[name], config[name]) for name in self._space}


class Box(_Syne):
    """The box of the proxy's best runs (Perrone et al. 2019) with Syne Tune's GP inside, as the paper searches it.

    `best` is `num_hyperparameters_per_task`; 10 in Syne Tune's own example.
    """

    def __init__(self, best: int, scaled: bool = False) -> None:
        self._best, self._scaled = best, scaled

    def _begin(self, evaluations: dict[str, TransferLearningTaskEvaluations], seed: int) -> None:
        def inside(space: dict[str, Any], metric: str, minimize: bool, seed: int) -> BOTorch:
            return BOTorch(space, metric, do_minimize=minimize, random_seed=seed)

        self._scheduler = BoundingBox(
            inside, self._space, METRIC, evaluations, num_hyperparameters_per_task=self._best, random_seed=seed
        )
        self._told = 0

    def propose(self, history: Sequence[Seen], pending: Sequence[Configuration]) -> Configuration | None:
        searcher = self._scheduler.scheduler.searcher
        for number, configuration in enumerate([*(run.configuration for run in history), *pending]):
            searcher.trial_configs[number] = self._clipped(configuration, searcher.config_space)
        losses = finite([run.loss for run in history])
        for number in range(self._told, len(history)):
            trial = Trial(number, searcher.trial_configs[number], None)
            self._scheduler.on_trial_complete(trial, {METRIC: losses[number]})
        self._told = len(history)
        with _calm(derive_seed(self._seed, len(history) + len(pending))):
            suggestion = self._scheduler.suggest()
        return self._from_syne(suggestion.config) if suggestion else None

    def _clipped(self, configuration: Configuration, space: dict[str, Any]) -> dict[str, Any]:
        """What was really run, in the box: the nearest configuration of the table may lie a little outside."""
        found = {}
        for name, domain in space.items():
            value = _to_syne(self._view.space[name], configuration[name])
            if hasattr(domain, "lower"):
                found[name] = min(max(value, domain.lower), domain.upper)
            else:
                found[name] = value if value in domain.categories else domain.categories[0]
        return found


class ZeroShot(_Syne):
    """The configurations that complement each other over the source tasks (Wistuba et al. 2015).

    With one source that is its ranked list. `get_config` is the method itself: in version 0.16 `suggest` goes to the
    parent class's random search instead.
    """

    def _begin(self, evaluations: dict[str, TransferLearningTaskEvaluations], seed: int) -> None:
        self._scheduler = ZeroShotTransfer(self._space, METRIC, evaluations, random_seed=seed)

    def propose(
        self,
        history: Sequence[Seen],  # noqa: ARG002 - what the target says changes nothing
        pending: Sequence[Configuration],  # noqa: ARG002
    ) -> Configuration | None:
        config = self._scheduler.get_config()
        return self._from_syne(config) if config is not None else None


class Quantile(_Syne):
    """Thompson samples of a surrogate of the proxy's losses after a Gaussian copula transform (Salinas et al. 2020)."""

    def _begin(self, evaluations: dict[str, TransferLearningTaskEvaluations], seed: int) -> None:
        searcher = QuantileBasedSurrogateSearcher(self._space, evaluations, random_seed=seed)
        self._scheduler = SingleObjectiveScheduler(self._space, METRIC, searcher=searcher, random_seed=seed)

    def propose(
        self,
        history: Sequence[Seen],  # noqa: ARG002 - what the target says changes nothing
        pending: Sequence[Configuration],  # noqa: ARG002
    ) -> Configuration | None:
        suggestion = self._scheduler.suggest()
        return self._from_syne(suggestion.config) if suggestion else None


@contextlib.contextmanager
def _calm(seed: int) -> Iterator[None]:
    """Seeds for draws that no seed of the library reaches, and none of its prints."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _domain(parameter: Range | Choices) -> Any:
    if isinstance(parameter, Choices):
        return randint(0, len(parameter.choices) - 1) if parameter.ordered else choice(list(parameter.choices))
    if parameter.integer:
        low, high = round(parameter.low), round(parameter.high)
        return lograndint(low, high) if parameter.log else randint(low, high)
    return (loguniform if parameter.log else uniform)(parameter.low, parameter.high)


def _to_syne(parameter: Range | Choices, value: Any) -> Any:
    return parameter.choices.index(value) if isinstance(parameter, Choices) and parameter.ordered else value


def _from_syne(parameter: Range | Choices, value: Any) -> Any:
    if isinstance(parameter, Choices):
        return parameter.choices[int(value)] if parameter.ordered else value
    return round(value) if parameter.integer else float(value)
