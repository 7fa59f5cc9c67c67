"""From a value on the proxy to its value on the target, and back.

H_proxy and H_target are the widths, p the exponent of the target's family, D the tokens that a trial trains on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from understudy.artifacts import ScaleRule
from understudy.hyperparameters import HYPERPARAMETERS, Value
from understudy.search.defaults import LORA_FACTOR, RULE_SOURCE, width_exponent
from understudy.search.values import SCALED_DIGITS, rounded
from understudy.settings import Method
from understudy.space import Choices, Range, Space
from understudy.trial import ModelCard

TOKENS_SOURCE = "measured on runs of the Step Law study, arXiv 2503.04715"


def scale_rules(
    proxy: ModelCard,
    target: ModelCard,
    method: Method,
    exponent: float | Literal["auto"],
    more_tokens: float = 1.0,
    tokens_exponent: float = 0.0,
) -> dict[str, ScaleRule]:
    """How values change from proxy to target. Only the learning rate does: by width, by how many times more tokens a
    trial of the target trains on, and a tenth for full fine-tuning.

    Everything else is copied as it is; that epochs and decay need no scale was not verified beyond the agreement that a
    study measures on itself. A trial's image keeps its batch size, so the rate isn't scaled by that; the surface of the
    proxy's trials moves along it where there are more tokens (see `make_surface`).
    """
    p = width_exponent(target.model_type, exponent)
    factor = (proxy.hidden_size / target.hidden_size) ** p
    rule = f"({proxy.hidden_size} / {target.hidden_size})^{p:g} = {factor:.4g}"
    source = f"width: {RULE_SOURCE}" if exponent == "auto" else "width: `transfer.learning_rate_exponent`"
    if more_tokens != 1 and tokens_exponent:
        by_tokens = more_tokens**tokens_exponent
        factor *= by_tokens
        rule += f", times {more_tokens:.4g}^{tokens_exponent:g} = {by_tokens:.4g} for more tokens"
        source += f"; tokens: `transfer.learning_rate_tokens_exponent`, {TOKENS_SOURCE}"
    if method == "full":
        factor /= LORA_FACTOR
        rule += f", a tenth of it for full fine-tuning = {factor:.4g}"
        source += f"; LoRA's rate is about ten times full fine-tuning's: {RULE_SOURCE}"
    return {"learning_rate": ScaleRule(factor=factor, rule=f"target = proxy · {rule}", source=source)}


def to_target(values: Mapping[str, Value], scale: Mapping[str, ScaleRule], method: Method) -> dict[str, Value]:
    """A proxy configuration's image on the target; with `method="full"` without the adapter's settings."""
    kept = {name: value for name, value in values.items() if method == "lora" or not HYPERPARAMETERS[name].lora_only}
    return {name: scaled(value, scale[name].factor) if name in scale else value for name, value in kept.items()}


def to_proxy(values: Mapping[str, Value], scale: Mapping[str, ScaleRule]) -> dict[str, Value]:
    """A target configuration's image on the proxy: what `to_target` made is undone exactly."""
    return {
        name: rounded(float(value) / scale[name].factor) if name in scale else value for name, value in values.items()
    }


def scaled(value: Value, factor: float) -> float:
    """`value · factor`, rounded so finely that dividing gets the searched value back."""
    return float(rounded(float(value) * factor, SCALED_DIGITS))


def scaled_parameter(parameter: Range | Choices, factor: float) -> Range | Choices:
    """A parameter's image."""
    if isinstance(parameter, Choices):
        return Choices(choices=tuple(dict.fromkeys(scaled(value, factor) for value in parameter.choices)))
    low, high = scaled(parameter.low, factor), scaled(parameter.high, factor)
    return parameter.model_copy(update={"low": low, "high": high})


def scaled_space(space: Space, scale: Mapping[str, ScaleRule], method: Method) -> dict[str, Range | Choices]:
    """The target's space: every parameter united with its image; the adapter's left out for full fine-tuning."""
    wide: dict[str, Range | Choices] = {}
    for name, parameter in space.items():
        if method == "full" and HYPERPARAMETERS[name].lora_only:
            continue
        wide[name] = parameter
        if name in scale:
            image = scaled_parameter(parameter, scale[name].factor)
            for value in image.choices if isinstance(image, Choices) else (image.low, image.high):
                wide[name] = wide[name].widened(value)
    return wide
