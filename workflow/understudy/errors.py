"""The error hierarchy.

Every message says what is wrong, what was given, what is valid and what to do next. The command line
catches `UnderstudyError` once and prints the message without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What other programs call our keys and values, in small letters.
SYNONYMS = {
    "openai": "messages",
    "chatml": "messages",
    "chat": "messages",
    "gpu": "cuda",
    "4bit": "nf4",
    "int4": "nf4",
    "4": "nf4",
    "fp4": "nf4",
    "8bit": "int8",
    "8": "int8",
    "bf16": "bfloat16",
    "fp32": "float32",
    "qlora": "lora",
    "lr": "learning_rate",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "scheduler": "lr_scheduler_type",
    "lr_scheduler": "lr_scheduler_type",
    "warmup": "warmup_ratio",
    "gradient_clipping": "max_grad_norm",
    "r": "lora_r",
    "rank": "lora_r",
    "lora_rank": "lora_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "lora_target_linear": "lora_target_modules",
}


class UnderstudyError(Exception):
    """Base of all errors that are reported as one message; `exit_code` is the process's."""

    exit_code = 1


class UserError(UnderstudyError):
    """Something that the user gave can't be used."""

    exit_code = 2


class ConfigError(UserError):
    """The config doesn't validate; `problems` holds one line per problem."""

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n  ".join([f"{source} has {count}:", *self.problems]))


class DataError(UserError):
    """The data set can't be used."""


class ModelError(UserError):
    """A base model can't be used."""


class CorruptFileError(UnderstudyError):
    """A file of the study can't be parsed, or isn't what its name says."""


class StorageError(UnderstudyError):
    """The disk refuses a file: no space left, read-only, no permission."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """`; did you mean X?` where some valid name means the same as `word` or is close to it, else nothing."""
    names = list(valid)
    same = SYNONYMS.get(word.lower())
    close = [same] if same in names else difflib.get_close_matches(word, names, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""
