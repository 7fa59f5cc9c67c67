"""Optuna's samplers, cold or warm-started with the proxy's trials as `Study.add_trial` documents it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from replays.replay import Seen, View
from replays.simple import finite, proxy_runs
from replays.tables import Configuration
from understudy.hyperparameters import Value
from understudy.process import set_threads
from understudy.search.distributions import distribution, to_optuna
from understudy.search.quiet import quiet_optuna
from understudy.space import Choices, Range


class Optuna:
    """A sampler of Optuna that asks from all finished runs, running ones included.

    `startup` is `n_startup_trials`: on the tuning half Optuna's own 10 did best for TPE, 2 for the GP. `warm` adds the
    proxy's trials as if they were the target's, and so needs none; `scaled` rescales them by the published rule first.
    """

    def __init__(self, sampler: str, warm: bool, startup: int, scaled: bool = False) -> None:
        self._name, self._warm, self._startup, self._scaled = sampler, warm, startup, scaled

    def start(self, view: View, seed: int) -> None:
        if self._name == "gp":
            set_threads(1)
        with quiet_optuna() as optuna:
            self._space = view.space
            self._distributions = {name: distribution(each) for name, each in view.space.items()}
            self._source = proxy_runs(view, self._scaled) if self._warm else ()
            self._sampler = self._make(optuna, seed)

    def _make(self, optuna: Any, seed: int) -> Any:
        options = {"seed": seed, "n_startup_trials": self._startup}
        if self._name == "tpe":
            return optuna.samplers.TPESampler(multivariate=True, constant_liar=True, **options)
        return optuna.samplers.GPSampler(warn_independent_sampling=False, **options)

    def propose(self, history: Sequence[Seen], pending: Sequence[Configuration]) -> Configuration | None:
        with quiet_optuna() as optuna:
            study = optuna.create_study(sampler=self._sampler)
            runs = [*self._source, *history]
            for run, loss in zip(runs, finite([run.loss for run in runs]), strict=True):
                self._add(optuna, study, run.configuration, value=loss)
            for configuration in pending:
                self._add(optuna, study, configuration, state=optuna.trial.TrialState.RUNNING)
            trial = study.ask(self._distributions)
            return {name: from_optuna(self._space[name], trial.params[name]) for name in self._space}

    def _add(self, optuna: Any, study: Any, configuration: Configuration, **result: Any) -> None:
        params = {name: to_optuna(self._space[name], configuration[name]) for name in self._space}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=self._distributions, **result))


def from_optuna(parameter: Range | Choices, value: Value) -> Value:
    """A value as Optuna drew it: our own search rounds."""
    return parameter.choices[int(value)] if isinstance(parameter, Choices) and parameter.ordered else value
