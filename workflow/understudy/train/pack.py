"""A pack: many trials, one after the other on one copy of the base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from understudy import devices
from understudy.train.trial import Job, train_trial
from understudy.trial import Pack, PackResults, TrialRecord, TrialSpec

if TYPE_CHECKING:
    from understudy.train.engine import Engine


def train_pack(pack: Pack, job: Job) -> PackResults:
    """The records of a pack's trials, in its order. Base, data and torch are loaded for the first untrained one.

    Each finished trial is in the store at once, so a kill loses only the one that was running.
    """
    engine: Engine | None = None

    def train(spec: TrialSpec) -> TrialRecord:
        nonlocal engine
        if engine is None:
            devices.lease(job.inputs.execution)
            from understudy.train.engine import Engine

            engine = Engine(job)
        return engine.train(spec)

    return PackResults(id=pack.id, records=tuple(train_trial(spec, job, train) for spec in pack.specs))
