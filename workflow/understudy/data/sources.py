"""Whether the user's own files say what they said when the splits were cut."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from understudy.errors import UnderstudyError
from understudy.files import file_sha256, read_model
from understudy.settings import DataFiles
from understudy.trial import DataManifest


def fingerprints(files: DataFiles | None, manifest: Path) -> dict[str, str]:
    """The SHA-256 of each file by its split; empty for one that isn't there, or can't be read.

    Where the splits have been cut, `manifest` has them already: of files that weren't written since, and of files that
    are gone, which nobody misses then.
    """
    given = {split: path for split, path in (files.model_dump() if files else {}).items() if path}
    known = {}
    with suppress(UnderstudyError, OSError):  # not there yet, or made anew
        source, cut = read_model(manifest, DataManifest).source, manifest.stat().st_mtime
        known = {split: source.get(f"{split}_sha256") for split in given if source.get(split) == _named(given[split])}
    found = {}
    for split, name in given.items():
        path = Path(name).expanduser()
        recorded = known.get(split)
        found[split] = recorded or ""
        with suppress(OSError):  # one that can't be read is the command's to report
            if path.is_file() and not (recorded and _changed_at(path) <= cut):
                found[split] = file_sha256(path)
    return found


def _changed_at(path: Path) -> float:
    """When a file, or the link to it, was written, moved here or made: whichever was last."""
    status = path.stat()
    return max(status.st_mtime, status.st_ctime, path.lstat().st_ctime)


def _named(name: str) -> str:
    """As the manifest has it."""
    return str(Path(name).expanduser())
