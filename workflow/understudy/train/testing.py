"""The final test: the only reader of the test split, and the count of how often it was read.

Notation: E examples. Losses are summed nats over an example's completion tokens.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from understudy import disk
from understudy.data.encoding import encode
from understudy.data.files import read_split
from understudy.files import digest, read_model, write_json
from understudy.frozen import Frozen
from understudy.models.loading import load_tokenizer
from understudy.store import Store
from understudy.train.evaluation import completion_losses
from understudy.train.trained import is_spread, trained_models
from understudy.trial import ModelCard, ResolvedExecution


class Losses(Frozen):
    """Losses of several trained models on the same examples."""

    by_digest: dict[str, tuple[float, ...]]  # store entry to (E,)
    tokens: tuple[int, ...]  # (E,) completion tokens


@dataclass(frozen=True)
class Trained:
    """Some trained models out of the store, and all that it takes to evaluate them."""

    digests: tuple[str, ...]
    card: ModelCard
    execution: ResolvedExecution
    store: Store
    max_length: int

    def losses(self, split: Path, limit: int | None) -> Losses:
        """Evaluate every model on the first `limit` examples of a split, or on all."""
        tokenizer = load_tokenizer(self.card)
        examples = encode(read_split(split, limit), tokenizer, self.max_length)
        folders = [self.store.adapter(name) for name in self.digests]
        execution = self.execution
        if is_spread(
            execution
        ):  # rows were counted where the weights lay in shards or on the host; here they fill GPUs
            execution = execution.model_copy(update={"micro_batch_size": 1})
        by_digest: dict[str, tuple[float, ...]] = {}
        tokens: tuple[int, ...] = ()
        for name, model in zip(self.digests, trained_models(self.card, execution, folders), strict=True):
            sums, counts = completion_losses(model, examples, tokenizer.pad_token_id, execution)
            by_digest[name], tokens = tuple(sums), tuple(counts)
            del model  # makes room for the next one
        return Losses(by_digest=by_digest, tokens=tokens)


class LookLog:
    """Evaluations on the test split, kept in the store: each is done once, and counted.

    {store}/test/looks.jsonl        a line per evaluation, written before the split is read
    {store}/test/{digest}.json      its losses
    """

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self.folder = trained.store.root / "test"

    def losses(self, split: Path, split_sha256: str, limit: int | None) -> Losses:
        """The models' losses on the test split: from the log where it has them, else measured, and counted."""
        key = digest(
            [sorted(self.trained.digests), split_sha256, limit, self.trained.execution.model_dump(mode="json")]
        )
        path = self.folder / f"{key}.json"
        if path.exists():
            return read_model(path, Losses)
        self._count(key)
        measured = self.trained.losses(split, limit)
        write_json(path, measured)
        return measured

    def looks(self) -> int:
        """How many different evaluations have read the test split. One that was killed and repeated counts once."""
        path = self.folder / "looks.jsonl"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        return len({key for line in lines if (key := _evaluation(line)) is not None})

    def _count(self, key: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder / "looks.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            with disk.reported(self.folder / "looks.jsonl"):
                os.write(handle, (json.dumps({"evaluation": key}) + "\n").encode())
                os.fsync(handle)
        finally:
            os.close(handle)


def _evaluation(line: str) -> str | None:
    """The key in a line of the looks; None where a kill cut the line off. An altered one stays a look of its own."""
    if not line.endswith("}"):
        return None
    try:
        return str(json.loads(line)["evaluation"])
    except (ValueError, KeyError, TypeError):
        return line
