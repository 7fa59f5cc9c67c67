"""How far a study is: every finished trial is a line in `progress.jsonl`, and a line on the terminal."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import threading
import time
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
class State:
    """The progress of a study, read from its log."""

    totals: dict[str, int] = field(default_factory=dict)
    workers: int = 1
    started: float = 0.0
    now: float = 0.0
    trials: dict[str, dict[str, Any]] = field(default_factory=dict)  # by id; the last line of an id counts
    earlier: set[str] = field(default_factory=set)  # ids of those that were noted before this run began

    def of(self, stage: str) -> list[dict[str, Any]]:
        """The finished trials of a stage."""
        return [trial for trial in self.trials.values() if trial["stage"] == stage]

    def line(self, stage: str) -> str:
        """One line: trials done of how many, the stage's best so far, time passed and about how much is left."""
        finished = self.of(stage)
        scored = [trial for trial in finished if trial["objective"] is not None]
        best = min(scored, key=lambda trial: (trial["objective"], trial["id"]), default=None)
        best_text = f"best {best['objective']:.4f} ({best['id']})" if best else "no loss yet"
        done = f"{len(finished):>3} of {max(self.totals.get(stage, 0), len(finished))} trials"
        stopped = sum(trial["status"] == "stopped" for trial in finished)
        if stopped:
            done += f" ({stopped} stopped early)"
        left = self.seconds_left()
        left_text = "" if left is None else f" · about {_clock(left)} left"
        passed = f" · {_clock(max(0.0, self.now - self.started))} passed" if self.started else ""
        return f"{stage:<9} {done} · {best_text:<22}{passed}{left_text}"

    def seconds_left(self) -> float | None:
        """An estimate from the pace of this run's trials, in each stage for itself."""
        fresh = [trial for trial in self.trials.values() if not trial["reused"] and trial["id"] not in self.earlier]
        if not fresh:
            return None
        by_stage = {stage: [trial for trial in fresh if trial["stage"] == stage] for stage in STAGES}
        known = {stage: _pace(trials, self.workers) for stage, trials in by_stage.items() if trials}
        proxy = known.get("proxy") or _pace(fresh, self.workers)
        target = known.get("target") or known.get("finalist") or TARGET_GUESS * proxy
        paces = {"proxy": proxy, "truncated": target, "target": target, "finalist": target, **known}
        return sum(max(self.totals.get(stage, 0) - len(self.of(stage)), 0) * pace for stage, pace in paces.items())


def _pace(trials: list[dict[str, Any]], workers: int) -> float:
    """Seconds from one finished trial to the next, start-up of processes included; at first a guess."""
    times = sorted(trial["time"] for trial in trials)
    own = sum(trial["wall_seconds"] for trial in trials) / len(trials)
    return own / workers if len(times) < 3 else float((times[-1] - times[0]) / (len(times) - 1))


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
                found.started, found.totals, found.workers = line["time"], line["totals"], line["workers"]
                found.earlier = set(found.trials)
            elif _fits(line, TRIAL_LINE):
                found.trials[line["id"]] = line
                found.earlier.discard(line["id"])


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
