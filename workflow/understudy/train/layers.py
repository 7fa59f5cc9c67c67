"""A model's decoder layers: what is sharded, and what is compiled, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch._dynamo
from torch import nn

from understudy.errors import ModelError

# of a layer's compiled code: training, evaluation, recomputation, rows and lengths of 1. Beyond torch's 8 it would run
# uncompiled, with a warning alone.
MOST_VERSIONS = 64


def decoder_layers(model: nn.Module, setting: str) -> list[nn.Module]:
    """The layers that transformers never splits between devices, in the model's order.

    Raises `ModelError`, naming the config's `setting` that needs them, where the model's class doesn't name any.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ModelError(
            f"`execution.target.{setting}` works decoder layer by decoder layer, but {type(model).__name__} doesn't "
            "say which modules these are (`_no_split_modules`); leave the setting out"
        )
    return layers


@contextmanager
def compiled(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Each decoder layer compiled inside, if `wanted`, as before afterwards.

    Layers of a kind share their code, so that compiling takes as long as for one of them. Not the whole model: the head
    gets a new hook in each forward pass (see `forward`), which compiled code would not see.
    """
    if not wanted:
        yield
        return
    layers = decoder_layers(model, "torch_compile")
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        with torch._dynamo.config.patch(recompile_limit=MOST_VERSIONS):
            yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        torch._dynamo.reset()
