"""Optuna without its remarks: a user reads this program's messages, not a library's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_optuna() -> Iterator[Any]:
    """The module, imported only here, with its logging down to errors; the level is put back at the end."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield optuna
    finally:
        optuna.logging.set_verbosity(level)
