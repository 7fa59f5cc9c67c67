"""How trials run: every `auto` decided, and more than there is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import card

from understudy.errors import UserError
from understudy.models.execution import GIB, Hardware, estimate, resolve
from understudy.settings import ExecutionSettings
from understudy.trial import ModelCard

CPU = Hardware()
H100 = Hardware(gpus=2, memory_bytes=80 * GIB, bfloat16=True)
V100 = Hardware(gpus=1, memory_bytes=16 * GIB, bfloat16=False)


def llama(
    billions: float, hidden_size: int, layers: int, quantization: str = "none", role: str = "target"
) -> ModelCard:
    return card(Path("model"), quantization).model_copy(
        update={
            "role": role,
            "parameters": int(billions * 1e9),
            "hidden_size": hidden_size,
            "num_hidden_layers": layers,
            "vocab_size": 128_000,
        }
    )


SMALL = llama(0.002, 192, 4)
EIGHT = llama(8, 4096, 32)


def settings(**values: Any) -> ExecutionSettings:
    return ExecutionSettings.model_validate(values)


def test_on_a_cpu() -> None:
    made = resolve(settings(target={"threads": 3}), SMALL, 96, CPU)
    assert made.role == "target"
    assert made.resolved.model_dump() == {
        "device": "cpu",
        "threads": 3,
        "processes": 1,
        "micro_batch_size": 32,
        "dtype": "float32",
        "gradient_checkpointing": False,
    }
    assert [note.split(":")[0] for note in made.notes] == ["device", "target.dtype", "target.micro_batch_size"]


def test_what_is_given_is_kept_and_needs_no_note() -> None:
    stage = {"micro_batch_size": 3, "dtype": "bfloat16", "gradient_checkpointing": True, "processes": 2}
    made = resolve(settings(device="cpu", target=stage), SMALL, 96, H100)
    assert made.notes == ()
    assert (made.resolved.device, made.resolved.micro_batch_size, made.resolved.dtype) == ("cpu", 3, "bfloat16")
    assert (made.resolved.processes, made.resolved.gradient_checkpointing) == (2, True)


def test_on_gpus() -> None:
    made = resolve(settings(target={"processes": 2}), SMALL, 96, H100)
    assert (made.resolved.device, made.resolved.dtype, made.resolved.processes) == ("cuda", "bfloat16", 2)
    assert resolve(settings(), SMALL, 96, V100).resolved.dtype == "float32"


def test_more_than_there_is_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match=r"`execution.device: cuda` was given, but torch sees no GPU"):
        resolve(settings(device="cuda"), SMALL, 96, CPU)
    with pytest.raises(UserError, match=r"`execution.target.processes` is 4, one GPU each, but torch sees 2 GPUs"):
        resolve(settings(target={"processes": 4}), SMALL, 96, H100)


def test_the_estimate_is_a_power_of_two_that_follows_what_it_depends_on() -> None:
    def rows(
        model: ModelCard, length: int = 1024, memory: int = 80, dtype: str = "bfloat16", check: bool = False
    ) -> int:
        found, reason = estimate(model, length, memory * GIB, dtype, check)
        assert 1 <= found <= 64
        assert found & (found - 1) == 0
        assert "GiB usable" in reason
        return found

    assert rows(EIGHT) == 4  # of 64 GiB: 15 for the weights, and per row 6 for activations and 2 for logits
    assert rows(EIGHT, memory=40) < rows(EIGHT) < rows(EIGHT, check=True)
    assert rows(EIGHT, length=4096) <= rows(EIGHT, length=512)
    assert rows(EIGHT, memory=24) <= rows(llama(8, 4096, 32, "nf4"), memory=24)
    assert rows(EIGHT, dtype="float32") <= rows(EIGHT)
    assert rows(EIGHT, memory=1) == 1
    assert rows(SMALL, length=96) == 64
