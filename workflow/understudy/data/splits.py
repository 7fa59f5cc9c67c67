"""Who goes to train, validation and test."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from understudy.data.examples import Example, Kinship
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
    total = sum(sizes.values())
    return _fill(sizes, {split: shares(settings)[split] * total for split in HELD_OUT}, seed)


def cut_off(
    examples: Sequence[Example], wanted: Sequence[Split], settings: DataSettings, seed: int
) -> dict[Split, list[Example]]:
    """Train, and the `wanted` held-out splits cut from it, by a hash of the seed and the prompt.

    Kin stay together, as groups in `assign_groups` do: many sets answer a prompt in several ways, or have a row for
    each answer of a conversation, and a model that was trained on one of them must not be judged on another.
    """
    rooms = {split: max(1, round(shares(settings)[split] * len(examples))) for split in wanted}
    kinship = Kinship(examples)
    split_of = _fill(Counter(map(kinship.of, examples)), rooms, seed)
    chosen: dict[Split, list[Example]] = {split: [] for split in ("train", *wanted)}
    for example in shuffled(examples, seed):
        chosen[split_of[kinship.of(example)]].append(example)
    return chosen


def _fill(sizes: Mapping[str, int], rooms: Mapping[Split, float], seed: int) -> dict[str, Split]:
    """The split of each group, where each split in `rooms` has room for so many examples: see `assign_groups`."""
    order = sorted(sizes, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    chosen: dict[str, Split] = {}
    for split, room in rooms.items():
        left_over = room
        for name in order:
            if name not in chosen and sizes[name] <= left_over:
                chosen[name] = split
                left_over -= sizes[name]
        left = [name for name in order if name not in chosen]
        if split not in chosen.values() and left:
            chosen[min(left, key=lambda name: (sizes[name], name))] = split
    return {name: chosen.get(name, "train") for name in sorted(sizes)}


def shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples in an order that follows from the seed and from what they say, not from where they stood."""
    return sorted(examples, key=lambda example: example.key(seed))
