"""What a user gets wrong: one clear message, no traceback, and nothing of an earlier study touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import Study, tiny

pytestmark = pytest.mark.workflow


def refused(study: Study, *words: str, target: str | None = None, dry: bool = False, code: int = 1) -> str:
    done = study.run(*([target] if target else []), *(["--dry-run"] if dry else []))
    assert done.returncode == code
    assert "Traceback" not in done.stdout
    for word in words:
        assert word in done.stdout
    return done.stdout


def test_all_mistakes_of_a_config_at_once(tmp_path: Path) -> None:
    study = Study(tmp_path, tiny(target__trails=3, space__lora_r=[], seed="one"))
    refused(study, "3 problems", "target.trails: unknown key; did you mean `trials`?", "space.lora_r", "seed", code=2)
    assert not study.results.exists()


def test_a_wrong_config_touches_nothing_of_a_finished_study(finished: Study) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.results.rglob("*") if path.is_file()}
    wrong = Study(finished.folder, tiny(proxy__grid={"lora_rr": [4]}))
    refused(wrong, "proxy.grid.lora_rr: not in `space`; did you mean `lora_r`?", code=2)
    assert {path: path.stat().st_mtime_ns for path in finished.results.rglob("*") if path.is_file()} == before


def own_data(tmp_path: Path, rows: list[Any], **changes: Any) -> Study:
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return Study(tmp_path / "study", tiny(data__task="files", data__files={"train": str(path)}, **changes))


def test_a_missing_data_file(tmp_path: Path) -> None:
    study = Study(tmp_path, tiny(data__task="files", data__files={"train": "nowhere.jsonl"}))
    words = "understudy{}: there is no file nowhere.jsonl (given in `data.files`)"
    refused(study, words.format(" prepare-data"), target="results/data/manifest.json")
    refused(study, words.format(""), dry=True, code=2)


def test_a_dry_run_shows_the_whole_study_and_touches_nothing(tmp_path: Path) -> None:
    study = Study(tmp_path, tiny(target__trials=8))
    said = study.run("--dry-run").stdout
    whole = (
        "15 proxy trials in 5 packs (8 repeat target trials), 8 target trials (up to 1 side by side), 2 finalist trials"
    )
    assert said.count(f"the whole study: {whole}") == 1
    assert "2 cores, but `target.window` (1) lets one target trial at a time run, where 2 would fit" in said
    assert [line.split() for line in said.splitlines() if line.startswith("train_target ")] == [["train_target", "8"]]
    assert not study.results.exists()


def test_bad_rows_are_named_by_line(tmp_path: Path) -> None:
    good = {"prompt": "a", "completion": "b"}
    study = own_data(tmp_path, [good, {"prompt": "a"}, "{broken", good])
    refused(study, "train.jsonl", "line 2", "completion", "line 3", target="results/data/manifest.json")


@pytest.mark.long
def test_data_that_are_gone_are_not_missed_and_changed_ones_are_noticed(tmp_path: Path) -> None:
    """Snakemake would take the splits away before the command finds that there is nothing to cut them from."""
    rows = [{"prompt": f"say {number}", "completion": f"{number}"} for number in range(900)]
    study, path = own_data(tmp_path, rows), tmp_path / "train.jsonl"
    manifest = study.results / "data" / "manifest.json"
    target = str(manifest.relative_to(study.folder))
    assert study.run(target).returncode == 0
    before, aside = manifest.read_bytes(), path.rename(tmp_path / "moved.jsonl")
    assert "Nothing to be done" in study.run(target).stdout
    aside.rename(path)
    path.write_text(path.read_text().replace("say 3", "tell 3"))
    assert "the config or the data have changed since the last run (data)" in study.run("--dry-run", target).stdout
    assert study.run(target).returncode == 0
    assert manifest.read_bytes() != before


@pytest.mark.long
def test_a_target_that_is_not_there_is_told_before_the_proxy_stage(tmp_path: Path) -> None:
    study = Study(tmp_path, tiny(models__target={"model_name_or_path": "./nowhere"}))
    refused(study, "understudy: there is no model folder nowhere", dry=True, code=2)
    planned = str(study.results.relative_to(tmp_path) / "proxy" / "packs" / "sobol-000" / "specs.json")
    refused(study, "understudy prepare-model: there is no model folder nowhere", target=planned)
    assert not (study.folder / planned).exists()


@pytest.mark.long
def test_a_model_folder_without_weights(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    study = Study(tmp_path / "study", tiny(models__proxy={"model_name_or_path": str(folder)}))
    refused(study, str(folder), "weights", target="results/models/proxy/model.json")


def test_more_gpus_than_there_are(tmp_path: Path) -> None:
    import torch

    wanted = torch.cuda.device_count() + 1
    study = Study(tmp_path, tiny(execution={"device": "cuda", "target": {"processes": wanted}}))
    words = ("`execution.device: cuda`", "needs", "visible on this machine")
    refused(study, *words, dry=True, code=0)  # the plan may be meant for another machine
    refused(study, *words)
    assert not (study.results / "data").exists()
