"""Trials that need no model: uniform and quasi-random points of the space; and a sampler's candidates.

The i-th trial of an origin follows from (seed, origin, i) alone, so a longer list begins with the shorter one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from understudy.hyperparameters import Value
from understudy.search.values import from_unit, from_units
from understudy.space import Space
from understudy.trial import derive_seed

BITS = 30  # of a Sobol point's coordinate, as scipy has them


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
    return from_units(space, points[first : first + count].T.tolist())


def sobol_directions(dimensions: int, log2_count: int) -> tuple[tuple[int, ...], ...]:
    """Direction numbers (dimensions, log2_count) of the first 2^log2_count Sobol points (Joe & Kuo 2008), by scipy.

    Point 2^k - 1 of the plain sequence is the k-th number of each coordinate, since the Gray code of its index has that
    bit alone.
    """
    from scipy.stats import qmc

    points = qmc.Sobol(dimensions, scramble=False, bits=BITS).random_base2(log2_count)
    numbers = points[2 ** np.arange(1, log2_count + 1) - 1] * 2**BITS
    return tuple(tuple(row) for row in numbers.astype(np.int64).T.tolist())


def scrambled_sobol(directions: Sequence[Sequence[int]], generator: np.random.Generator) -> NDArray[np.float64]:
    """The points (2^log2_count, dimensions) that `scipy.stats.qmc.Sobol(dimensions, rng=generator)` draws, bit for bit.

    A random lower triangular matrix mixes the digits of each direction number, and a random shift is added to all
    points (Matousek 1998), both from a child of the generator. scipy.stats takes long to import, so a proposal has the
    directions, which depend on nothing but their shape, from the transfer.
    """
    numbers = np.array(directions, dtype=np.int64)
    child = generator.spawn(1)[0]
    powers, size = 2 ** np.arange(BITS), len(numbers)
    shift = child.integers(2, size=(size, BITS), dtype=np.uint32) @ powers
    below = np.tril(child.integers(2, size=(size, BITS, BITS), dtype=np.uint32), -1)
    mixing = below.astype(np.int64) + np.eye(BITS, dtype=np.int64)
    digits = (numbers[:, :, None] >> np.arange(BITS)[::-1]) & 1  # the most significant first
    mixed = (digits @ mixing.transpose(0, 2, 1)) % 2 @ powers[::-1]
    points = shift[None, :]
    for direction in mixed.T:  # in the order of the Gray code
        points = np.concatenate([points, points[::-1] ^ direction])
    return np.asarray(points * 2.0**-BITS)
