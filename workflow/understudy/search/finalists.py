"""Who is trained again with several fresh seeds, and who wins."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from understudy.artifacts import Finalist, Score, Selection, Starts, Winner
from understudy.errors import CorruptFileError, UnderstudyError, UserError
from understudy.hyperparameters import Value
from understudy.search.values import Identity, identity
from understudy.trial import TrialRecord

_ID = re.compile(r"f(\d+)s(\d+)")


def select_finalists(configurations: int, starts: Starts, records: Sequence[TrialRecord]) -> Selection:
    """Rank 0 is the default configuration; ranks 1 to `configurations` are the best distinct complete target trials.

    Equal objectives go by id. A trial with the default's configuration is rank 0 already and is passed over. Since the
    number of finalists is fixed before anything has run, others stand in where too few trials are complete: trials that
    were stopped early, by the last loss that was seen of them, then starts that were never tried, in their order.
    Raises `UserError` where these are too few as well, and where no trial has a loss.
    """
    ordered = sorted(records, key=lambda record: record.spec.id)
    complete = sorted(
        (record for record in ordered if record.result.objective is not None),
        key=lambda record: (record.result.objective, record.spec.id),
    )
    finalists = [_default(starts, complete)]
    taken = {identity(starts.default)}
    for record in complete:
        _add(finalists, taken, _of_trial(record), configurations)
    stopped = [record for record in ordered if record.result.status == "stopped" and record.result.curve]
    for record in sorted(stopped, key=lambda record: (record.result.curve[-1].eval_loss, record.spec.id)):
        _add(finalists, taken, _of_trial(record), configurations)
    if records and not complete and not stopped:
        raise UserError(
            f"none of the {len(records)} target trials came to a loss ({_statuses(records)}), so there is nothing to "
            "choose from; narrow the `space`, as to lower learning rates where they diverged, or give them more memory"
        )
    tried = {identity(record.spec.hyperparameters) for record in ordered if record.result.status != "skipped"}
    for start in starts.starts:
        if identity(start.hyperparameters) not in tried:
            _add(finalists, taken, _untried(start.origin, start.hyperparameters), configurations)
    if len(finalists) <= configurations:
        raise UserError(
            f"`finalists.configurations` is {configurations}, but only {len(finalists) - 1} of {len(records)} target "
            f"trials can go on ({_statuses(records)}); lower it, or raise `target.trials`"
        )
    return Selection(finalists=tuple(finalists))


def _add(finalists: list[Finalist], taken: set[Identity], finalist: Finalist, configurations: int) -> None:
    """Append a finalist that is new, while there is room; its rank is its place."""
    key = identity(finalist.hyperparameters)
    if len(finalists) <= configurations and key not in taken:
        taken.add(key)
        finalists.append(finalist.model_copy(update={"rank": len(finalists)}))


def _default(starts: Starts, complete: Sequence[TrialRecord]) -> Finalist:
    """Rank 0, with the search trial that ran it, if one did."""
    key = identity(starts.default)
    found = next((record for record in complete if identity(record.spec.hyperparameters) == key), None)
    if found is not None:
        return _of_trial(found)
    return _untried("default", starts.default)


def _of_trial(record: TrialRecord) -> Finalist:
    spec = record.spec
    return Finalist(
        rank=0,
        trial=spec.id,
        origin=spec.origin,
        objective=record.result.objective,
        hyperparameters=spec.hyperparameters,
    )


def _untried(origin: str, values: dict[str, Value]) -> Finalist:
    return Finalist(rank=0, trial=None, origin=origin, objective=None, hyperparameters=values)


def choose_winner(selection: Selection, records: Sequence[TrialRecord]) -> Winner:
    """The finalist with the lowest mean loss over its seeds; one with a seed that isn't complete can't win.

    Equal means go to the lower rank, so to the default first. Raises `UnderstudyError` where no finalist has all its
    seeds, and `CorruptFileError` where a result is of no finalist.
    """
    by_rank = _by_rank(selection, records)
    scores = tuple(_score(finalist.rank, by_rank[finalist.rank]) for finalist in selection.finalists)
    whole = [score for score in scores if score.mean is not None and None not in score.objectives]
    if not whole:
        raise UnderstudyError(
            f"no finalist has a loss for each of its seeds, so there is no winner ({_statuses(records)}); "
            + "; ".join(f"{r.spec.id}: {r.result.message}" for r in records if r.result.message)
        )
    best = min(whole, key=lambda score: (score.mean, score.rank))
    winner = next(finalist for finalist in selection.finalists if finalist.rank == best.rank)
    return Winner(
        rank=best.rank,
        hyperparameters=winner.hyperparameters,
        digests=_digests(by_rank[best.rank]),
        default_digests=_digests(by_rank[0]),
        scores=scores,
    )


def _by_rank(selection: Selection, records: Sequence[TrialRecord]) -> dict[int, list[TrialRecord]]:
    """Each finalist's records by seed index; every record has to be a finalist's."""
    found: dict[int, dict[int, TrialRecord]] = {finalist.rank: {} for finalist in selection.finalists}
    configurations = {finalist.rank: finalist.hyperparameters for finalist in selection.finalists}
    for record in records:
        match = _ID.fullmatch(record.spec.id)
        rank = int(match[1]) if match else None
        if match is None or rank not in found or record.spec.hyperparameters != configurations[rank]:
            raise CorruptFileError(
                f"the result of `{record.spec.id}` belongs to none of the {len(found)} finalists of the selection; "
                "delete it and run the workflow again"
            )
        found[rank][int(match[2])] = record
    return {rank: [seeds[index] for index in sorted(seeds)] for rank, seeds in found.items()}


def _score(rank: int, records: Sequence[TrialRecord]) -> Score:
    """The mean and the deviation of what is complete."""
    objectives = tuple(record.result.objective for record in records)
    known = [objective for objective in objectives if objective is not None]
    return Score(
        rank=rank,
        objectives=objectives,
        mean=statistics.fmean(known) if known else None,
        standard_deviation=statistics.stdev(known) if len(known) > 1 else None,
    )


def _digests(records: Sequence[TrialRecord]) -> tuple[str, ...]:
    """Store entries of the complete ones, best first."""
    complete = [record for record in records if record.result.objective is not None]
    ordered = sorted(complete, key=lambda record: (record.result.objective, record.spec.id))
    return tuple(record.result.digest for record in ordered)


def _statuses(records: Sequence[TrialRecord]) -> str:
    statuses = [record.result.status for record in records]
    return ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses))) or "no trial ran"
