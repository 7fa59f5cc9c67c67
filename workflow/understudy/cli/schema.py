"""Print the JSON schema of `config.yaml`, or the reference of its keys; `make schema` writes both where they belong."""

from __future__ import annotations

import argparse
import json

from understudy import config, reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `make schema` passes."""
    parser.add_argument("--markdown", action="store_true", help="print the reference of the keys instead")


def run(arguments: argparse.Namespace) -> None:
    """Print to standard output."""
    print(reference.markdown() if arguments.markdown else json.dumps(config.schema(), indent=2))
