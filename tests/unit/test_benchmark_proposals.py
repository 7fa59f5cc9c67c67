"""The benchmark of a proposal's time runs. How long anything takes isn't tested here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "proposals.py"


def test_a_small_run_times_every_sampler() -> None:
    command = [sys.executable, str(SCRIPT), "--proxy-trials", "20", "--target-trials", "2", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    seconds = json.loads(done.stdout.splitlines()[-1])["seconds"]
    assert set(seconds) == {"two_fidelity", "two_fidelity, 8 truncated runs", "gp", "tpe", "random"}
    for row in seconds.values():
        assert row["proposal"] > 0
        assert row["command"] > 0.2  # a process was started
