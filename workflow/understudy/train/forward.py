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
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from understudy.data.encoding import Encoded
from understudy.train.upload import to_device
from understudy.trial import ResolvedExecution

PAD_MULTIPLE = 8  # on GPUs rows become a multiple of this long: the size that tensor cores like


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once."""

    input_ids: Tensor  # (R, T); (1, T) where examples follow each other without padding
    positions: Tensor  # (n,), into the R * T flattened positions: where completion tokens are predicted
    targets: Tensor  # (n,), the completion tokens
    counts: tuple[int, ...]  # completion tokens of each row; they sum to n
    tokens: int  # tokens of prompts and completions, without padding
    apart: dict[str, Any]  # what the model needs to know to keep several examples of a row apart


def collate(
    examples: Sequence[Encoded], pad_token_id: int, device: torch.device, execution: ResolvedExecution
) -> MicroBatch:
    """Pad examples to the longest of them, on GPUs to a multiple of `PAD_MULTIPLE`, and move them to `device`.

    With `padding_free` they become one row. A completion that starts at token 0 loses that token: nothing predicts it.
    """
    longest = max(len(example.input_ids) for example in examples)
    length = -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE if device.type == "cuda" else longest
    ids: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    for example in examples:
        begin, start = len(ids), max(example.completion_start, 1)
        ids += example.input_ids
        positions.extend(range(begin + start - 1, len(ids) - 1))
        targets.extend(example.input_ids[start:])
        counts.append(len(example.input_ids) - start)
        if not execution.padding_free:
            ids += [pad_token_id] * (length - len(example.input_ids))
    rows = 1 if execution.padding_free else len(examples)
    input_ids, at, answers = to_device([torch.tensor(each) for each in (ids, positions, targets)], device)
    return MicroBatch(
        input_ids=input_ids.view(rows, -1),
        positions=at,
        targets=answers,
        counts=tuple(counts),
        tokens=sum(len(example.input_ids) for example in examples),
        apart=_kept_apart(examples, device, execution) if execution.padding_free else {},
    )


def _kept_apart(examples: Sequence[Encoded], device: torch.device, execution: ResolvedExecution) -> dict[str, Any]:
    """Arguments of the model by which it tells the examples of one row from each other.

    Positions begin anew with each of them: transformers makes its masks by that. FlashAttention takes the boundaries
    themselves, which it would otherwise work out from the positions in every layer.
    """
    lengths = [len(example.input_ids) for example in examples]
    positions = torch.cat([torch.arange(length) for length in lengths])
    ends = torch.tensor([0, *accumulate(lengths)])
    at, bounds = to_device([positions, ends], device)
    found: dict[str, Any] = {"position_ids": at.unsqueeze(0)}
    if execution.attention == "flash_attention_2":
        found |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), bounds.to(torch.int32))
        found |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    return found


def completion_logits(model: nn.Module, batch: MicroBatch, execution: ResolvedExecution) -> Tensor:
    """The logits that predict the completion tokens, (n, V) in float32.

    The head is applied at those positions only: with a vocabulary much larger than the model is wide, it would
    otherwise be most of the work. A model without an output embedding of its own computes all logits first.
    """
    head = _head(model)
    with autocast(execution), _only_at(head, batch.positions), _told_apart(batch):
        logits: Tensor = model(input_ids=batch.input_ids, use_cache=False, **batch.apart).logits
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


@contextmanager
def _told_apart(batch: MicroBatch) -> Iterator[None]:
    """Tell transformers which token of a row is whose, as it does itself: there it would wait for the GPU's answer."""
    from transformers import masking_utils

    name = "find_packed_sequence_indices"
    several = bool(batch.apart) and len(batch.counts) > 1

    def numbered(position_ids: Tensor) -> Tensor | None:
        return (position_ids == 0).cumsum(-1) - 1 if several else None

    before = getattr(masking_utils, name, None)
    if before is None:  # it may go; then transformers waits as it likes
        yield
        return
    setattr(masking_utils, name, numbered)
    try:
        yield
    finally:
        setattr(masking_utils, name, before)


def autocast(execution: ResolvedExecution) -> AbstractContextManager[Any]:
    """Where a model computes in the execution's type, whatever its weights are held in."""
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
