"""One forward pass: from encoded examples to the logits that predict their completions.

Notation: R rows in a micro-batch, T tokens per row after padding, H the hidden size, V the vocabulary size,
n the completion tokens of the micro-batch. Token t of a row is predicted at position t - 1.

Rows are padded on the right and no attention mask is passed. A causal model never looks to the right, so padding
cannot reach a token that counts, and attention keeps its fast causal kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from understudy.data.encoding import Encoded
from understudy.trial import ResolvedExecution

PAD_MULTIPLE = 8  # on GPUs rows become a multiple of this long: the size that tensor cores like


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once."""

    input_ids: Tensor  # (R, T)
    positions: Tensor  # (n,), into the R * T flattened positions: where completion tokens are predicted
    targets: Tensor  # (n,), the completion tokens
    counts: tuple[int, ...]  # completion tokens of each row; they sum to n
    tokens: int  # tokens of prompts and completions, without padding


def collate(examples: Sequence[Encoded], pad_token_id: int, device: torch.device) -> MicroBatch:
    """Pad examples to the longest of them, on GPUs to a multiple of `PAD_MULTIPLE`, and move them to `device`.

    A completion that starts at token 0 loses that token: nothing predicts it.
    """
    longest = max(len(example.input_ids) for example in examples)
    length = -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE if device.type == "cuda" else longest
    rows: list[list[int]] = []
    positions: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    for row, example in enumerate(examples):
        ids, start = example.input_ids, max(example.completion_start, 1)
        rows.append(ids + [pad_token_id] * (length - len(ids)))
        positions.extend(range(row * length + start - 1, row * length + len(ids) - 1))
        targets.extend(ids[start:])
        counts.append(len(ids) - start)
    return MicroBatch(
        input_ids=torch.tensor(rows).to(device, non_blocking=True),
        positions=torch.tensor(positions).to(device, non_blocking=True),
        targets=torch.tensor(targets).to(device, non_blocking=True),
        counts=tuple(counts),
        tokens=sum(len(example.input_ids) for example in examples),
    )


def completion_logits(model: nn.Module, batch: MicroBatch, execution: ResolvedExecution) -> Tensor:
    """The logits that predict the completion tokens, (n, V) in float32.

    The head is applied at those positions only: with a vocabulary much larger than the model is wide, it would
    otherwise be most of the work. A model without an output embedding of its own computes all logits first.
    """
    head = _head(model)
    with _autocast(execution), _only_at(head, batch.positions):
        logits: Tensor = model(input_ids=batch.input_ids, use_cache=False).logits
    kept = logits.flatten(0, 1)
    if head is None:
        kept = kept[batch.positions]
    return kept.float()


def _head(model: nn.Module) -> nn.Module | None:
    """The module that maps hidden states to logits, if the model says which one it is."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if get is not None else None
    return head if isinstance(head, nn.Module) else None


@contextmanager
def _only_at(head: nn.Module | None, positions: Tensor) -> Iterator[None]:
    """Let the head see the hidden states (1, n, H) at some positions instead of all (R, T, H)."""
    if head is None:
        yield
        return

    def gather(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden: Tensor = inputs[0]
        at = positions.to(hidden.device)  # another one where the model is spread over GPUs
        return (hidden.flatten(0, 1)[at].unsqueeze(0), *inputs[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def _autocast(execution: ResolvedExecution) -> AbstractContextManager[Any]:
    if execution.dtype == "float32":
        return nullcontext()
    return torch.autocast(execution.device, dtype=getattr(torch, execution.dtype))


def device_of(model: nn.Module) -> torch.device:
    """Where a model's inputs must be: with its parameters, unless these are sharded and offloaded to the host."""
    parameter = next(model.parameters())
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None or mesh.device_type == parameter.device.type:
        return parameter.device
    return torch.device(mesh.device_type, torch.cuda.current_device())
