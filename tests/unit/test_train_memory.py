"""Which errors say that memory ran out."""

from __future__ import annotations

import pytest
import torch

from understudy.train.memory import is_out_of_memory, reason

ERRORS: list[tuple[BaseException, bool]] = [
    (MemoryError(), True),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasSgemm`"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSgemm`"), False),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    (ValueError("out of memory"), False),
]


@pytest.mark.parametrize(("error", "expected"), ERRORS, ids=lambda value: str(value)[:60])
def test_a_lack_of_memory_is_told_from_other_errors(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_an_error_without_a_text_has_its_name_for_a_reason() -> None:
    assert [reason(error) for error in (MemoryError(), RuntimeError("first\nsecond"))] == ["MemoryError", "first"]
