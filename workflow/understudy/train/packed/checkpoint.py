"""A pack's state in a file, so that a pack that was killed goes on where it was.

The file is whole or not there. It is named by the digests of the pack's trials, so a pack with other trials doesn't
find it. What the pack has noted is in a file of its own, beside it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from understudy.files import written_whole
from understudy.train.packed.pack import Pack

FORMAT = 3
SECONDS = 60.0  # between two checkpoints: what a kill may cost
SHARE = 20  # a pack trains at least so many times as long as it took to save it


class Checkpoint:
    """The file of one pack."""

    def __init__(self, path: Path, seconds: float = SECONDS) -> None:
        self.path, self._seconds = path, seconds
        self._last, self._took = time.monotonic(), 0.0

    def trials(self) -> set[str]:
        """The ids of the trials whose state it holds."""
        state = self.load()
        return set(state["trials"]) if state is not None else set()

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last, on the host; None where there is none that can be read."""
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception:  # cut off or altered: whatever the unpickler makes of it; the pack then begins anew
            print(f"the checkpoint {self.path} can't be read; the pack begins anew")
            return None
        return state if state.get("format") == FORMAT else None

    def save_when_due(self, pack: Pack) -> None:
        """Write the pack's state if the last one is old enough."""
        if time.monotonic() - self._last >= max(self._seconds, SHARE * self._took):
            self.save(pack)

    def save(self, pack: Pack) -> None:
        """Write the pack's state."""
        began = time.monotonic()
        with written_whole(self.path) as beside:
            torch.save({"format": FORMAT, **pack.state()}, beside)
        self._last = time.monotonic()
        self._took = self._last - began

    def remove(self) -> None:
        """Once the pack is through."""
        self.path.unlink(missing_ok=True)
