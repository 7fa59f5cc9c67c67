"""What becomes of a trial whose model has an operation without a deterministic kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from transformers.models.llama.modeling_llama import LlamaMLP

from training_study import make_job, make_spec
from understudy.settings import Method
from understudy.train import determinism
from understudy.train.engine import Engine
from understudy.train.ranks import Ranks


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (determinism.WORKSPACE, "FLASH_ATTENTION_DETERMINISTIC"):
        monkeypatch.setenv(name, "0")  # so that it is put back
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def shuffled(values: torch.Tensor) -> torch.Tensor:
    """The same values by way of an operation that has no deterministic kernel on any device."""
    return torch.zeros_like(values).put_(torch.arange(values.numel()), values)


def test_kernels_are_required_and_not_only_wished_for() -> None:
    determinism.require(on_gpu=True)
    assert os.environ[determinism.WORKSPACE] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    with pytest.raises(RuntimeError, match=determinism.MISSING):
        shuffled(torch.ones(3))


@pytest.mark.filterwarnings("ignore:.*deterministic implementation.*:UserWarning")
def test_what_lacks_one_is_done_again_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    determinism.require(on_gpu=False)
    said: list[str] = []

    def train() -> torch.Tensor:
        said.append("begun")
        return shuffled(torch.arange(3.0))

    assert determinism.as_far_as_possible(train, lambda: said.append("again")).tolist() == [0, 1, 2]
    assert said == ["begun", "again", "begun"]
    assert "put_ does not have a deterministic implementation: two runs" in capsys.readouterr().err
    determinism.as_far_as_possible(train)
    assert said[3:] == ["begun"]


def test_other_errors_are_errors() -> None:
    begun: list[None] = []

    def train() -> None:
        begun.append(None)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        determinism.as_far_as_possible(train)
    assert len(begun) == 1


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.filterwarnings("ignore:.*deterministic implementation.*:UserWarning")
def test_a_trial_is_the_same_in_its_second_attempt(
    method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec("t0", method, lora_dropout=0.2 if method == "lora" else 0.0)
    wanted = Engine(make_job(tmp_path / "a")).train(spec).result
    own = LlamaMLP.forward
    calls: list[bool] = []

    def forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        calls.append(torch.is_deterministic_algorithms_warn_only_enabled())
        found: torch.Tensor = own(self, hidden)
        return found + 0 * shuffled(hidden.detach())

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    found = Engine(make_job(tmp_path / "b")).train(spec).result
    assert calls[:2] == [False, True]
    assert (found.status, found.curve, found.metrics) == ("complete", wanted.curve, wanted.metrics)


class EnoughError(Exception):
    """Two attempts have begun."""


@pytest.mark.filterwarnings("ignore:.*deterministic implementation.*:UserWarning")
def test_ranks_begin_again_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that had no row and so didn't meet the operation: else each would wait for another sum of the others."""
    sums: list[tuple[Any, ...]] = []

    def summed(values: torch.Tensor, op: Any = None) -> None:
        sums.append((values.dtype, tuple(values.shape), op))
        if len(sums) == 4:
            raise EnoughError
        if values.dtype == torch.float32:
            values[-2] = 1.0  # some rank was refused

    monkeypatch.setattr(distributed, "all_reduce", summed)
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: shuffled(self.down_proj(self.act_fn(self.up_proj(x)))))
    seen = []
    for rank in range(2):
        sums.clear()
        job = make_job(tmp_path / str(rank), processes=2)
        with pytest.raises(EnoughError):
            Engine(job, Ranks(rank, 2)).train(make_spec(batch_size=1))
        seen.append(tuple(sums))
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert seen[0] == seen[1]
