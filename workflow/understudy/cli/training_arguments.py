"""What the three commands that train have in common: their arguments, and the job made of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy.files import read_model
from understudy.sections import RunningSection, TrainingSection
from understudy.settings import RunningSettings
from understudy.train.trial import Job
from understudy.trial import DataManifest, Execution, ModelCard, TrialInputs


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the files that every trial of a command needs."""
    parser.add_argument("--model", type=Path, required=True, help="model.json of the base")
    parser.add_argument("--manifest", type=Path, required=True, help="manifest.json of the data")
    parser.add_argument("--train", type=Path, required=True, help="train.parquet")
    parser.add_argument("--validation", type=Path, required=True, help="validation.parquet")
    parser.add_argument("--execution", type=Path, required=True, help="execution.json")
    parser.add_argument("--training", type=Path, required=True, help="settings/training.json")
    add_running_argument(parser)
    parser.add_argument("--store", type=Path, required=True, help="folder of the trained trials")
    parser.add_argument("--progress", type=Path, required=True, help="progress.jsonl")


def add_running_argument(parser: argparse.ArgumentParser) -> None:
    """Declare how a command is kept safe."""
    parser.add_argument("--running", type=Path, help="settings/running.json; without it the config's defaults")


def read_running(arguments: argparse.Namespace) -> RunningSettings:
    """How a command is kept safe."""
    return read_model(arguments.running, RunningSection).running if arguments.running else RunningSettings()


def read_job(arguments: argparse.Namespace) -> Job:
    """The job that a command's arguments describe."""
    execution = read_model(arguments.execution, Execution)
    inputs = TrialInputs(
        data=read_model(arguments.manifest, DataManifest),
        model=read_model(arguments.model, ModelCard),
        execution=execution.resolved,
        training=read_model(arguments.training, TrainingSection).training,
    )
    files = (arguments.train, arguments.validation, arguments.store, arguments.progress)
    return Job(inputs, *files, running=read_running(arguments), gpu_bytes=execution.gpu_bytes)
