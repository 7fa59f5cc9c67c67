"""Who goes on at a rung, by brute force."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.train.packed.halving import Brackets, as_stopped, known_scores, rung_step, score
from understudy.trial import CurvePoint, Halving, RungScore, TrialResult

Table = dict[str, list[float]]  # each trial's score at every rung


@st.composite
def tournaments(draw: st.DrawFn) -> tuple[Halving, Table]:
    """Brackets of any size, ties, infinite scores and NaN."""
    rungs = draw(st.integers(1, 3))
    factor = draw(st.integers(2, 4))
    sizes = draw(st.lists(st.integers(1, 10), min_size=1, max_size=3))
    names = iter(f"r{number:04d}" for number in draw(st.permutations(range(sum(sizes)))))
    brackets = tuple(tuple(next(names) for _ in range(size)) for size in sizes)
    values = st.one_of(st.integers(0, 4).map(float), st.sampled_from([math.inf, math.nan]))
    table = {id: draw(st.lists(values, min_size=rungs, max_size=rungs)) for bracket in brackets for id in bracket}
    shares = tuple(float(factor) ** -rung for rung in range(rungs, 0, -1))
    return Halving(rungs=shares, reduction_factor=factor, metric="eval_loss", brackets=brackets), table


def fates_by_hand(halving: Halving, table: Table) -> dict[str, int]:
    """How many rungs each trial passes."""
    passed = {}
    for bracket in halving.brackets:
        there = list(bracket)
        for rung in range(len(halving.rungs)):
            keys = {id: (math.inf if math.isnan(table[id][rung]) else table[id][rung], id) for id in there}
            number = -(-len(there) // halving.reduction_factor)
            going_on = sorted(there, key=keys.__getitem__)[:number]
            passed.update({id: rung for id in there if id not in going_on})
            there = going_on
        passed.update({id: len(halving.rungs) for id in there})
    return passed


def fates(halving: Halving, table: Table, pick: Callable[[Sequence[str]], str]) -> dict[str, int]:
    """Let trials run in any order: `pick` says who reaches its next rung."""
    brackets = Brackets(halving)
    at = dict.fromkeys(table, 0)
    waiting: set[str] = set()
    stopped: dict[str, int] = {}
    while running := [id for id in table if id not in waiting and id not in stopped and at[id] < len(halving.rungs)]:
        moving = pick(running)
        brackets.report(moving, at[moving], table[moving][at[moving]])
        waiting.add(moving)
        for id in sorted(waiting):
            going_on = brackets.survivors(id, at[id])
            if going_on is None:
                continue
            waiting.remove(id)
            if id in going_on:
                at[id] += 1
            else:
                stopped[id] = at[id]
    assert not waiting
    return {**at, **stopped}


@given(tournaments(), st.integers())
def test_survivors_are_the_best_whoever_is_first(tournament: tuple[Halving, Table], seed: int) -> None:
    halving, table = tournament
    expected = fates_by_hand(halving, table)
    assert fates(halving, table, random.Random(seed).choice) == expected
    assert fates(halving, table, lambda running: running[0]) == expected
    assert fates(halving, table, lambda running: running[-1]) == expected


@given(tournaments())
def test_a_bracket_does_not_depend_on_the_others(tournament: tuple[Halving, Table]) -> None:
    halving, table = tournament
    for bracket in halving.brackets:
        alone = halving.model_copy(update={"brackets": (bracket,)})
        expected = {id: passed for id, passed in fates_by_hand(halving, table).items() if id in bracket}
        assert fates(alone, {id: table[id] for id in bracket}, lambda running: running[0]) == expected


HALVING = Halving(rungs=(1 / 9, 1 / 3), reduction_factor=3, metric="eval_loss", brackets=(("a", "b", "c", "d"),))


def test_nobody_is_judged_before_all_are_there() -> None:
    brackets = Brackets(HALVING)
    for id in "abc":
        brackets.report(id, 0, 1.0)
        assert brackets.survivors("a", 0) is None
    brackets.report("d", 0, None)
    assert brackets.survivors("d", 0) == {"a", "b"}  # ties go by id
    assert brackets.survivors("a", 1) is None
    assert (brackets.stopped_at("a"), brackets.stopped_at("d")) == (None, 0)
    brackets.report("a", 1, 3.0)
    brackets.report("b", 1, 2.0)
    assert brackets.survivors("a", 1) == {"b"}
    assert (brackets.stopped_at("a"), brackets.stopped_at("b")) == (1, None)


def test_who_is_absent_takes_no_part() -> None:
    brackets = Brackets(HALVING, absent=["a"])
    assert "a" not in brackets
    for id, found in zip("bcd", (3.0, 2.0, 1.0), strict=True):
        brackets.report(id, 0, found)
    assert brackets.survivors("b", 0) == {"d"}  # one of three


def test_who_begins_anew_has_no_scores() -> None:
    brackets = Brackets(HALVING)
    for id in "abcd":
        brackets.report(id, 0, 1.0)
    brackets.forget("b")
    assert brackets.survivors("a", 0) is None
    brackets.report("b", 0, 0.5)
    assert brackets.survivors("a", 0) == {"a", "b"}


def test_rungs_stand_after_whole_steps() -> None:
    brackets = Brackets(HALVING)
    steps = [step for step in range(1, 28) if brackets.stands_at_rung(0, step, 27)]
    assert steps[0] == rung_step(1 / 9, 27) == 3
    assert brackets.stands_at_rung(1, 9, 27)
    assert not brackets.stands_at_rung(1, 8, 27)
    assert not brackets.stands_at_rung(2, 20, 27)  # no rung left
    assert rung_step(1 / 9, 2) == 1
    assert not brackets.stands_at_rung(0, 1, 1)  # at its end


def test_scores() -> None:
    metrics = {"eval_loss": 2.0, "eval_accuracy": 0.25, "eval_nats_per_byte": 0.5}
    assert score("eval_loss", metrics) == 2.0
    assert score("eval_accuracy", metrics) == -0.25  # smaller is better
    assert score("train_loss", metrics) == math.inf


def result(status: str, curve: Sequence[tuple[int, float]] = (), **changes: object) -> TrialResult:
    points = [CurvePoint(step=n, tokens=n, train_loss=10 * loss, eval_loss=loss, learning_rate=1) for n, loss in curve]
    fields = {"digest": "", "status": status, "curve": points, "steps": curve[-1][0] if curve else 0, **changes}
    return TrialResult.model_validate(fields)


CURVE = [(2, 5.0), (8, 4.0), (18, 3.0), (27, 2.0)]


def rung_score(share: float, score: float | None, step: int | None) -> RungScore:
    point = CurvePoint(step=step, tokens=9 * step, train_loss=1, eval_loss=score, learning_rate=1) if step else None
    return RungScore(share=share, metric="eval_loss", score=score, step=step, point=point)


SCORES = [rung_score(1 / 9, 7.0, 3), rung_score(1 / 3, 6.0, 9)]


def scores(halving: Halving, found: TrialResult) -> list[float | None] | None:
    known = known_scores(halving, found)
    return None if known is None else [taken.score for taken in known]


@pytest.mark.parametrize("status", ["complete", "diverged", "out_of_memory"])
def test_finished_trials_have_the_scores_that_were_written_down(status: str) -> None:
    ended = [SCORES[0], RungScore(share=1 / 3, metric="eval_loss", score=None)]
    assert scores(HALVING, result(status, CURVE, rung_scores=SCORES)) == [7.0, 6.0]
    assert scores(HALVING, result(status, CURVE, rung_scores=ended)) == [7.0, None]


@pytest.mark.parametrize("status", ["complete", "diverged", "failed"])
def test_finished_trials_without_scores_are_not_compared(status: str) -> None:
    """A curve's points stand elsewhere, and its end is no score of a rung."""
    assert scores(HALVING, result(status, CURVE, metrics={"eval_loss": 2.0})) is None
    by_training = HALVING.model_copy(update={"metric": "train_loss"})
    assert scores(by_training, result(status, CURVE, rung_scores=SCORES)) is None
    other_rungs = HALVING.model_copy(update={"rungs": (1 / 3, 2 / 3)})
    assert scores(other_rungs, result(status, CURVE, rung_scores=SCORES)) is None


def test_stopped_trials_are_the_worst_later() -> None:
    assert scores(HALVING, result("stopped", CURVE[:1], rung_scores=SCORES[:1])) == [7.0, None]


def test_a_full_run_as_its_bracket_would_have_stopped_it() -> None:
    metrics = {"eval_loss": 2.0}
    full = result("complete", CURVE, rung_scores=SCORES, metrics=metrics, objective=2.0, digest="plain")
    stopped = as_stopped(HALVING, 0, full, "other")
    assert (stopped.digest, stopped.status, stopped.objective, stopped.metrics) == ("other", "stopped", None, {})
    assert (stopped.steps, stopped.rung_scores) == (3, (SCORES[0],))
    assert [(point.step, point.eval_loss) for point in stopped.curve] == [(2, 5.0), (3, 7.0)]
    assert "rung 1 of 2" in str(stopped.message)
    later = as_stopped(HALVING, 1, full, "other")
    assert [point.step for point in later.curve] == [2, 8, 9]
    on_curve = full.model_copy(update={"curve": (*full.curve[:1], SCORES[0].point, *full.curve[1:])})
    assert [point.step for point in as_stopped(HALVING, 0, on_curve, "other").curve] == [2, 3]
