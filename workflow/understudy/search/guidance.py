"""Regions at work: where a proposal goes, and how a sampler's draw gets there.

Regions act here and never in the sampler's distributions. None of this is a hard wall: which share of the proposals
goes where follows from the transfer at first and, as results come, from the target itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from understudy.artifacts import Box, Region
from understudy.hyperparameters import Value
from understudy.search.values import settled
from understudy.space import Choices, Range, Space
from understudy.trial import TrialRecord

BEST_SHARE = 0.25  # of the visible trials that ran: as many of the complete ones show where it is good
POINT = 1e-9  # volume of a region without any, as of trials at one value of a range: it has no density


def inside(box: Box, value: Value) -> bool:
    """Whether a value lies within a region's side."""
    if box.choices is not None:
        return value in box.choices
    assert box.low is not None
    assert box.high is not None
    return box.low <= float(value) <= box.high


def outside(region: Region, values: Mapping[str, Value]) -> list[str]:
    """The hyperparameters whose value lies outside the region."""
    return [name for name, box in region.boxes.items() if not inside(box, values[name])]


def place_shares(
    regions: Sequence[Region], records: Sequence[TrialRecord], explore: float, strength: float = math.inf
) -> list[float]:
    """The probability of each region and, last, of exploring; shape (len(regions) + 1,), sums to 1.

    A place's share is what `faded` leaves of what the transfer gave it, times how much oftener its target trials
    are among the best quarter than their number lets expect: (1 + best there) / (1 + expected there). A trial outside
    all regions counts for exploring, one in several regions in equal parts for each. So exploring gains where it
    finds better configurations than the regions do, and no share changes before there is evidence. Skipped trials
    don't count; bad ones count, but never as best.
    """
    counted = [record for record in records if record.result.status != "skipped"]
    prior = faded(regions, explore, strength, len(counted))
    complete = [record for record in counted if record.result.objective is not None]
    ordered = sorted(complete, key=lambda record: (record.result.objective, record.spec.id))
    best = ordered[: math.ceil(BEST_SHARE * len(counted))]
    here, best_here = _counts(regions, counted), _counts(regions, best)
    rate = len(best) / max(1, len(counted))
    raw = [
        share * (1 + found) / (1 + rate * number) for share, found, number in zip(prior, best_here, here, strict=True)
    ]
    return [value / math.fsum(raw) for value in raw]


def faded(regions: Sequence[Region], explore: float, strength: float, results: int) -> list[float]:
    """The places' shares by the transfer alone, after so many results of the target; as `place_shares`.

    At first they are the regions' shares of 1 - `explore` and, for exploring, `explore`. Spread over a place's volume
    (exploring has all of the space), each is a density. From more than `strength` results on a density has the power
    strength / results, so that all places tend to the same one: πBO's decay of a prior, π(x)^(β / n) (Hvarfner et al.
    2022, arXiv 2204.11051), applied to places and only from β results on. A share of 0 stays 0. Not verified: that the
    strength which is good for an acquisition function is good for shares.
    """
    power = 1.0 if results <= strength else strength / results
    places = [((1 - explore) * region.share, max(region.volume, POINT)) for region in regions] + [(explore, 1.0)]
    raw = [share**power * volume ** (1 - power) for share, volume in places]  # volume · (share / volume)^power
    return [value / math.fsum(raw) for value in raw]


def _counts(regions: Sequence[Region], records: Sequence[TrialRecord]) -> list[float]:
    """How many trials lie in each region and, last, in none."""
    counts = [0.0] * (len(regions) + 1)
    for record in records:
        holding = [i for i, region in enumerate(regions) if not outside(region, record.spec.hyperparameters)]
        for place in holding or [len(regions)]:
            counts[place] += 1 / max(1, len(holding))
    return counts


def choose_place(shares: Sequence[float], seed: int) -> int:
    """A place drawn by its share: the number of a region, or `len(shares) - 1` for exploring."""
    places = [place for place, share in enumerate(shares) if share > 0]
    return random.Random(seed).choices(places, weights=[shares[place] for place in places])[0]


def move_inside(
    space: Space, region: Region, values: Mapping[str, Value], seed: int
) -> tuple[dict[str, Value], list[str]]:
    """The configuration with what lies outside drawn anew, uniformly in unit coordinates; and which that was.

    What the region fixes has its fixed value, and isn't among what was drawn.
    """
    generator, held = random.Random(seed), fixed(region)
    moved, redrawn = {**values, **held}, [name for name in outside(region, values) if name not in held]
    for name in redrawn:
        moved[name] = draw(space[name], region.boxes[name], generator.random())
    return moved, redrawn


def fixed(region: Region) -> dict[str, Value]:
    """The values at which the region holds what is negligible. They don't decide whether a configuration is inside."""
    return {name: box.fixed for name, box in region.boxes.items() if box.fixed is not None}


def draw(parameter: Range | Choices, box: Box, u: float) -> Value:
    """The value at `u` of the way through a region's side."""
    if isinstance(parameter, Choices):
        assert box.choices is not None
        return Choices(choices=box.choices).from_unit(u)
    assert box.low is not None
    assert box.high is not None
    side = parameter.model_copy(update={"low": box.low, "high": box.high})
    return settled(side.from_unit(u), side)
