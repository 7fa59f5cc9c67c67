"""What fits into memory, from sizes alone: rows of a batch, trials and tokens of a pack.

Notation: h hidden size, L layers, r rank, V vocabulary. Bytes are those of float32 (4) or bfloat16 (2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from understudy.models.hardware import GIB, Hardware
from understudy.models.peak_flops import peak_flops
from understudy.settings import Method, ProxyExecution
from understudy.trial import CPU_PASS_TOKENS, ModelCard, Packing

LARGEST_MICRO_BATCH = 64
USABLE_SHARE = 0.8  # of a device's memory: the rest is the context, fragments and what the kernels need meanwhile

MOST_TRIALS = 64
MOST_TOKENS = 65_536
CPU_PACK_TOKENS = 2048
RANK_BOUND = 64  # an adapter of higher rank is larger than estimated
BYTES_PER_ADAPTER_PARAMETER = 16  # weight, gradient and AdamW's two moments in float32
HEAD_BYTES = 12 * 2**24  # a chunk of logits, their probabilities and what the kernels need meanwhile
GPU_CHUNKS = 4  # as many times that on a GPU
PROCESS_BYTES = GIB  # Python, torch and the data of a process on the CPU
DENSE_BYTES = GIB  # the most that a base's dequantized weights may take on the CPU
DENSE_SHARE = 0.05  # the largest share of a GPU that they may take
LAUNCH_SECONDS = 1.4e-3  # of a layer's 234 operations, forward and backward with LoRA, at 6 µs; not measured on GPUs
USED_SHARE = 0.4  # of a GPU's peak, where its work isn't too small; not measured either
MOST_PASS_TOKENS = 8192


def estimate(
    card: ModelCard,
    max_length: int,
    memory_bytes: int,
    dtype: str,
    gradient_checkpointing: bool,
    taken: float | None = None,
    masked: bool = False,
) -> tuple[int, str]:
    """Rows per forward pass that a GPU's memory is likely to hold, a power of two, and why.

    `taken`: the bytes that a strategy takes beside activations, where that has been estimated. Without it, 16 bytes per
    parameter for full fine-tuning with AdamW in float32 (weights, gradients, two moments), where that leaves half of
    the memory; else those of a frozen base. `masked`: a pass's examples follow each other in one row, which takes a
    mask of all pairs of its tokens, a byte each, and the bias that attention makes of it, in the computing type. Not
    verified beyond a few models: a trial that still runs out of memory says so in its status.
    """
    usable = USABLE_SHARE * memory_bytes
    full = card.quantization == "none" and 16 * card.parameters <= usable / 2
    states = card.parameters * 16 if full else frozen_bytes(card, dtype)
    kind = "full fine-tuning" if full else "a frozen base"
    if taken is not None:
        states, kind = taken, "its states"
    per_row = max_length * token_bytes(card, dtype, gradient_checkpointing)
    rows = min(LARGEST_MICRO_BATCH, _power_of_two((usable - states) / per_row))
    text = (
        f"estimated: of {in_gib(usable)} usable, {in_gib(states)} for {kind} of {card.parameters:,} "
        f"parameters and {in_gib(per_row)} per row of {max_length} tokens"
    )
    if masked:
        per_pair = 1 + (2 if dtype == "bfloat16" else 4)
        while rows > 1 and states + rows * per_row + per_pair * (rows * max_length) ** 2 > usable:
            rows //= 2
        text += f", with {in_gib(per_pair * (rows * max_length) ** 2)} for the mask that keeps examples of a pass apart"
    return rows, text


def frozen_bytes(card: ModelCard, dtype: str) -> float:
    """A frozen base: 2 bytes per parameter (4 in float32), 1.03 in LLM.int8() or 0.52 in NF4 with their scales.

    Embeddings and head aren't quantized; they count as two, were they one.
    """
    plain = 2 if dtype == "bfloat16" else 4
    ends = min(card.parameters, 2 * card.vocab_size * card.hidden_size)
    layers: float = {"none": plain, "int8": 1.03, "nf4": 0.52}[card.quantization]
    return layers * (card.parameters - ends) + plain * ends


def token_bytes(card: ModelCard, dtype: str, gradient_checkpointing: bool = False) -> float:
    """Activations and logits that a token holds until its gradients are there.

    Activations in 16 bits: 30 + 8 i bytes per token, layer and hidden unit, with `_width`'s i. That gives 58, 62, 77
    and 74 in the shapes of Llama 2 7B, Llama 3 8B, Qwen2.5 7B and 0.5B, where autograd was seen to keep 58, 62, 78 and
    80 under autocast, with LoRA and its dropout, and 50, 54, 68 and 69 without. (Korthikanti et al. 2022, equation 2,
    have 34 without attention scores, for layers without gates or adapters.) With checkpointing 2 and one layer's;
    bitsandbytes' int8 products keep their inputs in spite of it, 14 more. Twice that in float32. Logits: 16 bytes per
    token and entry (the model's, their float32 copy, the gradients of both).
    """
    layers, one = card.num_hidden_layers, 30 + 8 * _width(card)
    kept = 2 + (14 if card.quantization == "int8" else 0)
    units = one + kept * layers if gradient_checkpointing else one * layers
    return units * card.hidden_size * (1 if dtype == "bfloat16" else 2) + 16 * card.vocab_size


def _width(card: ModelCard) -> float:
    """How many times h a feed-forward layer is wide, at most: it has 3 i h² parameters, and attention at least 2 h²."""
    layer = (card.computing_parameters - card.vocab_size * card.hidden_size) / card.num_hidden_layers
    return max(0.0, (layer / card.hidden_size**2 - 2) / 3)


def trial_bytes(card: ModelCard) -> int:
    """The state of a packed trial: adapters of rank 64 on all linear layers, at 16 bytes per parameter.

    A linear layer from m to n units has r (m + n). Taken per layer: 8 h for attention's four projections, 15 h for
    three feed-forward ones of 4 h, which is more than most architectures have.
    """
    return BYTES_PER_ADAPTER_PARAMETER * RANK_BOUND * 23 * card.hidden_size * card.num_hidden_layers


def packed_token_bytes(card: ModelCard, dtype: str, device: Literal["cpu", "cuda"]) -> int:
    """What a token of a pack holds between its forward and backward pass.

    Counted from what the packed engine keeps of a layer: 19 tensors of h and five of the feed-forward width, i h (see
    `_width`), with the masks of dropout: 36 h at least, in Qwen2's shapes 45 to 48 h. The layer that is at work takes
    as much again. Logits aren't kept. On CPUs it is 36 h for all, as it was when their first packs were trained;
    measured there on three Llama shapes in float32: 20 to 30 h.
    """
    layer = (36 if device == "cpu" else max(36, math.ceil(19 + 5 * _width(card)))) * card.hidden_size
    return layer * (2 if dtype == "bfloat16" else 4) * (card.num_hidden_layers + 1)


def pass_tokens(
    card: ModelCard, dtype: Literal["float32", "bfloat16"], kinds: Sequence[str], method: Method
) -> tuple[int, str]:
    """Tokens of a trial alone whose work one more pass is worth on GPUs of these kinds, a power of two, and why.

    For as long as a pass's operations are being launched, at least, the GPU could have been at work: on a fast GPU with
    a small model that is more tokens than padding makes of a batch. What a quantized base costs in each pass beside is
    left out.
    """
    peaks = [peak_flops(kind, dtype) for kind in kinds]
    known = [peak for peak in peaks if peak is not None]
    if not known or len(known) < len(peaks):
        return CPU_PASS_TOKENS, f"the default, since no peak is known of {' and '.join(kinds) or 'this GPU'}"
    seconds = LAUNCH_SECONDS * card.num_hidden_layers
    worth = seconds * USED_SHARE * min(known) / ((6 if method == "full" else 4) * card.computing_parameters)
    tokens = min(MOST_PASS_TOKENS, _power_of_two(math.sqrt(2) * worth))  # the nearest one
    launches = f"{seconds * 1000:.0f} ms to launch {card.num_hidden_layers} layers"
    return tokens, f"estimated: {launches}, in which the GPU does the work of {worth:,.0f} tokens"


@dataclass(frozen=True)
class _Room:
    """A device's memory for one process, and how to say so."""

    usable: float
    text: str


def pack_shape(
    stage: ProxyExecution,
    card: ModelCard,
    max_length: int,
    device: Literal["cpu", "cuda"],
    dtype: str,
    hardware: Hardware,
) -> tuple[Packing, list[str]]:
    """How the proxy's packs run, and a note on each thing that was decided.

    Trials and tokens are powers of two, rounded down, so that small differences between machines of a kind don't
    matter. Not verified beyond a few models; what still runs out of memory is split.
    """
    room = _room(stage.threads, device, hardware)
    dense, notes = _dense(card, device, dtype, hardware)
    base = frozen_bytes(card, dtype) + (_dense_bytes(card, device, dtype) if dense else 0)
    head = HEAD_BYTES * (GPU_CHUNKS if device == "cuda" else 1)
    left, token, trial = room.usable - base - head, packed_token_bytes(card, dtype, device), trial_bytes(card)
    known: int | None = stage.pack_tokens if stage.pack_tokens != "auto" else None
    if known is None and device == "cpu":
        known = max(CPU_PACK_TOKENS, max_length)
        notes.append(f"pack_tokens: {known}, the default on CPUs{_long(known, CPU_PACK_TOKENS)}")
    if stage.pack_trials != "auto":
        trials = stage.pack_trials
    else:
        for_states = left - known * token if known else left / 2
        trials = min(MOST_TRIALS, _power_of_two(for_states / trial))
        notes.append(
            f"pack_trials: {trials}, estimated: {in_gib(trial)} per trial (16 bytes per parameter of adapters of rank "
            f"{RANK_BOUND} on all linear layers), {in_gib(max(for_states, 0))} for them of {room.text}, the base "
            f"takes {in_gib(base)}; a power of two, at most {MOST_TRIALS}"
        )
    if known is None:
        fitting = min(MOST_TOKENS, _power_of_two((left - trials * trial) / token))
        known = max(fitting, max_length)
        notes.append(
            f"pack_tokens: {known}, estimated: {token / 2**20:.3f} MiB per token, "
            f"{in_gib(max(left - trials * trial, 0))} for them; a power of two, at most {MOST_TOKENS}"
            + _long(known, fitting)
        )
    return Packing(trials=trials, tokens=known, dense=dense), notes


def _room(threads: int, device: Literal["cpu", "cuda"], hardware: Hardware) -> _Room:
    """A GPU belongs to one process; a host's memory is shared by as many as its cores let run side by side."""
    if device == "cuda":
        usable = USABLE_SHARE * hardware.memory_bytes
        return _Room(usable, f"{in_gib(usable)} usable")
    jobs = max(1, hardware.cores // threads)
    usable = USABLE_SHARE * hardware.host_bytes / jobs - PROCESS_BYTES
    each = "one core" if threads == 1 else f"{threads} cores"
    beside = f", shared by {jobs} jobs of {each} each" if jobs > 1 else ""
    return _Room(
        usable,
        f"{in_gib(max(usable, 0))} usable (the machine's {in_gib(hardware.host_bytes)}{beside}, less the program)",
    )


def _dense(card: ModelCard, device: Literal["cpu", "cuda"], dtype: str, hardware: Hardware) -> tuple[bool, list[str]]:
    """Whether a quantized base is held dequantized as well, so that it isn't dequantized in every pass."""
    if card.quantization == "none" or (device == "cuda" and card.quantization == "int8"):
        return False, []  # of int8 a GPU takes its own kernel for the way there, and little time for the way back
    size = _dense_bytes(card, device, dtype)
    limit = DENSE_BYTES if device == "cpu" else DENSE_SHARE * hardware.memory_bytes
    dense = size <= limit
    return dense, [
        f"dense weights beside the quantized ones: {'yes' if dense else 'no'}, they take {in_gib(size)} and may take "
        f"{in_gib(limit)}"
    ]


def _dense_bytes(card: ModelCard, device: Literal["cpu", "cuda"], dtype: str) -> int:
    """What a pack dequantizes weights to: the dtype it computes in, but float32 from int8."""
    in_16_bits = device == "cuda" and dtype == "bfloat16" and card.quantization == "nf4"
    return card.parameters * (2 if in_16_bits else 4)


def _power_of_two(value: float) -> int:
    """The largest power of two up to a value, at least 1."""
    return 2 ** int(math.log2(value)) if value >= 1 else 1


def _long(tokens: int, fitting: int) -> str:
    return ", raised to one example" if tokens > fitting else ""


def in_gib(size: float) -> str:
    """A size in words."""
    return f"{size / GIB:.3g} GiB"
