"""Built-in tokenizers and models, kept by content and shared between studies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from understudy import checksums, lease
from understudy.files import digest, folder_whole
from understudy.settings import PretrainSettings

PRETRAIN_VERSION = 1  # raise it when a change to the tokenizer or to pretraining can change a weight


def pretrained(cache: Path, settings: PretrainSettings, corpus: Sequence[str], seed: int, threads: int) -> Path:
    """The folder of the model that these settings make: found in the cache, or pretrained into it.

    A second process that wants the same one waits for the first. The models of one corpus and vocabulary size share
    their tokenizer.
    """
    texts = _sha256(corpus)
    tokenizer_folder = tokenizer(cache, corpus, texts, settings.vocab_size)
    name = digest(
        {
            "version": PRETRAIN_VERSION,
            "settings": settings.model_dump(mode="json"),
            "corpus": texts,
            "seed": seed,
            "threads": threads,
        }
    )

    def make(folder: Path) -> None:
        from transformers import AutoTokenizer

        from understudy.models.pretrain import pretrain

        losses = pretrain(settings, corpus, AutoTokenizer.from_pretrained(tokenizer_folder), seed, folder)
        print(f"pretrained {name}: {losses[0]:.3f} to {losses[-1]:.3f} nats per token in {len(losses)} steps")

    return kept(cache / "models" / name, make)


def tokenizer(cache: Path, corpus: Sequence[str], corpus_sha256: str, vocab_size: int) -> Path:
    """The folder of the tokenizer of a corpus and a vocabulary size: found in the cache, or trained into it."""
    key: dict[str, Any] = {"version": PRETRAIN_VERSION, "corpus": corpus_sha256, "vocab_size": vocab_size}

    def make(folder: Path) -> None:
        from understudy.models.tokenizer import train_tokenizer

        train_tokenizer(corpus, vocab_size, folder)

    return kept(cache / "tokenizers" / digest(key), make)


def kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, which `make` fills where it doesn't exist yet. It appears whole or not at all, and is made once.

    One whose files were altered is made anew: a study would take it for another model.
    """
    if _is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lease.held(folder.with_name(f".{folder.name}.lock")):
        if not _is_whole(folder):
            with folder_whole(folder) as beside:
                beside.mkdir()
                make(beside)
                checksums.write_list(beside)
    return folder


def _is_whole(folder: Path) -> bool:
    return folder.is_dir() and not checksums.altered(folder)


def _sha256(corpus: Sequence[str]) -> str:
    whole = hashlib.sha256()
    for text in corpus:
        whole.update(hashlib.sha256(text.encode(errors="surrogatepass")).digest())
    return whole.hexdigest()
