"""A worker that hangs ends itself, so that a retry can go on from its checkpoint.

Whoever works calls `beat` at every sign of progress. A thread counts the time since the last one in small steps of its
own: neither a wall clock that jumps nor a process that was stopped for a while (`scontrol suspend`, Ctrl-Z) looks like
a hang. It needs the interpreter's lock, so it doesn't see a hang inside of a call that never gives the lock up.

Libraries that load a model or save one beat nowhere. While they do, whatever they read, write or take in memory is
progress.
"""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from understudy import progress

EXIT_CODE = 124  # as of timeout(1)
LONGEST_POLL = 5.0  # seconds
MOVED_BYTES = 2**20  # read, written or taken since the last beat: that is more than an idle interpreter does


@dataclass
class _State:
    beats: int = 0
    watched: list[tuple[str, float]] = field(default_factory=list)  # what, and seconds; the last one counts
    input_output: int = 0  # how many blocks of `input_output` this is inside of
    thread: threading.Thread | None = None


_state = _State()


def beat() -> None:
    """There was progress: a pass through the model, a checkpoint, a model that is loaded."""
    _state.beats += 1


@contextmanager
def watching(minutes: float, what: str) -> Iterator[None]:
    """End this process with `EXIT_CODE` and one sentence when nothing beats for so long inside; 0 watches nothing."""
    if minutes == 0:
        yield
        return
    beat()
    with _limited(what, 60.0 * minutes):
        if _state.thread is None:
            _state.thread = threading.Thread(target=_watch, name="watchdog", daemon=True)
            _state.thread.start()
        yield


@contextmanager
def patient() -> Iterator[None]:
    """What is done inside may take as long as it takes, such as weights that are written to a slow file system."""
    with _limited("", math.inf):
        yield


@contextmanager
def _limited(what: str, seconds: float) -> Iterator[None]:
    _state.watched.append((what, seconds))
    try:
        yield
    finally:
        _state.watched.pop()
        beat()


@contextmanager
def input_output() -> Iterator[None]:
    """Inside, what this process reads, writes or takes in memory counts as progress, too (on Linux)."""
    _state.input_output += 1
    try:
        yield
    finally:
        _state.input_output -= 1
        beat()


def _moved_so_far() -> int:
    """Bytes that this process has read and written, plus those that it holds; 0 where the system doesn't tell."""
    try:
        counted = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        held = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0
    return held + sum(int(counted[name]) for name in ("rchar", "wchar", "read_bytes"))


def _watch() -> None:
    seen, idle, last, moved = _state.beats, 0.0, time.monotonic(), 0
    while True:
        poll = min([LONGEST_POLL, *(limit / 10 for _, limit in _state.watched[-1:])])
        time.sleep(poll)
        now = time.monotonic()
        passed, last = min(now - last, 2 * poll), now  # more than that the process itself was stopped
        watched = _state.watched[-1:]
        if _state.input_output and abs(_moved_so_far() - moved) > MOVED_BYTES:
            moved = _moved_so_far()
            beat()
        if not watched or _state.beats != seen:
            seen, idle = _state.beats, 0.0
            continue
        idle += passed
        ((what, limit),) = watched
        if idle >= limit:
            _end(what, limit)


def _end(what: str, limit: float) -> None:
    """Say it, leave in the log where every thread was, and go without clean-up, which could hang as well."""
    progress.tell(
        f"understudy: {what} made no progress for {limit / 60:g} minutes and was ended; a retry, or the next start, "
        "goes on from its checkpoint. Raise `execution.watchdog_minutes` (0 is off) if that is how long a pass may take"
    )
    faulthandler.dump_traceback(file=sys.__stderr__ or 2)
    os._exit(EXIT_CODE)
