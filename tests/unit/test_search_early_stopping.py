"""The limits in proposals against Optuna's pruner and the rule in words; and what they do to the search."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import search_study as made
from understudy.artifacts import Proposal
from understudy.files import read_model, write_json
from understudy.search.early_stopping import MARGIN, expected_loss, stop_above
from understudy.search.finalists import select_finalists
from understudy.search.samplers import told_values
from understudy.search.values import identity
from understudy.stages import EarlyStoppingSettings
from understudy.steps import evaluation_step, find_stop
from understudy.trial import CurvePoint, EarlyStop, TrialRecord, TrialResult, TrialSpec

EVALUATIONS = 4
Curve = Sequence[float]


def points(losses: Curve, steps: int) -> tuple[CurvePoint, ...]:
    """A curve with a point per step: of evaluations that share one the last loss."""
    by_step = {evaluation_step(steps, number, len(losses)): loss for number, loss in enumerate(losses, start=1)}
    return tuple(
        CurvePoint(step=step, tokens=step, train_loss=None, eval_loss=loss, learning_rate=1e-3)
        for step, loss in by_step.items()
    )


def spec(number: int) -> TrialSpec:
    values = {"learning_rate": 1e-3 * (1 + number), "batch_size": 8, "num_train_epochs": 1.0}
    return TrialSpec(id=f"t{number:04d}", stage="target", origin="refined", hyperparameters=values, seed=1)


def trial(number: int, losses: Curve, steps: int = 40, **result: Any) -> TrialRecord:
    fields = {"status": "complete", "objective": losses[-1], "curve": points(losses, steps), "steps": steps}
    return TrialRecord(spec=spec(number), result=TrialResult.model_validate({"digest": "0", **fields, **result}))


def cut(number: int, losses: Curve, steps: int = 40) -> TrialRecord:
    """A trial that was stopped after the evaluations in `losses`, of `EVALUATIONS`."""
    whole = [*losses, *[losses[-1]] * (EVALUATIONS - len(losses))]
    kept = points(whole, steps)[: len(losses)]
    stop = EarlyStop(
        number=len(losses),
        evaluations=EVALUATIONS,
        step=kept[-1].step,
        steps=steps,
        best_loss=min(losses),
        limit=min(losses) - 0.1,
    )
    fields = {"status": "stopped", "objective": None, "curve": kept, "steps": kept[-1].step, "early_stop": stop}
    record = trial(number, whole, steps)
    return record.model_copy(update={"result": record.result.model_copy(update=fields)})


def drawn(seed: int, count: int) -> list[list[float]]:
    """Noisy falling curves, some of them equal in places."""
    generator = random.Random(seed)
    return [
        [round(generator.uniform(1, 3) + generator.expovariate(2) / number, 1) for number in range(1, EVALUATIONS + 1)]
        for _ in range(count)
    ]


@settings(max_examples=200)
@given(
    seed=st.integers(0, 10**9), count=st.integers(0, 9), startup=st.integers(1, 5), steps=st.sampled_from([4, 7, 100])
)
def test_median_decides_as_optunas_pruner(seed: int, count: int, startup: int, steps: int) -> None:
    """The pruner is asked after every evaluation but the last, where nothing is left to stop."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    *others, own = drawn(seed, count + 1)
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=0))
    for losses in others:
        values = dict(enumerate(losses, start=1))
        study.add_trial(optuna.trial.create_trial(value=losses[-1], intermediate_values=values))
    asked, expected = study.ask(), None
    for number, loss in enumerate(own[:-1], start=1):
        asked.report(loss, number)
        if asked.should_prune():
            expected = number
            break
    rule = EarlyStoppingSettings(rule="median", visible=startup)
    limits = stop_above(rule, EVALUATIONS, [trial(n, losses, 10 + n) for n, losses in enumerate(others)])
    found = find_stop(points(own, steps), steps, limits)
    assert (found.number if found else None) == expected


@settings(max_examples=200)
@given(seed=st.integers(0, 10**9), count=st.integers(1, 6), margin=st.sampled_from([0.0, 0.25, 2.0]))
def test_reach_stops_what_cannot_reach_the_best(seed: int, count: int, margin: float) -> None:
    *others, own = drawn(seed, count + 1)
    limits = stop_above(
        EarlyStoppingSettings(visible=1, margin=margin), EVALUATIONS, [trial(n, c) for n, c in enumerate(others)]
    )
    best = min(losses[-1] for losses in others)
    expected = None
    for number in range(1, EVALUATIONS):
        fall = max(max(losses[number - 1] - losses[-1], 0) for losses in others)
        if min(own[:number]) - (1 + margin) * fall > best + 1e-12:
            expected = number
            break
    found = find_stop(points(own, 40), 40, [limit and limit + 2e-12 for limit in limits])
    assert (found.number if found else None) == expected


def test_a_visible_trial_would_have_gone_on() -> None:
    """With `reach` the best of the visible ones is under every limit, whatever the curves."""
    for seed in range(50):
        others = [trial(n, losses) for n, losses in enumerate(drawn(seed, 6))]
        best = min(others, key=lambda record: record.result.objective or math.inf)
        limits = stop_above(EarlyStoppingSettings(visible=1, margin=0.001), EVALUATIONS, others)
        assert find_stop(best.result.curve, 40, limits) is None


def test_the_margin_that_counts_without_one() -> None:
    others = [trial(n, losses) for n, losses in enumerate(drawn(3, 6))]
    told, plain = (stop_above(EarlyStoppingSettings(visible=1, margin=m), EVALUATIONS, others) for m in (MARGIN, None))
    assert told == plain


@pytest.mark.parametrize("rule", ["reach", "median"])
def test_only_complete_trials_count(rule: Any) -> None:
    rules = EarlyStoppingSettings(rule=rule, visible=3)
    complete = [trial(n, losses) for n, losses in enumerate(drawn(1, 3))]
    bad = trial(7, [9.0, 8.0, 1.0, 1.0])
    others = [
        bad.model_copy(update={"result": bad.result.model_copy(update={"status": status, "objective": None})})
        for status in ("diverged", "out_of_memory", "failed", "skipped")
    ]
    others.append(cut(9, [9.0, 0.1]))
    limits = stop_above(rules, EVALUATIONS, complete)
    assert None not in limits
    assert stop_above(rules, EVALUATIONS, [*others, *complete]) == limits
    assert stop_above(rules, EVALUATIONS, [*others, *complete[:2]]) == (None,) * (EVALUATIONS - 1)


def test_lengths_do_not_matter() -> None:
    curves = drawn(2, 5)
    for rule in ("reach", "median"):
        rules = EarlyStoppingSettings(rule=rule, visible=1)  # type: ignore[arg-type]
        alike = stop_above(rules, EVALUATIONS, [trial(n, losses, 40) for n, losses in enumerate(curves)])
        mixed = stop_above(rules, EVALUATIONS, [trial(n, losses, 4 + 37 * n) for n, losses in enumerate(curves)])
        assert alike == mixed


def test_evaluations_that_share_a_step() -> None:
    """Three steps, eight evaluations: 1 to 3, 4 and 5, 6 to 8 or so share one; their largest limit counts."""
    steps, evaluations = 3, 8
    shared = [evaluation_step(steps, number, evaluations) for number in range(1, evaluations)]
    assert sorted(set(shared)) == [1, 2, 3]
    curve = points([5.0] * evaluations, steps)
    assert [point.step for point in curve] == [1, 2, 3]
    for limits, step in (
        ([4.0] * 7, 1),
        ([None, *[4.0] * 6], 2),
        ([6.0, *[4.0] * 6], 2),
        ([6.0 if step < 3 else 4.0 for step in shared], None),  # at the last step nothing is left to stop
    ):
        found = find_stop(curve, steps, limits)
        assert (found.step if found else None) == step
        assert found is None or found.limit == 4.0
    assert find_stop(points([5.0] * evaluations, 1), 1, [4.0] * 7) is None


def test_the_best_loss_so_far_counts() -> None:
    curve = points([2.0, 5.0, 5.0, 5.0], 40)
    assert find_stop(curve, 40, [3.0, 3.0, 3.0]) is None
    found = find_stop(curve, 40, [3.0, 3.0, 1.9])
    assert found == EarlyStop(number=3, evaluations=4, step=30, steps=40, best_loss=2.0, limit=1.9)
    assert found.message == (
        "after 30 of its 40 steps its best loss was 2.0000, above the limit of 1.9000 that earlier trials set"
    )


def test_a_stopped_trial_is_told_as_what_it_would_have_come_to() -> None:
    complete = [trial(0, [5, 4, 3.5, 3.0]), trial(1, [6, 5, 4.0, 3.6]), trial(2, [7, 5, 4.2, 3.2])]
    assert expected_loss(cut(3, [8.0]), complete) == pytest.approx(8 - np.median([2.0, 2.4, 3.8]))
    assert expected_loss(cut(3, [8.0, 6.0]), complete) == pytest.approx(6 - np.median([1.0, 1.4, 1.8]))
    assert expected_loss(cut(3, [4.0]), complete) == 3.0  # no better than the best
    assert expected_loss(complete[0], complete) is None
    assert expected_loss(cut(3, [8.0]), []) is None

    diverged = trial(5, [9.0] * 4, status="diverged", objective=None)
    told = told_values([*complete, cut(3, [5.9]), diverged])
    assert told[:4] == pytest.approx([3.0, 3.6, 3.2, 3.5])
    assert told[4] is not None
    assert told[4] > 3.6
    far = told_values([*complete, cut(3, [50.0])])
    assert far[3] is not None
    assert 3.6 <= far[3] < 10  # capped, like a loss out of scale
    without = trial(6, [9.0] * 4, status="stopped", objective=None)
    assert told_values([*complete, without])[3] == told_values([*complete, diverged])[3]


def test_stopped_trials_stand_in_before_untried_starts() -> None:
    starts = made.transferred(made.config())[1]

    def with_default(record: TrialRecord) -> TrialRecord:
        values = {**starts.default, **record.spec.hyperparameters}
        return record.model_copy(update={"spec": record.spec.model_copy(update={"hyperparameters": values})})

    records = [
        with_default(record)
        for record in (cut(0, [4.0]), trial(1, [5.0, 4.0, 3.0, 2.5]), cut(2, [4.5, 3.9]), cut(3, [9.0]))
    ]
    selection = select_finalists(4, starts, records)
    assert [each.trial for each in selection.finalists] == [None, "t0001", "t0002", "t0000", "t0003"]
    assert [each.objective for each in selection.finalists] == [None, 2.5, None, None, None]
    assert [each.trial for each in select_finalists(5, starts, records).finalists][5] is None
    enough = [*records, with_default(trial(4, [9.0] * 4))]
    assert [each.trial for each in select_finalists(2, starts, enough).finalists] == [None, "t0001", "t0004"]


def learn(proposal: Proposal) -> TrialRecord:
    """A made-up trial under its proposal's limits: it falls from a unit above its final loss."""
    final = made.bowl(proposal.spec)
    record = made.record(proposal.spec, status="complete")
    curve = points([final + rest for rest in (1.0, 0.4, 0.1, 0.0)], 40)
    stop = find_stop(curve, 40, proposal.stop_above)
    if stop is None:
        fields: dict[str, Any] = {"curve": curve, "steps": 40}
    else:
        kept = curve[: stop.number]
        fields = {"curve": kept, "steps": stop.step, "early_stop": stop, "status": "stopped", "objective": None}
    return record.model_copy(update={"result": record.result.model_copy(update=fields)})


def study(sampler: str, window: int = 1, **more: Any) -> Any:
    free = {} if sampler == "two_fidelity" else {"target__explore": 1.0}
    early = {"visible": 2, "margin": 0.1}
    return made.config(target__sampler=sampler, target__window=window, target__early_stopping=early, **free, **more)


def run(config: Any, folder: Path, found: Any, count: int) -> tuple[list[Proposal], list[TrialRecord]]:
    proposals, records = [], []
    for number in range(count):
        proposals.append(made.next_proposal(config, folder, number, *found))
        records.append(learn(proposals[-1]))
        write_json(folder / f"{number:04d}" / "proposal.json", proposals[-1])
        write_json(folder / f"{number:04d}" / "result.json", records[-1])
    return proposals, records


@pytest.mark.parametrize("sampler", ["two_fidelity", "tpe", "gp", "random"])
def test_every_sampler_has_limits(sampler: str, tmp_path: Path) -> None:
    config = study(sampler)
    found = made.transferred(config)
    proposals, records = run(config, tmp_path, found, 10)
    statuses = [record.result.status for record in records]
    assert statuses.count("stopped") >= 1
    for number, (proposal, record) in enumerate(zip(proposals, records, strict=True)):
        seen = records[:number]
        is_default = identity(proposal.spec.hyperparameters) == identity(found[1].default)
        expected = stop_above(config.target.early_stopping, config.training.evaluations, seen)
        assert proposal.stop_above == (() if is_default else expected)
        assert (None in expected) == (sum(each.result.status == "complete" for each in seen) < 2)
        if not is_default:
            assert proposal.visible == tuple(each.spec.id for each in seen)
        assert read_model(tmp_path / f"{number:04d}" / "proposal.json", Proposal) == proposal
        if is_default:
            assert record.result.status == "complete"


def test_results_inside_the_window_set_no_limit(tmp_path: Path) -> None:
    config = study("tpe", window=3)
    found = made.transferred(config)
    _, records = run(config, tmp_path, found, 7)
    before = made.next_proposal(config, tmp_path, 5, *found)
    assert before.stop_above != ()
    worse = records[4].result.model_copy(update={"curve": points([9.0, 1.0, 1.0, 1.0], 40)})
    write_json(tmp_path / "0004" / "result.json", records[4].model_copy(update={"result": worse}))
    assert made.next_proposal(config, tmp_path, 5, *found) == before
    changed = records[1].result.model_copy(update={"curve": points([9.0, 1.0, 1.0, 1.0], 40), "status": "complete"})
    write_json(tmp_path / "0001" / "result.json", records[1].model_copy(update={"result": changed}))
    assert made.next_proposal(config, tmp_path, 5, *found).stop_above != before.stop_above


def test_without_early_stopping_there_are_no_limits(tmp_path: Path) -> None:
    config = made.config(target__sampler="tpe", target__window=1)
    proposals, records = run(config, tmp_path, made.transferred(config), 9)
    assert {proposal.stop_above for proposal in proposals} == {()}
    assert {record.result.status for record in records} == {"complete"}
