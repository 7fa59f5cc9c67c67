"""The benchmark of the transfer: its tasks, its replays, its figures. Who wins isn't tested."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

import finished_runs
import transfer
from finished_runs import BATCHES, BENCHMARKS, RATES
from replays.jobs import Terms, finished, job, run_all
from replays.methods import ENTRIES
from replays.record import keep, lay_out
from replays.replay import Seen, Snapper, View, proxy_budget, proxy_stage, replay
from replays.tables import Configuration, Table, fine_tuning, step_law, step_law_optimum
from replays.tasks import Problem, Task, halves, listing, problem, task_sets

TERMS = Terms(seeds=2, trials=4, window=1, proxy_trials=12)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "bowls.csv"
    finished_runs.write_bowls(path)
    return path


@pytest.fixture(scope="module")
def table(file: Path) -> Table:
    return step_law(file)


@pytest.fixture(scope="module")
def pair(table: Table) -> Problem:
    return problem(table, Task("100M-2B", "400M-8B"))


@pytest.mark.long
def test_a_quick_run_replays_every_method_that_needs_no_package(file: Path, tmp_path: Path) -> None:
    script = [
        sys.executable,
        str(BENCHMARKS / "transfer.py"),
        "--steplaw",
        str(file),
        "--tasks",
        str(tmp_path / "t.json"),
    ]
    (tmp_path / "t.json").write_text('{"another": {}}')
    subprocess.run([*script, "--write-tasks"], check=True, timeout=60)
    assert json.loads((tmp_path / "t.json").read_text()).keys() == {"another", "steplaw"}
    quick = [*script, "--quick", "--jobs", "1", "--cache", str(tmp_path / "cache")]
    done = subprocess.run(quick, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    free = {name for name, entry in ENTRIES.items() if not entry.needs and not entry.truncated}
    assert set(told["sets"]) == {"matched", "lies"}
    for found in told["sets"].values():
        assert found["seeds"] == 2
        assert set(found["regret"]) == free
        for curve in found["regret"].values():
            means = [curve[k]["mean"] for k in ("1", "2", "3", "4", "6", "8", "16")]
            assert means == sorted(means, reverse=True)
            assert all(0 <= curve[k]["mean"] <= curve[k]["p90"] <= curve[k]["worst"] for k in curve)
        assert found["lead"]["best_peer"]["1"]["name"] in free
        assert found["lead"]["best_peer"]["1"]["low"] <= found["lead"]["best_peer"]["1"]["high"]
    assert set(told["seconds"]) == free
    assert "is left out" not in done.stdout

    again = subprocess.run(quick, capture_output=True, text=True, timeout=60)
    assert again.stderr == ""  # nothing was replayed
    assert json.loads(again.stdout.splitlines()[-1])["sets"] == told["sets"]


def test_a_table_whose_tasks_are_others_than_those_written_down_is_refused(
    table: Table, file: Path, tmp_path: Path
) -> None:
    other = listing(table) | {"halves": {}}
    (tmp_path / "tasks.json").write_text(json.dumps({"steplaw": other}))
    script = [sys.executable, str(BENCHMARKS / "transfer.py"), "--steplaw", str(file), "--quick"]
    done = subprocess.run(
        [*script, "--tasks", str(tmp_path / "tasks.json")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "--write-tasks" in done.stderr


def test_our_own_table_ends_with_json_and_its_half_without_a_task_is_refused(tmp_path: Path) -> None:
    script = [sys.executable, str(BENCHMARKS / "transfer.py"), "--table", str(BENCHMARKS / "transfer_runs.parquet")]
    words = ["--jobs", "1", "--methods", "default", "random"]
    (notes := tmp_path / "notes.json").write_text('{"other": {}, "own of transfer_runs": {}}')
    quick = [*script, "--quick", "--note", str(notes), *words]
    done = subprocess.run(quick, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told["sets"]) == {"own", "own_lies"}
    assert told["options"]["table"] == [str(BENCHMARKS / "transfer_runs.parquet")]
    noted = json.loads(notes.read_text())
    assert list(noted) == ["other", "own of transfer_runs", "own_lies of transfer_runs"]
    for name, found in told["sets"].items():
        regret = noted[f"{name} of transfer_runs"]["regret"]
        assert regret["random"]["4"]["mean"] == pytest.approx(found["regret"]["random"]["4"]["mean"], rel=1e-3)
    subprocess.run([*quick, "--window", "4"], capture_output=True, timeout=60, check=True)
    windowed = json.loads(notes.read_text())
    assert {name: windowed[name] for name in noted} == noted
    assert windowed["own of transfer_runs, window 4"]["window"] == 4
    done = subprocess.run([*script, "--half", "tuning", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "the half for tuning of transfer_runs has no task" in done.stderr


def test_the_committed_tasks_are_pairs_as_their_sets_are_defined() -> None:
    told = json.loads((BENCHMARKS / "transfer_tasks.json").read_text())["steplaw"]

    def size(name: str) -> tuple[float, float]:
        parameters, tokens = name.split("-")
        return float(parameters[:-1]) * 1e6, float(tokens[:-1]) * 1e9

    for source, target, shared in told["sets"]["matched"]:
        (n, d), (big_n, big_d) = size(source), size(target)
        assert big_n >= 1.59 * n
        assert big_d > d
        assert 0.49 <= (d / n) / (big_d / big_n) <= 2.02
        assert shared >= 30
    for source, target, _ in told["sets"]["cheap"]:
        (n, d), (big_n, big_d) = size(source), size(target)
        assert big_n >= 1.59 * n
        assert 9.9 * n * d <= big_n * big_d
    targets = {row[1] for rows in told["sets"].values() for row in rows}
    assert targets == set(told["halves"])
    order = sorted(targets, key=size)
    assert [told["halves"][name] for name in order] == ["reporting", "tuning"] * 4 + ["reporting"]
    assert {row[2] for row in told["sets"]["lies"]} == {"shuffled", "inverted", "mirrored", "unrelated"}
    assert all(row[3] not in row[:2] for row in told["sets"]["lies"] if row[2] == "unrelated")


def test_the_sets_hold_the_pairs_that_fit(table: Table) -> None:
    sets = task_sets(table)
    assert [task.id for task in sets["matched"]] == [
        f"{a}_{b}" for a, b in itertools.combinations(["100M-2B", "200M-4B", "400M-8B", "800M-16B"], 2)
    ]
    assert [task.id for task in sets["cheap"]] == ["100M-2B_400M-8B", "100M-2B_800M-16B", "200M-4B_800M-16B"]
    assert halves(table, sets) == {"200M-4B": "reporting", "400M-8B": "tuning", "800M-16B": "reporting"}
    assert len(table.cells["100M-2B"].losses) == len(RATES) * len(BATCHES)
    assert len(problem(table, sets["matched"][0]).keys) == len(RATES) * len(BATCHES)  # however rates were rounded


def test_published_rules_are_those_of_the_paper(pair: Problem) -> None:
    rule = step_law_optimum(1e9, 20e9)
    assert rule["learning_rate"] == pytest.approx(1.79 * 1e9**-0.713 * 20e9**0.307)
    assert rule["batch_size"] == round(0.58 * 20e9**0.571 / 2048)
    assert pair.scale["learning_rate"] == pytest.approx(4**-0.713 * 4**0.307)
    assert pair.scale["batch_size"] == pytest.approx(4**0.571)
    assert pair.price == pytest.approx(1 / 16)


def test_a_proposal_becomes_the_nearest_configuration_that_was_not_tried(pair: Problem) -> None:
    snapper = Snapper(pair.space, pair.configurations)
    wanted = {"learning_rate": RATES[3] * 1.05, "batch_size": 130}
    assert pair.configuration(snapper.take(wanted)) == pytest.approx(
        {"learning_rate": RATES[3], "batch_size": 128}, 1e-4
    )
    second = pair.configuration(snapper.take(wanted))
    assert second == pytest.approx({"learning_rate": RATES[4], "batch_size": 128}, 1e-4)  # a half octave, not a whole
    assert len({snapper.take(wanted) for _ in range(len(pair.keys) - 2)}) == len(pair.keys) - 2


def test_the_proxy_stage_follows_from_the_seed_and_has_the_sources_losses(pair: Problem) -> None:
    found = proxy_stage(pair, 3)
    assert found == proxy_stage(pair, 3)
    assert found != proxy_stage(pair, 4)
    assert len(found) == proxy_budget(pair) == len(pair.keys) // 2
    assert len({tuple(run.configuration.values()) for run in found}) == len(found)
    assert {run.origin for run in found} == {"default", "grid", "random", "sobol"}
    losses = {pair.keys[i]: loss for i, loss in enumerate(pair.source)}
    assert all(run.loss == losses[tuple(run.configuration.values())] for run in found)


def test_lies_keep_the_sources_losses_and_lose_their_places(table: Table) -> None:
    true = problem(table, Task("100M-2B", "400M-8B"))
    inverted = problem(table, Task("100M-2B", "400M-8B", "inverted"))
    assert sorted(inverted.source) == sorted(true.source)
    assert spearmanr(inverted.source, true.source).statistic == pytest.approx(-1)
    mirrored = problem(table, Task("100M-2B", "400M-8B", "mirrored"))
    best = mirrored.configuration(int(np.argmin(mirrored.source)))
    straight = true.configuration(int(np.argmin(true.source)))
    turned = {name: p.from_unit(1 - p.to_unit(straight[name])) for name, p in true.space.items()}
    assert best == true.configuration(Snapper(true.space, true.configurations).take(turned))
    shuffled = problem(table, Task("100M-2B", "400M-8B", "shuffled"))
    losses = {lie.task.lie: [run.loss for run in proxy_stage(lie, 1)] for lie in (true, shuffled)}
    assert set(losses["shuffled"]) <= set(true.source)
    assert abs(spearmanr(losses["shuffled"], losses[None]).statistic) < 0.6
    assert [run.loss for run in proxy_stage(shuffled, 2)] != losses["shuffled"]
    unrelated = problem(table, Task("100M-2B", "400M-8B", "unrelated", "800M-16B"))
    assert unrelated.source == tuple(table.cells["800M-16B"].losses[key] for key in unrelated.keys)
    assert unrelated.price == true.price


class Watching:
    """Proposes in the table's order, and remembers what it was shown."""

    def start(self, view: View, seed: int) -> None:  # noqa: ARG002 - a method's interface
        self.view, self.shown = view, list[tuple[int, int]]()

    def propose(self, history: Sequence[Seen], pending: Sequence[Configuration]) -> Configuration | None:
        self.shown.append((len(history), len(pending)))
        number = len(history) + len(pending)
        return self.view.proxy[number].configuration if number < 6 else None


def test_a_window_hides_the_last_results(pair: Problem) -> None:
    method = Watching()
    run = replay(pair, method, seed=0, trials=8, window=3, proxy_trials=12)
    assert method.shown == [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (3, 2), (4, 2)]
    assert [pair.configuration(i) for i in run.indices] == [seen.configuration for seen in method.view.proxy[:6]]
    assert len(run.seconds) == 7


def test_finished_runs_are_read_and_a_torn_line_is_not(
    pair: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job(ENTRIES[name], pair, TERMS, tmp_path) for name in ("random", "ranked")]
    first = run_all(jobs, 1)
    assert {name: sorted(runs) for name, runs in first.items()} == {each.name: [0, 1] for each in jobs}
    text = jobs[0].file.read_text()
    jobs[0].file.write_text(text[:-20])
    again = run_all([replace(each, terms=replace(TERMS, seeds=3)) for each in jobs], 1)
    for each in jobs:
        assert [again[each.name][seed].indices for seed in (0, 1)] == [
            first[each.name][seed].indices for seed in (0, 1)
        ]
        assert sorted(again[each.name]) == [0, 1, 2]

    def refuse(*_: Any) -> None:
        raise AssertionError("replayed")

    monkeypatch.setattr("replays.jobs.replay", refuse)
    assert run_all(jobs, 1) == {name: {s: r for s, r in runs.items() if s < 2} for name, runs in again.items()}


def test_recorded_runs_count_as_long_as_their_method_is_the_same(
    pair: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, names = tmp_path / "replays.parquet", ("random", "ranked")
    assert lay_out(record, [job(ENTRIES["random"], pair, TERMS, tmp_path)]) == 0
    first = [job(ENTRIES[name], pair, TERMS, tmp_path / "first") for name in names]
    ran = run_all(first, 1)
    keep(record, first)

    second = [job(ENTRIES[name], pair, TERMS, tmp_path / "second") for name in names]
    assert lay_out(record, second) == 4
    assert lay_out(record, second) == 0
    with monkeypatch.context() as patched:
        patched.setattr("replays.jobs.replay", lambda *_: pytest.fail("replayed"))
        found = run_all(second, 1)
    assert {name: {seed: run.indices for seed, run in runs.items()} for name, runs in found.items()} == {
        name: {seed: run.indices for seed, run in runs.items()} for name, runs in ran.items()
    }

    # Another version of a method: its runs are done again, and then the older ones aren't kept.
    monkeypatch.setattr(type(ENTRIES["random"]), "version", lambda entry: f"{entry.name}2")
    changed = job(ENTRIES["random"], pair, TERMS, tmp_path / "third")
    assert lay_out(record, [changed]) == 0
    run_all([changed], 1)
    keep(record, [changed])
    rows = pl.read_parquet(record)
    assert sorted(set(zip(rows["method"], rows["version"], strict=True))) == [
        ("random", "random2"),
        ("ranked", first[1].file.parent.name.removeprefix("ranked-")),
    ]
    assert rows.height == 4


def test_a_run_keeps_what_it_did_and_the_next_one_does_nothing(file: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(BENCHMARKS / "transfer.py"), "--steplaw", str(file), "--tasks", str(tmp_path / "t")]
    script += ["--half", "both", "--seeds", "2", "--jobs", "1", "--methods", "random", "ranked", "--sets", "cheap"]
    script += ["--replays", str(tmp_path / "new" / "replays.parquet")]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*script, *words], capture_output=True, text=True, timeout=120)

    assert "with --keep it is made" in run().stderr
    assert "nothing to --keep" in run("--keep", "--quick").stderr
    first = run("--keep")
    assert re.search(r"replays.parquet: (\d+) replays, \1 of them new; 0 of older versions dropped", first.stderr)
    again = run()
    assert re.fullmatch(r"\d+ replays are taken from .*\n", again.stderr)
    told = [json.loads(done.stdout.splitlines()[-1])["sets"] for done in (first, again)]
    assert told[0] == told[1]

    (tmp_path / "new" / "replays.parquet").write_bytes(file.read_bytes())
    assert "isn't a record of finished replays" in run().stderr


@pytest.mark.parametrize("name", ["random", "ranked"])  # which round alike on all processors
def test_the_committed_record_has_what_is_replayed(tmp_path: Path, name: str) -> None:
    """Where this fails since the code of replays has changed: `transfer.py --keep` for these methods, on all tables."""
    table = fine_tuning(BENCHMARKS / "transfer_runs_qwen2.parquet", BENCHMARKS / "transfer_qwen2.yaml", 0.1)
    (task,) = task_sets(table)["own"]
    terms = Terms(seeds=25, trials=transfer.TRIALS, window=1, proxy_trials=transfer.PROXY_TRIALS)
    recorded = job(ENTRIES[name], problem(table, task), terms, tmp_path)
    assert lay_out(transfer.REPLAYS, [recorded]) == 25
    run = replay(recorded.problem, recorded.entry.make(), 3, terms.trials, 1, terms.proxy_trials)
    assert finished(recorded)[3].indices == run.indices


def test_only_methods_that_see_the_proxy_have_runs_of_their_own_for_a_lie(table: Table, tmp_path: Path) -> None:
    true, lie = (problem(table, Task("100M-2B", "400M-8B", lie)) for lie in (None, "inverted"))

    def files(name: str, task: Problem) -> Path:
        return job(ENTRIES[name], task, TERMS, tmp_path).file

    assert files("random", true) == files("random", lie)
    assert files("ranked", true) != files("ranked", lie)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    path = tmp_path_factory.mktemp("tables") / "own.parquet"
    finished_runs.write_runs(path)
    table = fine_tuning(path, Path(__file__).parent / "study.yaml", 0.1)
    tasks = task_sets(table)
    assert [task.id for task in tasks["own"]] == ["proxy_nf4_target_fp32"]
    assert len(tasks["own_lies"]) == 3
    return problem(table, tasks["own"][0])


def test_a_table_of_fine_tuning_runs_has_the_studys_space_and_its_lowest_seeds_losses(tuned: Problem) -> None:
    assert tuned.names == ("learning_rate", "batch_size", "warmup_ratio", "lr_scheduler_type", "lora_r")
    assert (tuned.price, tuned.truncated_price) == (0.1, 0.25)
    assert tuned.truncated == tuned.target
    assert tuned.scale == {"learning_rate": pytest.approx((64 / 192) ** 0.781)}
    assert sum(math.isinf(loss) for loss in tuned.target) == 1
    assert max(loss for loss in tuned.target if math.isfinite(loss)) < 9  # not the other seed's
    assert tuned.rule["lora_r"] == 16


@pytest.mark.filterwarnings("default")  # what the peers and their libraries call is theirs to mend
@pytest.mark.parametrize("name", list(ENTRIES))
def test_every_method_proposes_in_a_mixed_space_the_same_for_the_same_seed(tuned: Problem, name: str) -> None:
    entry = ENTRIES[name]
    if entry.missing():
        pytest.skip(f"needs {', '.join(entry.missing())}")
    trials = 5 if entry.needs else 7
    runs = [replay(tuned, entry.make(), 1, trials, 2, 20) for _ in range(2)]
    assert runs[0].indices == runs[1].indices
    assert len(runs[0].indices) == (1 if name in ("default", "rule") else trials)
    assert len(set(runs[0].indices)) == len(runs[0].indices)


def test_shorter_runs_of_the_target_are_shown_and_paid_for(tuned: Problem, table: Table) -> None:
    """The proxy is turned around and the shorter runs are the target's own: with them the first run is better."""
    upside_down = replace(tuned, source=tuple(-loss for loss in tuned.source))
    with_short, without = (
        [replay(upside_down, ENTRIES[name].make(), seed, 1, 1, 20).indices[0] for seed in range(3)]
        for name in ("understudy_truncated", "understudy_two_fidelity")
    )
    assert max(tuned.target[i] for i in with_short) < min(tuned.target[i] for i in without)
    prices = [transfer.spent(tuned, ENTRIES[f"understudy_{name}"], TERMS) for name in ("truncated", "two_fidelity")]
    assert prices[0] - prices[1] == pytest.approx(8 * 0.25)
    other = problem(table, Task("100M-2B", "400M-8B"))
    assert transfer.able([ENTRIES["understudy_truncated"], ENTRIES["random"]], other) == [ENTRIES["random"]]
