"""Choose who is trained again over several seeds."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy.artifacts import Starts
from understudy.files import read_model, write_json
from understudy.search.finalists import select_finalists
from understudy.sections import FinalistSection
from understudy.trial import TrialRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--settings", type=Path, required=True, help="finalists.json")
    parser.add_argument("--starts", type=Path, required=True)
    parser.add_argument("--trials", type=Path, nargs="+", required=True, help="the target's results")
    parser.add_argument("--output", type=Path, required=True)


def run(arguments: argparse.Namespace) -> None:
    """Read, call, write."""
    settings = read_model(arguments.settings, FinalistSection)
    starts = read_model(arguments.starts, Starts)
    records = [read_model(path, TrialRecord) for path in arguments.trials]
    write_json(arguments.output, select_finalists(settings.configurations, starts, records))
