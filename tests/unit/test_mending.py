"""What a start mends: declared files that can be made anew are set aside, and everything else stays."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from shipped_config import shipped
from test_store import INPUTS, record
from understudy import checksums, config
from understudy.files import file_sha256, write_json
from understudy.mending import mend
from understudy.paths import StudyPaths
from understudy.store import Store
from understudy.trial import SplitFile


@pytest.fixture
def study(tmp_path: Path) -> StudyPaths:
    """A few files of each kind, all whole."""
    paths = StudyPaths(tmp_path / "results")
    for path in (paths.settings("data"), paths.pack_specs("grid-000"), paths.proposal(3), paths.selection):
        write_json(path, {"name": path.name}, sealed=True)
    splits = {}
    for split in ("train", "validation", "test"):
        paths.data(split).parent.mkdir(parents=True, exist_ok=True)
        paths.data(split).write_text(split)
        splits[split] = SplitFile(examples=9, sha256=file_sha256(paths.data(split)))
    write_json(paths.manifest, INPUTS.data.model_copy(update={"splits": splits}))
    store = Store(paths.store)
    store.save(record("d1"))
    store.adapter("d1").mkdir()
    write_json(paths.finalist_result(0, 0), record("d1"))
    paths.proxy_trials.write_text("table")
    checksums.write_list(paths.proxy_trials.parent, [paths.proxy_trials])
    paths.table("trials").parent.mkdir()
    paths.table("trials").write_text("table")
    checksums.write_list(paths.table("trials").parent)
    return paths


def contents(paths: StudyPaths) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in paths.root.rglob("*") if path.is_file()}


def test_a_whole_study_is_left_alone(study: StudyPaths) -> None:
    before = contents(study)
    assert mend(study) == []
    assert contents(study) == before
    assert mend(StudyPaths(study.root / "nowhere")) == []


@pytest.mark.parametrize(
    "name",
    [
        "settings/data.json",
        "proxy/packs/grid-000/specs.json",
        "target/trials/0003/proposal.json",
        "finalists/selection.json",
        "finalists/0/0/result.json",
        "data/manifest.json",
        "data/validation.parquet",
        "proxy/trials.parquet",
        "summary/trials.parquet",
    ],
)
def test_a_declared_file_that_was_altered_is_set_aside(study: StudyPaths, name: str) -> None:
    path = study.root / name
    whole = contents(study)
    path.write_bytes(path.read_bytes()[:-4])
    broken = path.read_bytes()
    (note,) = mend(study)
    assert str(path) in note
    assert "is made anew" in note
    assert contents(study) == {key: value for key, value in whole.items() if key != path} | {
        path.with_name(path.name + ".damaged"): broken
    }
    path.write_bytes(whole[path])
    assert mend(study) == []


def test_the_store_is_never_touched(study: StudyPaths) -> None:
    path = Store(study.store).entry("d1") / "record.json"
    path.write_text("{")
    assert mend(study) == []
    assert path.read_text() == "{"


def test_a_finalist_whose_weights_were_deleted_is_trained_anew(study: StudyPaths) -> None:
    Store(study.store).adapter("d1").rmdir()
    (note,) = mend(study)
    assert "finalists/0/0/result.json belongs to a finalist whose trained weights are gone" in note
    assert not study.finalist_result(0, 0).exists()


def end(study: StudyPaths) -> None:
    """All that reads weights is there."""
    for path in (study.decode, study.test):
        write_json(path, {"name": path.name}, sealed=True)
    for path in (study.report, study.best_config):
        path.parent.mkdir(exist_ok=True)
        path.write_text("text")


@pytest.mark.parametrize("lacking", [None, "decode", "test", "report", "best_config"])
def test_weights_that_nobody_asks_for_can_be_deleted(study: StudyPaths, lacking: str | None) -> None:
    end(study)
    Store(study.store).adapter("d1").rmdir()
    if lacking:
        getattr(study, lacking).unlink()
    notes = mend(study)
    assert [study.finalist_result(0, 0).exists(), len(notes)] == ([False, 1] if lacking else [True, 0])


@pytest.mark.parametrize("change", [{}, {"confidence": 0.9}, {"seed": 7}])
def test_weights_are_asked_for_again_once_the_config_changes(study: StudyPaths, change: dict[str, Any]) -> None:
    end(study)
    Store(study.store).adapter("d1").rmdir()
    raw = shipped()
    write_json(study.settings("study"), config.parse(raw), sealed=True)
    raw["seed"] = change.get("seed", raw["seed"])
    raw.setdefault("test", {})["confidence"] = change.get("confidence", 0.95)
    assert len(mend(study, config.parse(raw))) == (1 if change else 0)


@pytest.mark.parametrize("whose", ["digests", "default_digests", "nobody"])
def test_only_the_winners_and_the_defaults_weights_are_asked_for(study: StudyPaths, whose: str) -> None:
    winner = {"digests": ["d2"], "default_digests": ["d3"]}
    write_json(study.winner, winner | {whose: ["d1"]}, sealed=True)
    Store(study.store).adapter("d1").rmdir()
    assert len(mend(study)) == (0 if whose == "nobody" else 1)


def test_what_was_set_aside_before_stays(study: StudyPaths) -> None:
    path = study.table("trials")
    for text in ("first", "second", "third"):
        path.write_text(text)
        assert len(mend(study)) == 1
        path.write_text("table")
    kept = {file.name: file.read_text() for file in path.parent.glob("*.damaged")}
    assert kept == {
        "trials.parquet.damaged": "first",
        "trials.parquet.2.damaged": "second",
        "trials.parquet.3.damaged": "third",
    }
    assert mend(study) == []
    checksums.write_list(path.parent)
    assert "damaged" not in (path.parent / checksums.LIST).read_text()


def test_a_list_that_was_altered_itself_does_no_harm(study: StudyPaths) -> None:
    path = study.proxy_trials.parent / checksums.LIST
    path.write_text(path.read_text().replace("trials.parquet", "trialt.parquet"))
    assert len(mend(study)) == 1
    assert not path.exists()
    assert study.proxy_trials.exists()
    assert mend(study) == []


def test_times_of_change_in_the_future_are_set_back_and_others_are_not(study: StudyPaths) -> None:
    now = time.time()
    future, past = study.proposal(3), study.settings("data")
    os.utime(future, (now + 7200, now + 7200))
    os.utime(past, (now - 7200, now - 7200))
    assert mend(study) == []
    assert now - 1 <= future.stat().st_mtime <= time.time()
    assert past.stat().st_mtime == pytest.approx(now - 7200, abs=1)
