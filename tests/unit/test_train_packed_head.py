"""The loss on completion tokens against torch's cross entropy and autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from understudy.train.packed import head
from understudy.train.packed.rows import ROUND

TOKENS, HIDDEN, VOCABULARY = 83, 24, 61


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = 2 * torch.randn(TOKENS, HIDDEN, generator=generator)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return hidden, weight, targets, torch.rand(TOKENS, generator=generator)


@pytest.fixture(params=[None, 1, ROUND * VOCABULARY, 70 * VOCABULARY], ids=["whole", "one", "rounded", "between"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many logits are held at once."""
    if request.param is not None:
        monkeypatch.setattr(head, "CHUNK", request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("smoothed", [False, True])
def test_losses_and_gradient_are_torchs(smoothed: bool) -> None:
    hidden, weight, targets, weights = inputs()
    smoothing = torch.tensor([(0.0, 0.1, 0.9)[token % 3] for token in range(TOKENS)]) if smoothed else None
    losses, gradient = head.losses_and_gradient(hidden, weight, targets, smoothing, weights)
    leaf = hidden.clone().requires_grad_()
    logits = leaf @ weight.t()
    factors = smoothing.tolist() if smoothing is not None else [0.0] * TOKENS
    expected = torch.stack(
        [F.cross_entropy(logits[n], targets[n], label_smoothing=factor) for n, factor in enumerate(factors)]
    )
    (expected * weights).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("chunk")
def test_losses_and_hits_are_torchs() -> None:
    hidden, weight, targets, _ = inputs()
    targets[::2] = (hidden @ weight.t()).argmax(1)[::2]
    losses, hits = head.losses_and_hits(hidden, weight, targets)
    logits = hidden @ weight.t()
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets, reduction="none"), rtol=1e-5, atol=1e-5)
    assert hits.tolist() == (logits.argmax(1) == targets).tolist()
    assert 0 < int(hits.sum()) < TOKENS


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("count", [1, 5, 31, 32, 33])
def test_a_tokens_numbers_do_not_depend_on_the_others(count: int) -> None:
    hidden, weight, targets, weights = inputs()
    whole = head.losses_and_gradient(hidden, weight, targets, None, weights)
    scores = head.losses_and_hits(hidden, weight, targets)
    for start in (0, 7, TOKENS - count):
        part = slice(start, start + count)
        some = head.losses_and_gradient(hidden[part], weight, targets[part], None, weights[part])
        smoothed = head.losses_and_gradient(
            hidden[part], weight, targets[part], torch.zeros(count), weights[part]
        )  # as beside a trial that smooths
        for all_tokens, own, other in zip(whole, some, smoothed, strict=True):
            assert torch.equal(all_tokens[part], own)
            assert torch.equal(own, other)
        for all_tokens, own in zip(scores, head.losses_and_hits(hidden[part], weight, targets[part]), strict=True):
            assert torch.equal(all_tokens[part], own)


def test_infinite_losses_stay_where_they_are() -> None:
    hidden, weight, targets, weights = inputs()
    clean = head.losses_and_gradient(hidden, weight, targets, None, weights)
    hidden[3], hidden[50] = torch.inf, torch.nan
    others = torch.ones(TOKENS, dtype=torch.bool)
    others[[3, 50]] = False
    for found, expected in zip(head.losses_and_gradient(hidden, weight, targets, None, weights), clean, strict=True):
        assert torch.equal(found[others], expected[others])
        assert not bool(found[~others].isfinite().all())
