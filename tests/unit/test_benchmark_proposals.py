"""The benchmark of a proposal's time runs, and the command that it times keeps to its limit."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import finished_runs
import proposals

SCRIPT = finished_runs.BENCHMARKS / "proposals.py"


def test_a_small_run_times_every_sampler() -> None:
    command = [sys.executable, str(SCRIPT), "--proxy-trials", "20", "--target-trials", "2", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    seconds = json.loads(done.stdout.splitlines()[-1])["seconds"]
    assert set(seconds) == {"two_fidelity", "two_fidelity, 8 truncated runs", "gp", "tpe", "random"}
    for row in seconds.values():
        assert row["proposal"] > 0
        assert row["command"] > 0.2  # a process was started


@pytest.mark.nightly
def test_the_whole_command_takes_at_most_five_seconds(tmp_path: Path) -> None:
    """Of a processor, imports included, with 1,000 proxy trials and 100 finished ones."""
    options = argparse.Namespace(proxy_trials=1000, target_trials=100)
    study = proposals.prepare(tmp_path, "two_fidelity", 0, options)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    proposals.whole(study)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert json.loads((tmp_path / "proposal.json").read_bytes())["kind"] == "guided"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
