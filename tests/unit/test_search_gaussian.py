"""The Gaussian process against scikit-learn's, which has the same kernel."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import norm, rankdata
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.metrics import r2_score
from sklearn.model_selection import cross_val_predict

from understudy.artifacts import Explained
from understudy.search import gaussian
from understudy.search.explained import FEWEST, SAMPLE, cross_validated, normal_scores
from understudy.search.gaussian import Array, Kernel, condition, fit

LENGTHS, VARIANCE, NOISE = np.array([0.3, 0.9, 2.0]), 1.7, 0.01


def data(count: int = 40) -> tuple[Array, Array]:
    generator = np.random.default_rng(1)
    x = generator.random((count, 3))
    return x, np.sin(5 * x[:, 0]) + x[:, 1] ** 2 + 0.05 * generator.standard_normal(count)


def theirs(x: Array, y: Array, noise: float = NOISE) -> GaussianProcessRegressor:
    kernel = ConstantKernel(VARIANCE) * Matern(LENGTHS, nu=2.5)
    return GaussianProcessRegressor(kernel, alpha=noise + gaussian.JITTER, optimizer=None).fit(x, y)


def test_means_and_variances() -> None:
    x, y = data()
    points = np.random.default_rng(2).random((20, 3)) * 1.5
    means, variances = condition(Kernel(LENGTHS, VARIANCE, NOISE), x, y).predict(points)
    expected, spreads = theirs(x, y).predict(points, return_std=True)
    assert means == pytest.approx(expected, rel=1e-9)
    assert variances == pytest.approx(spreads**2, rel=1e-7)


def test_covariances_between_points() -> None:
    x, y = data()
    points = np.random.default_rng(2).random((12, 3))
    process = condition(Kernel(LENGTHS, VARIANCE, NOISE), x, y)
    expected = theirs(x, y).predict(points, return_cov=True)[1]
    assert process.at(points[:5]).covariance(process.at(points)) == pytest.approx(expected[:5], rel=1e-6, abs=1e-9)


def arguments() -> tuple[Array, Array, Array, Array]:
    x, y = data()
    centre, spread = np.array([-0.5, 0.0, 0.5, 0.0, -5.0]), np.array([1.0, 1.0, 1.0, 1.0, 1.5])
    return (x[:, None, :] - x[None, :, :]) ** 2, y, centre, spread


def test_the_density_is_the_likelihood_and_the_prior() -> None:
    squares, y, centre, spread = arguments()
    logs = np.log([*LENGTHS, VARIANCE, NOISE])
    found = gaussian._negative_log_density(logs, squares, y, centre, spread)[0]
    model = theirs(*data())
    likelihood = model.log_marginal_likelihood_value_ + len(y) / 2 * np.log(2 * np.pi)
    assert found == pytest.approx(-likelihood + 0.5 * (((logs - centre) / spread) ** 2).sum(), rel=1e-9)


def test_the_gradient() -> None:
    logs = np.log([*LENGTHS, VARIANCE, NOISE])
    exact = gaussian._negative_log_density(logs, *arguments())[1]
    near = approx_fprime(logs, lambda at: gaussian._negative_log_density(at, *arguments())[0], 1e-6)
    assert exact == pytest.approx(near, rel=1e-4, abs=1e-4)


@pytest.mark.filterwarnings("ignore:The optimal value found for dimension 2:sklearn.exceptions.ConvergenceWarning")
def test_a_fit_predicts_about_as_well_as_theirs() -> None:
    x, y = data(40)  # with many more points the priors, which are there for few, still show
    points = np.random.default_rng(3).random((200, 3))
    truth = np.sin(5 * points[:, 0]) + points[:, 1] ** 2
    kernel = ConstantKernel() * Matern(np.ones(3), nu=2.5) + WhiteKernel(0.01)
    other = GaussianProcessRegressor(kernel, n_restarts_optimizer=3, random_state=0).fit(x, y)
    ours = np.abs(fit(x, y).predict(points)[0] - truth).mean()
    assert ours < 1.2 * np.abs(other.predict(points) - truth).mean()


def test_what_matters_has_shorter_lengths_than_what_does_not() -> None:
    x, y = data(80)
    lengths = fit(x, y).kernel.lengths
    assert lengths[0] < lengths[1] < lengths[2]


def test_the_same_twice() -> None:
    x, y = data()
    first, again = fit(x, y).kernel, fit(x.copy(), y.copy()).kernel
    assert first.lengths.tolist() == again.lengths.tolist()
    assert (first.variance, first.noise) == (again.variance, again.noise)


def test_normal_scores_are_those_of_the_ranks() -> None:
    values = np.array([3.0, 1.0, 1.0, 900.0, 2.0])
    assert normal_scores(values) == pytest.approx(norm.ppf((rankdata(values) - 0.5) / 5))


@pytest.mark.filterwarnings("ignore:The optimal value found:sklearn.exceptions.ConvergenceWarning")
def test_a_cross_validation_agrees_with_theirs() -> None:
    generator = np.random.default_rng(5)
    x = generator.random((48, 3))
    z = norm.ppf((rankdata(np.sin(5 * x[:, 0]) + x[:, 1] ** 2 + 0.1 * generator.standard_normal(48)) - 0.5) / 48)
    kernel = ConstantKernel() * Matern(np.ones(3), nu=2.5) + WhiteKernel(0.01)
    theirs = cross_val_predict(GaussianProcessRegressor(kernel, random_state=0), x, z, cv=8)
    found = cross_validated(x, np.exp(z))
    assert found is not None
    assert found.value == pytest.approx(r2_score(z, theirs), abs=0.05)
    assert found.value > 0.8
    assert found.trials == 48


def test_noise_is_told_from_a_surface() -> None:
    generator = np.random.default_rng(6)
    x = generator.random((2 * SAMPLE, 5))
    found = [cross_validated(x[:40], generator.standard_normal(40)) for _ in range(20)]
    assert sum(each is not None and each.value <= 0 for each in found) >= 16
    assert cross_validated(x, np.full(len(x), 0.1)) == Explained(value=0.0, trials=SAMPLE)
    assert cross_validated(x[: FEWEST - 1], x[: FEWEST - 1, 0]) is None


def test_losses_far_off_do_not_hide_a_surface() -> None:
    generator = np.random.default_rng(7)
    for _ in range(10):
        x = generator.random((24, 6))
        losses = 2 + (x[:, 0] - 0.4) ** 2 + 0.1 * x[:, 1] + 0.005 * generator.standard_normal(24)
        losses[np.argmax(x[:, 0])] = 8.0
        found = cross_validated(x, losses)
        assert found is not None
        assert found.value > 0
