"""The final test: the only reader of the test split, and the count of how often it was read.

Notation: S seeds, E examples. A loss matrix has shape (S, E): summed nats over an example's completion tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from understudy.data.encoding import Encoded
from understudy.files import digest, read_model, write_json
from understudy.store import Store
from understudy.train.evaluation import completion_losses
from understudy.train.trained import trained_models
from understudy.trial import ModelCard, ResolvedExecution


class Losses(BaseModel):
    """Losses of several trained models on the same examples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digests: tuple[str, ...]  # (S,) store entries
    losses: tuple[tuple[float, ...], ...]  # (S, E) summed nats
    tokens: tuple[int, ...]  # (E,) completion tokens

    def of(self, digests: Sequence[str]) -> list[list[float]]:
        """The rows of some models, shape (len(digests), E)."""
        return [list(self.losses[self.digests.index(name)]) for name in digests]


def measure(
    digests: Sequence[str],
    examples: Sequence[Encoded],
    card: ModelCard,
    execution: ResolvedExecution,
    store: Store,
    pad_token_id: int,
) -> Losses:
    """Evaluate trained models out of the store on some examples."""
    names = tuple(dict.fromkeys(digests))
    rows: list[tuple[float, ...]] = []
    tokens: tuple[int, ...] = ()
    for model in trained_models(card, execution, [store.adapter(name) for name in names]):
        sums, counts = completion_losses(model, examples, pad_token_id, execution)
        rows.append(tuple(sums))
        tokens = tuple(counts)
    return Losses(digests=names, losses=tuple(rows), tokens=tokens)


class TestLog:
    """Evaluations on the test split, kept in the store: each is done once, and counted.

    {store}/test/looks.jsonl        a line per evaluation, written before the split is read
    {store}/test/{digest}.json      its losses
    """

    def __init__(self, store: Store) -> None:
        self.folder = store.root / "test"

    def key(self, digests: Sequence[str], test_sha256: str, limit: int | None, execution: ResolvedExecution) -> str:
        """The name of an evaluation: the same models on the same examples are the same look."""
        return digest([sorted(digests), test_sha256, limit, execution.model_dump(mode="json")])

    def find(self, key: str) -> Losses | None:
        """The losses of an evaluation that was done before."""
        path = self.folder / f"{key}.json"
        return read_model(path, Losses) if path.exists() else None

    def begin(self, key: str) -> None:
        """Count an evaluation that is about to read the test split."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder / "looks.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, (json.dumps({"evaluation": key}) + "\n").encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    def save(self, key: str, losses: Losses) -> None:
        """Keep an evaluation's losses."""
        write_json(self.folder / f"{key}.json", losses)

    def looks(self) -> int:
        """How many different evaluations have read the test split. One that was killed and repeated counts once."""
        path: Path = self.folder / "looks.jsonl"
        if not path.exists():
            return 0
        lines: list[dict[str, Any]] = []
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:  # cut off by a kill, before anything was read
                continue
        return len({line["evaluation"] for line in lines})
