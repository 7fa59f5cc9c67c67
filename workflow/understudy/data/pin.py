"""The interpreter that a study was made with.

Built-in data and models are made of the running interpreter's standard library: another Python means other examples.
The pin lies in the study's root as `pin.json`, where no rule declares it, so that it outlives the outputs that
Snakemake deletes before a command runs again.
"""

from __future__ import annotations

import platform
from pathlib import Path

from understudy.errors import DataError
from understudy.files import read_json, write_json

NAME = "pin.json"


def check_interpreter(root: Path) -> None:
    """Raise `DataError` where the study in `root` was made with another Python than the one that runs.

    Reads one small file and looks at version and implementation only; `hold` compares the library's bytes.
    """
    path = root / NAME
    if path.exists():
        _compare(path, {"python": platform.python_version(), "implementation": platform.python_implementation()})


def hold(root: Path, identity: dict[str, str]) -> None:
    """Pin the study in `root` to a standard library (see `stdlib.identity`), or check that it is the pinned one."""
    path = root / NAME
    if path.exists():
        _compare(path, identity)
    else:
        write_json(path, identity, sealed=True)


def _compare(path: Path, running: dict[str, str]) -> None:
    pinned = read_json(path)
    if all(pinned.get(key) == value for key, value in running.items()):
        return
    same_version = all(pinned.get(key) == running[key] for key in ("implementation", "python"))
    made, runs = (f"{side.get('implementation')} {side.get('python')}" for side in (pinned, running))
    difference = " whose standard library has other source files" if same_version else ""
    raise DataError(
        f"the built-in data and models of {path.parent} were made from the standard library of {made}, but this is "
        f"{runs}{difference}, which would silently be another study; run it with the former, or set another "
        "`results` folder in the config"
    )
