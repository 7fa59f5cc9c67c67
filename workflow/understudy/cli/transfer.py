"""Find regions and first configurations for the target."""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from understudy import checksums, progress
from understudy.files import read_model, write_json
from understudy.search.transfer import transfer
from understudy.sections import TransferSection
from understudy.trial import ModelCard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--settings", type=Path, required=True, help="transfer.json")
    parser.add_argument("--trials", type=Path, required=True, help="the proxy's trials.parquet")
    parser.add_argument("--proxy-model", type=Path, required=True)
    parser.add_argument("--target-model", type=Path, required=True)
    parser.add_argument("--regions", type=Path, required=True, help="output")
    parser.add_argument("--starts", type=Path, required=True, help="output")


def run(arguments: argparse.Namespace) -> None:
    """Read, call, write."""
    settings = read_model(arguments.settings, TransferSection)
    proxy = read_model(arguments.proxy_model, ModelCard)
    target = read_model(arguments.target_model, ModelCard)
    checksums.require_unaltered(arguments.trials.parent, "the table", arguments.trials)
    regions, starts = transfer(settings, pl.read_parquet(arguments.trials, glob=False), proxy, target)
    write_json(arguments.regions, regions)
    write_json(arguments.starts, starts)
    explained = regions.explained
    if explained is not None and explained.value <= 0:
        from understudy.summary.wording import explained_text  # takes long to import

        progress.tell(f"transfer: {explained_text(explained.value, explained.trials)}")
