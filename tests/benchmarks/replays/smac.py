"""SMAC3's facades, cold, with the proxy's best configurations as initial design, or told of all the proxy's runs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ConfigSpace import Categorical, ConfigurationSpace, Float, Integer
from ConfigSpace import Configuration as Config
from joblib import parallel_config
from smac import BlackBoxFacade, HyperparameterOptimizationFacade, Scenario
from smac.model.random_forest.random_forest import RandomForest
from smac.runhistory.dataclasses import TrialInfo, TrialValue
from threadpoolctl import threadpool_limits

from replays.replay import Seen, View
from replays.simple import finite, proxy_runs
from replays.tables import Configuration
from understudy.space import Choices, Range
from understudy.trial import derive_seed

FACADES: dict[str, Any] = {"gp": BlackBoxFacade, "forest": HyperparameterOptimizationFacade}
LEAVES = 1000  # of a tree; with the facade's 2**20 scikit-learn takes 0.2 s to make room for each tree
INITIAL_SHARE = 0.25  # of the runs that SMAC plans before its model decides, its own default (`max_ratio`)


class Smac:
    """SMAC asks anew from all finished runs, after an initial design that it draws itself or the proxy's best.

    Asking anew lets it know what was really run, and train after every run: the forest's facade would otherwise wait
    for eight.
    """

    def __init__(self, model: str, warm: bool) -> None:
        self._facade, self._warm = FACADES[model], warm

    def start(self, view: View, seed: int) -> None:
        self._view, self._seed = view, seed
        self._space = ConfigurationSpace(seed=seed)
        self._space.add([_hyperparameter(name, parameter) for name, parameter in view.space.items()])
        count = max(1, round(INITIAL_SHARE * view.trials))
        if self._warm:
            order = sorted(view.proxy, key=lambda trial: (trial.loss, trial.id))
            self._first = [run.configuration for run in order[:count]]
        else:
            with tempfile.TemporaryDirectory() as folder:
                design = self._facade.get_initial_design(self._scenario(Path(folder), seed), n_configs=count)
                self._first = [self._from_smac(dict(config)) for config in design.select_configurations()[:count]]

    def _scenario(self, folder: Path, seed: int) -> Scenario:
        return Scenario(self._space, deterministic=True, n_trials=10_000, seed=seed, output_directory=folder)

    def propose(self, history: Sequence[Seen], pending: Sequence[Configuration]) -> Configuration | None:
        number = len(history) + len(pending)
        if number < len(self._first) or not history:
            return self._first[min(number, len(self._first) - 1)]
        with tempfile.TemporaryDirectory() as folder, parallel_config("sequential"), threadpool_limits(1):
            scenario = self._scenario(Path(folder), derive_seed(self._seed, number))
            facade = self._facade(
                scenario,
                None,
                initial_design=self._facade.get_initial_design(scenario, n_configs=0),
                model=_forest(scenario) if self._facade is FACADES["forest"] else None,
                config_selector=self._facade.get_config_selector(scenario, retrain_after=1),
                logging_level=False,
                overwrite=True,
            )
            losses = finite([run.loss for run in history])
            for run, loss in zip(history, losses, strict=True):
                facade.tell(self._info(run.configuration), TrialValue(cost=loss), save=False)
            for configuration in pending:
                facade.runhistory.add_running_trial(self._info(configuration))
            return self._from_smac(dict(facade.ask().config))

    def _info(self, configuration: Configuration) -> TrialInfo:
        values = {name: _to_smac(self._view.space[name], configuration[name]) for name in self._view.space}
        return TrialInfo(Config(self._space, values=values), seed=0)

    def _from_smac(self, values: dict[str, Any]) -> Configuration:
        return {name: _from_smac(self._view.space[name], values[name]) for name in self._view.space}


class Told:
    """SMAC is told all of the proxy's runs as if they were the target's, as its documentation's warm start has it.

    A target run replaces what a proxy run of the same configuration said.
    """

    def __init__(self, model: str, scaled: bool = False) -> None:
        self._smac, self._scaled = Smac(model, warm=True), scaled

    def start(self, view: View, seed: int) -> None:
        self._smac.start(view, seed)
        self._source = proxy_runs(view, self._scaled)

    def propose(self, history: Sequence[Seen], pending: Sequence[Configuration]) -> Configuration | None:
        return self._smac.propose([*self._source, *history], pending)


def _forest(scenario: Scenario) -> RandomForest:
    """The facade's own forest, with room for fewer leaves."""
    return RandomForest(
        configspace=scenario.configspace,
        log_y=True,
        n_trees=10,
        ratio_features=1.0,
        min_samples_split=2,
        min_samples_leaf=1,
        bootstrapping=True,
        max_leaf_nodes=LEAVES,
        seed=scenario.seed,
    )


def _hyperparameter(name: str, parameter: Range | Choices) -> Any:
    if isinstance(parameter, Choices):
        if parameter.ordered:
            return Integer(name, (0, len(parameter.choices) - 1))
        return Categorical(name, list(parameter.choices))
    if parameter.integer:
        return Integer(name, (round(parameter.low), round(parameter.high)), log=parameter.log)
    return Float(name, (parameter.low, parameter.high), log=parameter.log)


def _to_smac(parameter: Range | Choices, value: Any) -> Any:
    return parameter.choices.index(value) if isinstance(parameter, Choices) and parameter.ordered else value


def _from_smac(parameter: Range | Choices, value: Any) -> Any:
    if isinstance(parameter, Choices):
        return parameter.choices[int(value)] if parameter.ordered else value
    return int(value) if parameter.integer else float(value)
