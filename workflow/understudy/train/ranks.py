"""The processes that train one trial together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from understudy.train.memory import OutOfMemoryError, is_out_of_memory, reason

CHUNK = 2**25  # elements that are summed over the ranks at once: 128 MiB of float32


@dataclass(frozen=True)
class Ranks:
    """This process's place among all of them. One process alone needs no process group."""

    index: int = 0
    count: int = 1

    def meet(self, device: torch.device) -> None:
        """Wait until every rank is there.

        NCCL connects at the first sum. Where a firewall or a wrong network card keeps it from that, it shows now, under
        the watchdog, rather than after minutes of loading, when waiting for others is nothing unusual.
        """
        self.largest(0, device)

    def sum_(self, values: Tensor) -> None:
        """Add up a flat tensor over all ranks, in place. Every rank gets the same bits."""
        if self.count > 1:
            for chunk in torch.split(values, CHUNK):
                distributed.all_reduce(chunk)

    def largest(self, value: int, device: torch.device) -> int:
        """The largest of all ranks' values."""
        if self.count == 1:
            return value
        found = torch.tensor([value], dtype=torch.int64, device=device)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return int(found.item())

    def gather(self, values: bytes, device: torch.device) -> list[bytes]:
        """The bytes of every rank, in order; all have as many."""
        if self.count == 1:
            return [values]
        found = torch.zeros(self.count, len(values), dtype=torch.int64, device=device)
        found[self.index] = torch.tensor(list(values), dtype=torch.int64, device=device)
        distributed.all_reduce(found)
        return [bytes(row) for row in found.tolist()]


@contextmanager
def telling(trouble: Tensor | None) -> Iterator[None]:
    """Set `trouble` to 1 when memory runs out inside, instead of raising.

    The others wait for this rank in the next sum: it has to get there, and carries the news along. Without `trouble`
    it can't get there, as the others wait in between as well: then it raises `OutOfMemoryError`.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if trouble is None:
            raise OutOfMemoryError(f"memory ran out: {reason(error)}") from error
        trouble.fill_(1)
