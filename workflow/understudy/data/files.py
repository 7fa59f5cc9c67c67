"""Reading a split that `prepare_data` wrote."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from understudy.errors import CorruptFileError
from understudy.files import file_sha256

SCHEMA = pl.Schema(
    {"id": pl.String, "group": pl.String, "prompt": pl.String, "completion": pl.String, "chat": pl.Boolean}
)


def read_split(path: Path, limit: int | None, sha256: str | None = None) -> pl.DataFrame:
    """The first `limit` rows of a split, or all of them; rows are in a seeded random order already.

    `sha256` is what the manifest says of it. Raises `CorruptFileError` where the file is missing, altered, broken or
    has other columns than `SCHEMA`.
    """
    if sha256 is not None:
        require_split(path, sha256)
    try:
        frame = pl.read_parquet(path, n_rows=limit, glob=False)
    except (OSError, PolarsError) as error:
        raise CorruptFileError(f"{path} can't be read ({error}); delete it and run the workflow again") from error
    if frame.schema != SCHEMA:
        raise CorruptFileError(
            f"{path} has the columns {', '.join(frame.columns)} instead of {', '.join(SCHEMA)}; "
            "delete it and run the workflow again"
        )
    return frame


def require_split(path: Path, sha256: str) -> None:
    """Raise `CorruptFileError` where a split's file isn't the one that the manifest names."""
    if path.exists() and file_sha256(path) != sha256:
        raise CorruptFileError(
            f"{path} isn't the file that the manifest beside it names (its checksum is another); delete it and run the "
            "workflow again"
        )
