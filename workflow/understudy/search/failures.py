"""How bad a trial counts that ended without a loss."""

from __future__ import annotations

from collections.abc import Sequence

FAILED = "failed"  # the user attribute of an Optuna trial that failed and whose value isn't to be believed
MARGIN = 0.1  # of the losses' range


def worse_than(losses: Sequence[float]) -> float:
    """A loss above all of these by a margin; there is at least one."""
    worst = max(losses)
    return worst + (MARGIN * (worst - min(losses)) or MARGIN * max(abs(worst), 1.0))
