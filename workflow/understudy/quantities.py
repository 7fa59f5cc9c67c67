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
    """A time such as `24h`, `24:00:00` or `1-00:00` in minutes, rounded up; None if it isn't one."""
    if found := re.fullmatch(r"(\d+) ?([mhd])\w*", text.strip(), re.IGNORECASE):
        return int(found[1]) * TIME[found[2].lower()]
    if found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+)(?::(\d+))?", text.strip()):
        days, hours, rest, seconds = (int(part or 0) for part in found.groups())
        return days * TIME["d"] + hours * TIME["h"] + rest + (seconds > 0)
    return None
