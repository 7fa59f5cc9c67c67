"""Locks that hold on one machine for certain, and over several machines on a shared file system as well as can be.

Two things are held at once:

- `flock` on a lock file. It ends with its holder, however that ends, and on one machine it is certain. Linux's NFS
  client carries it to the server, other file systems only where they are mounted so (Lustre: `flock`), some have none.
- A holder's file beside it, made with O_EXCL, which every file system keeps to (NFS since version 3). Its holder counts
  up in it every `BEAT_SECONDS`. Whoever finds it counting waits. Where it hasn't changed for `SILENT_SECONDS`, as the
  one who waits measures it, its holder is taken for dead: no machine's clock is compared with another's.

A holder that was frozen for longer than that finds company when it wakes up. So files are written so that two writers
can't damage them (see `files.py`), and who is first counts.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from understudy import disk
from understudy.errors import StorageError

BEAT_SECONDS = 10.0
SILENT_SECONDS = 75.0  # above the 60 s that an NFS client may keep a file's attributes, and several beats
POLL_SECONDS = 1.0
LOOKS, LOOK_SECONDS = 2, 0.1
COUNT_DIGITS = 12  # of fixed width, so that a reader never finds a shorter text

_WITHOUT_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


class HeldError(Exception):
    """Somebody else holds it; the text says who."""


@contextmanager
def held(path: Path, *, wait: bool = True, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock whose file is `path`; the holder's file is named after it.

    With `wait` this waits for as long as somebody living holds it. Without, it raises `HeldError` as soon as that is
    sure; where only a dead holder's file stands there, that takes `SILENT_SECONDS`, of which `say` is told. Raises
    `StorageError` naming the holder's file where the disk refuses it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:  # a file, a link to nowhere, /proc
        raise StorageError(
            f"the folder {path.parent} can't be made: {os.strerror(error.errno or 0)}; see to what stands in its "
            "place, or name another folder in the config"
        ) from error
    with path.open("a") as handle:
        alone = _flock(handle.fileno(), path, wait)
        holder = _Holder(path.with_name(f"{path.name}.holder"))
        with disk.reported(holder.path):
            holder.take(alone, wait, say)
        try:
            yield
        finally:
            holder.release()


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock whose file is `path`, as far as that shows at once.

    Somebody on another machine who was killed shows as if they still held it: whether they count takes time to see.
    """
    alone = True
    try:
        with path.open("rb") as handle:
            fcntl.flock(handle.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_FLOCK:
            raise
        alone = False
    found = _read(path.with_name(f"{path.name}.holder"))
    return bool(found) and not (_is_here(found) and (alone or not _lives(found)))


def _flock(descriptor: int, path: Path, wait: bool) -> bool:
    """Take the flock; False where the file system has none."""
    try:
        for _ in range(0 if wait else LOOKS):  # somebody may only be looking whether it is held
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            time.sleep(LOOK_SECONDS)
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HeldError(_who(_read(path.with_name(f"{path.name}.holder")))) from None
    except OSError as error:
        if error.errno not in _WITHOUT_FLOCK:
            raise
        return False
    return True


class _Holder:
    """The holder's file: who, and how often they have counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = secrets.token_hex(8)
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    def take(self, alone: bool, wait: bool, say: Callable[[str], None] | None) -> None:
        """Make the file, once nobody living has it. `alone`: nobody on this machine has it, as the flock says."""
        seen, since = b"", time.monotonic()
        while not self._make():
            found = _read(self.path)
            if found != seen:
                if seen and found and not wait and _token(found) == _token(seen):
                    raise HeldError(_who(found))  # it counts
                if not seen and not wait and say is not None and not (alone and _is_here(found)):
                    say(f"{_who(found)} may hold {self.path}; that shows in up to {SILENT_SECONDS:.0f} s")
                seen, since = found, time.monotonic()
            if (alone and _is_here(found)) or time.monotonic() - since > SILENT_SECONDS:
                self._clear(found)
            else:
                time.sleep(POLL_SECONDS)
        self._beating = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._beating.start()

    def release(self) -> None:
        """Stop counting and take the file away, if it is still this holder's."""
        self._ended.set()
        if self._beating is not None:
            self._beating.join()
        if _token(_read(self.path)) in (None, self.token):  # or what was altered
            self.path.unlink(missing_ok=True)

    def _make(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(self._text(0))
        except OSError:  # an empty one would keep the next holder waiting
            self.path.unlink(missing_ok=True)
            raise
        return True

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(BEAT_SECONDS):
            count += 1
            found = _token(_read(self.path))
            if found not in (None, self.token):
                return  # taken for dead; who is first counts
            with suppress(OSError):  # what can't be read just now, or is being moved, is tried again
                if not self.path.exists():
                    self._make()
                with self.path.open("r+b") as handle:
                    handle.write(self._text(count))

    def _text(self, count: int) -> bytes:
        who = {
            "count": f"{count:0{COUNT_DIGITS}d}",
            "token": self.token,
            "host": os.uname().nodename,
            "boot": _boot(),
            "pid": os.getpid(),
        }
        return (json.dumps(who) + "\n").encode()

    def _clear(self, found: bytes) -> None:
        """Take a dead holder's file away, unless somebody else has done so and stands there now."""
        aside = self.path.with_name(f"{self.path.name}.{self.token}")
        with suppress(FileNotFoundError):
            self.path.rename(aside)
            if _read(aside) != found:
                with suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    """What stands in a holder's file; nothing where there is none."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _fields(text: bytes) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError:  # not written yet
        return {}
    return found if isinstance(found, dict) else {}


def _token(text: bytes) -> object:
    return _fields(text).get("token")


def _is_here(text: bytes) -> bool:
    """Whether a holder is, or was, on this machine since it was switched on."""
    return _fields(text).get("boot") == _boot()


def _lives(text: bytes) -> bool:
    """Whether the process of a holder on this machine is there."""
    return Path(f"/proc/{_fields(text).get('pid')}").exists()


def _who(text: bytes) -> str:
    fields = _fields(text)
    return f"process {fields.get('pid', 'unknown')} on {fields.get('host', 'an unknown machine')}"


@cache
def _boot() -> str:
    """What tells this running system from all others; host names may be the same on several."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{os.uname().nodename}-{uuid.getnode()}"
