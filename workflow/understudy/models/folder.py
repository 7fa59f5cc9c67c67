"""Checkpoints in folders: which one a name means, and what of it is loaded. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from understudy.errors import ModelError

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


def is_folder(name: str) -> bool:
    """Whether a name can only be a folder, or is one."""
    return Path(name).expanduser().is_dir() or name.startswith((".", "/", "~")) or name.count("/") != 1


def require(name: str) -> None:
    """Raise `ModelError` where a name is neither a folder that is there, nor can be an id on the hub."""
    folder = Path(name).expanduser()
    if folder.is_dir() or not is_folder(name):
        return
    if "/" not in name and not name.startswith((".", "~")):
        raise ModelError(
            f"there is no model folder {folder} (relative paths start where the study is run), and an id on the hub "
            f"has its owner in front, as `openai-community/gpt2` has; give the folder, or `OWNER/{name}`"
        )
    raise ModelError(f"there is no model folder {folder}; relative paths start where the study is run")


def weights(folder: Path) -> list[Path]:
    """The files of the weights: those of the first kind that there is."""
    return next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), [])


def loaded(folder: Path) -> list[Path]:
    """All files that are loaded, sorted; none of a folder that isn't there."""
    named = [folder / name for name in (*TOKENIZER_FILES, *OTHER_FILES) if (folder / name).is_file()]
    return sorted({*named, *weights(folder)})
