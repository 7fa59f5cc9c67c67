"""Small tensors of the host that a pass needs on its device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(parts: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Several index tensors (n,) on `device`; on GPUs by way of one copy, for which the host doesn't wait."""
    if device.type != "cuda":
        return [part.to(device) for part in parts]
    whole = torch.cat(list(parts)).pin_memory().to(device, non_blocking=True)
    return torch.split(whole, [len(part) for part in parts])
