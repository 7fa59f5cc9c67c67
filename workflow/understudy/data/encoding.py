"""From texts to tokens: what a model reads, and which of its tokens count."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl
from jinja2 import TemplateError

from understudy.errors import DataError

Cut = Literal["nothing", "prompt", "completion"]

# Templates may write today's date, and examples would differ from day to day. This date is the one that those of Llama
# 3.1 and 3.2 fall back on. The macro, in front of a template, stands in for transformers' function and leaves no trace.
TODAY = {"%d": "26", "%-d": "26", "%m": "07", "%-m": "7", "%b": "Jul", "%B": "July", "%y": "24", "%Y": "2024"}
TODAY |= {"%a": "Fri", "%A": "Friday", "%H": "12", "%I": "12", "%M": "00", "%S": "00", "%p": "PM", "%j": "208"}
TODAY |= {"%F": "2024-07-26", "%D": "07/26/24", "%T": "12:00:00"}
_DATE_FUNCTION = "strftime_now"
_FIXED_DATE = (
    f"{{% macro {_DATE_FUNCTION}(format) %}}{{{{ format"
    + "".join(f" | replace('{directive}', '{value}')" for directive, value in TODAY.items())
    + " }}{% endmacro %}\n"
)


@dataclass(frozen=True)
class Encoded:
    """One example as tokens. Tokens from `completion_start` (at least 1) on are the completion.

    The end-of-sequence token belongs to the completion, unless the completion had to be cut. `completion_bytes` is
    the UTF-8 length of the completion's text as far as it is kept. `cut` says what is missing of an example that was
    too long: the prompt's beginning, or the completion's end, which leaves no room for the prompt.
    """

    input_ids: list[int]
    completion_start: int
    completion_bytes: int
    cut: Cut = "nothing"


def encode(frame: pl.DataFrame, tokenizer: Any, max_length: int) -> list[Encoded]:
    """The rows of a split as tokens, at most `max_length` each, in the frame's order.

    Prompt and completion are tokenised apart, so that a prompt is the same tokens in training and in generation.
    Where an example is too long the prompt is cut from the left; only where the completion alone is too long it is
    cut from the right. One token before the completion always stays, since nothing predicts a first token: the
    beginning-of-sequence token where the tokenizer uses one, else the prompt's last token, else the
    end-of-sequence token. Raises `DataError` for chats where the tokenizer has no chat template or its template
    refuses one.
    """
    plain = [_Texts(row["prompt"], row["completion"], False) for row in frame.iter_rows(named=True) if not row["chat"]]
    chats = [_chat_texts(row, tokenizer) for row in frame.iter_rows(named=True) if row["chat"]]
    plain_encoded = iter(_encode_texts(plain, tokenizer, max_length))
    chats_encoded = iter(_encode_texts(chats, tokenizer, max_length))
    return [next(chats_encoded if is_chat else plain_encoded) for is_chat in frame["chat"]]


def encode_prompt(prompt: str, chat: bool, tokenizer: Any, max_length: int, example: str = "prompt") -> list[int]:
    """A prompt's tokens as a model sees them before it generates: the last `max_length` of them.

    `example` is what an error calls it. Raises `DataError` as `encode` does.
    """
    text = _in_template(json.loads(prompt), tokenizer, example, answer_next=True) if chat else prompt
    start = [] if chat else _start(tokenizer)
    tokens = _ids([text], tokenizer)[0]
    return (start + tokens[-(max_length - len(start)) :]) or [tokenizer.eos_token_id]


@dataclass(frozen=True)
class _Texts:
    prompt: str
    completion: str
    complete: bool  # the template has written the beginning and the end already


def _encode_texts(texts: list[_Texts], tokenizer: Any, max_length: int) -> list[Encoded]:
    if not texts:
        return []
    eos = int(tokenizer.eos_token_id)
    start = [] if texts[0].complete else _start(tokenizer)
    prompts = _ids([text.prompt for text in texts], tokenizer)
    completions = _ids([text.completion for text in texts], tokenizer)
    encoded = []
    for text, prompt, completion in zip(texts, prompts, completions, strict=True):
        ended = completion if completion[-1:] == [eos] else [*completion, eos]
        kept = ended[: max_length - max(len(start), 1)]
        room = max_length - len(start) - len(kept)
        before = start + prompt[len(prompt) - min(room, len(prompt)) :] or [eos]
        cut: Cut = "prompt" if room < len(prompt) else "nothing"
        if len(kept) < len(ended):
            cut = "completion"
        as_written = cut != "completion" and not text.complete
        length = len(text.completion.encode()) if as_written else _byte_length(tokenizer, kept)
        encoded.append(Encoded(before + kept, len(before), length, cut))
    return encoded


def _ids(texts: list[str], tokenizer: Any) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return found


def _start(tokenizer: Any) -> list[int]:
    """The beginning-of-sequence token, where this tokenizer puts one before a text."""
    if tokenizer.bos_token_id is None:
        return []
    return [tokenizer.bos_token_id] if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else []


def _byte_length(tokenizer: Any, tokens: list[int]) -> int:
    text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return len(text.encode())


def _in_template(turns: list[dict[str, str]], tokenizer: Any, example: str, answer_next: bool) -> str:
    """A chat's turns in the tokenizer's template; with `answer_next` up to where the assistant begins to speak."""
    if tokenizer.chat_template is None:
        raise DataError(
            f"the data are chats, but the tokenizer of {tokenizer.name_or_path} has no chat template; "
            "take a model that was made for chats, or data in the format prompt_completion"
        )
    try:
        text: str = tokenizer.apply_chat_template(
            turns, chat_template=_template(tokenizer), tokenize=False, add_generation_prompt=answer_next
        )
    except (TemplateError, TypeError, ValueError) as error:  # a template raises the first on purpose, others by mistake
        said = " ".join(str(error).split()) or type(error).__name__
        roles = ", ".join(turn["role"] for turn in turns)
        raise DataError(
            f"the chat template of {tokenizer.name_or_path} refuses the example `{example}` (roles: {roles}): "
            f"{said[:300]}; change such chats in the data (a system message can go into the user's first turn), or "
            "take a model whose template takes them"
        ) from error
    return text


def _template(tokenizer: Any) -> str:
    """The chat template, with a date that stands still."""
    template: str = tokenizer.get_chat_template()
    return _FIXED_DATE + template if _DATE_FUNCTION in template else template


def require_chats(frame: pl.DataFrame, tokenizer: Any) -> None:
    """Raise `DataError` as `encode` does, for the first chat of a split that can't be written."""
    for row in frame.filter("chat").iter_rows(named=True):
        _chat_texts(row, tokenizer)


def _chat_texts(row: dict[str, Any], tokenizer: Any) -> _Texts:
    """Prompt and completion of a chat; the completion includes the template's end of turn."""
    turns = json.loads(row["prompt"])
    last = {"role": "assistant", "content": row["completion"]}
    prompt = _in_template(turns, tokenizer, row["id"], answer_next=True)
    whole = _in_template([*turns, last], tokenizer, row["id"], answer_next=False)
    if whole.startswith(prompt):
        completion = whole[len(prompt) :]
    elif whole.startswith(said := _in_template(turns, tokenizer, row["id"], answer_next=False)):
        # what the model is to begin with isn't in an answer that is finished, such as a thought that is opened
        begin = next(place for place, (a, b) in enumerate(zip(prompt, whole + "\0", strict=False)) if a != b)
        answer = row["completion"].strip()  # may begin as what the model is to begin with does
        answer_at = whole.rfind(answer, len(said), begin + len(answer))
        begin = answer_at if answer_at >= 0 else begin
        prompt, completion = whole[:begin], whole[begin:]
    else:  # some templates rewrite earlier turns once an answer follows; then it goes after the prompt as it is
        completion = row["completion"]
    stripped = completion.rstrip()
    return _Texts(prompt, stripped if stripped.endswith(tokenizer.eos_token) else completion, True)
