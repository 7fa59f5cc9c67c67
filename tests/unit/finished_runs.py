"""Made-up tables of finished runs, for the tests of the benchmark of the transfer.

The benchmark's modules lie beside each other in no package: this module puts their folder on the path.
"""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import polars as pl

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

SIZES = ((100e6, 2e9), (200e6, 4e9), (400e6, 8e9), (800e6, 16e9))
RATES = [2 ** (power / 2) for power in range(-22, -12)]
BATCHES = [32, 64, 128, 256, 512, 1024]


def write_bowls(path: Path) -> None:
    """A table like Step Law's: bowls whose optimum moves with the size, rates rounded in two ways."""
    rows = []
    for place, (parameters, tokens) in enumerate(SIZES):
        shape = {"parameters": int(parameters), "tokens": int(tokens), "hidden_size": 512 * 2**place, "layers": 8}
        for rate, batch in itertools.product(RATES, BATCHES):
            off = math.log2(rate) + 7.87 + place / 2, math.log2(batch) - 6.43 - place / 2
            loss = 3 - place / 10 + 0.01 * off[0] ** 2 + 0.0217 * off[1] ** 2
            told = float(f"{rate:.{4 if place % 2 else 3}g}")
            rows.append({**shape, "learning_rate": told, "batch_size": batch, "smoothed_loss": loss})
    pl.DataFrame(rows).write_csv(path)


def write_runs(path: Path) -> None:
    """A table of fine-tuning runs with floats, whole numbers, and choices with an order and without."""
    generator = np.random.default_rng(2)
    rows = []
    for number in range(40):
        values = {
            "learning_rate": float(10 ** generator.uniform(-4, -1)),
            "batch_size": int(generator.choice([4, 8, 16, 32])),
            "warmup_ratio": float(generator.uniform(0, 0.3)),
            "lr_scheduler_type": str(generator.choice(["linear", "cosine", "constant_with_warmup"])),
            "lora_r": int(generator.choice([4, 8, 16, 32])),
        }
        cells = (("proxy_nf4", 0.0, 1), ("target_fp32", 0.4, 1), ("target_fp32", 9.0, 2), ("truncated_fp32", 0.4, 1))
        for model, shift, seed in cells:
            off = math.log10(values["learning_rate"]) + 2 + shift
            loss = 2 + off**2 + values["warmup_ratio"] + (values["lr_scheduler_type"] == "linear") / 10
            bad = number == 7
            status = "diverged" if bad else "complete"
            rows.append(
                {
                    "id": f"c{number}",
                    "model": model,
                    "seed": seed,
                    "fidelity": 0.25 if model == "truncated_fp32" else 1.0,
                    **values,
                    "eval_loss": None if bad else loss,
                    "status": status,
                }
            )
    pl.DataFrame(rows).write_parquet(path)
