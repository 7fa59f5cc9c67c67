"""What a start of the workflow mends by itself, before Snakemake looks at the files.

Everything that a rule declares as output can be made anew from the config and the store at little cost. So a declared
file that was cut off or altered is set aside, and Snakemake makes it again. What the store holds can't be made anew but
by training: a broken record there is reported by the command that needs it.

Times of change in the future, from a clock that was wrong, are set back: a job's new output would be older than its
input, for which Snakemake ends the job.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from understudy import checksums, disk
from understudy.checksums import ASIDE
from understudy.config import StudyConfig
from understudy.errors import CorruptFileError
from understudy.files import file_sha256, read_json
from understudy.paths import StudyPaths
from understudy.store import Store

TOLERANCE_SECONDS = 1.0  # a clock that is set a little back is none that was wrong


def mend(paths: StudyPaths, config: StudyConfig | None = None) -> list[str]:
    """Set broken declared files aside and future times of change back; one line for each broken file.

    For whoever holds the study's lock. `config` is what the study is to be now; None where it is what it was.
    """
    with disk.reported(paths.root):
        return _mend(paths, config)


def _mend(paths: StudyPaths, config: StudyConfig | None) -> list[str]:
    notes: list[str] = []
    for path in list(_declared(paths)):
        if path.suffix == ".json" and (problem := _problem(path)):
            notes.append(_set_aside(path, problem))
    for path in [*_altered_data(paths), *_altered_tables(paths)]:
        if path.exists():
            notes.append(_set_aside(path, "has been altered since it was written"))
    if not _is_through(paths) or _is_changed(paths, config):
        notes += _without_weights(paths)
    _set_back(paths)
    return notes


def _declared(paths: StudyPaths) -> Iterator[Path]:
    """The files that rules declare, as far as they are there."""
    names = [
        paths.settings("*"),
        paths.data("*"),
        paths.manifest,
        paths.model("*"),
        paths.execution("*"),
        paths.pack_specs("*"),
        paths.pack_results("*"),
        paths.proxy_trials,
        paths.regions,
        paths.starts,
        paths.proposal("*"),
        paths.target_result("*"),
        paths.truncated_proposal("*"),
        paths.truncated_result("*"),
        paths.selection,
        paths.finalist_result("*", "*"),
        paths.winner,
        paths.decode,
        paths.test,
        paths.table("*"),
        paths.table("*", "csv"),
        paths.figure("*"),
        paths.headline,
        paths.report,
        paths.best_config,
    ]
    for name in names:
        yield from paths.root.glob(str(name.relative_to(paths.root)))


def _problem(path: Path) -> str | None:
    try:
        read_json(path)
    except CorruptFileError as error:
        return str(error).removeprefix(f"{path} ").split("; delete", 1)[0]
    return None


def _altered_data(paths: StudyPaths) -> list[Path]:
    """Splits that aren't those of the manifest."""
    manifest = _read(paths.manifest)
    splits = manifest.get("splits", {}) if isinstance(manifest, dict) else {}
    return [
        paths.data(split)
        for split, file in splits.items()
        if paths.data(split).is_file() and file_sha256(paths.data(split)) != file["sha256"]
    ]


def _altered_tables(paths: StudyPaths) -> list[Path]:
    """Tables and figures that aren't those that their folder's list names, and lists that name what isn't there."""
    found: dict[Path, None] = {}
    for folder in (paths.proxy_trials.parent, paths.headline.parent):
        for path in checksums.altered(folder):
            found[path if path.exists() else folder / checksums.LIST] = None
    return list(found)


def _is_through(paths: StudyPaths) -> bool:
    """Whether all that reads weights is there. Then nobody needs them, and who wants the room can delete them."""
    return all(path.exists() for path in (paths.decode, paths.test, paths.report, paths.best_config))


def _is_changed(paths: StudyPaths, config: StudyConfig | None) -> bool:
    """Whether the config isn't that of the last run: at least the report, which reads weights, is written again."""
    before = _read(paths.settings("study"))
    return config is not None and before is not None and before != json.loads(config.model_dump_json())


def _without_weights(paths: StudyPaths) -> list[str]:
    """Set aside the results of finalists whose adapter or weights are gone and are needed: deleted as altered, say.

    The winner's and the default's are read by what follows.
    """
    winner = _read(paths.winner)
    wanted = None if winner is None else {*winner.get("digests", ()), *winner.get("default_digests", ())}
    notes = []
    for path in paths.root.glob(str(paths.finalist_result("*", "*").relative_to(paths.root))):
        result = (_read(path) or {}).get("result", {})
        if result.get("status") != "complete" or (wanted is not None and result["digest"] not in wanted):
            continue
        if not Store(paths.store).adapter(result["digest"]).is_dir():
            notes.append(_set_aside(path, "belongs to a finalist whose trained weights are gone"))
    return notes


def _read(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _set_aside(path: Path, problem: str) -> str:
    aside = _free_name(path)
    path.replace(aside)
    return f"{path} {problem}; it was renamed to {aside.name} and is made anew where it is needed"


def _free_name(path: Path) -> Path:
    """Where a file can be set aside without another one's going: it may be a table that somebody has edited."""
    numbers = itertools.chain([""], (f".{number}" for number in itertools.count(2)))
    places = (path.with_name(f"{path.name}{number}{ASIDE}") for number in numbers)
    return next(place for place in places if not place.exists())


def _set_back(paths: StudyPaths) -> None:
    now = time.time()
    for path in _declared(paths):
        if path.stat().st_mtime > now + TOLERANCE_SECONDS:
            os.utime(path, (now, now))
