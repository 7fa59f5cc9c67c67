"""Losses of a model on given completions: the same code on the learning curve and in the final test."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from understudy import watchdog
from understudy.data.encoding import Encoded
from understudy.train.forward import collate, completion_logits, device_of
from understudy.trial import ResolvedExecution


@dataclass(frozen=True)
class ExampleScores:
    """Per example, in the order given."""

    losses: list[float]  # summed negative log-likelihood of the completion, in nats
    tokens: list[int]  # completion tokens
    correct: list[int]  # of them predicted by the largest logit


def completion_losses(
    model: nn.Module, examples: Sequence[Encoded], pad_token_id: int, execution: ResolvedExecution
) -> tuple[list[float], list[int]]:
    """Each example's summed negative log-likelihood in nats over its completion tokens, and their number.

    Both lists are in the order of `examples`. The model comes back in the mode (training or evaluation) that it
    was in. Deterministic: examples are sorted by length and batched by `micro_batch_size`.
    """
    scores = score(model, examples, pad_token_id, execution)
    return scores.losses, scores.tokens


def score(
    model: nn.Module, examples: Sequence[Encoded], pad_token_id: int, execution: ResolvedExecution
) -> ExampleScores:
    """`completion_losses` with the number of tokens that the model would have chosen itself."""
    scores = ExampleScores([0.0] * len(examples), [0] * len(examples), [0] * len(examples))
    order = sorted(range(len(examples)), key=lambda index: (len(examples[index].input_ids), index))
    device = device_of(model)
    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(order), execution.micro_batch_size):
            chosen = order[start : start + execution.micro_batch_size]
            batch = collate([examples[index] for index in chosen], pad_token_id, device, execution)
            logits = completion_logits(model, batch, execution)
            largest = logits.amax(dim=-1)
            chosen_logits = logits.gather(1, batch.targets.unsqueeze(1)).squeeze(1)
            losses = F.cross_entropy(logits, batch.targets, reduction="none").tolist()
            hits = (chosen_logits == largest).tolist()
            first = 0
            for index, count in zip(chosen, batch.counts, strict=True):
                scores.losses[index] = math.fsum(losses[first : first + count])
                scores.tokens[index] = count
                scores.correct[index] = sum(hits[first : first + count])
                first += count
            watchdog.beat()
    return scores


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the former mode of every module outside."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        if (reshard := getattr(model, "reshard", None)) is not None:
            reshard()  # FSDP's root stays gathered after a pass without a backward one, and can't be saved or loaded so
