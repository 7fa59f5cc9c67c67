"""What the tables say, kept in one file: each set's `report`, to five digits, under the set's and its table's name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy.errors import UserError

DIGITS = 5


def note(path: Path, sets: Mapping[str, Mapping[str, Any]]) -> None:
    """Write these sets into the file, each in place of what it said of a set of that name."""
    known = read(path) if path.exists() else {}
    path.write_text(compact(json.dumps(_rounded({**known, **sets}), indent=1)) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The sets that were noted, by name."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} isn't a file of reports: {error}") from None


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(each) for key, each in value.items()}
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def compact(text: str) -> str:
    """JSON with the innermost lists and mappings on one line each."""
    return re.sub(r"([\[{])\s+([^\[\]{}]*?)\s+([\]}])", lambda at: at[1] + " ".join(at[2].split()) + at[3], text)
