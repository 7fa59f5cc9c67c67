"""Finished replays in one small file: whoever has it prints the tables in seconds, where replays take hours to days.

A row per replay: its method and version, the name of the cache's file that it belongs to, its seed, and the target runs
as indices of configurations. The version and the name say everything that could change the run (`methods`, `jobs`), so
a replay counts where these are still the same, and is done anew elsewhere. How long its proposals took isn't kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import polars as pl

from replays.jobs import Job, finished
from replays.replay import Run
from understudy.errors import UserError

SCHEMA = {
    "method": pl.String,
    "version": pl.String,
    "file": pl.String,
    "seed": pl.UInt16,
    "indices": pl.List(pl.UInt16),
}


def lay_out(path: Path, jobs: Iterable[Job]) -> int:
    """Put the recorded runs of these jobs into their files, where they are missing; how many those were."""
    recorded: dict[tuple[str, str, str], list[Run]] = {}
    for method, version, file, seed, indices in _read(path).iter_rows():
        recorded.setdefault((method, version, file), []).append(Run(seed, tuple(indices), ()))
    laid = 0
    for job in {job.file: job for job in jobs}.values():
        done = finished(job)
        missing = [run for run in recorded.get(_key(job), []) if run.seed not in done]
        if missing:
            job.file.parent.mkdir(parents=True, exist_ok=True)
            with job.file.open("a", encoding="utf-8") as lines:
                lines.write("\n" + "".join(json.dumps(asdict(run)) + "\n" for run in missing))
        laid += len(missing)
    return laid


def keep(path: Path, jobs: Iterable[Job]) -> str:
    """Add the finished runs of these jobs to the record, and drop what other versions of their methods did.

    Returns what became of the record, in words. For one run at a time.
    """
    versions, rows = {}, []
    for job in {job.file: job for job in jobs}.values():
        method, version, file = _key(job)
        versions[method] = version
        rows += [(method, version, file, run.seed, list(run.indices)) for run in finished(job).values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    old = _read(path)
    now = pl.col("method").replace_strict(versions, default=pl.col("version"), return_dtype=pl.String)
    valid = old.filter(pl.col("version") == now)
    whole = pl.concat([valid, pl.DataFrame(rows, schema=SCHEMA, orient="row")])
    names = ["method", "version", "file", "seed"]
    whole = whole.unique(names, keep="last").sort(names)
    beside = path.with_suffix(".new")
    whole.write_parquet(beside, compression="zstd", compression_level=19)
    beside.replace(path)
    dropped = old.height - valid.height
    return f"{whole.height} replays, {whole.height - valid.height} of them new; {dropped} of older versions dropped"


def _read(path: Path) -> pl.DataFrame:
    """The rows; none where there is no file."""
    if not path.exists():
        return pl.DataFrame(schema=SCHEMA)
    try:
        return pl.read_parquet(path).select(*SCHEMA)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path} isn't a record of finished replays: {error}") from None


def _key(job: Job) -> tuple[str, str, str]:
    """Method, version and file, as a row has them."""
    return job.entry.name, job.file.parent.name.rpartition("-")[2], job.file.name
