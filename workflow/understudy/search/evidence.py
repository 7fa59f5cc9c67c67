"""Where the best trials lie along one hyperparameter, compared with chance.

Notation: n trials, of which k are top; P resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 999


@dataclass(frozen=True)
class Location:
    """How far the top trials' values are from the others', from 0 (alike) to 1 (apart), and its p value."""

    distance: float
    p: float
    name: str  # of the statistic


def locate(coordinates: NDArray[np.float64], top: NDArray[np.bool_], ordered: bool, seed: int) -> Location:
    """Compare `coordinates[top]` with the others by a permutation test; both shape (n,).

    Kolmogorov and Smirnov's distance between the two distributions where values are ordered, else the total
    variation distance. p = (1 + resamples at least as far apart) / (1 + P), Phipson & Smyth 2010, so it is never 0.
    """
    name = "KS distance" if ordered else "total variation"
    if top.all() or not top.any():
        return Location(0.0, 1.0, name)
    generator = np.random.default_rng(seed)
    shuffled = generator.permuted(np.tile(top, (RESAMPLES, 1)), axis=1)  # (P, n)
    distances = _distances(coordinates, np.vstack([top[None, :], shuffled]), ordered)  # (P + 1,)
    observed = float(distances[0])
    at_least = int((distances[1:] >= observed - 1e-12).sum())
    return Location(observed, (1 + at_least) / (1 + RESAMPLES), name)


def _distances(coordinates: NDArray[np.float64], labels: NDArray[np.bool_], ordered: bool) -> NDArray[np.float64]:
    """The distance under each row of labels: (rows, n) to (rows,)."""
    order = np.argsort(coordinates, kind="stable")
    values, sorted_labels = coordinates[order], labels[:, order]
    weights = np.where(
        sorted_labels,
        1 / sorted_labels.sum(axis=1, keepdims=True),
        -1 / (~sorted_labels).sum(axis=1, keepdims=True),
    )  # (rows, n)
    last = np.append(values[1:] != values[:-1], True)  # the last of each group of equal values
    cumulative = np.cumsum(weights, axis=1)[:, last]  # (rows, distinct values)
    if ordered:
        return np.asarray(np.abs(cumulative).max(axis=1))
    differences = np.diff(cumulative, axis=1, prepend=0.0)
    return np.asarray(np.abs(differences).sum(axis=1) / 2)
