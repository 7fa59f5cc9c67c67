"""Train a pack of proxy trials on one base."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy import interruption
from understudy.cli.training_arguments import add_job_arguments, read_job
from understudy.files import read_model, write_json
from understudy.train.pack import train_pack
from understudy.trial import Pack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--specs", type=Path, required=True, help="specs.json of the pack")
    add_job_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="results.json of the pack")


def run(arguments: argparse.Namespace) -> None:
    """Read the pack, train what the store lacks, write the results."""
    interruption.listen()
    pack = read_model(arguments.specs, Pack)
    write_json(arguments.output, train_pack(pack, read_job(arguments)))
