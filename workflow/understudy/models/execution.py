"""How trials run, with every `auto` decided once.

Nothing here depends on how busy the machine is: the same settings on the same kind of hardware come out the same.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from understudy.errors import UserError
from understudy.models.estimates import estimate, pack_shape, pass_tokens
from understudy.models.hardware import Hardware
from understudy.models.strategy import Strategy, choose
from understudy.settings import ExecutionSettings, Method, ProxyExecution, Role, StageExecution, TargetExecution
from understudy.trial import CPU_PASS_TOKENS, Execution, ModelCard, Packing, ResolvedExecution

CPU_MICRO_BATCH = 32  # at built-in sizes more rows are no faster, and a larger batch than that is rarely searched


def resolve(
    settings: ExecutionSettings, card: ModelCard, max_length: int, hardware: Hardware, method: Method = "lora"
) -> Execution:
    """The execution of the card's role, with a note on every `auto`. `method` is how the target is trained.

    Raises `UserError` where the GPUs don't suffice, and where a kernel isn't installed.
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
    resolved = _stage(card.role, getattr(settings, card.role), card, max_length, device, hardware, method, notes)
    gpu_bytes = hardware.memory_bytes if device == "cuda" else None
    return Execution(role=card.role, resolved=resolved, notes=tuple(notes), gpu_bytes=gpu_bytes)


def _stage(
    role: Role,
    stage: StageExecution,
    card: ModelCard,
    max_length: int,
    device: Literal["cpu", "cuda"],
    hardware: Hardware,
    method: Method,
    notes: list[str],
) -> ResolvedExecution:
    if device == "cuda" and stage.processes > hardware.gpus and not hardware.own_job:
        raise UserError(
            f"`execution.{role}.processes` is {stage.processes}, one GPU each, but torch sees {_gpus(hardware.gpus)}; "
            f"set at most {hardware.gpus}"
        )
    dtype = _dtype(role, stage, device, hardware, notes)
    strategy = Strategy("ddp")
    if isinstance(stage, TargetExecution):
        strategy, reasons = choose(stage, card, max_length, method, device, dtype, hardware)
        notes.extend(reasons)
        _check_attention(stage, device, dtype)
    if stage.micro_batch_size != "auto":
        rows = stage.micro_batch_size
    elif device == "cpu":
        rows = CPU_MICRO_BATCH
        notes.append(f"{role}.micro_batch_size: {rows}, the default on CPUs")
    else:
        masked = (
            isinstance(stage, TargetExecution) and stage.padding_free is True and stage.attention != "flash_attention_2"
        )
        memory, sparing = hardware.memory_bytes, stage.gradient_checkpointing
        rows, reason = estimate(card, max_length, memory, dtype, sparing, strategy.taken, masked)
        notes.append(f"{role}.micro_batch_size: {rows}, {reason}")
    packing = _packing(stage, card, max_length, device, dtype, hardware, notes)
    of_the_target = _of_the_target(stage, notes)
    in_pieces = packing is None and rows > 1 and not of_the_target.get("padding_free")  # else nothing is cut by it
    worth = CPU_PASS_TOKENS
    if stage.pass_tokens != "auto":
        worth = stage.pass_tokens
    elif device == "cuda" and in_pieces:
        worth, reason = pass_tokens(card, dtype, hardware.kinds, method if role == "target" else "lora")
        notes.append(f"{role}.pass_tokens: {worth}, {reason}")
    return ResolvedExecution(
        device=device,
        threads=stage.threads,
        processes=stage.processes,
        micro_batch_size=rows,
        dtype=dtype,
        gradient_checkpointing=stage.gradient_checkpointing,
        packing=packing,
        strategy=strategy.name,
        cpu_offload=strategy.cpu_offload,
        pass_tokens=worth,
        **of_the_target,
    )


def _dtype(
    role: Role, stage: StageExecution, device: Literal["cpu", "cuda"], hardware: Hardware, notes: list[str]
) -> Literal["float32", "bfloat16"]:
    """What it computes in; where that was chosen here, `notes` says why."""
    if stage.dtype != "auto":
        return stage.dtype
    reason = "the CPU" if device == "cpu" else f"GPUs {'with' if hardware.bfloat16 else 'without'} bfloat16"
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if device == "cuda" and hardware.bfloat16 else "float32"
    notes.append(f"{role}.dtype: {dtype}, for {reason}")
    return dtype


def _of_the_target(stage: StageExecution, notes: list[str]) -> dict[str, Any]:
    """What only the target has, and needs no estimate."""
    if not isinstance(stage, TargetExecution):
        return {}
    attention = None if stage.attention == "auto" else stage.attention
    padding_free = stage.padding_free
    if padding_free == "auto":
        padding_free = attention == "flash_attention_2"
        if padding_free:
            notes.append("target.padding_free: true, since FlashAttention keeps examples apart at no cost")
    return {
        "nodes": stage.nodes,
        "attention": attention,
        "torch_compile": stage.torch_compile,
        "padding_free": padding_free,
    }


def has_flash_attention() -> bool:
    """Whether the second version is installed; the fourth has the same modules and another package's name."""
    try:
        version("flash_attn")
    except PackageNotFoundError:
        return False
    return True


def _check_attention(stage: TargetExecution, device: str, dtype: str) -> None:
    """Raise `UserError` for FlashAttention where it can't run."""
    if stage.attention != "flash_attention_2":
        return
    if not has_flash_attention():
        why, way = "the package `flash-attn` isn't installed", "install it"
    elif device == "cpu" or dtype != "bfloat16":
        why, way = f"it needs a GPU and bfloat16, and trials run on `{device}` in {dtype}", "set `dtype: bfloat16`"
    else:
        return
    raise UserError(f"`execution.target.attention: flash_attention_2` was given, but {why}; {way}, or take `sdpa`")


def _packing(
    stage: StageExecution,
    card: ModelCard,
    max_length: int,
    device: Literal["cpu", "cuda"],
    dtype: str,
    hardware: Hardware,
    notes: list[str],
) -> Packing | None:
    """How trials share the base; None for the target, and where the config says so."""
    if not isinstance(stage, ProxyExecution) or not stage.packed:
        return None
    packing, reasons = pack_shape(stage, card, max_length, device, dtype, hardware)
    notes.extend(f"proxy.{reason}" for reason in reasons)
    return packing


def _gpus(count: int) -> str:
    return {0: "no GPU", 1: "1 GPU"}.get(count, f"{count} GPUs")
