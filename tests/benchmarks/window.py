"""The window of proposals: how busy it keeps workers, and what its staleness costs in regret.

    python tests/benchmarks/window.py [--draws 200] [--quick]
    python tests/benchmarks/window.py --steplaw steplaw_dense.csv --table tests/benchmarks/transfer_runs.parquet

With window W, proposal n sees the results of trials 0 to n - W, so trial n starts once these have ended, a worker is
free and trial n - 1 has started. An asynchronous queue (which isn't deterministic) waits for a worker alone;
synchronous rounds wait for all trials of the last round. Simulated are `--per-worker` trials for each worker; their
times are log-normal, with σ for spread, and proposals take none. Utilisation is the trials' time over that of all
workers until the last one ends; the median over draws counts, and all policies have the same draws.

With `--steplaw` or `--table` the transfer benchmark is replayed with each of `--windows`, by `transfer.py`, whose cache
`--cache` is. The last line is JSON.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from understudy.stages import TargetSettings

WORKERS = (1, 2, 4, 8, 16, 32, 64)
SPREADS = (0.0, 0.25, 0.5, 1.0)
FACTORS = (1, 2, 4)  # windows in workers
WINDOWS = (1, 2, 4, 8, 16)
METHODS = ("understudy_two_fidelity", "understudy_tpe")
SETS = ("matched", "own")
AFTER = ("4", "8", "16")  # target runs
DEFAULT: int = TargetSettings.model_fields["window"].default
QUICK: dict[str, Any] = {"workers": (1, 2, 4), "draws": 5, "per_worker": 8}

Times = NDArray[np.float64]


def main() -> None:
    """Simulate, replay, print."""
    options = arguments(sys.argv[1:])
    utilisations = [
        row | {"workers": workers, "spread": spread}
        for workers in options.workers
        for spread in SPREADS
        for row in simulated(workers, spread, options.per_worker * workers, options.draws)
    ]
    print_utilisations(utilisations, options)
    regrets = {window: replayed(window, options) for window in options.windows} if replays(options) else {}
    print_regrets(regrets)
    told = {"options": vars(options), "utilisation": utilisations, "regret": regrets}
    print(json.dumps(told, default=str))


def simulated(workers: int, spread: float, trials: int, draws: int) -> list[dict[str, Any]]:
    """The median utilisation under each policy."""
    windows = {f"W = {DEFAULT}": DEFAULT} | {f"W = {factor} x workers": factor * workers for factor in FACTORS}
    found: dict[str, list[float]] = {name: [] for name in (*windows, "queue", "rounds")}
    for draw in range(draws):
        times = np.random.default_rng(draw).lognormal(0.0, spread, trials)
        for name, window in windows.items():
            found[name].append(utilisation(times, workers, in_window(times, workers, window)))
        found["queue"].append(utilisation(times, workers, in_window(times, workers, trials)))
        found["rounds"].append(utilisation(times, workers, in_rounds(times, workers)))
    return [{"policy": name, "utilisation": float(np.median(values))} for name, values in found.items()]


def in_window(times: Times, workers: int, window: int) -> float:
    """When the last of the trials ends; with a window of all trials it is the asynchronous queue."""
    free = [0.0] * workers
    before, ended = 0.0, []  # the last start; when all of trials 0 to n have ended
    for number, seconds in enumerate(times.tolist()):
        start = max(before, heapq.heappop(free))
        if number >= window:
            start = max(start, ended[number - window])
        heapq.heappush(free, start + seconds)
        ended.append(max(start + seconds, ended[-1] if ended else 0.0))
        before = start
    return ended[-1]


def in_rounds(times: Times, workers: int) -> float:
    """When the last round ends."""
    return float(sum(times[first : first + workers].max() for first in range(0, len(times), workers)))


def utilisation(times: Times, workers: int, end: float) -> float:
    """The workers' share of the time in which they train."""
    return float(times.sum()) / (workers * end)


def replays(options: argparse.Namespace) -> bool:
    """Whether there is a table to replay."""
    return bool(options.steplaw or options.table)


def replayed(window: int, options: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """The mean relative regret in percent with a window: by set, method and number of target runs."""
    command = [sys.executable, str(Path(__file__).parent / "transfer.py"), "--window", str(window)]
    command += [
        "--seeds",
        str(options.seeds),
        "--jobs",
        str(options.jobs),
        "--lead",
        options.methods[0],
        "--methods",
        *options.methods,
        "--sets",
        *SETS,
    ]
    command += ["--cache", str(options.cache)] if options.cache else []
    found: dict[str, dict[str, dict[str, float]]] = {}
    for given in (["--steplaw", options.steplaw], ["--table", options.table, "--half", "both"]):
        if given[1] is None:
            continue
        done = subprocess.run([*command, *map(str, given)], check=True, stdout=subprocess.PIPE, text=True)
        for name, report in json.loads(done.stdout.splitlines()[-1])["sets"].items():
            found[name] = {
                method: {after: regret[after]["mean"] for after in AFTER} for method, regret in report["regret"].items()
            }
    return found


def print_utilisations(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """One table: workers and spreads down, policies across."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    print(f"utilisation, median of {options.draws} draws of {options.per_worker} trials per worker")
    print("| workers | σ | " + " | ".join(policies) + " |\n|--:|--:|" + "--:|" * len(policies))
    for place in range(0, len(rows), len(policies)):
        line = rows[place : place + len(policies)]
        cells = " | ".join(f"{row['utilisation']:.2f}" for row in line)
        print(f"| {line[0]['workers']} | {line[0]['spread']:g} | {cells} |")


def print_regrets(regrets: dict[int, dict[str, dict[str, dict[str, float]]]]) -> None:
    """One table: sets, methods and numbers of runs down, windows across."""
    if not regrets:
        return
    print("\nmean relative regret in percent after k target runs, by window")
    print("| set | method | k | " + " | ".join(f"W = {window}" for window in regrets) + " |")
    print("|---|---|--:|" + "--:|" * len(regrets))
    for name, methods in next(iter(regrets.values())).items():
        for method in methods:
            for after in AFTER:
                cells = " | ".join(f"{found[name][method][after]:.3f}" for found in regrets.values())
                print(f"| {name} | {method} | {after} | {cells} |")


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--workers", type=int, nargs="+", default=WORKERS)
    add("--draws", type=int, default=200)
    add("--per-worker", type=int, default=16, help="trials for each worker")
    add("--steplaw", type=Path, help="the Step Law table, a CSV file")
    add("--table", type=Path, help="a table of fine-tuning runs")
    add("--windows", type=int, nargs="+", default=WINDOWS, help="to replay")
    add("--methods", nargs="+", default=METHODS)
    add("--seeds", type=int, default=5, help="of replays")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes of replays")
    add("--cache", type=Path, help="folder of finished replays")
    add("--quick", action="store_true", help="a few draws: whether it runs")
    options = parser.parse_args(given)
    if options.quick:
        vars(options).update(QUICK)
    return options


if __name__ == "__main__":
    main()
