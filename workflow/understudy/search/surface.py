"""The proxy's response surface: fitted once, in the transfer, and read by every proposal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from understudy.artifacts import Surface
from understudy.hyperparameters import Value
from understudy.search.clusters import embed
from understudy.search.gaussian import Array, Kernel, Posterior, condition, fit
from understudy.search.sequences import sobol_directions
from understudy.search.two_fidelity import Units
from understudy.search.values import rounded
from understudy.space import Choices, Space

MOST = (
    400  # trials in the surface: the time of a fit grows with the cube of their number, of a proposal with the square
)
DIGITS = 9
LOG2_CANDIDATES = 11  # of a proposal's candidates all over the space
RATE, BATCH = "learning_rate", "batch_size"


def make_surface(
    space: Space, images: Sequence[Mapping[str, Value]], losses: Sequence[float | None], batch_factor: float = 1.0
) -> Surface:
    """The surface of the proxy's trials, whose configurations are given as their images on the target.

    A trial without a finite loss counts as bad as the worst one; at least one loss is finite. Of more than `MOST`
    trials the best half of that number is kept and every so many of the rest: it has to be right where the optimum is.
    `batch_factor` says how many times larger the target's best batch is; where the batch size is searched on a log
    scale, the surface is moved along it.
    """
    finite = np.array([loss for loss in losses if loss is not None and math.isfinite(loss)])
    best, median = float(finite.min()), float(np.median(finite))
    units = Units(centre=median, spread=(median - best) or 1.0)
    known = [loss if loss is not None and math.isfinite(loss) else float(finite.max()) for loss in losses]
    x, f = points(space, images), units.of(np.array(known))
    order = np.argsort(f, kind="stable")
    step = max(1, math.ceil(2 * len(f) / MOST))
    chosen = np.sort(np.unique(np.concatenate([order[: MOST // 2], order[::step]]))) if len(f) > MOST else order
    x, f = x[np.sort(chosen)], f[np.sort(chosen)]
    axis, decade = log_axis(space, BATCH)
    if axis is not None:
        x[:, axis] += math.log10(batch_factor) * decade
    kernel = fit(x, f).kernel
    return Surface(
        centre=units.centre,
        spread=units.spread,
        lengths=_plain(kernel.lengths),
        variance=_plain([kernel.variance])[0],
        noise=_plain([kernel.noise])[0],
        points=tuple(_plain(row) for row in x),
        values=_plain(f),
        directions=sobol_directions(len(space), LOG2_CANDIDATES),
    )


def _plain(values: Array | list[float]) -> tuple[float, ...]:
    """Without the digits in which the sums of one thread and of two differ."""
    return tuple(float(rounded(float(value), DIGITS)) for value in values)


def posterior(surface: Surface) -> Posterior:
    """The surface as a process that predicts."""
    kernel = Kernel(np.array(surface.lengths), surface.variance, surface.noise)
    return condition(kernel, np.array(surface.points), np.array(surface.values))


def predicted(surface: Surface, space: Space, values: Mapping[str, Value]) -> float:
    """What the proxy's trials let expect of a configuration of the target's space: the mean, in the proxy's nats."""
    mean = posterior(surface).at(points(space, [values])).mean
    return float(rounded(float(Units(surface.centre, surface.spread).nats(mean)[0])))


def points(space: Space, configurations: Sequence[Mapping[str, Value]]) -> Array:
    """Configurations in unit coordinates (n, d); different choices without an order are 1 apart."""
    return embed(space, configurations, dict.fromkeys(space, 1.0))


def log_axis(space: Space, wanted: str) -> tuple[int | None, float]:
    """A hyperparameter's column in `points`, and how long a factor of ten is on it; None where it has no log scale."""
    parameter = space.get(wanted)
    decades = parameter.decades if parameter is not None else None
    if decades is None:
        return None, 0.0
    before = 0
    for name, other in space.items():
        if name == wanted:
            break
        before += len(other.choices) if isinstance(other, Choices) and not other.ordered else 1
    return before, 1.0 / decades
