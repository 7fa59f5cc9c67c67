"""How the data fit a tokenizer: told by `prepare-model`, once for each model, before anything is trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from test_data_files import SIZES, write
from tiny_models import configs, llama_config, save
from understudy import progress
from understudy.cli import main
from understudy.data.encoding import Encoded
from understudy.data.files import read_split
from understudy.data.fit import _require_known
from understudy.data.notices import of_lengths
from understudy.data.prepare import prepare_data
from understudy.errors import ModelError
from understudy.files import read_model, write_json
from understudy.models.checkpoint import notes_on_length
from understudy.models.loading import load_tokenizer
from understudy.sections import DataSection, ModelSection
from understudy.settings import DataSettings, ModelSettings
from understudy.trial import ModelCard


def test_what_is_cut_is_counted_in_words() -> None:
    whole, short = Encoded([1, 2], 1, 1), Encoded([1, 2], 1, 1, "completion")
    headless = Encoded([1, 2], 1, 1, "prompt")
    assert of_lengths({"training": [whole] * 3}, 64) == []
    assert of_lengths({"training": [whole] * 3688 + [headless] * 312, "validation": [whole]}, 1024) == [
        "312 of 4,000 training examples are longer than data.max_length (1024) and lose the beginning of their prompt"
    ]
    assert of_lengths({"training": [whole, headless, short], "validation": [headless]}, 64) == [
        "1 of 3 training and 1 of 1 validation examples are longer than data.max_length (64) and lose the beginning of "
        "their prompt",
        "1 of 3 training examples are longer than data.max_length (64) by their completion alone and lose its end and "
        "the prompt",
    ]


def prepared(tmp_path: Path, items: list[Any], data_format: str) -> list[str]:
    """The arguments of `prepare-model` for a study on these rows and a tiny model in `tmp_path/model`."""
    files = {"train": str(write(tmp_path / "d.jsonl", items))}
    settings = DataSettings.model_validate(
        {"task": "files", "files": files, "format": data_format, "max_length": 24, **SIZES, "train_examples": 12}
    )
    folder = tmp_path / "data"
    outputs = {split: folder / f"{split}.parquet" for split in ("train", "validation", "test")}
    folder.mkdir()
    prepare_data(DataSection(seed=1, cache="", data=settings), outputs, folder / "manifest.json")
    model = ModelSettings(model_name_or_path=str(save(tmp_path / "model", llama_config())))
    section = ModelSection(seed=1, cache="", role="proxy", model=model, threads=1)
    write_json(tmp_path / "settings.json", section)
    paths = {"settings": tmp_path / "settings.json", "manifest": folder / "manifest.json", "output": tmp_path / "card"}
    return ["prepare-model", *(f"--{name}={path}" for name, path in paths.items())]


def test_what_is_cut_is_told_and_noted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_terminal", sys.stderr)
    items = [{"prompt": f"{i} " + "xyz " * 40, "completion": "Yes."} for i in range(40)]
    assert main(prepared(tmp_path, items, "prompt_completion")) == 0
    notes = read_model(tmp_path / "card", ModelCard).notes
    assert notes == (
        "12 of 12 training and 2 of 2 validation examples are longer than data.max_length (24) and lose the beginning "
        "of their prompt",
    )
    assert [line for line in capfd.readouterr().err.splitlines() if "max_length" in line] == [
        f"proxy: {note}" for note in notes
    ]


@pytest.mark.parametrize("data_format", ["prompt_completion", "text"])
def test_a_study_without_any_prompt_is_refused(
    data_format: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where there were some: plain texts may be of any length."""
    long = "a long answer " * 20
    items = [{"prompt": f"{i}", "completion": f"{i} {long}", "text": f"{i} {long}"} for i in range(40)]
    code = main(prepared(tmp_path, items, data_format))
    said = capfd.readouterr().err
    assert ("not one of the 12 training examples keeps any of its prompt" in said) == (data_format != "text")
    assert (code == 0) == (data_format == "text")


def test_a_card_without_notes_says_nothing_of_them(tmp_path: Path) -> None:
    items = [{"prompt": f"{i}", "completion": "Yes."} for i in range(40)]
    assert main(prepared(tmp_path, items, "prompt_completion")) == 0
    assert read_model(tmp_path / "card", ModelCard).notes == ()
    assert '"notes"' not in (tmp_path / "card").read_text(encoding="utf-8")


def test_a_token_that_the_model_has_no_row_for_is_refused(tmp_path: Path) -> None:
    """The first number beyond the rows is one too many."""
    tokenizer = AutoTokenizer.from_pretrained(save(tmp_path / "model", llama_config()))
    _require_known([Encoded([0, 7], 1, 1)], tokenizer, 8)
    with pytest.raises(ModelError, match="the number 7, and the model has embeddings for 7 tokens"):
        _require_known([Encoded([0, 7], 1, 1)], tokenizer, 7)


@pytest.mark.parametrize(("value", "missing"), [("q_proj,v_proj", ""), ("q_proj,c_attn", "c_attn")])
def test_layers_that_the_model_lacks_are_named_before_anything_trains(
    value: str, missing: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = prepared(tmp_path, [{"prompt": f"{i}", "completion": "Yes."} for i in range(40)], "prompt_completion")
    section = read_model(tmp_path / "settings.json", ModelSection)
    write_json(tmp_path / "settings.json", section.model_copy(update={"lora_target_modules": (value,)}))
    assert main(arguments) == (2 if missing else 0)
    said = f"lora_target_modules: the proxy has no linear layer named {missing}; its linear layers are down_proj, "
    assert (said in capfd.readouterr().err) == bool(missing)


def test_chats_that_the_template_refuses_stop_the_study_before_it_trains(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi."}]
    items = [{"messages": [{**said[0], "content": f"{i}?"}, said[1]], "system": "Be brief."} for i in range(40)]
    arguments = prepared(tmp_path, items, "messages")
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    (tmp_path / "model" / "chat_template.jinja").write_text(refusing, encoding="utf-8")
    assert main(arguments) == 2
    assert "System role not supported" in capfd.readouterr().err
    assert not (tmp_path / "card").exists()


def test_chats_of_the_test_split_are_looked_at_as_well(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Not only when all else is done."""
    said = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi."}]
    items = [{"messages": [{**said[0], "content": f"{i}?"}, said[1]]} for i in range(40)]
    arguments = prepared(tmp_path, items, "messages")
    (odd,) = read_split(tmp_path / "data" / "test.parquet", 1)["prompt"]
    asked = json.loads(odd)[0]["content"]
    refusing = f"{{% if messages[0].content == '{asked}' %}}{{{{ raise_exception('no') }}}}{{% endif %}}"
    (tmp_path / "model" / "chat_template.jinja").write_text(refusing + "{{ messages[-1].content }}", encoding="utf-8")
    assert main(arguments) == 2
    assert "refuses the example" in capfd.readouterr().err


def test_tokens_without_an_embedding_are_refused_and_such_padding_is_not_used(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    arguments = prepared(
        tmp_path, [{"prompt": f"{i} <new>", "completion": "Yes."} for i in range(40)], "prompt_completion"
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_tokens([f"<{number}>" for number in range(4)])  # a few are spare
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path / "model")
    assert main(arguments) == 0
    loaded = load_tokenizer(read_model(tmp_path / "card", ModelCard))
    assert tokenizer.pad_token_id >= 320 > loaded.pad_token_id == loaded.eos_token_id
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "model")
    assert main(arguments) == 2
    assert "gives `<new>` the number" in capfd.readouterr().err


def test_more_tokens_than_the_model_was_made_for(tmp_path: Path) -> None:
    assert notes_on_length(save(tmp_path / "llama", llama_config()), 64) == ()
    (note,) = notes_on_length(tmp_path / "llama", 65)
    assert note == "data.max_length (65) is more than the 64 tokens that the model was made for"
    gpt2 = save(tmp_path / "gpt2", configs()["gpt2"])
    assert notes_on_length(gpt2, 64) == ()
    with pytest.raises(ModelError, match=r"has 64 positions, and `data.max_length` is 65; lower it to 64 or less"):
        notes_on_length(gpt2, 65)
