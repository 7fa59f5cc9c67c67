"""The gain of the winner over the default configuration, with its uncertainty over examples and seeds.

Notation: B resamples, S seeds, E examples. The loss of a configuration is the mean over its seeds of
(summed nats over all completion tokens) / (number of completion tokens).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from understudy.artifacts import Interval
from understudy.trial import derive_seed

CHUNK = 500  # resamples drawn at a time; bounds memory at CHUNK x E

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Gain:
    """Losses in nats per token, and default minus winner; None where there is no default to compare with."""

    winner: Interval
    default: Interval | None
    gain: Interval | None


def bootstrap_gain(
    losses: Mapping[str, Sequence[float]],
    tokens: Sequence[int],
    winner: Sequence[str],
    default: Sequence[str],
    samples: int,
    confidence: float,
    seed: int,
) -> Gain:
    """Percentile bootstrap over examples and seeds.

    `losses` maps a trained model to its (E,) summed losses, all on the same examples with `tokens` completion tokens;
    `winner` and `default` name the models of each configuration's seeds. Examples are resampled jointly for both,
    seeds for each on its own. Where both are one configuration their gain is 0 without uncertainty; without a default
    (all of its seeds failed) there is none. The intervals hold for new examples like these and for new seeds; with
    few seeds the latters' share is underestimated.
    """
    generator = np.random.default_rng(derive_seed(seed, "bootstrap", "gain"))
    won = np.array([losses[name] for name in winner], dtype=np.float64)
    base = np.array([losses[name] for name in default], dtype=np.float64).reshape(-1, len(tokens))
    counts = np.asarray(tokens, dtype=np.float64)
    same = set(winner) == set(default)
    won_means: list[Floats] = []
    base_means: list[Floats] = []
    for start in range(0, samples, CHUNK):
        size = min(CHUNK, samples - start)
        weights = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=size).astype(float)
        won_means.append(_resampled(won, counts, weights, generator))
        if len(base):
            base_means.append(won_means[-1] if same else _resampled(base, counts, weights, generator))
    won_value, won_all = _loss(won, counts), np.concatenate(won_means)
    winner_interval = _interval(won_value, won_all, confidence)
    if not len(base):
        return Gain(winner=winner_interval, default=None, gain=None)
    base_value, base_all = _loss(base, counts), np.concatenate(base_means)
    return Gain(
        winner=winner_interval,
        default=_interval(base_value, base_all, confidence),
        gain=_interval(base_value - won_value, base_all - won_all, confidence),
    )


def _loss(losses: Floats, tokens: Floats) -> float:
    return float((losses.sum(axis=1) / tokens.sum()).mean())


def _resampled(losses: Floats, tokens: Floats, weights: Floats, generator: np.random.Generator) -> Floats:
    """Losses of resampled examples (weights: (B, E)) and resampled seeds, shape (B,)."""
    per_seed = (weights @ losses.T) / (weights @ tokens)[:, None]  # (B, S)
    seeds = losses.shape[0]
    picks = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(weights))  # (B, S)
    resampled: Floats = (per_seed * picks).sum(axis=1) / seeds
    return resampled


def _interval(value: float, resampled: Floats, confidence: float) -> Interval:
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value=value, low=float(low), high=float(high), confidence=confidence)
