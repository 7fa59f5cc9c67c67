"""What a packed trial does at each of its steps, and who steps when."""

from __future__ import annotations

import math
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from training_study import make_spec, random_examples
from understudy.hyperparameters import SCHEDULES
from understudy.train.batches import data_order
from understudy.train.packed.adapters import Weights
from understudy.train.packed.layout import Layout
from understudy.train.packed.rows import Corpus
from understudy.train.packed.trials import Orders, Trial, choose, in_order, pieces

CPU = torch.device("cpu")
CORPUS = Corpus(random_examples(26, seed=1), CPU)


def nothing() -> Weights:
    return Weights(torch.zeros(0), torch.zeros(0), torch.zeros(0))


def trial(id: str = "r0001", corpus: Corpus = CORPUS, **values: Any) -> Trial:
    spec = make_spec(id, **values)
    return Trial(spec, Layout((), 1, frozenset()), corpus, 3, Orders(len(corpus)), nothing)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
def test_rates_are_a_real_optimizers(name: str, warmup: float) -> None:
    found = trial(lr_scheduler_type=name, warmup_ratio=warmup, batch_size=3, num_train_epochs=2, learning_rate=0.02)
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.02)
    schedule = get_scheduler(name, optimizer, math.ceil(warmup * found.steps), found.steps)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(found.steps - 1):
        parameter.sum().backward()
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert found.steps == math.ceil(26 * 2 / 3)
    assert found.rates == rates


def test_batches_are_the_data_order() -> None:
    orders = Orders(26)
    stream = list(islice(data_order(26, 7), 60))
    assert orders.between(7, 50, 60) == stream[50:60]
    assert orders.between(7, 0, 5) == stream[:5]
    assert orders.between(3, 0, 60) == list(islice(data_order(26, 3), 60))
    own = trial(batch_size=7)
    for step in range(own.steps):
        assert own.batch == stream[7 * step : 7 * step + 7]
        assert own.batch_tokens == CORPUS.tokens(own.batch)
        own.history.steps += 1


def test_masks_follow_from_seed_step_and_piece() -> None:
    own, later, other = trial(), trial("r0002"), trial(seed=8)
    assert own.dropout_seed(0) == later.dropout_seed(0)
    later.history.steps = 1
    seeds = {own.dropout_seed(0), own.dropout_seed(1), later.dropout_seed(0), other.dropout_seed(0)}
    assert len(seeds) == 4


batches = st.lists(st.integers(0, 25), min_size=1, max_size=30)


@given(batches, st.integers(1, 400))
def test_pieces_are_as_long_as_can_be(batch: list[int], tokens: int) -> None:
    found = pieces(batch, CORPUS, tokens)
    assert [example for piece in found for example in piece] == batch
    for piece in found:
        assert piece
        assert CORPUS.tokens(piece) <= tokens or len(piece) == 1
    for piece, following in pairwise(found):
        assert CORPUS.tokens([*piece, following[0]]) > tokens


@pytest.mark.long
@given(
    st.lists(st.tuples(st.integers(1, 20), st.floats(0.1, 5)), min_size=1, max_size=12),
    st.integers(1, 600),
    st.randoms(use_true_random=False),
)
def test_nobody_starves_and_the_longest_never_waits(shapes: list[tuple[int, float]], tokens: int, draw: Any) -> None:
    trials = [trial(f"r{n:04d}", batch_size=size, num_train_epochs=epochs) for n, (size, epochs) in enumerate(shapes)]
    active, rounds, waited = list(trials), 0, dict.fromkeys(trials_ids(trials), 0)
    while active:
        chosen = choose(draw.sample(active, len(active)), tokens)
        longest = in_order(active)[0]
        assert chosen[0] is longest
        assert longest.left == max(own.left for own in active)
        used = sum(own.batch_tokens for own in chosen)
        assert used <= tokens or len(chosen) == 1
        room = tokens - used
        assert all(own.batch_tokens > room for own in active if own not in chosen)
        for own in active:
            if own in chosen:
                own.history.steps += 1
            else:
                waited[own.spec.id] += 1
        active = [own for own in active if own.left]
        rounds += 1
        assert rounds <= sum(own.steps for own in trials)
    assert all(waited[own.spec.id] <= rounds - own.steps for own in trials)


def trials_ids(trials: list[Trial]) -> list[str]:
    return [own.spec.id for own in trials]


def test_the_order_does_not_depend_on_how_trials_are_given() -> None:
    trials = [trial(f"r{n:04d}", batch_size=1 + n % 3) for n in range(7)]
    expected = trials_ids(in_order(trials))
    assert trials_ids(in_order(trials[::-1])) == expected
    assert expected[:3] == ["r0000", "r0003", "r0006"]  # the longest first, then by id


def test_states_come_back() -> None:
    own, other = trial(), trial()
    own.history.steps, own.history.tokens, own.looked_at, own.rung, own.seconds = 3, 17, 2, 1, 0.25
    own.since_evaluation.add(2.5, 10)
    weights = Weights(torch.ones(4), torch.zeros(4), torch.full((4,), 2.0))
    other.restore(own.state(weights))
    assert (other.history, other.since_evaluation) == (own.history, own.since_evaluation)
    assert (other.looked_at, other.rung, other.seconds, other.left) == (2, 1, 0.25, own.left)
    assert other.waiting is not None
    assert torch.equal(other.waiting.exp_avg_sq, weights.exp_avg_sq)
    assert other.batch == own.batch
    fresh = trial()
    fresh.restore(trial().state(None))
    assert fresh.waiting is None
