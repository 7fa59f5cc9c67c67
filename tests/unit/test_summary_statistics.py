"""Rank statistics against scipy, and bootstrap intervals against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from understudy.summary.statistics import bootstrap_pairs, kendall, spearman, top_quartile_recall


@pytest.fixture
def pairs() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    x = generator.integers(0, 9, size=(40, 12)).astype(float)  # with ties
    return x, x + generator.normal(size=x.shape).round(0)


def test_correlations_are_scipys(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = pairs
    for ours, theirs in ((spearman, stats.spearmanr), (kendall, stats.kendalltau)):
        expected = [theirs(a, b).statistic for a, b in zip(x, y, strict=True)]
        np.testing.assert_allclose(ours(x, y), expected, atol=1e-12)


def test_kendall_is_the_same_in_pieces(pairs: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = kendall(*pairs)
    monkeypatch.setattr("understudy.summary.statistics.CHUNK", 3 * 12**2)
    np.testing.assert_array_equal(kendall(*pairs), whole)


def test_a_constant_row_has_no_correlation() -> None:
    x, y = np.array([[1.0, 1.0, 1.0]]), np.array([[1.0, 2.0, 3.0]])
    assert np.isnan(spearman(x, y)).all()
    assert np.isnan(kendall(x, y)).all()


def test_top_quartile_recall_counts_the_shared_best() -> None:
    x = np.arange(8.0)[None]
    assert top_quartile_recall(x, x).tolist() == [1.0]
    assert top_quartile_recall(x, -x).tolist() == [0.0]
    half = np.array([[0.0, 9, 1, 2, 3, 4, 5, 6]])  # the best two are 0 and 2; on x they are 0 and 1
    assert top_quartile_recall(x, half).tolist() == [0.5]


def test_the_interval_is_the_percentile_bootstraps() -> None:
    generator = np.random.default_rng(5)
    x = generator.normal(size=60)
    y = x + generator.normal(size=60)
    found = bootstrap_pairs(x, y, spearman, 0.9, seed=1, resamples=4000)
    reference = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        confidence_level=0.9,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert found is not None
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.low == pytest.approx(reference.low, abs=0.02)
    assert found.high == pytest.approx(reference.high, abs=0.02)
    assert bootstrap_pairs(x, y, spearman, 0.9, seed=1, resamples=4000) == found
    assert bootstrap_pairs(x, y, spearman, 0.9, seed=2, resamples=4000) != found


def test_too_few_or_equal_pairs_give_nothing() -> None:
    x = np.array([1.0, 2.0])
    assert bootstrap_pairs(x, x, spearman, 0.95, seed=1) is None
    assert bootstrap_pairs(np.ones(5), np.arange(5.0), spearman, 0.95, seed=1) is None
