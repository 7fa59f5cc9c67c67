"""What the model of the target learns from the proxy, and how it unlearns it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm, spearmanr

from understudy.search import two_fidelity
from understudy.search.gaussian import Array, Posterior, fit, matern
from understudy.search.two_fidelity import NOISE, TwoFidelity, Units

AXIS, DECADE = 0, 1 / 3  # the first coordinate is three decades of learning rate
NOTHING = np.zeros((0, 2)), np.zeros(0)


def bowl(x: Array, where: float = 0.5) -> Array:
    """Losses in units with the best, -1, at `where` on the rate's axis."""
    return np.asarray(-1 + 8 * (x[:, 0] - where) ** 2 + (x[:, 1] - 0.3) ** 2)


def elsewhere(x: Array) -> Array:
    """Losses that have nothing to do with the bowl's."""
    return np.asarray(np.sin(7 * x[:, 1]) - 2 * x[:, 0])


def surface(count: int = 40) -> Posterior:
    x = np.random.default_rng(1).random((count, 2))
    return fit(x, bowl(x))


def grid() -> Array:
    line = np.linspace(0, 1, 21)
    return np.array([[a, b] for a in line for b in line])


def model(x: Array, f: Array) -> TwoFidelity:
    return TwoFidelity(surface(), AXIS, DECADE, x, f)


def test_without_results_the_proxy_decides() -> None:
    means, _ = model(*NOTHING).predict(grid())
    assert spearmanr(means, bowl(grid())).statistic > 0.95
    assert grid()[np.argmin(means)] == pytest.approx([0.5, 0.3], abs=0.1)


def test_results_are_met_and_their_offset_is_learnt() -> None:
    x = grid()[::40]
    means, variances = model(x, bowl(x) + 2.5).predict(grid())
    assert means == pytest.approx(bowl(grid()) + 2.5, abs=0.2)
    assert variances.max() < 0.1
    assert means[::40] == pytest.approx(bowl(x) + 2.5, abs=0.05)


def test_the_shift_of_the_rate_is_learnt() -> None:
    x = np.array([[0.35, 0.3], [0.5, 0.3], [0.65, 0.3], [0.5, 0.6]])
    moved = model(x, bowl(x, 0.65))
    mean, spread = moved.shift()
    assert mean == pytest.approx(-0.15, abs=0.05)  # the counterpart on the proxy lies lower
    assert spread < 0.1
    assert grid()[np.argmin(moved.predict(grid())[0])][0] == pytest.approx(0.65, abs=0.051)
    assert moved.trust() > 0.9


def test_a_misleading_proxy_is_found_out() -> None:
    x = np.random.default_rng(2).random((12, 2))
    inverted = model(x, -3 * bowl(x))
    assert inverted.trust() < 0.01
    assert spearmanr(inverted.predict(grid())[0], -bowl(grid())).statistic > 0.8
    unrelated = model(x, elsewhere(x))
    assert unrelated.trust() < 0.3
    assert spearmanr(unrelated.predict(grid())[0], elsewhere(grid())).statistic > 0.8


def test_trust_is_the_prior_without_results_and_grows_with_agreement() -> None:
    assert model(*NOTHING).trust() == pytest.approx((1 - two_fidelity.UNLIKE) * norm.cdf(1 / two_fidelity.SCALE_SPREAD))
    x = grid()[::60]
    assert model(x, bowl(x)).trust() > 0.99


def test_the_chance_is_that_of_the_mixture() -> None:
    x = grid()[::90]
    made = model(x, bowl(x))
    points, level = grid()[::7], -0.9
    generator = np.random.default_rng(3)
    centres, variances = made._each(points)
    chosen = generator.choice(len(made._shares), size=20_000, p=made._shares)
    draws = centres[chosen] + np.sqrt(variances[chosen]) * generator.standard_normal((20_000, len(points)))
    means, chances = made.prospects(points, level)
    assert chances == pytest.approx((draws < level).mean(axis=0), abs=0.015)
    assert means == pytest.approx(draws.mean(axis=0), abs=0.05)


def test_evidence_and_predictions_are_those_of_the_joint_normal() -> None:
    """One hypothesis, written out: c and ρ as latent normals, by scipy's density."""
    x = np.random.default_rng(4).random((6, 2))
    f = bowl(x) + 0.1
    made = model(x, f)
    point = next(each for each in made._kept if each.hypothesis.shift is not None)
    moved = x + np.array([point.hypothesis.shift, 0.0])
    proxy = surface().at(moved)
    m = proxy.mean
    correlation = matern(
        np.sqrt((((x[:, None] - x[None]) / np.array(point.hypothesis.lengths)) ** 2).sum(axis=2).clip(0))
    )
    features = np.stack([np.ones(6), m], axis=1) * [two_fidelity.OFFSET_SPREAD, two_fidelity.SCALE_SPREAD]
    covariance = features @ features.T + point.hypothesis.amplitude**2 * correlation
    covariance += proxy.covariance(proxy) + made._noise * np.eye(6)
    expected = multivariate_normal(m, covariance).logpdf(f) + 3 * math.log(2 * math.pi)
    assert point.log_weight - point.hypothesis.log_prior == pytest.approx(expected, rel=1e-6)


def test_the_noise_is_bounded() -> None:
    """The same surface, but for what its fit says of the noise."""
    x, fitted = grid()[::60], surface()
    kernels = [replace(fitted.kernel, noise=noise) for noise in (1e-9, NOISE[0], NOISE[1], 1.0)]
    models = [TwoFidelity(replace(fitted, kernel=kernel), AXIS, DECADE, x, bowl(x)) for kernel in kernels]
    means = [each.predict(grid())[0].tolist() for each in models]
    assert means[0] == means[1]
    assert means[2] == means[3]
    assert means[1] != means[2]


def test_units_put_the_best_at_minus_one_and_tame_divergence() -> None:
    told = Units(centre=3.0, spread=0.5).of(np.array([2.5, 3.0, 3.5, 100.0]))
    assert told[:2] == pytest.approx([-1, 0])
    assert told[2] == pytest.approx(math.log(2))
    assert told[3] < 6


def test_priors_sum_to_one() -> None:
    for axis in (AXIS, None):
        points = two_fidelity._grid(surface(), axis, DECADE, two_fidelity.SHARED)
        assert math.fsum(math.exp(point.log_prior) for point in points) == pytest.approx(1)


def test_truncated_runs_say_where_to_look_and_nothing_of_the_level() -> None:
    x = np.random.default_rng(5).random((16, 2))
    cut = x, elsewhere(x) + 2.0
    alone = TwoFidelity(surface(), AXIS, DECADE, *NOTHING, cut)
    assert spearmanr(alone.predict(grid())[0], elsewhere(grid())).statistic > 0.8
    assert alone.predict(grid())[1].min() > 4  # the offset of whole runs is as open as before
    both = TwoFidelity(surface(), AXIS, DECADE, x[:2], elsewhere(x[:2]) - 1.0, cut)
    assert both.predict(x[2:])[0] == pytest.approx(elsewhere(x[2:]) - 1.0, abs=0.4)


def test_truncated_runs_that_mislead_are_overruled() -> None:
    x = np.random.default_rng(6).random((14, 2))
    made = TwoFidelity(surface(), AXIS, DECADE, x, bowl(x), (x[:8], elsewhere(x[:8])))
    assert spearmanr(made.predict(grid())[0], bowl(grid())).statistic > 0.8


def test_truncated_and_whole_runs_are_jointly_normal() -> None:
    """One hypothesis, its covariance written out pair by pair, by scipy's density."""
    x, count = np.random.default_rng(7).random((7, 2)), 3
    f = elsewhere(x)
    made = TwoFidelity(surface(), AXIS, DECADE, x[count:], f[count:], (x[:count], f[:count]))
    point = next(each for each in made._kept if each.hypothesis.shift is None)
    assert point.hypothesis.shared in two_fidelity.SHARED
    covariance = made._noise * np.eye(7)
    for i in range(7):
        for j in range(7):
            r = np.linalg.norm((x[i] - x[j]) / np.array(point.hypothesis.lengths))
            common = 1.0 if i >= count and j >= count else point.hypothesis.shared
            covariance[i, j] += common * point.hypothesis.amplitude**2 * matern(np.array(r))
            covariance[i, j] += two_fidelity.OFFSET_SPREAD**2 * ((i < count) == (j < count))
    expected = multivariate_normal(np.zeros(7), covariance).logpdf(f) + 3.5 * math.log(2 * math.pi)
    assert point.log_weight - point.hypothesis.log_prior == pytest.approx(expected, rel=1e-6)


def test_units_go_back_to_nats() -> None:
    units, losses = Units(centre=3.0, spread=0.5), np.array([1.0, 2.5, 3.0, 3.5, 100.0])
    assert units.nats(units.of(losses)) == pytest.approx(losses)
    assert units.nats(np.array([-1.0, 0.0])).tolist() == [2.5, 3.0]
