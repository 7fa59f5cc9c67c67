"""Rotary positions against transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from training_study import tiny_llama
from understudy.train.packed.base import read_base
from understudy.train.packed.rotary import Rotary

LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_key_value_heads": 2}, {"num_key_value_heads": 1, "head_dim": 6}, {"rope_parameters": LINEAR}],
    ids=["", "grouped", "narrow", "scaled"],
)
def test_turns_are_transformers_and_back_is_their_gradient(changes: dict[str, Any]) -> None:
    model = tiny_llama(**changes)
    base = read_base(model, dense=True)
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(50, (32,), generator=generator)
    query, key = (
        torch.randn(32, heads * base.head_size, generator=generator, requires_grad=True)
        for heads in (base.heads, base.key_heads)
    )
    cosines, sines = model.model.rotary_emb(query, positions.unsqueeze(0))
    by_head = [part.view(1, 32, -1, base.head_size).transpose(1, 2) for part in (query, key)]
    turned = [part.transpose(1, 2).reshape(32, -1) for part in apply_rotary_pos_emb(*by_head, cosines, sines)]
    wanted = [torch.randn(part.shape, generator=generator) for part in turned]
    torch.autograd.backward(turned, wanted)

    rotary = Rotary(base, longest=50)
    factors = rotary.at(positions)
    with torch.no_grad():
        found = rotary.turn(query, key, factors)
        back = rotary.turn_back(wanted[0], wanted[1], factors)
    for own, expected in zip(found, turned, strict=True):
        torch.testing.assert_close(own, expected.detach(), rtol=1e-6, atol=1e-6)
    for own, leaf in zip(back, (query, key), strict=True):
        torch.testing.assert_close(own, leaf.grad, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found[0], query)
