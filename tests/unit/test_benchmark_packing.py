"""The benchmark of packed trials runs, and its ablations do what they say. How fast anything is isn't tested."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import bitsandbytes
import pytest
import torch

from understudy.train.packed import batched, head, products
from understudy.train.packed.adapters import Stack

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PARTS = {"base products", "adapters", "attention", "head", "optimizer", "rest"}
ABLATIONS = {"padding", "last_layer", "dequantize", "logits", "foreach", "products"}


@pytest.mark.long
def test_a_quick_run_measures_every_contender() -> None:
    command = [sys.executable, str(BENCHMARKS / "packing.py"), "--quick", "--ablate"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # threads that wait in loops are slow beside other work
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    (shape,) = json.loads(done.stdout.splitlines()[-1])["shapes"]

    assert {(each["group"], each["k"]) for each in shape["contenders"]} == {
        ("solo", 1),
        *((group, k) for group in ("pack", "peft_bound", "own_bound") for k in (2, 4)),
    }
    assert shape["left_out"] == []
    assert all(is_above_zero(each["rate"]) and each["peak_bytes"] > 2**20 for each in shape["contenders"])
    assert is_above_zero(shape["process_each"]["rate"])
    baseline = max(each["rate"] for each in shape["contenders"] if each["group"] == "solo")
    assert shape["baseline"]["rate"] == baseline
    assert [pack["k"] for pack in shape["packs"]] == [2, 4]
    for pack in shape["packs"]:
        assert pack["ratio"] == pytest.approx(pack["rate"] / baseline)
        for group in ("peft_bound", "own_bound"):
            bound = max(
                each["rate"] for each in shape["contenders"] if (each["group"], each["k"]) == (group, pack["k"])
            )
            assert pack[f"share_of_{group}"] == pytest.approx(pack["rate"] / bound)
    assert set(shape["shares"]["parts"]) == PARTS
    assert sum(shape["shares"]["parts"].values()) == pytest.approx(1)
    assert {each["name"] for each in shape["ablations"]["without"]} == ABLATIONS
    assert all(is_above_zero(each["times"]) for each in shape["ablations"]["without"])


def is_above_zero(value: float) -> bool:
    return math.isfinite(value) and value > 0


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A worker of the benchmark with a base in it, in this process."""
    with mock.patch.object(sys, "path", [str(BENCHMARKS), *sys.path]):
        from packs.tasks import Shape, Task
        from packs.worker import Worker
    shape = Shape(4, 32, 64, 2, 4, 4, 192, 512, "llama")
    folder = tmp_path_factory.mktemp("checkpoint")
    worker = Worker("cpu", 1)
    worker.write(shape, folder)
    worker.load(shape, folder, None)
    worker.task = Task(kind="pack", trials=3, rows=4, steps=2, pass_tokens=4096, ragged=True, rank=4, dropout=0.0)
    return worker


def run(worker: Any, **changes: Any) -> dict[int, float]:
    """The trials' losses."""
    worker.prepare(replace(worker.task, **changes))
    return worker.run().losses


def calls(worker: Any, owner: Any, name: str, told: Callable[..., Any], ablation: str | None) -> list[Any]:
    """What `told` makes of the arguments of each call of a function during a run; the losses stay as they are."""
    seen: list[Any] = []
    plain = getattr(owner, name)

    def watched(*arguments: Any, **named: Any) -> Any:
        seen.append(told(*arguments, **named))
        return plain(*arguments, **named)

    expected = run(worker)
    worker.prepare(replace(worker.task, ablation=ablation))
    with mock.patch.object(owner, name, watched):
        losses = worker.run().losses
    assert losses == pytest.approx(expected, rel=1e-5)
    return seen


def one(*_: Any, **__: Any) -> int:
    return 1


def group_and_tokens(_: Any, group: int, x: Any, *__: Any) -> tuple[int, int]:
    return group, len(x)


def test_packs_train_what_trials_alone_train(worker: Any) -> None:
    alone = {}
    for trial in range(3):
        alone |= run(worker, kind="solo", trials=1, first=trial)
    assert run(worker) == pytest.approx(alone, rel=1e-5)
    with mock.patch.object(Stack, "step", lambda self, slot, *_: self.clear_gradients(slot)):
        assert run(worker) != pytest.approx(alone, rel=1e-5)  # the losses tell


def test_padding_goes_through_the_layers(worker: Any) -> None:
    plain = calls(worker, products, "apply", group_and_tokens, None)
    padded = calls(worker, products, "apply", group_and_tokens, "padding")
    longest = 32
    assert all(tokens == 3 * 4 * longest for group, tokens in padded if group == 0)
    assert all(tokens < 3 * 4 * longest for group, tokens in plain if group == 0)


def test_the_last_layer_goes_over_all_positions(worker: Any) -> None:
    plain = calls(worker, products, "apply", group_and_tokens, None)
    everywhere = calls(worker, products, "apply", group_and_tokens, "last_layer")
    for (group, before), (_, after) in zip(plain, everywhere, strict=True):
        assert (after > 2 * before) == (group > 4)  # the last layer's groups after its attention


def test_the_base_is_dequantized_in_every_pass(worker: Any) -> None:
    plain = calls(worker, bitsandbytes.functional, "dequantize_4bit", one, None)
    often = calls(worker, bitsandbytes.functional, "dequantize_4bit", one, "dequantize")
    linear_layers, steps = 2 * 7, 2
    assert len(plain) == 0  # once, before the run
    assert len(often) == steps * (2 * linear_layers - 3)  # back from the first layer's attention nothing is wanted


def test_prompts_get_logits(worker: Any) -> None:
    plain = calls(worker, head, "losses_and_gradient", lambda hidden, *_: len(hidden), None)
    log_softmax = calls(worker, torch, "log_softmax", lambda logits, *_: len(logits), "logits")
    assert all(everywhere > 2 * answers for everywhere, answers in zip(log_softmax, plain, strict=True))


def test_each_matrix_has_an_optimizer_of_its_own(worker: Any) -> None:
    plain = calls(worker, torch.optim.AdamW, "step", one, None)
    each = calls(worker, torch.optim.AdamW, "step", lambda self: len(self.param_groups[0]["params"]), "foreach")
    assert plain == []
    assert each == [2 * 7 * 2] * 3 * 2  # A and B of every linear layer, in two steps of three trials


def test_products_are_the_other_ones(worker: Any) -> None:
    assert calls(worker, batched, "apply", one, None) == []
    assert len(calls(worker, batched, "apply", one, "products")) == 2 * 4 * 2  # steps, groups of a layer, layers
