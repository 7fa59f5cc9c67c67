"""The target as the proxy's surface, shifted and scaled, plus a deviation of its own (Kennedy & O'Hagan 2000).

Notation: x a configuration in unit coordinates of the target's space, f its loss in units (see `Units`), m the proxy's
surface by its mean, ε what is unknown of it by its covariance. There are two stories of the target:

    it is like the proxy    f(x) = c + (ρ · m + ε)(x + s · e) + δ(x) + noise,    c ~ N(0, C²),  ρ ~ N(1, R²)
    it is like nothing      f(x) = c + δ(x) + noise

where e is the learning rate's axis and δ a Gaussian process with kernel a² · Matérn 5/2. c and ρ are integrated out
exactly. The shift s, the amplitude a, the lengths of δ and the story itself are not fitted but averaged over a grid,
each point with its prior and its evidence: with three results a maximum would be an accident. Where the proxy misleads,
the evidence moves to the second story.

Truncated runs of the target, where there are any, are a third fidelity between the two. Their loss has an offset of its
own, and of the deviation a share k of the variance in common with whole runs, which have the rest to themselves:

    f(x) = … + δ₁(x) + δ₂(x),    truncated(x) = … + δ₁(x),    var δ₁ = k · a²,  var δ₂ = (1 − k) · a²
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.special import logsumexp, ndtr

from understudy.search.gaussian import Array, Marginal, Posterior, distances, matern

OFFSET_SPREAD = 3.0  # C
SCALE_SPREAD = 0.5  # R
AMPLITUDES = (0.03, 0.1, 0.3, 1.0)  # of the deviation from the proxy, in units
AMPLITUDE_PRIOR = (math.log(0.15), 1.0)  # of its logarithm: mean and standard deviation
WIDE = 0.6  # a length in every coordinate, times the square root of their number: what mattered little may matter now
SHIFT_SPREAD = 0.25  # decades of learning rate by which the scale rule may be off: a factor of 1.8
SHIFTS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)  # in SHIFT_SPREADs
SHARED = (0.5, 0.9)  # k
UNLIKE = 0.1  # prior probability that the proxy says nothing
UNLIKE_AMPLITUDES = (0.7, 1.5)
UNLIKE_LENGTHS = (0.3, 0.6)  # times the square root of the number of coordinates
UNLIKE_RATES, FLAT = (0.2, 0.5), 1.2  # where the rate alone decides: its lengths, and the others' likewise
NOISE = (1e-4, 4e-3)  # bounds of a loss's variance, in units; between them it is the surface's
NEGLIGIBLE = math.log(1e-4)  # share of the weight below which a hypothesis is left out


@dataclass(frozen=True)
class Units:
    """Losses in units of the proxy's distance from its best to its median; above the centre they grow like a logarithm.

    So diverged trials don't flatten the rest, and one model holds for both stages.
    """

    centre: float  # nats
    spread: float  # nats

    def of(self, losses: Array) -> Array:
        """Nats to units."""
        plain = (losses - self.centre) / self.spread
        return np.where(plain > 0, np.log1p(np.maximum(plain, 0.0)), plain)

    def nats(self, units: Array) -> Array:
        """Units to nats."""
        plain = np.where(units > 0, np.expm1(np.maximum(units, 0.0)), units)
        return np.asarray(self.centre + self.spread * plain)


@dataclass(frozen=True)
class Hypothesis:
    """One point of the grid. `shift` is in unit coordinates; None in the story without the proxy."""

    shift: float | None
    amplitude: float
    lengths: tuple[float, ...]
    shared: float  # 1 where there are no truncated runs
    log_prior: float


@dataclass(frozen=True)
class _Conditioned:
    """A hypothesis with the target's results in it."""

    hypothesis: Hypothesis
    factor: Array  # (n, n), lower Cholesky factor of the results' covariance
    weights: Array  # (n,)
    proxy: Marginal | None  # the surface at the results' counterparts
    features: Array  # (n,), m there; zeros where it says nothing
    log_weight: float


class TwoFidelity:
    """The model with the target's results: `x` (n, d) in unit coordinates, `f` (n,) in units; there may be none.

    `axis` is the learning rate's coordinate, None where there is none, and `decade` how long a factor of ten is on it.
    `truncated` has the same of the target's truncated runs. Predictions are of whole runs.
    """

    def __init__(
        self,
        surface: Posterior,
        axis: int | None,
        decade: float,
        x: Array,
        f: Array,
        truncated: tuple[Array, Array] | None = None,
    ) -> None:
        short_x, short_f = truncated or (x[:0], f[:0])
        self._surface, self._axis = surface, axis
        self._x, self._f = np.concatenate([short_x, x]), np.concatenate([short_f, f])
        self._short = np.arange(len(self._f)) < len(short_f)
        self._noise = min(max(surface.kernel.noise, NOISE[0]), NOISE[1])
        grid = _grid(surface, axis, decade, SHARED if truncated else (1.0,))
        proxies = {shift: self._proxy(self._x, shift) for shift in {point.shift for point in grid}}
        correlations = self._correlations(self._x, {point.lengths for point in grid})
        prior = self._prior(correlations)
        unknown = {shift: _surface_covariance(each, each, prior) for shift, each in proxies.items()}
        conditioned = [
            self._condition(point, proxies[point.shift], unknown[point.shift], correlations[point.lengths])
            for point in grid
        ]
        logs = np.array([each.log_weight for each in conditioned])
        logs -= logsumexp(logs)
        self._kept = [each for each, log in zip(conditioned, logs, strict=True) if log > NEGLIGIBLE]
        shares = np.exp(logs[logs > NEGLIGIBLE])
        self._shares = shares / shares.sum()

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean and variance (m,) of f at each point."""
        means, variances = self._each(points)
        mean = self._shares @ means
        return mean, self._shares @ (variances + means**2) - mean**2

    def prospects(self, points: Array, level: float) -> tuple[Array, Array]:
        """The mean (m,) of f at each point, and the probability (m,) that it is below a level."""
        means, variances = self._each(points)
        return self._shares @ means, self._shares @ ndtr((level - means) / np.sqrt(variances))

    def shift(self) -> tuple[float, float]:
        """Posterior mean and standard deviation of the learning rate's shift, in unit coordinates."""
        pairs = zip(self._kept, self._shares, strict=True)
        told = [(each.hypothesis.shift, share) for each, share in pairs if each.hypothesis.shift is not None]
        if not told:
            return 0.0, math.inf
        shifts, shares = np.array([shift for shift, _ in told]), np.array([share for _, share in told])
        mean = float(shares @ shifts / shares.sum())
        return mean, math.sqrt(float(shares @ (shifts - mean) ** 2 / shares.sum()))

    def trust(self) -> float:
        """The probability that the target is like the proxy and falls where it falls: ρ > 0."""
        pairs = zip(self._kept, self._shares, strict=True)
        return float(
            math.fsum(share * _chance_of_likeness(each) for each, share in pairs if each.hypothesis.shift is not None)
        )

    def _each(self, points: Array) -> tuple[Array, Array]:
        """Means and variances (kept, m) under each hypothesis."""
        proxies = {shift: self._proxy(points, shift) for shift in {k.hypothesis.shift for k in self._kept}}
        correlations = self._correlations(points, {k.hypothesis.lengths for k in self._kept})
        prior = self._prior(correlations)
        here = {each.hypothesis.shift: each.proxy for each in self._kept}
        across = {shift: _surface_covariance(proxies[shift], each, prior) for shift, each in here.items()}
        found = [
            self._predict(
                each,
                proxies[each.hypothesis.shift],
                across[each.hypothesis.shift],
                correlations[each.hypothesis.lengths],
            )
            for each in self._kept
        ]
        return np.stack([mean for mean, _ in found]), np.stack([variance for _, variance in found])

    def _predict(
        self, each: _Conditioned, proxy: Marginal | None, unknown: Array, correlation: Array
    ) -> tuple[Array, Array]:
        point = each.hypothesis
        m = proxy.mean if proxy is not None else np.zeros(len(correlation))
        whole = np.zeros(len(m), dtype=bool)
        across = _covariance(point, (m, whole), (each.features, self._short), correlation) + unknown
        half = solve_triangular(each.factor, across.T, lower=True, check_finite=False)
        prior = OFFSET_SPREAD**2 + _scale_variance(point) * m**2 + point.amplitude**2
        if proxy is not None:
            prior = prior + proxy.variance
        return m + across @ each.weights, np.maximum(prior - (half**2).sum(axis=0), 1e-10)

    def _condition(self, point: Hypothesis, proxy: Marginal | None, unknown: Array, correlation: Array) -> _Conditioned:
        count = len(self._f)
        m = proxy.mean if proxy is not None else np.zeros(count)
        if not count:
            return _Conditioned(point, np.zeros((0, 0)), m, proxy, m, point.log_prior)
        here = m, self._short
        covariance = _covariance(point, here, here, correlation) + unknown
        factor = cholesky(covariance + self._noise * np.eye(count), lower=True)
        weights = cho_solve((factor, True), self._f - m)
        evidence = -0.5 * float((self._f - m) @ weights) - float(np.log(np.diag(factor)).sum())
        return _Conditioned(point, factor, weights, proxy, m, point.log_prior + evidence)

    def _correlations(self, points: Array, lengths: set[tuple[float, ...]]) -> dict[tuple[float, ...], Array]:
        """Of the points with the results (m, n), by lengths; the surface's are among them."""
        wanted = {_lengths(self._surface), *lengths}
        return {each: matern(distances(points, self._x, np.array(each))) for each in wanted}

    def _prior(self, correlations: Mapping[tuple[float, ...], Array]) -> Array:
        """The surface's covariance before any of the proxy's trials: the same wherever the shift moves both points."""
        return self._surface.kernel.variance * correlations[_lengths(self._surface)]

    def _proxy(self, points: Array, shift: float | None) -> Marginal | None:
        """The surface at the points' counterparts; None in the story without it."""
        if shift is None:
            return None
        moved = points.copy()
        if self._axis is not None:
            moved[:, self._axis] += shift
        return self._surface.at(moved)


def _lengths(surface: Posterior) -> tuple[float, ...]:
    return tuple(surface.kernel.lengths.tolist())


def _surface_covariance(a: Marginal | None, b: Marginal | None, prior: Array) -> Array:
    """Of what is unknown of the surface, ε; `prior` is what it is before any of the proxy's trials."""
    return np.zeros_like(prior) if a is None or b is None else a.covariance(b, prior)


def _chance_of_likeness(each: _Conditioned) -> float:
    """That ρ is positive, by its posterior: a normal distribution."""
    variance, m = SCALE_SPREAD**2, each.features
    mean = 1 + variance * float(m @ each.weights)
    reduced = float((solve_triangular(each.factor, m, lower=True) ** 2).sum()) if len(m) else 0.0
    return float(ndtr(mean / math.sqrt(max(variance - variance**2 * reduced, 1e-12))))


def _scale_variance(point: Hypothesis) -> float:
    return 0.0 if point.shift is None else SCALE_SPREAD**2


def _covariance(
    point: Hypothesis, a: tuple[Array, NDArray[np.bool_]], b: tuple[Array, NDArray[np.bool_]], correlation: Array
) -> Array:
    """Of f at two sets of points, each with the surface's mean m and which are truncated; c, ρ and δ are in it."""
    (m_a, short_a), (m_b, short_b) = a, b
    covariance = _scale_variance(point) * np.outer(m_a, m_b)
    covariance += OFFSET_SPREAD**2 * (short_a[:, None] == short_b)
    shared = np.where(short_a[:, None] | short_b, point.shared, 1.0) if point.shared < 1 else 1.0
    covariance += point.amplitude**2 * shared * correlation
    return np.asarray(covariance)


def _grid(surface: Posterior, axis: int | None, decade: float, shares: tuple[float, ...]) -> list[Hypothesis]:
    """All hypotheses of both stories; `shares` are the values of k."""
    mean, spread = AMPLITUDE_PRIOR
    dimensions = len(surface.kernel.lengths)
    deviations = (_lengths(surface), (WIDE * math.sqrt(dimensions),) * dimensions)
    like = [
        Hypothesis(
            shift=step * SHIFT_SPREAD * decade,
            amplitude=amplitude,
            lengths=lengths,
            shared=shared,
            log_prior=-0.5 * step**2 - 0.5 * ((math.log(amplitude) - mean) / spread) ** 2,
        )
        for step, amplitude, lengths, shared in itertools.product(
            SHIFTS if axis is not None else (0.0,), AMPLITUDES, deviations, shares
        )
    ]
    unlike = [
        Hypothesis(None, amplitude, lengths, shared, 0.0)
        for amplitude, lengths, shared in itertools.product(
            UNLIKE_AMPLITUDES, _unlike_lengths(dimensions, axis), shares
        )
    ]
    return _weighed(like, 1 - UNLIKE) + _weighed(unlike, UNLIKE)


def _unlike_lengths(dimensions: int, axis: int | None) -> list[tuple[float, ...]]:
    """All coordinates alike, or the learning rate alone decisive, as it mostly is in fine-tuning."""
    root = math.sqrt(dimensions)
    found = [(length * root,) * dimensions for length in UNLIKE_LENGTHS]
    if axis is not None:
        found += [tuple(short if i == axis else FLAT * root for i in range(dimensions)) for short in UNLIKE_RATES]
    return found


def _weighed(points: list[Hypothesis], share: float) -> list[Hypothesis]:
    """The same with priors that sum to `share`."""
    total = float(logsumexp([point.log_prior for point in points]))
    return [replace(point, log_prior=point.log_prior - total + math.log(share)) for point in points]
