"""When memory runs out a pack splits, and every trial that fits at all comes to the same end."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from training_study import limit_memory, make_job, make_spec

from understudy.train.pack import train_pack
from understudy.train.packed import pack
from understudy.train.trial import Job
from understudy.trial import Pack, PackResults

SPECS = tuple(
    make_spec(f"r{number:04d}", batch_size=48 - number, num_train_epochs=3, lora_r=2 + number) for number in range(8)
)
PLENTY = {"trials": 8, "tokens": 2**16, "dense": True}


def limited(plan: Pack, job: Job, megabytes: int) -> PackResults:
    """Train with only so much more memory than there is when everything is loaded."""
    begin = pack.Pack.__init__

    def short(self: Any, *arguments: Any) -> None:
        limit_memory(megabytes)
        begin(self, *arguments)

    pack.Pack.__init__ = short  # type: ignore[method-assign]
    return train_pack(plan, job)


def in_own_process(plan: Pack, job: Job, megabytes: int) -> PackResults:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(limited, plan, job, megabytes).result()


@pytest.fixture(scope="module")
def plenty(tmp_path_factory: pytest.TempPathFactory) -> PackResults:
    before = torch.get_num_threads()
    results = train_pack(
        Pack(id="random-000", specs=SPECS), make_job(tmp_path_factory.mktemp("plenty"), packing=PLENTY)
    )
    torch.set_num_threads(before)
    return results


def test_a_pack_that_is_short_of_memory_splits(plenty: PackResults, tmp_path: Path) -> None:
    found = in_own_process(Pack(id="random-000", specs=SPECS), make_job(tmp_path, packing=PLENTY), 60)
    assert plenty.notes == ()
    assert all("memory ran out" in note for note in found.notes)
    assert "went on with 4 trials and 32768 tokens" in found.notes[0]
    for record, expected in zip(found.records, plenty.records, strict=True):
        assert record.result.status == "complete"
        assert record.result.metrics == pytest.approx(expected.result.metrics, rel=1e-4)
        assert record.result.curve[0].eval_loss == pytest.approx(expected.result.curve[0].eval_loss, rel=1e-4)


def test_a_trial_that_does_not_fit_at_all(plenty: PackResults, tmp_path: Path) -> None:
    """Four times 35 MB of weights, gradients and moments."""
    large = make_spec("x", lora_r=4096)
    found = in_own_process(Pack(id="random-000", specs=(*SPECS, large)), make_job(tmp_path, packing=PLENTY), 100)
    *others, last = found.records
    assert last.result.steps == 0
    assert (last.result.status, last.result.objective) == ("out_of_memory", None)
    assert "memory ran out for the adapter itself" in str(last.result.message)
    assert not any("with 1 trial" in note for note in found.notes)
    for record, expected in zip(others, plenty.records, strict=True):
        assert record.result.metrics == pytest.approx(expected.result.metrics, rel=1e-4)
