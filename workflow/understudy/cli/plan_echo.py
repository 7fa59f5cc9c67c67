"""Write the specs of a pack that runs target configurations back on the proxy."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy.artifacts import Proposal, Regions
from understudy.files import read_model, write_json
from understudy.search.planning import plan_echo, solo_text
from understudy.sections import SearchSection
from understudy.trial import Execution, ModelCard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--settings", type=Path, required=True, help="search.json")
    parser.add_argument("--model", type=Path, required=True, help="the proxy's model.json")
    parser.add_argument("--execution", type=Path, required=True, help="the proxy's execution")
    parser.add_argument("--regions", type=Path, required=True, help="regions.json, for the scale")
    parser.add_argument("--pack", required=True, help="the pack's id, such as echo-000")
    parser.add_argument("--proposals", type=Path, nargs="+", required=True, help="the target's proposals")
    parser.add_argument("--output", type=Path, required=True)


def run(arguments: argparse.Namespace) -> None:
    """Read, call, write."""
    settings = read_model(arguments.settings, SearchSection)
    model = read_model(arguments.model, ModelCard)
    execution = read_model(arguments.execution, Execution).resolved
    scale = read_model(arguments.regions, Regions).scale
    proposals = [read_model(path, Proposal) for path in arguments.proposals]
    pack = plan_echo(settings, model, execution, scale, arguments.pack, proposals)
    write_json(arguments.output, pack)
    print(solo_text(pack))
