"""When memory runs out a pack splits, and every trial that fits at all comes to the same end."""

from __future__ import annotations

import gc
import math
import weakref
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from packed_study import make_pack, without_cost
from training_study import limit_memory, make_job, make_spec, tiny_llama
from understudy.store import Store
from understudy.train.pack import train_pack
from understudy.train.packed import adapters, pack, passes
from understudy.train.packed.base import Base, read_base
from understudy.train.trial import Job
from understudy.trial import Halving, Pack, PackResults

SPECS = tuple(
    make_spec(f"r{number:04d}", batch_size=48 - number, num_train_epochs=3, lora_r=2 + number) for number in range(8)
)
PLENTY = {"trials": 8, "tokens": 2**16, "dense": True}


def limited(plan: Pack, job: Job, megabytes: int) -> PackResults:
    """Train with only so much more memory than there is when everything is loaded."""
    begin = pack.Pack.__init__

    def short(self: Any, *arguments: Any) -> None:
        limit_memory(megabytes)
        begin(self, *arguments)

    pack.Pack.__init__ = short  # type: ignore[method-assign]
    return train_pack(plan, job)


def in_own_process(plan: Pack, job: Job, megabytes: int) -> PackResults:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(limited, plan, job, megabytes).result()


@pytest.fixture(scope="module")
def plenty(tmp_path_factory: pytest.TempPathFactory) -> PackResults:
    before = torch.get_num_threads()
    results = train_pack(
        Pack(id="random-000", specs=SPECS), make_job(tmp_path_factory.mktemp("plenty"), packing=PLENTY)
    )
    torch.set_num_threads(before)
    return results


@pytest.mark.long
def test_a_pack_that_is_short_of_memory_splits(plenty: PackResults, tmp_path: Path) -> None:
    found = in_own_process(Pack(id="random-000", specs=SPECS), make_job(tmp_path, packing=PLENTY), 60)
    assert plenty.notes == ()
    assert all("memory ran out" in note for note in found.notes)
    assert "went on with 4 trials and 32768 tokens" in found.notes[0]
    for record, expected in zip(found.records, plenty.records, strict=True):
        assert record.result.status == "complete"
        assert record.result.metrics == pytest.approx(expected.result.metrics, rel=1e-4)
        assert record.result.curve[0].eval_loss == pytest.approx(expected.result.curve[0].eval_loss, rel=1e-4)


@pytest.mark.long
def test_a_trial_that_does_not_fit_at_all(plenty: PackResults, tmp_path: Path) -> None:
    """Four times 35 MB of weights, gradients and moments."""
    large = make_spec("x", lora_r=4096)
    found = in_own_process(Pack(id="random-000", specs=(*SPECS, large)), make_job(tmp_path, packing=PLENTY), 100)
    *others, last = found.records
    assert last.result.steps == 0
    assert (last.result.status, last.result.objective) == ("out_of_memory", None)
    assert "memory ran out for the adapter itself" in str(last.result.message)
    assert not any("with 1 trial" in note for note in found.notes)
    for record, expected in zip(others, plenty.records, strict=True):
        assert record.result.metrics == pytest.approx(expected.result.metrics, rel=1e-4)


THREE = Pack(id="random-000", specs=SPECS[:3])


def failing(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: set[int], error: Exception) -> None:
    """Let some calls of a function fail, by number from 1."""
    original, count = getattr(owner, name), 0

    def sometimes(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count in calls:
            raise error
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, sometimes)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"), OSError("No space left on device")],
    ids=["memory", "disk"],
)
def test_an_adapter_that_cannot_be_saved(
    error: Exception, plenty: PackResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trial's record is there, the pack goes on as it was, and a note tells."""
    job = make_job(tmp_path, packing=PLENTY)
    failing(monkeypatch, adapters, "save", {1}, error)
    found = train_pack(THREE, job)
    for record, expected in zip(found.records, plenty.records, strict=False):
        assert (record.result.status, record.result.metrics) == ("complete", expected.result.metrics)
        assert Store(job.store).find(record.result.digest) == record
    (note,) = found.notes
    assert str(error) in note
    assert "adapter of" in note
    assert not list(job.store.glob("*/.adapter*"))
    assert train_pack(THREE, job) == found


def test_a_lack_of_memory_while_a_result_is_kept_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No split could make it good. What had ended comes out of the checkpoint, or is trained again."""
    job = make_job(tmp_path, packing=PLENTY)
    with monkeypatch.context() as patch:
        failing(patch, Store, "save", {2}, MemoryError("out of memory"))
        with pytest.raises(MemoryError):
            train_pack(THREE, job)
    assert len(list(job.store.glob("*/record.json"))) == 1
    assert [record.result.status for record in train_pack(THREE, job).records] == ["complete"] * 3


@pytest.mark.parametrize("halved", [False, True])
@pytest.mark.parametrize("call", [1, 2, 3, 5])
def test_memory_that_runs_out_when_a_trial_leaves_its_slot(
    call: int, halved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its end, at a rung, or in the split: whatever is done again comes out as before."""
    halving = Halving(rungs=(0.6,), reduction_factor=2, metric="eval_loss", brackets=(tuple(s.id for s in SPECS[:3]),))
    plan = THREE.model_copy(update={"halving": halving if halved else None})
    whole = train_pack(plan, make_job(tmp_path / "whole", packing=PLENTY))
    failing(monkeypatch, adapters.Stack, "copy", {call}, MemoryError("out of memory"))
    found = train_pack(plan, make_job(tmp_path / "cut", packing=PLENTY))
    assert without_cost(found.model_copy(update={"notes": ()})) == without_cost(whole)


@pytest.mark.parametrize("error", [MemoryError("out of memory"), MemoryError()])
def test_a_rerun_from_the_store_has_the_notes(
    error: MemoryError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, packing=PLENTY)
    failing(monkeypatch, passes.Passes, "train", {3, 7}, error)
    found = train_pack(THREE, job)
    assert len(found.notes) == 2
    assert train_pack(THREE, job) == found


def test_notes_outlive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, packing=PLENTY)
    with monkeypatch.context() as patch:
        failing(patch, passes.Passes, "train", {3}, MemoryError("out of memory"))
        failing(patch, pack.Pack, "_tell", {6}, KeyError("killed"))
        with pytest.raises(KeyError):
            train_pack(THREE, job)
    (note,) = train_pack(THREE, job).notes
    assert "went on with 1 trials and 32768 tokens" in note


@pytest.fixture(scope="module")
def tiny() -> Base:
    return read_base(tiny_llama(), dense=True)


def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are looked at when an evaluation is due, and not in every round: as on GPUs."""
    read = pack.Pack._read

    def when_due(self: Any) -> None:
        if any(self._is_due(trial) for trial in self.active.values()):
            read(self)

    monkeypatch.setattr(pack.Pack, "_read", when_due)


@pytest.mark.parametrize("factor", [1.0, math.nan], ids=["losses", "losses that aren't finite"])
def test_losses_of_a_trial_that_memory_ran_out_for_stay_unread(
    factor: float, tiny: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    late(monkeypatch)
    specs = [make_spec("r0", batch_size=2, num_train_epochs=1), make_spec("r1", batch_size=4, num_train_epochs=1)]
    ended: dict[str, Any] = {}
    together = make_pack(specs, tiny, ended, slots=1, tokens=40, evaluations=1)
    train, calls, states = passes.Passes.train, [], []

    def short(self: Any, wanted: Any, part: int) -> Any:
        calls.append(wanted[0][0].spec.id)
        if len(calls) > 5 and calls[-1] == calls[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(self, wanted, part) * (factor if len(calls) == 5 else 1.0)

    def after_round() -> None:
        if ended and not states:
            states.append(together.state())

    monkeypatch.setattr(passes.Passes, "train", short)
    together.run(after_round)
    lost, kept = calls[0], ({"r0", "r1"} - {calls[0]}).pop()
    assert (ended[lost].status, ended[kept].status) == ("out_of_memory", "complete")
    assert ended[lost].message == "memory ran out in step 4 of 13: CUDA out of memory"
    (state,) = states
    assert state["trials"].keys() == {kept}
    again = make_pack([spec for spec in specs if spec.id == kept], tiny, {}, slots=1, tokens=40, evaluations=1)
    again.restore(state)
    assert [trial.spec.id for trial in again.trials()] == [kept]


def test_a_pack_is_restored_in_the_memory_that_it_had(tiny: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stacks of adapters at a time wouldn't fit: it would go on with fewer slots, or lose a trial."""
    specs = [make_spec(f"r{number}", num_train_epochs=2) for number in range(4)]
    before = make_pack(specs, tiny, {})
    with torch.no_grad():
        before._round()
    state, size = before.state(), before.slots * before.trials()[0].layout.size
    del before
    gc.collect()
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Stack(adapters.Stack):
        def __init__(self, slots: int, size_of_one: int, *arguments: Any) -> None:
            if sum(other.size for other in alive) + slots * size_of_one > 1.05 * size:
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().__init__(slots, size_of_one, *arguments)
            self.size = slots * size_of_one
            alive.add(self)

    monkeypatch.setattr(pack, "Stack", Stack)
    ended: dict[str, Any] = {}
    after = make_pack(specs, tiny, ended)
    after.restore(state)
    assert after.slots == 4
    after.run()
    assert {one.status for one in ended.values()} == {"complete"}
