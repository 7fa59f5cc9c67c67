"""A pack: from its plan to its results. What the store has isn't trained again.

Nothing here imports torch before something has to be trained.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from understudy import devices, interruption, progress, watchdog
from understudy.files import digest, read_json, write_json
from understudy.store import Store
from understudy.train.packed.halving import Brackets, as_stopped, known_scores
from understudy.train.trial import Job, train_trial
from understudy.trial import Pack, PackResults, TrialRecord, TrialSpec, halved_digest, trial_digest

if TYPE_CHECKING:
    from understudy.train.engine import Engine


def train_pack(pack: Pack, job: Job) -> PackResults:
    """The records of a pack's trials, in its order.

    Trials are trained together on one base, those named in `Pack.solo` alone after them. Each finished trial is in
    the store at once, and the state of the others in a checkpoint every
    `checkpoint_minutes`, which is as much as a kill costs. Raises `InterruptionError` after a signal.
    """
    training = _Training(pack, job)
    with training.locked():
        training.together([spec for spec in pack.specs if spec.id not in pack.solo])
    for spec in pack.specs:
        if spec.id in pack.solo:
            training.alone(spec)
    notes = [*pack.notes, *training.notes, *_alone(pack)]
    return PackResults(id=pack.id, records=tuple(training.records[spec.id] for spec in pack.specs), notes=tuple(notes))


def _alone(pack: Pack) -> list[str]:
    """Which trials the plan sends alone, by the reason why."""
    found: dict[str, list[str]] = {}
    for spec in pack.specs:
        if spec.id in pack.solo:
            found.setdefault(pack.solo[spec.id], []).append(spec.id)
    return [f"{', '.join(ids)} trained alone: {reason}" for reason, ids in found.items()]


class _Training:
    """One pack on its way from specs to records.

    A bracketed trial has up to two entries in the store: one of its own bracket where that stopped it, which counts
    first, and a plain one, whoever trained it in full. The plain one is judged as if the trial had been trained here,
    so what comes of a trial doesn't depend on which pack was first.
    """

    def __init__(self, pack: Pack, job: Job) -> None:
        self.pack, self.job, self.store = pack, job, Store(job.store)
        self.digests = {spec.id: trial_digest(spec, job.inputs) for spec in pack.specs}
        self.first = self._first_of_equals()
        different = set(self.first.values())
        brackets = pack.halving.brackets if pack.halving is not None else ()
        own = tuple(tuple(id for id in bracket if id in different) for bracket in brackets)
        self.halving = pack.halving and pack.halving.model_copy(update={"brackets": own})
        self.stopped = (
            {id: halved_digest(self.digests, id, self.halving) for bracket in own for id in bracket}
            if self.halving is not None
            else {}
        )
        self.records: dict[str, TrialRecord] = {}
        self._engine: Engine | None = None

    def locked(self) -> AbstractContextManager[None]:
        """For one process at a time that trains this pack.

        Another pack may train one of its trials meanwhile, which costs time and changes nothing: the first record of a
        trial is kept.
        """
        return self.store.pack_locked(self._name)

    def together(self, specs: Sequence[TrialSpec]) -> None:
        """Train what the store lacks."""
        self._different([spec for spec in specs if self.first[spec.id] == spec.id])
        for spec in specs:
            if spec.id not in self.records:
                self._reuse(spec, self.records[self.first[spec.id]])

    def alone(self, spec: TrialSpec) -> None:
        """Train a trial through peft and transformers' own modules."""
        if self._find(spec) is None:  # a device is waited for before the entry is held: who has one may want that
            self._prepared()
        self.records[spec.id] = train_trial(spec, self.job, lambda spec: self._prepared().train(spec))

    @cached_property
    def notes(self) -> list[str]:
        """What went otherwise than planned, also when the pack was trained before."""
        path = self._path("notes.json")
        return list(read_json(path)) if path.exists() else []

    def note(self, text: str) -> None:
        """Keep a note where a rerun finds it."""
        if text not in self.notes:
            self.notes.append(text)
            write_json(self._path("notes.json"), self.notes)

    def _different(self, specs: Sequence[TrialSpec]) -> None:
        found = {spec.id: record for spec in specs if (record := self._find(spec)) is not None}
        wanted = [spec for spec in specs if spec.id not in found]
        begun = self._begun(bool(wanted))
        brackets = self._brackets(found, begun)
        judged = {id for id in found if id in self.stopped and found[id].result.status != "stopped"}
        for spec in specs:
            if spec.id in found and spec.id not in judged:
                self._reuse(spec, found[spec.id])
        if wanted:
            # trials that ended after the last checkpoint go on with the others, so that these have the same company
            self._train([*wanted, *(spec for spec in specs if spec.id in found and spec.id in begun)], specs, brackets)
        for spec in specs:
            if spec.id not in self.records:
                self._reuse(spec, self._judged(found[spec.id], spec.id, brackets))

    def _find(self, spec: TrialSpec) -> TrialRecord | None:
        stopped = self.stopped.get(spec.id)
        found = self.store.find(stopped) if stopped is not None else None
        return self.store.find(self.digests[spec.id]) if found is None else found

    def _begun(self, going_on: bool) -> Collection[str]:
        """The trials in the checkpoint. Where nothing is left to train it goes: the pack was killed at its end."""
        path = self._path("pt")
        if not path.exists():
            return ()
        if not going_on:
            path.unlink()
            return ()
        devices.lease(self.job.inputs.execution)  # before torch is there, whose allocator reads its settings then
        from understudy.train.packed.checkpoint import Checkpoint

        return Checkpoint(path).trials()

    def _brackets(self, found: Mapping[str, TrialRecord], begun: Collection[str]) -> Brackets | None:
        """The pack's brackets, with the scores of those that are finished.

        Who was trained without scores takes no part. Who is in the checkpoint is scored when it comes to its rungs.
        """
        if self.halving is None:
            return None
        known = {
            id: known_scores(self.halving, found[id].result) for id in self.stopped if id in found and id not in begun
        }
        brackets = Brackets(self.halving, absent=[id for id, scores in known.items() if scores is None])
        for id, scores in known.items():
            for rung, score in enumerate(scores or ()):
                brackets.report(id, rung, score.score)
        return brackets

    def _train(self, specs: Sequence[TrialSpec], company: Sequence[TrialSpec], brackets: Brackets | None) -> None:
        packing = self.job.inputs.execution.packing
        assert packing is not None, "the plan sends every trial alone where packing is off"
        engine = self._prepared()
        from understudy.train import determinism
        from understudy.train.packed.base import why_unreadable
        from understudy.train.packed.checkpoint import Checkpoint
        from understudy.train.packed.train import Company, train_together

        running = self.job.running
        with watchdog.watching(running.watchdog_minutes, f"the base of pack {self.pack.id}"), watchdog.input_output():
            reason = why_unreadable(engine.frozen_base)
        if reason is not None:
            interruption.check()  # then a library may be half imported, and the base be readable after all
            halving = ", and in full in spite of `proxy.halving`" if self.stopped else ""
            self.note(f"the pack's trials trained alone{halving}: {reason}")
            for spec in specs:
                if spec.id not in self.records:
                    self.alone(spec)
            return
        again = {spec.id for spec in specs}
        known = (record.result.objective for id, record in self.records.items() if id not in again)
        best = min((objective for objective in known if objective is not None), default=math.inf)
        names = Company(company, self.digests, self.stopped)
        file = Checkpoint(self._path("pt"), 60 * running.checkpoint_minutes)

        def begin_again() -> None:
            if brackets is not None:
                for spec in specs:
                    brackets.forget(spec.id)

        with watchdog.watching(running.watchdog_minutes, f"pack {self.pack.id}"), interruption.deferred():
            determinism.as_far_as_possible(
                lambda: train_together(engine, packing, specs, names, brackets, file, best, self._finished, self.note),
                begin_again,
            )

    def _judged(self, record: TrialRecord, id: str, brackets: Brackets | None) -> TrialRecord:
        """A bracketed trial that was trained in full: as it is, or as it would be had its bracket stopped it."""
        if brackets is None or self.halving is None or id not in brackets:
            return record
        rung, scores = brackets.stopped_at(id), known_scores(self.halving, record.result)
        if rung is None or scores is None or scores[rung].step is None:
            return record
        result = as_stopped(self.halving, rung, record.result, self.stopped[id])
        return self.store.keep(TrialRecord(spec=record.spec, result=result))

    def _prepared(self) -> Engine:
        """Base, data and torch, loaded for the first untrained trial."""
        if self._engine is None:
            devices.lease(self.job.inputs.execution)
            from understudy.train.engine import Engine

            self._engine = Engine(self.job)
        return self._engine

    def _reuse(self, spec: TrialSpec, record: TrialRecord) -> None:
        self.records[spec.id] = TrialRecord(spec=spec, result=record.result)
        progress.finished(self.job.progress, self.records[spec.id], reused=True)

    def _finished(self, record: TrialRecord) -> None:
        if record.spec.id in self.records:
            return
        kept = self.store.keep(record)
        self.records[record.spec.id] = TrialRecord(spec=record.spec, result=kept.result)
        progress.finished(self.job.progress, self.records[record.spec.id], reused=False)

    def _first_of_equals(self) -> dict[str, str]:
        """To each packed trial the first one that is the same, in brackets and outside of them each for itself.

        A trial in a bracket has the fate of the first such one. Outside of them it always runs in full.
        """
        brackets = self.pack.halving.brackets if self.pack.halving is not None else ()
        bracketed = {id for bracket in brackets for id in bracket}
        first: dict[tuple[str, bool], str] = {}
        together = [spec.id for spec in self.pack.specs if spec.id not in self.pack.solo]
        return {id: first.setdefault((self.digests[id], id in bracketed), id) for id in together}

    @cached_property
    def _name(self) -> str:
        halving = self.halving.model_dump(mode="json") if self.halving is not None else None
        different = sorted({id: self.digests[id] for id in self.first.values()}.items())
        return digest({"trials": different, "halving": halving})

    def _path(self, suffix: str) -> Path:
        return self.store.pack_file(self._name, suffix)
