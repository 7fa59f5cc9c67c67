"""Rotary positions (Su et al. 2021) for queries and keys of the whole row of tokens at once.

Notation: D a head's size. A head's first and second half x1, x2 turn by the position's angles: (x1 cos - x2 sin,
x2 cos + x1 sin). Written as x · cos + swap(x) · sin with the halves swapped and the sign in the sines, every head and
token is one elementwise product.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from understudy.train.packed.base import Base


class Rotary:
    """Cosines and signed sines of all positions below `longest`, for as many heads as queries and keys have."""

    def __init__(self, base: Base, longest: int) -> None:
        self._half = base.head_size // 2
        cosines, sines = base.rotary_table(longest)  # (T, D)
        signed = torch.cat([-sines[:, : self._half], sines[:, self._half :]], 1)
        self._tables = tuple(
            table.repeat(1, heads).to(base.embedding.dtype)
            for heads in (base.heads, base.key_heads)
            for table in (cosines, signed)
        )
        self._shared = base.heads == base.key_heads

    def at(self, positions: Tensor) -> tuple[Tensor, ...]:
        """The factors (N, heads · D) of queries, then of keys: cosines and sines each."""
        pick = partial(torch.index_select, dim=0, index=positions)
        queries = tuple(pick(table) for table in self._tables[:2])
        return queries + (queries if self._shared else tuple(pick(table) for table in self._tables[2:]))

    def turn(self, query: Tensor, key: Tensor, factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Queries and keys (N, heads · D) turned by their positions."""
        query_cosines, query_sines, key_cosines, key_sines = factors
        return (
            (query * query_cosines).addcmul_(self._swapped(query), query_sines),
            (key * key_cosines).addcmul_(self._swapped(key), key_sines),
        )

    def turn_back(self, dquery: Tensor, dkey: Tensor, factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The gradients before the turn from those after it."""
        query_cosines, query_sines, key_cosines, key_sines = factors
        return (
            (dquery * query_cosines).add_(self._swapped(dquery * query_sines)),
            (dkey * key_cosines).add_(self._swapped(dkey * key_sines)),
        )

    def _swapped(self, x: Tensor) -> Tensor:
        """Each head's halves swapped."""
        return x.view(-1, 2 * self._half).roll(self._half, 1).view_as(x)
