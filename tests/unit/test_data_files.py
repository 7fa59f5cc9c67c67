"""The user's own files: every kind and format, every mistake by line, splits without repeats."""

from __future__ import annotations

import codecs
import json
import re
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from test_data_stdlib import prepare, rows
from understudy import progress
from understudy.cli import main
from understudy.errors import DataError
from understudy.files import read_model, write_json
from understudy.sections import DataSection
from understudy.settings import DataSettings
from understudy.trial import DataManifest

PAIRS = [{"prompt": f"Question {i}, with a comma\nand a line?", "completion": f"Änswer {i}"} for i in range(40)]
SIZES = {"train_examples": 4, "validation_examples": 2, "test_examples": 2}


def write(path: Path, items: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(items), encoding="utf-8")
    elif path.suffix == ".csv":
        pl.DataFrame(items).write_csv(path)
    else:
        pl.DataFrame(items).write_parquet(path)
    return path


def given(path: Path, **more: Any) -> dict[str, Any]:
    return {"task": "files", "files": {"train": str(path)}, **SIZES, **more}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_examples(suffix: str, tmp_path: Path) -> None:
    manifest = prepare(tmp_path, **given(write(tmp_path / f"Ünsere 'Daten'{suffix}", PAIRS)))
    found = rows(tmp_path)
    assert sorted(zip(found["prompt"], found["completion"], strict=True)) == sorted(
        (pair["prompt"], pair["completion"]) for pair in PAIRS
    )
    assert [manifest.splits[split].examples for split in ("train", "validation", "test")] == [32, 4, 4]
    assert set(found["group"]) == {f"Ünsere 'Daten'{suffix}"}
    assert not (tmp_path / "pin.json").exists()


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_mark_of_the_byte_order_is_no_part_of_the_text(suffix: str, tmp_path: Path) -> None:
    """Programs on Windows begin files in UTF-8 with one."""
    path = write(tmp_path / f"d{suffix}", PAIRS)
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    prepare(tmp_path, **given(path))
    assert sorted(rows(tmp_path)["prompt"]) == sorted(pair["prompt"] for pair in PAIRS)


FORMATS: dict[str, tuple[dict[str, Any], str, str, bool]] = {
    "prompt_completion": ({"prompt": "P", "completion": "C"}, "P", "C", False),
    "text": ({"text": "All of it."}, "", "All of it.", False),
    "alpaca": ({"instruction": "Add.", "input": "1 {x} 2", "output": "3"}, "", "3", False),
    "sharegpt": (
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "One?"},
                {"from": "gpt", "value": "Eins."},
                {"from": "human", "value": "Two?"},
                {"from": "gpt", "value": "Zwei."},
                {"from": "human", "value": "Thanks."},
            ]
        },
        "",
        "Zwei.",
        True,
    ),
    "messages": (
        {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Eins."}]},
        "",
        "Eins.",
        True,
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(name: str, tmp_path: Path) -> None:
    row, prompt, completion, chat = FORMATS[name]
    others = [json.dumps(row).replace(completion, f"{completion} {i}") for i in range(20)]
    for said in ('P"', 'Add."', 'One?"'):  # a prompt of its own for each, as rows with the same one stay together
        others = [other.replace(f'"{said}', f'"{i} {said}') for i, other in enumerate(others)]
    manifest = prepare(tmp_path, **given(write(tmp_path / "d.jsonl", [row, *map(json.loads, others)]), format=name))
    found = rows(tmp_path).filter(pl.col("completion") == completion).row(0, named=True)
    assert found["chat"] == chat
    if name == "alpaca":
        assert "### Instruction:\nAdd.\n\n### Input:\n1 {x} 2\n\n### Response:\n" in found["prompt"]
    elif chat:
        roles = [turn["role"] for turn in json.loads(found["prompt"])]
        assert roles == (["system", "user", "assistant", "user"] if name == "sharegpt" else ["user"])
        assert json.loads(found["prompt"])[-1]["content"] == ("Two?" if name == "sharegpt" else "One?")
        assert manifest.counts["ignored_turns_after_the_last_answer"] == (21 if name == "sharegpt" else 0)
    else:
        assert found["prompt"] == prompt


def test_every_bad_line_is_listed_with_its_number(tmp_path: Path) -> None:
    good = json.dumps(PAIRS[0])
    bad = ["{", '["a"]', '{"prompt": "a"}', '{"prompt": "a", "completion": 3}', '{"prompt": "a", "completion": "  "}']
    (tmp_path / "d.jsonl").write_text(
        "\n".join([good, *bad, "", good, '{"instruction": "a", "output": "b"}']), encoding="utf-8"
    )
    with pytest.raises(DataError) as raised:
        prepare(tmp_path, **given(tmp_path / "d.jsonl"))
    lines = str(raised.value).splitlines()
    assert "d.jsonl: 6 of its 8 rows can't be used as `data.format: prompt_completion`:" in lines[0]
    expected = {
        2: "isn't valid JSON",
        3: "must be an object",
        4: "no key `completion`",
        5: "`completion` must be a text, but is 3",
        6: "empty completion",
        9: "that looks like `data.format: alpaca`",
    }
    for line, (number, problem) in zip(lines[1:], expected.items(), strict=False):
        assert line.strip().startswith(f"line {number}: ")
        assert problem in line


def test_only_the_first_problems_are_shown_and_all_rows_counted(tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", [*PAIRS, *({"prompt": "a", f"key{i}": "b"} for i in range(25))])
    with pytest.raises(
        DataError, match=r"(?s)25 of its 65 rows.*line 41: .*line 50: .*and 15 more, with other problems"
    ) as raised:
        prepare(tmp_path, **given(tmp_path / "d.jsonl"))
    assert "line 51" not in str(raised.value)


def test_one_problem_of_many_rows_is_one_line(tmp_path: Path) -> None:
    bare = [{"prompt": str(i)} for i in range(48)]
    write(tmp_path / "d.jsonl", [*bare, {"prompt": "a", "completion": " "}, {"prompt": "b", "completion": ""}])
    with pytest.raises(DataError) as raised:
        prepare(tmp_path, **given(tmp_path / "d.jsonl"))
    assert [line.strip() for line in str(raised.value).splitlines()] == [
        f"{tmp_path / 'd.jsonl'}: 50 of its 50 rows can't be used as `data.format: prompt_completion`:",
        "lines 1, 2, 3 and 45 more: has no key `completion` (keys: prompt)",
        "lines 49, 50: has an empty completion",
        "mend or remove them, or set another `data.format`",
    ]


def test_a_csv_row_is_known_by_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('prompt,completion\n"two\nlines",a\nb\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 4: has 1 cells, but the header has 2"):
        prepare(tmp_path, **given(tmp_path / "d.csv"))


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        ('prompt,completion\na\nb,c\n"open,d\ne,f\n', {2: "has 1 cells", 4: "isn't valid CSV: unexpected end of data"}),
        ('prompt,completion\n"a"b,c\nd,e\nf\n', {2: "isn't valid CSV: ',' expected after", 4: "has 1 cells"}),
        ('prompt,"completion\na,b\n', {1: "isn't valid CSV: unexpected end of data"}),
    ],
)
def test_a_csv_row_with_a_bad_quote_is_listed_beside_the_others(
    content: str, problems: dict[int, str], tmp_path: Path
) -> None:
    (tmp_path / "d.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as raised:
        prepare(tmp_path, **given(tmp_path / "d.csv"))
    lines = str(raised.value).splitlines()[1:-1]
    for line, (number, problem) in zip(lines, problems.items(), strict=True):
        assert line.strip().startswith(f"line {number}: {problem}")


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ("hello", "must be a list of turns"),
        ([{"role": "robot", "content": "a"}], "`role: 'robot'`, but it must be one of system, user, assistant"),
        ([{"role": "user", "content": None}], "turn 1 needs a text `content`"),
        ([{"role": "user", "content": "a"}], "has no answer"),
        ([{"role": "assistant", "content": "a"}], "has no answer of the assistant to something"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}],
            "turn 2 has `tool_calls`, and tool calls aren't supported",
        ),
        (
            [{"role": "assistant", "content": None, "function_call": {"name": "f"}}],
            "turn 1 has `function_call`, and tool calls aren't supported",
        ),
        ([{"role": "function", "content": "a"}], "`role: 'function'`, and tool calls aren't supported"),
        ([{"role": ["user"], "content": "a"}], "`role: ['user']`, but it must be one of"),
    ],
)
def test_bad_chats(turns: Any, problem: str, tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", [{"messages": turns}])
    with pytest.raises(DataError) as raised:
        prepare(tmp_path, **given(tmp_path / "d.jsonl", format="messages"))
    assert problem in str(raised.value)


def test_one_problem_with_many_values_is_one_line(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "image_url"}]}]
    chats = [{"messages": turns[:1] * i + turns} for i in range(20)]
    write(tmp_path / "d.jsonl", [*chats, {"messages": [{"from": "human", "value": "a"}]}])
    with pytest.raises(DataError) as raised:
        prepare(tmp_path, **given(tmp_path / "d.jsonl", format="messages"))
    lines = [line.strip() for line in str(raised.value).splitlines()]
    assert lines[1].startswith(
        "lines 1, 2, 3 and 17 more: turn 2 needs a text `content`, but has [{'type': 'image_url'"
    )
    assert lines[1].endswith(" (the first of them)")
    assert lines[2:-1] == ["line 21: turn 1 has no `role` (keys: from, value)"]


@pytest.mark.parametrize(
    ("completion", "problem"),
    [
        ([], "`completion` has no answer of the assistant to learn"),
        ([{"role": "user", "content": "c"}], "`completion` has no answer of the assistant to learn"),
        ([{"role": "assistant", "content": "c", "weight": 0}], "`completion` has no answer of the assistant to learn"),
        (["c"], "`completion` must be a text, or a list of turns"),
    ],
)
def test_a_pair_learns_no_answer_of_its_prompt(completion: Any, problem: str, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write(tmp_path / "d.jsonl", [{"prompt": said, "completion": completion}])
    with pytest.raises(DataError, match=problem):
        prepare(tmp_path, **given(tmp_path / "d.jsonl"))


def test_a_chat_under_another_name_gets_a_hint(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write(tmp_path / "d.jsonl", [{"conversations": turns}])
    with pytest.raises(DataError, match=r"name the list `messages` and set `data\.format: messages`"):
        prepare(tmp_path, **given(tmp_path / "d.jsonl", format="sharegpt"))


def test_parts_of_text_and_conversational_pairs_are_chats(tmp_path: Path) -> None:
    """As OpenAI and TRL have them."""
    parts = [{"type": "text", "text": "One"}, {"type": "text", "text": "?"}]
    asked, answer = {"role": "user", "content": parts}, {"role": "assistant", "content": parts[:1]}
    chats = [{"messages": [{"role": "system", "content": f"{i}"}, asked, answer]} for i in range(20)]
    pairs = [{"prompt": chat["messages"][:2], "completion": chat["messages"][2:]} for chat in chats]
    found = []
    for name, items in (("messages", chats), ("prompt_completion", pairs)):
        prepare(tmp_path / name, **given(write(tmp_path / f"{name}.jsonl", items), format=name))
        found.append(rows(tmp_path / name).sort("prompt").select("prompt", "completion", "chat").rows())
    assert found[0] == found[1]
    prompt, completion, chat = found[0][0]
    assert (json.loads(prompt)[1], completion, chat) == ({"role": "user", "content": "One?"}, "One", True)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("missing.jsonl", None, r"there is no file .*missing\.jsonl"),
        ("d.jsnl", "", r"has the ending `\.jsnl`, but data files may be .*did you mean `\.jsonl`\?"),
        ("d.json", '{"a": 1}', "must be a list of examples, but is a dict"),
        ("d.json", "[1,", r"can't be read as \.json: Expecting value"),
        ("d.json", '{"a": 1}\n{"a": 2}\n', r"one object per line wants the ending \.jsonl: rename it to d\.jsonl"),
        ("data", "", r"data has no ending, but data files may be \.jsonl"),
        ("d.parquet", "no parquet", r"can't be read as \.parquet"),
        (
            "d.jsonl",
            b"\n" + "ä".encode("latin-1"),
            r"line 2: isn't UTF-8 \(character 1 is 0xe4\); save the file as UTF-8",
        ),
        ("d.jsonl", '{"prompt": "a', r"isn't valid JSON: Unterminated string starting at character 12"),
    ],
)
def test_files_that_cannot_be_read(name: str, content: str | bytes | None, problem: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=problem):
        prepare(tmp_path, **given(tmp_path / name))


@pytest.mark.parametrize("name", ["tatsu-lab/alpaca", "org/data-1.1"])
def test_a_data_set_of_the_hub_has_to_be_exported(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = rf'looks like a data set on the .* hub: export it to a file, .*load_dataset\("{re.escape(name)}", split='
    with pytest.raises(DataError, match=words):
        prepare(tmp_path, **given(Path(name)))
    write(tmp_path / "org" / "rows.jsnl", [])
    with pytest.raises(DataError, match=r"has the ending `\.jsnl`"):
        prepare(tmp_path, **given(Path("org/rows.jsnl")))


def first_prompt(tmp_path: Path, row: dict[str, Any], data_format: str) -> tuple[str, dict[str, int]]:
    """What becomes of a row's prompt, and the manifest's counts; twenty others stand beside it."""
    text = json.dumps(row)
    others = [json.loads(text.replace("Zwei", f"Zwei {i}").replace("Two", f"{i} two")) for i in range(20)]
    manifest = prepare(tmp_path, **given(write(tmp_path / "d.jsonl", [row, *others]), format=data_format))
    return rows(tmp_path).filter(pl.col("completion") == "Zwei.")["prompt"].item(), manifest.counts


def test_an_alpaca_row_s_system_message_and_history_stand_in_the_prompt(tmp_path: Path) -> None:
    row = {"instruction": "Two?", "input": "", "output": "Zwei.", "system": "Speak German."}
    prompt, counts = first_prompt(tmp_path / "a", {**row, "history": [["One?", "Eins."]]}, "alpaca")
    assert prompt == (
        "Speak German.\n\n### Instruction:\nOne?\n\n### Response:\nEins.\n\n### Instruction:\nTwo?\n\n### Response:\n"
    )
    assert counts["earlier_answers_as_context"] == 21
    assert not [name for name in counts if name.startswith("ignored_key")]
    prompt, _ = first_prompt(tmp_path / "b", {**row, "system": " ", "history": []}, "alpaca")
    assert prompt.startswith("Below is an instruction that describes a task. Write")
    write(tmp_path / "d.jsonl", [{**row, "history": ["One?", "Eins."]}])
    with pytest.raises(DataError, match="`history` must be a list of pairs"):
        prepare(tmp_path, **given(tmp_path / "d.jsonl", format="alpaca"))


SAID = [{"from": "human", "value": "Two?"}, {"from": "gpt", "value": "Zwei."}]


def test_a_chat_s_system_key_becomes_its_first_turn(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Speak German."}
    prompt, counts = first_prompt(tmp_path / "a", {"conversations": SAID, "system": "Speak German."}, "sharegpt")
    assert json.loads(prompt)[0] == system
    assert "ignored_key_system" not in counts
    messages = [system, {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Zwei."}]
    prompt, counts = first_prompt(tmp_path / "b", {"messages": messages, "system": "Be brief."}, "messages")
    assert json.loads(prompt) == messages[:2]
    assert counts["ignored_key_system"] == 21


def test_an_answer_of_weight_0_is_not_learnt(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Eins.", "weight": 0},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Zwei.", "weight": 1},
        {"role": "user", "content": "Three?"},
        {"role": "assistant", "content": "Drei.", "weight": 0},
    ]
    prompt, counts = first_prompt(tmp_path / "a", {"messages": turns}, "messages")
    assert [turn["content"] for turn in json.loads(prompt)] == ["One?", "Eins.", "Two?"]
    assert (counts["ignored_turns_after_the_last_answer"], counts["earlier_answers_as_context"]) == (42, 21)
    assert "ignored_key_weight" not in counts
    write(tmp_path / "d.jsonl", [{"messages": turns[:2]}])
    with pytest.raises(DataError, match="no answer to learn: each has `weight: 0`"):
        prepare(tmp_path, **given(tmp_path / "d.jsonl", format="messages"))


def test_keys_that_nothing_reads_are_counted_and_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_terminal", sys.stderr)
    chats = [
        {
            "id": i,
            "tools": [{"name": "add"}] if i < 7 else [],
            "messages": [
                {"role": "user", "content": f"{i}?", "name": None},
                {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm." if i else ""},
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": f"Yes, {i}."},
                {"role": "user", "content": "Thanks."},
            ],
        }
        for i in range(30)
    ]
    section = DataSection(
        seed=1,
        cache="",
        data=DataSettings.model_validate(given(write(tmp_path / "d.jsonl", chats), format="messages")),
    )
    write_json(tmp_path / "section.json", section)
    outputs = [f"--{name}={tmp_path / name}" for name in ("train", "validation", "test", "manifest")]
    assert main(["prepare-data", f"--settings={tmp_path / 'section.json'}", *outputs]) == 0
    counts = read_model(tmp_path / "manifest", DataManifest).counts
    ignored = {name: count for name, count in counts.items() if name.startswith("ignored_key")}
    assert ignored == {"ignored_key_id": 30, "ignored_key_reasoning_content": 29, "ignored_key_tools": 7}
    said = capfd.readouterr()
    assert said.err.splitlines() == [
        "data: 29 of 30 rows have the key `reasoning_content`, which isn't read",
        "data: 7 of 30 rows have the key `tools`, which isn't read",
        "data: 30 earlier answers of chats are context and aren't learnt (only the last one is; for more, give one row "
        "per answer)",
        "data: 30 turns stand after the last answer and are left out",
    ]
    assert "further keys that aren't read, and in how many rows: `id` (30)" in said.out
