"""How far a study is: every finished trial is a line in `progress.jsonl`, and a line on the terminal."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from understudy import disk
from understudy.errors import UnderstudyError
from understudy.files import read_model
from understudy.pace import Outlook, Pace
from understudy.paths import StudyPaths
from understudy.trial import ModelCard, TrialRecord

STAGES = ("proxy", "truncated", "target", "finalist")
FOLLOW_SECONDS = 2.0
ENDINGS = {  # of trials without a loss, by status
    "stopped": "stopped early",
    "diverged": "diverged",
    "out_of_memory": "out of memory",
    "failed": "failed",
    "skipped": "skipped",
}

START_LINE: dict[str, Any] = {"time": float, "totals": dict, "workers": int}
END_LINE: dict[str, Any] = {"time": float, "through": bool}
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


def terminal() -> TextIO:
    """Where progress is shown."""
    return _terminal


def tell(text: str) -> None:
    """Print a sentence on the terminal, and in the log where there is one."""
    for stream in {_terminal, sys.stderr}:
        print(text, file=stream, flush=True)


def start(
    path: Path,
    totals: dict[str, int],
    workers: int,
    side_by_side: dict[str, int] | None = None,
    costs: dict[str, float] | None = None,
    renewed: Iterable[Path] = (),
) -> None:
    """Note that a run of the workflow begins, how many trials each stage has in all, and how many run side by side.

    `workers` goes for stages that `side_by_side` leaves out; `costs` are as in `abreast.costs`. `renewed` are files of
    which this run makes new ones: trials in them aren't finished any more.
    """
    begun = {"event": "start", "time": time.time(), "totals": totals, "workers": workers}
    begun |= {"side_by_side": side_by_side or {}, "costs": costs or {}}
    _append(path, {**begun, "renewed": sorted({id for file in renewed for id in _trials_in(file)})})


def end(path: Path, through: bool) -> None:
    """Note that a run of the workflow ends. `through`: nothing that it was asked for is left to do."""
    _append(path, {"event": "end", "time": time.time(), "through": through})


def _trials_in(path: Path) -> list[str]:
    """The ids of the trials in a file of results; none in any other file."""
    if path.name not in ("result.json", "results.json"):
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [record["spec"]["id"] for record in found.get("records", [found])]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not there, or not whole
        return []


def finished(path: Path, record: TrialRecord, reused: bool, held: float = 0.0) -> None:
    """Note a finished trial and show the study's progress.

    `reused`: it came from the store. `held`: for how many seconds it has had its worker, where it had one to itself;
    starting and loading take a large part of a short trial, and aren't in what it cost.
    """
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
            "wall_seconds": max(result.cost.wall_seconds, held),
            "reused": reused,
        },
    )
    print(_reader(path).read().line(record.spec.stage), file=_terminal, flush=True)


def note(path: Path, text: str) -> None:
    """Print a sentence as `tell` does, and let a main process show it whose jobs run elsewhere."""
    tell(text)
    _append(path, {"event": "note", "time": time.time(), "text": text})


def follow(path: Path) -> None:
    """Show every trial that finishes from now on, and every note, for a main process whose jobs run elsewhere.

    In the background.
    """
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
            for text in _found(whole, "text"):
                print(text, file=_terminal, flush=True)
            for stage in dict.fromkeys(_found(whole, "stage")):
                print(state(path).line(stage), file=_terminal, flush=True)

    threading.Thread(target=watch, name="follow-progress", daemon=True).start()


def _found(text: bytes, name: str) -> Iterator[str]:
    """A field of those lines of the log that have it: trials have a `stage`, notes a `text`."""
    for line in text.splitlines():
        with suppress(ValueError, KeyError, TypeError):  # cut off by a kill, or altered
            found = json.loads(line)[name]
            if isinstance(found, str):
                yield found


@dataclass
class Stage:
    """A stage's finished trials. What they add up to is kept, so that a further one costs the same in large studies."""

    trials: dict[str, tuple[float | None, str]] = field(default_factory=dict)  # by id: objective and status
    best: tuple[float, str] | None = None  # objective and id
    without_loss: Counter[str] = field(default_factory=Counter)  # trials by status, of those in `ENDINGS`
    pace: Pace = field(default_factory=Pace)

    def add(self, line: dict[str, Any]) -> None:
        """Count a trial; the last line of an id counts, but each of this run's towards the pace."""
        id, found = line["id"], (line["objective"], line["status"])
        if not line["reused"] and line["status"] != "skipped":
            self.pace.add(line["wall_seconds"], line["time"])
        if id in self.trials and self.trials[id] != found:
            self.trials[id] = found
            self._add_up()
        elif id not in self.trials:
            self.trials[id] = found
            self.without_loss.update({line["status"]} & ENDINGS.keys())
            if line["objective"] is not None:
                self.best = min(self.best or (math.inf, ""), (line["objective"], id))

    def begin(self, renewed: Collection[str]) -> None:
        """A run of the workflow begins, which trains some trials anew."""
        self.pace = Pace()
        if renewed and not self.trials.keys().isdisjoint(renewed):
            self.trials = {id: found for id, found in self.trials.items() if id not in renewed}
            self._add_up()

    def _add_up(self) -> None:
        self.best = min(((loss, id) for id, (loss, _) in self.trials.items() if loss is not None), default=None)
        self.without_loss = Counter(status for _, status in self.trials.values() if status in ENDINGS)


@dataclass
class State:
    """The progress of a study, read from its log."""

    totals: dict[str, int] = field(default_factory=dict)
    side_by_side: dict[str, int] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    size_ratio: float | None = None  # the target's parameters per one of the proxy's, once both models are prepared
    started: float = 0.0
    now: float = 0.0
    last: float = 0.0  # time of the last line
    through: bool | None = None  # how the last run ended; None where it hasn't, or was killed
    under_way: bool = True
    stages: dict[str, Stage] = field(default_factory=lambda: defaultdict(Stage))

    def begin(self, line: dict[str, Any]) -> None:
        """A run of the workflow begins; what was finished before says nothing of its pace."""
        self.started, self.totals, self.through = line["time"], line["totals"], None
        known = _numbers(line.get("side_by_side"))  # a program of another version left none
        self.side_by_side = {stage: max(1, int(known.get(stage, line["workers"]))) for stage in STAGES}
        self.costs = {stage: cost for stage, cost in _numbers(line.get("costs")).items() if cost > 0}
        renewed = frozenset(id for id in line.get("renewed") or () if isinstance(id, str))
        for stage in self.stages.values():
            stage.begin(renewed)

    def at_rest(self) -> State:
        """The same where no run is under way: time stands still, and nothing is about to end."""
        self.now, self.under_way = self.last, False
        return self

    def line(self, stage: str) -> str:
        """One line: trials done of how many, the stage's best so far, time passed and about how much is left."""
        found = self.stages[stage]
        best_text = f"best {found.best[0]:.4f} ({found.best[1]})" if found.best else "no loss yet"
        count = len(found.trials)
        done = f"{count:>3} of {max(self.totals.get(stage, 0), count)} trials"
        if found.without_loss:
            ends = (f"{found.without_loss[status]} {text}" for status, text in ENDINGS.items())
            done += f" ({', '.join(end for end in ends if not end.startswith('0 '))})"
        left = self.seconds_left() if self.under_way else None
        left_text = "" if left is None else f" · about {_clock(left)} left"
        passed = f" · {_clock(max(0.0, self.now - self.started))} passed" if self.started else ""
        return f"{stage:<9} {done} · {best_text:<22}{passed}{left_text}"

    def seconds_left(self) -> float | None:
        """An estimate from the pace of this run's trials, in each stage for itself; None while too little is known."""
        left = {name: max(0, self.totals.get(name, 0) - len(self.stages[name].trials)) for name in STAGES}
        outlook = Outlook(self.side_by_side, self.costs, self.size_ratio)
        return outlook.seconds_left(left, {name: self.stages[name].pace for name in STAGES})


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
        if self._state.size_ratio is None:
            self._state.size_ratio = _size_ratio(StudyPaths(self._path.parent))
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
            elif _fits(line, END_LINE):
                found.through = line["through"]
            elif _fits(line, TRIAL_LINE):
                found.stages[line["stage"]].add(line)
            else:
                continue
            found.last = line["time"]


def _size_ratio(paths: StudyPaths) -> float | None:
    """The target's parameters per one of the proxy's; None until both models are prepared."""
    try:
        proxy, target = (read_model(paths.model(role), ModelCard).computing_parameters for role in ("proxy", "target"))
    except (UnderstudyError, OSError):  # not there yet, or not to be read just now
        return None
    return target / proxy if proxy and target else None


def _numbers(found: Any) -> dict[str, float]:
    """The numbers of a mapping that a file held; none of anything else."""
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, int | float) and math.isfinite(value)}


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
