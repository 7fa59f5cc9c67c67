"""How an example is written in a user's file: one parser per format, from a row to prompt and completion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from understudy.data.examples import as_prompt
from understudy.settings import DataFormat

# The prompts of Alpaca (Taori et al. 2023), as in its repository and in Axolotl's `alpaca` type. As in LLaMA-Factory's
# template of that name, a row's system message stands in place of the first paragraph, and earlier turns after it.
ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
ALPACA_SYSTEM_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
ALPACA_TURN = "### Instruction:\n{instruction}\n\n### Response:\n"
ALPACA_TURN_WITH_INPUT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}
MESSAGES_ROLES = {role: role for role in ("system", "user", "assistant", "tool", "developer")}
TOOL_ROLES = ("tool", "function", "function_call", "tool_call", "observation", "tool_response", "ipython")
TOOL_CALLS = ("tool_calls", "function_call")
NO_TOOLS = "and tool calls aren't supported"


@dataclass(frozen=True)
class Parsed:
    """What a row says, and what of it isn't learnt.

    Of a chat the last answer is the completion: `earlier_answers` are a part of the prompt, `ignored_turns` stand after
    it. `ignored_keys` say something, and nothing reads them.
    """

    prompt: str
    completion: str
    chat: bool = False
    ignored_turns: int = 0
    earlier_answers: int = 0
    ignored_keys: tuple[str, ...] = ()


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
    read = (*KEYS[data_format], *OPTIONAL[data_format])
    unread = {str(key) for key, value in row.items() if key not in read and _says(value)}
    return replace(parsed, ignored_keys=tuple(sorted({*parsed.ignored_keys, *unread})))


def _prompt_completion(row: Mapping[str, Any]) -> Parsed:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):  # TRL's conversational form
        for name, turns in (("prompt", prompt), ("completion", completion)):
            if not all(isinstance(turn, dict) for turn in turns):
                raise ValueError(f"`{name}` must be a text, or a list of turns with `role` and `content`")
        if not any(turn.get("role") == "assistant" and turn.get("weight") != 0 for turn in completion):
            raise ValueError("`completion` has no answer of the assistant to learn")
        return _messages({"messages": [*prompt, *completion]})
    return Parsed(_text(row, "prompt"), _text(row, "completion"))


def _alpaca(row: Mapping[str, Any]) -> Parsed:
    context = _optional_text(row, "input")
    system = _optional_text(row, "system") or (ALPACA_SYSTEM_WITH_INPUT if context else ALPACA_SYSTEM)
    earlier = "".join(f"{ALPACA_TURN.format(instruction=said)}{answer}\n\n" for said, answer in _history(row))
    turn = ALPACA_TURN_WITH_INPUT if context else ALPACA_TURN
    prompt = turn.format(instruction=_text(row, "instruction"), input=context)
    return Parsed(f"{system}\n\n{earlier}{prompt}", _text(row, "output"), earlier_answers=len(row.get("history") or []))


def _history(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Earlier turns of an Alpaca row, as LLaMA-Factory has them: pairs of an instruction and its answer."""
    pairs = row.get("history") or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in pairs
    ):
        raise ValueError(f"`history` must be a list of pairs of an instruction and its answer, but is {pairs!r}"[:160])
    return [(said, answer) for said, answer in pairs]


def _plain_text(row: Mapping[str, Any]) -> Parsed:
    return Parsed("", _text(row, "text"))


def _sharegpt(row: Mapping[str, Any]) -> Parsed:
    return _chat(row, "conversations", "from", "value", SHAREGPT_ROLES)


def _messages(row: Mapping[str, Any]) -> Parsed:
    return _chat(row, "messages", "role", "content", MESSAGES_ROLES)


def _chat(row: Mapping[str, Any], key: str, role_key: str, text_key: str, roles: Mapping[str, str]) -> Parsed:
    turns = row[key]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"`{key}` must be a list of turns with `{role_key}` and `{text_key}`")
    turns = [{**turn, text_key: _joined(turn[text_key])} if text_key in turn else turn for turn in turns]
    for number, turn in enumerate(turns, start=1):
        _check_turn(number, turn, role_key, text_key, roles)
    normal = [{"role": roles[turn[role_key]], "content": turn[text_key]} for turn in turns]
    answers = [index for index, turn in enumerate(normal) if turn["role"] == "assistant"]
    learnable = [index for index in answers if turns[index].get("weight") != 0]  # OpenAI's word for: not to be learnt
    if answers and not learnable:
        raise ValueError(f"`{key}` has no answer to learn: each has `weight: 0`")
    if not answers or not any(turn["role"] != "system" for turn in normal[: learnable[-1]]):
        raise ValueError(f"`{key}` has no answer of the assistant to something that was said before")
    last = learnable[-1]
    ignored = {name for turn in turns for name in turn if name not in (role_key, text_key) and _says(turn[name])}
    if all(turn.get("weight") in (None, 0, 1) for turn in turns):
        ignored -= {"weight"}
    before = normal[:last]
    if system := _optional_text(row, "system"):
        if before[0]["role"] != "system":
            before = [{"role": "system", "content": system}, *before]
        elif before[0]["content"] != system:  # LLaMA-Factory and Axolotl, too, take the turn
            ignored |= {"system"}
    return Parsed(
        as_prompt(before),
        normal[last]["content"],
        chat=True,
        ignored_turns=len(normal) - last - 1,
        earlier_answers=sum(index < last for index in answers),
        ignored_keys=tuple(sorted(ignored)),
    )


def _joined(content: Any) -> Any:
    """A turn's content, of whose parts, as OpenAI has them, texts are joined."""
    if not isinstance(content, list) or not content:
        return content
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    known = [text for text in texts if isinstance(text, str)]
    return "".join(known) if len(known) == len(texts) else content


def _check_turn(number: int, turn: Mapping[str, Any], role_key: str, text_key: str, roles: Mapping[str, str]) -> None:
    """Raise `ValueError` for a turn that isn't a text of somebody known."""
    role = turn.get(role_key)
    for name in TOOL_CALLS:
        if _says(turn.get(name)):
            raise ValueError(f"turn {number} has `{name}`, {NO_TOOLS}")
    if role_key not in turn:
        way = (
            "; name the list `messages` and set `data.format: messages`"
            if role_key == "from" and "role" in turn
            else ""
        )
        raise ValueError(f"turn {number} has no `{role_key}` (keys: {', '.join(map(str, turn))}){way}")
    known = isinstance(role, str) and role in roles
    if not known and role in TOOL_ROLES:
        raise ValueError(f"turn {number} has `{role_key}: {role!r}`, {NO_TOOLS}")
    if not known:
        raise ValueError(f"turn {number} has `{role_key}: {role!r}`, but it must be one of {', '.join(roles)}")
    if not isinstance(turn.get(text_key), str):
        raise ValueError(f"turn {number} needs a text `{text_key}`, but has {turn.get(text_key)!r}"[:160])


def _says(value: object) -> bool:
    """Whether a key's value carries anything: tables have every column in every row."""
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and value not in ([], {})


def _optional_text(row: Mapping[str, Any], key: str) -> str:
    """The text of a key that may be missing; none where it is blank."""
    text = _text(row, key) if row.get(key) is not None else ""
    return text if text.strip() else ""


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

OPTIONAL: dict[DataFormat, tuple[str, ...]] = {
    "prompt_completion": (),
    "alpaca": ("input", "system", "history"),
    "sharegpt": ("system",),
    "messages": ("system",),
    "text": (),
}

PARSERS: dict[DataFormat, Callable[[Mapping[str, Any]], Parsed]] = {
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "messages": _messages,
    "text": _plain_text,
}
