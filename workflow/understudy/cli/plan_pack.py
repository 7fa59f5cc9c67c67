"""Write the specs of one pack of proxy trials."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy.files import read_model, write_json
from understudy.graph import PackRange
from understudy.search.planning import plan_pack, solo_text
from understudy.sections import SearchSection
from understudy.trial import Execution, ModelCard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--settings", type=Path, required=True, help="search.json")
    parser.add_argument("--model", type=Path, required=True, help="the proxy's model.json")
    parser.add_argument("--execution", type=Path, required=True, help="the proxy's execution")
    parser.add_argument("--pack", required=True, help="the pack's id, such as random-000")
    parser.add_argument("--first", type=int, required=True, help="number of its block's first trial within its origin")
    parser.add_argument("--block", type=int, required=True, help="how many trials its block has")
    parser.add_argument("--index", type=int, required=True, help="which pack of its block it is, from 0")
    parser.add_argument("--size", type=int, required=True, help="how many trials a full pack has")
    parser.add_argument("--output", type=Path, required=True)


def run(arguments: argparse.Namespace) -> None:
    """Read, call, write."""
    settings = read_model(arguments.settings, SearchSection)
    model = read_model(arguments.model, ModelCard)
    execution = read_model(arguments.execution, Execution).resolved
    origin = arguments.pack.rsplit("-", 1)[0]
    place = PackRange(origin, arguments.first, arguments.block, arguments.index, arguments.size)
    pack = plan_pack(settings, model, execution, arguments.pack, place)
    write_json(arguments.output, pack)
    print(solo_text(pack))
