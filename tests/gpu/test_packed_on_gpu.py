"""Packed trials on a GPU, where there is one: the same numbers, and a device that never waits for the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from waiting import never_waiting

from packed_study import make_pack, train_packed, varied
from training_study import make_job, make_spec, tiny_llama
from understudy.train import determinism
from understudy.train.launch import train_alone
from understudy.train.pack import train_pack
from understudy.train.packed import head
from understudy.train.packed.base import read_base
from understudy.train.packed.trials import choose
from understudy.trial import Pack

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation.*:UserWarning"),
]


@pytest.fixture
def as_trained() -> Iterator[None]:
    """Kernels as a command takes them, which sum in a fixed order."""
    before = torch.are_deterministic_algorithms_enabled()
    determinism.require(on_gpu=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("as_trained")
def test_a_gpu_finds_what_a_cpu_finds() -> None:
    on_cpu = train_packed(varied(), read_base(tiny_llama(), dense=True))
    on_gpu = train_packed(varied(), read_base(tiny_llama().cuda(), dense=True), batched=True)
    for id, expected in on_cpu.items():
        assert on_gpu[id].losses == pytest.approx(expected.losses, rel=1e-3)


@pytest.mark.usefixtures("as_trained")
def test_the_device_never_waits_within_a_step() -> None:
    specs = varied(lora_dropout=0.1)
    pack = make_pack(specs, read_base(tiny_llama().cuda(), dense=True), {}, batched=True)
    with torch.no_grad():
        pack._round()  # allocates, and loads kernels
        chosen = choose(list(pack.active.values()), pack.tokens)
        with never_waiting():
            pack._step(chosen)


def test_a_gpu_reads_the_head_less_often() -> None:
    weight = torch.zeros(1024, 1)
    on_cpu, on_gpu = (len(list(head._chunks(2**17, each))) for each in (weight, weight.cuda()))
    assert (on_cpu, on_gpu) == (8, 2)


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_pack_in_bfloat16_is_near_trials_that_run_alone(quantization: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, quantization, device="cuda", dtype="bfloat16")  # type: ignore[arg-type]
    specs = tuple(make_spec(f"r{rank:04d}", lora_r=rank, learning_rate=5e-3) for rank in (2, 8))
    packed = train_pack(Pack(id="random-000", specs=specs), job)
    job = make_job(tmp_path / "alone", quantization, device="cuda", dtype="bfloat16")  # type: ignore[arg-type]
    for record, spec in zip(packed.records, specs, strict=True):
        assert record.result.objective == pytest.approx(train_alone(spec, job).result.objective, rel=0.02)
