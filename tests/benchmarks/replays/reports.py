"""What the tables say, kept in one file: each set's `report`, to six digits.

It stands under the name of the set, of its table, and of a window that isn't 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy.errors import UserError

DIGITS = 6


def note(path: Path, sets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Write these sets into the file, each in place of what it said of a set of that name.

    Returns what is lost by that: a line for each set whose earlier report had methods or seeds that this one hasn't.
    """
    known = read(path) if path.exists() else {}
    lost = []
    for name in sets.keys() & known.keys():
        gone = sorted(set(known[name].get("regret", ())) - set(sets[name]["regret"]))
        fewer = known[name].get("seeds", 0) > sets[name]["seeds"]
        if gone or fewer:
            lost.append(f"{name}: {', '.join([*gone, *['fewer seeds'] * fewer])}")
    path.write_text(compact(json.dumps(_rounded({**known, **sets}), indent=1)) + "\n", encoding="utf-8")
    return sorted(lost)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The sets that were noted, by name."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} isn't a file of reports: {error}") from None


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(each) for key, each in value.items()}
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def compact(text: str) -> str:
    """JSON with the innermost lists and mappings on one line each."""
    return re.sub(r"([\[{])\s+([^\[\]{}]*?)\s+([\]}])", lambda at: at[1] + " ".join(at[2].split()) + at[3], text)
