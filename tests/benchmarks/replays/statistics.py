"""Figures of merit of finished replays.

Notation: S seeds, K target runs. A regret is relative and in percent: 100 · (best loss so far - best) / best, where
best is the lowest loss of the task's target runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, wilcoxon

from replays.replay import Run, Snapper
from replays.tasks import Problem, Task, best, worst

RESAMPLES = 10_000
CONFIDENCE = 0.95
FEW = 6  # targets; of fewer an interval is hardly more than the range of their means
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Results:
    """Regrets of every method on every task of a set, all of the same seeds.

    `curves[method]` has shape (tasks, S, K), `budgeted[method]` (tasks, S, budgets).
    """

    tasks: tuple[Task, ...]
    curves: Mapping[str, Array]
    budgeted: Mapping[str, Array]

    @property
    def targets(self) -> list[str]:
        return [task.target for task in self.tasks]

    @property
    def methods(self) -> list[str]:
        return list(self.curves)


def regrets(problem: Problem, runs: Mapping[int, Run], trials: int) -> Array:
    """The regret after 1 to K target runs, shape (S, K). A method with no more to say stays where it is."""
    lowest, failed = best(problem), worst(problem)
    losses = np.array([loss if math.isfinite(loss) else failed for loss in problem.target])
    curves = []
    for _, run in sorted(runs.items()):
        seen = np.minimum.accumulate(losses[list(run.indices)])
        curves.append(np.concatenate([seen, np.full(trials - len(seen), seen[-1])]))
    return np.asarray(100 * (np.array(curves) - lowest) / lowest)


def at_cost(problem: Problem, curves: Array, budgets: Sequence[float], before: float) -> Array:
    """The regret once so much was spent, in target runs, with what was spent `before` the first; shape (S, budgets).

    Who could afford no target run yet has the default configuration, and so its regret.
    """
    snapper = Snapper(problem.space, problem.configurations)
    index = snapper.take({name: problem.default[name] for name in problem.names})
    loss = problem.target[index] if math.isfinite(problem.target[index]) else worst(problem)
    default = 100 * (loss - best(problem)) / best(problem)
    columns = []
    for budget in budgets:
        affordable = min(math.floor(budget - before + 1e-9), curves.shape[1])
        columns.append(curves[:, affordable - 1] if affordable > 0 else np.full(len(curves), default))
    return np.stack(columns, axis=1)


def summary(curves: Array, k: int) -> dict[str, float]:
    """Over all tasks and seeds after k target runs."""
    values = curves[:, :, k - 1].ravel()
    return {"mean": float(values.mean()), "p90": float(np.quantile(values, 0.9)), "worst": float(values.max())}


def average_ranks(results: Results, k: int) -> dict[str, float]:
    """The mean over tasks of each method's rank, by its mean regret over the seeds; 1 is best, equals share."""
    means = np.array([results.curves[name][:, :, k - 1].mean(axis=1) for name in results.methods])  # (methods, tasks)
    return dict(zip(results.methods, rankdata(means, axis=0).mean(axis=1).tolist(), strict=True))


def difference(results: Results, ours: str, other: str, k: int) -> dict[str, float]:
    """Mean of ours minus other, in percentage points (below 0: ours is better), and its bootstrap interval."""
    paired = results.curves[ours][:, :, k - 1] - results.curves[other][:, :, k - 1]  # (tasks, S)
    low, high = interval(results, paired)
    return {"difference": float(paired.mean()), "low": low, "high": high}


def interval(results: Results, values: Array) -> tuple[float, float]:
    """The bootstrap interval of the mean of values of shape (tasks, S).

    Targets are resampled, each with all its tasks: tasks that share a target aren't independent. With one target alone
    the seeds are.
    """
    groups = list(_by_target(results, values).values())
    if len(groups) == 1:
        groups = [groups[0][:, [seed]] for seed in range(values.shape[1])]
    sums, counts = np.array([group.sum() for group in groups]), np.array([group.size for group in groups])
    drawn = np.random.default_rng(0).integers(len(groups), size=(RESAMPLES, len(groups)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def mean_of_targets(results: Results, name: str, k: int) -> float:
    """The mean over targets of their tasks' mean regrets: each target counts once, however many tasks it has."""
    return float(np.mean([group.mean() for group in _by_target(results, results.curves[name][:, :, k - 1]).values()]))


def _by_target(results: Results, values: Array) -> dict[str, Array]:
    """Values of shape (tasks, S), apart by target, in the targets' order."""
    return {name: values[[target == name for target in results.targets]] for name in sorted(set(results.targets))}


def by_lie(results: Results, k: int) -> dict[str, dict[str, float]]:
    """Each method's mean regret after k target runs, by what was done to the source."""
    return _by_lie(results.tasks, {name: curve[:, :, k - 1] for name, curve in results.curves.items()})


def by_lie_at_cost(results: Results, place: int) -> dict[str, dict[str, float]]:
    """Each method's mean regret at the budget in that place, by what was done to the source."""
    return _by_lie(results.tasks, {name: paid[:, :, place] for name, paid in results.budgeted.items()})


def _by_lie(tasks: Sequence[Task], regrets: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """The means of regrets of shape (tasks, S)."""
    lies = list(dict.fromkeys(task.lie for task in tasks if task.lie))
    of = {lie: [task.lie == lie for task in tasks] for lie in lies}
    return {name: {lie: float(values[of[lie]].mean()) for lie in lies} for name, values in regrets.items()}


def best_peer(results: Results, ours: Sequence[str], k: int) -> str:
    """The method with the lowest mean that isn't ours."""
    peers = [name for name in results.methods if name not in ours]
    return min(peers, key=lambda name: (float(results.curves[name][:, :, k - 1].mean()), name))


def wilcoxon_holm(results: Results, ours: str, peers: Sequence[str], k: int) -> dict[str, float]:
    """p values of ours against each peer, over tasks by their mean over seeds (Wilcoxon 1945), corrected (Holm 1979).

    Tasks that share a target count as independent here, which they aren't: the intervals over targets are the ones to
    go by.
    """
    means = {name: results.curves[name][:, :, k - 1].mean(axis=1) for name in (ours, *peers)}
    raw = {name: _wilcoxon(means[ours] - means[name]) for name in peers}
    corrected, highest = {}, 0.0
    for place, name in enumerate(sorted(raw, key=lambda name: raw[name])):
        highest = max(highest, min(1.0, raw[name] * (len(raw) - place)))
        corrected[name] = highest
    return corrected


def _wilcoxon(differences: Array) -> float:
    return float(wilcoxon(differences).pvalue) if np.any(differences) else 1.0
