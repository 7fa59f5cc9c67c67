"""Who goes to train, validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from understudy.data.examples import Example
from understudy.settings import DataSettings, Split

HELD_OUT: tuple[Split, Split] = ("validation", "test")


def shares(settings: DataSettings) -> dict[Split, float]:
    """The share of the examples that each held-out split gets."""
    return {"validation": settings.validation_share, "test": settings.test_share}


def assign_groups(sizes: Mapping[str, int], settings: DataSettings, seed: int) -> dict[str, Split]:
    """The split of each group, given how many examples it has.

    In an order that follows from the seed, a held-out split takes every group that still fits its share, so that it
    comes out just below it; a group larger than the share can only go to train. A held-out split that nothing fits
    takes the smallest group that is left.
    """
    order = sorted(sizes, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    chosen: dict[str, Split] = {}
    for split in HELD_OUT:
        room = shares(settings)[split] * sum(sizes.values())
        for name in order:
            if name not in chosen and sizes[name] <= room:
                chosen[name] = split
                room -= sizes[name]
        left = [name for name in order if name not in chosen]
        if split not in chosen.values() and left:
            chosen[min(left, key=lambda name: (sizes[name], name))] = split
    return {name: chosen.get(name, "train") for name in sorted(sizes)}


def cut_off(
    examples: Sequence[Example], wanted: Sequence[Split], settings: DataSettings, seed: int
) -> dict[Split, list[Example]]:
    """Train, and the `wanted` held-out splits cut from it: examples chosen by a hash of the seed and what they say."""
    order = shuffled(examples, seed)
    chosen: dict[Split, list[Example]] = {}
    for split in wanted:
        count = max(1, round(shares(settings)[split] * len(examples)))
        chosen[split], order = order[:count], order[count:]
    return {"train": order, **chosen}


def shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples in an order that follows from the seed and from what they say, not from where they stood."""
    return sorted(examples, key=lambda example: example.key(seed))
