"""A mended CPU kernel for bitsandbytes' 4-bit weights.

Scales belong to runs of 64 weights in row-major order, wherever rows begin. The library's kernel for CPUs (seen in
0.50 with AVX512) takes wrong scales where rows are a multiple of 16 and not of 64 long: weights of a layer with 96
inputs come back with a cosine similarity of 0.970 to the original instead of 0.996. It is right for rows of 64, so
here every other layer is shown to it as rows of 64.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache

import torch

OPERATOR = "dequantize_4bit"


@cache
def mend() -> torch.library.Library:
    """Put the mended kernel in the place of the library's, once per process."""
    original = torch.library.get_kernel(f"bitsandbytes::{OPERATOR}", "CPU")

    def dequantize(
        keys: torch._C.DispatchKeySet,
        packed: torch.Tensor,
        absmax: torch.Tensor,
        blocksize: int,
        quant_type: str,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        if shape[-1] % blocksize == 0:
            whole: torch.Tensor = original.call_boxed(keys, packed, absmax, blocksize, quant_type, shape, dtype)
            return whole
        count = math.prod(shape)
        blocks = -(-count // blocksize)
        padded = _padded(packed.view(torch.uint8).flatten(), blocks * blocksize // 2)
        rows: torch.Tensor = original.call_boxed(
            keys, padded, absmax, blocksize, quant_type, [blocks, blocksize], dtype
        )
        return rows.flatten()[:count].reshape(shape)

    # the replacement lasts as long as this object
    library = torch.library.Library("bitsandbytes", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a kernel is replaced
        library.impl(  # type: ignore[no-untyped-call]
            OPERATOR, dequantize, "CPU", with_keyset=True, allow_override=True
        )
    return library


def _padded(packed: torch.Tensor, length: int) -> torch.Tensor:
    missing = length - len(packed)
    return torch.nn.functional.pad(packed, (0, missing)) if missing else packed
