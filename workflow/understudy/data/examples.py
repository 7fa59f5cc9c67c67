"""What an example is, and what a source of examples returns."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from understudy.settings import Split


@dataclass(frozen=True)
class Example:
    """A prompt and its completion. For a chat `prompt` is a JSON list of turns with `role` and `content`."""

    id: str
    group: str
    prompt: str
    completion: str
    chat: bool = False

    def key(self, seed: int) -> bytes:
        """A pseudo-random sort key that follows from the seed and what the example says."""
        text = "\x00".join((str(seed), self.prompt, self.completion))
        return hashlib.sha256(text.encode()).digest()


def as_prompt(turns: Sequence[Mapping[str, str]]) -> str:
    """The turns of a chat as an example's prompt."""
    return json.dumps(turns, ensure_ascii=False)


class Kinship:
    """Which examples must not be parted: those with the same prompt, or with the same completion without a prompt.

    A chat's are those of the same conversation, too: a prompt that goes on after another one's end is its kin.
    """

    def __init__(self, examples: Iterable[Example]) -> None:
        self._chats = {example.prompt for example in examples if example.chat}
        self._firsts: dict[str, str] = {}  # of each chat's prompt, the shortest that it goes on from

    def of(self, example: Example) -> str:
        """The name of an example's kin."""
        prompt = self._first(example.prompt) if example.chat else example.prompt
        text = f"p{prompt}" if prompt.strip() else f"c{example.completion}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _first(self, prompt: str) -> str:
        if prompt not in self._firsts:
            turns = json.loads(prompt)
            ends = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]  # where a prompt may end
            earlier = (as_prompt(turns[:end]) for end in ends)
            self._firsts[prompt] = next((start for start in earlier if start in self._chats), prompt)
        return self._firsts[prompt]


@dataclass
class Found:
    """The examples of each split, where they come from, and how many were found, dropped by reason, and kept."""

    splits: dict[Split, list[Example]]
    source: dict[str, str]
    counts: Counter[str] = field(default_factory=Counter)


def without_repeats(examples: Iterable[Example], seen: set[str], *, by_part: bool) -> tuple[list[Example], int]:
    """The examples whose text isn't in `seen` yet, which it is added to, and how many were left out.

    With `by_part` a prompt or a completion that was seen is enough; else it takes both.
    """
    kept, dropped = [], 0
    for example in examples:
        prompt, completion = f"p{example.prompt}", f"c{example.completion}"
        texts = {prompt, completion} if by_part else {f"{len(example.prompt)}{prompt}{completion}"}
        if texts & seen:
            dropped += 1
            continue
        seen |= texts
        kept.append(example)
    return kept, dropped


def content(examples: Sequence[Example]) -> str:
    """A digest of what examples say, in their order."""
    whole = hashlib.sha256()
    for example in examples:
        whole.update(f"{json.dumps([example.prompt, example.completion, example.chat])}\n".encode())
    return whole.hexdigest()
