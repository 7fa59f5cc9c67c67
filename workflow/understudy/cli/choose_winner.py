"""Choose the finalist with the best mean on validation."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy.artifacts import Selection
from understudy.files import read_model, write_json
from understudy.search.finalists import choose_winner
from understudy.trial import TrialRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--selection", type=Path, required=True)
    parser.add_argument("--results", type=Path, nargs="+", required=True, help="the finalists' results")
    parser.add_argument("--output", type=Path, required=True)


def run(arguments: argparse.Namespace) -> None:
    """Read, call, write."""
    selection = read_model(arguments.selection, Selection)
    records = [read_model(path, TrialRecord) for path in arguments.results]
    write_json(arguments.output, choose_winner(selection, records))
