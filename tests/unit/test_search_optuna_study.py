"""The two-fidelity sampler for anybody's Optuna study, with another one as its proxy."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest

from understudy.errors import UserError
from understudy.search.optuna_study import parameter, read_study
from understudy.search.refinement import TwoFidelitySampler
from understudy.space import Choices, Range

SEEDS = range(5)


def loss(trial: optuna.Trial, best_rate: float) -> float:
    """A bowl over the kinds of distributions that there are."""
    rate = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    batch = trial.suggest_categorical("batch_size", [8, 16, 32, 64])
    rank = trial.suggest_int("rank", 4, 64, log=True)
    warmup = trial.suggest_float("warmup", 0.0, 0.3, step=0.1)
    layers = trial.suggest_int("layers", 2, 10, step=2)
    schedule = trial.suggest_categorical("schedule", ["linear", "cosine", "constant"])
    off = math.log10(rate / best_rate)
    value = off**2 + 0.1 * math.log2(batch / 16) ** 2 + 0.02 * math.log2(64 / rank) + warmup + 0.02 * abs(layers - 6)
    return value + 0.2 * (schedule != "cosine")


@pytest.fixture(scope="module")
def proxy() -> optuna.Study:
    study = optuna.create_study(study_name="proxy", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: loss(trial, 3e-3), n_trials=60)
    return study


def searched(sampler: Any, trials: int, **named: Any) -> optuna.Study:
    study = optuna.create_study(sampler=sampler, **named)
    sign = -1 if named.get("direction") == "maximize" else 1
    study.optimize(lambda trial: sign * loss(trial, 1e-3), n_trials=trials)
    return study


def test_a_proxys_study_saves_target_trials(proxy: optuna.Study) -> None:
    """Four trials with it are better than twelve of TPE, though the best rate is a third of the proxy's."""
    ours = [searched(TwoFidelitySampler.from_study(proxy, seed, rate="lr"), 4).best_value for seed in SEEDS]
    others = [searched(optuna.samplers.TPESampler(seed=seed), 12).best_value for seed in SEEDS]
    assert max(ours) < min(others)


def test_the_trials_are_the_studys_own(proxy: optuna.Study) -> None:
    study = searched(TwoFidelitySampler.from_study(proxy, 1, rate="lr"), 3)
    assert [trial.distributions for trial in study.trials] == [proxy.trials[0].distributions] * 3
    best = [trial.params["schedule"] for trial in sorted(proxy.trials, key=lambda trial: trial.value)[:5]]
    assert study.trials[0].params["schedule"] in best
    upwards = searched(TwoFidelitySampler.from_study(proxy, 1, rate="lr"), 3, direction="maximize")
    assert [trial.params for trial in upwards.trials] == [trial.params for trial in study.trials]


def test_the_gain_is_what_a_trial_is_worth(proxy: optuna.Study) -> None:
    sampler = TwoFidelitySampler.from_study(proxy, 1, rate="lr", gain=0.01)
    study = searched(sampler, 1)
    study.ask(sampler.distributions)
    assert sampler.outlook is not None
    assert sampler.outlook.worth is not None


def test_a_study_that_is_maximised_is_read_upside_down(proxy: optuna.Study) -> None:
    upside_down = optuna.create_study(direction="maximize")
    for trial in proxy.trials:
        upside_down.add_trial(
            optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=-trial.value)
        )
    assert read_study(upside_down).losses == read_study(proxy).losses


def test_failed_and_pruned_trials_count(proxy: optuna.Study) -> None:
    """One that failed is avoided, and so is what was pruned at a bad loss; neither is proposed again."""
    study = optuna.create_study(sampler=TwoFidelitySampler.from_study(proxy, 1, rate="lr"))

    def objective(trial: optuna.Trial) -> float:
        value = loss(trial, 1e-4)
        if trial.number == 1:
            trial.report(value + 1, step=1)
            raise optuna.TrialPruned
        return math.nan if trial.params["lr"] > 1e-3 else value

    study.optimize(objective, n_trials=10)
    states = [trial.state.name for trial in study.trials]
    assert states[0] == "FAIL"
    assert states[1] == "PRUNED"
    assert study.best_value < 0.3
    assert len({tuple(trial.params.items()) for trial in study.trials}) == 10


def test_a_study_that_cannot_serve_is_refused_in_words(proxy: optuna.Study) -> None:
    few = optuna.create_study(study_name="few")
    few.add_trials(proxy.trials[:3])
    with pytest.raises(UserError, match="few has 3 complete trials; a surface needs 4"):
        TwoFidelitySampler.from_study(few, seed=1)
    with pytest.raises(UserError, match="the choices of modules must be numbers"):
        parameter("modules", optuna.distributions.CategoricalDistribution([None, "q_proj"]))
    study = optuna.create_study(sampler=TwoFidelitySampler.from_study(proxy, seed=1))
    with pytest.raises(
        ValueError, match=r"dropout isn't in the space of the proxy's surface, .*; it has .*lr by Float"
    ):
        study.ask().suggest_float("dropout", 0, 1)


def test_a_study_of_several_objectives_is_refused_in_words() -> None:
    several = optuna.create_study(directions=["minimize", "maximize"])
    with pytest.raises(UserError, match="has 2 objectives; a surface is of one"):
        TwoFidelitySampler.from_study(several, seed=1)


def test_an_objective_with_fewer_parameters_is_refused_in_words(proxy: optuna.Study) -> None:
    study = optuna.create_study(sampler=TwoFidelitySampler.from_study(proxy, seed=1))
    with pytest.raises(ValueError, match="trial 0 is complete without batch_size, layers, rank, schedule, warmup"):
        study.optimize(lambda trial: trial.suggest_float("lr", 1e-5, 1e-1, log=True), n_trials=2)


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (optuna.distributions.FloatDistribution(1e-4, 1, log=True), Range(low=1e-4, high=1, log=True)),
        (optuna.distributions.IntDistribution(1, 8), Range(low=1, high=8, integer=True)),
        (optuna.distributions.FloatDistribution(0, 0.5, step=0.25), Choices(choices=(0.0, 0.25, 0.5))),
        (optuna.distributions.IntDistribution(8, 24, step=8), Choices(choices=(8, 16, 24))),
        (optuna.distributions.IntDistribution(3, 3), Choices(choices=(3,))),
        (optuna.distributions.CategoricalDistribution([True, False]), Choices(choices=(True, False))),
    ],
)
def test_every_distribution_is_a_parameter(distribution: Any, expected: Range | Choices) -> None:
    assert parameter("x", distribution) == expected
