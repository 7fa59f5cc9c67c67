"""What is trained in the benchmark: base models with random weights, random examples, trials."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from understudy.data.encoding import Encoded
from understudy.hyperparameters import complete
from understudy.train.loop import Examples
from understudy.trial import TrialSpec

EXAMPLES = 512  # of the training set; a power of two, so that a number of steps comes out exactly from epochs
Device = Literal["cpu", "cuda"]
Architecture = Literal["llama", "qwen2"]


@dataclass(frozen=True)
class Shape:
    """A base model, and what one optimizer step of a trial sees of the data."""

    rows: int
    tokens: int  # per row
    hidden: int
    layers: int
    heads: int
    key_heads: int
    intermediate: int
    vocabulary: int
    architecture: Architecture


@dataclass(frozen=True)
class Task:
    """What one process does in one measurement: train trials `first`, `first` + 1, … for so many steps each."""

    kind: Literal["solo", "pack"]
    trials: int  # one where `kind` is solo
    rows: int  # of each trial's step
    steps: int
    pass_tokens: int  # that may go through the model at once
    ragged: bool
    rank: int
    dropout: float
    first: int = 0
    ablation: str | None = None
    compiled: bool = False  # where `kind` is solo: the base's layers by `torch.compile`


def write_checkpoint(shape: Shape, folder: Path, dtype: torch.dtype) -> None:
    """Write a checkpoint with random weights, large enough that gradients matter."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    options = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": max(2048, shape.tokens),
        "tie_word_embeddings": True,
        "initializer_range": 1.5 * shape.hidden**-0.5,
    }
    model: Any
    if shape.architecture == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**options))
    else:
        model = LlamaForCausalLM(LlamaConfig(**options))
    model.to(dtype).save_pretrained(folder)


@cache
def random_examples(shape: Shape, ragged: bool) -> Examples:
    """Random tokens, in rows of one length or of lengths from a quarter of it on; the last third is completion."""
    draw, longest = random.Random(0), shape.tokens
    examples = []
    for _ in range(EXAMPLES):
        length = draw.randint(longest // 4, longest) if ragged else longest
        ids = [draw.randrange(shape.vocabulary) for _ in range(length)]
        examples.append(Encoded(ids, length - length // 3, length // 3))
    return Examples(train=examples, validation=examples[:1], pad_token_id=0)


def spec_of(task: Task, number: int) -> TrialSpec:
    """Trial `number`: seed and learning rate of its own."""
    values = {
        "learning_rate": 5e-3 * (1 + number % 4),
        "batch_size": task.rows,
        "num_train_epochs": task.steps * task.rows / EXAMPLES,
        "warmup_ratio": 0.0,  # the first step tells already
        "lora_r": task.rank,
        "lora_alpha": 2 * task.rank,
        "lora_dropout": task.dropout,
    }
    return TrialSpec(
        id=f"r{number:04d}", stage="proxy", origin="random", hyperparameters=complete(values, {}, "lora"), seed=number
    )
