"""Configurations that are known to be good, and the published rule for the learning rate.

H is a model's hidden size (width), p the exponent of its family.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from understudy.hyperparameters import HYPERPARAMETERS, Value, complete
from understudy.search.values import identity, rounded
from understudy.settings import Method
from understudy.space import Choices, Space, consistent

RULE_SOURCE = "LoRA Without Regret (Schulman et al., Thinking Machines, 2025)"
BASE_RATE = 5e-5  # of full fine-tuning at the reference width
LORA_FACTOR = 10.0  # the best LoRA rate over the best rate of full fine-tuning
REFERENCE_WIDTH = 2000
EXPONENTS = {"llama": 0.781, "qwen": 0.0775}

CLOSE_RATES = 0.05  # relative, nearer to each other than any search could tell

# Good over 31 models on average at high rank; the later ones stand in where an earlier one is the default itself.
FIXED_RATES = (3e-4, 1e-3, 2e-4, 1e-4)
FIXED_COUNT = 2


def width_exponent(model_type: str, exponent: float | Literal["auto"] = "auto") -> float:
    """p of the model's family, or the given one.

    Published for Llama and Qwen alone. Other families get Llama's, which is the nearer to muP's 1 / width (Tensor
    Programs V, 2022) and the more careful one towards a larger model; for them it was not verified.
    """
    if exponent != "auto":
        return exponent
    family = next((name for name in EXPONENTS if model_type.startswith(name)), "llama")
    return EXPONENTS[family]


def learning_rate_rule(
    hidden_size: int, model_type: str, method: Method, exponent: float | Literal["auto"] = "auto"
) -> float:
    """The published rule's rate: 5e-5 · 10 · (2000 / H)^p for LoRA, a tenth of it for full fine-tuning.

    Source: LoRA Without Regret (2025) and its cookbook. Fitted to models of 1B parameters and more; not verified
    below that beyond this project's own measurements.
    """
    p = width_exponent(model_type, exponent)
    rate = BASE_RATE * (REFERENCE_WIDTH / hidden_size) ** p
    return float(rounded(rate * LORA_FACTOR if method == "lora" else rate))


@dataclass(frozen=True)
class KnownGood:
    """A complete configuration, and what is known of it."""

    hyperparameters: dict[str, Value]
    reason: str
    fixed: float | None = None  # the rate that it has whatever the default's is, as for LoRA; None for the default


class Unrun(KnownGood):
    """One that the proxy doesn't run."""


def with_rate(defaults: Mapping[str, Value], rate: float) -> dict[str, Value]:
    """The config's defaults, with a learning rate where they give none."""
    return {"learning_rate": rate, **defaults}


def known_good(space: Space, defaults: Mapping[str, Value], rate: float, method: Method) -> list[KnownGood]:
    """The default configuration and, where the rate is searched, two fixed ones at the highest rank; all different.

    So there are three, or one alone: what isn't searched is the default's in every trial. `rate` is the published
    rule's. For full fine-tuning the fixed rates are a tenth, as in the rule.
    """
    known = with_rate(defaults, rate)
    given = "the config's rate" if "learning_rate" in defaults else f"the published rule's rate {rate:g}"
    found = [KnownGood(complete({}, known, method), f"the default configuration, with {given}")]
    if "learning_rate" not in space:
        return found
    rank = highest_rank(space, known)
    for fixed in FIXED_RATES:
        own = fixed if method == "lora" else float(rounded(fixed / LORA_FACTOR))
        resting = consistent(space, complete({"learning_rate": own, "lora_r": rank}, known, method))
        values = {**resting, "learning_rate": own}  # a rate that rests is put to rest later: there are always as many
        if identity(values) != identity(found[0].hyperparameters) and len(found) <= FIXED_COUNT:
            at_rank = f" at rank {values['lora_r']}" if method == "lora" else ""
            reason = f"a fixed rate of {own:g}{at_rank}, known to be good over many models"
            found.append(KnownGood(values, reason, fixed))
    return found


def published(space: Space, defaults: Mapping[str, Value], rate: float, method: Method) -> list[KnownGood]:
    """The default with the published rule's rate, where the config gives the default one that is clearly another.

    Nothing where the rate isn't searched. The proxy doesn't run it.
    """
    given = float(defaults.get("learning_rate", rate))
    if "learning_rate" not in space or abs(math.log(given / rate)) < CLOSE_RATES:
        return []
    values = complete({"learning_rate": rate}, defaults, method)
    return [Unrun(values, f"the default with the published rule's rate {rate:g}", rate)]


def highest_rank(space: Space, defaults: Mapping[str, Value]) -> Value:
    """The highest rank that is searched, else the default one."""
    parameter = space.get("lora_r")
    if parameter is None:
        return defaults.get("lora_r", HYPERPARAMETERS["lora_r"].default)
    return max(parameter.choices) if isinstance(parameter, Choices) else parameter.from_unit(1.0)
