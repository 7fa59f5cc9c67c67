"""How an example is written in a user's file: one parser per format, from a row to prompt and completion."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from understudy.settings import DataFormat

# The prompts of Alpaca (Taori et al. 2023), as in its repository and in Axolotl's `alpaca` type.
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}
MESSAGES_ROLES = {role: role for role in ("system", "user", "assistant", "tool", "developer")}


@dataclass(frozen=True)
class Parsed:
    """What a row says. `ignored_turns` is how many turns stand after the last answer."""

    prompt: str
    completion: str
    chat: bool = False
    ignored_turns: int = 0


def parse(row: Mapping[str, Any], data_format: DataFormat) -> Parsed:
    """A row as an example; raise `ValueError` saying what is wrong with it."""
    missing = [key for key in KEYS[data_format] if key not in row]
    if missing:
        raise ValueError(f"has no key `{missing[0]}` (keys: {', '.join(map(str, row)) or 'none'}){_other_format(row)}")
    parsed = PARSERS[data_format](row)
    if not parsed.completion.strip():
        raise ValueError("has an empty completion")
    try:
        (parsed.prompt + parsed.completion).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"isn't text: {error.reason}") from error
    return parsed


def _prompt_completion(row: Mapping[str, Any]) -> Parsed:
    return Parsed(_text(row, "prompt"), _text(row, "completion"))


def _alpaca(row: Mapping[str, Any]) -> Parsed:
    instruction = _text(row, "instruction")
    context = _text(row, "input") if row.get("input") is not None else ""
    template = ALPACA_WITH_INPUT if context.strip() else ALPACA
    return Parsed(template.format(instruction=instruction, input=context), _text(row, "output"))


def _plain_text(row: Mapping[str, Any]) -> Parsed:
    return Parsed("", _text(row, "text"))


def _sharegpt(row: Mapping[str, Any]) -> Parsed:
    return _chat(row["conversations"], "conversations", "from", "value", SHAREGPT_ROLES)


def _messages(row: Mapping[str, Any]) -> Parsed:
    return _chat(row["messages"], "messages", "role", "content", MESSAGES_ROLES)


def _chat(turns: object, key: str, role_key: str, text_key: str, roles: Mapping[str, str]) -> Parsed:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"`{key}` must be a list of turns with `{role_key}` and `{text_key}`")
    normal = []
    for number, turn in enumerate(turns, start=1):
        if turn.get(role_key) not in roles:
            raise ValueError(
                f"turn {number} has `{role_key}: {turn.get(role_key)!r}`, but it must be one of {', '.join(roles)}"
            )
        if not isinstance(turn.get(text_key), str):
            raise ValueError(f"turn {number} needs a text `{text_key}`, but has {turn.get(text_key)!r}")
        normal.append({"role": roles[turn[role_key]], "content": turn[text_key]})
    answers = [index for index, turn in enumerate(normal) if turn["role"] == "assistant"]
    if not answers or not any(turn["role"] != "system" for turn in normal[: answers[-1]]):
        raise ValueError(f"`{key}` has no answer of the assistant to something that was said before")
    last = answers[-1]
    prompt = json.dumps(normal[:last], ensure_ascii=False)
    return Parsed(prompt, normal[last]["content"], chat=True, ignored_turns=len(normal) - last - 1)


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"`{key}` must be a text, but is {value!r}"[:120])
    return value


def _other_format(row: Mapping[str, Any]) -> str:
    """A hint, where the row is complete in another format."""
    fitting = [name for name, keys in KEYS.items() if all(key in row for key in keys)]
    return f"; that looks like `data.format: {fitting[0]}`" if fitting else ""


KEYS: dict[DataFormat, tuple[str, ...]] = {
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "messages": ("messages",),
    "text": ("text",),
}

PARSERS: dict[DataFormat, Callable[[Mapping[str, Any]], Parsed]] = {
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "messages": _messages,
    "text": _plain_text,
}
