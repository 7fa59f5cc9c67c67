"""Successive halving in a pack: who goes on at a rung (Jamieson & Talwalkar 2016).

A bracket is judged when all of its trials that are still there have reached the rung, so a trial's fate follows from
its bracket alone, whoever else is in training and whoever is faster.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from understudy.trial import Halving, RungScore, TrialResult

WORST = math.inf


def score(metric: str, metrics: Mapping[str, float]) -> float:
    """What is compared: smaller is better."""
    value = metrics.get(metric, WORST)
    return -value if metric == "eval_accuracy" else value


def rung_step(share: float, steps: int) -> int:
    """After which step a rung stands."""
    return max(1, round(share * steps))


def stop_message(halving: Halving, rung: int) -> str:
    """Why a trial was stopped."""
    return f"not among the best of its bracket at rung {rung + 1} of {len(halving.rungs)}"


def known_scores(halving: Halving, result: TrialResult) -> list[RungScore] | None:
    """A finished trial's scores, rung by rung; those that it was stopped before are the worst.

    None where it was trained without them, so that it can't be compared with others.
    """
    known = {found.share: found for found in result.rung_scores if found.metric == halving.metric}
    if result.status != "stopped" and not known.keys() >= set(halving.rungs):
        return None
    return [known.get(share, RungScore(share=share, metric=halving.metric, score=None)) for share in halving.rungs]


def as_stopped(halving: Halving, rung: int, result: TrialResult, digest: str) -> TrialResult:
    """What would have come of a trial that ran in full, had its bracket stopped it at a rung where it stood."""
    scores = (known_scores(halving, result) or [])[: rung + 1]
    step, point = scores[-1].step, scores[-1].point
    assert step is not None
    curve = [found for found in result.curve if found.step <= step]
    if point is not None and point not in curve:
        curve.append(point)
    changes: dict[str, object] = {
        "digest": digest,
        "status": "stopped",
        "objective": None,
        "metrics": {},
        "curve": tuple(curve),
        "steps": step,
        "rung_scores": tuple(scores),
        "message": stop_message(halving, rung),
    }
    return result.model_copy(update=changes)


class Brackets:
    """The scores of every bracket's trials at every rung. Those of `absent` take no part."""

    def __init__(self, halving: Halving, absent: Collection[str] = ()) -> None:
        self.halving = halving
        present = [tuple(id for id in bracket if id not in absent) for bracket in halving.brackets]
        self._bracket = {id: bracket for bracket in present for id in bracket}
        self._scores: list[dict[str, float]] = [{} for _ in halving.rungs]

    def __contains__(self, id: str) -> bool:
        return id in self._bracket

    def stands_at_rung(self, passed: int, done: int, steps: int) -> bool:
        """Whether a trial that has passed some rungs, after so many of its steps, is at the next one."""
        rungs = self.halving.rungs
        return passed < len(rungs) and rung_step(rungs[passed], steps) <= done < steps

    def report(self, id: str, rung: int, found: float | None) -> None:
        """A trial has reached a rung, or ended before it. What isn't a number is the worst."""
        self._scores[rung][id] = WORST if found is None or math.isnan(found) else found

    def forget(self, id: str) -> None:
        """A trial begins anew."""
        for scores in self._scores:
            scores.pop(id, None)

    def survivors(self, id: str, rung: int) -> set[str] | None:
        """Who of the trial's bracket goes on after a rung; None while that is open."""
        there: set[str] | None = set(self._bracket[id]) if rung == 0 else self.survivors(id, rung - 1)
        scores = self._scores[rung]
        if there is None or not there <= scores.keys():
            return None
        ranked = sorted(there, key=lambda member: (scores[member], member))
        return set(ranked[: math.ceil(len(ranked) / self.halving.reduction_factor)])

    def stopped_at(self, id: str) -> int | None:
        """The rung after which a trial isn't among those that go on; None where there is none, or it is open."""
        for rung in range(len(self.halving.rungs)):
            going_on = self.survivors(id, rung)
            if going_on is None:
                return None
            if id not in going_on:
                return rung
        return None
