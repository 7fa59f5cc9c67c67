"""The benchmark of early stopping runs, and its figures are what they say. Who wins isn't tested."""

from __future__ import annotations

import json
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest

from finished_runs import BENCHMARKS

with mock.patch.object(sys, "path", [str(BENCHMARKS), *sys.path]):
    import early_stopping

KINDS = {"all", "best quarter"}


def test_a_small_run_measures_every_contender() -> None:
    command = [sys.executable, str(BENCHMARKS / "early_stopping.py"), "--orders", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["chosen"]["margin"] in early_stopping.MARGINS
    assert told["chosen"]["visible"] in early_stopping.VISIBLE
    assert len(told["tuning"]) == len(early_stopping.MARGINS) * len(early_stopping.VISIBLE)
    found = {(each["name"], each["kind"]): each for each in told["reporting"]}
    assert {name for name, _ in found} == set(early_stopping.contenders(2))
    for kind in KINDS:
        own, optunas = found["median", kind], found["Optuna's MedianPruner", kind]
        assert {**own, "name": ""} == {**optunas, "name": ""}
        saved = [found[f"reach, margin {margin:g}", kind]["saved"] for margin in early_stopping.MARGINS]
        assert saved[0] > saved[-1]
    for each in found.values():
        assert 0 <= each["saved"] < 2 / 3
        assert 0 <= each["regret"] <= each["worst_regret"]
        assert (each["best_stopped"] == 0) == (each["worst_regret"] == 0)
        assert f"| {each['name']} | {each['saved']:.1%} |" in done.stdout


def test_what_stops_add_up_to() -> None:
    runs = early_stopping.read_runs(BENCHMARKS / "transfer_runs.parquet")[:5]
    losses = [early_stopping.final(record) for record in runs]
    work = [record.result.steps * int(record.spec.hyperparameters["batch_size"]) for record in runs]
    best = int(np.argmin(losses))
    others = [place for place in range(5) if place != best]
    saved, stopped, best_stopped, regret = early_stopping.judged(runs, {best: 1, others[0]: 2})
    expected = (work[best] * 2 / 3 + work[others[0]] / 3) / sum(work)
    assert saved == pytest.approx(expected, rel=0.02)  # thirds of steps are rounded
    assert (stopped, best_stopped) == (2, 1.0)
    assert regret == pytest.approx(min(losses[place] for place in others[1:]) - losses[best])
    assert early_stopping.judged(runs, {}) == (0.0, 0, 0.0, 0.0)


def test_the_halves_share_no_run_and_the_best_quarter_is_the_best() -> None:
    runs = early_stopping.read_runs(BENCHMARKS / "transfer_runs.parquet")
    assert len(runs) == 320
    drawn = early_stopping.draw_orders(runs[::2], 20, 16)
    assert set(drawn) == KINDS
    losses = sorted(early_stopping.final(record) for record in runs[::2])
    used = {record.spec.id: record for order in drawn["best quarter"] for record in order}
    assert len(used) <= 40
    assert max(early_stopping.final(record) for record in used.values()) <= losses[39]
    assert all(len({record.spec.id for record in order}) == 16 for order in drawn["all"])


def test_the_program_has_the_chosen_defaults() -> None:
    """What the page with the measured table says was chosen."""
    from understudy.search.early_stopping import MARGIN
    from understudy.stages import EarlyStoppingSettings

    text = (BENCHMARKS / "early_stopping.md").read_text(encoding="utf-8")
    assert f"chosen: margin {MARGIN:g}, visible {EarlyStoppingSettings().visible}" in text
