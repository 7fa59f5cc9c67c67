"""Whether the proxy's losses follow its hyperparameters at all: a cross-validation of the surface."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from understudy.artifacts import Explained
from understudy.search.gaussian import Array, fit
from understudy.search.values import rounded

PARTS = 8  # of the trials, of which each in turn is predicted from the others
FEWEST = 24  # trials: with 16, in ten dimensions, a third of the proxies that agree would come out below 0
SAMPLE = 96  # trials that are predicted at most, spread evenly over the losses: every part has a fit of its own
DIGITS = 3


def cross_validated(x: Array, losses: Array) -> Explained | None:
    """How well losses (n,) at points x (n, d) are predicted by surfaces that were fitted without them.

    R² = 1 - Σ (z - prediction)² / Σ (z - mean of the others)², where z are the losses' normal scores, so that a few
    losses far off don't decide: 1 is perfect, and 0 as good as no surface at all, as it comes out where noise decides.
    None where fewer than `FEWEST` trials would tell.
    """
    if len(losses) < FEWEST:
        return None
    order = np.argsort(losses, kind="stable")
    order = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), SAMPLE)).round().astype(int))]
    x, z = x[order], normal_scores(losses[order])
    part = np.arange(len(z)) % PARTS
    wrong = unknown = 0.0
    for number in range(PARTS):
        left = part == number
        wrong += float(((z[left] - fit(x[~left], z[~left]).predict(x[left])[0]) ** 2).sum())
        unknown += float(((z[left] - z[~left].mean()) ** 2).sum())
    value = float(rounded(1 - wrong / unknown, DIGITS)) if unknown > 0 else 0.0
    return Explained(value=value, trials=len(z))


def normal_scores(values: Array) -> Array:
    """What a sample of a standard normal distribution has at these values' ranks (n,); equal ones share their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(ndtri((ranks[place] - 0.5) / len(values)))
