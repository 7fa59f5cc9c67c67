"""The benchmark of the transfer: peers that are warm-started from the proxy's trials, rescaled as ours are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import finished_runs
from replays.methods import ENTRIES, Entry
from replays.replay import Seen, View, proxy_stage
from replays.tables import Configuration, step_law
from replays.tasks import Problem, Task, problem
from understudy.space import Range


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    path: Path = tmp_path_factory.mktemp("tables") / "bowls.csv"
    finished_runs.write_bowls(path)
    return problem(step_law(path), Task("100M-2B", "400M-8B"))


def view(pair: Problem) -> View:
    return View(
        space=pair.space,
        proxy=proxy_stage(pair, 1, 20),
        defaults=pair.defaults,
        default=pair.default,
        rule=pair.rule,
        scale=pair.scale,
        cards=pair.cards,
        tokens=pair.tokens,
        trials=4,
        window=1,
    )


@pytest.mark.parametrize(
    "name", ["optuna_tpe_warm", "optuna_gp_warm", "syne_tune_box", "smac_forest_told", "botorch_multitask"]
)
def test_a_peer_warm_started_from_rescaled_trials_is_one_whose_proxy_had_run_them(pair: Problem, name: str) -> None:
    plain, scaled = ENTRIES[name], ENTRIES[f"{name}_scaled"]
    if plain.missing():
        pytest.skip(f"needs {', '.join(plain.missing())}")
    told = view(pair)
    factor, rates = pair.scale["learning_rate"], pair.space["learning_rate"]
    assert isinstance(rates, Range)

    def proposals(entry: Entry, view: View) -> list[Configuration | None]:
        method, history = entry.make(), list[Seen]()
        method.start(view, 1)
        found = []
        for number in range(4):  # the multi-task GP begins with three runs of the proxy
            found.append(method.propose(history, []))
            history.append(Seen(f"t{number}", "target", pair.configuration(7 * number), pair.target[7 * number]))
        return found

    trials = []
    for trial in told.proxy:
        rate = min(max(float(trial.configuration["learning_rate"]) * factor, rates.low), rates.high)
        trials.append(replace(trial, configuration={**trial.configuration, "learning_rate": rate}))
    only_rate = replace(told, scale={"learning_rate": factor})
    assert proposals(scaled, only_rate) == proposals(plain, replace(only_rate, proxy=tuple(trials)))
    assert proposals(scaled, only_rate) != proposals(plain, only_rate)
    assert proposals(scaled, replace(only_rate, scale={})) == proposals(plain, only_rate)


def test_a_box_of_trials_that_all_end_at_the_edge_is_searched(pair: Problem) -> None:
    entry = ENTRIES["syne_tune_box_scaled"]
    if entry.missing():
        pytest.skip(f"needs {', '.join(entry.missing())}")
    method = entry.make()
    method.start(replace(view(pair), scale={"learning_rate": 1e6, "batch_size": 1e-6}), 1)
    history = list[Seen]()
    rates, batches = pair.space["learning_rate"], pair.space["batch_size"]
    assert isinstance(rates, Range)
    assert isinstance(batches, Range)
    for number in range(6):
        found = method.propose(history, [])
        assert found == {"learning_rate": pytest.approx(rates.high), "batch_size": batches.low}
        history.append(Seen(f"t{number}", "target", pair.configuration(number), pair.target[number]))
