"""The benchmark of the workflow's own cost runs, and its figures are what they say. No time is tested."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml

from finished_runs import BENCHMARKS

with mock.patch.object(sys, "path", [str(BENCHMARKS), *sys.path]):
    import overhead
    import overhead_process
    import overhead_study

PATHS = overhead_study.StudyPaths


def test_exponents_are_those_of_powers() -> None:
    counts = [10, 100, 1000, 10_000]
    for power in (0.0, 1.0, 2.0):
        assert overhead.exponent(counts, [3 * n**power for n in counts]) == pytest.approx(power)
    with_logarithm = overhead.exponent(counts, [n * math.log(n) for n in counts])
    assert 1.1 < with_logarithm < 1.3
    assert math.isnan(overhead.exponent([10, 10], [1.0, 2.0]))


def test_sizes() -> None:
    found = overhead_study.sizes(["10", "10000", "1000x50", "7x0"])
    assert [(each.proxy, each.target) for each in found] == [(10, 6), (10_000, 200), (1000, 50), (7, 0)]
    assert found[1].name == "10000x200"


def test_studies_have_as_many_trials_as_their_size_says(tmp_path: Path) -> None:
    for proxy, target in ((10, 4), (101, 20)):
        raw = overhead_study.raw_config(overhead_study.Size(proxy, target), tmp_path / "study", "tpe")
        totals = overhead_study.graph.totals(overhead_study.parse(raw))
        assert totals["proxy"] == proxy + target  # the echoes
        assert totals["target"] == target


def test_a_process_is_watched_without_its_children(tmp_path: Path) -> None:
    child = "x = bytearray(200 * 2**20); sum(i for i in range(4_000_000))"
    parent = (
        "import subprocess, sys, time; y = bytearray(60 * 2**20); "
        f"subprocess.run([sys.executable, '-c', {child!r}]); print('done'); time.sleep(0.2)"
    )
    seen = overhead_process.watch([sys.executable, "-c", parent], tmp_path / "log")
    assert 60 * 2**20 < seen.main_peak_bytes < 150 * 2**20
    assert seen.all_cpu_seconds > seen.main_cpu_seconds
    assert seen.output == "done\n"
    assert seen.seconds >= 0.2
    with pytest.raises(RuntimeError, match=r"ended with 3; the end of (?s:.*)why"):
        overhead_process.watch([sys.executable, "-c", "print('why'); raise SystemExit(3)"], tmp_path / "log")


def line(**content: object) -> str:
    return json.dumps({"event": "trial", "stage": "proxy", "id": "r0000", "reused": True, "time": 1.0} | content) + "\n"


def test_stage_times_come_from_the_files_and_a_trained_trial_is_refused(tmp_path: Path) -> None:
    paths = PATHS(tmp_path)
    when = {paths.proxy_trials: 110, paths.starts: 112, paths.target_result(0): 115, paths.target_result(1): 114}
    when |= {paths.test: 120, paths.decode: 121, paths.best_config: 124}
    for path, seconds in when.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (seconds, seconds))
    started = line(event="start", time=50.0) + line(event="start", time=100.0)
    finalist = line(stage="finalist", id="f0s0", reused=False)
    paths.progress.write_text(started + line() + line(stage="target", id="t0000") + finalist)
    size = overhead_study.Size(1, 2)
    assert overhead.stage_times(paths, size, 2) == (10.0, 2.0, 3.0, 9.0, 3.0)
    with pytest.raises(RuntimeError, match="of 3 trials 2 ran"):
        overhead.stage_times(paths, size, 3)
    paths.progress.write_text(started + line() + line(stage="target", id="t0001", reused=False))
    with pytest.raises(RuntimeError, match="t0001 weren't in the store"):
        overhead.stage_times(paths, size, 2)


@pytest.mark.workflow
@pytest.mark.long
def test_a_quick_run_measures_a_whole_study(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "overhead.py"), "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    (study,) = told["studies"]
    assert (study["size"]["proxy"], study["size"]["target"]) == (10, 4)
    stages = [study[name] for name in ("proxy", "transfer", "target", "rest")]
    assert all(seconds > 0 for seconds in stages)
    assert sum(stages) <= study["run"]["seconds"]
    assert study["per_proxy_trial"] == pytest.approx(study["proxy"] / 10)
    assert study["per_target_trial"] == pytest.approx(study["target"] / 4)
    assert study["run"]["main_peak_bytes"] > 2**25
    assert told["growth"] == {}
    starts = told["startup"]
    for role in ("proxy", "target"):
        assert starts[role]["all"] == pytest.approx(sum(starts[role][name] for name in overhead.PHASES))
    assert starts["proxy"]["bitsandbytes"] > starts["target"]["bitsandbytes"] == 0
    config = yaml.safe_load((tmp_path / "10x4" / "study.yaml").read_text())
    assert config["target"]["trials"] == 4
    assert "| 10x4 |" in done.stdout
