"""Trials that their proposal's limits stop: in one process and in two, and in the store whoever trained them before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from training_study import make_job, make_spec, target_words
from understudy.artifacts import Proposal
from understudy.cli import main
from understudy.files import read_model, write_json
from understudy.store import Store
from understudy.train.engine import Engine
from understudy.train.launch import train_alone
from understudy.train.trial import Job, train_trial
from understudy.trial import TrialRecord, TrialSpec, early_stopped_digest, trial_digest

# peft asks transformers for an attribute by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

EVALUATIONS = 3
SPEC = make_spec("t0003", stage="target", num_train_epochs=2)  # 12 steps
Limits = tuple[float | None, ...]


def refuse(spec: TrialSpec) -> TrialRecord:
    raise AssertionError(f"{spec.id} was trained again")


def numbers(record: TrialRecord) -> str:
    """All of a record but what it took and where, as written."""
    result = record.result.model_copy(update={"cost": type(record.result.cost)(), "provenance": {}})
    return record.model_copy(update={"result": result}).model_dump_json()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, TrialRecord]:
    """A job, and the trial in full. Tests that write use a store of their own."""
    job = make_job(tmp_path_factory.mktemp("full"), evaluations=EVALUATIONS)
    return job, train_trial(SPEC, job, Engine(job).train)


def anew(job: Job, root: Path, limits: Limits = ()) -> Job:
    """The job with limits and an empty store."""
    return replace(job, store=root / "store", progress=root / "progress.jsonl", stop_above=limits)


def loss(record: TrialRecord, number: int) -> float:
    return record.result.curve[number - 1].eval_loss


def stopping_at(record: TrialRecord, number: int) -> Limits:
    """Limits that stop a trial after evaluation `number`, with nothing to spare; its losses fall."""
    return tuple(loss(record, place) * (1 - 1e-12 * (place == number)) for place in range(1, EVALUATIONS))


@pytest.mark.parametrize("number", [1, 2])
def test_a_stopped_trial_is_the_beginning_of_the_whole_one(
    trained: tuple[Job, TrialRecord], tmp_path: Path, number: int
) -> None:
    whole, limits = trained[1], stopping_at(trained[1], number)
    assert [point.step for point in whole.result.curve] == [4, 8, 12]
    assert loss(whole, 1) > loss(whole, 2) > loss(whole, 3)
    job = anew(trained[0], tmp_path, limits)
    result = train_trial(SPEC, job, Engine(job).train).result
    assert (result.status, result.objective, result.metrics, result.steps) == ("stopped", None, {}, 4 * number)
    assert result.curve == whole.result.curve[:number]
    assert result.message == (
        f"after {4 * number} of its 12 steps its best loss was {loss(whole, number):.4f}, above the limit of "
        f"{limits[number - 1]:.4f} that earlier trials set"
    )
    assert result.early_stop is not None
    assert (result.early_stop.number, result.early_stop.limit) == (number, limits[number - 1])
    examples = Engine(job).examples
    processed = 4 * result.cost.tokens + 2 * number * sum(len(each.input_ids) for each in examples.validation)
    assert result.cost.flops == job.inputs.model.parameters * processed
    assert result.cost.tokens * 3 == pytest.approx(whole.result.cost.tokens * number, rel=0.3)
    assert not Store(job.store).adapter(result.digest).exists()


@pytest.mark.parametrize("limits", ["equal", "none"])
def test_limits_that_are_not_exceeded_change_nothing(
    trained: tuple[Job, TrialRecord], tmp_path: Path, limits: str
) -> None:
    whole = trained[1]
    given: Limits = (loss(whole, 1), loss(whole, 2)) if limits == "equal" else (None, None)
    job = anew(trained[0], tmp_path, given)
    record = train_trial(SPEC, job, Engine(job).train)
    assert numbers(record) == numbers(whole)
    assert record.result.digest == trial_digest(SPEC, job.inputs)
    assert train_trial(SPEC, replace(job, stop_above=()), refuse) == record


def test_the_store_knows_full_trials_and_stopped_ones_apart(trained: tuple[Job, TrialRecord], tmp_path: Path) -> None:
    whole = trained[1]
    early, late = stopping_at(whole, 1), stopping_at(whole, 2)
    job = anew(trained[0], tmp_path, early)
    calls: list[Limits] = []

    def train(job: Job) -> TrialRecord:
        def counted(spec: TrialSpec) -> TrialRecord:
            calls.append(job.stop_above)
            return Engine(job).train(spec)

        return train_trial(SPEC, job, counted)

    stopped = train(job)
    assert train(job) == stopped
    assert calls == [early]
    # neither other limits nor none take it for what they want
    assert train(replace(job, stop_above=late)).result.steps == 8
    assert numbers(train(replace(job, stop_above=()))) == numbers(whole)
    assert calls == [early, late, ()]
    # a full one serves all, and leaves the others' entries as they are
    assert train(job) == stopped
    assert numbers(train(replace(job, stop_above=(None, loss(whole, 2))))) == numbers(whole)
    assert calls == [early, late, ()]
    plain = trial_digest(SPEC, job.inputs)
    entries = {path.parent.name for path in job.store.glob("*/record.json")}
    assert entries == {plain, early_stopped_digest(plain, early), early_stopped_digest(plain, late)}


@pytest.mark.parametrize("number", [1, 2])
def test_a_full_trial_in_the_store_is_stopped_as_if_trained_now(
    trained: tuple[Job, TrialRecord], tmp_path: Path, number: int
) -> None:
    limits = stopping_at(trained[1], number)
    now = anew(trained[0], tmp_path / "now", limits)
    expected = train_trial(SPEC, now, Engine(now).train)
    found = anew(trained[0], tmp_path / "found", limits)
    Store(found.store).save(trained[1])
    other = SPEC.model_copy(update={"id": "t0009"})
    judged = train_trial(other, found, refuse)
    assert judged.spec == other
    assert numbers(judged.model_copy(update={"spec": SPEC})) == numbers(expected)
    assert judged.result.cost == trained[1].result.cost  # that was spent
    assert Store(found.store).find(judged.result.digest) is not None
    assert Store(found.store).find(trained[1].result.digest) == trained[1]
    # by its own entry alone as well
    (found.store / trained[1].result.digest / "record.json").unlink()
    assert train_trial(other, found, refuse) == judged


def test_a_trial_that_diverged_later_is_stopped_where_it_would_have_been(tmp_path: Path) -> None:
    """Its length isn't in its record: it ended before."""
    spec = make_spec("t0004", stage="target", num_train_epochs=2, learning_rate=1e30, warmup_ratio=1.0)
    job = anew(make_job(tmp_path / "job", evaluations=12), tmp_path / "full")
    diverged = train_trial(spec, job, Engine(job).train)
    assert diverged.result.status == "diverged"
    assert [point.step for point in diverged.result.curve] == [1]  # the rate is 0 in the first step
    limits = (loss(diverged, 1) - 0.1, *[None] * 10)
    judged = train_trial(spec, replace(job, stop_above=limits), refuse)
    now = anew(job, tmp_path / "now", limits)
    assert numbers(judged) == numbers(train_trial(spec, now, Engine(now).train))
    assert judged.result.early_stop is not None
    assert judged.result.early_stop.steps == 12
    assert train_trial(spec, replace(job, stop_above=(None,) * 11), refuse) == diverged


@pytest.mark.long
def test_two_processes_stop_together(trained: tuple[Job, TrialRecord], tmp_path: Path) -> None:
    limits = (None, loss(trained[1], 2) - 0.01)
    two = anew(make_job(tmp_path / "job", evaluations=EVALUATIONS, processes=2), tmp_path, limits)
    together = train_alone(SPEC, two)
    assert together.result.status == "stopped"
    assert together.result.steps == 8
    losses = [point.eval_loss for point in together.result.curve]
    assert losses == pytest.approx([loss(trained[1], number) for number in (1, 2)], rel=1e-5)
    assert Store(two.store).find(early_stopped_digest(trial_digest(SPEC, two.inputs), limits)) == together


def test_the_command_takes_the_limits_of_the_proposal(
    trained: tuple[Job, TrialRecord], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    call = command(anew(trained[0], tmp_path), tmp_path)
    assert call(stopping_at(trained[1], 2)) == 0
    record = read_model(tmp_path / "result.json", TrialRecord)
    assert (record.result.status, record.result.steps) == ("stopped", 8)
    assert call(()) == 0
    assert numbers(read_model(tmp_path / "result.json", TrialRecord)) == numbers(trained[1])
    assert call((1.0,)) == 1
    assert "limits for 2 evaluations, but a trial has 3" in capfd.readouterr().err


def command(job: Job, root: Path) -> Callable[[Limits], int]:
    """What runs `train-target` on a proposal with limits."""
    words = target_words(root, job, None)

    def run(limits: Limits) -> int:
        made = Proposal(number=3, spec=SPEC, kind="start", sampler="x", visible=(), pending=(), stop_above=limits)
        write_json(root / "proposal.json", made)
        return main(words)

    return run
