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
from understudy.files import read_model, write_json
from understudy.store import Store
from understudy.train.pack import train_pack
from understudy.train.packed import checkpoint
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


def test_trials_outside_of_brackets_are_scored_and_otherwise_as_without_halving(tmp_path: Path) -> None:
    """Between two points of the curve as well."""
    plain = by_id(train_pack(Pack(id="random-000", specs=SPECS), job_of(tmp_path / "plain", evaluations=3)))
    scored = by_id(train_pack(halved(), job_of(tmp_path / "scored", evaluations=3)))
    unlike = {"cost", "provenance", "rung_scores"}
    for id, record in scored.items():
        assert record.result.model_dump(exclude=unlike) == plain[id].result.model_dump(exclude=unlike)
        assert [found.share for found in record.result.rung_scores] == list(RUNGS)
        if record.result.status == "complete":
            assert all(found.step and found.point for found in record.result.rung_scores)


@pytest.mark.parametrize("evaluations", [1, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("before", [3, 8])
def test_an_extension_gives_the_fates_of_all_at_once(evaluations: int, before: int, tmp_path: Path) -> None:
    """The trials after the last full bracket ran in full; with more trials they are in one."""
    plan = halved(IDS[:6], IDS[6:])
    at_once = train_pack(plan, job_of(tmp_path / "at once", evaluations))
    job = job_of(tmp_path / "extended", evaluations)
    first = train_pack(halved(*[IDS[:6]][: before // 6], specs=SPECS[:before]), job)
    extended = train_pack(plan, job)
    assert without_cost(extended) == without_cost(at_once)
    changed = [a.spec.id for a, b in zip(first.records, extended.records, strict=False) if a.result != b.result]
    assert changed
    store = Store(job.store)
    assert [store.find(record.result.digest) for record in extended.records] == list(extended.records)
    with pytest.MonkeyPatch.context() as patch:
        no_training(patch)
        assert train_pack(plan, job) == extended


def test_finished_trials_without_scores_stay_complete_and_take_no_part(
    full: Mapping[str, TrialRecord], tmp_path: Path
) -> None:
    """Those of a time before halving."""
    job = job_of(tmp_path)
    old = ("r0000", "r0008", "r0010")
    for id in old:
        Store(job.store).save(full[id])
    others = [id for id in IDS if id not in old]
    found, expected = fates(train_pack(halved(IDS), job)), expected_fates(full, others, "eval_loss")
    assert {id: found[id] for id in others} == expected
    assert {id: found[id] for id in old} == {id: (full[id].result.status, full[id].result.steps) for id in old}
    assert expected != {id: fate for id, fate in expected_fates(full, IDS, "eval_loss").items() if id in others}


def test_scores_of_another_metric_are_not_compared(full: Mapping[str, TrialRecord], tmp_path: Path) -> None:
    job = job_of(tmp_path)
    first = fates(train_pack(halved(IDS, metric="eval_accuracy"), job))
    others = [id for id, (status, _) in first.items() if status == "stopped"]
    found, expected = fates(train_pack(halved(IDS), job)), expected_fates(full, others, "eval_loss")
    assert {id: found[id] for id in others} == expected


COPIES = tuple(SPECS[number].model_copy(update={"id": f"d{number:02d}"}) for number in (1, 2, 6, 8))


@pytest.mark.parametrize("evaluations", [2, 100])
def test_fates_do_not_depend_on_which_pack_was_first(evaluations: int, tmp_path: Path) -> None:
    """Two packs have configurations in common; one of them runs these in full."""
    plans = halved(IDS[:9], IDS[9:]), halved(specs=COPIES).model_copy(update={"id": "default-000"})
    found = []
    for order in (1, -1):
        job = job_of(tmp_path / str(order), evaluations)
        results = {plan.id: train_pack(plan, job) for plan in plans[::order]}
        found.append({id: without_cost(one) for id, one in results.items()})
        ends = fates(results["default-000"])
        assert {status for status, _ in ends.values()} == {"complete"}
        assert [fates(results["random-000"])[id][0] for id in ("r0002", "r0006")] == ["stopped", "stopped"]
        with pytest.MonkeyPatch.context() as patch:
            no_training(patch)
            assert {plan.id: train_pack(plan, job) for plan in plans} == results
    assert found[0] == found[1]


def test_a_copy_outside_of_brackets_runs_in_full(results: PackResults, tmp_path: Path) -> None:
    found = by_id(train_pack(halved(IDS[:9], IDS[9:], specs=(*SPECS, *COPIES)), job_of(tmp_path)))
    assert {found[spec.id].result.status for spec in COPIES} == {"complete"}
    of_brackets = PackResults(id=results.id, records=tuple(found[id] for id in IDS), notes=results.notes)
    assert without_cost(of_brackets) == without_cost(results)


class Interrupted(Exception):  # noqa: N818  # nothing is wrong
    pass


@pytest.mark.parametrize("saved_at", [None, 2, pytest.param(12, marks=pytest.mark.long)])
def test_another_pack_trains_a_trial_of_one_that_was_interrupted(saved_at: int | None, tmp_path: Path) -> None:
    plan = halved(IDS[:9], IDS[9:])
    other = halved(specs=COPIES[1:3]).model_copy(update={"id": "default-000"})
    whole = train_pack(plan, job_of(tmp_path / "whole"))
    job, rounds = job_of(tmp_path / "cut"), 0

    def when_due(self: Any, pack: Any) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == saved_at:
            self.save(pack)
        if rounds == 14:
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "save_when_due", when_due)
        with pytest.raises(Interrupted):
            train_pack(plan, job)
    train_pack(other, job)
    assert without_cost(train_pack(plan, job)) == without_cost(whole)


def test_a_score_that_comes_out_otherwise_after_an_interruption(results: PackResults, tmp_path: Path) -> None:
    """Another machine may round otherwise, and a trial that was stopped would go on now. It stays stopped."""
    job, records = job_of(tmp_path), by_id(results)
    bracket = [records[id] for id in IDS[:9]]
    scores = sorted((record.result.rung_scores[0].score or math.inf, record.spec.id) for record in bracket)
    fourth = records[scores[3][1]]
    assert (fourth.result.status, len(fourth.result.rung_scores)) == ("stopped", 1)
    own = fourth.result.rung_scores[0].model_copy(update={"score": scores[2][0] * (1 - 1e-7)})
    Store(job.store).save(
        TrialRecord(spec=fourth.spec, result=fourth.result.model_copy(update={"rung_scores": (own,)}))
    )
    found = fates(train_pack(halved(IDS[:9], IDS[9:]), job))
    assert found[fourth.spec.id] == ("stopped", fourth.result.steps)
    assert [found[id][0] for id in IDS[:9]].count("complete") == 1


@pytest.mark.parametrize("brackets", [(), (IDS[:3],)], ids=["in no bracket", "in a bracket"])
def test_a_loss_at_a_rung_that_is_no_number(
    brackets: Sequence[Sequence[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the worst there, and a trial that nobody stops goes on."""
    evaluate = loop.Pack._evaluate

    def broken(self: Any, trial: Any) -> float:
        loss = evaluate(self, trial)
        if trial.spec.id != "r0001" or trial.history.steps == trial.steps:
            return loss
        trial.history.metrics = dict.fromkeys(trial.history.metrics, math.nan)
        return math.nan

    monkeypatch.setattr(loop.Pack, "_evaluate", broken)
    plan = halved(*brackets, specs=SPECS[:3])
    result = train_pack(plan, job_of(tmp_path, evaluations=1)).records[1].result
    assert [(found.score, found.point) for found in result.rung_scores] == [(None, None)] * (1 if brackets else 2)
    assert result.status == ("stopped" if brackets else "complete")
    assert len(result.curve) == (0 if brackets else 1)


def test_trials_that_are_compared_before_they_learn_are_named(tmp_path: Path) -> None:
    warming = tuple(
        spec.model_copy(update={"hyperparameters": {**spec.hyperparameters, "warmup_ratio": 0.25, "batch_size": 24}})
        for spec in SPECS[:3]
    )
    plan = halved(IDS[:3], specs=warming).model_copy(update={"notes": ("from the plan",)})
    plan = plan.model_copy(update={"halving": plan.halving.model_copy(update={"rungs": (0.3,)})})
    found = train_pack(plan, job_of(tmp_path))
    assert found.notes[0] == "from the plan"
    assert (
        "rung 1 of 1 compares r0000, r0001, r0002 before the first step with a learning rate above 0" in found.notes[1]
    )
    assert len({record.result.rung_scores[0].score for record in found.records}) == 1


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
    assert read_model(tmp_path / "results.json", PackResults) == results
