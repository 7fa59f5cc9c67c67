"""Make the data set's three splits and its manifest."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy import progress
from understudy.data import notices
from understudy.data.prepare import prepare_data
from understudy.files import read_model
from understudy.sections import DataSection
from understudy.settings import SPLITS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--settings", type=Path, required=True, help="the slice `data` of the config")
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=Path, required=True, help=f"where the {split} split goes (parquet)")
    parser.add_argument("--manifest", type=Path, required=True, help="where the manifest goes")


def run(arguments: argparse.Namespace) -> None:
    section = read_model(arguments.settings, DataSection)
    manifest = prepare_data(section, {split: getattr(arguments, split) for split in SPLITS}, arguments.manifest)
    sizes = ", ".join(f"{manifest.splits[split].examples} {split}" for split in SPLITS)
    print(f"{manifest.counts['kept']} examples of {manifest.counts['found']}: {sizes}")
    for note in notices.of_rows(manifest.counts):
        progress.tell(f"data: {note}")
    for note in notices.of_columns(manifest.counts):
        print(note)
