"""The source files of the running interpreter's standard library.

Needs nothing but the standard library itself, so that the workflow may ask for it at its start.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Iterable
from pathlib import Path

# tests, programs with a window, bundled wheels, generated text, and what isn't the library's own
LEFT_OUT = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "sitecustomize.py",
        "test",
        "tests",
        "tkinter",
        "turtledemo",
        "usercustomize.py",
    }
)
LEFT_OUT_PREFIXES = ("config-", "_sysconfigdata", "_sysconfig_vars")


def root() -> Path:
    """The folder of the library."""
    return Path(sysconfig.get_path("stdlib"))


def source_files() -> list[Path]:
    """The library's source files relative to `root()`, sorted; see `LEFT_OUT` for what isn't among them."""
    folder = root()
    found = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return sorted(path for path in found if not _left_out(path))


def _left_out(path: Path) -> bool:
    return any(part in LEFT_OUT or part.startswith(LEFT_OUT_PREFIXES) for part in path.parts)


def group(path: Path) -> str:
    """The top-level module or package that a file belongs to.

    A pure-Python twin goes with what it is the twin of: `_pydecimal` with `decimal`, `_strptime` with `strptime`.
    """
    name = path.parts[0].removesuffix(".py")
    return name.removeprefix("_py").lstrip("_") or name if name.startswith("_") else name


def identity(files: Iterable[Path]) -> dict[str, str]:
    """Which library this is: `python` (version), `implementation`, `sha256` over the files' names and bytes."""
    folder = root()
    whole = hashlib.sha256()
    for path in files:
        whole.update(path.as_posix().encode() + b"\0" + hashlib.sha256((folder / path).read_bytes()).digest())
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "sha256": whole.hexdigest(),
    }
