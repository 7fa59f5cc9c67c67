"""The proxy's trial table as configurations and objectives."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from understudy.errors import UnderstudyError
from understudy.hyperparameters import HYPERPARAMETERS, Value
from understudy.search.importance import BAD


@dataclass(frozen=True)
class Seen:
    """A finished proxy trial. `rank` counts from 1 among the complete ones; both None for a bad one."""

    id: str
    origin: str
    values: dict[str, Value]
    objective: float | None
    rank: int | None

    @property
    def score(self) -> float:
        """The objective, for trials that are known to be complete."""
        assert self.objective is not None
        return self.objective


def seen_trials(frame: pl.DataFrame) -> tuple[list[Seen], list[Seen]]:
    """The complete trials, best first, and the bad ones. `frame` has no echoes: those are made from the target's.

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
    bad = searched.filter(pl.col("status").is_in(BAD)).to_dicts()
    return complete, [Seen(row["id"], row["origin"], _values(row), None, None) for row in bad]


def _values(row: dict[str, Value | None]) -> dict[str, Value]:
    found = ((name, row[name]) for name in HYPERPARAMETERS if name in row)
    return {name: value for name, value in found if value is not None}
