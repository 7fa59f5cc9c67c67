"""What the checkpoints of trials and of packs have in common: how often, and files that show every change."""

from __future__ import annotations

import errno
import hashlib
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from understudy import watchdog
from understudy.errors import StorageError
from understudy.files import written_whole
from understudy.interruption import InterruptionError
from understudy.train import memory

SHARE = 20  # work goes on for at least so many times as long as it took to save it


class Cadence:
    """When to save: every so many seconds, or more rarely where saving takes long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last, self._took = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether the last checkpoint is old enough."""
        return time.monotonic() - self._last >= max(self._seconds, SHARE * self._took)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Save inside: it is timed."""
        began = time.monotonic()
        try:
            with watchdog.input_output():  # files may be large, and file systems slow
                yield
        finally:
            self._last = time.monotonic()
            self._took = self._last - began


def save_sealed(path: Path, state: Mapping[str, Any]) -> str:
    """Write plain values and tensors whole or not at all, with a digest over all of them; return the digest."""
    found = seal(state)
    with written_whole(path) as beside:
        torch.save({"seal": found, "state": state}, beside)
    return found


def load_sealed(path: Path, mapped: bool = False) -> tuple[str, dict[str, Any]] | None:
    """The digest and the state, on the host. None where the file isn't what was written.

    Torch by itself doesn't check the bytes of tensors. With `mapped` they aren't read into memory but mapped from the
    file. Raises `FileNotFoundError`, and `StorageError` where the reason lies outside of the file, such as a network
    file system that doesn't answer or too little memory: it may be read another time.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        state: dict[str, Any] = content["state"]
        return (found, state) if (found := seal(state)) == content["seal"] else None
    except (FileNotFoundError, InterruptionError):
        raise
    except Exception as error:  # cut off or altered: whatever the unpickler makes of it
        if _is_outside(error, path):
            reason = memory.reason(error)
            raise StorageError(f"the checkpoint {path} can't be read ({reason}); it is kept: start again") from error
        return None


def _is_outside(error: Exception, path: Path) -> bool:
    """Whether a file that can't be read is not to blame. A damaged one asks for places and memory that aren't there."""
    if isinstance(error, OSError):
        return error.errno not in (None, errno.EINVAL)
    return memory.is_out_of_memory(error) and _is_whole(path)


def _is_whole(path: Path) -> bool:
    """Whether a zip archive of torch has the bytes that were written."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        return False


def seal(state: Any) -> str:
    """The SHA-256, in hexadecimal digits, of nested dictionaries, lists and tuples of plain values and tensors."""
    hasher = hashlib.sha256()
    _feed(hasher, state)
    return hasher.hexdigest()


def _feed(hasher: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        hasher.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        hasher.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        hasher.update(f"mapping {len(value)};".encode())
        for key, item in value.items():
            _feed(hasher, key)
            _feed(hasher, item)
    elif isinstance(value, list | tuple):
        hasher.update(f"{type(value).__name__} {len(value)};".encode())
        for item in value:
            _feed(hasher, item)
    else:
        text = repr(value)
        hasher.update(f"{type(value).__name__} {len(text)};{text}".encode())


def say_unwritten(path: Path, error: Exception) -> None:
    """One sentence on a checkpoint that the disk refused."""
    cause = error.__cause__ or error  # which says less than how to go on, but that the trial does by itself
    reason = memory.reason(cause)
    print(f"the checkpoint {path} couldn't be written ({reason}); an earlier one, if there is any, stays", flush=True)
