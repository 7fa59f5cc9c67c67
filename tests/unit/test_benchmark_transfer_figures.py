"""The benchmark of the transfer: its figures of merit."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wilcoxon

import finished_runs
import transfer_figure
from replays.replay import Run, Snapper
from replays.report import BUDGETS, report
from replays.reports import read
from replays.statistics import (
    Results,
    at_cost,
    average_ranks,
    by_lie,
    difference,
    interval,
    mean_of_targets,
    regrets,
    summary,
    wilcoxon_holm,
)
from replays.tables import step_law
from replays.tasks import Problem, Task, problem
from understudy.summary import style


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    path: Path = tmp_path_factory.mktemp("tables") / "bowls.csv"
    finished_runs.write_bowls(path)
    return problem(step_law(path), Task("100M-2B", "400M-8B"))


def test_regret_stays_where_a_method_ends_and_counts_failed_runs_as_the_worst(pair: Problem) -> None:
    order = np.argsort(pair.target)
    best, third, last = (int(order[place]) for place in (0, 2, -1))
    failed = replace(pair, target=tuple(math.inf if i == last else loss for i, loss in enumerate(pair.target)))
    lowest, worst = pair.target[best], pair.target[int(order[-2])]
    curves = regrets(failed, {0: Run(0, (last, third), ()), 1: Run(1, (third, best), ())}, 4)
    first = 100 * (pair.target[third] / lowest - 1)
    assert curves == pytest.approx(np.array([[100 * (worst / lowest - 1), first, first, first], [first, 0, 0, 0]]))
    assert summary(curves[None], 2) == pytest.approx(
        {"mean": first / 2, "p90": np.quantile([first, 0], 0.9), "worst": first}
    )


def test_the_proxys_price_is_paid_before_the_first_run(pair: Problem) -> None:
    curves = np.array([[4.0, 3.0, 2.0, 1.0]])
    paid = at_cost(pair, curves, (1, 2, 3, 4, 9), before=1.0)
    default = paid[0, 0]
    assert paid[0].tolist() == [default, 4.0, 3.0, 2.0, 1.0]
    index = Snapper(pair.space, pair.configurations).take(pair.default)
    assert default == pytest.approx(100 * (pair.target[index] / min(pair.target) - 1))
    assert at_cost(pair, curves, (1, 4), before=0)[0].tolist() == [4.0, 1.0]


@pytest.fixture
def made_up() -> Results:
    """Three methods on eight tasks of four targets, three seeds, two runs."""
    generator = np.random.default_rng(1)
    tasks = tuple(Task("s", f"t{i // 2}") for i in range(8))
    base = generator.random((8, 3, 2))
    curves = {"ours": base, "near": base + generator.normal(0.02, 0.05, base.shape), "far": base + 1}
    return Results(tasks, curves, curves)


def test_tests_and_ranks_are_those_of_scipy_and_holm(made_up: Results) -> None:
    means = {name: curve[:, :, 1].mean(axis=1) for name, curve in made_up.curves.items()}
    near, far = (wilcoxon(means["ours"] - means[name]).pvalue for name in ("near", "far"))
    small, large = min(near, far), max(near, far)
    p = wilcoxon_holm(made_up, "ours", ["near", "far"], 2)
    assert sorted(p.values()) == pytest.approx([2 * small, max(2 * small, large)])
    ranks = average_ranks(made_up, 2)
    assert ranks["far"] == 3
    assert ranks["ours"] + ranks["near"] == pytest.approx(3)


def test_intervals_are_over_targets(made_up: Results) -> None:
    """Four targets with one to three tasks each, whose differences are all alike: a draw has some of the four."""
    assert difference(made_up, "ours", "far", 2) == pytest.approx({"difference": -1, "low": -1, "high": -1})
    tasks = tuple(Task("s", target) for target in ("a", "b", "b", "b", "c", "c", "d", "d"))
    gaps = np.array([0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0])  # by task
    flat = np.zeros_like(made_up.curves["ours"])
    shifted = Results(tasks, {"ours": flat + gaps[:, None, None], "far": flat}, made_up.budgeted)
    found = difference(shifted, "ours", "far", 1)
    chosen = np.random.default_rng(5).integers(4, size=(20_000, 4))
    drawn = np.array([0.0, 3.0, 4.0, 6.0])[chosen].sum(axis=1) / np.array([1, 3, 2, 2])[chosen].sum(axis=1)
    assert found["difference"] == pytest.approx(13 / 8)
    expected = np.quantile(drawn, [0.025, 0.975])
    assert [found["low"], found["high"]] == pytest.approx(expected, abs=0.05)
    assert interval(shifted, shifted.curves["ours"][:, :, 0]) == (found["low"], found["high"])
    assert mean_of_targets(shifted, "ours", 1) == pytest.approx(1.5)
    over_tasks = gaps[np.random.default_rng(5).integers(8, size=(20_000, 8))].mean(axis=1)
    assert np.abs(np.quantile(over_tasks, [0.025, 0.975]) - expected).max() > 0.1  # so it tells them apart


def test_regrets_are_told_apart_by_what_was_done_to_the_source(made_up: Results) -> None:
    tasks = tuple(Task("s", "t", lie) for lie in ("shuffled", "inverted") for _ in range(4))
    found = by_lie(replace(made_up, tasks=tasks), 2)
    assert list(found["far"]) == ["shuffled", "inverted"]
    assert found["far"]["inverted"] == pytest.approx(made_up.curves["far"][4:, :, 1].mean())


def made_up_set(targets: int, lies: tuple[str | None, ...] = (None,)) -> Results:
    """Two methods; a regret at a budget is 100 times the lie's place, plus the budget's."""
    tasks = tuple(Task("s", f"t{i}", lie) for i in range(targets) for lie in lies)
    curve = np.random.default_rng(3).random((len(tasks), 4, 16))
    row = np.arange(len(BUDGETS), dtype=float) + 100 * np.array([lies.index(task.lie) for task in tasks])[:, None, None]
    paid = np.broadcast_to(row, (len(tasks), 4, len(BUDGETS)))
    return Results(tasks, {"ours": curve, "peer": curve + 0.1}, {"ours": paid, "peer": paid + 1000})


@pytest.mark.parametrize(
    ("targets", "over", "caution"), [(1, "seeds", "1 target:"), (5, "targets", "5 targets:"), (6, "targets", None)]
)
def test_an_interval_says_what_it_is_over_and_when_that_is_little(
    capsys: pytest.CaptureFixture[str], targets: int, over: str, caution: str | None
) -> None:
    report("made_up", made_up_set(targets), ["ours"], "ours")
    lines = capsys.readouterr().out.splitlines()
    headings = [line for line in lines if "95 % interval" in line]
    assert [line.rpartition(" over ")[2] for line in headings] == [over, over]  # of the mean, of the difference
    told = [line for line in lines if line.startswith("There ")]
    below = lines[lines.index("", lines.index(headings[1])) + 1]  # what follows the table
    assert told == ([] if caution is None else [below])
    assert caution is None or caution in below


def test_the_cost_of_a_lie_is_printed_with_the_proxys_price(capsys: pytest.CaptureFixture[str]) -> None:
    found = report("made_up", made_up_set(2, ("inverted", "mirrored")), ["ours"], None)["lies_budget"]
    assert list(found) == [8, 16, 24]
    for cost in found:
        place = BUDGETS.index(cost)
        assert found[cost]["ours"] == {"inverted": place, "mirrored": 100 + place}
    out = capsys.readouterr().out
    table = out.partition("at a total cost of 16 target runs, the proxy stage included, by lie\n")[2].splitlines()[:4]
    place = BUDGETS.index(16)
    assert table[0] == "| method | inverted | mirrored |"
    assert table[3] == f"| peer | {1000 + place}.000 | {1100 + place}.000 |"
    report("made_up", made_up_set(2), ["ours"], None)
    assert "by lie" not in capsys.readouterr().out


def test_the_figure_has_a_line_for_each_method_that_was_replayed() -> None:
    """A panel for each set that is known, a curve through the means, ours on top."""
    curve = {str(k): {"mean": 1 / k} for k in (1, 2, 4, 16)}
    regret = {"understudy_two_fidelity": curve, "random": curve, "another": curve}
    with style.styled():
        figure = transfer_figure.drawn({"own of transfer_runs": {"regret": regret}, "own of another": {}})
    (axes,) = figure.axes
    drawn = {line.get_label(): line for line in axes.lines}
    assert list(drawn) == ["understudy", "random search"]
    assert drawn["understudy"].get_xydata().tolist() == [[1, 1], [2, 0.5], [4, 0.25], [16, 0.0625]]
    assert drawn["understudy"].get_zorder() > drawn["random search"].get_zorder()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["understudy", "random search"]


def test_the_committed_figure_is_drawn_from_the_committed_reports(tmp_path: Path) -> None:
    reports, method = read(transfer_figure.HERE / "transfer_measured.json"), "understudy_two_fidelity"
    assert all(method in reports[name]["regret"] for name in transfer_figure.PANELS)
    with style.styled():
        style.save(transfer_figure.drawn(reports), tmp_path / "transfer.svg")
    anew, committed = ((folder / "transfer.svg").read_text() for folder in (tmp_path, transfer_figure.HERE))
    number = r"-?\d+\.\d+"  # whose last digit another processor may round otherwise
    assert re.sub(number, "", anew) == re.sub(number, "", committed), "run tests/benchmarks/transfer_figure.py"
    assert [*map(float, re.findall(number, anew))] == pytest.approx([*map(float, re.findall(number, committed))], 1e-3)
