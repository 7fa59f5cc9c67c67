"""What a sampler proposes after a history: the two-fidelity model, or one of Optuna's.

For Optuna's a study is rebuilt in memory from the trial files, in trial order. Every past trial has the same
distributions, those of the one global space: Optuna drops a parameter whose range differs anywhere from the joint
model. So regions are never expressed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from understudy.artifacts import Outlook, Surface
from understudy.errors import UserError
from understudy.hyperparameters import Value
from understudy.search.distributions import as_searched, distribution, from_optuna, to_optuna
from understudy.search.early_stopping import expected_loss
from understudy.search.failures import worse_than
from understudy.search.quiet import quiet_optuna
from understudy.search.window import History
from understudy.settings import Sampler
from understudy.space import Space, consistent
from understudy.trial import TrialRecord

CAP_SPREADS = 3.0  # a loss further above the median than this many times (median - best) is told as that bad
CANDIDATES: Mapping[Sampler, int] = {"tpe": 16, "random": 16, "gp": 1}  # draws per proposal


def candidates(space: Space, history: History, sampler: Sampler, seeds: Sequence[int]) -> list[dict[str, Value]]:
    """A configuration of the space per seed by one of Optuna's samplers, each asked from the same study.

    The model, not its random fallback, makes them as soon as one result is visible.
    """
    with quiet_optuna() as optuna:
        distributions = {name: distribution(parameter) for name, parameter in space.items()}
        study = rebuild(optuna, space, history, distributions)
        found = []
        for seed in seeds:
            study.sampler = _make(optuna, sampler, seed)
            trial = study.ask(distributions)
            values = {name: from_optuna(space[name], trial.params[name]) for name in space}
            found.append(consistent(space, values))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)  # or the next one would avoid it as running
    return found


def refined(
    space: Space,
    history: History,
    seed: int,
    surface: Surface | None,
    hints: Sequence[Mapping[str, Value]],
    gain: float = 0.0,
) -> tuple[dict[str, Value], Outlook]:
    """What `two_fidelity` proposes, with the `hints` among its candidates, and what its model expects.

    It is what `TwoFidelitySampler` proposes to a study with this history, its losses as `told_values` has them, without
    Optuna. Raises `UserError` where there is no surface.
    """
    from understudy.search.acquisition import Acquisition

    if surface is None:
        raise UserError("the transfer has no surface for `target.sampler: two_fidelity`; run the workflow again")
    truncated = [
        ({name: record.spec.hyperparameters[name] for name in space}, loss)
        for record, loss in _losses(history.truncated)
    ]
    finished = _losses(history.visible)
    acquisition = Acquisition(surface, space, seed, hints, gain, truncated)
    chosen = acquisition.choose(
        [as_searched(space, record.spec.hyperparameters) for record, _ in finished],
        [loss for _, loss in finished],
        [as_searched(space, each.spec.hyperparameters) for each in history.pending if each.skip is None],
    )
    assert acquisition.outlook is not None
    return as_searched(space, chosen), acquisition.outlook


def _losses(records: Sequence[TrialRecord]) -> list[tuple[TrialRecord, float]]:
    """The trials that say something, with what the sampler is told of them; infinity for those that failed."""
    told = zip(records, told_values(records), _failed(records), strict=True)
    return [(record, math.inf if bad else value) for record, value, bad in told if value is not None]


def _make(optuna: Any, name: Sampler, seed: int) -> Any:
    """The Optuna sampler. `n_startup_trials` counts completed trials only: the given starts have to be enough."""
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=1)
    if name == "gp":
        from understudy.process import set_threads

        set_threads(1)
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)
    return optuna.samplers.RandomSampler(seed=seed)


def rebuild(optuna: Any, space: Space, history: History, distributions: Mapping[str, Any]) -> Any:
    """The study as the proposal may know it: results complete, later proposals running, what is skipped left out."""
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.RandomSampler(seed=0))
    seen = history.visible
    for record, told in zip(seen, told_values(seen), strict=True):
        if told is None:
            continue
        params = {name: to_optuna(space[name], record.spec.hyperparameters[name]) for name in space}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=dict(distributions), value=told))
    for proposal in history.pending:
        if proposal.skip is not None:
            continue
        params = {name: to_optuna(space[name], proposal.spec.hyperparameters[name]) for name in space}
        running = optuna.trial.TrialState.RUNNING
        study.add_trial(optuna.trial.create_trial(state=running, params=params, distributions=dict(distributions)))
    return study


def told_values(records: Sequence[TrialRecord]) -> list[float | None]:
    """What the sampler is told of each trial: always finite; None for one that was skipped and so says nothing.

    A complete trial's loss, and what is expected of one that was stopped early; capped, so that a loss out of scale
    can't flatten a GP's view of the others. Any other status counts as worse than the worst by a margin.
    """
    losses = [_loss(record) for record in records]
    losses = [
        expected_loss(record, records) if loss is None else loss for record, loss in zip(records, losses, strict=True)
    ]
    known = sorted(loss for loss in losses if loss is not None)
    if not known:
        return [None if record.result.status == "skipped" else 0.0 for record in records]
    best, median = known[0], known[len(known) // 2]
    cap = median + CAP_SPREADS * (median - best) if median > best else math.inf
    bad = worse_than([best, min(known[-1], cap)])
    return [
        min(loss, cap) if loss is not None else None if record.result.status == "skipped" else bad
        for record, loss in zip(records, losses, strict=True)
    ]


def _failed(records: Sequence[TrialRecord]) -> list[bool]:
    """Which trials ended with neither a loss nor one that can be expected, and weren't skipped."""
    return [
        _loss(record) is None and expected_loss(record, records) is None and record.result.status != "skipped"
        for record in records
    ]


def _loss(record: TrialRecord) -> float | None:
    """The objective where it can be used: complete and finite."""
    objective = record.result.objective
    usable = record.result.status == "complete" and objective is not None and math.isfinite(objective)
    return objective if usable else None
