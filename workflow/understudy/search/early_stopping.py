"""Early stopping of target trials: from which loss on a trial isn't worth the rest of its steps.

Notation: n complete trials with K evaluations each, after the same shares of their own steps (see `understudy.steps`);
L (n, K) their validation losses in nats, f their falls L[:, k] - L[:, -1], b the best final loss, m the margin.

    reach     limit of evaluation k = b + (1 + m) · max(0, largest of f[:, k])
    median    limit of evaluation k = median of L[:, k], which is Optuna's MedianPruner

Only complete trials that a proposal sees count, so the limits are as deterministic as the proposal that they stand in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from understudy.stages import EarlyStoppingSettings
from understudy.steps import losses_by_number
from understudy.trial import TrialRecord

MARGIN = 0.25  # of `reach`, where the config says nothing; chosen in `tests/benchmarks/early_stopping.py`


def stop_above(
    settings: EarlyStoppingSettings, evaluations: int, visible: Sequence[TrialRecord]
) -> tuple[float | None, ...]:
    """The limits of evaluations 1 to K - 1, in nats; None each while too few complete trials are visible."""
    curves = _curves(visible, evaluations)
    if len(curves) < settings.visible:
        return (None,) * (evaluations - 1)
    if settings.rule == "median":
        limits = np.percentile(curves, 50, axis=0)  # as Optuna computes it, to the last bit
    else:
        margin = MARGIN if settings.margin is None else settings.margin
        falls = np.maximum(curves - curves[:, -1:], 0).max(axis=0)
        limits = curves[:, -1].min() + (1 + margin) * falls
    return tuple(limits[:-1].tolist())


def expected_loss(record: TrialRecord, visible: Sequence[TrialRecord]) -> float | None:
    """What a trial that was stopped early would probably have come to, in nats.

    Its last loss less the median fall of the visible complete trials from that evaluation on, but no better than the
    best of them: had that been likely, the trial would have gone on. None for other trials, and without a complete one.
    """
    stop = record.result.early_stop
    if stop is None:
        return None
    curves = _curves(visible, stop.evaluations)
    if not len(curves):
        return None
    fall = float(np.median(curves[:, stop.number - 1] - curves[:, -1]))
    return max(record.result.curve[-1].eval_loss - fall, float(curves[:, -1].min()))


def _curves(records: Sequence[TrialRecord], evaluations: int) -> NDArray[np.float64]:
    """The losses (n, K) of the complete trials."""
    complete = [record.result for record in records if record.result.status == "complete"]
    found = [losses_by_number(result.curve, result.steps, evaluations) for result in complete]
    rows = [losses for losses in found if losses is not None]
    return np.array(rows, dtype=np.float64).reshape(len(rows), evaluations)
