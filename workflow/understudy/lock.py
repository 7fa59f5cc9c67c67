"""One run of the workflow per study: a lock that dies with its holder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

from understudy.errors import UserError

_held: list[TextIO] = []  # kept open for as long as this process lives, or until it releases them


def acquire(path: Path) -> None:
    """Take the study's lock for this process; raise `UserError` if another run holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        holder = handle.read().strip() or "unknown"
        handle.close()
        raise UserError(
            f"another run of this study is under way (process {holder} holds {path}); wait for it or stop it, "
            "or give this study another `results` folder"
        ) from None
    handle.truncate(0)
    handle.write(f"{os.getpid()} on {os.uname().nodename}\n")
    handle.flush()
    _held.append(handle)


def release() -> None:
    """Give up every lock that this process holds; its end does the same."""
    while _held:
        _held.pop().close()
