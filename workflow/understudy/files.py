"""Files that appear whole or not at all, JSON in one canonical form, and digests."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from understudy.errors import CorruptFileError

Model = TypeVar("Model", bound=BaseModel)

DIGEST_LENGTH = 32  # hexadecimal digits of a SHA-256 that name a store entry


def writer() -> str:
    """A name for this process among all that may write to a shared file system."""
    return f"{os.uname().nodename}.{os.getpid()}"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success flush it and move it into place.

    Parent folders are made. On an exception the half-written file goes and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{writer()}.part")
    try:
        yield beside
        with beside.open("rb") as handle:
            os.fsync(handle.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: BaseModel | Any) -> None:
    """Write a model or a plain value as indented JSON with a newline at the end."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    write_text(path, json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file; raise `CorruptFileError` naming the file where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CorruptFileError(f"{path} is missing; run the workflow again to make it") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptFileError(f"{path} can't be read ({error}); delete it and run the workflow again") from error


def read_model(path: Path, model: type[Model]) -> Model:
    """Parse a JSON file into a pydantic model; raise `CorruptFileError` naming the file."""
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise CorruptFileError(
            f"{path} isn't a valid {model.__name__} ({where}: {first['msg']}); delete it and run the workflow again"
        ) from error


def digest(value: Any) -> str:
    """The first 32 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:DIGEST_LENGTH]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
