"""The benchmark of made-up problems: what is drawn, and what counts as regret. Who wins isn't tested."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

import finished_runs
import made_up
from replays.replay import Run
from replays.surfaces import RELATIONS, ROWS, MadeUp, scale
from replays.surfaces import made_up as drawn


@pytest.fixture(scope="module")
def problems() -> list[MadeUp]:
    return [drawn(number) for number in range(40)]


def test_a_quick_run_says_how_everyone_did() -> None:
    script = [sys.executable, str(finished_runs.BENCHMARKS / "made_up.py"), "--quick", "--jobs", "1"]
    ran = subprocess.run(script, check=True, capture_output=True, text=True)
    told = json.loads(ran.stdout.splitlines()[-1])["sets"]
    assert list(told) == ["all", *RELATIONS]
    for found in told.values():
        assert set(found["regret"]) == {"random", "understudy_two_fidelity"}
        assert all(0 <= row["mean"] < 1000 for each in found["regret"].values() for row in each.values())


def test_a_number_stands_for_a_problem(problems: list[MadeUp]) -> None:
    again = drawn(7)
    assert again.problem == problems[7].problem
    assert np.array_equal(again.truth, problems[7].truth)
    assert len({made.problem.target for made in problems}) == len(problems)


def test_the_problems_are_of_many_kinds(problems: list[MadeUp]) -> None:
    assert {len(made.problem.names) for made in problems} >= {2, 4, 6, 8, 10}
    assert [made.relation for made in problems[:5]] == [*RELATIONS, RELATIONS[0]]
    diverged = [float(np.mean(np.isinf(made.truth))) for made in problems]
    assert min(diverged) == 0
    assert 0.1 < max(diverged) < 0.9
    for made in problems:
        assert len(made.truth) == len(set(made.problem.keys)) == ROWS
        seen = np.array(made.problem.target)
        assert np.array_equal(np.isinf(seen), np.isinf(made.truth))
        known = np.isfinite(seen)
        noise = float(np.std(seen[known] - made.truth[known])) / scale(made.truth)
        assert 0.001 < noise < 0.12


def test_proxies_agree_as_their_kind_says(problems: list[MadeUp]) -> None:
    """By ranks where the best rate is moved by the rule for widths, which shifts the whole surface along one axis."""
    agreement = {
        relation: [_agreement(made) for made in problems if made.relation == relation] for relation in RELATIONS
    }
    medians = {relation: float(np.median(each)) for relation, each in agreement.items()}
    assert medians["alike"] > max(medians["off"], medians["partly"])
    assert min(medians["off"], medians["partly"]) > medians["unlike"]


def _agreement(made: MadeUp) -> float:
    """Of the target's losses with the proxy's at the counterparts of the same configurations, the nearest there are."""
    problem = made.problem
    rates = np.log10([float(values["learning_rate"]) for values in problem.configurations])
    others = [name for name in problem.names if name != "learning_rate"]
    rest = np.array([[problem.space[n].to_unit(values[n]) for n in others] for values in problem.configurations])
    span = rates.max() - rates.min()
    shift = np.log10(problem.scale["learning_rate"])
    there = np.column_stack([(rates - shift) / span, rest])
    here = np.column_stack([rates / span, rest])
    nearest = [int(np.argmin(((here - point) ** 2).sum(axis=1))) for point in there]
    inside = (rates - shift >= rates.min()) & (rates - shift <= rates.max())
    assert 0.5 < inside.mean() < 1
    pair = np.array([problem.target, np.array(problem.source)[nearest]])[:, inside]
    return float(spearmanr(*np.nan_to_num(pair, posinf=1e3)).statistic)


def test_a_regret_is_without_noise(problems: list[MadeUp]) -> None:
    """The second configuration looks best and isn't; the third is better than it looks."""
    made = replace(problems[0], truth=np.array([3.0, 2.0, 1.0, np.inf, 5.0]))
    made = replace(made, problem=replace(made.problem, target=(2.9, 2.2, 2.4, np.inf, 5.1)))
    spread = 2.5 - 1  # from the best to the median
    found = made_up.regrets(made, {0: Run(0, (3, 4, 0, 1, 2), (0.1,) * 5), 1: Run(1, (0, 2), (0.1,) * 2)}, 5)
    expected = np.array([[5, 5, 3, 2, 2], [3, 1, 1, 1, 1]]) - 1
    assert found == pytest.approx(100 * expected / spread)


def test_halves_share_no_problem_and_have_all_kinds(problems: list[MadeUp]) -> None:
    reporting, tuning = made_up.numbers(24, "reporting"), made_up.numbers(24, "tuning")
    assert sorted(reporting + tuning) == made_up.numbers(24, "both") == list(range(24))
    for half in (reporting, tuning):
        assert {problems[number].relation for number in half} == set(RELATIONS)
