"""What every engine owes the rest of the program: one suite, run by each of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from training_study import make_job, make_spec
from understudy.store import Store
from understudy.train.launch import train_alone
from understudy.train.pack import train_pack
from understudy.train.trial import Job
from understudy.trial import Pack, TrialRecord, TrialSpec, trial_digest

SPECS = (
    make_spec("r0001", learning_rate=1e-2, num_train_epochs=2),
    make_spec("r0002", learning_rate=1e30, warmup_ratio=0.0),
    make_spec("r0003", batch_size=1, num_train_epochs=0.1, fidelity=0.6, use_rslora=True),  # less than ranks have
)


def alone(specs: tuple[TrialSpec, ...], job: Job) -> list[TrialRecord]:
    return [train_alone(spec, job) for spec in specs]


def packed(specs: tuple[TrialSpec, ...], job: Job) -> list[TrialRecord]:
    return list(train_pack(Pack(id="random-000", specs=specs), job).records)


@dataclass(frozen=True)
class Trained:
    """What an engine made of the specs."""

    train: Callable[[tuple[TrialSpec, ...], Job], list[TrialRecord]]
    job: Job
    records: list[TrialRecord]


@pytest.fixture(scope="module", params=["alone", "packed", pytest.param("two processes", marks=pytest.mark.long)])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    train = packed if request.param == "packed" else alone
    processes = 2 if request.param == "two processes" else 1
    job = make_job(tmp_path_factory.mktemp("an engine's study"), processes=processes)
    return Trained(train, job, train(SPECS, job))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[TrialRecord]:
    return alone(SPECS, make_job(tmp_path_factory.mktemp("reference")))


def test_records_follow_the_specs(trained: Trained) -> None:
    assert tuple(record.spec for record in trained.records) == SPECS
    assert [record.result.digest for record in trained.records] == [
        trial_digest(spec, trained.job.inputs) for spec in SPECS
    ]


def test_every_record_is_in_the_store(trained: Trained) -> None:
    store = Store(trained.job.store)
    assert [store.find(record.result.digest) for record in trained.records] == trained.records


def test_every_trial_is_in_the_progress(trained: Trained) -> None:
    lines = [json.loads(line) for line in trained.job.progress.read_text().splitlines()]
    first = [line["id"] for line in lines][: len(SPECS)]
    assert sorted(first) == [spec.id for spec in SPECS]  # in the order in which they ended


def test_a_complete_trial_has_an_objective_and_a_whole_curve(trained: Trained) -> None:
    for record, steps in ((trained.records[0].result, 12), (trained.records[2].result, 3)):
        assert record.status == "complete"
        assert record.objective is not None
        assert math.isfinite(record.objective)
        assert record.objective == record.metrics["eval_loss"] == record.curve[-1].eval_loss
        assert record.steps == record.curve[-1].step == steps
        assert [point.step for point in record.curve] == sorted({point.step for point in record.curve})
        assert record.cost.tokens > record.curve[-1].tokens > 0


def test_divergence_is_a_result(trained: Trained, reference: list[TrialRecord]) -> None:
    result, expected = trained.records[1].result, reference[1].result
    assert (result.status, result.objective) == ("diverged", None)
    assert result.message
    assert (result.steps, result.cost.tokens) == (expected.steps, expected.cost.tokens)


def test_nothing_is_trained_twice(trained: Trained) -> None:
    before = trained.job.progress.read_text().splitlines()
    assert trained.train(SPECS, trained.job) == trained.records
    lines = [json.loads(line) for line in trained.job.progress.read_text().splitlines()[len(before) :]]
    assert [line["reused"] for line in lines] == [True] * len(SPECS)


def test_every_engine_finds_the_same_numbers(trained: Trained, reference: list[TrialRecord]) -> None:
    for record, expected in zip(trained.records, reference, strict=True):
        assert record.result.status == expected.result.status
        assert record.result.metrics == pytest.approx(expected.result.metrics, rel=1e-5)
        assert len(record.result.curve) == len(expected.result.curve)


def test_results_are_files_that_can_be_read_again(trained: Trained, tmp_path: Path) -> None:
    from understudy.files import read_model, write_json

    for record in trained.records:
        write_json(tmp_path / "result.json", record)
        assert read_model(tmp_path / "result.json", TrialRecord) == record
