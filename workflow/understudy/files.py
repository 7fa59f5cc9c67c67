"""Files that appear whole or not at all, JSON in one canonical form that shows when it was altered, and digests.

A model's file ends with the key `checksum`, the digest of all else in it. Without it a flipped bit in a number would be
another number; a file that has none, because somebody wrote it by hand, is taken as it is.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from understudy import disk
from understudy.errors import CorruptFileError

Model = TypeVar("Model", bound=BaseModel)

CHECKSUM = "checksum"
SILENT_SECONDS = 3600.0  # without a change in a half file, after which its writer on another machine is taken for dead
DIGEST_LENGTH = 32  # hexadecimal digits of a SHA-256 that name a store entry


def writer() -> str:
    """A name for this process among all that may write to a shared file system."""
    return f"{os.uname().nodename}.{os.getpid()}"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success flush it and move it into place.

    Parent folders are made. On an exception the half-written file goes and `path` stays as it was. Raises
    `StorageError` naming `path` where the disk is full or can't be written.
    """
    beside = path.with_name(f".{path.name}.{writer()}.part")
    try:
        with disk.reported(path, beside):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            _flush(beside)
            beside.replace(path)
    finally:
        _remove(beside)


@contextmanager
def folder_whole(folder: Path) -> Iterator[Path]:
    """Yield a path beside `folder` to make a folder at; on success flush it and move it into place.

    What stood there goes, and so does what a writer that was killed left beside it: trained weights can be large.
    Only one process at a time should do this. Should two, neither takes the other's half folder away, and one whole
    folder stands there in the end. Raises `StorageError` as `written_whole` does.
    """
    beside = folder.with_name(f".{folder.name}.{writer()}.part")
    sweep(folder)
    try:
        with disk.reported(folder, beside):
            yield beside
            for path in beside.rglob("*"):
                if path.is_file():
                    _flush(path)
            shutil.rmtree(folder, ignore_errors=True)
            _put(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder, whole or not at all for who looks at it; one that isn't there is gone already."""
    beside = folder.with_name(f".{folder.name}.{writer()}.part")
    with suppress(OSError):
        folder.rename(beside)
    shutil.rmtree(beside, ignore_errors=True)


def sweep(path: Path) -> None:
    """Remove what was half written in the place of a file or folder by writers that live no more.

    On this machine their processes are looked for. On others nobody can tell, so what has changed within an hour stays.
    """
    for part in path.parent.glob(f".{escape(path.name)}.*.part"):
        node, _, pid = part.name.removeprefix(f".{path.name}.").removesuffix(".part").rpartition(".")
        if _is_alive(node, pid) if node in ("", os.uname().nodename) else _has_changed(part):
            continue
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            _remove(part)


def _is_alive(node: str, pid: str) -> bool:
    """Whether a writer's process is on this machine, and isn't this one."""
    if not node or not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _has_changed(part: Path) -> bool:
    """Whether somebody has written to a half file or folder lately."""
    with suppress(OSError):  # its writer is at work: files come and go
        times = [path.stat().st_mtime for path in (part, *part.rglob("*"))]
        return time.time() - max(times) < SILENT_SECONDS
    return True


def _put(beside: Path, folder: Path) -> None:
    """Move a folder to where none is; one that stands there since a moment ago stays."""
    try:
        beside.replace(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _flush(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _remove(path: Path) -> None:
    with suppress(OSError):  # a disk that has become read-only says so where it matters
        path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: BaseModel | Any, *, sealed: bool | None = None) -> None:
    """Write a model or a plain value as indented JSON with a newline at the end.

    `sealed`: whether an object ends with its checksum. Models do; what other programs read must not.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    if sealed or (sealed is None and isinstance(value, BaseModel)):
        plain = {**json.loads(text), CHECKSUM: digest(json.loads(text))}  # of what a reader will find
        text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file; raise `CorruptFileError` naming the file where it is missing, broken or altered."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CorruptFileError(f"{path} is missing; run the workflow again to make it") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        refused = disk.refusal(error, path)
        raise refused or CorruptFileError(
            f"{path} can't be read ({error}); delete it and run the workflow again"
        ) from error
    if isinstance(value, dict) and CHECKSUM in value:
        if not _is_sealed(value):
            raise CorruptFileError(
                f"{path} has been altered since it was written (its checksum is another); delete it and run the "
                "workflow again"
            )
        del value[CHECKSUM]
    return value


def _is_sealed(value: dict[str, Any]) -> bool:
    try:
        return bool(value[CHECKSUM] == digest({key: value[key] for key in value if key != CHECKSUM}))
    except ValueError:  # a number became NaN or infinite
        return False


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
