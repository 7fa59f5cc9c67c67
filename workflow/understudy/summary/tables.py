"""Trial records as polars tables: one row per trial, sorted by (stage, id).

What a trial *is* and what came of it stands in the trial table, which is the same on every run. What it cost and on
what it ran differs from run to run and lives in tables of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from understudy.errors import CorruptFileError
from understudy.files import written_whole
from understudy.hyperparameters import HYPERPARAMETERS
from understudy.trial import TrialRecord, TrialResult

KEY = ("stage", "id")
METRIC_PREFIX = "metric_"
_KINDS: dict[type, type[pl.DataType]] = {float: pl.Float64, int: pl.Int64, str: pl.String, bool: pl.Boolean}

TRIAL_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "id": pl.String,
    "stage": pl.String,
    "origin": pl.String,
    "status": pl.String,
    "objective": pl.Float64,
    "seed": pl.Int64,
    "fidelity": pl.Float64,
    "method": pl.String,
    "parents": pl.List(pl.String),
    "digest": pl.String,
    "steps": pl.Int64,
    "last_eval_loss": pl.Float64,
    **{name: _KINDS[item.kind] for name, item in HYPERPARAMETERS.items()},
}
COST_SCHEMA: dict[str, type[pl.DataType]] = {
    "id": pl.String,
    "stage": pl.String,
    "tokens": pl.Int64,
    "flops": pl.Float64,
    "wall_seconds": pl.Float64,
    "gpu_seconds": pl.Float64,
    "peak_memory_bytes": pl.Int64,
    "tokens_per_second": pl.Float64,
    "mfu": pl.Float64,
}
CURVE_SCHEMA: dict[str, type[pl.DataType]] = {
    "id": pl.String,
    "stage": pl.String,
    "step": pl.Int64,
    "tokens": pl.Int64,
    "train_loss": pl.Float64,
    "eval_loss": pl.Float64,
    "learning_rate": pl.Float64,
}


def trials_frame(records: Sequence[TrialRecord]) -> pl.DataFrame:
    """The trial table: `TRIAL_SCHEMA`, then one column `metric_<name>` per metric that any trial has, by name.

    `objective` is in mean nats per completion token and null unless the trial is complete; `last_eval_loss` is the last
    validation loss that was seen, which is all there is of a trial that was stopped; a hyperparameter that a trial
    doesn't have is null. The rows don't depend on the order of `records`. Raises `CorruptFileError` where two records
    of a stage share an id.
    """
    _refuse_duplicates(records)
    metrics = sorted({name for record in records for name in record.result.metrics})
    schema = TRIAL_SCHEMA | {METRIC_PREFIX + name: pl.Float64 for name in metrics}
    return pl.DataFrame([_trial_row(record) for record in records], schema=schema).sort(KEY)


def costs_frame(records: Sequence[TrialRecord]) -> pl.DataFrame:
    """What each trial took: `COST_SCHEMA`."""
    rows = [_key(record) | record.result.cost.model_dump() for record in records]
    return pl.DataFrame(rows, schema=COST_SCHEMA).sort(KEY)


def curves_frame(records: Sequence[TrialRecord]) -> pl.DataFrame:
    """Every evaluation of every trial: `CURVE_SCHEMA`; losses in mean nats per completion token."""
    rows = [_key(record) | point.model_dump() for record in records for point in record.result.curve]
    return pl.DataFrame(rows, schema=CURVE_SCHEMA).sort(*KEY, "step")


def provenance_frame(records: Sequence[TrialRecord]) -> pl.DataFrame:
    """On what each trial ran: id, stage, then one text column per fact, by name; null where it wasn't recorded."""
    facts = sorted({name for record in records for name in record.result.provenance} - set(KEY))
    schema = dict.fromkeys([*reversed(KEY), *facts], pl.String)
    return pl.DataFrame([record.result.provenance | _key(record) for record in records], schema=schema).sort(KEY)


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write a table whole or not at all."""
    with written_whole(path) as beside:
        frame.write_parquet(beside)


def write_csv(frame: pl.DataFrame, path: Path) -> None:
    """Write a table whole or not at all; lists become words with spaces between them."""
    lists = [name for name, kind in frame.schema.items() if isinstance(kind, pl.List)]
    with written_whole(path) as beside:
        frame.with_columns(pl.col(name).list.join(" ") for name in lists).write_csv(beside)


def _key(record: TrialRecord) -> dict[str, Any]:
    return {"id": record.spec.id, "stage": record.spec.stage}


def _trial_row(record: TrialRecord) -> dict[str, Any]:
    spec, result = record.spec, record.result
    return {
        **_key(record),
        "origin": spec.origin,
        "status": result.status,
        "objective": result.objective if result.status == "complete" else None,
        "seed": spec.seed,
        "fidelity": spec.fidelity,
        "method": spec.method,
        "parents": list(spec.parents),
        "digest": result.digest,
        "steps": result.steps,
        "last_eval_loss": _last_eval_loss(result),
        **{name: HYPERPARAMETERS[name].coerce(value) for name, value in spec.hyperparameters.items()},
        **{METRIC_PREFIX + name: float(value) for name, value in result.metrics.items()},
    }


def _last_eval_loss(result: TrialResult) -> float | None:
    return result.curve[-1].eval_loss if result.curve else result.metrics.get("eval_loss")


def _refuse_duplicates(records: Sequence[TrialRecord]) -> None:
    counts = Counter((record.spec.stage, record.spec.id) for record in records)
    twice = sorted(f"{stage}/{trial}" for (stage, trial), count in counts.items() if count > 1)
    if twice:
        raise CorruptFileError(
            f"these trials were given more than once: {', '.join(twice)}; each result file may be named only once"
        )
