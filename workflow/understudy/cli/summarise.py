"""Write the study's tables, figures and headline."""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from understudy.artifacts import DecodeResults, Proposal, Regions, Starts, TestResult, Winner
from understudy.files import read_model
from understudy.search.importance import importance_table
from understudy.sections import SummarySection
from understudy.summary.summarise import Evidence, write_summary
from understudy.summary.tables import trials_frame
from understudy.trial import Execution, ModelCard, PackResults, TrialRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--settings", type=Path, required=True, help="settings/summary.json")
    parser.add_argument("--packs", type=Path, nargs="+", required=True, help="results.json of every pack")
    parser.add_argument("--targets", type=Path, nargs="+", required=True, help="result.json of every run of the target")
    parser.add_argument("--finalists", type=Path, nargs="+", required=True, help="result.json of every finalist's seed")
    parser.add_argument("--regions", type=Path, required=True, help="regions.json")
    parser.add_argument("--starts", type=Path, required=True, help="starts.json")
    parser.add_argument("--proposals", type=Path, nargs="+", required=True, help="proposal.json of every target trial")
    parser.add_argument("--winner", type=Path, required=True, help="winner.json")
    parser.add_argument("--test", type=Path, required=True, help="test.json")
    parser.add_argument("--decode", type=Path, required=True, help="trials.json of the decoding search")
    parser.add_argument("--models", type=Path, nargs=2, required=True, help="model.json of both roles")
    parser.add_argument("--execution", type=Path, nargs=2, required=True, help="the execution of both roles")
    parser.add_argument("--output", type=Path, required=True, help="folder of tables and figures")


def run(arguments: argparse.Namespace) -> None:
    """Read, summarise, write."""
    settings = read_model(arguments.settings, SummarySection)
    packs = [read_model(path, PackResults) for path in arguments.packs]
    records = [record for pack in packs for record in pack.records]
    records += [read_model(path, TrialRecord) for path in (*arguments.targets, *arguments.finalists)]
    regions = read_model(arguments.regions, Regions)
    evidence = Evidence(
        records=records,
        proposals=[read_model(path, Proposal) for path in arguments.proposals],
        regions=regions,
        starts=read_model(arguments.starts, Starts),
        winner=read_model(arguments.winner, Winner),
        test=read_model(arguments.test, TestResult),
        decode=read_model(arguments.decode, DecodeResults),
        cards=[read_model(path, ModelCard) for path in arguments.models],
        executions={plan.role: plan for plan in (read_model(path, Execution) for path in arguments.execution)},
        pack_notes=[(pack.id, note) for pack in packs for note in pack.notes],
    )
    trials = trials_frame(records)
    importance = {
        "proxy": importance_table(_searched(trials, "proxy"), settings.space, settings.seed),
        "target": importance_table(_searched(trials, "target"), regions.space, settings.seed),
    }
    write_summary(evidence, settings, importance, arguments.output)


def _searched(trials: pl.DataFrame, stage: str) -> pl.DataFrame:
    """A stage's own search: the echoes repeat the target's configurations and would bend the proxy's picture."""
    return trials.filter(pl.col("stage") == stage, pl.col("origin") != "echo")
