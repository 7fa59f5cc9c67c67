"""The benchmark of trust: a replay with notes is the product's own, sums that are known, and a quick run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import finished_runs
import trust
from replays.ours import Understudy
from replays.replay import PROXY_TRIALS, replay
from replays.tables import step_law
from replays.tasks import Task, problem


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tables") / "bowls.csv"
    finished_runs.write_bowls(path)
    return path


def test_what_notes_the_trust_runs_what_the_product_runs(file: Path) -> None:
    pair, noting = problem(step_law(file), Task("100M-2B", "400M-8B")), trust.Noting()
    runs = [replay(pair, method, 1, 6, 1, PROXY_TRIALS).indices for method in (noting, Understudy("two_fidelity"))]
    assert runs[0] == runs[1]
    told = noting.trusts()
    assert told[2] is None, "it is the default's turn"
    assert all(value is not None and 0 <= value <= 1 for place, value in enumerate(told) if place != 2)


@pytest.mark.parametrize(("lie", "sign"), [(None, 1), ("inverted", -1)])
def test_a_lie_is_trusted_less(file: Path, lie: str | None, sign: int) -> None:
    """Bowls on both models, whose optima differ, and the same upside down."""
    ((ranks, noted),) = trust.trusts(problem(step_law(file), Task("100M-2B", "400M-8B", lie)), seeds=1, window=1)
    assert sign * ranks > 0.4
    assert max(noted) == 15
    assert (noted[15] > 0.9) == (sign > 0)


def test_replays_in_which_the_model_was_not_asked_do_not_count() -> None:
    assert trust.summed([{1: 0.25, 3: 1.0}, {3: 0.5}, {3: 0.0, 5: 1.0}]) == {1: (0.25, 0.0), 3: (0.5, 2 / 3)}


def test_a_quick_run_ends_with_json(file: Path) -> None:
    command = [sys.executable, str(Path(trust.__file__)), "--steplaw", str(file), "--quick", "--window", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    *_, true, lie, last = done.stdout.splitlines()
    sets = json.loads(last)["sets"]
    assert list(sets) == ["matched", "lies, shuffled"]
    assert true.startswith("| matched | 1 | ")
    assert lie.startswith("| lies, shuffled | 1 | ")
    assert set(sets["matched"]["trust"]) == {"0", "3", "4", "6", "8", "12"}, "the default's sees 1, the last 14"
