"""One run of the workflow per study: a lock that dies with its holder, also on another machine."""

from __future__ import annotations

import atexit
import sys
from contextlib import ExitStack
from pathlib import Path

from understudy import disk, lease
from understudy.errors import UserError

_held: dict[Path, ExitStack] = {}


def acquire(path: Path) -> None:
    """Take the study's lock for this process, unless it has it.

    Raises `UserError` if another run holds it, `StorageError` where the study's folder can't be written.
    """
    if path in _held:
        return
    mine = ExitStack()
    try:
        with disk.reported(path):
            mine.enter_context(lease.held(path, wait=False, say=lambda text: print(text, file=sys.stderr, flush=True)))
    except lease.HeldError as holder:
        raise UserError(
            f"another run of this study is under way ({holder} holds {path}); wait for it or stop it, "
            "or give this study another `results` folder"
        ) from None
    _held[path] = mine
    atexit.register(release)


def release() -> None:
    """Give up every lock that this process holds; its end does the same."""
    while _held:
        _held.popitem()[1].close()
