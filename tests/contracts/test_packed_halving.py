"""Successive halving in a pack: who stops, and when, follows from the trials' own losses and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_study import without_cost
from training_study import make_job, make_spec

from understudy.files import write_json
from understudy.store import Store
from understudy.train.pack import train_pack
from understudy.train.packed import pack as loop
from understudy.train.trial import Job
from understudy.trial import Halving, Pack, PackResults, TrialRecord, TrialSpec, trial_digest

RATES = (1e-4, 3e-2, 1e-3, 1e30, 1e-2, 3e-3, 2e-4, 5e-3, 5e-2, 2e-3, 2e-2, 5e-4)
SPECS = tuple(
    make_spec(f"r{number:04d}", learning_rate=rate, batch_size=8 - number % 3, lora_r=1 + number % 4, warmup_ratio=0.0)
    for number, rate in enumerate(RATES)
)
IDS = tuple(spec.id for spec in SPECS)
RUNGS = (0.25, 0.5)
SLOTS = {"trials": 5, "tokens": 4096, "dense": True}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def halved(*brackets: Sequence[str], metric: Any = "eval_loss", specs: Sequence[TrialSpec] = SPECS) -> Pack:
    halving = Halving(rungs=RUNGS, reduction_factor=3, metric=metric, brackets=tuple(tuple(b) for b in brackets))
    return Pack(id="random-000", specs=tuple(specs), halving=halving)


def job_of(root: Path, evaluations: int = 100, **packing: Any) -> Job:
    """By default every step is on the curve: the full runs say what a trial's score is at any rung."""
    return make_job(root, evaluations=evaluations, packing={**SLOTS, **packing})


def by_id(results: PackResults) -> dict[str, TrialRecord]:
    return {record.spec.id: record for record in results.records}


def fates(results: PackResults) -> dict[str, tuple[str, int]]:
    return {record.spec.id: (record.result.status, record.result.steps) for record in results.records}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrialRecord]:
    """All trials, trained to their ends."""
    return by_id(train_pack(Pack(id="random-000", specs=SPECS), job_of(tmp_path_factory.mktemp("full"))))


@pytest.fixture(scope="module")
def halved_job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return job_of(tmp_path_factory.mktemp("halved"))


@pytest.fixture(scope="module")
def results(halved_job: Job) -> PackResults:
    return train_pack(halved(IDS[:9], IDS[9:]), halved_job)


def expected_fates(full: Mapping[str, TrialRecord], bracket: Sequence[str], metric: str) -> dict[str, tuple[str, int]]:
    """By brute force, from the full runs' curves."""
    found, going_on = {}, list(bracket)
    for share in RUNGS:
        scores = {}
        for id in going_on:
            result = full[id].result
            steps = math.ceil(48 / full[id].spec.hyperparameters["batch_size"])
            at = max(1, round(share * steps))
            reached = [point for point in result.curve if point.step == at]
            scores[id] = getattr(reached[0], metric) if reached else math.inf
            found[id] = ("stopped", at) if reached else ("diverged", result.steps)
        best = sorted(going_on, key=lambda id: (scores[id], id))[: math.ceil(len(going_on) / 3)]
        going_on = [id for id in going_on if id in best]
    return {**found, **{id: (full[id].result.status, full[id].result.steps) for id in going_on}}


@pytest.mark.parametrize("metric", ["eval_loss", "train_loss"])
def test_who_stops_and_when_follows_from_the_full_runs(
    metric: str, full: Mapping[str, TrialRecord], tmp_path: Path
) -> None:
    found = fates(train_pack(halved(IDS[:9], IDS[9:], metric=metric), job_of(tmp_path)))
    assert found == {**expected_fates(full, IDS[:9], metric), **expected_fates(full, IDS[9:], metric)}
    assert [status for status, _ in found.values()].count("stopped") >= 8


def test_stopped_trials(results: PackResults, full: Mapping[str, TrialRecord], halved_job: Job) -> None:
    store = Store(halved_job.store)
    for id, record in by_id(results).items():
        plain = trial_digest(record.spec, halved_job.inputs)
        if record.result.status == "stopped":
            assert record.result.objective is None
            assert record.result.metrics == {}
            assert record.result.curve == full[id].result.curve[: record.result.steps]
            assert "bracket" in str(record.result.message)
            assert record.result.digest != plain
            assert store.find(plain) is None
        else:
            assert record.result.digest == plain
        assert store.find(record.result.digest) == record


def test_survivors_are_as_without_halving(results: PackResults, full: Mapping[str, TrialRecord]) -> None:
    unlike = {"cost", "provenance", "rung_scores"}
    survivors = [record for record in results.records if record.result.status == "complete"]
    assert len(survivors) == 2
    for record in survivors:
        assert record.result.model_dump(exclude=unlike) == full[record.spec.id].result.model_dump(exclude=unlike)
        assert [found.share for found in record.result.rung_scores] == list(RUNGS)


@pytest.mark.parametrize(("slots", "order"), [(1, 1), (12, -1), (3, -1)])
def test_fates_do_not_depend_on_slots_and_order(slots: int, order: int, results: PackResults, tmp_path: Path) -> None:
    plan = halved(IDS[:9], IDS[9:], specs=SPECS[::order])
    found = train_pack(plan, job_of(tmp_path, trials=slots))
    again = PackResults(id=found.id, records=found.records[::order], notes=found.notes)
    assert without_cost(again, "digest") == without_cost(results, "digest")  # digests tell of the slots


def test_rungs_between_two_points_of_the_curve(results: PackResults, tmp_path: Path) -> None:
    """They add a point to the curves of those that stop, and leave those that go on as they are."""
    plan = halved(IDS[:9], IDS[9:])
    found = by_id(train_pack(plan, job_of(tmp_path / "halved", evaluations=1)))
    full = by_id(train_pack(Pack(id="random-000", specs=SPECS), job_of(tmp_path / "full", evaluations=1)))
    assert {id: record.result.steps for id, record in found.items()} == {id: n for id, (_, n) in fates(results).items()}
    for id, record in found.items():
        if record.result.status == "stopped":
            (point,) = record.result.curve
            steps = by_id(results)[id].result.curve
            assert (point.step, point.eval_loss) == (record.result.steps, steps[-1].eval_loss)
            weights = [now.tokens - before for now, before in zip(steps, (0, *(p.tokens for p in steps)), strict=False)]
            mean = sum(p.train_loss * weight for p, weight in zip(steps, weights, strict=True)) / sum(weights)
            assert point.train_loss == pytest.approx(mean, rel=1e-12)
        else:
            assert record.result.curve == full[id].result.curve
            assert record.result.metrics == full[id].result.metrics


def test_fates_do_not_depend_on_other_brackets(results: PackResults, tmp_path: Path) -> None:
    found = by_id(train_pack(halved(IDS[9:], specs=SPECS[9:]), job_of(tmp_path)))
    unlike = {"cost", "provenance"}
    for id, record in found.items():
        expected = by_id(results)[id].result
        assert record.result.model_dump(exclude=unlike) == expected.model_dump(exclude=unlike)


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.Pack, "run", lambda *_: pytest.fail("trained again"))


def test_nothing_is_trained_again(results: PackResults, halved_job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    no_training(monkeypatch)
    assert train_pack(halved(IDS[:9], IDS[9:]), halved_job) == results


def test_without_halving_only_the_stopped_are_trained(full: Mapping[str, TrialRecord], tmp_path: Path) -> None:
    job, trained = job_of(tmp_path), []
    stopped = {id for id, (status, _) in fates(train_pack(halved(IDS), job)).items() if status == "stopped"}
    with pytest.MonkeyPatch.context() as patch:
        put = loop.Pack._seat

        def seat(self: Any, trial: Any, slot: int) -> None:
            trained.append(trial.spec.id)
            put(self, trial, slot)

        patch.setattr(loop.Pack, "_seat", seat)
        found = by_id(train_pack(Pack(id="random-000", specs=SPECS), job))
    assert sorted(trained) == sorted(stopped)
    assert {id: record.result.objective for id, record in found.items()} == {
        id: record.result.objective for id, record in full.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        no_training(patch)
        train_pack(Pack(id="random-000", specs=SPECS), job)


def test_finished_trials_take_part_by_their_curves(full: Mapping[str, TrialRecord], tmp_path: Path) -> None:
    """Trials that another study has trained in full are compared, and stay complete."""
    job = job_of(tmp_path)
    for id in IDS[:4]:
        Store(job.store).save(full[id])
    found, expected = fates(train_pack(halved(IDS), job)), expected_fates(full, IDS, "eval_loss")
    assert {id: found[id] for id in IDS[4:]} == {id: expected[id] for id in IDS[4:]}
    assert {id: found[id] for id in IDS[:4]} == {
        id: (r.result.status, r.result.steps) for id, r in full.items() if id in IDS[:4]
    }


def test_scores_of_another_metric_are_not_compared(full: Mapping[str, TrialRecord], tmp_path: Path) -> None:
    job = job_of(tmp_path)
    first = fates(train_pack(halved(IDS, metric="eval_accuracy"), job))
    survivors = [id for id, (status, _) in first.items() if status != "stopped"]
    found, expected = fates(train_pack(halved(IDS), job)), expected_fates(full, IDS, "eval_loss")
    others = [id for id in IDS if id not in survivors]
    assert {id: found[id] for id in others} == {id: expected[id] for id in others}


def test_the_same_trial_twice_has_one_fate(tmp_path: Path) -> None:
    twins = [spec.model_copy(update={"id": f"x{spec.id}"}) for spec in SPECS[1:5]]
    plan = halved([*IDS[:4], "xr0001"], [*IDS[4:], "xr0002", "xr0003", "xr0004"], specs=(*SPECS, *twins))
    job = job_of(tmp_path)
    found = train_pack(plan, job)
    records = by_id(found)
    for id in IDS[1:5]:
        assert records[f"x{id}"].result == records[id].result
    with pytest.MonkeyPatch.context() as patch:
        no_training(patch)
        assert train_pack(plan, job) == found


def test_rungs_on_the_same_step(tmp_path: Path) -> None:
    """Short trials stand at two rungs at once; their training loss is the same at both."""
    short = [
        make_spec(f"r{n}", learning_rate=rate, batch_size=24, warmup_ratio=0.0) for n, rate in enumerate(RATES[:3])
    ]
    plan = halved([spec.id for spec in short], metric="train_loss", specs=short)
    halving = plan.halving.model_copy(update={"rungs": (0.3, 0.5), "reduction_factor": 2})  # both after one of two
    found = train_pack(plan.model_copy(update={"halving": halving}), job_of(tmp_path))
    for record in found.records:
        scores = [score.score for score in record.result.rung_scores]
        assert len(set(scores)) == 1
        assert scores[0] == record.result.curve[0].train_loss
    assert sorted(record.result.status for record in found.records) == ["complete", "stopped", "stopped"]


def test_results_can_be_written_and_read(results: PackResults, tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", results)
    assert PackResults.model_validate_json((tmp_path / "results.json").read_text()) == results
