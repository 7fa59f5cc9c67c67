"""Quantized bases through bitsandbytes, kept out of its traps."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from understudy.models.imports import compiled_later, hidden
from understudy.models.nf4_kernel import mend
from understudy.settings import Quantization


def import_bitsandbytes() -> Any:
    """The library with its kernel for CPUs mended, imported without its attempt to fetch another from a hub.

    On CPUs with AVX512-BF16 it would fetch one wherever the package `kernels` is installed, and warn where it isn't;
    that kernel belongs to a path that `keep_weights_unpacked` switches off.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # LLM.int8() says at every product in float32 that it quantizes the input by way of float16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    with hidden("kernels"), compiled_later():
        import bitsandbytes
    mend()
    return bitsandbytes


@contextmanager
def peft_for(model: torch.nn.Module) -> Iterator[None]:
    """Where peft is imported and puts adapters on `model`; bitsandbytes is hidden where the base isn't quantized."""
    quantized = getattr(model, "hf_quantizer", None) is not None
    if quantized:
        import_bitsandbytes()
    with nullcontext() if quantized else bitsandbytes_hidden(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute by its old name
        yield


@contextmanager
def bitsandbytes_hidden() -> Iterator[None]:
    """Where what imports peft doesn't bring bitsandbytes along, unless that has been imported before.

    peft imports it wherever it is installed, which takes a process a second and tries to fetch a kernel. peft's memory
    of not having found it is wiped afterwards.
    """
    if "bitsandbytes" in sys.modules:
        yield
        return
    with hidden("bitsandbytes"):
        try:
            yield
        finally:
            from peft import import_utils

            import_utils.is_bnb_available.cache_clear()
            import_utils.is_bnb_4bit_available.cache_clear()


def quantization_config(quantization: Quantization, compute_dtype: torch.dtype) -> Any:
    """Transformers' config for a kind of quantization; None for `none`.

    NF4 with double quantization as in QLoRA (Dettmers et al. 2023); LLM.int8() with threshold 0, since with an outlier
    threshold one row's outliers change the result of the rows beside it.
    """
    if quantization == "none":
        return None
    import_bitsandbytes()
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


@contextmanager
def quantizing_on(device: torch.device) -> Iterator[None]:
    """Where weights that are to lie on the host are quantized by a device's kernel, one after the other.

    bitsandbytes quantizes a weight where it is to lie, and on the host has no kernel for it: torch's operations take it
    110 s for a billion weights in NF4, 38 s in int8 (one thread), and may round another way than the GPU's kernel does.
    """
    bitsandbytes = import_bitsandbytes()

    def to_nf4(self: Any, place: torch.device) -> Any:
        on_device(self, device)
        self.data = self.data.to(place)
        self.quant_state.to(place)
        return self

    def to_int8(self: Any, place: torch.device) -> Any:
        in_rows(self, device)
        self.data = self.CB = self.data.to(place)
        self.SCB = self.SCB.to(place)
        return self

    nf4, int8 = bitsandbytes.nn.Params4bit, bitsandbytes.nn.Int8Params
    on_device, in_rows = nf4._quantize, int8._quantize
    nf4._quantize, int8._quantize = to_nf4, to_int8
    try:
        yield
    finally:
        nf4._quantize, int8._quantize = on_device, in_rows


def keep_weights_unpacked(model: torch.nn.Module) -> None:
    """Keep every 4-bit layer out of the AVX512-BF16 path of bitsandbytes.

    In eval mode that path repacks the weights in place, rounds their scales to bfloat16 and fails where the input
    size is no multiple of 64: after one evaluation the model would train on other weights.
    """
    bitsandbytes = import_bitsandbytes()
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
