"""What a disk refuses: no space left, read-only, no permission, a limit. One message that names the file.

Libraries hide the system's error: polars and safetensors write `os error 28` into their text, torch names no cause at
all. So what their words don't tell is asked of the disk itself.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from understudy.errors import StorageError

KEPT = "start again with the same command: nothing that has finished is lost"
ADVICE = {
    errno.ENOSPC: f"free some space, then {KEPT}",
    errno.EDQUOT: f"free some space or have the quota raised, then {KEPT}",
    errno.EFBIG: f"raise the limit on file sizes (`ulimit -f`, or the file system's own), then {KEPT}",
    errno.EROFS: f"mount it writable, or name another `results` folder in the config, then {KEPT}",
    errno.EACCES: f"see to the permissions, then {KEPT}",
    errno.EPERM: f"see to the permissions, then {KEPT}",
    errno.EIO: f"check the disk, then {KEPT}",
    errno.ESTALE: f"check the network file system, then {KEPT}",
}
PROBE_BYTES = 2**20


def refusal(error: BaseException, path: Path | None = None, otherwise: Path | None = None) -> StorageError | None:
    """The error to report where the disk refused something, else None.

    `path` is what was being written or read; without it the file that the system named, if it did, else `otherwise`.
    """
    found = _system_error(error)
    if found is None or found.errno not in ADVICE:
        return None
    name = path or found.filename or otherwise
    what = f"{name} can't be written or opened" if name else "a file can't be written"
    return StorageError(f"{what}: {os.strerror(found.errno)}; {ADVICE[found.errno]}")


@contextmanager
def reported(path: Path, writing: Path | None = None) -> Iterator[None]:
    """Raise `StorageError` naming `path` where the disk refuses what is done inside.

    `writing` is the file or folder that is written to in its place: beside it the disk is asked where an exception
    doesn't say what was the matter.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        found = refusal(error, path) or (_ask(writing.parent, path) if writing is not None else None)
        if found is None:
            raise
        raise found from error


def _system_error(error: BaseException | None) -> OSError | None:
    """The system's error behind an exception, from its chain of causes or from its text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        if match := re.search(r"\(os error (\d+)\)", str(error)):
            return OSError(int(match[1]), os.strerror(int(match[1])))
        error = error.__cause__ or error.__context__
    return None


def require_room(folder: Path) -> None:
    """Raise `StorageError` where a folder can't be written, or nothing of size any more."""
    if found := _ask(folder, folder):
        raise found


def _ask(folder: Path, path: Path) -> StorageError | None:
    """What the disk says to a small file in `folder`, while what filled it up is still there."""
    try:
        with tempfile.TemporaryFile(dir=folder) as handle:
            handle.write(bytes(PROBE_BYTES))
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        return refusal(error, path)
    return None
