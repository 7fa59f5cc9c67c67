"""A pack that was killed goes on where it was, and its results are the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from packed_study import without_cost
from training_study import make_job, make_spec
from understudy.store import Store
from understudy.train.pack import train_pack
from understudy.train.packed import checkpoint, pack, passes, train, trials
from understudy.train.trial import Job
from understudy.trial import Halving, Pack, PackResults

SPECS = tuple(
    make_spec(f"r{number:04d}", **values)
    for number, values in enumerate(
        [
            {"batch_size": 24, "num_train_epochs": 1},
            {"batch_size": 8, "num_train_epochs": 2, "lora_r": 16},
            {"batch_size": 5, "num_train_epochs": 1, "lora_dropout": 0.2},
            {"batch_size": 16, "num_train_epochs": 2, "lora_r": 2, "seed": 3},
            {"batch_size": 3, "num_train_epochs": 0.5, "learning_rate": 1e30, "warmup_ratio": 0.5},
            {"batch_size": 4, "num_train_epochs": 1, "lora_target_modules": "q_proj"},
        ]
    )
)
HALVING = Halving(rungs=(0.25, 0.5), reduction_factor=2, metric="eval_loss", brackets=(tuple(s.id for s in SPECS),))
PACK = Pack(id="random-000", specs=SPECS)
HALVED = Pack(id="random-000", specs=SPECS, halving=HALVING)
SLOTS = {"trials": 4, "tokens": 2048, "dense": True}  # fewer than trials: two wait


class Interrupted(Exception):  # noqa: N818  # nothing is wrong
    pass


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rounds(monkeypatch: pytest.MonkeyPatch, stop_at: int | None, save: Any) -> list[list[str]]:
    """Let packs stop after so many rounds, and save after those that `save` says. Returns who stepped in each."""
    steps: list[list[str]] = []
    original = pack.Pack._round, pack.Pack._step

    def counted(self: Any) -> None:
        steps.append([])
        original[0](self)
        if len(steps) == stop_at:
            raise Interrupted

    def step(self: Any, chosen: Any) -> None:
        steps[-1] = [trial.spec.id for trial in chosen]
        original[1](self, chosen)

    def when_due(self: Any, pack: Any) -> None:
        if save(len(steps)):
            self.save(pack)

    monkeypatch.setattr(pack.Pack, "_round", counted)
    monkeypatch.setattr(pack.Pack, "_step", step)
    monkeypatch.setattr(checkpoint.Checkpoint, "save_when_due", when_due)
    return steps


def job_of(root: Path) -> Job:
    return make_job(root, packing=SLOTS)


def files_of(job: Job) -> list[Path]:
    return list((job.store / "packs").glob("*.pt"))


def interrupted_and_resumed(
    plan: Pack, job: Job, stop_at: int, save: Any
) -> tuple[PackResults, list[list[str]], list[list[str]]]:
    """The results, who stepped in each round before the interruption, and who after it."""
    with pytest.MonkeyPatch.context() as patch:
        before = rounds(patch, stop_at, save)
        with pytest.raises(Interrupted):
            train_pack(plan, job)
    with pytest.MonkeyPatch.context() as patch:
        after = rounds(patch, None, save)
        results = train_pack(plan, job)
    assert files_of(job) == []
    store = Store(job.store)
    assert [store.find(record.result.digest) for record in results.records] == list(results.records)
    return results, before, after


@pytest.fixture(scope="module", params=[PACK, HALVED], ids=["plain", "halved"])
def plan(request: pytest.FixtureRequest) -> Pack:
    found: Pack = request.param
    return found


@pytest.fixture(scope="module")
def whole(plan: Pack, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[list[str]]]:
    """The results of a pack that nothing interrupted, and who stepped in each round."""
    with pytest.MonkeyPatch.context() as patch:
        steps = rounds(patch, None, lambda _: False)
        results = train_pack(plan, job_of(tmp_path_factory.mktemp("whole")))
    return without_cost(results), steps


@pytest.mark.parametrize("stop_at", [1, 4, 7, 12])
def test_interrupted_between_rounds(
    stop_at: int, plan: Pack, whole: tuple[str, list[list[str]]], tmp_path: Path
) -> None:
    """Saved after every round: the round that was interrupted is done again, and nothing else."""
    results, before, after = interrupted_and_resumed(plan, job_of(tmp_path), stop_at, lambda _: True)
    assert without_cost(results) == whole[0]
    assert after == whole[1][len(before) - 1 :]


@pytest.mark.parametrize(("saved_at", "stop_at"), [(2, 9), (6, 12), (1, 11)])
def test_trials_that_end_after_the_last_checkpoint(
    saved_at: int, stop_at: int, plan: Pack, whole: tuple[str, list[list[str]]], tmp_path: Path
) -> None:
    results, _, after = interrupted_and_resumed(plan, job_of(tmp_path), stop_at, lambda count: count == saved_at)
    assert without_cost(results) == whole[0]
    assert after == whole[1][saved_at:]  # in the same company, as sums on several threads need it


def test_interrupted_in_its_last_moment(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        rounds(patch, None, lambda _: True)
        patch.setattr(checkpoint.Checkpoint, "remove", interrupt)
        with pytest.raises(Interrupted):
            train_pack(PACK, job)
    assert len(files_of(job)) == 1
    with pytest.MonkeyPatch.context() as patch:
        steps = rounds(patch, None, lambda _: True)
        results = train_pack(PACK, job)
    assert steps == []
    assert [record.spec.id for record in results.records] == [spec.id for spec in SPECS]
    assert files_of(job) == []


def interrupt(*_: Any) -> None:
    raise Interrupted


@pytest.mark.long
def test_two_threads(tmp_path: Path) -> None:
    """Sums on several threads depend on how many rows there are: the company has to be the same again."""
    plan = Pack(id="random-000", specs=tuple(make_spec(f"r{n}", batch_size=24 - n, lora_dropout=0.1) for n in range(3)))
    slots = {"trials": 2, "tokens": 2048, "dense": True}
    whole = train_pack(plan, make_job(tmp_path / "whole", threads=2, packing=slots, evaluations=1))
    job = make_job(tmp_path / "cut", threads=2, packing=slots, evaluations=1)
    results, _, _ = interrupted_and_resumed(plan, job, 3, lambda count: count == 1)
    assert without_cost(results) == without_cost(whole)


def test_products_of_all_trials_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on GPUs, where all adapters are as large as the largest, which may have ended; they are saved as they are."""
    monkeypatch.setattr(train, "_at_once", lambda _: True)
    largest_first = tuple(
        make_spec(f"r{rank:04d}", lora_r=rank, num_train_epochs=epochs, lora_dropout=0.1)
        for rank, epochs in [(16, 0.5), (3, 2), (5, 1)]
    )
    plan = Pack(id="random-000", specs=largest_first)
    whole = train_pack(plan, job_of(tmp_path / "whole"))
    shares: dict[str, float] = {}
    original = trials.Trial.state

    def measured(trial: Any, weights: Any) -> dict[str, Any]:
        state = original(trial, weights)
        if weights is not None:
            shares[trial.spec.id] = len(state["weights"][0]) / trial.layout.size
        return state

    monkeypatch.setattr(trials.Trial, "state", measured)
    results, before, _ = interrupted_and_resumed(plan, job_of(tmp_path / "cut"), 8, lambda count: count == 5)
    assert without_cost(results) == without_cost(whole)
    assert shares["r0003"] == pytest.approx(3 / 16, rel=0.1)
    assert shares["r0005"] == pytest.approx(5 / 16, rel=0.1)
    assert "r0016" in before[2]
    assert "r0016" not in before[5]


@pytest.mark.parametrize("cut", [0, 1000])
def test_a_checkpoint_that_was_cut_off(cut: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = train_pack(PACK, job_of(tmp_path / "whole"))
    job = job_of(tmp_path / "cut")
    with pytest.MonkeyPatch.context() as patch:
        rounds(patch, 7, lambda _: True)
        with pytest.raises(Interrupted):
            train_pack(PACK, job)
    finished = {path.parent.name: path.read_bytes() for path in job.store.glob("*/record.json")}
    assert 0 < len(finished) < len(SPECS)
    (path,) = files_of(job)
    path.write_bytes(path.read_bytes()[:cut])
    assert without_cost(train_pack(PACK, job)) == without_cost(whole)
    assert "can't be read" in capsys.readouterr().out
    assert files_of(job) == []
    assert all((job.store / name / "record.json").read_bytes() == record for name, record in finished.items())


def killed(plan: Pack, job: Job, at: int) -> None:
    """In a process of its own: train, and be killed in the middle of a round."""
    with pytest.MonkeyPatch.context() as patch:
        rounds(patch, None, lambda _: True)
        step, count = passes.Passes.train, 0

        def shot(self: Any, *arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, *arguments)

        patch.setattr(passes.Passes, "train", shot)
        train_pack(plan, job)


@pytest.mark.long
def test_killed_processes(tmp_path: Path) -> None:
    whole = train_pack(HALVED, job_of(tmp_path / "whole"))
    job = job_of(tmp_path / "cut")
    for at in (3, 4):
        process = multiprocessing.get_context("spawn").Process(target=killed, args=(HALVED, job, at))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert len(files_of(job)) == 1
    (checkpoint,) = files_of(job)
    half = checkpoint.with_name(f".{checkpoint.name}.elsewhere.7.part")
    half.write_bytes(b"what a killed writer left")
    os.utime(half, (0, 0))  # long ago: whether one on another machine still lives can't be seen
    with pytest.MonkeyPatch.context() as patch:
        steps = rounds(patch, None, lambda _: True)
        results = train_pack(HALVED, job)
    assert without_cost(results) == without_cost(whole)
    assert len([step for step in steps if step]) == 14 - 2 - 3
    assert not half.exists()
