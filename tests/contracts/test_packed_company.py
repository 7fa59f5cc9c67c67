"""What a packed trial computes doesn't depend on who shares its pack: on one thread to the bit."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from packed_study import EXAMPLES, Outcome, make_pack, train_packed, varied
from training_study import PAD, make_job, make_spec, random_examples, tiny_llama
from understudy.models.loading import load_base
from understudy.process import set_threads
from understudy.train.engine import Engine
from understudy.train.loop import Examples
from understudy.train.packed import batched, head
from understudy.train.packed.base import Base, read_base
from understudy.train.packed.rows import Spans
from understudy.trial import TrialSpec

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]

SPECS = varied(lora_dropout=0.1)


@pytest.fixture(scope="module")
def base() -> Base:
    return read_base(tiny_llama(), dense=True)


@pytest.fixture(scope="module")
def together(base: Base) -> Mapping[str, Outcome]:
    return train_packed(SPECS, base)


def alone(specs: Sequence[TrialSpec], base: Base, **changes: Any) -> dict[str, Outcome]:
    return {spec.id: train_packed([spec], base, **changes)[spec.id] for spec in specs}


def differing(found: Mapping[str, Outcome], expected: Mapping[str, Outcome]) -> list[str]:
    """The ids of trials of which a bit differs."""
    assert found.keys() == expected.keys()
    return sorted(id for id, outcome in found.items() if not outcome.same_bits(expected[id]))


def far(found: Mapping[str, Outcome], expected: Mapping[str, Outcome], relative: float = 1e-4) -> list[str]:
    """The ids of trials whose curves differ."""
    return sorted(id for id, own in found.items() if own.losses != pytest.approx(expected[id].losses, rel=relative))


def test_alone(base: Base, together: Mapping[str, Outcome]) -> None:
    assert differing(alone(SPECS, base), together) == []


@pytest.mark.parametrize("slots", [1, 3])
def test_waiting_for_a_slot(slots: int, base: Base, together: Mapping[str, Outcome]) -> None:
    assert differing(train_packed(SPECS, base, slots=slots), together) == []


def differing_from_alone() -> list[str]:
    """In a process of its own, as the training command sets it up."""
    set_threads(1)
    own = read_base(tiny_llama(), dense=True)
    return differing(alone(SPECS[:4], own), train_packed(SPECS[:4], own))


@pytest.mark.long
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch takes its products from another library")
def test_on_processors_without_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    """MKL has other kernels for them, whose rows depend on each other if nothing is done about it."""
    monkeypatch.setenv("MKL_ENABLE_INSTRUCTIONS", "AVX2")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.delenv("MKL_CBWR")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(differing_from_alone).result() == []


def test_in_another_order(base: Base, together: Mapping[str, Outcome]) -> None:
    shuffled = random.Random(1).sample(SPECS, len(SPECS))
    assert [spec.id for spec in shuffled] != [spec.id for spec in SPECS]
    assert differing(train_packed(shuffled, base), together) == []


def test_under_other_names(base: Base, together: Mapping[str, Outcome]) -> None:
    renamed = [spec.model_copy(update={"id": f"x{99 - number}"}) for number, spec in enumerate(SPECS)]
    found = train_packed(renamed, base)
    assert differing({spec.id: found[f"x{99 - number}"] for number, spec in enumerate(SPECS)}, together) == []


def test_with_some_of_the_others(base: Base, together: Mapping[str, Outcome]) -> None:
    for part in (SPECS[::2], SPECS[1::2]):
        assert differing(train_packed(part, base), {spec.id: together[spec.id] for spec in part}) == []


def test_with_another_token_budget(base: Base, together: Mapping[str, Outcome]) -> None:
    largest = 16 * max(len(example.input_ids) for example in EXAMPLES.train)  # no batch is cut
    for tokens in (largest, 2 * largest):
        assert differing(train_packed(SPECS, base, tokens=tokens), together) == []


@pytest.mark.long
def test_batches_that_are_cut_into_pieces(base: Base) -> None:
    specs = varied()  # masks follow from the pieces
    whole = train_packed(specs, base)
    cut = train_packed(specs, base, tokens=64)
    assert differing(cut, whole) != []
    assert far(cut, whole) == []
    assert differing(alone(specs, base, tokens=64), cut) == []


@pytest.mark.parametrize("longest", [4, 100])
def test_rows_that_are_short_or_long(longest: int) -> None:
    """A single completion token is a product that other kernels take, with other sums."""
    examples = Examples(random_examples(20, 1, longest), random_examples(6, 2, longest), PAD)
    wide = read_base(tiny_llama(hidden=128), dense=True)
    shapes = [(1, 1), (2, 1), (16, 1), (64, 1), (5, 3), (4, 2), (8, 16), (9, 7)]
    specs = [
        make_spec(f"r{rank:04d}", lora_r=rank, batch_size=size, num_train_epochs=size * 4 / 20) for rank, size in shapes
    ]
    found = train_packed(specs, wide, examples=examples, evaluations=1)
    assert differing(alone(specs, wide, examples=examples, evaluations=1), found) == []


def test_a_large_vocabulary(base: Base, together: Mapping[str, Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that don't fit are taken in chunks."""
    monkeypatch.setattr(head, "CHUNK", 37 * len(base.head))
    assert differing(train_packed(SPECS, base), together) == []


@pytest.mark.parametrize(("quantization", "dense"), [("nf4", True), ("nf4", False), ("int8", True), ("int8", False)])
def test_quantized_bases(quantization: Any, dense: bool, tmp_path: Path) -> None:
    job = make_job(tmp_path, quantization)
    quantized = read_base(load_base(job.inputs.model, job.inputs.execution, "lora"), dense)
    some, examples = SPECS[1:6], Engine(job).examples
    found = train_packed(some, quantized, examples=examples, evaluations=2)
    assert differing(alone(some, quantized, examples=examples, evaluations=2), found) == []


@pytest.mark.parametrize("batched", [False, True])
def test_beside_trials_that_diverge(batched: bool, base: Base) -> None:
    """Infinite weights, and numbers that are none, stay where they are."""
    wild = [
        make_spec("nan", learning_rate=1e30, warmup_ratio=0.0, num_train_epochs=3, lora_dropout=0.1),
        make_spec("last", learning_rate=1e38, warmup_ratio=0.0, batch_size=13, lora_alpha=1e6),
        make_spec("all", learning_rate=1e30, warmup_ratio=1.0, batch_size=2, lora_r=32, max_grad_norm=1e30),
    ]
    found = train_packed([*wild, *SPECS], base, batched=batched)
    assert [found.pop(spec.id).status for spec in wild] == ["diverged"] * 3
    together = train_packed([*wild, *SPECS][3:], base, batched=batched)
    assert (far(found, together, 1e-5) if batched else differing(found, together)) == []


@pytest.mark.long
def test_two_threads(base: Base) -> None:
    some = SPECS[3:6]
    both, one = (train_packed(some, base, threads=threads, evaluations=2) for threads in (2, 1))
    assert far(both, one) == []
    assert far(alone(some[:1], base, threads=2, evaluations=2), {some[0].id: both[some[0].id]}) == []


def test_products_of_all_trials_at_once(base: Base) -> None:
    """As GPUs take them: padded to the largest rank and to all layers that one trial adapts."""
    specs = varied()
    assert far(train_packed(specs, base, batched=True), train_packed(specs, base), 1e-5) == []


def test_products_of_all_trials_at_once_with_long_rows(base: Base) -> None:
    """Whose slots of attention have fewer lengths there, and more padding."""
    specs = varied()[1:5]
    long = Examples(random_examples(26, seed=1, longest=250), random_examples(9, seed=2, longest=250), PAD)
    batched, grouped = (train_packed(specs, base, batched=b, examples=long, evaluations=3) for b in (True, False))
    assert far(batched, grouped, 1e-5) == []


def test_products_of_all_trials_at_once_with_dropout(base: Base) -> None:
    """Masks are others than those of `products`, but just as much a trial's own."""
    found = train_packed(SPECS, base, batched=True)
    assert far(alone(SPECS, base, batched=True), found, 1e-5) == []
    assert far(train_packed(SPECS, base, batched=True, slots=3), found, 1e-5) == []


def test_scales_of_all_trials_at_once_are_not_rounded(base: Base) -> None:
    """Whatever the products are computed in: 29 / 14 isn't a number of bfloat16's."""
    pack = make_pack([make_spec(lora_alpha=29, lora_r=14)], base, {}, batched=True)
    pack._round()
    scale = batched._factors(pack.stack, Spans(((0, 0, 64),), 64, torch.tensor([0])), dropping=False)
    assert scale.tolist() == [[[pytest.approx(29 / 14, rel=1e-7)]]]
