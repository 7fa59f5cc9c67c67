"""Replays over processes, and the folder of finished ones: a run that is there isn't done again.

A file per (method, task) holds a line of JSON per seed. Its name says everything that could change the runs in it. One
job owns a file, so no line is ever torn but by a kill, and a torn line is left out.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from replays.methods import Entry
from replays.replay import Run, replay
from replays.tasks import Problem


@dataclass(frozen=True)
class Terms:
    """What all replays have in common."""

    seeds: int
    trials: int
    window: int
    proxy_trials: int


@dataclass(frozen=True)
class Job:
    """A method on a task, with all seeds."""

    entry: Entry
    problem: Problem
    terms: Terms
    file: Path

    @property
    def name(self) -> tuple[str, str]:
        return self.entry.name, self.problem.id


def job(entry: Entry, problem: Problem, terms: Terms, cache: Path) -> Job:
    """The job; methods that don't look at the proxy share their runs between tasks with the same target runs."""
    parts: list[object] = [problem.table, problem.names, _plain(problem.space), problem.keys, problem.target]
    parts += [problem.defaults, problem.default, problem.rule, terms.trials, terms.window]
    if entry.proxy:
        parts += [
            problem.source,
            problem.task.lie,
            dict(problem.scale),
            problem.grid,
            terms.proxy_trials,
            problem.tokens,
        ]
        parts += [card.model_dump() for card in problem.cards]
    if entry.truncated:
        parts.append(problem.truncated)
    name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    label = problem.task.id if entry.proxy else problem.task.target
    return Job(entry, problem, terms, cache / f"{entry.name}-{entry.version()}" / f"{label}-{name}.jsonl")


def _plain(space: object) -> dict[str, object]:
    assert isinstance(space, dict)
    return {name: repr(parameter) for name, parameter in space.items()}


def finished(job: Job) -> dict[int, Run]:
    """The runs in the job's file by seed."""
    found: dict[int, Run] = {}
    for line in job.file.read_text(encoding="utf-8").splitlines() if job.file.exists() else []:
        try:
            told = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[told["seed"]] = Run(told["seed"], tuple(told["indices"]), tuple(told["seconds"]))
    return found


def work(job: Job) -> None:
    """Do the job's missing runs."""
    done = finished(job)
    job.file.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(job.terms.seeds):
        if seed in done:
            continue
        terms = job.terms
        run = replay(job.problem, job.entry.make(), seed, terms.trials, terms.window, terms.proxy_trials)
        with job.file.open("a", encoding="utf-8") as file:
            file.write("\n" * _torn(job.file) + json.dumps(asdict(run)) + "\n")


def _torn(file: Path) -> bool:
    """Whether a file ends within a line."""
    text = file.read_bytes() if file.exists() else b""
    return bool(text) and not text.endswith(b"\n")


def run_all(jobs: Sequence[Job], processes: int) -> dict[tuple[str, str], dict[int, Run]]:
    """The runs of every (method, task), those that are missing done first; jobs of one file after each other."""
    missing = {job.file: job for job in jobs if len(_wanted(job)) < job.terms.seeds}
    began = time.perf_counter()
    if processes == 1:
        for number, each in enumerate(missing.values(), 1):
            work(each)
            _tell(number, len(missing), each, began)
    elif missing:
        with _pool(processes) as pool:
            waiting = {pool.submit(work, each): each for each in missing.values()}
            for number, future in enumerate(as_completed(waiting), 1):
                future.result()
                _tell(number, len(missing), waiting[future], began)
    return {job.name: _wanted(job) for job in jobs}


def _wanted(job: Job) -> dict[int, Run]:
    return {seed: run for seed, run in sorted(finished(job).items()) if seed < job.terms.seeds}


def _pool(processes: int) -> ProcessPoolExecutor:
    """Workers with one thread each: libraries read these variables when they are loaded."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))


def _tell(number: int, count: int, job: Job, began: float) -> None:
    seconds = time.perf_counter() - began
    print(f"{number}/{count} after {seconds:.0f} s: {' on '.join(job.name)}", file=sys.stderr, flush=True)
