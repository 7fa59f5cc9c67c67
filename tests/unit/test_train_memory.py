"""Which errors say that memory ran out, and a GPU on which it would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import training_study
from training_study import make_job, make_spec, target_words
from understudy.artifacts import Proposal
from understudy.cli import main
from understudy.errors import UserError
from understudy.models.hardware import GIB
from understudy.train import launch
from understudy.train.launch import train_alone
from understudy.train.memory import is_out_of_memory, reason, require_like

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


@pytest.fixture
def gpu_of_24(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=24 * GIB))


@pytest.mark.usefixtures("gpu_of_24")
def test_a_trial_is_not_trained_on_a_gpu_that_is_smaller_than_what_it_was_laid_out_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lack of memory would be taken for the hyperparameters' fault, for good."""
    job, spec = make_job(tmp_path), make_spec("t0003", stage="target")
    proposal = Proposal(number=3, spec=spec, kind="start", sampler="transfer", visible=(), pending=())
    resolved = {"role": "target", "resolved": job.inputs.execution.model_dump()}

    def trained(gpu_bytes: int | None) -> Any:
        return main(target_words(tmp_path, job, proposal, execution={**resolved, "gpu_bytes": gpu_bytes}))

    assert trained(80 * GIB) == 2
    assert "this GPU has 24 GiB, and how trials run was decided on one of 80 GiB" in capsys.readouterr().err
    assert not list(job.store.glob("*/*.json"))
    assert trained(24 * GIB) == 0
    assert (tmp_path / "result.json").exists()


def test_several_processes_say_it_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "run_rank", training_study.run_rank_on_a_small_gpu)
    job = replace(make_job(tmp_path, processes=2), gpu_bytes=80 * GIB)
    with pytest.raises(UserError, match=r"^this GPU has 24 GiB, and how trials run was decided on one of 80 GiB"):
        train_alone(make_spec("t0003", stage="target"), job)
    assert not list(job.store.glob("*/*.json"))


@pytest.mark.usefixtures("gpu_of_24")
@pytest.mark.parametrize("decided", [None, 16 * GIB, 24 * GIB, int(24.8 * GIB)])
def test_what_is_as_large_will_do(decided: int | None) -> None:
    require_like(decided)
