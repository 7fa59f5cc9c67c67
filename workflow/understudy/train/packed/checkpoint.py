"""A pack's state in a file, so that a pack that was killed goes on where it was.

The file is whole or not there. It is named by the digests of the pack's trials, so a pack with other trials doesn't
find it. What the pack has noted is in a file of its own, beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from understudy.errors import StorageError
from understudy.files import sweep
from understudy.train.packed.pack import Pack
from understudy.train.saving import Cadence, load_sealed, save_sealed, say_unwritten

MADE_BY = {"format": 7, "torch": str(torch.__version__)}


class Checkpoint:
    """The file of one pack, saved every so many seconds."""

    def __init__(self, path: Path, seconds: float = 0.0) -> None:
        self.path, self._cadence = path, Cadence(seconds)

    def trials(self) -> set[str]:
        """The ids of the trials whose state it holds."""
        state = self.load()
        return set(state["trials"]) if state is not None else set()

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last, on the host; None where there is none that can be read."""
        try:
            found = load_sealed(self.path)
        except FileNotFoundError:
            return None
        if found is None:
            print(
                f"the checkpoint {self.path} can't be read, or isn't what was written; the pack begins anew", flush=True
            )
            return None
        state = found[1]
        made_by = {"format": state.get("format"), "torch": state.get("torch")}
        return state if made_by == MADE_BY else None

    def save_when_due(self, pack: Pack) -> None:
        """Write the pack's state if the last one is old enough."""
        if self._cadence.due():
            self.save(pack)

    def save(self, pack: Pack) -> bool:
        """Write the pack's state. Where the disk refuses, say so, go on without, and return False."""
        sweep(self.path)
        try:
            with self._cadence.saving():
                save_sealed(self.path, {**MADE_BY, **pack.state()})
        except (OSError, RuntimeError, StorageError) as error:
            say_unwritten(self.path, error)
            return False
        return True

    def remove(self) -> None:
        """Once the pack is through."""
        self.path.unlink(missing_ok=True)
        sweep(self.path)
