"""From texts to tokens: what is cut, where the completion begins, and what a chat looks like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_models import TEXTS
from understudy.data.encoding import encode, encode_prompt
from understudy.data.files import SCHEMA
from understudy.errors import DataError
from understudy.models.tokenizer import train_tokenizer

END = 0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 320, folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def with_start(tokenizer: Any) -> Any:
    """The same with a beginning-of-sequence token before every text, as Llama's tokenizers have it."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens(["<s>"])
    start = backend.token_to_id("<s>")
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>")


def frame(*rows: tuple[str, str], chat: bool = False) -> pl.DataFrame:
    return pl.DataFrame([(str(i), "", *row, chat) for i, row in enumerate(rows)], schema=SCHEMA, orient="row")


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(text, text.filter(bool)), min_size=1, max_size=5), max_length=st.integers(8, 80))
def test_every_example_fits_and_keeps_its_completion(
    tokenizer: Any, rows: list[tuple[str, str]], max_length: int
) -> None:
    encoded = encode(frame(*rows), tokenizer, max_length)
    assert len(encoded) == len(rows)
    for (prompt, completion), example in zip(rows, encoded, strict=True):
        assert 1 <= example.completion_start < len(example.input_ids) <= max_length
        before = example.input_ids[: example.completion_start]
        kept = example.input_ids[example.completion_start :]
        whole = tokenizer(completion)["input_ids"] + [END]
        whole_prompt = tokenizer(prompt)["input_ids"]
        if len(whole) < max_length:
            assert kept == whole
            assert example.completion_bytes == len(completion.encode())
        else:
            assert len(kept) == max_length - 1
            assert kept == whole[: len(kept)]
        assert before == whole_prompt[len(whole_prompt) - len(before) :] or (before == [END] and not whole_prompt)
        expected = "nothing" if before == (whole_prompt or [END]) else "prompt"
        assert example.cut == (expected if kept == whole else "completion")
        if len(whole_prompt) + len(whole) <= max_length:
            assert before == (whole_prompt or [END])
        else:
            assert len(example.input_ids) == max_length


def test_a_start_token_stays_when_the_prompt_is_cut(with_start: Any) -> None:
    start = with_start.bos_token_id
    (short,) = encode(frame(("def add(a, b):", "Return.")), with_start, 64)
    assert short.input_ids[: short.completion_start] == with_start("def add(a, b):")["input_ids"]
    (cut,) = encode(frame(("def add(a, b):" * 9, "Return.")), with_start, 16)
    assert cut.input_ids[0] == start
    assert (
        cut.input_ids[1 : cut.completion_start]
        == with_start("def add(a, b):" * 9)["input_ids"][1:][-(cut.completion_start - 1) :]
    )
    assert len(cut.input_ids) == 16
    (plain,) = encode(frame(("", "Return.")), with_start, 64)
    assert plain.input_ids == [*with_start("Return.")["input_ids"], END]
    assert plain.completion_start == 1


def test_a_cut_completion_counts_the_bytes_that_are_kept(tokenizer: Any) -> None:
    (example,) = encode(frame(("", "a" * 30)), tokenizer, 8)
    assert example.input_ids[-1] != END
    assert example.completion_bytes == len(tokenizer.decode(example.input_ids[1:]))
    assert 0 < example.completion_bytes < 30


def test_a_prompt_is_the_same_tokens_in_training_and_generation(tokenizer: Any, with_start: Any) -> None:
    for one in (tokenizer, with_start):
        for prompt in ("def add(a, b):\n", "", "x" * 200):
            (example,) = encode(frame((prompt, "Return.")), one, 48)
            generated = encode_prompt(prompt, False, one, 48)
            before = example.input_ids[: example.completion_start]
            assert generated[-len(before) + 1 :] == before[1:] or generated == before
            assert len(generated) <= 48


TURNS = [
    {"role": "user", "content": "Add 1 and 2."},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "Ok."},
]


def test_a_chat_is_what_the_template_says(tokenizer: Any) -> None:
    (example,) = encode(frame((json.dumps(TURNS), "Bye."), chat=True), tokenizer, 500)
    whole = tokenizer.apply_chat_template([*TURNS, {"role": "assistant", "content": "Bye."}], tokenize=False)
    assert tokenizer.decode(example.input_ids) == whole.rstrip("\n")
    assert tokenizer.decode(example.input_ids[example.completion_start :]) == "Bye.<|endoftext|>"
    assert example.input_ids[: example.completion_start] == encode_prompt(json.dumps(TURNS), True, tokenizer, 500)
    assert example.completion_bytes == 4


def test_chatml_ends_an_answer_with_its_end_of_turn(tokenizer: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chatml = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=template,
    )
    (example,) = encode(frame((json.dumps(TURNS), "Bye."), chat=True), chatml, 500)
    assert chatml.decode(example.input_ids[example.completion_start :]) == "Bye.<|im_end|>"
    assert example.input_ids.count(chatml.eos_token_id) == 4
    assert example.completion_bytes == 4


def test_chats_and_plain_rows_keep_their_order(tokenizer: Any) -> None:
    rows = [("a", "one"), (json.dumps(TURNS[:1]), "two"), ("b", "three")]
    mixed = pl.concat([frame(rows[0]), frame(rows[1], chat=True), frame(rows[2])])
    ends = [tokenizer.decode(e.input_ids[e.completion_start : -1]) for e in encode(mixed, tokenizer, 80)]
    assert ends == ["one", "two", "three"]


def test_a_tokenizer_without_a_template_is_refused(with_start: Any, tmp_path: Path) -> None:
    with_start.name_or_path = str(tmp_path)
    with pytest.raises(DataError, match="no chat template"):
        encode(frame((json.dumps(TURNS), "Bye."), chat=True), with_start, 80)


REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ m.content + '<|endoftext|>' }}{% endfor %}"
)


def test_a_chat_that_the_template_refuses_is_named(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(REFUSING, encoding="utf-8")
    refusing = AutoTokenizer.from_pretrained(tmp_path)
    system = json.dumps([{"role": "system", "content": "Be brief."}, TURNS[0]])
    rows = frame((json.dumps(TURNS), "Bye."), (system, "3"), chat=True)
    assert len(encode(rows[:1], refusing, 80)) == 1
    words = r"(?s)refuses the example `1` \(roles: system, user\): System role not supported; change such chats"
    with pytest.raises(DataError, match=words) as raised:
        encode(rows, refusing, 80)
    assert str(tmp_path) in str(raised.value)
    with pytest.raises(DataError, match="refuses the example `dev:3`"):
        encode_prompt(system, True, refusing, 80, "dev:3")


def test_a_template_s_own_mistake_is_told_as_well(tokenizer: Any) -> None:
    template = tokenizer.chat_template
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + m.name }}{% endfor %}"
    try:
        with pytest.raises(DataError, match=r"refuses the example `0`.*'dict object' has no attribute 'name'"):
            encode(frame((json.dumps(TURNS), "Bye."), chat=True), tokenizer, 80)
    finally:
        tokenizer.chat_template = template


DATED = "{% if true %}{{ strftime_now('%d %b %Y') }}{% endif %}\n|{{ strftime_now('%Y-%m-%d') }}|"


@pytest.mark.parametrize("before", ["", "\n", "  {% if true %}x{% endif %}\n"])
def test_a_template_that_writes_the_date_writes_the_same_on_every_day(
    tokenizer: Any, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the template is as it is without us: its blanks are those of a template with the date in it."""
    plain = tokenizer.chat_template
    fixed = DATED.replace("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024").replace(
        "{{ strftime_now('%Y-%m-%d') }}", "2024-07-26"
    )
    row = frame((json.dumps(TURNS), "Bye."), chat=True)
    found = []
    for template in (DATED, fixed):
        monkeypatch.setattr(tokenizer, "chat_template", before + template + plain)
        found.append(encode(row, tokenizer, 500))
    assert found[0] == found[1]
    assert "26 Jul 2024" in tokenizer.decode(found[0][0].input_ids)


THINKING = (  # as DeepSeek-R1's: a thought is opened, and isn't in an answer that is finished
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}<|endoftext|>"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)


@pytest.mark.parametrize("answer", ["Bye.", "a", "ant>", "<b>Bye.</b>", "<think>\nSo long.</think>Bye."])
def test_an_answer_stands_where_the_template_has_it(
    tokenizer: Any, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", THINKING)
    (example,) = encode(frame((json.dumps(TURNS), answer), chat=True), tokenizer, 500)
    whole = tokenizer.apply_chat_template([*TURNS, {"role": "assistant", "content": answer}], tokenize=False)
    assert tokenizer.decode(example.input_ids) == whole
    learnt = answer.rpartition("</think>")[2] + "<|endoftext|>"
    assert tokenizer.decode(example.input_ids[example.completion_start :]) == learnt
