"""All gradients of a trial in one flat buffer, with the numbers that travel with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from understudy.train.ranks import Ranks


class Agreed(NamedTuple):
    """What all ranks know after a step's sum."""

    loss: float  # of the batch
    trouble: bool  # some rank has run out of memory
    save: bool  # it is time for a checkpoint
    stop: bool  # some rank was asked to end
    refused: bool = False  # some rank has an operation without a deterministic kernel


class Gradients:
    """The gradients of some parameters as views of one buffer, followed by the loss and by flags.

    One sum over the ranks carries everything that they have to agree on after a step's backward passes, and
    clipping is one norm and one product, which for small models saves much of a step.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        sizes = [parameter.numel() for parameter in parameters]
        self._buffer = torch.zeros(sum(sizes) + 5, dtype=torch.float32, device=parameters[0].device)
        views = list(torch.split(self._buffer, [*sizes, 1, 1, 1, 1, 1]))
        self.loss, self.save, self.stop, self.refused, self.trouble = views[-5:]
        for parameter, view in zip(parameters, views[:-5], strict=True):
            parameter.grad = view.view_as(parameter)
        self._flat = self._buffer[:-5]

    def clear(self) -> None:
        """Back to zero, all but the trouble: that stays until it has been told."""
        self._buffer[:-1].zero_()

    def add_up(self, ranks: Ranks, save: bool = False, stop: bool = False) -> Agreed:
        """Sum over the ranks; `save` and `stop` are what this rank wants."""
        if save:
            self.save.fill_(1)
        if stop:
            self.stop.fill_(1)
        ranks.sum_(self._buffer)
        loss, saving, stopping, refused, trouble = self._buffer[-5:].tolist()
        return Agreed(loss, trouble > 0, saving > 0, stopping > 0, refused > 0)

    def clip_(self, max_norm: float) -> Tensor:
        """Scale down to a global norm of at most `max_norm`, as torch's `clip_grad_norm_`; return the norm before."""
        norm: Tensor = torch.linalg.vector_norm(self._flat)
        self._flat.mul_(torch.clamp(max_norm / (norm + 1e-6), max=1.0))
        return norm
