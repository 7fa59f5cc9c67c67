"""Evaluate the winner and the default configuration once on the test split."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from understudy import devices, process, watchdog
from understudy.artifacts import TestResult, Winner
from understudy.cli.training_arguments import add_running_argument, read_running
from understudy.files import read_model, write_json
from understudy.sections import TestSection
from understudy.store import Store
from understudy.trial import DataManifest, Execution, ModelCard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a rule passes."""
    for name in ("settings", "winner", "model", "manifest", "validation", "test", "execution", "store", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    add_running_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure on validation, then on test unless this very evaluation was done before; write the intervals."""
    execution = read_model(arguments.execution, Execution).resolved
    devices.lease(execution if execution.strategy == "fsdp" else execution.model_copy(update={"processes": 1}))
    process.set_threads(execution.threads)
    from understudy.data.files import require_split
    from understudy.summary.gain import bootstrap_gain
    from understudy.train.testing import LookLog, Trained

    section = read_model(arguments.settings, TestSection)
    manifest = read_model(arguments.manifest, DataManifest)
    for split in ("validation", "test"):  # before the look is counted
        require_split(getattr(arguments, split), manifest.splits[split].sha256)
    winner = read_model(arguments.winner, Winner)
    trained = Trained(
        digests=tuple(dict.fromkeys([*winner.digests, *winner.default_digests])),
        card=read_model(arguments.model, ModelCard),
        execution=execution,
        store=Store(arguments.store),
        max_length=manifest.max_length,
    )
    with watchdog.watching(read_running(arguments).watchdog_minutes, "the test"):
        validation = trained.losses(arguments.validation, manifest.validation_examples)
        test = LookLog(trained).losses(arguments.test, manifest.splits["test"].sha256, manifest.test_examples)
    gain = partial(
        bootstrap_gain,
        winner=winner.digests,
        default=winner.default_digests,
        samples=section.test.bootstrap_samples,
        confidence=section.test.confidence,
        seed=section.seed,
    )
    on_test = gain(test.by_digest, tokens=test.tokens)
    write_json(
        arguments.output,
        TestResult(
            looks=LookLog(trained).looks(),
            examples=len(test.tokens),
            seeds=len(winner.digests),
            winner_loss=on_test.winner,
            default_loss=on_test.default,
            gain=on_test.gain,
            validation_gain=gain(validation.by_digest, tokens=validation.tokens).gain,
        ),
    )
