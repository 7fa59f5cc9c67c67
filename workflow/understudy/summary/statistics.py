"""Rank agreement and its bootstrap intervals.

Notation: n pairs (x_i, y_i), x a loss on the proxy and y the loss of the same configuration on the target; B
resamples of n pairs drawn with replacement, as rows of arrays of shape (B, n).

Intervals are percentile intervals (Efron & Tibshirani 1993, chapter 13). Not verified: their coverage, which for
correlations of fewer than some 20 pairs is known to fall short of the nominal level.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from understudy.artifacts import Interval

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], Floats]  # rows of x and y, each (B, n), to one value per row, (B,)

RESAMPLES = 2000
MINIMUM_PAIRS = 3  # a rank correlation of two pairs is -1 or 1 whatever they are
CHUNK = 2_000_000  # pairs of pairs that Kendall's tau holds at once


def spearman(x: Floats, y: Floats) -> Floats:
    """Spearman's rank correlation of every row, (B,); NaN where a row is constant. Ties get their mean rank."""
    ranks_x, ranks_y = (stats.rankdata(rows, axis=1) for rows in (x, y))
    centred_x, centred_y = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (ranks_x, ranks_y))
    scale = np.sqrt((centred_x**2).sum(axis=1) * (centred_y**2).sum(axis=1))
    return _ratio((centred_x * centred_y).sum(axis=1), scale)


def kendall(x: Floats, y: Floats) -> Floats:
    """Kendall's tau-b of every row, (B,); NaN where a row is constant."""
    step = max(1, CHUNK // x.shape[1] ** 2)
    return np.concatenate([_kendall(x[i : i + step], y[i : i + step]) for i in range(0, len(x), step)])


def _kendall(x: Floats, y: Floats) -> Floats:
    signs_x, signs_y = (np.sign(rows[:, :, None] - rows[:, None, :]) for rows in (x, y))  # (B, n, n)
    scale = np.sqrt((signs_x**2).sum(axis=(1, 2)) * (signs_y**2).sum(axis=(1, 2)))
    return _ratio((signs_x * signs_y).sum(axis=(1, 2)), scale)


def top_quartile_recall(x: Floats, y: Floats) -> Floats:
    """The part of each row's best quarter by y (at least one, rounded up) that is in its best quarter by x, (B,).

    Best is smallest; among equal losses the earlier pair counts as better. By chance it is about a quarter.
    """
    size = math.ceil(x.shape[1] / 4)
    best_x, best_y = (np.argsort(rows, axis=1, kind="stable")[:, :size] for rows in (x, y))
    hits: Floats = (best_x[:, :, None] == best_y[:, None, :]).any(axis=1).mean(axis=1)
    return hits


def bootstrap_pairs(
    x: Floats, y: Floats, statistic: Statistic, confidence: float, seed: int, resamples: int = RESAMPLES
) -> Interval | None:
    """A statistic of n pairs with its percentile interval; None below three pairs or where it isn't defined.

    Resamples on which it isn't defined (all pairs the same) are left out.
    """
    if len(x) < MINIMUM_PAIRS:
        return None
    value = float(statistic(x[None], y[None])[0])
    if math.isnan(value):
        return None
    rows = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    drawn = statistic(x[rows], y[rows])
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn[~np.isnan(drawn)], [tail, 1 - tail])
    return Interval(value=value, low=float(low), high=float(high), confidence=confidence)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)
