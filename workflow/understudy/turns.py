"""A queue in a folder: who waits for devices has a file there, and those who came first have their turn first.

All of it happens under one lock, which the caller holds. A place is kept by coming back to it: one whose owner was
killed or stopped is free after `SILENT_SECONDS`, by the machine's monotonic clock.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

SILENT_SECONDS = 10.0  # many times what passes between two looks
DIGITS = 12  # of a place's number, so that names are in its order
NAME = re.compile(rf"waiting-\d{{{DIGITS}}}-\d+-[0-9a-f]+")
DEVICE = re.compile(r"(GPU|MIG)-[\w/-]{1,100}")


@dataclass(frozen=True)
class Wish:
    """So many of these devices, at once."""

    devices: tuple[str, ...]
    count: int


class Place:
    """A place in the queue of a folder, at its end from the first look on."""

    def __init__(self, folder: Path, wish: Wish) -> None:
        self.folder, self.wish = folder, wish
        self._path: Path | None = None

    def look(self) -> list[Wish]:
        """Keep the place, and see what those wish who came first, in their order."""
        found = [path for path in self.folder.iterdir() if NAME.fullmatch(path.name)]
        others = sorted(path for path in found if path != self._path)
        if self._path is None:
            last = int(others[-1].name.split("-")[1]) if others else 0
            self._path = self.folder / f"waiting-{last + 1:0{DIGITS}d}-{os.getpid()}-{secrets.token_hex(4)}"
        with suppress(OSError):  # on a full disk whoever is quicker is first
            self._path.write_text(json.dumps({"at": time.monotonic(), **asdict(self.wish)}), encoding="utf-8")
            self._path.chmod(0o644)  # also for other users, whatever this one's mask is
        wishes = {path: _read(path) for path in others}
        for path, wish in wishes.items():
            if wish is None:
                _remove(path)
        return [wish for path, wish in wishes.items() if wish is not None and path < self._path]

    def leave(self) -> None:
        if self._path is not None:
            _remove(self._path)


@contextmanager
def place(folder: Path, wish: Wish) -> Iterator[Place]:
    """A place that is given up at the end."""
    mine = Place(folder, wish)
    try:
        yield mine
    finally:
        mine.leave()


def _read(path: Path) -> Wish | None:
    """What somebody wishes; None where they don't come back, or where that can't be told."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        wish = Wish(tuple(told["devices"]), int(told["count"]))
        sound = wish.count > 0 and all(DEVICE.fullmatch(name) for name in wish.devices)
        return wish if sound and 0 <= time.monotonic() - told["at"] < SILENT_SECONDS else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove(path: Path) -> None:
    with suppress(OSError):  # somebody else's stays
        path.unlink()
