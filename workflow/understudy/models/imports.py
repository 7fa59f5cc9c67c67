"""Imports without what they needn't bring along: it is by these that a training process takes seconds to start."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """Where a module isn't found, unless it has been imported before."""
    hide = module not in sys.modules
    if hide:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hide:
            del sys.modules[module]


@contextmanager
def compiled_later() -> Iterator[None]:
    """Where functions that `torch.compile` decorates are handed to the compiler at their first call.

    To decorate one imports the compiler, which takes 1 to 2 s.
    """
    compile_now = torch.compile

    def decorate(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(decorate, **options)
        compiled: list[Callable[..., Any]] = []

        @functools.wraps(function)
        def first(*arguments: Any, **named: Any) -> Any:
            if not compiled:
                compiled.append(compile_now(function, **options))
            return compiled[0](*arguments, **named)

        return first

    torch.compile = decorate  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_now


def import_models() -> None:
    """transformers' models, without scipy: only their losses of object detection need it, and it takes 0.3 s."""
    from transformers.utils import import_utils

    with hidden("scipy"):
        import_utils.is_scipy_available.cache_clear()
        import transformers.modeling_utils  # noqa: F401
    import_utils.is_scipy_available.cache_clear()
