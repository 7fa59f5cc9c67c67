"""Who is compared, and the rounds in which they are measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any, Literal

from packs.ablations import ABLATIONS
from packs.pool import Arrangement, FailedError, Handle, Measurement, Pool, ask_all, measure
from packs.tasks import Device, Shape, Task

CHECK_STEPS = 3  # of everyone before anything is timed: this warms up, and all losses are compared
LEAST_STEPS = 2  # of a measurement
TOLERANCE = 1e-4  # relative, of a trial's mean training loss: what packs are promised to keep
ROUGH_TOLERANCE = 2e-2  # in bfloat16, and with dropout, whose masks peft draws otherwise
OUT_OF_MEMORY = ("OutOfMemory", "out_of_memory")  # in a worker's traceback

Group = Literal["solo", "pack", "peft_bound", "own_bound"]


@dataclass
class Contender:
    """One way to take trial-steps, and how fast it was."""

    group: Group
    k: int  # trial-steps that one optimizer step of all trials of a process stands for
    arrangement: Arrangement
    task: Task
    steps: int = LEAST_STEPS  # of a measurement
    rates: list[float] = field(default_factory=list)  # trial-steps per second, over all processes
    peak_bytes: int = 0
    notes: set[str] = field(default_factory=set)

    def train(self, pool: Pool, steps: int) -> Measurement:
        """Take so many steps of each trial, all processes at the same time."""
        found = measure(pool.workers(self.arrangement), replace(self.task, steps=steps))
        self.peak_bytes = max(self.peak_bytes, found.peak_bytes)
        self.notes.update(found.notes)
        return found

    def time(self, pool: Pool) -> None:
        """Take one measurement."""
        self.rates.append(self.arrangement.processes * self.k * self.steps / self.train(pool, self.steps).seconds)

    @property
    def name(self) -> str:
        compiled = ", compiled" if self.task.compiled else ""
        return f"{self.group}, K = {self.k}, {self.arrangement}{compiled}"

    @property
    def rate(self) -> float:
        """The median measurement."""
        return median(self.rates)

    def as_json(self) -> dict[str, Any]:
        """Everything that was measured, as plain values."""
        return {
            "group": self.group,
            "k": self.k,
            "arrangement": str(self.arrangement),
            **asdict(self.arrangement),
            "pass_tokens": self.task.pass_tokens,
            "compiled": self.task.compiled,
            "steps": self.steps,
            "rate": self.rate,
            "rates": self.rates,
            "peak_bytes": self.peak_bytes,
            "notes": sorted(self.notes),
        }


@dataclass(frozen=True)
class Entrants:
    """How trials that train alone, and packs, may share the machine. The first has all threads in one process."""

    device: Device
    solo: tuple[Arrangement, ...]
    packs: tuple[Arrangement, ...]
    compiled: tuple[bool, ...]  # (False,), or both where trials alone are also measured with `torch.compile`

    def exact(self, task: Task) -> bool:
        """Whether all contenders' losses agree but for float32's rounding."""
        return self.device == "cpu" and task.dropout == 0.0


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    steps: int  # of a trial in one measurement, at most
    seconds: float  # that a measurement should take
    repeats: int
    longest: float  # seconds that a step of all trials of a pack may take, one after the other


class MismatchError(Exception):
    """Two contenders don't train the same trials."""


class Contest:
    """Contenders who train the same trials, measured in turns."""

    def __init__(self, pool: Pool, effort: Effort, exact: bool) -> None:
        self._pool, self._effort, self._tolerance = pool, effort, TOLERANCE if exact else ROUGH_TOLERANCE
        self._losses: dict[tuple[int, int], float] = {}  # after the check, by rows of a step and number of the trial
        self.contenders: list[Contender] = []
        self.left_out: list[str] = []

    def enter(self, contender: Contender) -> float:
        """Let someone in after a check; return the seconds that a step of all its trials takes.

        Without enough memory it stays out, with infinity. Raises `MismatchError` for other losses than the others have.
        """
        try:
            if contender.task.compiled:
                contender.train(self._pool, CHECK_STEPS)  # the compiler's time isn't counted
            found = contender.train(self._pool, CHECK_STEPS)
        except FailedError as error:
            if not any(text in str(error) for text in OUT_OF_MEMORY):
                raise
            self.left_out.append(f"{contender.name}: out of memory")
            return math.inf
        for trial, loss in found.losses.items():
            expected = self._losses.setdefault((contender.task.rows, trial), loss)
            if not math.isclose(loss, expected, rel_tol=self._tolerance):
                raise MismatchError(f"{contender.name}: trial {trial} has the loss {loss}, elsewhere {expected}")
        seconds = found.seconds / CHECK_STEPS
        contender.steps = max(LEAST_STEPS, min(self._effort.steps, int(self._effort.seconds / seconds)))
        self.contenders.append(contender)
        return seconds

    def hold(self) -> None:
        """Measure everyone, in turns."""
        for _ in range(self._effort.repeats):
            for contender in self.contenders:
                contender.time(self._pool)


def compare(pool: Pool, entrants: Entrants, shape: Shape, task: Task, ks: Sequence[int], effort: Effort) -> Contest:
    """Trials alone, packs and their bounds."""
    contest = Contest(pool, effort, entrants.exact(task))
    step = min(contest.enter(contender) for contender in alone(entrants, task))
    for k in ks:
        if k * step > effort.longest:
            contest.left_out.append(f"K = {k}: {k} steps of trials alone take {k * step:.0f} seconds")
            continue
        for contender in packs_and_bounds(entrants, shape, task, k):
            contest.enter(contender)
    contest.hold()
    return contest


def alone(entrants: Entrants, task: Task) -> Iterator[Contender]:
    """Trials one after the other, in one process or in several at the same time."""
    for arrangement in entrants.solo:
        for compiled in entrants.compiled:
            yield Contender("solo", 1, arrangement, replace(task, compiled=compiled))


def packs_and_bounds(entrants: Entrants, shape: Shape, task: Task, k: int) -> Iterator[Contender]:
    """Packs of K trials, and one adapter and one optimizer on as many rows.

    Through peft these rows go in passes as large as a pack's, and in passes as large as one trial's: the faster counts.
    A pack of one has no bounds: it is the packed engine without packing.
    """
    many = replace(task, rows=k * task.rows)
    small = task.rows * shape.tokens
    for arrangement in entrants.packs:
        yield Contender("pack", k, arrangement, replace(task, kind="pack", trials=k))
        if k == 1:
            continue
        yield Contender("own_bound", k, arrangement, replace(many, kind="pack"))
        for compiled in entrants.compiled:
            yield Contender("peft_bound", k, arrangement, replace(many, compiled=compiled))
        if small < task.pass_tokens:
            yield Contender("peft_bound", k, arrangement, replace(many, pass_tokens=small))


def process_each(entrants: Entrants, load: tuple[Any, ...], task: Task) -> float:
    """Trial-steps per second of trials that each have a process of their own, whose start-up counts."""
    started = time.perf_counter()
    arrangement = max(entrants.solo, key=lambda arrangement: arrangement.processes)
    handles = [Handle(entrants.device, arrangement.threads) for _ in range(arrangement.processes)]
    try:
        ask_all(handles, load)
        measure(handles, task)
        return len(handles) * task.steps / (time.perf_counter() - started)
    finally:
        for handle in handles:
            handle.end()


def ablate(pool: Pool, entrants: Entrants, task: Task, effort: Effort) -> list[dict[str, Any]]:
    """How many times longer the pack `task` takes with one trick switched off at a time."""
    contest = Contest(pool, effort, entrants.exact(task))
    on_gpu = entrants.device == "cuda"  # where the base computes in bfloat16, which `grouped` products don't
    for name in (None, *(name for name in ABLATIONS if not (on_gpu and ABLATIONS[name].other_products))):
        contest.enter(Contender("pack", task.trials, entrants.packs[0], replace(task, ablation=name)))
    contest.hold()
    engine = contest.contenders[0].rate
    return [
        {"name": name, "words": ABLATIONS[name].words, "times": engine / contender.rate}
        for contender in contest.contenders
        if (name := contender.task.ablation) is not None
    ]
