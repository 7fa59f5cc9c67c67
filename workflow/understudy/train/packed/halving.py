"""Successive halving in a pack: who goes on at a rung (Jamieson & Talwalkar 2016).

A bracket is judged when all of its trials that are still there have reached the rung, so a trial's fate follows from
its bracket alone, whoever else is in training and whoever is faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from understudy.trial import Halving, RungScore, TrialResult

WORST = math.inf


def score(metric: str, metrics: Mapping[str, float]) -> float:
    """What is compared: smaller is better."""
    value = metrics.get(metric, WORST)
    return -value if metric == "eval_accuracy" else value


def scores_of_finished(halving: Halving, result: TrialResult) -> list[float]:
    """The scores of a trial that was trained before, rung by rung as far as it came.

    They are in its result where it was trained under such halving. Otherwise the learning curve's last point up to the
    rung counts, or the end where the curve doesn't hold the metric; without an objective the trial is the worst.
    """
    known = {found.share: found.score for found in result.rung_scores if found.metric == halving.metric}
    scores: list[float] = []
    for share in halving.rungs:
        score = known.get(share)
        if score is not None:
            scores.append(score)
        elif share in known or result.status not in ("complete", "stopped"):
            scores.append(WORST)
        elif result.status == "complete":
            scores.append(_score_on_curve(halving.metric, result, share))
    return scores


def _score_on_curve(metric: str, result: TrialResult, share: float) -> float:
    points = [point for point in result.curve if point.step <= rung_step(share, result.steps)]
    value = getattr(points[-1], metric, None) if points else None
    return score(metric, result.metrics) if value is None else float(value)


def rung_step(share: float, steps: int) -> int:
    """After which step a rung stands."""
    return max(1, round(share * steps))


class Brackets:
    """The scores of every bracket's trials at every rung."""

    def __init__(self, halving: Halving) -> None:
        self.halving = halving
        self._bracket = {id: bracket for bracket in halving.brackets for id in bracket}
        self.scores: list[dict[str, float]] = [{} for _ in halving.rungs]

    def __contains__(self, id: str) -> bool:
        return id in self._bracket

    def stands_at_rung(self, id: str, passed: int, done: int, steps: int) -> bool:
        """Whether a trial that has passed some rungs, after so many of its steps, is at the next one."""
        rungs = self.halving.rungs
        return id in self and passed < len(rungs) and rung_step(rungs[passed], steps) <= done < steps

    def report(self, id: str, rung: int, found: float) -> None:
        """A trial has reached a rung. What isn't a number is the worst."""
        self.scores[rung][id] = WORST if math.isnan(found) else found

    def ended(self, id: str, rung: int, found: float = WORST) -> None:
        """A trial has ended before this rung: its last score stands for this one and all later ones."""
        for later in range(rung, len(self.scores)):
            self.report(id, later, found)

    def scores_of(self, id: str) -> tuple[RungScore, ...]:
        """A trial's scores at the rungs that it reached; none where halving doesn't concern it."""
        found = zip(self.halving.rungs, self.scores, strict=True)
        return tuple(
            RungScore(share=share, metric=self.halving.metric, score=scores[id] if math.isfinite(scores[id]) else None)
            for share, scores in found
            if id in scores
        )

    def survivors(self, id: str, rung: int) -> set[str] | None:
        """Who of the trial's bracket goes on after a rung; None while that is open."""
        there: set[str] | None = set(self._bracket[id]) if rung == 0 else self.survivors(id, rung - 1)
        scores = self.scores[rung]
        if there is None or not there <= scores.keys():
            return None
        ranked = sorted(there, key=lambda member: (scores[member], member))
        return set(ranked[: math.ceil(len(ranked) / self.halving.reduction_factor)])
