"""Peak FLOPs of GPUs, to tell what share of them a trial made use of.

Dense products (data sheets also give twice that, with sparsity), in FLOPs per second: of the tensor cores in bfloat16
with sums in float32, and of the ordinary units in float32, since torch leaves TF32 off for products. Sources: NVIDIA's
data sheets and architecture white papers (H100 and H200 Tensor Core GPU, A100, A30, A10, A40, L4, L40S, T4, V100; Ada
and Ampere GA102 for RTX). Not verified by measuring.
"""

from __future__ import annotations

from typing import Literal

# what torch calls a device contains the words -> (bfloat16, float32); None: it has none, or it isn't published. The
# first that fits counts, so the more special names come first.
PEAKS: dict[tuple[str, ...], tuple[float | None, float | None]] = {
    ("H200", "NVL"): (835e12, 60e12),
    ("H200",): (989e12, 67e12),
    ("H100", "PCIe"): (756e12, 51e12),
    ("H100", "NVL"): (835e12, 60e12),
    ("H100",): (989e12, 67e12),  # SXM: "NVIDIA H100 80GB HBM3"
    ("A100",): (312e12, 19.5e12),
    ("A30",): (165e12, 10.3e12),
    ("A40",): (149.7e12, 37.4e12),
    ("A10",): (125e12, 31.2e12),
    ("L40S",): (362e12, 91.6e12),
    ("L4",): (121e12, 30.3e12),
    ("RTX", "4090"): (165.2e12, 82.6e12),
    ("RTX", "3090"): (71e12, 35.6e12),
    ("RTX", "A6000"): (154.8e12, 38.7e12),
    ("T4",): (None, 8.1e12),
    ("V100", "SXM2"): (None, 15.7e12),
    ("V100", "PCIE"): (None, 14e12),
}

OTHERS = {"MIG", "Laptop", "Mobile", "D", "Ti", "SUPER", "Max"}  # a part of a GPU, or another one of that name


def peak_flops(device_name: str | None, dtype: Literal["float32", "bfloat16"]) -> float | None:
    """FLOPs per second of a GPU that torch calls so; None on CPUs, for parts of a GPU (MIG) and where none is known."""
    words = (device_name or "").replace("-", " ").split()
    if OTHERS.intersection(words):
        return None
    for name, (bfloat16, float32) in PEAKS.items():
        if set(name) <= set(words):
            return bfloat16 if dtype == "bfloat16" else float32
    return None
