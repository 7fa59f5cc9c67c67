"""Write one slice of the config, as the workflow validated it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from understudy.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a rule passes."""
    parser.add_argument("--content", required=True, help="the slice as JSON")
    parser.add_argument("--output", type=Path, required=True)


def run(arguments: argparse.Namespace) -> None:
    """Write the JSON, indented."""
    write_json(arguments.output, json.loads(arguments.content), sealed=True)
