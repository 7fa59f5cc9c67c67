"""Who goes to train, validation and test, of the user's own files; and what a trial depends on of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from test_data_files import PAIRS, SIZES, given, write
from test_data_stdlib import prepare, rows
from understudy.errors import DataError


def test_repeats_are_counted_and_never_stand_in_two_splits(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [*PAIRS, *PAIRS[:7]])
    write(tmp_path / "test.jsonl", [*PAIRS[:3], PAIRS[0], {"prompt": "new", "completion": "new"}])
    files = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}
    manifest = prepare(tmp_path, task="files", files=files, **SIZES)
    found = rows(tmp_path)
    assert found.select("prompt", "completion").is_unique().all()
    assert manifest.splits["test"].examples == 4
    assert manifest.counts["dropped_repeated"] == 1 + 7 + 3
    assert manifest.counts["found"] == 52
    assert manifest.counts["kept"] == 41
    assert set(found.filter(pl.col("split") == "validation")["id"].str.split(":").list.first()) == {"train"}


@pytest.mark.parametrize("data_format", ["prompt_completion", "messages"])
def test_rows_with_the_same_prompt_are_cut_into_one_split(data_format: str, tmp_path: Path) -> None:
    pairs = [{"prompt": f"Question {i // 2}?", "completion": f"Answer {i}"} for i in range(40)]
    chats = [
        {"messages": [{"role": "user", "content": p["prompt"]}, {"role": "assistant", "content": p["completion"]}]}
        for p in pairs
    ]
    items: list[Any] = chats if data_format == "messages" else pairs
    manifest = prepare(tmp_path, **given(write(tmp_path / "d.jsonl", items), format=data_format))
    splits = rows(tmp_path).group_by("prompt").agg(pl.col("split").n_unique(), pl.len().alias("rows"))
    assert splits.height == 20
    assert splits["split"].to_list() == [1] * 20
    assert splits["rows"].to_list() == [2] * 20
    assert [manifest.splits[split].examples for split in ("train", "validation", "test")] == [32, 4, 4]


def test_rows_of_train_that_share_a_prompt_with_a_held_out_file_are_dropped(tmp_path: Path) -> None:
    other = [{"prompt": pair["prompt"], "completion": "Another answer"} for pair in PAIRS]
    bare = [{"prompt": "", "completion": f"Text {i}"} for i in range(12)]
    parts = {
        "train": [*PAIRS, *other[:1], *bare[4:]],
        "validation": [*other[3:6], *other[:1], *bare[2:4]],
        "test": [*other[:3], *bare[:2]],
    }
    files = {name: str(write(tmp_path / f"{name}.jsonl", items)) for name, items in parts.items()}
    manifest = prepare(tmp_path, task="files", files=files, **SIZES)
    found = rows(tmp_path).filter(pl.col("prompt") != "")
    assert found.group_by("prompt").agg(pl.col("split").n_unique())["split"].max() == 1
    assert [manifest.splits[split].examples for split in ("train", "validation", "test")] == [34 + 8, 3 + 2, 3 + 2]
    assert manifest.counts["dropped_prompt_held_out"] == 6
    assert manifest.counts["dropped_repeated"] == 2


def test_validation_leaves_out_a_prompt_of_test(tmp_path: Path) -> None:
    parts = {
        "train": PAIRS,
        "validation": [{**PAIRS[0], "completion": "Else"}, *PAIRS[1:4]],
        "test": PAIRS[:1] + PAIRS[9:12],
    }
    files = {name: str(write(tmp_path / f"{name}.jsonl", items)) for name, items in parts.items()}
    manifest = prepare(tmp_path, task="files", files=files, **SIZES)
    assert manifest.splits["validation"].examples == 3
    assert manifest.counts["dropped_prompt_held_out"] == 1


def test_the_cut_does_not_depend_on_the_order_of_lines(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", PAIRS)
    write(tmp_path / "b.jsonl", PAIRS[:1] + PAIRS[1:][::-1])
    for name in ("a", "b"):
        prepare(tmp_path / name, **given(tmp_path / f"{name}.jsonl"))
    of_a, of_b = (
        dict(zip(rows(tmp_path / name)["prompt"], rows(tmp_path / name)["split"], strict=True)) for name in "ab"
    )
    assert of_a == of_b


def test_what_trials_depend_on_is_what_the_examples_say(tmp_path: Path) -> None:
    """Not their file, not their lines, and not the examples beyond those that are used."""
    found = []
    kinds = [
        ("a.jsonl", PAIRS),
        ("b [2].parquet", PAIRS[::-1]),
        ("c.jsonl", [{**PAIRS[0], "completion": "New"}, *PAIRS[1:]]),
    ]
    for number, (name, items) in enumerate(kinds):
        folder = tmp_path / f"{number} [1]"
        folder.mkdir()
        manifest = prepare(folder, **given(write(folder / name, items), **{"train_examples": 32}))
        found.append(manifest.splits["train"].identity)
        assert manifest.splits["train"].identity == manifest.splits["train"].content
        assert len(rows(folder)) == 40
    assert found[0] == found[1] != found[2]
    fewer = prepare(folder, **given(write(folder / "d.jsonl", PAIRS), **{"train_examples": 31}))
    assert fewer.splits["train"].content != found[0]


def test_the_rows_of_a_conversation_stay_together(tmp_path: Path) -> None:
    """One row per answer, as the documentation advises."""
    items = []
    for number in range(30):
        turns: list[dict[str, str]] = []
        for answer in range(4):
            turns += [{"role": "user", "content": f"{number}, {answer}?"}]
            turns += [{"role": "assistant", "content": f"{number}: {answer}."}]
            items.append({"messages": list(turns)})
    prepare(tmp_path, **given(write(tmp_path / "chats.jsonl", items), format="messages"))
    found = rows(tmp_path).with_columns(
        pl.col("prompt").map_elements(lambda prompt: json.loads(prompt)[0]["content"], pl.String).alias("begins")
    )
    assert found.group_by("begins").agg(pl.col("split").n_unique())["split"].to_list() == [1] * 30
    assert found["split"].n_unique() == 3
    alone = [item for item in items if len(item["messages"]) > 2]  # a first answer that nobody has doesn't matter
    parts = {"train": alone[::3], "test": [*alone[1::3], *alone[2::3]]}
    files = {name: str(write(tmp_path / f"{name}.jsonl", part)) for name, part in parts.items()}
    with pytest.raises(DataError, match="too few") as raised:
        prepare(tmp_path, task="files", files=files, format="messages", **SIZES)
    assert " were left out because they are kin to an example of a held-out split" in str(raised.value)


def test_one_example_to_test_on_is_too_few(tmp_path: Path) -> None:
    """Also where the settings leave the number open: an interval needs two."""
    train, test = write(tmp_path / "d.jsonl", PAIRS), [{"prompt": f"{n}?", "completion": "Yes."} for n in range(2)]

    def tested_on(count: int) -> int:
        files = {"train": str(train), "test": str(write(tmp_path / f"{count}.jsonl", test[:count]))}
        made = prepare(tmp_path, task="files", files=files, **{**SIZES, "test_examples": None})
        return made.splits["test"].examples

    with pytest.raises(DataError, match="for test there are 1, and it takes at least 2"):
        tested_on(1)
    assert tested_on(2) == 2


def test_a_file_that_is_given_twice_is_told_by_what_is_left(tmp_path: Path) -> None:
    path = str(write(tmp_path / "d.jsonl", [{"prompt": f"{i}", "completion": "Yes."} for i in range(64)]))
    files = {
        "train": path,
        "validation": path,
        "test": str(
            write(tmp_path / "t.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}])
        ),
    }
    with pytest.raises(DataError) as raised:
        prepare(tmp_path, task="files", files=files, **SIZES)
    assert "for train there are 0, and" in str(raised.value)
    assert "64 were left out because they stand twice, in one file or in two" in str(raised.value)
    assert "shares" not in str(raised.value)


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv"])
def test_an_empty_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("" if name == "d.jsonl" else "prompt,completion\n")
    with pytest.raises(DataError, match=rf"{name} has no rows; give another file for `data.files.train`"):
        prepare(tmp_path, task="files", files={"train": str(tmp_path / name)}, **SIZES)
