"""The proxy's trial table as configurations and objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from understudy.errors import UnderstudyError
from understudy.hyperparameters import HYPERPARAMETERS, Value
from understudy.search.importance import BAD


@dataclass(frozen=True)
class Seen:
    """A finished proxy trial.

    `rank` counts from 1 among the complete ones; both are None for others. `last_loss` is the last one that was seen.
    """

    id: str
    origin: str
    values: dict[str, Value]
    objective: float | None
    rank: int | None
    last_loss: float | None = None

    @property
    def known(self) -> float:
        """The objective, or else the last validation loss; infinite where there is neither."""
        losses = (self.objective, self.last_loss)
        return next((loss for loss in losses if loss is not None and not math.isnan(loss)), math.inf)

    @property
    def score(self) -> float:
        """The objective, for trials that are known to be complete."""
        assert self.objective is not None
        return self.objective


@dataclass(frozen=True)
class SeenTrials:
    """The complete trials, best first; those that halving stopped; those that diverged or ran out of memory."""

    complete: list[Seen]
    stopped: list[Seen]
    bad: list[Seen]

    @property
    def judged(self) -> list[Seen]:
        """The complete and the stopped ones, by what is known of their losses."""
        return sorted([*self.complete, *self.stopped], key=lambda trial: (trial.known, trial.rank is None, trial.id))

    @property
    def everyone(self) -> list[Seen]:
        return [*self.complete, *self.stopped, *self.bad]


def seen_trials(frame: pl.DataFrame) -> SeenTrials:
    """The trials of a table by what became of them. `frame` has no echoes: those are made from the target's.

    Raises `UnderstudyError` where no trial is complete.
    """
    searched = frame.sort(["objective", "id"], nulls_last=True)
    complete = [
        Seen(row["id"], row["origin"], _values(row), row["objective"], rank)
        for rank, row in enumerate(searched.filter(pl.col("status") == "complete").to_dicts(), start=1)
    ]
    if not complete:
        counts = dict(sorted(searched.group_by("status").len().rows()))
        raise UnderstudyError(
            f"no proxy trial is complete, so nothing can be transferred; of {searched.height} trials: "
            f"{', '.join(f'{count} {status}' for status, count in counts.items()) or 'none was planned'}. "
            "Narrow `space.learning_rate`, or raise `proxy.random` and `proxy.sobol`"
        )
    return SeenTrials(complete, _without_objective(searched, ["stopped"]), _without_objective(searched, BAD))


def _without_objective(searched: pl.DataFrame, statuses: Sequence[str]) -> list[Seen]:
    rows = searched.filter(pl.col("status").is_in(statuses)).to_dicts()
    return [Seen(row["id"], row["origin"], _values(row), None, None, row["last_eval_loss"]) for row in rows]


def _values(row: dict[str, Value | None]) -> dict[str, Value]:
    found = ((name, row[name]) for name in HYPERPARAMETERS if name in row)
    return {name: value for name, value in found if value is not None}
