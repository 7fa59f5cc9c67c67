"""Evaluate the winner and the default configuration once on the test split."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy import process
from understudy.artifacts import TestResult, Winner
from understudy.files import read_model, write_json
from understudy.sections import TestSection
from understudy.store import Store
from understudy.trial import DataManifest, Execution, ModelCard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a rule passes."""
    for name in ("settings", "winner", "model", "manifest", "validation", "test", "execution", "store", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)


def run(arguments: argparse.Namespace) -> None:
    """Measure on validation, then on test unless this very evaluation was done before; write the intervals."""
    process.end_with_parent()
    execution = read_model(arguments.execution, Execution).target
    process.set_threads(execution.threads)
    from understudy.data.encoding import encode
    from understudy.data.files import read_split
    from understudy.models.loading import load_tokenizer
    from understudy.summary.gain import bootstrap_gain
    from understudy.train.testing import TestLog, measure

    section = read_model(arguments.settings, TestSection)
    card = read_model(arguments.model, ModelCard)
    winner = read_model(arguments.winner, Winner)
    manifest = read_model(arguments.manifest, DataManifest)
    store = Store(arguments.store)
    tokenizer = load_tokenizer(card)
    digests = [*winner.digests, *winner.default_digests]

    def losses(split: Path, limit: int | None):  # type: ignore[no-untyped-def]
        examples = encode(read_split(split, limit), tokenizer, manifest.max_length)
        return measure(digests, examples, card, execution, store, tokenizer.pad_token_id)

    validation = losses(arguments.validation, manifest.validation_examples)
    log = TestLog(store)
    key = log.key(digests, manifest.splits["test"].sha256, manifest.test_examples, execution)
    test = log.find(key)
    if test is None:
        log.begin(key)
        test = losses(arguments.test, manifest.test_examples)
        log.save(key, test)

    def gain(measured):  # type: ignore[no-untyped-def]
        return bootstrap_gain(
            measured.of(winner.digests),
            measured.of(winner.default_digests),
            measured.tokens,
            same=winner.rank == 0,
            samples=section.test.bootstrap_samples,
            confidence=section.test.confidence,
            seed=section.seed,
        )

    on_test, on_validation = gain(test), gain(validation)
    write_json(
        arguments.output,
        TestResult(
            looks=log.looks(),
            examples=len(test.tokens),
            seeds=len(winner.digests),
            winner_loss=on_test.winner,
            default_loss=on_test.default,
            gain=on_test.gain,
            validation_gain=on_validation.gain,
        ),
    )
