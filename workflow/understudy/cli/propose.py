"""Propose one target trial."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy.artifacts import Regions, Starts
from understudy.files import read_model, write_json
from understudy.search.propose import needs_history, propose
from understudy.search.window import History, read_history
from understudy.sections import TargetSection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--settings", type=Path, required=True, help="target.json")
    parser.add_argument("--stage", choices=("truncated", "target"), default="target")
    parser.add_argument("--number", type=int, required=True, help="the proposal's number, from 0")
    parser.add_argument("--regions", type=Path, required=True)
    parser.add_argument("--starts", type=Path, required=True)
    parser.add_argument("--trials-dir", type=Path, required=True, help="folder of the stage's trials")
    parser.add_argument("--truncated", type=Path, nargs="*", default=(), help="results of the target's truncated runs")
    parser.add_argument("--output", type=Path, required=True)


def run(arguments: argparse.Namespace) -> None:
    """Read, call, write."""
    settings = read_model(arguments.settings, TargetSection)
    regions = read_model(arguments.regions, Regions)
    starts = read_model(arguments.starts, Starts)
    history = History()
    if needs_history(settings, arguments.number, starts):
        history = read_history(arguments.trials_dir, arguments.number, settings.window, arguments.truncated)
    proposal = propose(settings, arguments.number, regions, starts, history, arguments.stage)
    write_json(arguments.output, proposal)
