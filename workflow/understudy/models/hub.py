"""Fetching a checkpoint from the Hugging Face hub. It happens in `prepare-model` only: trials run without a network."""

from __future__ import annotations

from pathlib import Path

from understudy.errors import ModelError
from understudy.models.folder import OTHER_FILES, TOKENIZER_FILES, WEIGHTS

LOG_IN = "log in with `hf auth login`, or set the environment variable HF_TOKEN to a token of yours"


def fetch(name: str, revision: str | None) -> Path:
    """The local folder of a hub model's config, tokenizer and weights, named by its commit; fetched where need be.

    Weights in safetensors are preferred to others. Without a network, what was fetched before is taken. Raises
    `ModelError` where there is no such model or revision, access isn't granted, or the hub can't be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    described = f"`{name}`" + (f" in revision `{revision}`" if revision else "")
    small = [*TOKENIZER_FILES, *OTHER_FILES, "*.index.json"]
    try:
        for pattern in WEIGHTS:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*small, pattern]))
            if any(folder.glob(pattern)):
                break
    except GatedRepoError as error:
        raise ModelError(
            f"the hub doesn't give access to {described}; ask for it on https://huggingface.co/{name}, and {LOG_IN}"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"there is no folder {name}, and no model {described} on the hub; give a folder, or the id of a model; for "
            f"a private one {LOG_IN}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(_unreachable(name, described)) from error
    except OSError as error:  # includes every other answer of the hub
        raise ModelError(f"{_unreachable(name, described)} ({' '.join(str(error).split())[:200]})") from error
    return folder


def _unreachable(name: str, described: str) -> str:
    return (
        f"there is no folder {name}, and the hub can't be reached to fetch {described}, nor was it fetched before; "
        "give a folder, or run this step where there is a network"
    )
