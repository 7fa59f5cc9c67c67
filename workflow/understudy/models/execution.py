"""How trials run, with every `auto` decided once.

Nothing here depends on how busy the machine is: the same settings on the same kind of hardware come out the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from understudy.errors import UserError
from understudy.settings import Device, ExecutionSettings, Role, StageExecution
from understudy.trial import Execution, ModelCard, ResolvedExecution

CPU_MICRO_BATCH = 32  # at built-in sizes more rows are no faster, and a larger batch than that is rarely searched
LARGEST_MICRO_BATCH = 64
USABLE_SHARE = 0.8  # of a GPU's memory: the rest is the context, fragments and what the kernels need meanwhile

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """What torch sees: the number of GPUs, the smallest one's memory in bytes, and whether all know bfloat16."""

    gpus: int = 0
    memory_bytes: int = 0
    bfloat16: bool = False


def detect(device: Device) -> Hardware:
    """The hardware of this machine; nothing is looked for where the config says `cpu`."""
    if device == "cpu":
        return Hardware()
    import torch

    if not torch.cuda.is_available():
        return Hardware()
    count = torch.cuda.device_count()
    memory = min(torch.cuda.get_device_properties(index).total_memory for index in range(count))
    return Hardware(count, memory, torch.cuda.is_bf16_supported(including_emulation=False))


def resolve(settings: ExecutionSettings, card: ModelCard, max_length: int, hardware: Hardware) -> Execution:
    """The execution of the card's role, with a note on every `auto`.

    Raises `UserError` where the GPUs don't suffice.
    """
    notes: list[str] = []
    device: Literal["cpu", "cuda"] = "cuda" if hardware.gpus else "cpu"
    if settings.device == "auto":
        notes.append(f"device: {device}, since torch sees {_gpus(hardware.gpus)}")
    elif settings.device == "cuda" and not hardware.gpus:
        raise UserError(
            "`execution.device: cuda` was given, but torch sees no GPU; set `cpu` or `auto`, or run this step on the "
            "machine with the GPUs, with a torch that is built for them"
        )
    else:
        device = settings.device
    resolved = _stage(card.role, getattr(settings, card.role), card, max_length, device, hardware, notes)
    return Execution(role=card.role, resolved=resolved, notes=tuple(notes))


def _stage(
    role: Role,
    stage: StageExecution,
    card: ModelCard,
    max_length: int,
    device: Literal["cpu", "cuda"],
    hardware: Hardware,
    notes: list[str],
) -> ResolvedExecution:
    if device == "cuda" and stage.processes > hardware.gpus:
        raise UserError(
            f"`execution.{role}.processes` is {stage.processes}, one GPU each, but torch sees {_gpus(hardware.gpus)}; "
            f"set at most {hardware.gpus}"
        )
    dtype: Literal["float32", "bfloat16"] = "float32"
    if stage.dtype != "auto":
        dtype = stage.dtype
    elif device == "cuda" and hardware.bfloat16:
        dtype = "bfloat16"
    if stage.dtype == "auto":
        reason = "the CPU" if device == "cpu" else f"GPUs {'with' if hardware.bfloat16 else 'without'} bfloat16"
        notes.append(f"{role}.dtype: {dtype}, for {reason}")
    if stage.micro_batch_size != "auto":
        rows = stage.micro_batch_size
    elif device == "cpu":
        rows = CPU_MICRO_BATCH
        notes.append(f"{role}.micro_batch_size: {rows}, the default on CPUs")
    else:
        rows, reason = estimate(card, max_length, hardware.memory_bytes, dtype, stage.gradient_checkpointing)
        notes.append(f"{role}.micro_batch_size: {rows}, {reason}")
    return ResolvedExecution(
        device=device,
        threads=stage.threads,
        processes=stage.processes,
        micro_batch_size=rows,
        dtype=dtype,
        gradient_checkpointing=stage.gradient_checkpointing,
    )


def estimate(
    card: ModelCard, max_length: int, memory_bytes: int, dtype: str, gradient_checkpointing: bool
) -> tuple[int, str]:
    """Rows per forward pass that a GPU's memory is likely to hold, a power of two, and why.

    States: 16 bytes per parameter for full fine-tuning with AdamW in float32 (weights, gradients, two moments), where
    that leaves half of the memory; else a frozen base, at 2 bytes per parameter (4 in float32), 1.25 in LLM.int8() or
    0.75 in NF4, embeddings in 16 bits included. Activations in 16 bits: 34 bytes per token, layer and hidden unit
    (Korthikanti et al. 2022, equation 2, without the attention scores, which SDPA doesn't keep), taken as 48 for
    gated feed-forward layers and adapters, or 2 and one layer's 48 with checkpointing; twice that in float32. Logits:
    16 bytes per token and entry (the model's, their float32 copy, the gradients of both). Not verified beyond a few
    models: a trial that still runs out of memory says so in its status.
    """
    usable = USABLE_SHARE * memory_bytes
    width = 2 if dtype == "bfloat16" else 1
    frozen = {"none": 4 / width, "int8": 1.25, "nf4": 0.75}[card.quantization]
    full = card.quantization == "none" and 16 * card.parameters <= usable / 2
    states = card.parameters * (16 if full else frozen)
    layers = card.num_hidden_layers
    units = 48 + 2 * layers if gradient_checkpointing else 48 * layers
    per_row = max_length * (units * card.hidden_size * 2 / width + 16 * card.vocab_size)
    fitting = (usable - states) / per_row
    rows = min(LARGEST_MICRO_BATCH, 2 ** int(math.log2(fitting))) if fitting >= 1 else 1
    kind = "full fine-tuning" if full else "a frozen base"
    return rows, (
        f"estimated: of {usable / GIB:.1f} GiB usable, {states / GIB:.1f} GiB for {kind} of {card.parameters:,} "
        f"parameters and {per_row / GIB:.3f} GiB per row of {max_length} tokens"
    )


def _gpus(count: int) -> str:
    return {0: "no GPU", 1: "1 GPU"}.get(count, f"{count} GPUs")
