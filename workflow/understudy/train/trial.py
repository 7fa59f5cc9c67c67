"""A trial's record: from the store if it is there, else trained. Nothing in this module imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from understudy import checksums, interruption, process, progress
from understudy.settings import RunningSettings
from understudy.steps import find_stop, total_steps
from understudy.store import Store
from understudy.trial import (
    EarlyStop,
    TrialInputs,
    TrialRecord,
    TrialResult,
    TrialSpec,
    early_stopped_digest,
    trial_digest,
)


@dataclass(frozen=True)
class Job:
    """Everything beside the specs that a training command was given."""

    inputs: TrialInputs
    train: Path  # parquet
    validation: Path  # parquet
    store: Path
    progress: Path
    stop_above: tuple[float | None, ...] = ()  # of a target trial: its proposal's limits, see `steps.find_stop`
    running: RunningSettings = field(default_factory=RunningSettings)
    gpu_bytes: int | None = None  # see `Execution`


def train_trial(
    spec: TrialSpec, job: Job, train: Callable[[TrialSpec], TrialRecord], only: bool = False
) -> TrialRecord:
    """The record of a trial, with this spec. `train` is called where the store doesn't have it yet.

    `train` keeps the record in the store itself, and for a finalist its adapter or weights before it. While it
    runs, the store's entry is locked, and who else wants the same trial waits. Its checkpoint goes when it is through.

    With limits a trial has up to two entries: one of its own for these limits where they stopped it, and a plain one,
    whoever trained it in full. The plain one is judged as if the trial had been trained now.

    `only` says that this process is there for this trial alone, so that all its time counts towards the pace.
    """
    interruption.check()
    store, digest = Store(job.store), trial_digest(spec, job.inputs)
    with store.locked(digest):
        found = _find(spec, job, store, digest)
        reused = found is not None and not _lacks_weights(found, spec, store)
        record = found if found is not None and reused else train(spec)
        store.drop_checkpoint(digest)
    record = TrialRecord(spec=spec, result=record.result)
    progress.finished(job.progress, record, reused, process.age() if only else 0.0)
    return record


def _find(spec: TrialSpec, job: Job, store: Store, digest: str) -> TrialRecord | None:
    """What the store has of a trial under the job's limits."""
    if not job.stop_above:
        return store.find(digest)
    own = early_stopped_digest(digest, job.stop_above)
    if (stopped := store.find(own)) is not None:
        return stopped
    found = store.find(digest)
    if found is None:
        return None
    steps = total_steps(job.inputs.data.train_examples, spec.hyperparameters, spec.fidelity)
    stop = find_stop(found.result.curve, steps, job.stop_above)
    if stop is None:
        return found
    return store.keep(TrialRecord(spec=found.spec, result=as_stopped(found.result, stop, own)))


def as_stopped(result: TrialResult, stop: EarlyStop, digest: str) -> TrialResult:
    """What would have come of a finished trial, had it been stopped; its cost stays what was spent."""
    changes: dict[str, object] = {
        "digest": digest,
        "status": "stopped",
        "objective": None,
        "metrics": {},
        "curve": tuple(point for point in result.curve if point.step <= stop.step),
        "steps": stop.step,
        "early_stop": stop,
        "message": stop.message,
    }
    return result.model_copy(update=changes)


def skip_trial(spec: TrialSpec, job: Job, reason: str) -> TrialRecord:
    """The record of a trial that isn't worth its price. The store doesn't get it: another study may want the trial."""
    result = TrialResult(digest=trial_digest(spec, job.inputs), status="skipped", message=reason)
    record = TrialRecord(spec=spec, result=result)
    progress.finished(job.progress, record, reused=False)
    return record


def keeps_weights(spec: TrialSpec) -> bool:
    """Whether a trial's adapter or weights are kept: only finalists are used again."""
    return spec.stage == "finalist"


def _lacks_weights(record: TrialRecord, spec: TrialSpec, store: Store) -> bool:
    """A finished trial that was kept without its weights, which are needed now, or whose weights were altered."""
    if not keeps_weights(spec) or record.result.status != "complete":
        return False
    folder = store.adapter(record.result.digest)
    return not folder.is_dir() or bool(checksums.altered(folder))
