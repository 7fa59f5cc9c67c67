"""Show how far a study is."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy import lease, progress
from understudy.errors import UserError
from understudy.paths import StudyPaths

THROUGH = "No run is under way: the last one did all that it was asked for."
ENDED = "No run is under way. Where something is left to do, the same command goes on."
FAILED = (
    "No run is under way: the last one ended before it was through, for an error or a signal (see what it said, and "
    "{logs}). The same command goes on where it was."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--results", type=Path, default=Path("results"), help="the study's folder (default: results)")


def run(arguments: argparse.Namespace) -> None:
    """Print one line per stage that the study has, and whether a run is under way."""
    paths = StudyPaths(arguments.results)
    path = paths.progress
    if not path.exists():
        raise UserError(
            f"no study has begun in `{arguments.results}` ({path.name} is missing); start one with `snakemake "
            "--cores all`, or name the config's `results` folder with --results"
        )
    state = progress.state(path)
    under_way = lease.is_held(paths.lock)
    if not under_way:
        state = state.at_rest()
    for stage in (stage for stage in progress.STAGES if state.totals.get(stage)):
        print(state.line(stage))
    if not under_way:
        failed = FAILED.format(logs=paths.root / "logs")
        print({True: THROUGH, False: failed, None: ENDED}[state.through])
