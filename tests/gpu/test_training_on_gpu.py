"""Trials of the full-size trainer on a GPU, where there is one: near a CPU's, however they are sharded and laid out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
import torch
from waiting import never_waiting

import interruptions
from interruptions import Plan, always_saved, steps_of
from rank_study import curve
from training_study import PAD, execution, make_job, make_spec, random_examples, target_words, tiny_llama
from understudy.artifacts import Proposal
from understudy.models.execution import has_flash_attention
from understudy.settings import TrainingSettings
from understudy.train.adapters import trainable
from understudy.train.batches import completion_tokens
from understudy.train.history import History
from understudy.train.launch import train_alone
from understudy.train.loop import Examples, _Training
from understudy.train.ranks import Ranks
from understudy.trial import TrialRecord, TrialSpec

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings(
        "ignore:.*does not have a deterministic implementation.*:UserWarning",
        "ignore:.*is_gradient_checkpointing.*:FutureWarning",  # peft asks transformers for it by its old name
        "ignore:The .grad attribute of a Tensor:UserWarning",  # torch looks at gradients while it traces,
        "ignore:.*torch.jit.script_method.*:DeprecationWarning",  # and imports what it deprecates
    ),
]

CUDA = {"device": "cuda"}
SHARDED = {**CUDA, "strategy": "fsdp", "cpu_offload": True}
FLASH = {**CUDA, "dtype": "bfloat16", "attention": "flash_attention_2", "padding_free": True}
needs_kernels = pytest.mark.skipif(hasattr(torch.cuda, "emulated"), reason="the emulation runs no kernels of Triton's")
needs_flash = pytest.mark.skipif(not has_flash_attention(), reason="needs flash-attn")


def a_spec(method: Any = "lora") -> TrialSpec:
    return make_spec(method=method, learning_rate=2e-3, num_train_epochs=2)


DRAWING = make_spec(learning_rate=3e-2, num_train_epochs=2, lora_dropout=0.3)  # other masks show: by 0.9 %


def trained(
    root: Path, method: Any = "lora", quantization: Any = "none", spec: TrialSpec | None = None, **execution: Any
) -> TrialRecord:
    record = train_alone(spec or a_spec(method), make_job(root, quantization, **execution))
    assert record.result.status == "complete", record.result.message
    return record


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    "how", [CUDA, {**CUDA, "padding_free": True}, SHARDED], ids=["plain", "padding-free", "sharded"]
)
def test_a_gpu_learns_what_a_cpu_learns(method: str, how: dict[str, Any], tmp_path: Path) -> None:
    """The sharded one is one rank under NCCL, whose shards lie in the host's pinned memory."""
    on_cpu = trained(tmp_path / "cpu", method, device="cpu")
    on_gpu = trained(tmp_path / "gpu", method, **how)
    assert curve(on_gpu) == pytest.approx(curve(on_cpu), rel=1e-3)
    assert on_gpu.result.cost.gpu_seconds > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("padding_free", [False, True])
def test_the_host_never_waits_within_a_pass(dtype: Any, padding_free: bool) -> None:
    """It waits for a step's loss alone, so that passes follow each other without a gap."""
    spec, history, ranks = make_spec(batch_size=8), History(), Ranks()
    examples = Examples(random_examples(16), random_examples(2), PAD)
    how = execution(device="cuda", dtype=dtype, padding_free=padding_free, micro_batch_size=3)
    with trainable(tiny_llama().cuda(), spec, how) as model:
        training = _Training(model, spec, examples, how, TrainingSettings(), ranks, history, (), None)
        model.train()
        batch = examples.train[:8]
        training._backward(batch, completion_tokens(batch))  # loads kernels
        with never_waiting():
            training._backward(batch, completion_tokens(batch))


@pytest.mark.parametrize(
    ("quantization", "how"),
    [
        ("none", {"dtype": "bfloat16"}),
        ("nf4", {"dtype": "bfloat16"}),
        ("int8", {"dtype": "bfloat16"}),
        ("nf4", {"dtype": "bfloat16", **SHARDED}),
        ("int8", {"dtype": "bfloat16", **SHARDED}),
        pytest.param("none", {"dtype": "bfloat16", "torch_compile": True}, marks=needs_kernels),
        pytest.param("none", FLASH, marks=needs_flash),
        pytest.param("nf4", FLASH, marks=needs_flash),
    ],
)
def test_what_rounds_stays_near(quantization: str, how: dict[str, Any], tmp_path: Path) -> None:
    exact = trained(tmp_path / "exact", quantization=quantization, **CUDA)
    found = trained(tmp_path / "found", quantization=quantization, **{**CUDA, **how})
    assert found.result.objective == pytest.approx(exact.result.objective, rel=0.02)


def test_a_killed_trial_goes_on_where_it_was(tmp_path: Path, give_back: Callable[[], None]) -> None:
    """With shards, optimizer moments and random numbers on both sides of the bus."""
    whole = trained(tmp_path / "whole", spec=DRAWING, **SHARDED)
    give_back()
    job = always_saved(make_job(tmp_path / "cut", **SHARDED))
    proposal = Proposal(number=3, spec=DRAWING, kind="start", sampler="transfer", visible=(), pending=())
    words = target_words(tmp_path / "cut", job, proposal, running={"running": {"checkpoint_minutes": 0}})
    assert interruptions.command(words, Plan("step", 4, SIGKILL)).returncode != 0
    assert steps_of(job.store) == [3]
    assert curve(train_alone(DRAWING, job)) == pytest.approx(curve(whole), rel=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_learn_what_one_learns(strategy: str, tmp_path: Path, give_back: Callable[[], None]) -> None:
    one = trained(tmp_path / "one", **CUDA)
    give_back()
    two = trained(tmp_path / "two", **CUDA, processes=2, strategy=strategy)
    assert curve(two) == pytest.approx(curve(one), rel=1e-3)
