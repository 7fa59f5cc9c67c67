"""What the packed engine can't train, so that it runs alone."""

from __future__ import annotations

from understudy.hyperparameters import ALL_LINEAR, Value, target_modules
from understudy.trial import ModelCard, ResolvedExecution, TrialSpec

# Architectures (transformers' `model_type`) on which packed trials are tested against trials that run alone.
PACKABLE = ("llama", "qwen2", "qwen3", "mistral", "smollm3")


# The linear layers of such an architecture that packed adapters can sit on.
SITES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def foreign_modules(value: Value) -> list[str]:
    """The names in a value of `lora_target_modules` that packed adapters can't sit on."""
    modules = target_modules(value)
    return [] if modules == ALL_LINEAR else [name for name in modules if name.rpartition(".")[2] not in SITES]


def reason_for_solo(spec: TrialSpec, card: ModelCard, execution: ResolvedExecution) -> str | None:
    """Why a trial can't share the base with others, in words; None where it can.

    It follows from the trial itself, its model and the execution, never from the other trials of a pack.
    """
    if spec.method == "full":
        return "full fine-tuning changes the base, which packed trials share"
    if card.model_type not in PACKABLE:
        return f"packing isn't tested on the architecture `{card.model_type}`, only on {', '.join(PACKABLE)}"
    if execution.packing is None:
        return "packing is switched off by `execution.proxy.packed: false`"
    if execution.gradient_checkpointing:
        return "`execution.proxy.gradient_checkpointing` recomputes the base trial by trial"
    if execution.device == "cpu" and execution.dtype != "float32":
        return f"on CPUs packing computes in float32, but `execution.proxy.dtype` is {execution.dtype}"
    if foreign := foreign_modules(spec.hyperparameters.get("lora_target_modules", ALL_LINEAR)):
        return f"`lora_target_modules` names {', '.join(foreign)}; packed adapters sit on {', '.join(SITES)}"
    if float(spec.hyperparameters.get("attention_dropout", 0)) > 0:
        return (
            "`attention_dropout` draws its masks inside the base's attention for all rows at once, "
            "so they could not follow from the trial's own seed"
        )
    return None
