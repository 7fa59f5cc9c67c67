"""The benchmark of the transfer: tables of fine-tuning runs, and what is read from them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import finished_runs
from finished_runs import BENCHMARKS
from replays.replay import proxy_budget, proxy_stage
from replays.tables import fine_tuning
from replays.tasks import halves, problem, task_sets
from understudy.errors import UserError


def test_columns_of_a_table_say_how_large_its_models_are(tmp_path: Path) -> None:
    path = tmp_path / "sizes.csv"
    sizes = {
        "proxy_small": ("qwen2", 896, 5e8, 1e6),
        "target_a": ("qwen2", 1792, 2e9, 4e6),
        "target_b": ("x", 3584, 8e9, 4e6),
    }
    rows = [
        {"model": model, "model_type": kind, "hidden_size": width, "parameters": int(parameters), "tokens": tokens}
        | {
            "flops": 6 * parameters * tokens,
            "learning_rate": rate,
            "seed": 1,
            "eval_loss": 1 / rate,
            "status": "complete",
        }
        for model, (kind, width, parameters, tokens) in sizes.items()
        for rate in (1e-4, 1e-3)
    ]
    pl.DataFrame(rows).write_csv(path)
    config = yaml.safe_load((Path(__file__).parent / "study.yaml").read_text())
    config["models"] = {role: {"model_name_or_path": "somewhere"} for role in ("proxy", "target")}
    (tmp_path / "hub.yaml").write_text(yaml.safe_dump(config))
    table = fine_tuning(path, tmp_path / "hub.yaml", 0.1)
    sets = task_sets(table)
    assert halves(table, sets) == {"target_a": "reporting", "target_b": "tuning"}
    first, second = (problem(table, task) for task in sets["own"])
    assert first.price == pytest.approx(6 * 5e8 * 1e6 / (6 * 2e9 * 4e6))
    assert first.tokens == (1e6, 4e6)
    assert first.scale["learning_rate"] == pytest.approx(0.5**0.0775)  # Qwen's exponent
    assert second.scale["learning_rate"] == pytest.approx(0.25**0.781)  # Llama's, for want of its own
    pl.DataFrame(rows).drop("hidden_size").write_csv(path)
    with pytest.raises(UserError, match="hidden_size and parameters"):
        fine_tuning(path, tmp_path / "hub.yaml", 0.1)
    pl.DataFrame(rows).with_columns(pl.col("eval_loss") - 5e3).write_csv(path)
    with pytest.raises(UserError, match="a loss of -4000, but regrets relative"):
        fine_tuning(path, tmp_path / "hub.yaml", 0.1)


def test_a_table_with_hyperparameters_that_the_config_does_not_search_is_refused(tmp_path: Path) -> None:
    finished_runs.write_runs(tmp_path / "runs.parquet")
    with pytest.raises(UserError, match=r"lr_scheduler_type, warmup_ratio, which .*transfer_qwen2.yaml doesn't search"):
        fine_tuning(tmp_path / "runs.parquet", BENCHMARKS / "transfer_qwen2.yaml", 0.1)


def test_what_a_config_has_no_default_for_has_the_programs(tmp_path: Path) -> None:
    """As in a study; the proxy stage's grid is filled up with it."""
    path, config = tmp_path / "own.parquet", yaml.safe_load((Path(__file__).parent / "study.yaml").read_text())
    finished_runs.write_runs(path)
    del config["defaults"]["lora_r"]
    del config["defaults"]["warmup_ratio"]
    config["proxy"]["grid"] = {"learning_rate": [1e-3, 1e-2]}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(config))
    table = fine_tuning(path, tmp_path / "few.yaml", 0.1)
    task = problem(table, task_sets(table)["own"][0])
    assert {"lora_r": 16, "warmup_ratio": 0.03}.items() <= task.default.items()
    assert {"lora_r": 16, "warmup_ratio": 0.03}.items() <= task.rule.items()
    assert len(proxy_stage(task, 1)) == proxy_budget(task)


def test_two_tables_have_sets_of_their_own(tmp_path: Path) -> None:
    paths = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    finished_runs.write_runs(paths[0])
    pl.read_parquet(paths[0]).with_columns(pl.col("eval_loss") * 2 - 1).write_parquet(paths[1])
    script = [sys.executable, str(BENCHMARKS / "transfer.py"), "--config", str(Path(__file__).parent / "study.yaml")]
    script += ["--jobs", "1", "--seeds", "2", "--methods", "ranked", "--sets", "own", "--table"]

    def regrets(*tables: Path) -> dict[str, Any]:
        done = subprocess.run([*script, *map(str, tables)], capture_output=True, text=True, timeout=60, check=True)
        sets = json.loads(done.stdout.splitlines()[-1])["sets"]
        return {name: found["regret"]["ranked"] for name, found in sets.items()}

    alone = [regrets(path)["own"] for path in paths]
    assert alone[0] != alone[1]
    assert regrets(*paths) == {"own of one": alone[0], "own of two": alone[1]}
