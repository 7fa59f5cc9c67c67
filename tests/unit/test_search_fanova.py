"""Functional ANOVA against Optuna's, which walks the same trees point by point."""

from __future__ import annotations

import warnings

import numpy as np
import optuna
import pytest

from understudy.search.fanova import variance_shares


def optunas(x: np.ndarray, y: np.ndarray, choices: int, seed: int) -> list[float]:
    """The shares by Optuna, not normalized: all columns are parameters but the last `choices`, which are one."""
    plain = x.shape[1] - choices
    study = optuna.create_study()
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        f"a{i}": optuna.distributions.FloatDistribution(0, 1) for i in range(plain)
    }
    if choices:
        distributions["z"] = optuna.distributions.CategoricalDistribution(range(choices))
    for row, value in zip(x, y, strict=True):
        params = {f"a{i}": float(row[i]) for i in range(plain)}
        if choices:
            params["z"] = int(row[plain:].argmax())
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=float(value)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shares = optuna.importance.FanovaImportanceEvaluator(seed=seed).evaluate(study)
    return [shares[name] for name in distributions]


@pytest.mark.parametrize(("count", "plain", "choices"), [(30, 3, 0), (60, 2, 3), (40, 1, 5), (8, 2, 2)])
def test_shares_are_optunas(count: int, plain: int, choices: int) -> None:
    generator = np.random.default_rng(count)
    x = generator.random((count, plain))
    x[:, 0] = np.round(x[:, 0] * 4) / 4  # equal values, as of choices in order
    y = 3 * x[:, 0] + generator.random(count)
    if choices:
        kinds = generator.integers(choices, size=count)
        x = np.hstack([x, np.eye(choices)[kinds]])
        y += kinds % 2
    parameters = [[i] for i in range(plain)] + ([list(range(plain, plain + choices))] if choices else [])
    expected = optunas(x, y, choices, 7)
    assert variance_shares(x, y, parameters, 7) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert max(expected) > 0.2


def test_a_flat_forest_and_a_parameter_without_columns_have_no_share() -> None:
    x = np.full((6, 1), 0.5)
    assert variance_shares(x, np.arange(6.0), [[0], []], 1) == [0.0, 0.0]
    assert variance_shares(np.empty((6, 0)), np.arange(6.0), [[]], 1) == [0.0]
