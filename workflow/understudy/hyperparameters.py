"""The hyperparameters that a trial can have: names, kinds, valid values, customary defaults.

Names are those of transformers, peft and Axolotl. What the installed versions call them is decided in one
place per library, in `understudy.train`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from understudy.errors import nearest

Value = float | int | str | bool

ALL_LINEAR = "all-linear"
SCHEDULES = ("constant", "constant_with_warmup", "cosine", "inverse_sqrt", "linear", "polynomial")


@dataclass(frozen=True)
class Hyperparameter:
    """One hyperparameter: its kind, its valid values, its default, and whether only LoRA has it."""

    kind: type
    default: Value
    description: str
    minimum: float | None = None
    maximum: float | None = None
    exclusive: bool = False  # whether the minimum itself is out
    choices: tuple[str, ...] = ()
    lora_only: bool = False
    modules: bool = False  # whether a text names layers; a list of names will do as well

    def coerce(self, value: object) -> Value:
        """Return `value` in this hyperparameter's kind; raise `ValueError` saying what is allowed."""
        if self.modules:
            return _module_names(value)
        converted = _convert(self.kind, value)
        if converted is None:
            raise ValueError(f"must be {_KIND_NAMES[self.kind]}, but got {value!r}")
        if self.choices and converted not in self.choices:
            hint = nearest(str(value), self.choices)
            raise ValueError(f"must be one of {', '.join(self.choices)}, but got {value!r}{hint}")
        if not self._in_bounds(converted):
            raise ValueError(f"must be {self.bounds_text()}, but got {value!r}")
        return converted

    def _in_bounds(self, value: Value) -> bool:
        if isinstance(value, str | bool):
            return True
        above = self.minimum is None or value > self.minimum or (value == self.minimum and not self.exclusive)
        return above and (self.maximum is None or value <= self.maximum)

    def bounds_text(self) -> str:
        """The valid values in words, where they aren't `choices`."""
        if self.modules:
            return f"`{ALL_LINEAR}`, or names separated by commas"
        parts = []
        if self.minimum is not None:
            parts.append(f"{'greater than' if self.exclusive else 'at least'} {self.minimum:g}")
        if self.maximum is not None:
            parts.append(f"at most {self.maximum:g}")
        return " and ".join(parts)


_KIND_NAMES = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}


def _convert(kind: type, value: object) -> Value | None:
    """`value` as `kind`, or None. YAML reads `1e-4` as a text: a text that is a number counts as one."""
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    if kind is str:
        return value if isinstance(value, str) else None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    if number != number or number in (float("inf"), float("-inf")):
        return None
    if kind is int:
        return int(number) if number == int(number) else None
    return number


def _module_names(value: object) -> str:
    """`all-linear`, or layers' names in their one spelling: sorted, none twice, separated by commas without blanks."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        names = []
    found = sorted({name.strip() for name in names})
    if found == [ALL_LINEAR]:
        return ALL_LINEAR
    if not found or not all(re.fullmatch(r"(\w+\.)*\w+", name) for name in found):
        raise ValueError(
            f"must be `{ALL_LINEAR}`, or at least one layer's name, separated by commas like `q_proj,v_proj`, "
            f"but got {value!r}"
        )
    return ",".join(found)


def target_modules(value: Value) -> str | list[str]:
    """A value of `lora_target_modules` as peft takes it: `all-linear`, or the names."""
    return ALL_LINEAR if value == ALL_LINEAR else str(value).split(",")


HYPERPARAMETERS: Mapping[str, Hyperparameter] = {
    "learning_rate": Hyperparameter(float, 2e-4, "peak learning rate of AdamW", minimum=0, exclusive=True),
    "batch_size": Hyperparameter(int, 16, "examples per optimizer step, over all processes", minimum=1),
    "num_train_epochs": Hyperparameter(
        float, 3.0, "passes over the training subset; fractions count", minimum=0, exclusive=True
    ),
    "weight_decay": Hyperparameter(float, 0.0, "AdamW's decoupled weight decay", minimum=0),
    "warmup_ratio": Hyperparameter(float, 0.03, "share of the steps with a rising rate", minimum=0, maximum=1),
    "lr_scheduler_type": Hyperparameter(str, "linear", "schedule of the learning rate", choices=SCHEDULES),
    "max_grad_norm": Hyperparameter(
        float, 1.0, "global norm to which gradients are clipped", minimum=0, exclusive=True
    ),
    "adam_beta1": Hyperparameter(float, 0.9, "AdamW's first moment decay", minimum=0, maximum=0.9999),
    "adam_beta2": Hyperparameter(float, 0.999, "AdamW's second moment decay", minimum=0, maximum=0.999999),
    "adam_epsilon": Hyperparameter(float, 1e-8, "AdamW's epsilon", minimum=0, exclusive=True),
    "label_smoothing_factor": Hyperparameter(
        float, 0.0, "label smoothing of the training loss", minimum=0, maximum=0.9
    ),
    "attention_dropout": Hyperparameter(
        float, 0.0, "the base's dropout on attention weights, whatever its checkpoint says", minimum=0, maximum=0.95
    ),
    "lora_r": Hyperparameter(int, 16, "rank of the adapters", minimum=1, lora_only=True),
    "lora_alpha": Hyperparameter(
        float, 32.0, "LoRA's alpha; the update is scaled by alpha / r", minimum=0, exclusive=True, lora_only=True
    ),
    "lora_dropout": Hyperparameter(
        float, 0.05, "dropout on the adapters' input", minimum=0, maximum=0.95, lora_only=True
    ),
    "use_rslora": Hyperparameter(bool, False, "scale by alpha / sqrt(r) instead (Kalajdzievski 2023)", lora_only=True),
    "lora_target_modules": Hyperparameter(
        str, ALL_LINEAR, "linear layers that get an adapter", lora_only=True, modules=True
    ),
}


def complete(values: Mapping[str, Value], defaults: Mapping[str, Value], method: str) -> dict[str, Value]:
    """Every hyperparameter of a trial, in the table's order: `values`, else `defaults`, else the table's.

    With `method="full"` the LoRA-only ones are left out.
    """
    merged: dict[str, Any] = {
        name: values.get(name, defaults.get(name, item.default))
        for name, item in HYPERPARAMETERS.items()
        if method == "lora" or not item.lora_only
    }
    return {name: HYPERPARAMETERS[name].coerce(value) for name, value in merged.items()}
