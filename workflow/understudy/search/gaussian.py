"""Gaussian process regression with few dimensions and at most some thousand points.

Notation: n points x (n, d) in unit coordinates, losses y (n,), lengths l (d,). Kernel: Matérn 5/2 with a length per
dimension (Rasmussen & Williams 2006, equation 4.17), v · m(r), r² = Σ (x_i - x'_i)² / l_i², and a noise variance s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

Array = NDArray[np.float64]

# Priors on the logarithms, mean and standard deviation. Lengths grow with the square root of the number of dimensions
# (Hvarfner et al. 2024): otherwise nothing could be learnt from few points in many dimensions.
LENGTH = (math.log(0.5), 1.0)
VARIANCE = (0.0, 1.0)
NOISE = (math.log(1e-3), 1.5)
JITTER = 1e-8
BLOCK = 32768  # numbers at a time: a few arrays of them fit a processor's cache, whole matrices don't


@dataclass(frozen=True)
class Kernel:
    """A kernel and its noise, for standardized losses."""

    lengths: Array  # (d,)
    variance: float
    noise: float

    def between(self, a: Array, b: Array) -> Array:
        """Covariances (n, m) without noise."""
        covariance = matern(distances(a, b, self.lengths))
        covariance *= self.variance
        return covariance


@dataclass(frozen=True)
class Marginal:
    """A fitted process at some points (m, d): their means (m,), and what makes the covariance with other points."""

    kernel: Kernel
    points: Array
    mean: Array
    half: Array  # (n, m), factor^-1 · covariance of data and points

    @property
    def variance(self) -> Array:
        """(m,), without noise."""
        return np.asarray(np.maximum(self.kernel.variance - (self.half**2).sum(axis=0), 1e-12))

    def covariance(self, other: Marginal, prior: Array | None = None) -> Array:
        """With the process at other points, given the same data (m, other's m).

        `prior` is the kernel's covariance alone, if already known: it stays the same when both sets are moved alike.
        """
        known = self.kernel.between(self.points, other.points) if prior is None else prior
        return np.asarray(known - self.half.T @ other.half)


@dataclass(frozen=True)
class Posterior:
    """A fitted process."""

    kernel: Kernel
    x: Array  # (n, d)
    factor: Array  # (n, n), lower Cholesky factor of the covariance
    weights: Array  # (n,), covariance^-1 · (y - mean)
    mean: float

    def at(self, points: Array) -> Marginal:
        """What is known of the function at some points (m, d)."""
        across = self.kernel.between(points, self.x)
        half = solve_triangular(self.factor, across.T, lower=True, check_finite=False)
        return Marginal(self.kernel, points, self.mean + across @ self.weights, half)

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Means and variances (m,) without noise."""
        found = self.at(points)
        return found.mean, found.variance


def distances(a: Array, b: Array, lengths: Array) -> Array:
    """Scaled distances r (n, m)."""
    first, second = a / lengths, b / lengths
    found = np.asarray(2 * first @ second.T)
    of_first, of_second = (first**2).sum(axis=1)[:, None], (second**2).sum(axis=1)
    rows = max(1, BLOCK // max(1, len(b)))
    for start in range(0, len(a), rows):
        block = found[start : start + rows]
        np.subtract(of_first[start : start + rows] + of_second, block, out=block)
        np.sqrt(np.maximum(block, 0.0, out=block), out=block)
    return found


def matern(r: Array) -> Array:
    """m(r) = (1 + √5 r + 5 r² / 3) · exp(-√5 r), 1 at 0."""
    flat = r.reshape(-1)
    found = np.empty_like(flat)
    for start in range(0, len(flat), BLOCK):
        block = found[start : start + BLOCK]
        scaled = math.sqrt(5) * flat[start : start + BLOCK]
        np.square(scaled, out=block)
        block /= 3
        block += 1 + scaled
        block *= np.exp(-scaled)
    return found.reshape(r.shape)


def condition(kernel: Kernel, x: Array, y: Array, mean: float = 0.0) -> Posterior:
    """The process given its points."""
    covariance = kernel.between(x, x) + (kernel.noise + JITTER) * np.eye(len(x))
    factor = cholesky(covariance, lower=True)
    return Posterior(kernel, x, factor, cho_solve((factor, True), y - mean), mean)


def fit(x: Array, y: Array) -> Posterior:
    """The process with the kernel of largest posterior density, found by L-BFGS from two starting points.

    `y` should be standardized. Deterministic.
    """
    from scipy.optimize import minimize  # takes long to import, and proposals have nothing to fit

    dimensions = x.shape[1]
    prior_mean = np.array([*[LENGTH[0] + 0.5 * math.log(dimensions)] * dimensions, VARIANCE[0], NOISE[0]])
    prior_spread = np.array([*[LENGTH[1]] * dimensions, VARIANCE[1], NOISE[1]])
    squares = (x[:, None, :] - x[None, :, :]) ** 2  # (n, n, d)
    bounds = list(zip(prior_mean - 4 * prior_spread, prior_mean + 4 * prior_spread, strict=True))
    starts = (prior_mean, prior_mean - np.array([*[1.0] * dimensions, 0.0, -2.0]))
    arguments = squares, y, prior_mean, prior_spread
    found = [minimize(_negative_log_density, start, arguments, "L-BFGS-B", True, bounds=bounds) for start in starts]
    best = min(found, key=lambda result: float(result.fun))
    logs = np.asarray(best.x)
    kernel = Kernel(np.exp(logs[:dimensions]), math.exp(logs[-2]), math.exp(logs[-1]))
    return condition(kernel, x, y)


def _negative_log_density(
    logs: Array, squares: Array, y: Array, prior_mean: Array, prior_spread: Array
) -> tuple[float, Array]:
    """Of the data and the priors, up to a constant, with its gradient by the logarithms."""
    dimensions = squares.shape[2]
    inverse_squares = np.exp(-2 * logs[:dimensions])
    variance, noise = math.exp(logs[-2]), math.exp(logs[-1])
    scaled = math.sqrt(5) * np.sqrt(np.maximum(squares @ inverse_squares, 0.0))
    decay = np.exp(-scaled)
    correlation = (1 + scaled + scaled**2 / 3) * decay
    covariance = variance * correlation + (noise + JITTER) * np.eye(len(y))
    try:
        factor = cholesky(covariance, lower=True)
    except np.linalg.LinAlgError:
        return 1e25, np.zeros_like(logs)
    weights = cho_solve((factor, True), y)
    difference = np.outer(weights, weights) - cho_solve((factor, True), np.eye(len(y)))  # twice the gradient by K
    slope = variance * 5 / 3 * (1 + scaled) * decay  # dK / d(log l_i) = slope · squares_i / l_i²
    gradient = np.array(
        [
            *(0.5 * np.einsum("ij,ijk->k", difference * slope, squares) * inverse_squares),
            0.5 * variance * float((difference * correlation).sum()),
            0.5 * noise * float(np.trace(difference)),
        ]
    )
    offset = (logs - prior_mean) / prior_spread
    density = -0.5 * y @ weights - np.log(np.diag(factor)).sum() - 0.5 * offset @ offset
    return -float(density), -(gradient - offset / prior_spread)
