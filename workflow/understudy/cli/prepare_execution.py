"""Decide once how trials run."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy import progress
from understudy.files import read_model, write_json
from understudy.sections import ExecutionSection
from understudy.trial import DataManifest, ModelCard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--settings", type=Path, required=True, help="the slice `execution` of the config")
    parser.add_argument("--model", type=Path, required=True, help="model.json of the role")
    parser.add_argument("--manifest", type=Path, required=True, help="the data's manifest")
    parser.add_argument("--progress", type=Path, required=True, help="progress.jsonl")
    parser.add_argument("--output", type=Path, required=True, help="where the execution goes, one file per role")


def run(arguments: argparse.Namespace) -> None:
    section = read_model(arguments.settings, ExecutionSection)
    manifest = read_model(arguments.manifest, DataManifest)
    card = read_model(arguments.model, ModelCard)
    from understudy.models.execution import resolve
    from understudy.models.hardware import detect
    from understudy.models.strategy import SAID

    hardware = detect(section.execution.device)
    execution = resolve(section.execution, card, manifest.max_length, hardware, section.method)
    write_json(arguments.output, execution)
    for note in execution.notes or ("nothing was left to decide",):
        if note.startswith(SAID):  # the estimate, and what doesn't fit, are to show before the proxy is paid for
            progress.note(arguments.progress, note)
        else:
            print(note)
