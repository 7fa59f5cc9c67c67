"""How long a trial trains, and where it is evaluated on the way.

Notation: a trial of S steps with K evaluations has evaluation k after about k / K of its own steps, the last one after
all of them. So trials of different lengths are compared by k, never by a step's number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from understudy.hyperparameters import Value
from understudy.trial import CurvePoint, EarlyStop


def total_steps(examples: int, hyperparameters: Mapping[str, Value], fidelity: float) -> int:
    """Optimizer steps of a trial: its epochs' batches, the last one rounded up, times the fidelity; at least 1."""
    epochs, batch_size = float(hyperparameters["num_train_epochs"]), int(hyperparameters["batch_size"])
    return max(1, round(fidelity * math.ceil(examples * epochs / batch_size)))


def evaluation_step(steps: int, number: int, evaluations: int) -> int:
    """After which step evaluation `number`, from 1, stands. In a trial of few steps several may share one."""
    return max(1, round(steps * number / evaluations))


def evaluation_steps(steps: int, evaluations: int) -> set[int]:
    """After which steps to evaluate: evenly spread, the last one among them; each at most once."""
    return {evaluation_step(steps, number, evaluations) for number in range(1, evaluations + 1)}


def losses_by_number(curve: Sequence[CurvePoint], steps: int, evaluations: int) -> list[float] | None:
    """The validation losses (K,) at evaluations 1 to K, in nats; None where the curve doesn't have them all."""
    known = {point.step: point.eval_loss for point in curve}
    wanted = [evaluation_step(steps, number, evaluations) for number in range(1, evaluations + 1)]
    return [known[step] for step in wanted] if known.keys() >= set(wanted) else None


def find_stop(curve: Sequence[CurvePoint], steps: int, stop_above: Sequence[float | None]) -> EarlyStop | None:
    """Where a trial of `steps` steps is stopped: at the first evaluation that finds its best loss above the limit.

    `stop_above` has a limit, or None, for each evaluation but the last. The best loss so far counts, as in Optuna's
    pruners, so that a single bad evaluation stops nothing. Where several evaluations share a step, their largest limit
    counts, and None is above all; at the last step nothing is stopped any more.
    """
    limits: dict[int, tuple[float, int]] = {}
    for number, limit in enumerate(stop_above, start=1):
        step = evaluation_step(steps, number, len(stop_above) + 1)
        found = (math.inf if limit is None else limit, number)
        limits[step] = max(limits.get(step, found), found)
    best = math.inf
    for point in curve:
        best = min(best, point.eval_loss)
        limit, number = limits.get(point.step, (math.inf, 0))
        if point.step < steps and best > limit:
            return EarlyStop(
                number=number,
                evaluations=len(stop_above) + 1,
                step=point.step,
                steps=steps,
                best_loss=best,
                limit=limit,
            )
    return None
