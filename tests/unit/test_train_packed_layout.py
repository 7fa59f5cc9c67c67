"""Where the matrices of an adapter lie in its flat vector."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy.train.packed.layout import ALIGNMENT, Group, Layout, Site


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    groups = []
    for number in range(draw(st.integers(1, 4))):
        inputs = draw(st.integers(1, 70))
        outputs = draw(st.lists(st.integers(1, 70), min_size=1, max_size=3))
        groups.append(Group(tuple(Site(f"{number}.{k}", inputs, out) for k, out in enumerate(outputs))))
    names = [site.name for group in groups for site in group.sites]
    return Layout(tuple(groups), draw(st.integers(1, 33)), frozenset(draw(st.sets(st.sampled_from(names)))))


@given(layouts())
def test_matrices_are_disjoint_contiguous_and_aligned(layout: Layout) -> None:
    vector = torch.zeros(layout.size)
    counted = 0
    for weights, group, sites in zip(layout.views(vector), layout.groups, layout.sites, strict=True):
        assert [group.sites[index].name for index in sites] == [s.name for s in group.sites if s.name in layout.adapted]
        assert weights.a.shape == (len(sites) * layout.rank, group.inputs)
        assert [b.shape for b in weights.b] == [(layout.rank, group.sites[index].outputs) for index in sites]
        for matrix in (weights.a, *weights.b):
            assert matrix.is_contiguous()
            assert matrix.storage_offset() % ALIGNMENT == 0
            matrix.add_(1)
            counted += matrix.numel()
    assert int(vector.sum()) == counted  # every number lies in one matrix at most
    assert bool((vector <= 1).all())
    assert layout.size % ALIGNMENT == 0


@given(layouts())
def test_views_of_a_stack_are_those_of_its_rows(layout: Layout) -> None:
    stacked = torch.arange(3.0 * layout.size).view(3, layout.size)
    together = layout.views(stacked)
    for row in range(3):
        for own, all_rows in zip(layout.views(stacked[row]), together, strict=True):
            assert torch.equal(all_rows.a[row], own.a)
            assert all(torch.equal(b[row], own_b) for b, own_b in zip(all_rows.b, own.b, strict=True))


@given(layouts(), st.data())
def test_what_is_moved_into_a_larger_layout_comes_back(own: Layout, data: st.DataObject) -> None:
    names = [site.name for group in own.groups for site in group.sites]
    larger = frozenset(data.draw(st.sets(st.sampled_from(names)))) | own.adapted
    common = Layout(own.groups, own.rank + data.draw(st.integers(0, 8)), larger)
    vector = torch.zeros(own.size)
    for weights in own.views(vector):
        for matrix in (weights.a, *weights.b):
            matrix.copy_(torch.rand(matrix.shape) + 1)
    there = own.moved(vector, common)
    assert torch.equal(common.moved(there, own), vector)
    assert int(there.count_nonzero()) == int(vector.count_nonzero())
    for small, large, group, sites, all_sites in zip(
        own.views(vector), common.views(there), own.groups, own.sites, common.sites, strict=True
    ):
        blocks = large.a.view(len(all_sites), common.rank, group.inputs)
        for a, b, site in zip(small.a.view(len(sites), own.rank, group.inputs), small.b, sites, strict=True):
            assert torch.equal(blocks[all_sites.index(site), : own.rank], a)
            assert torch.equal(large.b[all_sites.index(site)][: own.rank], b)
