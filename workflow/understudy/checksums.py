"""Binary files that show when they were altered, by a list of checksums beside them.

Readers of parquet and of safetensors take a flipped bit for another number, or crash; so bytes are compared first.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from understudy.errors import CorruptFileError
from understudy.files import file_sha256, write_text

ASIDE = ".damaged"  # what the names of files that were set aside end with
LIST = "sha256sums.txt"  # as `sha256sum --check` reads it


def write_list(folder: Path, paths: Iterable[Path] | None = None) -> None:
    """Write the checksums of some files below `folder`, by default of all, to `sha256sums.txt` in it."""
    chosen = [path for path in folder.rglob("*") if path.is_file()] if paths is None else list(paths)
    names = sorted(path.relative_to(folder).as_posix() for path in chosen if _counts(path))
    write_text(folder / LIST, "".join(f"{file_sha256(folder / name)}  {name}\n" for name in names))


def forget(folder: Path) -> None:
    """Remove a list before its files are written anew: killed in between, they would look altered."""
    (folder / LIST).unlink(missing_ok=True)


def _counts(path: Path) -> bool:
    return path.name != LIST and not path.name.startswith(".") and not path.name.endswith(ASIDE)


def altered(folder: Path) -> list[Path]:
    """The files that aren't what the folder's list says, missing ones among them.

    The list itself if it can't be read or is empty. None where there is no list: it was made by hand.
    """
    path = folder / LIST
    if not path.is_file():
        return []
    try:
        lines = [line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines()]
        wanted = {folder / name: sha256 for sha256, name in lines}
        found = [file for file, sha256 in wanted.items() if not file.is_file() or file_sha256(file) != sha256]
        return found if wanted else [path]  # nobody writes an empty one
    except ValueError:  # not text, or not such lines
        return [path]


def require_unaltered(folder: Path, what: str, delete: Path | None = None) -> None:
    """Raise `CorruptFileError` where a file of a folder isn't as it was written.

    `what` is made anew once `delete`, by default the folder, is gone.
    """
    if found := altered(folder):
        raise CorruptFileError(
            f"{found[0]} has been altered since it was written (its checksum is another); delete {delete or folder} "
            f"and run the workflow again, which makes {what} anew"
        )
