"""Running out of memory is a fact about a trial, not an accident: recognise it, and give the memory back."""

from __future__ import annotations

import gc
import resource
import sys

import torch

from understudy.errors import UserError
from understudy.models.hardware import GIB

# the CPU allocator and cuBLAS raise plain RuntimeErrors; cuBLAS takes memory of its own when it begins
_TEXTS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",
    "bad_alloc",
)


ALIKE = 0.95  # of the memory: a driver keeps more or less of it


class OutOfMemoryError(Exception):
    """An allocator refused, on this rank or on another one."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator raised this error."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def reason(error: BaseException) -> str:
    """An error's first line. Python's own lack of memory has no text."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _on_gpu() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def require_like(decided: int | None) -> None:
    """Refuse a GPU with less memory than the one on which it was decided how trials run, in bytes.

    There memory would run out for what fits elsewhere, and that would count as a result of the trial. Raises
    `UserError`.
    """
    if decided is None:
        return
    there = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    if there < ALIKE * decided:
        raise UserError(
            f"this GPU has {there / GIB:.0f} GiB, and how trials run was decided on one of {decided / GIB:.0f} GiB "
            "(`execution/*.json` in the results), so nothing was trained on it. On a cluster name a kind of GPU in the "
            "config's `resources` (`gpu_model` or `constraint`), here let CUDA_VISIBLE_DEVICES show only the large "
            "ones; or delete these files: it is decided anew, and trials that come out different are trained again"
        )


def release() -> None:
    """Return freed memory, so that the next trial finds it."""
    gc.collect()
    if _on_gpu():
        torch.cuda.empty_cache()


def reset_peak() -> None:
    """Start a new measurement. On CPUs there is none to start: the peak is the whole process's."""
    if _on_gpu():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Most memory held at once: of the GPU since `reset_peak`, else of the process since it started."""
    if _on_gpu():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
