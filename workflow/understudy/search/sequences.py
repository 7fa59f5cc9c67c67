"""Trials that need no model: uniform and quasi-random points of the space.

The i-th trial of an origin follows from (seed, origin, i) alone, so a longer list begins with the shorter one.
"""

from __future__ import annotations

import random

from understudy.hyperparameters import Value
from understudy.search.values import from_unit
from understudy.space import Space
from understudy.trial import derive_seed


def uniform(space: Space, seed: int, index: int) -> dict[str, Value]:
    """The `index`-th independent draw, uniform in unit coordinates."""
    generator = random.Random(derive_seed(seed, "random", index))
    return from_unit(space, [generator.random() for _ in space])


def sobol(space: Space, seed: int, first: int, count: int) -> list[dict[str, Value]]:
    """Points `first` to `first + count - 1` of a scrambled Sobol sequence (Owen 1998), by scipy.

    Whole blocks of a power of two are generated and cut, so that any count is served: the sequence is balanced
    only at powers of two, which a study may choose or not.
    """
    from scipy.stats import qmc

    engine = qmc.Sobol(len(space), scramble=True, rng=derive_seed(seed, "sobol"))
    points = engine.random_base2((first + count - 1).bit_length() if first + count > 1 else 0)
    return [from_unit(space, point.tolist()) for point in points[first : first + count]]
