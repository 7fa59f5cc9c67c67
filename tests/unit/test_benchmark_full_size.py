"""The benchmark of trials at full size runs, on a tiny one. How fast anything is isn't tested."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "full_size.py"


@pytest.mark.long
def test_a_quick_run_measures_every_contender() -> None:
    done = subprocess.run([sys.executable, str(BENCHMARK), "--quick"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])["measured"]
    assert [(each["shape"], each["base"]) for each in measured] == [("tiny", "none"), ("tiny", "nf4")]
    assert ("TRL isn't installed" in done.stdout) == (find_spec("trl") is None)
    for each in measured:
        ours, trainer = (each["best"][name] for name in ("understudy", "trainer"))
        assert set(each["ratios"]) == set(each["best"]) - {"understudy"}
        assert each["ratios"]["trainer"]["rate"] == pytest.approx(ours["rate"] / trainer["rate"])
        assert math.isfinite(ours["rate"])
        assert ours["rate"] > 0
        assert ours["mfu"] is None, "no peak is known of a CPU"
        # the same examples, once, in another order; a model with another loss wouldn't have trained the same
        assert ours["loss"] == pytest.approx(trainer["loss"], rel=0.01)
