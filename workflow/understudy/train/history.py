"""What has happened to a trial so far: its learning curve, and the counts beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from understudy.trial import CurvePoint, EarlyStop


@dataclass
class History:
    """What has happened so far. It outlives an exception, so that a failed trial keeps its curve."""

    curve: list[CurvePoint] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)  # of the newest evaluation
    steps: int = 0
    completion_tokens: int = 0  # trained on
    tokens: int = 0  # trained on, prompts included, without padding
    evaluated_tokens: int = 0  # likewise, in evaluations
    early_stop: EarlyStop | None = None

    def state(self) -> dict[str, Any]:
        """Plain values from which `restore` brings it back, before a trial has ended."""
        return {**vars(self), "metrics": dict(self.metrics), "curve": [point.model_dump() for point in self.curve]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state` gave."""
        vars(self).update({**state, "curve": [CurvePoint.model_validate(point) for point in state["curve"]]})


def note(history: History, train_loss: MeanLoss, rate: float) -> None:
    """Add a point to the learning curve."""
    history.metrics["train_loss"] = train_loss.take()
    history.curve.append(point_of(history, history.metrics["train_loss"], rate))


def point_of(history: History, train_loss: float, rate: float) -> CurvePoint:
    """The learning curve's point at the newest evaluation."""
    return CurvePoint(
        step=history.steps,
        tokens=history.completion_tokens,
        train_loss=train_loss,
        eval_loss=history.metrics["eval_loss"],
        learning_rate=rate,
    )


@dataclass
class MeanLoss:
    """The mean of the batches' losses weighted by their tokens, started anew when it is taken."""

    total: float = 0.0
    weight: int = 0

    def add(self, value: float, weight: int) -> None:
        self.total += value * weight
        self.weight += weight

    @property
    def mean(self) -> float:
        return self.total / self.weight

    def take(self) -> float:
        mean = self.mean
        self.total, self.weight = 0.0, 0
        return mean
