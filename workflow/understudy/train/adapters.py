"""What is trained: a fresh adapter on a frozen base, or the whole model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from understudy.errors import ConfigError
from understudy.hyperparameters import ALL_LINEAR, Value, target_modules
from understudy.models.quantization import peft_for
from understudy.train.optimizer import arguments_for
from understudy.trial import ResolvedExecution, TrialSpec, derive_seed


@contextmanager
def trainable(base: nn.Module, spec: TrialSpec, execution: ResolvedExecution) -> Iterator[nn.Module]:
    """The base made ready for a trial: with a fresh adapter inside, or as a whole for full fine-tuning.

    Afterwards the adapter is gone and the frozen base is as it was, to the bit. Raises `ConfigError` for layers or a
    dropout that the base doesn't have.
    """
    rate = float(spec.hyperparameters["attention_dropout"])
    prepared = fresh_adapter(base, spec) if spec.method == "lora" else nullcontext(_as_a_whole(base, execution))
    with attention_dropout(base, rate), prepared as model, _inputs_as_they_are(model, execution):
        if execution.gradient_checkpointing:
            base.activation_checkpointing_enable()  # type: ignore[operator]
        try:
            yield model
        finally:
            if execution.gradient_checkpointing:
                base.activation_checkpointing_disable()  # type: ignore[operator]
                base.disable_input_require_grads()  # type: ignore[operator]


@contextmanager
def _inputs_as_they_are(model: nn.Module, execution: ResolvedExecution) -> Iterator[None]:
    """Under autocast peft needn't make each input of an adapter float32: what follows makes it bfloat16 again.

    On CPUs it still does, so that finished trials with dropout, which rounds otherwise then, stay what they are.
    """
    if execution.device == "cpu" or execution.dtype == "float32":
        yield
        return
    from peft.helpers import disable_input_dtype_casting

    with disable_input_dtype_casting(model):
        yield


@contextmanager
def fresh_adapter(base: nn.Module, spec: TrialSpec, empty: bool = False) -> Iterator[Any]:
    """The base with a trial's untrained adapter inside, by peft; afterwards the adapter is gone.

    Its weights follow from the seed, whatever was drawn before; with `empty` it has none, and takes no memory. Raises
    `ConfigError` for layers that the base doesn't have.
    """
    target_layers(base, spec.hyperparameters["lora_target_modules"])  # peft passes over unknown names beside known ones
    torch.manual_seed(derive_seed(spec.seed, "adapter"))
    with peft_for(base):
        from peft import get_peft_model

        try:
            model = get_peft_model(base, lora_config(spec.hyperparameters), low_cpu_mem_usage=empty)
        except BaseException:
            _take_off(base)  # what it had put on before memory ran out would be trained with the next trial
            raise
    try:
        yield model
    finally:
        model.unload()


def _take_off(base: nn.Module) -> None:
    """Put the base's own layers back where peft has wrapped them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrapped = {name: module for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, module in wrapped.items():
        base.set_submodule(name, module.get_base_layer())


def lora_config(hyperparameters: Mapping[str, Value]) -> Any:
    """The trial's `peft.LoraConfig`."""
    from peft import LoraConfig

    arguments = arguments_for("peft.LoraConfig", hyperparameters)
    alpha = float(arguments["lora_alpha"])
    arguments["lora_alpha"] = int(alpha) if alpha.is_integer() else alpha  # other programs read it as a whole number
    arguments["target_modules"] = target_modules(arguments["target_modules"])
    return LoraConfig(**arguments, task_type="CAUSAL_LM")


def require_layers(model: nn.Module, values: Iterable[Value], called: str) -> None:
    """Raise `ConfigError` where a value of `lora_target_modules` names a layer that a model lacks."""
    for value in values:
        target_layers(model, value, called)


def target_layers(base: nn.Module, value: Value, called: str = "the model") -> dict[str, nn.Module]:
    """The layers that a value of `lora_target_modules` names, by their full names in the base's order.

    As in peft a name is a layer's full one or the end of it, and `all-linear` leaves out the output embedding.
    Raises `ConfigError` for a name that no linear layer has.
    """
    linear = {name: module for name, module in base.named_modules() if _is_linear(module)}
    wanted = target_modules(value)
    if wanted == ALL_LINEAR:
        get = getattr(base, "get_output_embeddings", None)
        head = get() if get is not None else None
        return {name: module for name, module in linear.items() if module is not head}
    missing = [name for name in wanted if not any(_is_called(layer, name) for layer in linear)]
    if missing:
        short = sorted({name.rpartition(".")[2] for name in linear})
        raise ConfigError(
            "the config",
            [
                f"lora_target_modules: {called} has no linear layer named {', '.join(missing)}; its linear layers are "
                f"{', '.join(short)}. Name some of them, or take `{ALL_LINEAR}`"
            ],
        )
    return {layer: module for layer, module in linear.items() if is_wanted(layer, value)}


def _is_linear(module: nn.Module) -> bool:
    """Whether peft's adapters for linear layers fit: torch's, bitsandbytes', GPT-2's Conv1D."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def is_wanted(layer: str, value: Value) -> bool:
    """Whether a value of `lora_target_modules` names this linear layer."""
    wanted = target_modules(value)
    return wanted == ALL_LINEAR or any(_is_called(layer, name) for name in wanted)


def _is_called(layer: str, name: str) -> bool:
    return layer == name or layer.endswith(f".{name}")


@contextmanager
def attention_dropout(base: nn.Module, rate: float) -> Iterator[None]:
    """Let the base drop this share of its attention weights while it trains, instead of its checkpoint's.

    That takes modules that hand a number `attention_dropout` to their kernel. Dropout modules of the base's own (GPT-2,
    Falcon) keep their rates: kernels that never call them would make a rate set there a dead letter. Raises
    `ConfigError` for a rate above 0 where the base has no such number.
    """
    before = {
        module: found
        for module in base.modules()
        if isinstance(found := getattr(module, "attention_dropout", None), int | float)
    }
    if rate > 0 and not before:
        raise ConfigError("the config", [_no_attention_dropout(base, rate)])
    try:
        for module in before:
            module.attention_dropout = rate  # type: ignore[assignment]
        yield
    finally:
        for module, found in before.items():
            module.attention_dropout = found  # type: ignore[assignment]


def _no_attention_dropout(base: nn.Module, rate: float) -> str:
    own = sorted({name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, nn.Dropout)})
    kept = f"; its own dropout modules ({', '.join(own)}) keep the checkpoint's rates" if own else ""
    kind = getattr(getattr(base, "config", None), "model_type", type(base).__name__)
    return f"attention_dropout: models of type {kind} have none to set, but got {rate:g}{kept}. Leave it at 0"


def _as_a_whole(base: nn.Module, execution: ResolvedExecution) -> nn.Module:
    """Every weight trained in float32; autocast computes in the execution's type. `shard_` casts what it shards."""
    return (base if execution.strategy == "fsdp" else base.float()).requires_grad_(True)
