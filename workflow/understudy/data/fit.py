"""How the data fit a model's tokenizer, found out before anything is trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from understudy.data.encoding import Encoded, encode, require_chats
from understudy.data.files import read_split
from understudy.data.notices import of_lengths
from understudy.errors import DataError, ModelError
from understudy.settings import Split
from understudy.trial import DataManifest


def notes_on_fit(manifest: DataManifest, folder: Path, tokenizer: Any, vocab_size: int) -> tuple[str, ...]:
    """What `data.max_length` cuts off the examples that a trial learns and is judged on, in words.

    `folder` is where the manifest and its splits are. Raises `DataError` where the tokenizer's chat template refuses
    one of the chats, those of the test split among them, of which nothing else is looked at, and where no example keeps
    its prompt; and `ModelError` where the
    tokenizer gives tokens that aren't among the model's `vocab_size`.
    """
    parts: dict[str, tuple[Split, int]] = {
        "training": ("train", manifest.train_examples),
        "validation": ("validation", manifest.validation_examples),
    }
    encoded = {}
    for name, (split, limit) in parts.items():
        frame = read_split(folder / f"{split}.parquet", limit, manifest.splits[split].sha256)
        encoded[name] = encode(frame, tokenizer, manifest.max_length)
        _require_known(encoded[name], tokenizer, vocab_size)
        if name == "training" and frame["prompt"].ne("").all():
            _require_prompts(encoded[name], name, manifest.max_length)
    test = read_split(folder / "test.parquet", manifest.test_examples, manifest.splits["test"].sha256)
    require_chats(test, tokenizer)
    return tuple(of_lengths(encoded, manifest.max_length))


def _require_prompts(examples: Sequence[Encoded], name: str, max_length: int) -> None:
    if all(example.cut == "completion" for example in examples):
        raise DataError(
            f"not one of the {len(examples):,} {name} examples keeps any of its prompt: completions alone are longer "
            f"than `data.max_length` ({max_length}); raise it"
        )


def _require_known(examples: Sequence[Encoded], tokenizer: Any, vocab_size: int) -> None:
    largest = max(max(example.input_ids) for example in examples)
    if largest >= vocab_size:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path} gives `{token}` the number {largest}, and the model has "
            f"embeddings for {vocab_size} tokens; resize them (`model.resize_token_embeddings`), or give the tokenizer "
            "that the model was trained with"
        )
