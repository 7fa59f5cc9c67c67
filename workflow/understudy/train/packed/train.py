"""From specs to records: set a pack up, train it, tell what comes of each trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from understudy import checksums, interruption
from understudy.errors import StorageError
from understudy.files import folder_whole
from understudy.interruption import InterruptionError
from understudy.steps import total_steps
from understudy.store import Store
from understudy.train import memory
from understudy.train.engine import Engine
from understudy.train.packed import adapters
from understudy.train.packed.base import Base, read_base
from understudy.train.packed.checkpoint import Checkpoint
from understudy.train.packed.halving import Brackets, rung_step
from understudy.train.packed.pack import Note, Pack
from understudy.train.packed.rows import Corpus
from understudy.train.packed.trials import Orders, Trial, learning_rates
from understudy.trial import Packing, Status, TrialRecord, TrialSpec


@dataclass(frozen=True)
class Company:
    """All different trials of a pack, finished ones too."""

    specs: Sequence[TrialSpec]
    digests: Mapping[str, str]  # the trials' store entries by id
    stopped: Mapping[str, str]  # those of trials that their brackets stop


def train_together(
    engine: Engine,
    packing: Packing,
    specs: Sequence[TrialSpec],
    company: Company,
    brackets: Brackets | None,
    checkpoint: Checkpoint,
    best: float,
    finished: Callable[[TrialRecord], None],
    note: Note,
) -> None:
    """Train some trials of a pack on the engine's base and hand each record to `finished` as soon as there is one.

    The adapter of the first trial that beats `best` is kept in its entry, until a better one takes its place. `note` is
    told what goes otherwise than planned. Raises `InterruptionError` after a signal.
    """
    settings = engine.job.inputs.training
    base = read_base(engine.frozen_base, packing.dense)
    corpus, fresh = Corpus(engine.examples.train, base.device), adapters.Fresh(base)
    orders, store = Orders(len(corpus)), Store(engine.job.store)

    batched = _at_once(base.device)
    common = fresh.common_layout(company.specs) if batched else None  # the same after an interruption

    def begin(spec: TrialSpec) -> Trial:
        own = fresh.layout(spec)
        layout = common or own
        whole = partial(fresh.weights, spec, layout)
        return Trial(spec, layout, corpus, settings.evaluations, orders, whole, own if common else None)

    kept: str | None = None  # the entry in which this process has put the best adapter so far

    def ended(trial: Trial, status: Status, message: str | None, values: Tensor | None) -> None:
        nonlocal best, kept
        spec = trial.spec
        digest = (company.stopped if status == "stopped" else company.digests)[spec.id]
        scores = tuple(trial.rung_scores)
        record = engine.record(spec, digest, trial.history, status, message, trial.seconds, "packed", scores)
        finished(record)
        if record.result.objective is not None and record.result.objective < best:
            assert values is not None
            best = record.result.objective
            new = _keep(store, digest, base, trial, values, note)
            if kept is not None and store.adapter(digest).exists():
                with suppress(OSError, StorageError):  # then it takes room, and nothing else
                    store.drop_adapter(kept)
                kept = None
            kept = digest if new else kept

    memory.reset_peak()
    if brackets is not None:
        _note_untrained(brackets, company.specs, len(corpus), note)
    trials = [begin(spec) for spec in specs]
    pack = Pack(base, trials, engine.examples, corpus, packing, brackets, ended, note, batched)
    state = checkpoint.load()
    if state is not None:
        pack.restore(state)
        steps = [trial.history.steps for trial in pack.trials()]
        print(
            f"goes on after step {max(steps)}, the furthest of {len(steps)} trials, from {checkpoint.path}", flush=True
        )

    def after_round() -> None:
        if (signal := interruption.asked()) is not None:
            state = "its checkpoint is kept" if checkpoint.save(pack) else "it couldn't be saved"
            raise InterruptionError(signal, f"with {len(pack.trials())} of the pack's trials not finished; {state}")
        checkpoint.save_when_due(pack)

    pack.run(after_round)
    checkpoint.remove()
    memory.release()


def _at_once(device: torch.device) -> bool:
    """Whether the adapters' products of all trials are taken at once."""
    return device.type == "cuda"


def _keep(store: Store, digest: str, base: Base, trial: Trial, values: Tensor, note: Note) -> bool:
    """Save an adapter beside its record; False where there is one.

    Where that fails the record is there all the same, and a note says so.
    """
    folder = store.adapter(digest)
    try:
        with store.locked(digest):
            if folder.exists():
                return False
            with folder_whole(folder) as beside:
                adapters.save(base, trial.spec, trial.layout, values, beside)
                checksums.write_list(beside)
            return True
    except (MemoryError, RuntimeError, OSError, StorageError) as error:
        note(f"the adapter of {trial.spec.id} couldn't be saved ({memory.reason(error)}); its result is complete")
        memory.release()
        return False


def _note_untrained(brackets: Brackets, specs: Sequence[TrialSpec], examples: int, note: Note) -> None:
    """Say which trials are compared before they have learnt anything, since their rates begin at 0."""
    rungs, members = brackets.halving.rungs, [spec for spec in specs if spec.id in brackets]
    steps = {spec.id: total_steps(examples, spec.hyperparameters, spec.fidelity) for spec in members}
    rates = {spec.id: learning_rates(spec.hyperparameters, steps[spec.id]) for spec in members}
    for rung, share in enumerate(rungs, start=1):
        at = {id: rung_step(share, count) for id, count in steps.items()}
        untrained = [id for id in at if at[id] < steps[id] and not any(rates[id][: at[id]])]
        if untrained:
            note(
                f"rung {rung} of {len(rungs)} compares {', '.join(untrained)} before the first step with a learning "
                "rate above 0, where the number decides; longer trials, fewer rungs or less warm-up mend that"
            )
