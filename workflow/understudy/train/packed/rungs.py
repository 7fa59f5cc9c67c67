"""A pack's trials at the rungs of successive halving: what is written down of them there, and who goes on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from understudy.train.packed.halving import Brackets, score, stop_message
from understudy.train.packed.trials import Trial
from understudy.trial import CurvePoint, RungScore


class Rungs:
    """Where trials stand by their brackets. Without brackets there are no rungs."""

    def __init__(self, brackets: Brackets | None) -> None:
        self.brackets = brackets

    def remember(self, trials: Iterable[Trial]) -> None:
        """Know of these trials what they know themselves, and no more: later scores of theirs are still to come."""
        if self.brackets is None:
            return
        for trial in trials:
            self.brackets.forget(trial.spec.id)
            for rung, found in enumerate(trial.rung_scores):
                self.brackets.report(trial.spec.id, rung, found.score)

    def has(self, trial: Trial) -> bool:
        """Whether a trial stands at a rung that it hasn't passed."""
        if self.brackets is None:
            return False
        return self.brackets.stands_at_rung(trial.rung, trial.history.steps, trial.steps)

    def holds(self, trial: Trial) -> bool:
        """Whether a trial waits at a rung for the others of its bracket."""
        return self.brackets is not None and trial.spec.id in self.brackets and self.has(trial)

    def score(self, trial: Trial, train_loss: float) -> float:
        """By what a trial is compared, after an evaluation; smaller is better."""
        if self.brackets is None:
            return math.inf
        return score(self.brackets.halving.metric, {**trial.history.metrics, "train_loss": train_loss})

    def reach(self, trial: Trial, found: float, point: CurvePoint | None) -> None:
        """Write down what a trial has at the rungs where it stands. Outside of brackets it has passed them then."""
        while self.brackets is not None and self.has(trial):
            self._write(trial, trial.rung, found, trial.history.steps, point)
            if trial.spec.id in self.brackets:
                return
            trial.rung += 1

    def leave(self, trial: Trial, last: float) -> None:
        """A trial has ended: its last score stands for the rungs that it hasn't passed."""
        if self.brackets is None:
            return
        for rung in range(trial.rung, len(self.brackets.halving.rungs)):
            self._write(trial, rung, last)

    def verdict(self, trial: Trial) -> Literal[True] | str | None:
        """Of a trial that waits: True if it goes on, why it is stopped, or None while that is open."""
        assert self.brackets is not None
        going_on = self.brackets.survivors(trial.spec.id, trial.rung)
        if going_on is None:
            return None
        if trial.spec.id in going_on:
            trial.rung += 1
            return True
        point = trial.rung_scores[-1].point
        if point is not None and trial.history.steps not in trial.evaluate_after:
            trial.history.curve.append(point)
        return stop_message(self.brackets.halving, trial.rung)

    def _write(
        self, trial: Trial, rung: int, found: float, step: int | None = None, point: CurvePoint | None = None
    ) -> None:
        assert self.brackets is not None
        halving = self.brackets.halving
        own = RungScore(
            share=halving.rungs[rung],
            metric=halving.metric,
            score=found if math.isfinite(found) else None,
            step=step,
            point=point,
        )
        trial.rung_scores.append(own)
        self.brackets.report(trial.spec.id, rung, own.score)
