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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from understudy import checksums, disk, graph
from understudy.checksums import ASIDE
from understudy.config import StudyConfig, read_back
from understudy.errors import ConfigError, CorruptFileError
from understudy.files import file_sha256, read_json, write_json
from understudy.paths import StudyPaths
from understudy.settings import RunningSettings, Section
from understudy.store import Store

UNDECLARED = ("running", "study")  # settings that are no rule's input, since no result follows from them
LONG_AGO = 946_684_800.0  # the year 2000, in the seconds of time stamps
TOLERANCE_SECONDS = 1.0  # a clock that is set a little back is none that was wrong


def mend(paths: StudyPaths, settings: Mapping[str, Section] | None = None) -> list[str]:
    """Set broken declared files aside and future times of change back; one line for each broken file.

    For whoever holds the study's lock. `settings` are the config's sections as they are to be now; None where they are
    what they were.
    """
    with disk.reported(paths.root):
        return _mend(paths, settings or {})


def _mend(paths: StudyPaths, settings: Mapping[str, Section]) -> list[str]:
    notes: list[str] = []
    for path in list(_declared(paths)):
        if path.suffix == ".json" and (problem := _problem(path)):
            notes.append(_set_aside(path, problem))
    for path in [*_altered_data(paths), *_altered_tables(paths)]:
        if path.exists():
            lists = path.name == checksums.LIST  # a run that was killed before it had made the files anew, maybe
            problem = "names files that are gone" if lists else "has been altered since it was written"
            notes.append(_set_aside(path, problem))
    if not _is_through(paths) or _asks_for_weights(paths, settings):
        notes += _without_weights(paths)
    _renew(paths, settings)
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


def is_changed(paths: StudyPaths, settings: Mapping[str, Section]) -> bool:
    """Whether some settings, or the data that they name, aren't those of the last run."""
    return any(_differs(paths.settings(name), section) for name, section in settings.items())


def _asks_for_weights(paths: StudyPaths, settings: Mapping[str, Section]) -> bool:
    """Whether a change may change a number: not how trials are kept safe, nor what is asked of a scheduler."""
    numbers = {name: section for name, section in settings.items() if name not in UNDECLARED}
    if is_changed(paths, numbers):
        return True
    path, study = paths.settings("study"), settings.get("study")
    return study is not None and path.exists() and _of_numbers(read_json(path)) != _of_numbers(_as_written(study))


def _of_numbers(study: dict[str, Any]) -> dict[str, Any]:
    execution = {
        key: value for key, value in study.get("execution", {}).items() if key not in RunningSettings.model_fields
    }
    return {**study, "execution": execution, "resources": None, "results": None}


def _differs(path: Path, section: Section) -> bool:
    return path.exists() and read_json(path) != _as_written(section)


def _as_written(section: Section) -> Any:
    return json.loads(section.model_dump_json())


def _renew(paths: StudyPaths, settings: Mapping[str, Section]) -> None:
    """Write settings that have changed, and date back what follows from numbers of trials that have.

    Snakemake sees such changes itself, but only with its own notes (`.snakemake`) on how each file was made, which a
    copy of a study has none of. Then it goes by times alone, and passes over a file in the middle that is gone.
    """
    for path in _outdated(paths, settings):
        if path.exists():
            os.utime(path, (LONG_AGO, LONG_AGO))
    for name, section in sorted(settings.items(), key=lambda item: item[0] == "study"):  # by which it is known, last
        if _differs(path := paths.settings(name), section):
            write_json(path, _as_written(section), sealed=True)
    keep_settings(paths, settings)


def keep_settings(paths: StudyPaths, settings: Mapping[str, Section]) -> None:
    """Write the settings that commands read and no rule makes, where they aren't there as they are to be."""
    for name in UNDECLARED:
        path = paths.settings(name)
        if name in settings and (not path.exists() or _differs(path, settings[name])):
            write_json(path, _as_written(settings[name]), sealed=True)


def _outdated(paths: StudyPaths, settings: Mapping[str, Section]) -> set[Path]:
    """The declared files that aren't what they would be with the numbers of trials of now."""
    config = settings.get("study")
    if not isinstance(config, StudyConfig) or not _differs(paths.settings("study"), config):
        return set()
    try:
        old: StudyConfig | None = read_back(read_json(path := paths.settings("study")), str(path))
    except ConfigError:  # of another version of this program
        old = None
    found = set()
    for packs in (graph.proxy_packs, graph.echo_packs):
        known = packs(old) if old is not None else {}
        for id, place in packs(config).items():
            if known.get(id) != place:
                found |= {paths.pack_specs(id), paths.pack_results(id)}
    for path, count in (
        (paths.proxy_trials, lambda study: list(graph.proxy_packs(study).items())),
        (paths.headline, lambda study: list(graph.echo_packs(study).items())),
        (paths.proposal(0), graph.truncated_runs),  # which all proposals see; each follows from the one before
        (paths.selection, lambda study: study.target.trials),
        (paths.winner, graph.finalist_runs),
    ):
        if old is None or count(old) != count(config):
            found.add(path)
    return found | ({paths.headline} if found else set())


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
