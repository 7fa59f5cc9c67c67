"""Regions: padded boxes around groups of the proxy's best trials, in the target's values.

u is a unit coordinate of the proxy's space. Perrone et al. (2019) take the bounding box of the best source trials;
here it is padded, there may be several, and what shows no evidence isn't cut. What is negligible is fixed at the best
trial's value, though only for proposals that are guided into the region; its side holds the whole range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from understudy.artifacts import Box, Region, ScaleRule
from understudy.hyperparameters import Value
from understudy.search.clusters import Grouping
from understudy.search.evidence import Location, locate
from understudy.search.scaling import scaled
from understudy.search.table import Seen
from understudy.search.values import rounded
from understudy.space import Choices, Range, Space
from understudy.trial import derive_seed

NEGLIGIBLE = 0.05  # importance below which a hyperparameter is cut only if its top trials lie apart from the others
SIGNIFICANT = 0.01  # p below which they count as lying apart
UNSUSPICIOUS = 0.2  # p above which nothing hints at it, so that what explains next to nothing may be fixed
ENOUGH = 20  # proxy trials below which a small importance may be an accident, so that nothing is fixed


@dataclass(frozen=True)
class Evidence:
    """What the proxy says about one hyperparameter."""

    importance: float
    location: Location
    negligible: bool = False  # so little that the best trial's value will do

    @property
    def cuts(self) -> bool:
        """Whether that is enough to narrow its range."""
        return self.importance >= NEGLIGIBLE or self.location.p <= SIGNIFICANT

    def text(self) -> str:
        place = self.location
        apart = f"{place.name} {place.distance:.2f}, p = {place.p:.3f}"
        return f"importance {self.importance:.3f}; top trials against the others: {apart}"


@dataclass(frozen=True)
class Frame:
    """What all boxes have in common: the two spaces, the scale between them, the padding in unit coordinates."""

    proxy: Space
    target: Space
    scale: Mapping[str, ScaleRule]
    padding: float

    def factor(self, name: str) -> float:
        return self.scale[name].factor if name in self.scale else 1.0


def gather_evidence(
    space: Space,
    top: Sequence[Seen],
    others: Sequence[Seen],
    importance: Mapping[str, float],
    seed: int,
    fix_below: float,
) -> dict[str, Evidence]:
    """Evidence by name, from the top trials against all others, the bad ones included.

    Negligible is what explains less than `fix_below` of the variance and whose top trials don't hint at lying apart,
    in at least `ENOUGH` trials; nothing is where `importance` is unknown. The three limits are this program's.
    """
    enough = len(top) + len(others) >= ENOUGH
    is_top = np.array([True] * len(top) + [False] * len(others))
    found: dict[str, Evidence] = {}
    for name, parameter in space.items():
        coordinates = np.array([parameter.to_unit(trial.values[name]) for trial in (*top, *others)])
        location = locate(coordinates, is_top, parameter.ordered, derive_seed(seed, "evidence", name))
        unimportant = enough and name in importance and importance[name] < fix_below
        negligible = unimportant and location.p > UNSUSPICIOUS
        found[name] = Evidence(importance.get(name, 0.0), location, negligible)
    return found


def make_regions(
    frame: Frame, top: Sequence[Seen], grouping: Grouping, evidence: Mapping[str, Evidence]
) -> tuple[Region, ...]:
    """A region per group, best first. `top` is sorted from the best.

    A group's share of the guided proposals is the sum of its trials' weights: k for the best of k top trials, down to
    1 for the last.
    """
    groups = sorted(grouping.groups, key=min)
    total = sum(range(1, len(top) + 1))
    regions = []
    for number, indices in enumerate(groups):
        members = [top[i] for i in indices]
        boxes = {name: _box(frame, name, members, evidence[name]) for name in frame.target}
        mean = math.fsum(trial.score for trial in members) / len(members)
        regions.append(
            Region(
                id=number,
                trials=tuple(trial.id for trial in members),
                best_objective=members[0].score,
                mean_objective=mean,
                share=sum(len(top) - i for i in indices) / total,
                volume=math.prod(_width(frame.target[name], box) for name, box in boxes.items()),
                boxes=boxes,
                reason=_region_reason(members, top, mean, grouping, boxes, evidence),
            )
        )
    return tuple(regions)


def _region_reason(
    members: Sequence[Seen],
    top: Sequence[Seen],
    mean: float,
    grouping: Grouping,
    boxes: Mapping[str, Box],
    evidence: Mapping[str, Evidence],
) -> str:
    cut = [name for name in boxes if evidence[name].cuts]
    narrowed = f"narrowed along {', '.join(cut)}" if cut else "not narrowed: the proxy shows no evidence"
    if fixed := [name for name, box in boxes.items() if box.fixed is not None]:
        narrowed += f"; negligible: {', '.join(fixed)}"
    return (
        f"{len(members)} of the {len(top)} top trials, mean loss {mean:.4f}, best {members[0].score:.4f} "
        f"({members[0].id}); {grouping.reason}; {narrowed}"
    )


def _box(frame: Frame, name: str, members: Sequence[Seen], evidence: Evidence) -> Box:
    """One side of a region."""
    values = [trial.values[name] for trial in members]
    parameter = frame.target[name]
    numeric = parameter.ordered
    side = _cut(frame, name, values) if evidence.cuts else _whole(parameter)
    lowest, highest = (min(values), max(values)) if numeric else (None, None)
    if not evidence.cuts:
        decision = "too little evidence to cut: the whole range stays"
        if evidence.negligible:
            decision += f", but it is negligible: the value of {members[0].id} will do"
    else:
        seen = f"from {lowest:g} to {highest:g}" if numeric else f"at {', '.join(sorted({str(v) for v in values}))}"
        scale = f", times {frame.factor(name):.4g} for the target" if name in frame.scale else ""
        margin = (
            f"padded by {frame.padding:g} of the range" if isinstance(parameter, Range) else _choice_margin(numeric)
        )
        decision = f"the region's trials lie {seen} on the proxy; {margin}{scale}"
    return Box(
        **side,
        proxy_low=lowest,
        proxy_high=highest,
        fixed=_image(frame, name, members[0].values[name]) if evidence.negligible else None,
        importance=evidence.importance,
        reason=f"{evidence.text()}; {decision}",
    )


def _choice_margin(ordered: bool) -> str:
    return "their neighbours among the choices stay too" if ordered else "other choices are cut"


def _image(frame: Frame, name: str, value: Value) -> Value:
    """A proxy trial's value on the target."""
    return scaled(value, frame.factor(name)) if name in frame.scale else value


def _whole(parameter: Range | Choices) -> dict[str, object]:
    if isinstance(parameter, Choices):
        return {"choices": parameter.choices}
    return {"low": parameter.low, "high": parameter.high}


def _cut(frame: Frame, name: str, values: Sequence[Value]) -> dict[str, object]:
    """The padded extent of proxy values, in target values inside the target's range."""
    parameter, target, factor = frame.proxy[name], frame.target[name], frame.factor(name)
    if isinstance(parameter, Choices):
        kept = _with_neighbours(parameter, values)
        images = {scaled(value, factor) for value in kept} if name in frame.scale else set(kept)
        assert isinstance(target, Choices)
        return {"choices": tuple(choice for choice in target.choices if choice in images)}
    units = [parameter.to_unit(value) for value in values]
    low = min(rounded(parameter.from_unit(min(units) - frame.padding)), *values)
    high = max(rounded(parameter.from_unit(max(units) + frame.padding)), *values)
    assert isinstance(target, Range)
    return {"low": max(scaled(low, factor), target.low), "high": min(scaled(high, factor), target.high)}


def _with_neighbours(parameter: Choices, values: Sequence[Value]) -> list[Value]:
    """The choices seen, and where they are ordered the ones beside them."""
    seen = {parameter.choices.index(value) for value in values}
    reach = 1 if parameter.ordered else 0
    return [choice for i, choice in enumerate(parameter.choices) if any(abs(i - j) <= reach for j in seen)]


def _width(parameter: Range | Choices, box: Box) -> float:
    """A side's share of the parameter's unit interval."""
    if isinstance(parameter, Choices):
        return len(box.choices or ()) / len(parameter.choices)
    assert box.low is not None
    assert box.high is not None
    return parameter.to_unit(box.high) - parameter.to_unit(box.low)
