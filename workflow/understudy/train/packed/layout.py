"""Where the weights of a trial's adapter lie in one flat vector.

Notation: a *site* is a linear layer of the base, a *group* holds the sites that read the same input (queries, keys and
values, say). r is a rank, G the number of a group's sites that the trial adapts.

For each group the vector holds the A matrices of its adapted sites one below the other, (G * r, in), so that one
product applies them all; then for each site the transpose of B, (r, out). Matrices are contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

ALIGNMENT = 16  # floats: matrices and vectors begin where a vector register of 64 bytes may be loaded


@dataclass(frozen=True)
class Site:
    """A linear layer of the base."""

    name: str  # of the module, as in `named_modules`
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Group:
    """Sites that read the same input."""

    sites: tuple[Site, ...]

    @property
    def inputs(self) -> int:
        return self.sites[0].inputs


@dataclass(frozen=True)
class GroupWeights:
    """One group's matrices of one trial, as views of a flat vector."""

    a: Tensor  # (G * r, in)
    b: tuple[Tensor, ...]  # for each adapted site (r, out)


@dataclass(frozen=True)
class Layout:
    """The flat vector of an adapter of rank `rank` on the sites named in `adapted`."""

    groups: tuple[Group, ...]
    rank: int
    adapted: frozenset[str]

    @cached_property
    def sites(self) -> tuple[tuple[int, ...], ...]:
        """For each group, which of its sites are adapted, by their index in the group."""
        return tuple(
            tuple(index for index, site in enumerate(group.sites) if site.name in self.adapted) for group in self.groups
        )

    @cached_property
    def size(self) -> int:
        """Floats in the vector, gaps of the alignment included."""
        return self._plan[1]

    def views(self, vector: Tensor) -> tuple[GroupWeights, ...]:
        """Each group's matrices as views of `vector` (…, at least `size`); leading dimensions stay."""

        def view(place: _Place) -> Tensor:
            start, height, width = place
            part = vector[..., start : start + height * width]
            return part.view(*part.shape[:-1], height, width)

        return tuple(GroupWeights(view(a), tuple(view(place) for place in b)) for a, b in self._plan[0])

    def moved(self, vector: Tensor, to: Layout) -> Tensor:
        """The same adapter (size,) in another layout of these groups; what this one lacks is zero there."""
        found = vector.new_zeros(to.size)
        rank = min(self.rank, to.rank)
        pairs = zip(self.views(vector), to.views(found), self.groups, self.sites, to.sites, strict=True)
        for old, new, group, sites, wanted in pairs:
            old_a = old.a.view(len(sites), self.rank, group.inputs)
            new_a = new.a.view(len(wanted), to.rank, group.inputs)
            for site in {*sites} & {*wanted}:
                here, there = sites.index(site), wanted.index(site)
                new_a[there, :rank] = old_a[here, :rank]
                new.b[there][:rank] = old.b[here][:rank]
        return found

    @cached_property
    def _plan(self) -> tuple[Sequence[tuple[_Place, tuple[_Place, ...]]], int]:
        """(start, height, width) of every matrix, and where the last one ends."""
        end, plan = 0, []

        def place(height: int, width: int) -> _Place:
            nonlocal end
            start, end = end, end + -(-height * width // ALIGNMENT) * ALIGNMENT
            return start, height, width

        for group, sites in zip(self.groups, self.sites, strict=True):
            a = place(len(sites) * self.rank, group.inputs)
            plan.append((a, tuple(place(self.rank, group.sites[index].outputs) for index in sites)))
        return plan, end


_Place = tuple[int, int, int]
