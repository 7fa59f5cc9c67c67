"""What of the data isn't learnt, in words: keys that nothing reads, turns of chats, and what `data.max_length` cuts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from understudy.data.encoding import Cut, Encoded

# names in the manifest's counts
IGNORED_KEY = "ignored_key_"  # followed by the key: rows in which it says something
IGNORED_TURNS = "ignored_turns_after_the_last_answer"
EARLIER_ANSWERS = "earlier_answers_as_context"

# keys that LLaMA-Factory, Axolotl, TRL or OpenAI read as a part of the example
READ_BY_OTHERS = (
    "system",
    "history",
    "tools",
    "functions",
    "weight",
    "reasoning_content",
    "thinking",
    "images",
    "videos",
    "audios",
    "chosen",
    "rejected",
)


def of_rows(counts: Mapping[str, int]) -> list[str]:
    """What other trainers would have learnt, or read, of the user's rows."""
    notes = [
        f"{_of(count, counts['found'], 'rows')} {_has(count)} the key `{key}`, which isn't read"
        for key, count in _ignored(counts)
        if key in READ_BY_OTHERS
    ]
    if count := counts.get(EARLIER_ANSWERS, 0):
        notes.append(
            f"{count:,} earlier {'answer' if count == 1 else 'answers'} of chats are context and aren't learnt "
            "(only the last one is; for more, give one row per answer)"
        )
    if count := counts.get(IGNORED_TURNS, 0):
        notes.append(
            f"{count:,} {'turn stands' if count == 1 else 'turns stand'} after the last answer and are left out"
        )
    return notes


def of_columns(counts: Mapping[str, int]) -> list[str]:
    """Further keys of the rows that nothing reads, as most data have some."""
    found = [f"`{key}` ({count:,})" for key, count in _ignored(counts) if key not in READ_BY_OTHERS]
    return [f"further keys that aren't read, and in how many rows: {', '.join(found)}"] if found else []


def of_lengths(examples: Mapping[str, Sequence[Encoded]], max_length: int) -> list[str]:
    """How many examples are cut to `data.max_length`, and where.

    `examples` has the encoded ones by what they are for, such as `training`.
    """
    longer = f"longer than data.max_length ({max_length})"
    notes = []
    if found := _cut(examples, "prompt"):
        notes.append(f"{found} {longer} and lose the beginning of their prompt")
    if found := _cut(examples, "completion"):
        notes.append(f"{found} {longer} by their completion alone and lose its end and the prompt")
    return notes


def _cut(examples: Mapping[str, Sequence[Encoded]], part: Cut) -> str:
    """`3 of 64 training and 1 of 48 validation examples are`; nothing where none is cut there."""
    counts = {what: sum(example.cut == part for example in group) for what, group in examples.items()}
    cut = [f"{count:,} of {len(examples[what]):,} {what}" for what, count in counts.items() if count]
    return f"{' and '.join(cut)} examples are" if cut else ""


def _ignored(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    found = [(name.removeprefix(IGNORED_KEY), count) for name, count in counts.items() if name.startswith(IGNORED_KEY)]
    return sorted(found)


def _of(count: int, total: int, what: str) -> str:
    return f"{count:,} of {total:,} {what}"


def _has(count: int) -> str:
    return "has" if count == 1 else "have"
