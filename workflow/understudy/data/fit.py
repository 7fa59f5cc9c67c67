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
    used: dict[Split, tuple[str, int]] = {
        "train": ("training examples", manifest.train_examples),
        "validation": ("validation examples", manifest.validation_examples),
    }
    notes: list[str] = []
    for split, (what, limit) in used.items():
        frame = read_split(folder / f"{split}.parquet", limit, manifest.splits[split].sha256)
        notes += of_lengths(encode(frame, tokenizer, manifest.max_length), what, manifest.max_length)
    return tuple(notes)
