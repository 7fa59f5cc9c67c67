"""From a model's settings to its card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from understudy import progress
from understudy.errors import ModelError
from understudy.models import cache, hub
from understudy.models.checkpoint import check_tokenizer, inspect
from understudy.models.folder import is_folder, require
from understudy.sections import ModelSection
from understudy.settings import CHATS, ModelSettings, PretrainSettings
from understudy.trial import ModelCard


def prepare_model(section: ModelSection, corpus: Callable[[], Sequence[str]], data_format: str | None) -> ModelCard:
    """Pretrain, find or fetch a base model, check it and describe it.

    Since it may take long, it is first said what happens. `corpus` is asked for its texts where the model is a built-in
    one; `data_format` says whether the data are chats. Raises `ModelError` where the model can't be used.
    """
    settings = section.model
    progress.tell(f"preparing the {section.role}: {_described(settings)}")
    if settings.pretrain is not None:
        folder = cache.pretrained(Path(section.cache), settings.pretrain, corpus(), section.seed, section.threads)
        name, source, revision = _built_in_name(settings.pretrain), "pretrained", None
    else:
        folder, source, revision = _given(settings)
        name = str(settings.model_name_or_path)
    checkpoint = inspect(folder, settings.quantization)
    check_tokenizer(folder, needs_chat_template=data_format in CHATS)
    return ModelCard.model_validate(
        {
            "role": section.role,
            "source": source,
            "name": name,
            "revision": revision,
            "path": str(folder),
            "quantization": settings.quantization,
            **vars(checkpoint),
        }
    )


def _given(settings: ModelSettings) -> tuple[Path, str, str | None]:
    """Folder, source and revision of the user's own checkpoint."""
    name = str(settings.model_name_or_path)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if settings.revision is not None:
            raise ModelError(
                f"`revision: {settings.revision}` goes with hub models, but {folder} is a folder; leave it out"
            )
        return folder.resolve(), "local", None
    require(name)
    fetched = hub.fetch(name, settings.revision)
    return fetched, "hub", fetched.name  # snapshots are named by their commit


def _described(settings: ModelSettings) -> str:
    """What is about to happen to a model; whether that takes long shows only on the way."""
    if settings.pretrain is not None:
        return f"pretraining {_built_in_name(settings.pretrain)}, unless it is in the cache"
    if is_folder(name := str(settings.model_name_or_path)):
        return f"reading {name}"
    return f"fetching {name}, as far as the hub's cache on this machine lacks it"


def _built_in_name(settings: PretrainSettings) -> str:
    return f"llama-{settings.hidden_size}x{settings.num_hidden_layers}"
