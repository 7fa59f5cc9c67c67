"""The benchmark of stopping: when each rule stops where that is known, and a quick run. Who wins isn't tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import finished_runs
import stopping
from replays.replay import PROXY_TRIALS, TRIALS, Run, replay
from replays.tables import step_law
from replays.tasks import Problem, Task, problem
from understudy.stages import FEWEST_WITH_STOP


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tables") / "bowls.csv"
    finished_runs.write_bowls(path)
    return path


@pytest.fixture(scope="module")
def pair(file: Path) -> Problem:
    return problem(step_law(file), Task("100M-2B", "400M-8B"))


def test_the_first_small_chance_stops_but_not_among_the_first_runs() -> None:
    worths, level = [None, 0.0, None, 0.01, 0.3, 0.04, 0.9], [3.0] * 7
    assert stopping.by_outlook(worths, level, 0.001, 1, 0, 0.05) == 5
    assert stopping.by_outlook(worths[:4], level, 0.001, 1, 0, 0.05) == 4
    assert FEWEST_WITH_STOP == 4


def test_nothing_stops_as_long_as_runs_gain() -> None:
    worths, losses = [0.0] * 10, [3.0, 2.9, 2.8, 2.7, 2.6, 2.6, 2.6, 2.7, 2.599, 2.6]
    assert stopping.by_outlook(worths, losses, 0.001, 1, 0, 0.05) == 4
    assert stopping.by_outlook(worths, losses, 0.001, 1, 3, 0.05) == 8  # after 2.6, 2.6 and 2.7
    assert stopping.by_outlook(worths, losses, 0.001, 2, 3, 0.05) == 9  # which is seen one later
    assert stopping.by_outlook(worths, losses, 0.0001, 1, 4, 0.05) == 10


def test_settings_have_names_of_their_own() -> None:
    names = [stopping.named(patience, chance) for patience in (0, 4, 6) for chance in (0.05, 0.3)]
    assert len(set(names)) == len(names)
    assert stopping.named(6, 0.3) == "patience 6, chance 0.3"
    assert stopping.named(6, 1.0) == "patience 6 alone"
    assert stopping.named(0, 0.3) == "chance 0.3 alone"


def test_optunas_stagnation_stops_so_many_runs_after_the_best(pair: Problem) -> None:
    order = sorted(range(len(pair.keys)), key=lambda index: -pair.target[index])
    rising = Run(0, tuple(order[-1:] + order[:10]), ())  # the best first
    falling = Run(0, tuple(order[:11]), ())
    rules = stopping.terminators(0.001)
    for runs in stopping.STAGNATION:
        rule = rules[f"Optuna, stagnation of {runs}"]
        assert stopping.by_terminator(pair, rising, rule) == runs + 2  # more than so many without a better one
        assert stopping.by_terminator(pair, falling, rule) == 11


def test_what_notes_the_chances_runs_what_the_product_runs(pair: Problem) -> None:
    from replays.ours import Understudy

    noting = stopping.Noting(0.001)
    runs = [replay(pair, method, 1, 6, 1, PROXY_TRIALS).indices for method in (noting, Understudy("two_fidelity"))]
    assert runs[0] == runs[1]
    worths = noting.worths()
    assert len(worths) == 6
    assert all(worth is not None and 0 <= worth <= 1 for worth in worths[3:])


def test_a_quick_run_ends_with_json(file: Path) -> None:
    command = [sys.executable, str(Path(stopping.__file__)), "--steplaw", str(file), "--quick", "--sets", "matched"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told = json.loads(done.stdout.splitlines()[-1])["sets"]["matched"]
    assert told["rules"][f"{TRIALS} runs"][0] == TRIALS
    assert all(FEWEST_WITH_STOP <= runs <= TRIALS and regret >= 0 for runs, regret in told["rules"].values())
    assert sum(count for count, _, _ in told["chances"].values()) > 0


def test_chances_are_put_beside_what_became_of_them() -> None:
    found = stopping.kept([(0.03, False), (0.04, True), (0.9, True), (1.0, True)])
    assert found == {"0.02 to 0.05": (2, pytest.approx(0.035), 0.5), "0.4 to 1": (2, pytest.approx(0.95), 1.0)}


def test_a_table_without_a_task_is_refused_in_one_line() -> None:
    script, table = Path(stopping.__file__), Path(stopping.__file__).parent / "transfer_runs.parquet"
    for words, said in (([], "nothing to replay"), (["--table", str(table), "--half", "tuning"], "has no task")):
        done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
