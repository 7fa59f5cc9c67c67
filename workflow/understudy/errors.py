"""The error hierarchy.

Every message says what is wrong, what was given, what is valid and what to do next. The command line
catches `UnderstudyError` once and prints the message without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
    """`; did you mean X?` where some valid name is close to `word`, else nothing."""
    close = difflib.get_close_matches(word, list(valid), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""
