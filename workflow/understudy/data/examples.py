"""What an example is, and what a source of examples returns."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
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

    def kin(self) -> str:
        """What examples that must not be parted share: the hash of the prompt, or of the completion without one."""
        text = f"p{self.prompt}" if self.prompt.strip() else f"c{self.completion}"
        return hashlib.sha256(text.encode()).hexdigest()


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
