"""What a start mends: declared files that can be made anew are set aside, and everything else stays."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from shipped_config import shipped
from test_store import INPUTS, record
from understudy import checksums, config, graph, mending
from understudy.data.sources import fingerprints
from understudy.files import file_sha256, read_json, write_json
from understudy.mending import LONG_AGO, mend
from understudy.paths import StudyPaths
from understudy.sections import sections
from understudy.settings import DataFiles
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


CHANGES: list[tuple[dict[str, Any], int]] = [
    ({}, 0),
    ({"test": {"confidence": 0.9}}, 1),
    ({"seed": 7}, 1),
    ({"execution": {"device": "cpu", "target": {"threads": 2}}}, 1),
    ({"execution": {"checkpoint_minutes": 1, "watchdog_minutes": 9}}, 0),
    ({"resources": {"target": {"mem_mb": 9000}}}, 0),
    ({"results": "elsewhere"}, 0),
]


def test_settings_of_another_version_ask_for_weights(study: StudyPaths) -> None:
    end(study)
    Store(study.store).adapter("d1").rmdir()
    write_json(study.settings("study"), {"version": "another"}, sealed=True)
    assert len(mend(study, {"study": config.parse(shipped())})) == 1


def test_settings_that_no_rule_asks_for_are_written_by_a_start(study: StudyPaths) -> None:
    made, there = sections(config.parse(shipped())), {path.name for path in study.settings("x").parent.iterdir()}
    mend(study, made)
    assert {path.name for path in study.settings("x").parent.iterdir()} == there | {"running.json", "study.json"}
    later = sections(config.parse(shipped() | {"execution": {"checkpoint_minutes": 1}}))
    mend(study, later)
    assert read_json(study.settings("running")) == {"running": {"checkpoint_minutes": 1, "watchdog_minutes": 30}}


@pytest.mark.parametrize(("change", "notes"), CHANGES, ids=str)
def test_weights_are_asked_for_again_once_a_number_may_change(
    study: StudyPaths, change: dict[str, Any], notes: int
) -> None:
    end(study)
    Store(study.store).adapter("d1").rmdir()
    raw = shipped() | {"execution": {}}
    for name, section in sections(config.parse(raw)).items():
        write_json(study.settings(name), section, sealed=True)
    assert len(mend(study, sections(config.parse(raw | change)))) == notes


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


def written(study: StudyPaths, raw: dict[str, Any]) -> None:
    """What follows from a config, as far as it is looked at."""
    parsed = config.parse(raw)
    for name, section in sections(parsed).items():
        write_json(study.settings(name), section, sealed=True)
    for pack in (*graph.proxy_packs(parsed), *graph.echo_packs(parsed)):
        for path in (study.pack_specs(pack), study.pack_results(pack)):  # with the time of now
            write_json(path, {"name": pack}, sealed=True)
    for path in (study.proposal(0), study.selection, study.winner):
        write_json(path, {"name": path.name}, sealed=True)
    for path in (study.headline, study.proxy_trials):
        path.write_text("text")
        checksums.write_list(path.parent)


def settings_now(study: StudyPaths) -> dict[str, Any]:
    return {path.stem: read_json(path) for path in study.settings("data").parent.iterdir()}


def renewed(study: StudyPaths, raw: dict[str, Any]) -> set[str]:
    """The settings that a start with this config writes anew, and what it has made anew."""
    before, settings = contents(study), settings_now(study)
    parsed = config.parse(raw)
    assert mend(study, sections(parsed)) == []
    now = {name: json.loads(section.model_dump_json()) for name, section in sections(parsed).items()}
    assert settings_now(study) == now
    assert contents(study).keys() == before.keys()
    outdated = [path for path in before if path.stat().st_mtime == LONG_AGO]
    names = {str(path.relative_to(study.root)).removesuffix(".json") for path in outdated}
    return names | {f"settings/{name}" for name in now if settings[name] != now[name]}


def test_what_follows_from_a_changed_config_is_made_anew_without_snakemakes_notes(study: StudyPaths) -> None:
    raw = shipped()
    written(study, raw)
    assert renewed(study, raw) == set()
    raw["transfer"]["padding"] = 0.3
    assert renewed(study, raw) == {"settings/study", "settings/transfer"}
    written(study, raw)
    last = [pack for pack in graph.proxy_packs(config.parse(raw)) if pack.startswith("sobol")]
    raw["proxy"]["sobol"] += 1
    files = {f"proxy/packs/{pack}/{name}" for pack in last for name in ("specs", "results")}
    assert renewed(study, raw) == {"settings/study", "proxy/trials.parquet", "summary/headline.txt", *files}
    written(study, raw)
    raw["target"]["trials"] += 1
    raw["finalists"]["seeds"] += 1
    found = renewed(study, raw)
    assert {"settings/finalists", "finalists/selection", "finalists/winner", "summary/headline.txt"} <= found
    assert {name.split("/")[2].split("-")[0] for name in found if name.startswith("proxy/")} == {"echo"}
    written(study, raw)
    write_json(study.settings("study"), {"version": "another"}, sealed=True)
    everything = {f"proxy/packs/{pack}/specs" for pack in graph.proxy_packs(config.parse(raw))}
    assert everything | {"target/trials/0000/proposal", "finalists/selection"} <= renewed(study, raw)
    written(study, raw)
    raw["proxy"]["echo"] = False
    assert renewed(study, raw) == {"settings/study", "summary/headline.txt"}


def test_a_start_that_is_cut_off_leaves_the_studys_settings_for_the_next(
    study: StudyPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, left = shipped(), [None]
    written(study, raw)
    raw["transfer"]["padding"] = 0.3
    raw["target"]["trials"] += 1

    def once(*arguments: Any, **named: Any) -> None:
        left.pop()
        write_json(*arguments, **named)

    parsed = config.parse(raw)
    with monkeypatch.context() as patch:
        patch.setattr(mending, "write_json", once)
        with pytest.raises(IndexError):
            mend(study, sections(parsed))
    assert mending.is_changed(study, {"study": parsed})
    assert not mending.is_changed(study, {"transfer": sections(parsed)["transfer"]})
    assert {"settings/study", "finalists/selection"} <= renewed(study, raw)


def test_changed_data_are_noticed_by_what_they_say_and_missing_ones_are_not_missed(
    study: StudyPaths, tmp_path: Path
) -> None:
    data = tmp_path / "it's.jsonl"
    files = DataFiles(train=str(data))
    assert fingerprints(None, study.manifest) == {}
    assert fingerprints(files, tmp_path / "none") == {"train": ""}
    data.write_text("first")
    first = file_sha256(data)
    source = {"train": str(data), "train_sha256": first}
    write_json(study.manifest, read_json(study.manifest) | {"source": source}, sealed=True)
    later = study.manifest.stat().st_mtime + 5
    os.utime(data, (later, later))
    assert fingerprints(files, study.manifest) == {"train": first}
    data.write_text("other")
    os.utime(data, (later, later))
    assert fingerprints(files, study.manifest) == {"train": file_sha256(data)} != {"train": first}
    os.utime(data, (later - 99, later - 99))  # one that was written before, and was moved here since
    assert fingerprints(files, study.manifest) == {"train": file_sha256(data)}
    os.utime(study.manifest, (later, later))
    assert fingerprints(files, study.manifest) == {"train": first}
    data.unlink()
    assert fingerprints(files, study.manifest) == {"train": first}
    assert fingerprints(DataFiles(train=f"{data}2"), study.manifest) == {"train": ""}
    raw = shipped()
    written(study, raw)
    assert mend(study, sections(config.parse(raw), {"train": first})) == []
    assert settings_now(study)["data"]["sources"] == {"train": first}
