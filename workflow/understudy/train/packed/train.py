"""From specs to records: set a pack up, train it, tell what comes of each trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from understudy.store import Store
from understudy.train import memory
from understudy.train.engine import Engine, folder_whole
from understudy.train.packed import adapters
from understudy.train.packed.base import Base, read_base
from understudy.train.packed.checkpoint import Checkpoint
from understudy.train.packed.halving import Brackets
from understudy.train.packed.pack import Pack
from understudy.train.packed.rows import Corpus
from understudy.train.packed.trials import Orders, Trial
from understudy.trial import Packing, Status, TrialRecord, TrialSpec


def train_together(
    engine: Engine,
    packing: Packing,
    specs: Sequence[TrialSpec],
    company: Sequence[TrialSpec],
    digests: Mapping[str, str],
    stopped: Mapping[str, str],
    brackets: Brackets | None,
    checkpoint: Checkpoint,
    best: float,
    finished: Callable[[TrialRecord], None],
) -> list[str]:
    """Train some trials on the engine's base and hand each record to `finished` as soon as there is one.

    `company` are all trials of the pack, finished ones too. `digests` names the store entries of the trials by id,
    `stopped` those of trials that halving stops. The adapter of a trial that beats `best` and all before it is kept in
    its entry. The return value says what went otherwise than planned.
    """
    settings = engine.job.inputs.training
    base = read_base(engine.frozen_base, packing.dense)
    corpus, fresh = Corpus(engine.examples.train, base.device), adapters.Fresh(base)
    orders, store = Orders(len(corpus)), Store(engine.job.store)

    batched = _at_once(base.device)
    common = fresh.common_layout(company) if batched else None  # the same after an interruption

    def begin(spec: TrialSpec) -> Trial:
        layout = common or fresh.layout(spec)
        return Trial(spec, layout, corpus, settings.evaluations, orders, partial(fresh.weights, spec, layout))

    def ended(trial: Trial, status: Status, message: str | None, values: Tensor | None) -> None:
        nonlocal best
        spec = trial.spec
        digest = (stopped if status == "stopped" else digests)[spec.id]
        scores = brackets.scores_of(spec.id) if brackets is not None else ()
        record = engine.record(spec, digest, trial.history, status, message, trial.seconds, "packed", scores)
        if record.result.objective is not None and record.result.objective < best:
            assert values is not None
            best = record.result.objective
            _keep(store.adapter(digest), base, trial, values)
        finished(record)

    memory.reset_peak()
    pack = Pack(base, [begin(spec) for spec in specs], engine.examples, corpus, packing, brackets, ended, batched)
    state = checkpoint.load()
    if state is not None:
        pack.restore(state)
    pack.run(lambda: checkpoint.save_when_due(pack))
    checkpoint.remove()
    memory.release()
    return pack.notes


def _at_once(device: torch.device) -> bool:
    """Whether the adapters' products of all trials are taken at once."""
    return device.type == "cuda"


def _keep(folder: Path, base: Base, trial: Trial, values: Tensor) -> None:
    with folder_whole(folder) as beside:
        adapters.save(base, trial.spec, trial.layout, values, beside)
