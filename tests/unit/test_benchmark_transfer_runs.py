"""The tables of fine-tuning runs are made as their scripts say, here at the smallest scale."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from finished_runs import BENCHMARKS
from replays.tables import fine_tuning
from replays.tasks import task_sets

ROOT = Path(__file__).parents[2]
TINY = ROOT / "config" / "examples" / "tiny.yaml"


def call(folder: Path, *words: object) -> str:
    done = subprocess.run(list(map(str, words)), cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_a_table_of_another_family_is_made_from_a_study_and_can_be_replayed(tmp_path: Path) -> None:
    def prepare(config: Path) -> None:
        workflow = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "workflow" / "Snakefile", "--cores", 2]
        for rule in ("write_settings", "prepare_model"):
            call(tmp_path, *workflow, "--configfile", config, "--until", rule)

    prepare(TINY)
    folder = tmp_path / ".cache" / "transfer-qwen2"
    call(tmp_path, sys.executable, BENCHMARKS / "transfer_models.py", "--results", "results/tiny", "--steps", 2)
    study = yaml.safe_load((BENCHMARKS / "transfer_qwen2.yaml").read_text())
    study["data"] |= {"train_examples": 16, "validation_examples": 8}
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(study, sort_keys=False))
    prepare(config)

    table = tmp_path / "runs.parquet"
    words = ["--results", folder / "results", "--configurations", 30, "--repeated", 0, "--seeds", 1]
    words += ["--models", "proxy_nf4", "target_fp32", "--output", table]
    call(tmp_path, sys.executable, BENCHMARKS / "transfer_runs.py", *words)
    runs = pl.read_parquet(table)
    assert runs.columns == pl.read_parquet(BENCHMARKS / "transfer_runs_qwen2.parquet").columns
    assert set(runs["status"]) == {"complete"}
    assert set(runs["model_type"]) == {"qwen2"}
    read = fine_tuning(table, config, 0.1)
    assert {name: len(tasks) for name, tasks in task_sets(read).items()} == {"own": 1, "own_lies": 3}
    assert len(read.cells["target_fp32"].losses) == 30
