"""Fetch, check or pretrain a base model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from understudy import progress
from understudy.data import pin, stdlib
from understudy.data.corpus import training_corpus
from understudy.files import read_model, write_json
from understudy.process import set_threads
from understudy.sections import ModelSection
from understudy.trial import DataManifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--settings", type=Path, required=True, help="the slice `model-ROLE` of the config")
    parser.add_argument("--manifest", type=Path, required=True, help="the data's manifest, beside its splits")
    parser.add_argument("--output", type=Path, required=True, help="where the model's card goes")


def run(arguments: argparse.Namespace) -> None:
    section = read_model(arguments.settings, ModelSection)
    manifest = read_model(arguments.manifest, DataManifest)
    set_threads(section.threads)
    from understudy.data.fit import notes_on_fit
    from understudy.models.checkpoint import notes_on_length, without_weights
    from understudy.models.loading import load_tokenizer
    from understudy.models.prepare import prepare_model
    from understudy.train.adapters import require_layers

    def corpus() -> Sequence[str]:
        pin.hold(arguments.manifest.parent.parent, stdlib.identity(stdlib.source_files()))
        return training_corpus(manifest, arguments.manifest.with_name("train.parquet"))

    card = prepare_model(section, corpus, manifest.source.get("format"))
    if section.lora_target_modules:
        require_layers(without_weights(Path(card.path)), section.lora_target_modules, f"the {card.role}")
    notes = notes_on_length(Path(card.path), manifest.max_length)
    notes += notes_on_fit(manifest, arguments.manifest.parent, load_tokenizer(card), card.vocab_size)
    for note in notes:
        progress.tell(f"{card.role}: {note}")
    write_json(arguments.output, card.model_copy(update={"notes": notes}))
    print(f"{card.name}: {card.parameters:,} parameters, {card.quantization}, in {card.path}")
