"""The benchmark of the window: its simulation where the answer is known, and a quick run."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from finished_runs import BENCHMARKS

with mock.patch.object(sys, "path", [str(BENCHMARKS), *sys.path]):
    import window

TIMES = np.random.default_rng(3).lognormal(0.0, 0.7, 24)


def test_a_window_of_one_is_one_trial_after_the_other() -> None:
    for workers in (1, 4):
        assert window.in_window(TIMES, workers, 1) == pytest.approx(TIMES.sum())
    assert window.utilisation(TIMES, 4, window.in_window(TIMES, 4, 1)) == pytest.approx(1 / 4)


def test_without_spread_workers_stand_idle_only_for_want_of_a_window() -> None:
    alike = np.ones(24)
    for width in (1, 2, 3, 4, 6, 8, 24):
        assert window.in_window(alike, 4, width) == pytest.approx(24 / min(4, width))
    assert window.in_rounds(alike, 4) == 6


def test_one_worker_is_always_busy() -> None:
    for width in (1, 3, 24):
        assert window.in_window(TIMES, 1, width) == pytest.approx(TIMES.sum())
    assert window.in_rounds(TIMES, 1) == pytest.approx(TIMES.sum())


def test_a_trial_waits_for_all_that_its_proposal_sees() -> None:
    """By hand, two workers: trial 0 takes 5, the others 1. With window 2 trial 2 waits for trial 0, with 3 trial 3."""
    times = np.array([5.0, 1.0, 1.0, 1.0])
    assert window.in_window(times, 2, 2) == 6.0  # 2 and 3 start at 5
    assert window.in_window(times, 2, 3) == 6.0  # 2 starts at 1, 3 at 5
    assert window.in_window(times, 2, 4) == 5.0  # 3 starts at 2
    assert window.in_rounds(times, 2) == 6.0


def test_wider_windows_are_never_slower_and_the_widest_is_the_queue() -> None:
    """The queue by its definition: each trial goes to the worker that is free first."""
    ends = [window.in_window(TIMES, 4, width) for width in range(1, 25)]
    assert all(wider <= narrower + 1e-9 for narrower, wider in itertools.pairwise(ends))
    free = np.zeros(4)
    for seconds in TIMES:
        free[free.argmin()] += seconds
    assert ends[-1] == pytest.approx(free.max())
    assert window.in_rounds(TIMES, 4) >= ends[3]  # a window of as many as there are workers starts earlier than rounds


def test_a_quick_run_prints_every_policy() -> None:
    command = [sys.executable, str(BENCHMARKS / "window.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["regret"] == {}
    found = {(row["workers"], row["spread"], row["policy"]): row["utilisation"] for row in told["utilisation"]}
    assert len(found) == 3 * len(window.SPREADS) * 6
    assert all(0 < value <= 1 + 1e-9 for value in found.values())
    assert found[4, 0.5, "rounds"] < found[4, 0.5, "W = 2 x workers"] <= found[4, 0.5, "queue"]
    assert f"| 4 | 0.5 | {found[4, 0.5, f'W = {window.DEFAULT}']:.2f} |" in done.stdout


def test_regrets_come_from_the_transfer_benchmark(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "window.py"), "--quick", "--seeds", "1", "--jobs", "1"]
    command += ["--table", str(BENCHMARKS / "transfer_runs.parquet"), "--windows", "1", "4", "--methods", "random"]
    command += ["--cache", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    regret = json.loads(done.stdout.splitlines()[-1])["regret"]
    assert regret["1"] == regret["4"]  # uniform draws don't look at results
    assert regret["1"]["own"]["random"]["4"] >= regret["1"]["own"]["random"]["16"] >= 0
    assert "| own | random | 16 |" in done.stdout
