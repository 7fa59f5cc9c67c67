"""Write the report and the best configuration."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy import config
from understudy.artifacts import DecodeResults, Regions, TestResult, Winner
from understudy.files import read_json, read_model, write_text
from understudy.sections import SummarySection
from understudy.store import Store
from understudy.summary.best import Best
from understudy.summary.export import write_best
from understudy.summary.report import Findings, render
from understudy.trial import DataManifest, Execution, ModelCard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--settings", type=Path, required=True, help="settings/summary.json")
    parser.add_argument("--summary", type=Path, required=True, help="folder of tables and figures")
    parser.add_argument("--manifest", type=Path, required=True, help="manifest.json of the data")
    parser.add_argument("--execution", type=Path, nargs=2, required=True, help="the execution of both roles")
    parser.add_argument("--models", type=Path, nargs=2, required=True, help="model.json of both roles")
    parser.add_argument("--regions", type=Path, required=True, help="regions.json")
    parser.add_argument("--winner", type=Path, required=True, help="winner.json")
    parser.add_argument("--test", type=Path, required=True, help="test.json")
    parser.add_argument("--decode", type=Path, required=True, help="trials.json of the decoding search")
    parser.add_argument("--store", type=Path, required=True, help="folder of the trained trials")
    parser.add_argument("--config", type=Path, required=True, help="the whole config as JSON")
    parser.add_argument("--report", type=Path, required=True, help="the report, report.html")
    parser.add_argument("--best", type=Path, required=True, help="folder of the best configuration")


def run(arguments: argparse.Namespace) -> None:
    """Read, write the report, fill the folder of the best configuration."""
    settings = read_model(arguments.settings, SummarySection)
    cards = {card.role: card for card in (read_model(path, ModelCard) for path in arguments.models)}
    executions = {plan.role: plan for plan in (read_model(path, Execution) for path in arguments.execution)}
    best = Best(
        config=config.read_back(read_json(arguments.config), str(arguments.config)),
        winner=read_model(arguments.winner, Winner),
        test=read_model(arguments.test, TestResult),
        decode=read_model(arguments.decode, DecodeResults),
        manifest=read_model(arguments.manifest, DataManifest),
        card=cards["target"],
        execution=executions["target"].resolved,
    )
    findings = Findings(
        best=best,
        regions=read_model(arguments.regions, Regions),
        proxy=cards["proxy"],
        executions=executions,
        searched=tuple(settings.space),
        summary=arguments.summary,
    )
    write_text(arguments.report, render(findings))
    write_best(best, Store(arguments.store), arguments.best)
