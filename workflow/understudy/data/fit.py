"""How the data fit a model's tokenizer, found out before anything is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from understudy.data.encoding import encode
from understudy.data.files import read_split
from understudy.data.notices import of_lengths
from understudy.settings import Split
from understudy.trial import DataManifest


def notes_on_fit(manifest: DataManifest, folder: Path, tokenizer: Any) -> tuple[str, ...]:
    """What `data.max_length` cuts off the examples that a trial learns and is judged on, in words.

    `folder` is where the manifest and its splits are. Raises `DataError` where the tokenizer's chat template refuses
    one of the chats. The test split isn't read.
    """
    parts: dict[str, tuple[Split, int]] = {
        "training": ("train", manifest.train_examples),
        "validation": ("validation", manifest.validation_examples),
    }
    encoded = {}
    for name, (split, limit) in parts.items():
        frame = read_split(folder / f"{split}.parquet", limit, manifest.splits[split].sha256)
        encoded[name] = encode(frame, tokenizer, manifest.max_length)
    return tuple(of_lengths(encoded, manifest.max_length))
