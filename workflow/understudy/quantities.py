"""Memory and time as SLURM's users write them, in the units of the config."""

from __future__ import annotations

import math
import re

MEMORY = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}  # in what SLURM takes a plain number for
TIME = {"m": 1, "h": 60, "d": 24 * 60}


def megabytes(text: str) -> int | None:
    """An amount of memory such as `200G` in SLURM's MB, rounded up; None if it isn't one."""
    found = re.fullmatch(r"(\d+) ?([KMGT])i?B?", text.strip(), re.IGNORECASE)
    return math.ceil(int(found[1]) * MEMORY[found[2].upper()]) if found else None


def minutes(text: str) -> int | None:
    """A time such as `24h`, or as sbatch's `--time` reads it, in minutes, rounded up; None if it isn't one.

    sbatch has minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes and days-hours:minutes:seconds.
    """
    if found := re.fullmatch(r"(\d+) ?([mhd])", text.strip(), re.IGNORECASE):
        return int(found[1]) * TIME[found[2].lower()]
    found = re.fullmatch(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", text.strip())
    if found is None:
        return None
    parts = [int(part) for part in found[2].split(":")]
    units = ("h", "m", None) if found[1] or len(parts) == 3 else ("m", None)
    whole = sum(part * TIME[unit] for part, unit in zip(parts, units, strict=False) if unit)
    seconds = sum(part for part, unit in zip(parts, units, strict=False) if unit is None)
    return int(found[1] or 0) * TIME["d"] + whole + math.ceil(seconds / 60)
