"""What of a checkpoint's folder is loaded: the files that its digest covers. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
OTHER_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # in the order in which transformers looks for them


def weights(folder: Path) -> list[Path]:
    """The files of the weights: those of the first kind that there is."""
    return next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), [])


def loaded(folder: Path) -> list[Path]:
    """All files that are loaded, sorted; none of a folder that isn't there."""
    named = [folder / name for name in (*TOKENIZER_FILES, *OTHER_FILES) if (folder / name).is_file()]
    return sorted({*named, *weights(folder)})
