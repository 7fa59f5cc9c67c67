"""How a target trial's processes share the work: whole copies (ddp), shards (fsdp), shards in the host's memory.

Notation: N processes over all nodes, P parameters, L layers, h hidden size, V vocabulary. Sizes are estimates from P
and the shape; not verified beyond a few models. A trial that still runs out of memory says so in its status.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from understudy.models.estimates import USABLE_SHARE, frozen_bytes, in_gib, token_bytes, trial_bytes
from understudy.models.hardware import Hardware
from understudy.settings import Method, TargetExecution
from understudy.trial import ModelCard

STATE_BYTES = 16  # per trained parameter: weight, gradient and AdamW's two moments in float32
SAID = ("target.strategy", "target.cpu_offload", "target: ")  # how the notes of this module begin
AUTOCAST_BYTES = 2  # and the copy in bfloat16 that autocast keeps until the backward pass


@dataclass(frozen=True)
class Strategy:
    """What was decided, and the bytes of a GPU that it takes beside activations; None where nothing was estimated."""

    name: Literal["ddp", "fsdp"]
    cpu_offload: bool = False
    taken: float | None = None


def choose(
    stage: TargetExecution,
    card: ModelCard,
    max_length: int,
    method: Method,
    device: Literal["cpu", "cuda"],
    dtype: str,
    hardware: Hardware,
) -> tuple[Strategy, list[str]]:
    """The strategy, and notes on what `auto` and the estimate say.

    In this order, the first that holds the states and one row: whole copies, shards, shards in the host's memory. On
    CPUs `auto` is whole copies: all processes share one memory.
    """
    if device == "cpu":
        return Strategy("ddp" if stage.strategy == "auto" else stage.strategy, stage.cpu_offload is True), []
    needs = Needs.of(stage, card, max_length, method, dtype)
    if stage.strategy == "auto":
        return _decide(stage, card, needs, hardware)
    offload = stage.cpu_offload is True
    notes: list[str] = []
    if stage.strategy == "fsdp" and stage.cpu_offload == "auto":
        offload = needs.sharded + needs.row > _usable(hardware)
        notes.append(f"target.cpu_offload: {str(offload).lower()}, {needs.say(hardware)}")
    taken = needs.taken(stage.strategy, offload)
    if not offload and taken + needs.row > _usable(hardware):
        said = "" if notes else f"{needs.say(hardware)}; "
        notes.append(f"target: may not fit; {said}{_advice(stage, card, offload)}")
    return Strategy(stage.strategy, offload, taken), notes


@dataclass(frozen=True)
class Needs:
    """Bytes of one GPU under each strategy, and of each node's memory with offloading."""

    processes: int  # N
    whole: float  # states of one process that has them all
    copies: float  # what autocast holds beside them until the backward pass, of all weights at a time
    working: float  # what is gathered at a time: two layers, embeddings and head, and gradients of these
    row: float  # activations of one row
    host: float  # states that a node's processes hold together

    @classmethod
    def of(cls, stage: TargetExecution, card: ModelCard, max_length: int, method: Method, dtype: str) -> Needs:
        """From the model's shape."""
        number = stage.nodes * stage.processes
        ends = min(card.parameters, 2 * card.vocab_size * card.hidden_size)  # embeddings and head, were they not tied
        gathered = (2 * (card.parameters - ends) / card.num_hidden_layers + ends) / card.parameters  # share of P
        if method == "full":
            whole = float(STATE_BYTES * card.parameters)
            copies = float(AUTOCAST_BYTES * card.parameters) if dtype == "bfloat16" else 0.0
            working = 2 * gathered * card.parameters * (2 if dtype == "bfloat16" else 4)
        else:
            frozen = frozen_bytes(card, dtype)
            whole, copies = frozen + trial_bytes(card), 0.0
            plain = ends * (2 if dtype == "bfloat16" else 4)  # embeddings and head aren't quantized
            working = 2 * (frozen - plain) / card.num_hidden_layers + plain
        row = max_length * token_bytes(card, dtype, stage.gradient_checkpointing)
        return cls(number, whole, copies, working, row, whole / stage.nodes)

    @property
    def sharded(self) -> float:
        """With a share of the states."""
        return self.whole / self.processes + self.working

    def taken(self, strategy: str, cpu_offload: bool) -> float:
        """Bytes beside activations."""
        if strategy == "ddp":
            return self.whole + self.copies
        return self.working if cpu_offload else self.sharded

    def say(self, hardware: Hardware) -> str:
        """The estimate in words."""
        text = (
            f"estimated: of {in_gib(_usable(hardware))} usable, {in_gib(self.whole + self.copies)} for all states and "
            f"{in_gib(self.row)} per row"
        )
        if self.processes > 1:
            text += f"; sharded over {self.processes} processes {in_gib(self.sharded)} with what is gathered at a time"
        return text


def _decide(stage: TargetExecution, card: ModelCard, needs: Needs, hardware: Hardware) -> tuple[Strategy, list[str]]:
    usable = _usable(hardware)
    fits_whole = needs.whole + needs.copies + needs.row <= usable
    fits_sharded = not stage.torch_compile and needs.sharded + needs.row <= usable
    if fits_whole and needs.processes == 1:
        return Strategy("ddp", False, needs.taken("ddp", False)), [
            f"target: one process has room, {needs.say(hardware)}"
        ]
    offload = not fits_whole and not fits_sharded and stage.cpu_offload == "auto" and not stage.torch_compile
    if offload and needs.host > USABLE_SHARE * hardware.host_bytes:
        offload = False  # the host can't hold them either
    sharded = not fits_whole and not stage.torch_compile and (needs.processes > 1 or offload)
    found = Strategy("fsdp" if sharded else "ddp", offload)
    notes = [f"target.strategy: {found.name}, {needs.say(hardware)}"]
    if sharded:
        notes.append(f"target.cpu_offload: {str(offload).lower()}, {in_gib(needs.host)} of a node's memory with it")
    if not fits_whole and not fits_sharded:
        notes.append(f"target: may not fit; {_advice(stage, card, offload)}")
    return Strategy(found.name, offload, needs.taken(found.name, offload)), notes


def _advice(stage: TargetExecution, card: ModelCard, offload: bool) -> str:
    """What takes less memory, the cheapest first."""
    ways = [] if stage.gradient_checkpointing else ["`gradient_checkpointing: true`"]
    if stage.strategy == "ddp":
        ways.append(
            "`strategy: fsdp` over several `processes`" + (", without `torch_compile`" if stage.torch_compile else "")
        )
    else:
        ways.append("more `processes`")
        if stage.torch_compile:
            ways.append("without `torch_compile` it would be sharded")
        elif stage.cpu_offload is False:
            ways.append("`cpu_offload: true`" if stage.strategy == "fsdp" else "`cpu_offload: auto`")
    if card.quantization != "nf4":
        ways.append("`models.target.quantization: nf4` with LoRA")
    text = "what helps: " + ", ".join(ways)
    return f"{text}; with shards in the host's memory steps are slow" if offload else text


def _usable(hardware: Hardware) -> float:
    return USABLE_SHARE * hardware.memory_bytes
