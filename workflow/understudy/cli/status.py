"""Show how far a study is."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy import progress
from understudy.errors import UserError
from understudy.paths import StudyPaths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--results", type=Path, default=Path("results"), help="the study's folder (default: results)")


def run(arguments: argparse.Namespace) -> None:
    """Print one line per stage that the study has."""
    path = StudyPaths(arguments.results).progress
    if not path.exists():
        raise UserError(
            f"no study has begun in `{arguments.results}` ({path.name} is missing); start one with `snakemake "
            "--cores all`, or name the config's `results` folder with --results"
        )
    state = progress.state(path)
    for stage in (stage for stage in progress.STAGES if state.totals.get(stage)):
        print(state.line(stage))
