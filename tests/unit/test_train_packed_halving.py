"""Who goes on at a rung, by brute force."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.train.packed.halving import Brackets, rung_step, score, scores_of_finished
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
    brackets.ended("d", 0)
    assert brackets.survivors("d", 0) == {"a", "b"}  # ties go by id
    assert brackets.survivors("a", 1) is None
    brackets.report("a", 1, 3.0)
    brackets.ended("b", 1, 2.0)
    assert brackets.survivors("a", 1) == {"b"}


def test_who_ended_counts_with_its_last_score() -> None:
    brackets = Brackets(HALVING)
    brackets.ended("a", 0, 0.5)  # complete before the first rung
    for id in "bcd":
        brackets.report(id, 0, 1.0)
    assert brackets.survivors("a", 0) == {"a", "b"}
    brackets.report("b", 1, 0.7)
    assert brackets.survivors("b", 1) == {"a"}
    shares = [found.share for found in brackets.scores_of("a")]
    assert shares == [1 / 9, 1 / 3]
    assert brackets.scores_of("x") == ()
    brackets.ended("c", 1)
    assert [found.score for found in brackets.scores_of("c")] == [1.0, None]


def test_rungs_stand_after_whole_steps() -> None:
    brackets = Brackets(HALVING)
    steps = [step for step in range(1, 28) if brackets.stands_at_rung("a", 0, step, 27)]
    assert steps[0] == rung_step(1 / 9, 27) == 3
    assert brackets.stands_at_rung("a", 1, 9, 27)
    assert not brackets.stands_at_rung("a", 1, 8, 27)
    assert not brackets.stands_at_rung("a", 2, 20, 27)  # no rung left
    assert not brackets.stands_at_rung("x", 0, 3, 27)  # in no bracket
    assert rung_step(1 / 9, 2) == 1
    assert not brackets.stands_at_rung("a", 0, 1, 1)  # at its end


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


def test_scores_of_trials_that_ran_in_full_are_on_their_curves() -> None:
    complete = result("complete", CURVE, metrics={"eval_loss": 2.0, "eval_accuracy": 0.5})
    assert scores_of_finished(HALVING, complete) == [5.0, 4.0]  # the last points up to steps 3 and 9
    by_training = HALVING.model_copy(update={"metric": "train_loss"})
    assert scores_of_finished(by_training, complete) == [50.0, 40.0]
    by_accuracy = HALVING.model_copy(update={"metric": "eval_accuracy"})
    assert scores_of_finished(by_accuracy, complete) == [-0.5, -0.5]  # it isn't on the curve
    late = result("complete", CURVE[2:], metrics={"eval_loss": 2.0})
    assert scores_of_finished(HALVING, late) == [2.0, 2.0]


@pytest.mark.parametrize("status", ["diverged", "out_of_memory", "failed"])
def test_trials_without_an_end_are_the_worst(status: str) -> None:
    assert scores_of_finished(HALVING, result(status, CURVE[:1])) == [math.inf, math.inf]


def test_scores_that_were_written_down_count() -> None:
    scores = [
        RungScore(share=1 / 9, metric="eval_loss", score=7.0),
        RungScore(share=1 / 3, metric="eval_loss", score=None),
    ]
    complete = result("complete", CURVE, rung_scores=scores, metrics={"eval_loss": 2.0})
    assert scores_of_finished(HALVING, complete) == [7.0, math.inf]
    assert scores_of_finished(HALVING, result("stopped", CURVE[:1], rung_scores=scores[:1])) == [7.0]
    assert scores_of_finished(HALVING, result("diverged", CURVE[:1], rung_scores=scores[:1])) == [7.0, math.inf]
    by_training = HALVING.model_copy(update={"metric": "train_loss"})
    assert scores_of_finished(by_training, complete) == [50.0, 40.0]  # those of another metric don't
    other_rungs = HALVING.model_copy(update={"rungs": (1 / 3, 2 / 3)})
    assert scores_of_finished(other_rungs, complete) == [math.inf, 3.0]
