"""A trial's record: from the store if it is there, else trained. Nothing in this module imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from understudy import progress
from understudy.store import Store
from understudy.trial import TrialInputs, TrialRecord, TrialResult, TrialSpec, trial_digest


@dataclass(frozen=True)
class Job:
    """Everything beside the specs that a training command was given."""

    inputs: TrialInputs
    train: Path  # parquet
    validation: Path  # parquet
    store: Path
    progress: Path


def train_trial(spec: TrialSpec, job: Job, train: Callable[[TrialSpec], TrialRecord]) -> TrialRecord:
    """The record of a trial, with this spec. `train` is called where the store doesn't have it yet.

    `train` keeps the record in the store itself, and for a finalist its adapter or weights before it. While it
    runs, the store's entry is locked, and who else wants the same trial waits.
    """
    store, digest = Store(job.store), trial_digest(spec, job.inputs)
    with store.locked(digest):
        found = store.find(digest)
        reused = found is not None and not _lacks_weights(found, spec, store)
        record = found if found is not None and reused else train(spec)
    record = TrialRecord(spec=spec, result=record.result)
    progress.finished(job.progress, record, reused)
    return record


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
    """A finished trial that was kept without its weights, which are needed now."""
    wanted = keeps_weights(spec) and record.result.status == "complete"
    return wanted and not store.adapter(record.result.digest).is_dir()
