"""The bootstrap of the gain: against known variances, and where there is nothing to compare."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.artifacts import Interval
from understudy.summary import gain
from understudy.summary.gain import bootstrap_gain

TOKENS = [10] * 400


def losses(seed: int, level: float, noise: np.ndarray) -> tuple[float, ...]:
    draw = np.random.default_rng(seed)
    return tuple((level + noise + 0.01 * draw.normal(size=len(TOKENS))) * 10)


def shared_noise() -> np.ndarray:
    return np.random.default_rng(0).normal(size=len(TOKENS))


def test_examples_are_resampled_jointly_so_that_their_difficulty_cancels() -> None:
    noise = shared_noise()
    table = {"w": losses(1, 2.0, noise), "d": losses(2, 2.1, noise)}
    found = bootstrap_gain(table, TOKENS, ["w"], ["d"], 2000, 0.95, seed=3)
    assert found.gain is not None
    assert found.default is not None
    assert found.gain.value == pytest.approx(0.1, abs=0.005)
    assert found.gain.high - found.gain.low < 0.01  # about 4 · 0.014 / √400
    width = found.winner.high - found.winner.low
    assert width == pytest.approx(2 * 1.96 * np.std(noise) / np.sqrt(len(TOKENS)), rel=0.1)


def test_seeds_add_their_own_uncertainty() -> None:
    noise = shared_noise()
    table = {f"w{i}": losses(i, 2.0 + 0.2 * i, noise) for i in range(3)} | {"d": losses(9, 2.5, noise)}
    found = bootstrap_gain(table, TOKENS, ["w0", "w1", "w2"], ["d"], 2000, 0.95, seed=3)
    assert found.gain is not None
    assert found.gain.high - found.gain.low > 0.2


def test_one_configuration_has_no_gain_over_itself() -> None:
    noise = shared_noise()
    table = {"a": losses(1, 2.0, noise), "b": losses(2, 2.2, noise)}
    found = bootstrap_gain(table, TOKENS, ["a", "b"], ["b", "a"], 500, 0.95, seed=3)
    assert found.gain is not None
    assert (found.gain.value, found.gain.low, found.gain.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_there_are_as_many_resamples_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn in chunks of 500, of which the last may be smaller."""
    counts: list[int] = []
    plain = gain._interval

    def counting(value: float, resampled: gain.Floats, confidence: float) -> Interval:
        counts.append(len(resampled))
        return plain(value, resampled, confidence)

    monkeypatch.setattr(gain, "_interval", counting)
    table = {"w": losses(1, 2.0, shared_noise()), "d": losses(2, 2.1, shared_noise())}
    for samples in (300, 500, 700):
        bootstrap_gain(table, TOKENS, ["w"], ["d"], samples, 0.95, seed=3)
    assert counts == [300] * 3 + [500] * 3 + [700] * 3


def test_without_a_default_there_is_a_loss_but_no_gain() -> None:
    found = bootstrap_gain({"w": losses(1, 2.0, shared_noise())}, TOKENS, ["w"], [], 500, 0.95, seed=3)
    assert found.default is None
    assert found.gain is None
    assert found.winner.value == pytest.approx(2.0, abs=0.1)
