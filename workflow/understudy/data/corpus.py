"""What the built-in models are pretrained on."""

from __future__ import annotations

import tokenize
from pathlib import Path

from understudy.data import stdlib
from understudy.data.files import read_split
from understudy.trial import DataManifest


def training_corpus(manifest: DataManifest, train: Path) -> list[str]:
    """The source texts of the standard library that a built-in model may see, in the order of their paths.

    For the built-in task these are only the modules whose top-level package is in the train split (`train` is that
    split's file), so that pretraining leaks nothing of validation and test; for the user's own data, all of them.
    """
    files = stdlib.source_files()
    if manifest.task == "docstrings":
        groups = set(read_split(train, None, manifest.splits["train"].sha256)["group"])
        files = [path for path in files if stdlib.group(path) in groups]
    return [text for path in files if (text := _text(stdlib.root() / path)) is not None]


def _text(path: Path) -> str | None:
    """A source file's text in the encoding that it declares; None where it isn't text in that encoding."""
    try:
        with tokenize.open(path) as handle:
            return handle.read()
    except (SyntaxError, UnicodeDecodeError):
        return None
