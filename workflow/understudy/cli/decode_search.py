"""Search the winner's decoding hyperparameters on validation prompts."""

from __future__ import annotations

import argparse
from pathlib import Path

from understudy import devices, process, watchdog
from understudy.artifacts import DecodeResults, Winner
from understudy.cli.training_arguments import add_running_argument, read_running
from understudy.files import read_model, write_json
from understudy.sections import DecodeSection
from understudy.store import Store
from understudy.trial import DataManifest, Execution, ModelCard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a rule passes."""
    for name in ("settings", "winner", "model", "manifest", "validation", "execution", "store", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    add_running_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Write the scored configurations, best first; none where the config asks for none."""
    section = read_model(arguments.settings, DecodeSection)
    if section.decode.trials == 0:
        write_json(arguments.output, DecodeResults(examples=0, trials=()))
        return
    execution = read_model(arguments.execution, Execution).resolved
    devices.lease(execution if execution.strategy == "fsdp" else execution.model_copy(update={"processes": 1}))
    process.set_threads(execution.threads)
    from understudy.data.encoding import encode_prompt
    from understudy.data.files import read_split
    from understudy.models.loading import load_tokenizer
    from understudy.train import decoding
    from understudy.train.trained import trained_models

    card = read_model(arguments.model, ModelCard)
    winner = read_model(arguments.winner, Winner)
    manifest = read_model(arguments.manifest, DataManifest)
    tokenizer = load_tokenizer(card)
    frame = read_split(arguments.validation, section.decode.examples, manifest.splits["validation"].sha256)
    references = [completion.strip() for completion in frame["completion"]]
    with watchdog.watching(read_running(arguments).watchdog_minutes, "the decoding search"):
        model = next(trained_models(card, execution, [Store(arguments.store).adapter(winner.digests[0])]))
        room = decoding.room(model, manifest.max_length, section.decode.max_new_tokens)
        prompts = [
            encode_prompt(prompt, chat, tokenizer, room, example)
            for prompt, chat, example in frame.select("prompt", "chat", "id").iter_rows()
        ]
        trials = decoding.search(model, tokenizer, prompts, references, section.decode, execution, section.seed)
    write_json(arguments.output, DecodeResults(examples=len(prompts), trials=trials))
