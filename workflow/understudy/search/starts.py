"""The target's first configurations, ordered by what the proxy says of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from understudy.artifacts import Region, ScaleRule, Start, Starts
from understudy.hyperparameters import Value, complete
from understudy.search.defaults import KnownGood, Unrun
from understudy.search.scaling import to_target
from understudy.search.table import Seen
from understudy.search.values import Identity, identity
from understudy.settings import Method
from understudy.space import Space

NEAR = 0.05  # weighted distance in unit coordinates below which a further start adds nothing


@dataclass(frozen=True)
class Image:
    """What makes a proxy trial's configuration the target's.

    Only what is `searched` is taken from the trial and scaled; everything else is the target default's.
    """

    scale: Mapping[str, ScaleRule]
    method: Method
    searched: Space
    default: Mapping[str, Value]

    def of(self, trial: Seen) -> dict[str, Value]:
        values = {name: value for name, value in trial.values.items() if name in self.searched}
        return complete(to_target(values, self.scale, self.method), self.default, self.method)

    @property
    def rate_reason(self) -> str:
        """Where an image's learning rate comes from."""
        if "learning_rate" in self.searched:
            return self.scale["learning_rate"].rule
        return "not searched, so the default's"


def make_starts(
    complete_trials: Sequence[Seen],
    top: Sequence[Seen],
    regions: Sequence[Region],
    known: Sequence[KnownGood],
    image: Image,
    space: Space,
    weights: Mapping[str, float],
    middling: float,
) -> Starts:
    """All starts in order, without duplicates; the target takes as many as it is told to.

    The best region's best trial comes first; then the other regions' bests and the known-good configurations, in the
    order of their proxy trials' objectives (without one: next to the default); then the rest of the top trials, the
    regions taking turns, where they differ from what is there. A fixed rate that did worse than the proxy's `middling`
    loss comes after all.

    `known` are the target's known-good configurations, the default first.
    """
    by_id = {trial.id: trial for trial in complete_trials}
    bests = [_transferred(by_id[region.trials[0]], image, f"best trial of region {region.id}") for region in regions]
    fixed = [_known(item, by_id) for item in known]
    default = fixed[0][0]
    early = [start for start, objective in fixed if objective is None or objective <= middling or start is default]
    images = [best for best in bests if best.parents == default.parents]
    if any(_distance(default, best, space, weights) < NEAR for best in images):  # but for rounding or tokens the same
        early.remove(default)
    late = [start for start, objective in fixed if start not in early]
    middle = _evidence(default, by_id, math.inf)
    second = sorted([*bests[1:], *early], key=lambda start: _evidence(start, by_id, middle))
    rest = [_transferred(trial, image, reason) for trial, reason in _in_turns(top, regions)]
    firsts = _distinct([bests[0], *second])
    return Starts(
        default=known[0].hyperparameters,
        starts=tuple(_distinct([*firsts, *_apart(rest, firsts, space, weights), *late])),
    )


def _transferred(trial: Seen, image: Image, what: str) -> Start:
    return Start(
        hyperparameters=image.of(trial),
        origin="transferred",
        parents=(trial.id,),
        expected_rank=trial.rank,
        reason=f"{what}: loss {trial.score:.4f}, rank {trial.rank} on the proxy; learning rate: {image.rate_reason}",
    )


def _known(item: KnownGood, by_id: Mapping[str, Seen]) -> tuple[Start, float | None]:
    """A known-good configuration as a start, and the objective of its counterpart on the proxy.

    Only the default is its counterpart's image: a fixed rate is the same number on both models, so the counterpart
    says whether such a rate works at all, but predicts no rank.
    """
    trial = _counterpart(item, by_id)
    on_proxy = (
        f"on the proxy {trial.id} has loss {trial.score:.4f}, rank {trial.rank}" if trial else "not run on the proxy"
    )
    start = Start(
        hyperparameters=item.hyperparameters,
        origin="default",
        parents=(trial.id,) if trial else (),
        expected_rank=trial.rank if trial and item.fixed is None else None,
        reason=f"{item.reason}; {on_proxy}",
    )
    return start, trial.objective if trial else None


def _counterpart(item: KnownGood, by_id: Mapping[str, Seen]) -> Seen | None:
    """The proxy's default, or its trial at the same fixed rate; both models needn't leave out the same rates.

    None where there is no such trial, or where the configuration is the target's alone.
    """
    if isinstance(item, Unrun):
        return None
    if item.fixed is None:
        return by_id.get("d00")
    others = (trial for trial in by_id.values() if trial.origin == "default" and trial.id != "d00")
    return next((trial for trial in others if trial.values["learning_rate"] == item.fixed), None)


def _evidence(start: Start, by_id: Mapping[str, Seen], otherwise: float) -> float:
    return by_id[start.parents[0]].score if start.parents else otherwise


def _in_turns(top: Sequence[Seen], regions: Sequence[Region]) -> Iterator[tuple[Seen, str]]:
    """The regions' further trials: every region's second best, then every third best, and so on."""
    by_id = {trial.id: trial for trial in top}
    for place in range(1, max(len(region.trials) for region in regions)):
        for region in regions:
            if place < len(region.trials):
                yield by_id[region.trials[place]], f"number {place + 1} of region {region.id}"


def _distinct(starts: Sequence[Start]) -> list[Start]:
    """The first of each configuration."""
    found: dict[Identity, Start] = {}
    for start in starts:
        found.setdefault(identity(start.hyperparameters), start)
    return list(found.values())


def _apart(
    candidates: Sequence[Start], firsts: Sequence[Start], space: Space, weights: Mapping[str, float]
) -> list[Start]:
    """The candidates that are not near an earlier start, then those that are."""
    kept: list[Start] = []
    near: list[Start] = []
    for start in candidates:
        others = [*firsts, *kept]
        close = any(_distance(start, other, space, weights) < NEAR for other in others)
        (near if close else kept).append(start)
    return kept + near


def _distance(a: Start, b: Start, space: Space, weights: Mapping[str, float]) -> float:
    """The importance-weighted distance of two configurations; different unordered choices are 1 apart."""
    total = 0.0
    for name, parameter in space.items():
        first, second = a.hyperparameters[name], b.hyperparameters[name]
        if parameter.ordered:
            difference = parameter.to_unit(first) - parameter.to_unit(second)
        else:
            difference = float(first != second)
        total += weights.get(name, 0.0) * difference**2
    return math.sqrt(total)
