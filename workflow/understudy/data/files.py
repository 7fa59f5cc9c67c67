"""Reading a split that `prepare_data` wrote."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from understudy.errors import CorruptFileError

SCHEMA = pl.Schema(
    {"id": pl.String, "group": pl.String, "prompt": pl.String, "completion": pl.String, "chat": pl.Boolean}
)


def read_split(path: Path, limit: int | None) -> pl.DataFrame:
    """The first `limit` rows of a split, or all of them; rows are in a seeded random order already.

    Raises `CorruptFileError` where the file is missing, broken or has other columns than `SCHEMA`.
    """
    try:
        frame = pl.read_parquet(path, n_rows=limit)
    except (OSError, PolarsError) as error:
        raise CorruptFileError(f"{path} can't be read ({error}); delete it and run the workflow again") from error
    if frame.schema != SCHEMA:
        raise CorruptFileError(
            f"{path} has the columns {', '.join(frame.columns)} instead of {', '.join(SCHEMA)}; "
            "delete it and run the workflow again"
        )
    return frame
