"""Models of another family and another task than the default study's, for a second table of fine-tuning runs.

    make run
    python tests/benchmarks/transfer_models.py [--results results] [--steps 300]
    snakemake --cores 2 --configfile tests/benchmarks/transfer_qwen2.yaml --until write_settings
    snakemake --cores 2 --configfile tests/benchmarks/transfer_qwen2.yaml --until prepare_model
    python tests/benchmarks/transfer_runs.py --results .cache/transfer-qwen2/results --configurations 200 --repeated 0 \
        --seeds 1 --models proxy_nf4 target_fp32 --output tests/benchmarks/transfer_runs_qwen2.parquet

Two Qwen2 models, with biases and fewer keys than queries, pretrained as the built-in Llamas are, with their tokenizer.
The task is theirs the other way round: a function's signature from its docstring.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from understudy.data.corpus import training_corpus
from understudy.files import read_model
from understudy.models.pretrain import INITIALIZER_RANGE, LEAST_POSITIONS, pretrain_model
from understudy.paths import StudyPaths
from understudy.process import set_threads
from understudy.settings import PretrainSettings
from understudy.trial import DataManifest, ModelCard, derive_seed

OUTPUT = Path(".cache/transfer-qwen2")  # as in transfer_qwen2.yaml
KEY_VALUE_HEADS = 2
SHAPES = {
    "proxy": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160},
    "target": {"hidden_size": 160, "num_hidden_layers": 4, "num_attention_heads": 10, "intermediate_size": 400},
}
BATCH = 12
SEED = 1


def main() -> None:
    """Write both checkpoints and the three files of examples."""
    options = arguments(sys.argv[1:])
    paths = StudyPaths(options.results)
    set_threads(1)
    turn_round(paths, OUTPUT)
    tokenizer = AutoTokenizer.from_pretrained(read_model(paths.model("proxy"), ModelCard).path)
    corpus = training_corpus(read_model(paths.manifest, DataManifest), paths.data("train"))
    for role, shape in SHAPES.items():
        settings = PretrainSettings(**shape, steps=options.steps, batch_size=BATCH)
        losses = pretrain_model(new(shape, tokenizer), settings, corpus, tokenizer, SEED, OUTPUT / role)
        print(f"{role}: {losses[0]:.3f} to {losses[-1]:.3f} nats per token in {len(losses)} steps")


def turn_round(paths: StudyPaths, folder: Path) -> None:
    """The study's examples with prompt and completion in each other's place."""
    folder.mkdir(parents=True, exist_ok=True)
    prompt, completion = pl.col("completion") + "\n", pl.col("prompt").str.strip_chars_end()
    for split in ("train", "validation", "test"):
        examples = pl.read_parquet(paths.data(split)).select(prompt=prompt, completion=completion)
        examples.write_ndjson(folder / f"{split}.jsonl")


def new(shape: dict[str, int], tokenizer: Any) -> Any:
    """A Qwen2 with random weights."""
    torch.manual_seed(derive_seed(SEED, "pretrain", "weights"))
    return Qwen2ForCausalLM(
        Qwen2Config(
            **shape,
            num_key_value_heads=KEY_VALUE_HEADS,
            vocab_size=len(tokenizer),
            max_position_embeddings=LEAST_POSITIONS,
            tie_word_embeddings=True,
            initializer_range=INITIALIZER_RANGE,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=False,
        )
    )


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--results", type=Path, default=Path("results"), help="a study of the built-in task with its data and models")
    add("--steps", type=int, default=300)
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
