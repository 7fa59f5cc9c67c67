"""Kernels that sum in a fixed order, as far as every operation of a model has one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from understudy import progress
from understudy.train import memory

Result = TypeVar("Result")

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_ORDER = (":4096:8", ":16:8")  # with which cuBLAS sums in one
MISSING = "does not have a deterministic implementation"


def require(on_gpu: bool) -> None:
    """Let torch refuse what has no deterministic kernel.

    Only to warn of it isn't enough: torch then takes a backward pass of attention on GPUs that sums in any order, and
    leaves the other one, which it has, alone (its `attention_backward.cu`).
    """
    if on_gpu:
        if os.environ.get(WORKSPACE) not in FIXED_ORDER:
            os.environ[WORKSPACE] = FIXED_ORDER[0]
        os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")  # as transformers hands it on to flash-attn
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time, and nothing here reads such memory


@contextmanager
def telling(refused: Tensor | None) -> Iterator[None]:
    """Set `refused` to 1 where torch refuses an operation inside, instead of raising; without it, raise.

    A rank that had no rows hasn't met the operation and waits in the next sum, with which the news reaches it: all
    ranks have to begin again.
    """
    try:
        yield
    except RuntimeError as error:
        if refused is None or MISSING not in str(error):
            raise
        refused.fill_(1)


def as_far_as_possible(train: Callable[[], Result], begin_again: Callable[[], None] = lambda: None) -> Result:
    """What `train` returns. Where torch refuses one of its operations it trains again, and such ones only warn.

    They do so for the rest of the process. The first step has all of a model's operations, so hardly anything is done
    twice. `begin_again` is called in between.
    """
    try:
        return train()
    except RuntimeError as error:
        if MISSING not in str(error):
            raise
        reason = memory.reason(error).split(",")[0]
    progress.tell(f"{reason}: two runs of it may differ in their last digits")
    torch.use_deterministic_algorithms(True, warn_only=True)
    begin_again()
    memory.release()
    return train()
