"""One trial sharded over its ranks: parameters, gradients and optimizer state, by torch's FSDP2.

Notation: N ranks. Each holds an N-th of every parameter as a `DTensor`, gathers a decoder layer's weights when it
comes to it, frees them again, and is left with its N-th of the summed gradients.

Gathering is a collective: every rank has to run the same number of forward passes (see `batches.rank_passes`), and one
that runs out of memory can't carry that news to the next sum, so it ends the trial for all (see `launch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from understudy import watchdog
from understudy.models.quantization import import_bitsandbytes
from understudy.train.checkpoint import local
from understudy.train.gradients import Agreed
from understudy.train.layers import decoder_layers
from understudy.train.ranks import Ranks
from understudy.trial import ResolvedExecution


def shard_(model: nn.Module, execution: ResolvedExecution) -> None:
    """Shard a model over all ranks, in place and for good: decoder layer by decoder layer, and what is around them.

    The model may lie in the host's memory; each layer goes to the device by itself, so that the whole needn't fit
    there, and what is trained of it becomes float32 on the way. Gradients are summed over the ranks, not averaged.
    Raises `ModelError` where the model doesn't say what its decoder layers are.
    """
    mesh = init_device_mesh(execution.device, (distributed.get_world_size(),))
    on_gpu = execution.device == "cuda"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    offload = CPUOffloadPolicy(pin_memory=on_gpu) if execution.cpu_offload else OffloadPolicy()
    mixed = MixedPrecisionPolicy()
    if execution.dtype == "bfloat16":
        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if getattr(model, "hf_quantizer", None) is not None:
        for module in model.modules():
            _hold_plainly(module, device)
    # peft calls its base's forward past the hooks of the base, so the outermost module has to be the root
    for module in [*decoder_layers(model, "strategy: fsdp"), model]:
        _cast_trained(module, device)
        sharded = fully_shard(module, mesh=mesh, mp_policy=mixed, offload_policy=offload)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # the mean's operator is NCCL's alone


def _cast_trained(module: nn.Module, device: torch.device) -> None:
    """Let what is trained of a module be float32, on the device, but for what is sharded already.

    It is cast on the device: cast on the host, each process would hold float32 copies of its files' pages there.
    """
    for parameter in module.parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(device).to(torch.float32)


def _hold_plainly(module: nn.Module, device: torch.device) -> None:
    """Let a quantized layer's weights be a plain parameter of whole numbers, which FSDP shards like any other.

    bitsandbytes' parameters carry what it takes to read them (NF4: 1/32 of their size; LLM.int8(): 4 bytes a row) as
    attributes, which gathering loses. That stays on the module, whole on every rank.
    """
    library = import_bitsandbytes().nn
    if isinstance(module, library.Linear4bit):
        module.quant_state = module.weight.quant_state  # the library puts it back itself, before each product
        module.quant_state.to(device)
        module.weight = nn.Parameter(module.weight.data, requires_grad=False)
    elif isinstance(module, library.Linear8bitLt):
        if module.weight.CB is not None:
            module.init_8bit_state()
        module.state.SCB = module.state.SCB.to(device)
        module.state.CB = None
        module.weight = nn.Parameter(module.weight.data, requires_grad=False)
        module.register_forward_pre_hook(_show_gathered)


def _show_gathered(module: Any, _: object) -> None:
    """Hand the weights that FSDP has gathered to LLM.int8(), which reads them from its state."""
    weight = import_bitsandbytes().nn.Int8Params(module.weight.data, requires_grad=False, has_fp16_weights=False)
    module.weight = weight
    module.state.CB = weight.data


class ShardedGradients:
    """What `gradients.Gradients` is to the loop, where FSDP holds the gradients."""

    trouble: Tensor | None = None  # a rank that is out of memory misses collectives, so it can't tell the others
    refused: Tensor | None = None  # all ranks run every pass, and so meet the same operations

    def __init__(self, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
        self._parameters = parameters
        # loss, square of the gradients' norm, whether to save, whether to stop
        self._told = torch.zeros(4, dtype=torch.float64, device=device)
        self.loss = self._told[:1]
        self._norm = torch.zeros((), dtype=torch.float64, device=device)

    def clear(self) -> None:
        """Back to nothing."""
        self._told.zero_()
        for parameter in self._parameters:
            parameter.grad = None

    def add_up(self, ranks: Ranks, save: bool = False, stop: bool = False) -> Agreed:
        """Sum over the ranks the loss, and what their gradients' norm takes; `save` and `stop` are this rank's wishes.

        No rank that gets here is in trouble.
        """
        squares = [torch.linalg.vector_norm(grad, dtype=torch.float64).square() for grad in self._local()]
        if squares:
            self._told[1] = torch.stack(squares).sum()
        self._told[2], self._told[3] = float(save), float(stop)
        ranks.sum_(self._told)
        loss, square, saving, stopping = self._told.tolist()
        self._norm.fill_(square**0.5)
        return Agreed(loss, False, saving > 0, stopping > 0)

    def clip_(self, max_norm: float) -> Tensor:
        """Scale down to a global norm of at most `max_norm`, as torch's `clip_grad_norm_`; return the norm before.

        Call it after `add_up`.
        """
        scale = torch.clamp(max_norm / (self._norm + 1e-6), max=1.0)
        for grad in self._local():
            grad.mul_(scale.to(grad))
        return self._norm

    def _local(self) -> list[Tensor]:
        """This rank's shards of the gradients."""
        grads = (parameter.grad for parameter in self._parameters)
        return [part for grad in grads if grad is not None and (part := local(grad)).numel()]


def whole_state(model: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """The trained tensors of a sharded model by name, in the host's memory: of rank 0; the others get nothing.

    Every rank has to call it. For LoRA that is the adapter; for full fine-tuning all of the model's state.
    """
    lora = hasattr(model, "peft_config")
    found: dict[str, Tensor] = {}
    known: dict[int, Tensor] = {}  # tied weights are gathered once
    for name, value in model.state_dict(keep_vars=True).items():
        if lora and not value.requires_grad:
            continue
        if id(value) not in known:
            known[id(value)] = _whole(value.detach(), ranks)
        if ranks.index == 0:
            found[name] = known[id(value)]
    return found


def _whole(value: Tensor, ranks: Ranks) -> Tensor:
    if isinstance(value, DTensor):
        gathered: Tensor = cast(DTensor, value.to(value.device_mesh.device_type)).full_tensor()
        value = gathered
    watchdog.beat()
    return value.cpu() if ranks.index == 0 else torch.empty(0)
