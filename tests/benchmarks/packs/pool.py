"""The benchmark's worker processes, and one measurement with some of them at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

from packs import worker
from packs.tasks import Device, Task
from packs.worker import Measured

PATIENCE = 30.0  # seconds for a worker to end in good order


class FailedError(Exception):
    """A worker's traceback."""


@dataclass(frozen=True)
class Arrangement:
    """How many processes train at the same time, with how many threads each."""

    processes: int
    threads: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True)
class Measurement:
    """What came of tasks that were done at the same time."""

    seconds: float  # from the first one's begin to the last one's end
    peak_bytes: int  # of all processes together
    losses: dict[int, float]  # of every trial
    notes: tuple[str, ...]


class Handle:
    """A worker process as its owner sees it."""

    def __init__(self, device: Device, threads: int) -> None:
        context = get_context("spawn")
        self._pipe, its_end = context.Pipe()
        self._process = context.Process(target=worker.serve, args=(its_end, device, threads), daemon=True)
        self._process.start()
        its_end.close()

    def order(self, name: str, *arguments: Any) -> None:
        """Have one of the worker's methods called."""
        self._pipe.send((name, arguments))

    def answer(self) -> Any:
        """What the method returned. Raises `FailedError` with the worker's traceback."""
        try:
            worked, result = self._pipe.recv()
        except EOFError:
            worked, result = False, "a worker ended; perhaps the system's memory ran out"
        if not worked:
            raise FailedError(result)
        return result

    def end(self) -> None:
        """No more orders."""
        self._pipe.close()
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()


class Pool:
    """Workers by their number of threads, started when they are first needed and then kept."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._handles: dict[int, list[Handle]] = {}

    def workers(self, arrangement: Arrangement) -> list[Handle]:
        """The workers of an arrangement."""
        kept = self._handles.setdefault(arrangement.threads, [])
        kept += [Handle(self._device, arrangement.threads) for _ in range(arrangement.processes - len(kept))]
        chosen = kept[: arrangement.processes]
        if idle := [handle for handle in self.all() if handle not in chosen]:
            ask_all(idle, ("forget",))  # what they hold of a GPU's memory would be missing
        return chosen

    def all(self) -> list[Handle]:
        """Every worker that was started."""
        return [handle for handles in self._handles.values() for handle in handles]

    def end(self) -> None:
        """End all workers."""
        for handle in self.all():
            handle.end()


def ask_all(handles: Sequence[Handle], *orders: tuple[Any, ...]) -> list[Any]:
    """Give each worker its order, or all of them the only one, and wait for their answers."""
    for handle, order in zip(handles, orders if len(orders) > 1 else orders * len(handles), strict=True):
        handle.order(*order)
    answers, failures = [], []
    for handle in handles:  # every answer is taken, so that the next order's is not mistaken for it
        try:
            answers.append(handle.answer())
        except FailedError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return answers


def measure(handles: Sequence[Handle], task: Task) -> Measurement:
    """Let each worker do the task with trials of its own, all beginning when the last one is ready."""
    ask_all(handles, *[("prepare", replace(task, first=index * task.trials)) for index in range(len(handles))])
    found: list[Measured] = ask_all(handles, ("run",))
    return Measurement(
        seconds=max(part.stop for part in found) - min(part.start for part in found),
        peak_bytes=sum(part.peak_bytes for part in found),
        losses={trial: loss for part in found for trial, loss in part.losses.items()},
        notes=tuple(note for part in found for note in part.notes),
    )
