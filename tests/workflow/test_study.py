"""What a study promises: the same tables however it ran, and nothing finished trained again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml

from .conftest import Study, kill_group, tiny, wait_until

pytestmark = pytest.mark.workflow


def copy_of(study: Study, folder: Path, *, bookkeeping: bool = True, **changes: object) -> Study:
    """A copy of a finished study, with or without Snakemake's own notes, and with some keys changed."""
    ignore = None if bookkeeping else shutil.ignore_patterns(".snakemake")
    shutil.copytree(study.folder, folder, ignore=ignore)
    return Study(folder, tiny(**changes))


def test_a_finished_study_has_nothing_to_do_and_says_what_it_found(finished: Study) -> None:
    output = (finished.folder / "output.txt").read_text()
    assert (finished.results / "summary" / "headline.txt").read_text().strip() in output
    assert "Traceback" not in output
    assert "Nothing to be done" in finished.run("--dry-run").stdout
    best = yaml.safe_load((finished.results / "best" / "config.yaml").read_text())
    assert best
    assert (finished.results / "best" / "adapter" / "adapter_config.json").exists()
    assert (finished.results / "report.html").stat().st_size > 10_000


def test_the_best_adapter_loads_with_plain_peft_and_has_the_loss_that_is_reported(finished: Study) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from understudy.data.encoding import encode
    from understudy.data.files import read_split

    winner = json.loads((finished.results / "finalists" / "winner.json").read_text())
    card = json.loads((finished.results / "models" / "target" / "model.json").read_text())
    folder = finished.folder / card["path"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute by its old name
        model = PeftModel.from_pretrained(model, finished.results / "best" / "adapter").eval()
    data = finished.config["data"]
    split = read_split(finished.results / "data" / "validation.parquet", data["validation_examples"])
    loss, tokens = 0.0, 0
    for example in encode(split, AutoTokenizer.from_pretrained(folder), data["max_length"]):
        ids = torch.tensor([example.input_ids])
        labels = ids.clone()
        labels[:, : example.completion_start] = -100
        counted = len(example.input_ids) - example.completion_start
        with torch.no_grad():
            loss, tokens = loss + counted * float(model(ids, labels=labels).loss), tokens + counted
    best = json.loads((finished.results / "store" / winner["digests"][0] / "record.json").read_text())
    assert loss / tokens == pytest.approx(best["result"]["objective"], rel=1e-4)


def test_figures_and_tables_stand_in_snakemakes_own_report(finished: Study, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert finished.run("--report", str(page)).returncode == 0
    text = page.read_text()
    assert all(name in text for name in ("progress.svg", "agreement.svg", "slices.svg", "leaderboard.csv"))


def test_every_trial_is_in_the_table(finished: Study) -> None:
    trials = pl.read_parquet(finished.results / "summary" / "trials.parquet")
    counts = dict(trials.group_by("stage").len().iter_rows())
    settings = finished.config
    proxy = settings["proxy"]
    grid = len(proxy["grid"]["learning_rate"])
    searched = 3 + proxy["random"] + proxy["sobol"] + grid
    assert counts == {
        "proxy": searched + settings["target"]["trials"],  # the echoes
        "target": settings["target"]["trials"],
        "finalist": (settings["finalists"]["configurations"] + 1) * settings["finalists"]["seeds"],
    }


@pytest.mark.long
def test_a_killed_study_goes_on_where_it_was_also_on_one_core_and_in_a_folder_with_a_difficult_name(
    finished: Study, tmp_path: Path
) -> None:
    """Its tables are those of two cores without interruption; while it runs, it can't be started a second time."""
    study = Study(tmp_path / 'it\'s a "folder" of señor Ω', tiny())
    seen: dict[str, int] = {}
    for trials in (3, 10):
        process = study.start(cores=1)
        wait_until(lambda wanted=trials: study.finished() >= wanted, 120)
        if trials == 3:
            second = study.run()
            assert second.returncode != 0
            assert "another run of this study is under way" in second.stdout
            assert "Traceback" not in second.stdout
            assert process.poll() is None
        kill_group(process)
        wait_until(lambda: not study.processes(), 5)
        now = study.trained()
        assert {name: now[name] for name in seen} == seen, "a finished trial was trained again"
        seen = now
    done = study.run(cores=1)
    assert done.returncode == 0, done.stdout
    after = study.trained()
    assert {name: after[name] for name in seen} == seen, "a finished trial was trained again"
    assert study.tables() == finished.tables()


def test_a_second_run_of_a_study_is_refused(tmp_path: Path) -> None:
    study = Study(tmp_path, tiny(models__target__pretrain__steps=100_000))
    process = study.start("results/models/target/model.json")
    wait_until((study.results / "logs" / "prepare_model" / "target.log").exists, 60)
    second = study.run()
    assert second.returncode == 1
    assert "another run of this study is under way" in second.stdout
    assert "Traceback" not in second.stdout
    assert process.poll() is None
    kill_group(process)


def test_ctrl_c_while_a_model_is_prepared_is_said_in_a_few_words(tmp_path: Path) -> None:
    study = Study(tmp_path, tiny(models__target__pretrain__steps=100_000))
    process = study.start("results/models/target/model.json")
    wait_until((study.results / "logs" / "prepare_model" / "target.log").exists, 60)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 1
    said = (study.folder / "output.txt").read_text()
    assert "understudy prepare-model: interrupted (SIGINT)" in said
    assert "Interrupted. Nothing that has finished is lost: the same command goes on." in said
    for word in ("RuleException", "Traceback", "mend the cause", "exec python"):
        assert word not in said


def test_a_second_ctrl_c_is_answered_and_a_third_ends_at_once(tmp_path: Path) -> None:
    """To the main process alone, which waits for its command."""
    study = Study(tmp_path, tiny(models__target__pretrain__steps=100_000))
    process, output = study.start("results/models/target/model.json"), study.folder / "output.txt"
    wait_until((study.results / "logs" / "prepare_model" / "target.log").exists, 60)
    for words in ("Terminating processes on user request", "a third Ctrl-C ends at once"):
        os.kill(process.pid, signal.SIGINT)
        wait_until(lambda words=words: words in output.read_text(), 10)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(10) == 128 + signal.SIGINT
    assert "Traceback" not in output.read_text()
    wait_until(lambda: not study.processes(), 5)


@pytest.mark.long
def test_more_trials_train_only_the_new_ones(finished: Study, tmp_path: Path) -> None:
    study = copy_of(finished, tmp_path / "more", target__trials=4)
    before = study.trained()
    done = study.run()
    assert done.returncode == 0, done.stdout
    after = study.trained()
    assert {name: after[name] for name in before} == before
    target = pl.read_parquet(study.results / "summary" / "trials.parquet").filter(stage="target")
    old = pl.read_parquet(finished.results / "summary" / "trials.parquet").filter(stage="target")
    assert target.head(old.height).equals(old)
    assert target.height == old.height + 1


@pytest.mark.long
def test_more_proxy_trials_leave_the_old_ones_alone(finished: Study, tmp_path: Path) -> None:
    study = copy_of(finished, tmp_path / "more", proxy__sobol=3)
    before = study.trained()
    done = study.run("results/proxy/trials.parquet")
    assert done.returncode == 0, done.stdout
    assert len(study.trained()) == len(before) + 1
    new = pl.read_parquet(study.results / "proxy" / "trials.parquet")
    old = pl.read_parquet(finished.results / "proxy" / "trials.parquet")
    assert new.filter(pl.col("id") != "q0002").equals(old)


@pytest.mark.nightly
def test_halving_in_a_study_that_has_begun(tmp_path: Path) -> None:
    """What was finished before stays; an extension fills the last bracket, which is then judged as a whole."""
    halving = {"rungs": 1, "reduction_factor": 2, "bracket": 4}
    steps = ({"proxy__sobol": 4}, {"proxy__sobol": 7, "proxy__halving": halving}, {"proxy__sobol": 8})
    changes: dict[str, object] = {"proxy__grid": {}, "proxy__defaults": False}
    tables, stores = [], []
    for step in steps:
        changes |= step
        study = Study(tmp_path / "halved", tiny(**changes))
        done = study.run("results/proxy/trials.parquet")
        assert done.returncode == 0, done.stdout
        tables.append(pl.read_parquet(study.results / "proxy" / "trials.parquet").sort("id"))
        stores.append(study.trained())
    assert [table.height for table in tables] == [4, 7, 8]
    assert tables[1].head(4).equals(tables[0])
    assert set(tables[1]["status"]) == {"complete"}
    assert tables[2].head(4).equals(tables[0])
    assert sorted(tables[2].tail(4)["status"]) == ["complete", "complete", "stopped", "stopped"]
    for before, after in pairwise(stores):
        assert before.items() <= after.items(), "a finished trial was trained again"
    results = json.loads((study.results / "proxy" / "packs" / "sobol-001" / "results.json").read_text())
    scores = {record["spec"]["id"]: record["result"]["rung_scores"][0]["score"] for record in results["records"]}
    best = sorted(scores, key=lambda id: (scores[id], id))[:2]
    assert sorted(tables[2].tail(4).filter(status="complete")["id"]) == sorted(best)


@pytest.mark.long
def test_nothing_is_trained_again(finished: Study, tmp_path: Path) -> None:
    """Snakemake knows nothing of the study and runs every rule, as after a change of all their texts."""
    study = copy_of(finished, tmp_path / "again", bookkeeping=False)
    before = study.trained()
    done = study.run("--forceall")
    assert done.returncode == 0, done.stdout
    assert study.trained() == before
    assert study.tables() == finished.tables()


@pytest.mark.long
def test_trained_weights_can_go_once_the_report_is_there(finished: Study, tmp_path: Path) -> None:
    """Settings that no number follows from leave it alone; who asks for the report again trains its finalists again."""
    study = copy_of(finished, tmp_path / "light", execution__checkpoint_minutes=1)
    for folder in (study.results / "store").glob("*/adapter"):
        shutil.rmtree(folder)
    before, written = study.trained(), (study.results / "report.html").stat().st_mtime_ns
    done = study.run()
    assert done.returncode == 0, done.stdout
    assert (study.results / "report.html").stat().st_mtime_ns == written
    assert study.trained() == before
    (study.results / "report.html").unlink()
    (study.results / "finalists" / "0" / "0" / "result.json").unlink()  # a start before this one set it aside
    study.config["execution"]["checkpoint_minutes"] = 2  # an unfinished study goes on
    done = study.run()
    assert done.returncode == 0, done.stdout
    assert (study.results / "report.html").exists()
    assert list((study.results / "store").glob("*/adapter"))
    assert study.tables() == finished.tables()


def test_the_proxys_table_is_made_anew_where_it_is_gone(finished: Study, tmp_path: Path) -> None:
    """All that was made from it is there: a run was killed while it was made anew."""
    study = copy_of(finished, tmp_path / "table")
    (study.results / "proxy" / "trials.parquet").unlink()
    assert "rule collect_proxy:" in study.run("--dry-run", "--quiet", "host").stdout


def test_transfer_settings_leave_the_proxy_stage_alone(finished: Study, tmp_path: Path) -> None:
    study = copy_of(finished, tmp_path / "transfer", transfer__padding=0.3)
    planned = study.run("--dry-run", "--quiet", "host").stdout
    assert "rule transfer:" in planned
    assert "rule propose:" in planned
    assert "rule train_pack:" not in planned
    assert "rule collect_proxy:" not in planned


@pytest.mark.nightly
def test_short_runs_come_first_and_trials_that_are_not_worth_it_are_skipped(finished: Study, tmp_path: Path) -> None:
    """Nothing gains half of the loss, so what comes after four such trials is skipped, and nothing of it is echoed."""
    target = {"trials": 8, "window": 1, "sampler": "two_fidelity", "stop": {"gain": 0.5, "patience": 4}}
    target["truncated"] = {"trials": 2, "fidelity": 0.5}
    study = copy_of(finished, tmp_path / "stop", **{f"target__{name}": value for name, value in target.items()})
    done = study.run()
    assert done.returncode == 0, done.stdout
    trials = pl.read_parquet(study.results / "summary" / "trials.parquet")
    statuses = trials.filter(stage="target").sort("id")["status"].to_list()
    assert statuses == ["complete"] * 5 + ["skipped"] * 3
    assert trials.filter(origin="echo")["id"].sort().to_list() == [f"e{number:04d}" for number in range(5)]
    short = trials.filter(stage="truncated")
    assert short.select("id", "fidelity").rows() == [("u0000", 0.5), ("u0001", 0.5)]
    whole = trials.filter(stage="target").select("digest", "steps")
    assert short["steps"].max() < whole["steps"].max()  # type: ignore[operator]
    assert set(short["digest"]).isdisjoint(whole["digest"])
    costs = pl.read_csv(study.results / "summary" / "cost_per_stage.csv")
    assert costs["stage"].to_list() == ["proxy", "echo", "truncated", "target", "finalist", "total"]
    first = json.loads((study.results / "target" / "trials" / "0000" / "proposal.json").read_text())
    assert first["visible"] == ["u0000", "u0001"]
    assert "3 skipped" in done.stdout
    assert "by its model with probability" in done.stdout
    assert "by its model with probability" in (study.results / "report.html").read_text()
    assert study.run("--dry-run").stdout.count("Nothing to be done") == 1


@pytest.mark.nightly
def test_target_trials_are_stopped_early_and_left_alone(finished: Study, tmp_path: Path) -> None:
    """What was trained in full before is judged without training; an extension and a rerun change nothing of it."""
    target = {"trials": 6, "early_stopping": {"visible": 1, "margin": 0.0}}
    changes = {f"target__{name}": value for name, value in target.items()}
    study = copy_of(finished, tmp_path / "early", **changes)
    before = study.trained()
    done = study.run()
    assert done.returncode == 0, done.stdout
    first = pl.read_parquet(study.results / "summary" / "trials.parquet")
    targets = first.filter(stage="target").sort("id")
    stopped = targets.filter(status="stopped")
    assert 1 <= stopped.height < targets.height
    assert set(first.filter(stage="finalist")["status"]) == {"complete"}
    for id in stopped["id"]:
        folder = study.results / "target" / "trials" / id.replace("t", "")
        proposal, record = (json.loads((folder / f"{name}.json").read_text()) for name in ("proposal", "result"))
        (limit,) = proposal["stop_above"]
        assert record["result"]["curve"][-1]["eval_loss"] > limit
        assert record["result"]["objective"] is None
    after = study.trained()
    assert before.items() <= after.items(), "a finished trial was trained again"
    for text in (done.stdout, (study.results / "report.html").read_text()):
        assert f"stopped {stopped.height} of 6 target trials" in text

    longer = Study(study.folder, tiny(**{**changes, "target__trials": 7}))
    done = longer.run("--forcerun", "train_target")
    assert done.returncode == 0, done.stdout
    assert after.items() <= longer.trained().items(), "a finished trial was trained again"
    second = pl.read_parquet(longer.results / "summary" / "trials.parquet").filter(stage="target").sort("id")
    assert second.height == 7
    assert second.head(6).equals(targets)


@pytest.mark.long
def test_what_is_asked_of_a_scheduler_holds_nothing_back_on_one_machine(finished: Study, tmp_path: Path) -> None:
    """Neither memory that no machine has, nor more threads than there are cores; that is said."""
    asked = {"target": {"mem_mb": 10**9, "runtime": 1}}
    study = copy_of(finished, tmp_path / "asked", resources=asked, execution__target={"threads": 2})
    done = study.run("results/execution/target.json", cores=1)
    assert done.returncode == 0, done.stdout
    assert "`execution.target` keeps 2 cores busy per trial" in done.stdout
    execution = json.loads((study.results / "execution" / "target.json").read_text())
    assert execution["resolved"]["threads"] == 2


@pytest.mark.long
def test_the_table_that_the_benchmark_replays_can_be_made(finished: Study, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "transfer_runs.py"
    command = [
        sys.executable,
        str(script),
        "--store",
        str(tmp_path / "store"),
        "--output",
        str(tmp_path / "runs.parquet"),
    ]
    command += ["--configurations", "2", "--repeated", "1", "--seeds", "2", "--jobs", "1"]
    subprocess.run(command, cwd=finished.folder, check=True, capture_output=True)
    runs = pl.read_parquet(tmp_path / "runs.parquet")
    assert runs.height == 12
    assert runs.group_by("model").len().sort("model")["len"].to_list() == [3, 3, 3, 3]
    assert runs.select(pl.col("eval_loss") - pl.col("curve").list.last()).to_series().abs().max() < 1e-5
    assert runs["id"].n_unique() == 2
