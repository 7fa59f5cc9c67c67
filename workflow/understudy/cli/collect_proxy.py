"""Gather the proxy's trials into one table."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy import checksums
from understudy.files import read_model
from understudy.summary.tables import trials_frame, write_parquet
from understudy.trial import PackResults


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--packs", type=Path, nargs="+", required=True, help="results.json of every pack")
    parser.add_argument("--output", type=Path, required=True, help="the table, trials.parquet")


def run(arguments: argparse.Namespace) -> None:
    """Read, gather, write."""
    records = [record for path in arguments.packs for record in read_model(path, PackResults).records]
    checksums.forget(arguments.output.parent)
    write_parquet(trials_frame(records), arguments.output)
    checksums.write_list(arguments.output.parent, [arguments.output])
