"""One run of the workflow per study: a lock that dies with its holder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from understudy import disk
from understudy.errors import StorageError, UserError

_held: dict[Path, int] = {}  # descriptors, open for as long as this process lives, or until it releases them


def acquire(path: Path) -> None:
    """Take the study's lock for this process, unless it has it.

    Raises `UserError` if another run holds it, `StorageError` where the study's folder can't be written.
    """
    if path in _held:
        return
    with disk.reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with disk.reported(path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} on {os.uname().nodename}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise UserError(
            f"another run of this study is under way (process {holder} holds {path}); wait for it or stop it, "
            "or give this study another `results` folder"
        ) from None
    except StorageError:
        os.close(handle)
        raise
    _held[path] = handle


def release() -> None:
    """Give up every lock that this process holds; its end does the same."""
    while _held:
        os.close(_held.popitem()[1])
