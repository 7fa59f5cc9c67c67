"""Train a finalist with one seed."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy import interruption
from understudy.artifacts import Selection
from understudy.cli.training_arguments import add_job_arguments, read_job
from understudy.files import read_model, write_json
from understudy.sections import FinalistSection
from understudy.train.finalist import finalist_spec
from understudy.train.launch import train_alone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--selection", type=Path, required=True, help="selection.json")
    parser.add_argument("--settings", type=Path, required=True, help="settings/finalists.json")
    parser.add_argument("--rank", type=int, required=True, help="which finalist; 0 is the default configuration")
    parser.add_argument("--seed-index", type=int, required=True, help="which of the finalist's seeds, from 0")
    add_job_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="result.json of the trial")


def run(arguments: argparse.Namespace) -> None:
    """Make the finalist's spec, train it unless the store has it, write the record."""
    interruption.listen()
    selection = read_model(arguments.selection, Selection)
    settings = read_model(arguments.settings, FinalistSection)
    spec = finalist_spec(selection, arguments.rank, settings.seed, arguments.seed_index)
    write_json(arguments.output, train_alone(spec, read_job(arguments)))
