"""Files that were cut off or altered are never taken for what they were."""

from __future__ import annotations

import argparse
import json
import random
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest

from test_store import record
from understudy import checksums, progress
from understudy.cli import collect_proxy
from understudy.data.files import SCHEMA, read_split
from understudy.errors import CorruptFileError
from understudy.files import file_sha256, read_json, write_json
from understudy.models.cache import kept
from understudy.store import Store
from understudy.trial import CurvePoint, PackResults, TrialRecord


def full_record(digest: str) -> TrialRecord:
    """A record with every kind of value in it."""
    plain = record(digest)
    point = CurvePoint(step=3, tokens=40, train_loss=2.25, eval_loss=2.0, learning_rate=1e-3)
    metrics = {"eval_loss": 2.0, "eval_accuracy": 0.123456789}
    changes = {"metrics": metrics, "curve": (point,), "message": "señor Ω", "provenance": {"host": "x"}}
    return plain.model_copy(update={"result": plain.result.model_copy(update=changes)})


def test_no_flipped_bit_makes_another_record(tmp_path: Path) -> None:
    store, wanted, chosen = Store(tmp_path), full_record("d1"), random.Random(1)
    store.save(wanted)
    path = store.entry("d1") / "record.json"
    content = path.read_bytes()
    refused = 0
    for _ in range(2000):
        altered = bytearray(content)
        altered[chosen.randrange(len(altered))] ^= 1 << chosen.randrange(8)
        path.write_bytes(altered)
        with suppress(CorruptFileError):
            assert store.find("d1") == wanted
            continue
        refused += 1
    assert refused > 1000  # the others fell on spaces between words


def test_a_record_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(full_record("d1"))
    path = store.entry("d1") / "record.json"
    content = path.read_bytes()
    for length in range(0, len(content) - 2, 7):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptFileError, match=r"record\.json"):
            store.find("d1")


def test_a_plain_value_is_sealed_only_where_it_is_wanted(tmp_path: Path) -> None:
    path, value = tmp_path / "a.json", {"rate": 1e-7, "names": ["é"], "none": None}
    write_json(path, value)
    assert json.loads(path.read_text()) == value
    write_json(path, value, sealed=True)
    assert set(json.loads(path.read_text())) == {*value, "checksum"}
    assert read_json(path) == value
    path.write_text(path.read_text().replace("1e-07", "NaN"))
    with pytest.raises(CorruptFileError, match="altered"):
        read_json(path)


def test_a_file_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(CorruptFileError, match=r"a\.json can't be read"):
        read_json(tmp_path / "a.json")


def test_a_list_of_checksums_names_what_was_altered_or_is_gone(tmp_path: Path) -> None:
    for name in ("a.bin", "deeper/b.bin", ".a.bin.7.part", "c.json.damaged"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert checksums.altered(tmp_path) == [], "there is no list"
    checksums.write_list(tmp_path)
    assert checksums.altered(tmp_path) == []
    (tmp_path / ".a.bin.7.part").unlink()
    (tmp_path / "c.json.damaged").unlink()
    assert checksums.altered(tmp_path) == []
    (tmp_path / "deeper" / "b.bin").write_text("B")
    assert checksums.altered(tmp_path) == [tmp_path / "deeper" / "b.bin"]
    with pytest.raises(CorruptFileError, match=r"b\.bin has been altered .* delete .* which makes the table anew"):
        checksums.require_unaltered(tmp_path, "the table")
    (tmp_path / "a.bin").unlink()
    assert tmp_path / "a.bin" in checksums.altered(tmp_path)
    for content in (b"\xff\xfe", b""):
        (tmp_path / checksums.LIST).write_bytes(content)
        assert checksums.altered(tmp_path) == [tmp_path / checksums.LIST]


def test_a_split_that_is_not_the_manifests_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path, chosen = tmp_path / "train.parquet", random.Random(2)
    rows = {"id": "a", "group": "g", "prompt": "p", "completion": "c", "chat": False}
    pl.DataFrame([rows], schema=SCHEMA).write_parquet(path)
    content, sha256 = path.read_bytes(), file_sha256(path)
    assert read_split(path, None, sha256).height == 1
    for _ in range(20):
        altered = bytearray(content)
        altered[chosen.randrange(len(altered))] ^= 1 << chosen.randrange(8)
        path.write_bytes(altered)
        with pytest.raises(CorruptFileError, match=r"train\.parquet"):
            read_split(path, None, sha256)


def test_progress_passes_over_what_was_altered_and_loses_no_line_after_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    progress.start(path, {"proxy": 4, "target": 2, "finalist": 0}, workers=2)
    progress.finished(path, record("d1"), reused=False)
    line = path.read_text().splitlines()[-1]
    with path.open("ab") as handle:
        for damaged in (line.replace('"id"', '"ie"'), line.replace("true", "1").replace("false", "2"), "[]", "7"):
            handle.write(damaged.encode() + b"\n")
        handle.write(b'\xff\xfe{"event": "tri')  # cut off, and no new line
    other = record("d2")
    progress.finished(path, other.model_copy(update={"spec": other.spec.model_copy(update={"id": "r9"})}), reused=True)
    assert sorted(progress.state(path).stages["proxy"].trials) == ["r0001", "r9"]


def test_a_cached_model_is_made_once_and_anew_when_it_was_altered(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        (folder / "model.safetensors").write_text("weights")
        made.append(folder)

    folder = kept(tmp_path / "models" / "m", make)
    assert kept(folder, make) == folder
    assert len(made) == 1
    (folder / "model.safetensors").write_text("weightz")
    assert kept(folder, make) == folder
    assert len(made) == 2
    assert (folder / "model.safetensors").read_text() == "weights"
    (folder / checksums.LIST).unlink()  # as an earlier version made it
    kept(folder, make)
    assert len(made) == 2


def test_a_table_whose_writer_was_killed_before_the_list_is_not_called_altered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    pack = tmp_path / "results.json"
    write_json(pack, PackResults(id="random-000", records=(full_record("d1"),)))
    table = tmp_path / "proxy" / "trials.parquet"
    words = argparse.Namespace(packs=[pack], output=table)
    collect_proxy.run(words)
    assert (table.parent / checksums.LIST).exists()
    write_json(pack, PackResults(id="random-000", records=(full_record("d2"),)))
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(checksums, "write_list", killed)
        collect_proxy.run(words)
    assert pl.read_parquet(table)["digest"].to_list() == ["d2"]
    assert checksums.altered(table.parent) == []
