"""How far a study is: every finished trial is a line in `progress.jsonl`, and a line on the terminal."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from understudy import disk
from understudy.trial import TrialRecord

STAGES = ("proxy", "truncated", "target", "finalist")
FOLLOW_SECONDS = 2.0
TARGET_GUESS = 5.0  # proxy trials that a target trial is taken to last, until one has finished

START_LINE: dict[str, Any] = {"time": float, "totals": dict, "workers": int}
TRIAL_LINE: dict[str, Any] = {
    "time": float,
    "stage": str,
    "id": str,
    "status": str,
    "objective": float | None,
    "wall_seconds": float | int,
    "reused": bool,
}

_terminal: TextIO = sys.stderr


def set_terminal(stream: TextIO) -> None:
    """Where progress is shown when the process's own output goes to a log."""
    global _terminal
    _terminal = stream


def tell(text: str) -> None:
    """Print a sentence on the terminal, and in the log where there is one."""
    for stream in {_terminal, sys.stderr}:
        print(text, file=stream, flush=True)


def hush(logger: logging.Logger) -> None:
    """Drop Snakemake's lines that would bury the commands' own.

    These are two lines per job, and the call of a command that failed with a message (exit codes 1 and 2). A command
    that was killed has said nothing, so there Snakemake's words stay.
    """
    lines = ("Select jobs to execute", "Execute ")

    def is_news(record: logging.LogRecord) -> bool:
        text = str(record.msg)
        explained = "RuleException" in text and "returned non-zero exit status" in text
        return not (text.startswith(lines) or explained)

    logger.addFilter(is_news)


def start(path: Path, totals: dict[str, int], workers: int) -> None:
    """Note that a run of the workflow begins, how many trials each stage has in all, and how many run side by side."""
    _append(path, {"event": "start", "time": time.time(), "totals": totals, "workers": workers})


def finished(path: Path, record: TrialRecord, reused: bool) -> None:
    """Note a finished trial and show the study's progress. `reused`: it came from the store."""
    result = record.result
    _append(
        path,
        {
            "event": "trial",
            "time": time.time(),
            "stage": record.spec.stage,
            "id": record.spec.id,
            "status": result.status,
            "objective": result.objective,
            "wall_seconds": result.cost.wall_seconds,
            "reused": reused,
        },
    )
    print(_reader(path).read().line(record.spec.stage), file=_terminal, flush=True)


def follow(path: Path) -> None:
    """Show every trial that finishes from now on, for a main process whose jobs run elsewhere; in the background."""
    begun = path.stat().st_size if path.exists() else 0

    def watch() -> None:
        shown = begun
        while True:
            time.sleep(FOLLOW_SECONDS)
            with path.open("rb") as handle:
                handle.seek(shown)
                fresh = handle.read()
            whole = fresh[: fresh.rfind(b"\n") + 1]
            shown += len(whole)
            for stage in dict.fromkeys(_stages(whole)):
                print(state(path).line(stage), file=_terminal, flush=True)

    threading.Thread(target=watch, name="follow-progress", daemon=True).start()


def _stages(text: bytes) -> Iterator[str]:
    """The stage of each finished trial in some lines of the log."""
    for line in text.splitlines():
        with suppress(json.JSONDecodeError, KeyError, TypeError):
            yield json.loads(line)["stage"]


@dataclass
class Pace:
    """How fast this run's trials of a stage came."""

    trials: int = 0
    work: float = 0.0  # seconds that they took, summed
    first: float = math.inf  # when the first one ended
    last: float = -math.inf

    def __add__(self, other: Pace) -> Pace:
        first, last = min(self.first, other.first), max(self.last, other.last)
        return Pace(self.trials + other.trials, self.work + other.work, first, last)

    def seconds(self, workers: int) -> float:
        """From one finished trial to the next, start-up of processes included; at first a guess."""
        if self.trials < 3:
            return self.work / self.trials / workers
        return (self.last - self.first) / (self.trials - 1)


@dataclass
class Stage:
    """A stage's finished trials. What they add up to is kept, so that a further one costs the same in large studies."""

    trials: dict[str, tuple[float | None, str]] = field(default_factory=dict)  # by id: objective and status
    best: tuple[float, str] | None = None  # objective and id
    stopped: int = 0
    pace: Pace = field(default_factory=Pace)

    def add(self, line: dict[str, Any]) -> None:
        """Count a trial; the last line of an id counts, but each of this run's towards the pace."""
        id, found = line["id"], (line["objective"], line["status"])
        if not line["reused"]:
            self.pace += Pace(1, line["wall_seconds"], line["time"], line["time"])
        if id in self.trials and self.trials[id] != found:
            self.trials[id] = found
            self.best = min(((loss, id) for id, (loss, _) in self.trials.items() if loss is not None), default=None)
            self.stopped = sum(status == "stopped" for _, status in self.trials.values())
        elif id not in self.trials:
            self.trials[id] = found
            self.stopped += line["status"] == "stopped"
            if line["objective"] is not None:
                self.best = min(self.best or (math.inf, ""), (line["objective"], id))


@dataclass
class State:
    """The progress of a study, read from its log."""

    totals: dict[str, int] = field(default_factory=dict)
    workers: int = 1
    started: float = 0.0
    now: float = 0.0
    stages: dict[str, Stage] = field(default_factory=lambda: defaultdict(Stage))

    def begin(self, line: dict[str, Any]) -> None:
        """A run of the workflow begins; what was finished before says nothing of its pace."""
        self.started, self.totals, self.workers = line["time"], line["totals"], line["workers"]
        for stage in self.stages.values():
            stage.pace = Pace()

    def line(self, stage: str) -> str:
        """One line: trials done of how many, the stage's best so far, time passed and about how much is left."""
        found = self.stages[stage]
        best_text = f"best {found.best[0]:.4f} ({found.best[1]})" if found.best else "no loss yet"
        count = len(found.trials)
        done = f"{count:>3} of {max(self.totals.get(stage, 0), count)} trials"
        if found.stopped:
            done += f" ({found.stopped} stopped early)"
        left = self.seconds_left()
        left_text = "" if left is None else f" · about {_clock(left)} left"
        passed = f" · {_clock(max(0.0, self.now - self.started))} passed" if self.started else ""
        return f"{stage:<9} {done} · {best_text:<22}{passed}{left_text}"

    def seconds_left(self) -> float | None:
        """An estimate from the pace of this run's trials, in each stage for itself."""
        known = {name: stage.pace.seconds(self.workers) for name, stage in self.stages.items() if stage.pace.trials}
        if not known:
            return None
        every = sum((stage.pace for stage in self.stages.values()), Pace())
        proxy = known.get("proxy") or every.seconds(self.workers)
        target = known.get("target") or known.get("finalist") or TARGET_GUESS * proxy
        paces = {"proxy": proxy, "truncated": target, "target": target, "finalist": target, **known}
        return sum(
            max(self.totals.get(name, 0) - len(self.stages[name].trials), 0) * pace for name, pace in paces.items()
        )


def state(path: Path) -> State:
    """Read a study's progress. Lines of other runs count as finished, but not towards the speed.

    It is only shown, so lines that a kill cut off or that were altered are passed over. What belongs to this run is
    told by the order of lines: the clock may have been set since, or differ between hosts.
    """
    return _Reader(path).read()


class _Reader:
    """Reads a study's log from where it stopped the last time: a pack would else read it anew for every trial."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._state = path, 0, State()

    def read(self) -> State:
        if self._path.exists():
            with self._path.open("rb") as handle:
                handle.seek(self._offset)
                whole, _, _ = handle.read().rpartition(b"\n")  # the last line may be on its way
            if whole:
                self._offset += len(whole) + 1
                self._add(whole.decode("utf-8", errors="replace").splitlines())
        self._state.now = time.time()
        return self._state

    def _add(self, lines: list[str]) -> None:
        found = self._state
        for text in lines:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:  # cut off by a kill, or altered
                continue
            if _fits(line, START_LINE):
                found.begin(line)
            elif _fits(line, TRIAL_LINE):
                found.stages[line["stage"]].add(line)


@functools.cache
def _reader(path: Path) -> _Reader:
    return _Reader(path)


def _fits(line: Any, kinds: dict[str, Any]) -> bool:
    return isinstance(line, dict) and all(isinstance(line.get(key), kind) for key, kind in kinds.items())


def _append(path: Path, line: dict[str, Any]) -> None:
    """Add a line. Raises `StorageError` where the disk doesn't take it."""
    with disk.reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            cut_off = size > 0 and os.pread(handle, 1, size - 1) != b"\n"  # by a full disk: that line alone is lost
            text = "\n" * cut_off + json.dumps(line) + "\n"
            os.write(handle, text.encode())  # one write of one short line: whole, also beside other writers
        finally:
            os.close(handle)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
