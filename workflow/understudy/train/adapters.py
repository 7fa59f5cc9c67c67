"""What is trained: a fresh adapter on a frozen base, or the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from understudy.errors import ConfigError
from understudy.hyperparameters import Value
from understudy.models.quantization import peft_for
from understudy.settings import TrainingSettings
from understudy.train.optimizer import arguments_for
from understudy.trial import ResolvedExecution, TrialSpec, derive_seed


@contextmanager
def trainable(
    base: nn.Module, spec: TrialSpec, settings: TrainingSettings, execution: ResolvedExecution
) -> Iterator[nn.Module]:
    """The base made ready for a trial: with a fresh adapter inside, or as a whole for full fine-tuning.

    The adapter's weights follow from the seed, whatever was drawn before. Afterwards the adapter is gone and the
    frozen base is as it was, to the bit.
    """
    model = _with_adapter(base, spec, settings) if spec.method == "lora" else _as_a_whole(base)
    if execution.gradient_checkpointing:
        base.activation_checkpointing_enable()  # type: ignore[operator]
    try:
        yield model
    finally:
        if execution.gradient_checkpointing:
            base.activation_checkpointing_disable()  # type: ignore[operator]
            base.disable_input_require_grads()  # type: ignore[operator]
        if spec.method == "lora":
            model.unload()  # type: ignore[operator]


def lora_config(hyperparameters: Mapping[str, Value], settings: TrainingSettings) -> Any:
    """The trial's `peft.LoraConfig`."""
    from peft import LoraConfig

    arguments = arguments_for("peft.LoraConfig", hyperparameters)
    alpha = float(arguments["lora_alpha"])
    arguments["lora_alpha"] = int(alpha) if alpha.is_integer() else alpha  # other programs read it as a whole number
    modules = settings.target_modules
    return LoraConfig(
        **arguments,
        task_type="CAUSAL_LM",
        target_modules=modules if isinstance(modules, str) else list(modules),
    )


def _with_adapter(base: nn.Module, spec: TrialSpec, settings: TrainingSettings) -> nn.Module:
    torch.manual_seed(derive_seed(spec.seed, "adapter"))
    with peft_for(base):
        from peft import get_peft_model

        try:
            model: nn.Module = get_peft_model(base, lora_config(spec.hyperparameters, settings))
        except ValueError as error:
            if "target modules" not in str(error).lower():
                raise
            raise ConfigError("the config", [_no_such_modules(base, settings)]) from error
    return model


def _no_such_modules(base: nn.Module, settings: TrainingSettings) -> str:
    names = sorted({name.rpartition(".")[2] for name, module in base.named_modules() if hasattr(module, "weight")})
    return (
        f"training.target_modules: the model has none of {list(settings.target_modules)}; its layers with weights "
        f"are {', '.join(names)}. Name some of the linear ones, or take `all-linear`"
    )


def _as_a_whole(base: nn.Module) -> nn.Module:
    """Every weight trained in float32; autocast computes in the execution's type."""
    return base.float().requires_grad_(True)
