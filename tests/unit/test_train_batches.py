"""Which examples a step sees, and how they are cut up."""

from __future__ import annotations

import math
from itertools import islice, product

import pytest
import torch

from training_study import execution, random_examples
from understudy.data.encoding import Encoded
from understudy.steps import evaluation_steps, total_steps
from understudy.train.batches import batches, completion_tokens, data_order, micro_batches
from understudy.trial import CPU_PASS_TOKENS, derive_seed


def test_order_is_a_fresh_seeded_permutation_per_epoch() -> None:
    stream = list(islice(data_order(10, seed=3), 30))
    epochs = [stream[0:10], stream[10:20], stream[20:30]]
    for number, epoch in enumerate(epochs):
        generator = torch.Generator().manual_seed(derive_seed(3, "order", number))
        assert epoch == torch.randperm(10, generator=generator).tolist()
    assert epochs[0] != epochs[1]
    assert list(islice(data_order(10, seed=4), 10)) != epochs[0]


def test_every_batch_is_full_and_batches_run_across_epochs() -> None:
    examples = random_examples(10)
    found = list(batches(examples, batch_size=4, steps=5, seed=1))
    assert [len(batch) for batch in found] == [4] * 5
    expected = [examples[index] for index in islice(data_order(10, 1), 20)]
    assert [example for batch in found for example in batch] == expected


@pytest.mark.parametrize(
    ("examples", "epochs", "batch_size", "fidelity", "steps"),
    [(512, 3, 16, 1.0, 96), (10, 1, 4, 1.0, 3), (512, 3, 16, 0.25, 24), (10, 0.1, 32, 1.0, 1), (8, 1, 8, 0.01, 1)],
)
def test_steps(examples: int, epochs: float, batch_size: int, fidelity: float, steps: int) -> None:
    assert total_steps(examples, {"num_train_epochs": epochs, "batch_size": batch_size}, fidelity) == steps


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_micro_batches_hold_every_example_once(rows: int, ranks: int) -> None:
    batch = random_examples(17, seed=5)
    pieces = [
        piece for rank in range(ranks) for piece in micro_batches(batch, execution(micro_batch_size=rows), rank, ranks)
    ]
    assert sorted(map(id, batch)) == sorted(id(example) for piece in pieces for example in piece)
    assert all(1 <= len(piece) <= rows for piece in pieces)


def test_a_rank_without_examples_has_no_micro_batch() -> None:
    assert micro_batches(random_examples(2), execution(), rank=2, ranks=3) == []


@pytest.mark.parametrize("pass_tokens", [CPU_PASS_TOKENS, 1024])
@pytest.mark.parametrize("seed", range(5))
def test_no_cut_costs_less(seed: int, pass_tokens: int) -> None:
    batch = random_examples(9, seed=seed, longest=400)
    found = cost(micro_batches(batch, execution(micro_batch_size=4, pass_tokens=pass_tokens), 0, 1), pass_tokens)
    ordered = sorted(batch, key=lambda example: len(example.input_ids))
    all_cuts = (pieces(ordered, cuts) for cuts in product([False, True], repeat=8))
    assert found == min(cost(cut, pass_tokens) for cut in all_cuts if max(map(len, cut)) <= 4)


def pieces(ordered: list[Encoded], cuts: tuple[bool, ...]) -> list[list[Encoded]]:
    found = [[ordered[0]]]
    for example, cut in zip(ordered[1:], cuts, strict=True):
        if cut:
            found.append([])
        found[-1].append(example)
    return found


def cost(found: list[list[Encoded]], pass_tokens: int) -> int:
    return sum(pass_tokens + len(piece) * max(len(row.input_ids) for row in piece) for piece in found)


def test_completion_tokens_are_those_that_something_predicts() -> None:
    batch = [Encoded([5, 6, 7, 8], 2, 2), Encoded([5, 6], 1, 1), Encoded([5, 6, 7], 0, 3)]
    assert completion_tokens(batch) == 2 + 1 + 2


def test_the_number_of_steps_does_not_depend_on_the_evaluations() -> None:
    assert evaluation_steps(96, 4) == {24, 48, 72, 96}
    assert evaluation_steps(3, 4) == {1, 2, 3}
    assert evaluation_steps(1, 4) == {1}
    for steps, evaluations in product(range(1, 40), range(1, 9)):
        found = evaluation_steps(steps, evaluations)
        assert max(found) == steps
        assert min(found) >= 1
        assert len(found) == min(steps, evaluations) or math.isclose(len(found), evaluations, abs_tol=1)
