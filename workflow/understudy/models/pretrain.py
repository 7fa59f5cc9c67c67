"""The built-in model family: small Llamas, pretrained here on the standard library's source.

Notation: B sequences per step, T tokens per sequence, V vocabulary size, d hidden size. All in float32 on the CPU.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from understudy.models.tokenizer import tokens_of
from understudy.settings import PretrainSettings
from understudy.trial import derive_seed

# AdamW's customary settings for pretraining (Touvron et al. 2023, section 2.3), with a shorter warm-up; not tuned here.
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
MAX_GRAD_NORM = 1.0
WARMUP_SHARE = 0.05
FINAL_SHARE = 0.1  # of the peak rate, at the last step
LEAST_POSITIONS = 1024
CHUNK_ROWS = 256
PIECE = 4096  # characters
# The customary 0.02 learns far more slowly at these widths (192 x 4, 150 steps: loss 4.61, with 0.05 3.78).
INITIALIZER_RANGE = 0.05


def pretrain(settings: PretrainSettings, corpus: Sequence[str], tokenizer: Any, seed: int, folder: Path) -> list[float]:
    """Pretrain a model and write it to `folder` as a checkpoint that AutoModelForCausalLM loads.

    Returns the loss of each step in nats per token. Threads are the caller's: sums differ between their numbers.
    """
    model = _new_model(settings, tokenizer, derive_seed(seed, "pretrain", "weights"))
    return pretrain_model(model, settings, corpus, tokenizer, seed, folder)


def pretrain_model(
    model: Any, settings: PretrainSettings, corpus: Sequence[str], tokenizer: Any, seed: int, folder: Path
) -> list[float]:
    """The same for a given model, of any family: a decoder in `model` and a head in `lm_head`."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    sequences = _sequences(settings, corpus, tokenizer, derive_seed(seed, "pretrain", "order"))
    losses = _train(model, sequences, settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return losses


def _new_model(settings: PretrainSettings, tokenizer: Any, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=settings.num_attention_heads,
        intermediate_size=settings.intermediate_size,
        vocab_size=len(tokenizer),
        max_position_embeddings=max(LEAST_POSITIONS, settings.sequence_length),
        tie_word_embeddings=True,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=False,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def _sequences(settings: PretrainSettings, corpus: Sequence[str], tokenizer: Any, seed: int) -> Tensor:
    """As many sequences as training takes, of T + 1 tokens (the last one is only predicted): (steps, B, T + 1).

    They come from random pieces of all texts, of which only as many are tokenised as are needed.
    """
    order = random.Random(seed)
    pieces = [
        (text[start : start + PIECE], start + PIECE >= len(text))
        for text in corpus
        for start in range(0, len(text), PIECE)
    ]
    order.shuffle(pieces)
    count = settings.steps * settings.batch_size
    flat = torch.tensor(tokens_of(pieces, tokenizer, count * settings.sequence_length + 1))
    rows = flat.unfold(0, settings.sequence_length + 1, settings.sequence_length)  # (steps * B, T + 1)
    places = list(range(count))
    order.shuffle(places)
    return rows[places].view(settings.steps, settings.batch_size, -1)


def _train(model: Any, sequences: Tensor, settings: PretrainSettings) -> list[float]:
    parameters = list(model.parameters())
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.steps))
    model.train()
    losses = []
    for batch in sequences:  # (B, T + 1)
        optimizer.zero_grad()
        hidden = model.model(input_ids=batch[:, :-1]).last_hidden_state  # (B, T, d)
        losses.append(backward_in_chunks(hidden.flatten(0, 1), model.lm_head.weight, batch[:, 1:].flatten()))
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
    return losses


def backward_in_chunks(hidden: Tensor, weight: Tensor, labels: Tensor) -> float:
    """The mean cross-entropy of `hidden @ weight.T` (N, V) in nats, after its backward pass.

    A few rows at a time, so that the logits stay in the processor's cache: at these sizes fresh memory for all of
    them would take as long as everything else in the model. Shapes: hidden (N, d), weight (V, d), labels (N,).
    """
    leaf = hidden.detach().requires_grad_()
    total = 0.0
    for rows, row_labels in zip(torch.split(leaf, CHUNK_ROWS), torch.split(labels, CHUNK_ROWS), strict=True):
        loss = F.cross_entropy(F.linear(rows, weight), row_labels, reduction="sum") / len(labels)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    hidden.backward(leaf.grad)  # type: ignore[no-untyped-call]
    return total


def _rate(step: int, steps: int) -> float:
    """The share of the peak rate at a step: a linear warm-up, then half a cosine down to `FINAL_SHARE`."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))
