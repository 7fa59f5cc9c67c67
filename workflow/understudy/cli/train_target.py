"""Train one target trial."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from understudy import interruption
from understudy.artifacts import Proposal
from understudy.cli.training_arguments import add_job_arguments, read_job
from understudy.errors import CorruptFileError
from understudy.files import read_model, write_json
from understudy.train.launch import train_alone
from understudy.train.trial import skip_trial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--proposal", type=Path, required=True, help="proposal.json of the trial")
    add_job_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="result.json of the trial")


def run(arguments: argparse.Namespace) -> None:
    """Read the proposal, train it unless it is skipped or the store has it, write the record."""
    interruption.listen()
    proposal, job = read_model(arguments.proposal, Proposal), read_job(arguments)
    if proposal.skip is not None:
        write_json(arguments.output, skip_trial(proposal.spec, job, proposal.skip))
        return
    evaluations = job.inputs.training.evaluations
    if proposal.stop_above and len(proposal.stop_above) != evaluations - 1:
        raise CorruptFileError(
            f"{arguments.proposal} has limits for {len(proposal.stop_above) + 1} evaluations, but a trial has "
            f"{evaluations} (`training.evaluations`); delete it and run the workflow again"
        )
    write_json(arguments.output, train_alone(proposal.spec, replace(job, stop_above=proposal.stop_above)))
