"""Write the specs of one pack of proxy trials."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy.files import read_model, write_json
from understudy.search.planning import plan_pack
from understudy.sections import SearchSection
from understudy.trial import ModelCard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--settings", type=Path, required=True, help="search.json")
    parser.add_argument("--model", type=Path, required=True, help="the proxy's model.json")
    parser.add_argument("--pack", required=True, help="the pack's id, such as random-000")
    parser.add_argument("--first", type=int, required=True, help="number of its first trial within its origin")
    parser.add_argument("--count", type=int, required=True, help="how many trials it has")
    parser.add_argument("--output", type=Path, required=True)


def run(arguments: argparse.Namespace) -> None:
    """Read, call, write."""
    settings = read_model(arguments.settings, SearchSection)
    model = read_model(arguments.model, ModelCard)
    write_json(arguments.output, plan_pack(settings, model, arguments.pack, arguments.first, arguments.count))
