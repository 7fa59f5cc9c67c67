"""The rows of a user's file, whatever kind of file it is. A bad row is returned, not raised."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from understudy.errors import DataError, nearest

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
ESCAPED = re.compile("[\udc80-\udcff]")  # a byte that isn't UTF-8, as Python reads it with `surrogateescape`


@dataclass(frozen=True)
class Failure:
    """A row that can't be used."""

    number: int  # of the line in its file, or of the row where the file has no lines
    problem: str


Row = tuple[int, dict[str, Any]]


def require_file(path: Path) -> None:
    """Raise `DataError` where there is no such file, or it is of a kind that isn't read."""
    if path.suffix.lower() not in READERS:
        raise _other_kind(path)
    if not path.is_file():
        raise DataError(f"there is no file {path} (given in `data.files`); relative paths start where the study is run")


def read_rows(path: Path) -> tuple[list[Row], list[Failure]]:
    """The rows of a .jsonl, .json, .csv or .parquet file with their numbers from 1, and those that can't be read.

    Raises `DataError` where there is no such file, it is of another kind, or it can't be read as a whole.
    """
    require_file(path)
    rows: list[Row] = []
    failures: list[Failure] = []
    try:
        for number, row in READERS[path.suffix.lower()](path):
            if isinstance(row, dict):
                rows.append((number, row))
            else:
                failures.append(Failure(number, row))
    except (OSError, ValueError, PolarsError) as error:
        raise DataError(f"{path} can't be read as {path.suffix.lower()}: {' '.join(str(error).split())}") from error
    return rows, failures


def _other_kind(path: Path) -> DataError:
    """The error about a path whose ending is none of a data file's."""
    version = path.suffix[1:].isdigit()  # `org/data-1.1`
    if HUB_ID.fullmatch(str(path)) and (version or not path.suffix) and not path.exists():
        return DataError(
            f"there is no file {path} (given in `data.files`); it looks like a data set on the Hugging Face hub: "
            f'export it to a file, as with `datasets.load_dataset("{path}", split="train").to_json("train.jsonl")`'
        )
    ending = f"the ending `{path.suffix}`" if path.suffix else "no ending"
    return DataError(
        f"{path} has {ending}, but data files may be {', '.join(READERS)}{nearest(path.suffix.lower(), READERS)}"
    )


def where(path: Path) -> str:
    """What a row's number counts in this file."""
    return "line" if path.suffix.lower() in (".jsonl", ".csv") else "row"


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            if bad := ESCAPED.search(line):
                byte = ord(bad[0]) - 0xDC00
                yield number, f"isn't UTF-8 (character {bad.start() + 1} is 0x{byte:02x}); save the file as UTF-8"
                continue
            try:
                yield number, _mapping(json.loads(line))
            except json.JSONDecodeError as error:
                yield number, f"isn't valid JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}"


def _json(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        raise ValueError(
            f"after the first value there is more in line {error.lineno}; a file with one object per line wants the "
            f"ending .jsonl: rename it to {path.with_suffix('.jsonl').name}"
        ) from error
    if not isinstance(items, list):
        raise ValueError(f"must be a list of examples, but is a {type(items).__name__}")
    for number, item in enumerate(items, start=1):
        yield number, _mapping(item)


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, strict=True)
        header: list[str] | None = None
        while True:
            number = reader.line_num + 1  # a row may span lines; it is known by its first
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:  # the reader goes on with the next line
                yield number, f"isn't valid CSV: {error} (is a quote left open, or not doubled within quotes?)"
                if header is None:
                    return
                continue
            if header is None:
                header = cells
            elif len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            elif cells:
                yield number, f"has {len(cells)} cells, but the header has {len(header)}"


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    yield from enumerate(pl.read_parquet(path, glob=False).iter_rows(named=True), start=1)


def _mapping(item: object) -> dict[str, Any] | str:
    return item if isinstance(item, dict) else f"must be an object with keys, but is {json.dumps(item)[:40]}"


READERS: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any] | str]]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
