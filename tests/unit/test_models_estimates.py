"""What fits into memory, in numbers: a frozen base, a token, and where a machine is just too small."""

from __future__ import annotations

import dataclasses

import pytest

from test_models_execution import EIGHT, H100, HALF, ROUND, llama, packing
from understudy.models.estimates import (
    GPU_CHUNKS,
    HEAD_BYTES,
    estimate,
    frozen_bytes,
    packed_token_bytes,
    pass_tokens,
    token_bytes,
    trial_bytes,
)
from understudy.models.hardware import GIB
from understudy.trial import CPU_PASS_TOKENS, Packing


@pytest.mark.parametrize(
    ("quantization", "dtype", "expected"),
    [
        ("none", "bfloat16", 2000e6),
        ("none", "float32", 4000e6),
        ("int8", "bfloat16", 1278.32e6),
        ("int8", "float32", 1790.32e6),
        ("nf4", "bfloat16", 898.88e6),
        ("nf4", "float32", 1410.88e6),
    ],
)
def test_a_frozen_base_takes_its_layers_and_plain_ends(quantization: str, dtype: str, expected: float) -> None:
    assert frozen_bytes(llama(1, 1000, 10, quantization), dtype) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("quantization", "dtype", "checkpointing", "expected"),
    [
        ("none", "bfloat16", False, 2_572_000),
        ("none", "float32", False, 5_144_000),
        ("none", "bfloat16", True, 277_200),
        ("none", "float32", True, 554_400),
        ("int8", "bfloat16", False, 2_572_000),
        ("int8", "bfloat16", True, 417_200),
    ],
)
def test_a_token_holds_activations_by_layer_and_logits(
    quantization: str, dtype: str, checkpointing: bool, expected: float
) -> None:
    found = token_bytes(llama(1, 1000, 10, quantization), dtype, checkpointing)
    assert found == pytest.approx(expected + 16 * 128_000)


@pytest.mark.parametrize(
    ("share", "states"), [(0.49, "14.9 GiB for full fine-tuning"), (0.51, "1.86 GiB for a frozen base")]
)
def test_full_fine_tuning_is_expected_where_it_leaves_half_of_the_memory(share: float, states: str) -> None:
    _, reason = estimate(ROUND, 1024, int(16e9 / share / 0.8), "bfloat16", False)
    assert f"{states} of 1,000,000,000 parameters" in reason


def test_float32_leaves_room_for_fewer_rows_beside_the_same_states() -> None:
    rows = [estimate(EIGHT, 1024, 80 * GIB, dtype, False, taken=0.0)[0] for dtype in ("bfloat16", "float32")]
    assert rows == [4, 2]


def test_one_mask_for_all_examples_of_a_pass_leaves_room_for_fewer() -> None:
    memory = 200 * GIB
    plain, _ = estimate(ROUND, 2048, memory, "bfloat16", True)
    masked, reason = estimate(ROUND, 2048, memory, "bfloat16", True, masked=True)
    assert (plain, masked) == (32, 16)
    assert "with 3 GiB for the mask" in reason
    assert estimate(ROUND, 128, memory, "bfloat16", True, masked=True)[0] == 64


def test_dense_weights_leave_less_room_for_tokens() -> None:
    dense, token = 2 * HALF.parameters, packed_token_bytes(HALF, "bfloat16", "cuda")
    others = frozen_bytes(HALF, "bfloat16") + GPU_CHUNKS * HEAD_BYTES + 4 * trial_bytes(HALF)
    for spare, tokens in ((1.01, 2**15), (0.5, 2**14)):
        usable = others + 2**15 * token + spare * dense
        machine = dataclasses.replace(H100, memory_bytes=int(usable / 0.8))
        assert packing(HALF, machine, pack_trials=4)[0] == Packing(trials=4, tokens=tokens, dense=True)


@pytest.mark.parametrize(
    ("parameters", "hidden", "layers", "vocabulary", "kind", "expected"),
    [
        (494_032_768, 896, 24, 151_936, "NVIDIA H100 80GB HBM3", 8192),  # small and fast: a pass is mostly launches
        (7_615_616_512, 3584, 28, 152_064, "NVIDIA H100 80GB HBM3", 512),
        (7_615_616_512, 3584, 28, 152_064, "NVIDIA A100-SXM4-80GB", 128),
        (494_032_768, 896, 24, 151_936, "NVIDIA Unheard Of", CPU_PASS_TOKENS),
    ],
)
def test_a_pass_is_worth_more_tokens_the_less_a_gpu_needs_for_each(
    parameters: int, hidden: int, layers: int, vocabulary: int, kind: str, expected: int
) -> None:
    sizes = {"parameters": parameters, "hidden_size": hidden, "num_hidden_layers": layers, "vocab_size": vocabulary}
    card = HALF.model_copy(update=sizes)
    found, reason = pass_tokens(card, "bfloat16", [kind], "lora")
    assert found == expected
    assert ("no peak is known" in reason) == (kind == "NVIDIA Unheard Of")
