"""A pack: from its plan to its results. What the store has isn't trained again.

Nothing here imports torch before something has to be trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from understudy import devices, progress
from understudy.files import digest
from understudy.store import Store
from understudy.train.packed.halving import Brackets, scores_of_finished
from understudy.train.trial import Job, train_trial
from understudy.trial import Halving, Pack, PackResults, TrialRecord, TrialSpec, halved_digest, trial_digest

if TYPE_CHECKING:
    from understudy.train.engine import Engine


def train_pack(pack: Pack, job: Job) -> PackResults:
    """The records of a pack's trials, in its order.

    Trials are trained together on one base, those named in `Pack.solo` alone after them. Each finished trial is in
    the store at once, and the state of the others in a checkpoint every minute, which is as much as a kill costs.
    """
    training = _Training(pack, job)
    together = [spec for spec in pack.specs if spec.id not in pack.solo]
    with ExitStack() as locks:
        for entry in sorted(
            {training.digests[spec.id] for spec in together}
        ):  # in one order, so that packs can't block each other
            locks.enter_context(training.store.locked(entry))
        notes = training.together(together)
    for spec in pack.specs:
        if spec.id in pack.solo:
            training.alone(spec)
    notes += [f"{', '.join(ids)} trained alone: {reason}" for reason, ids in _by_reason(pack).items()]
    return PackResults(id=pack.id, records=tuple(training.records[spec.id] for spec in pack.specs), notes=tuple(notes))


def _by_reason(pack: Pack) -> dict[str, list[str]]:
    """The trials that are trained alone, by the reason why."""
    found: dict[str, list[str]] = {}
    for spec in pack.specs:
        if spec.id in pack.solo:
            found.setdefault(pack.solo[spec.id], []).append(spec.id)
    return found


class _Training:
    """One pack on its way from specs to records."""

    def __init__(self, pack: Pack, job: Job) -> None:
        self.pack, self.job, self.store = pack, job, Store(job.store)
        self.digests = {spec.id: trial_digest(spec, job.inputs) for spec in pack.specs}
        together = [spec.id for spec in pack.specs if spec.id not in pack.solo]
        self.first = {self.digests[id]: id for id in reversed(together)}  # of trials that are the same
        self.halving = self._halving_of_different_trials()
        self.records: dict[str, TrialRecord] = {}
        self._engine: Engine | None = None

    def together(self, specs: Sequence[TrialSpec]) -> list[str]:
        """Train what the store lacks; return what went otherwise than planned."""
        different = [spec for spec in specs if self.first[self.digests[spec.id]] == spec.id]
        notes = self._different(different)
        for spec in specs:
            if spec.id not in self.records:
                self._reuse(spec, self.records[self.first[self.digests[spec.id]]])
        return notes

    def _different(self, specs: Sequence[TrialSpec]) -> list[str]:
        halving, packing = self.halving, self.job.inputs.execution.packing
        halved = {id for bracket in halving.brackets for id in bracket} if halving is not None else set()
        stopped = {id: halved_digest(self.digests, id, halving) for id in halved} if halving is not None else {}
        found = {spec.id: self._find(spec, stopped.get(spec.id)) for spec in specs}
        for spec in specs:
            self._reuse(spec, found[spec.id])
        wanted = [spec for spec in specs if spec.id not in self.records]
        path = self._checkpoint_path(specs)
        if not wanted:
            path.unlink(missing_ok=True)  # of a pack that was killed in its last moment
            return []
        assert packing is not None, "the plan sends every trial alone where packing is off"
        brackets = self._brackets()
        engine = self._prepared()
        from understudy.train.packed.checkpoint import Checkpoint
        from understudy.train.packed.train import train_together

        checkpoint = Checkpoint(path)
        unfinished = checkpoint.trials()
        # trials that ended after the last checkpoint go on with the others, so that these have the same company again
        wanted += [spec for spec in specs if spec.id in self.records and spec.id in unfinished]
        complete = (record.result.objective for record in self.records.values())
        best = min((objective for objective in complete if objective is not None), default=math.inf)
        return train_together(
            engine, packing, wanted, specs, self.digests, stopped, brackets, checkpoint, best, self._finished
        )

    def alone(self, spec: TrialSpec) -> None:
        """Train a trial through peft and transformers' own modules."""
        self.records[spec.id] = train_trial(spec, self.job, lambda spec: self._prepared().train(spec))

    def _prepared(self) -> Engine:
        """Base, data and torch, loaded for the first untrained trial."""
        if self._engine is None:
            devices.lease(self.job.inputs.execution)
            from understudy.train.engine import Engine

            self._engine = Engine(self.job)
        return self._engine

    def _find(self, spec: TrialSpec, stopped: str | None) -> TrialRecord | None:
        found = self.store.find(self.digests[spec.id])
        return self.store.find(stopped) if found is None and stopped is not None else found

    def _reuse(self, spec: TrialSpec, record: TrialRecord | None) -> None:
        if record is not None:
            self.records[spec.id] = TrialRecord(spec=spec, result=record.result)
            progress.finished(self.job.progress, self.records[spec.id], reused=True)

    def _finished(self, record: TrialRecord) -> None:
        if record.spec.id in self.records:
            return
        self.store.save(record)
        self.records[record.spec.id] = record
        progress.finished(self.job.progress, record, reused=False)

    def _halving_of_different_trials(self) -> Halving | None:
        """The pack's halving, in which trials that are the same are one: the first's fate is the others'."""
        halving, different = self.pack.halving, set(self.first.values())
        if halving is None:
            return None
        brackets = (tuple(id for id in bracket if id in different) for bracket in halving.brackets)
        return halving.model_copy(update={"brackets": tuple(brackets)})

    def _brackets(self) -> Brackets | None:
        """The pack's brackets with the scores of those that are finished already."""
        if self.halving is None:
            return None
        brackets = Brackets(self.halving)
        for id, record in self.records.items():
            if id in brackets:
                for rung, score in enumerate(scores_of_finished(self.halving, record.result)):
                    brackets.report(id, rung, score)
        return brackets

    def _checkpoint_path(self, specs: Sequence[TrialSpec]) -> Path:
        halving = self.halving.model_dump(mode="json") if self.halving is not None else None
        name = digest(
            {"trials": sorted({spec.id: self.digests[spec.id] for spec in specs}.items()), "halving": halving}
        )
        return self.store.root / "packs" / f"{name}.pt"
