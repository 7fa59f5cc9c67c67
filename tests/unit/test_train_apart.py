"""Examples of one row don't see each other, by masks or by boundaries; models that can't do that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, MambaConfig, MambaForCausalLM

from training_study import EOS, PAD, VOCABULARY, execution, random_examples, tiny_llama
from understudy.errors import ModelError
from understudy.train.apart import check_apart
from understudy.train.evaluation import completion_losses
from understudy.train.forward import collate

CPU = torch.device("cpu")
FLASH = {"padding_free": True, "attention": "flash_attention_2"}


def test_one_row_of_examples_and_where_each_begins() -> None:
    examples = random_examples(3, seed=1)
    lengths = [len(example.input_ids) for example in examples]
    batch = collate(examples, PAD, CPU, execution(**FLASH))
    assert batch.input_ids.tolist() == [[token for example in examples for token in example.input_ids]]
    assert batch.apart["position_ids"].tolist() == [[place for length in lengths for place in range(length)]]
    ends = [sum(lengths[:number]) for number in range(4)]
    assert batch.apart["cu_seq_lens_q"].tolist() == batch.apart["cu_seq_lens_k"].tolist() == ends
    assert batch.apart["max_length_q"] == batch.apart["max_length_k"] == max(lengths)
    assert "cu_seq_lens_q" not in collate(examples, PAD, CPU, execution(padding_free=True)).apart


def by_boundaries(
    _module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, cu_seq_lens_q: Any, **_: Any
) -> tuple[Any, None]:
    """As FlashAttention's kernel for sequences of many lengths: it knows boundaries, and no mask."""
    assert mask is None
    sizes = cu_seq_lens_q.diff().tolist()
    pieces = zip(query.split(sizes, dim=2), key.split(sizes, dim=2), value.split(sizes, dim=2), strict=True)
    found = [F.scaled_dot_product_attention(*piece, is_causal=True, scale=scaling) for piece in pieces]
    return torch.cat(found, dim=2).transpose(1, 2), None


def test_boundaries_reach_the_kernel_of_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = tiny_llama(), random_examples(9, seed=4)
    plain = completion_losses(model, examples, PAD, execution())
    monkeypatch.setitem(AttentionInterface._global_mapping, "by_boundaries", by_boundaries)
    model.config._attn_implementation = "by_boundaries"
    found = completion_losses(model, examples, PAD, execution(micro_batch_size=4, **FLASH))
    assert found[0] == pytest.approx(plain[0], rel=1e-5)
    assert found[1] == plain[1]


def test_a_model_that_keeps_examples_apart_passes() -> None:
    model = tiny_llama()
    model.train()
    check_apart(model, execution(padding_free=True))
    assert model.training


def test_one_whose_mask_lets_them_see_each_other_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def seeing_all(_module: Any, query: Any, key: Any, value: Any, *_: Any, scaling: float, **__: Any) -> Any:
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return found.transpose(1, 2), None

    model = tiny_llama()
    monkeypatch.setitem(AttentionInterface._global_mapping, "seeing_all", seeing_all)
    model.config._attn_implementation = "seeing_all"
    with pytest.raises(ModelError, match=r"LlamaForCausalLM doesn't keep them apart.*`padding_free: false`"):
        check_apart(model, execution(padding_free=True))


def test_one_with_a_state_along_the_row_is_refused() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "vocab_size": VOCABULARY}
    model = MambaForCausalLM(MambaConfig(**sizes, pad_token_id=PAD, bos_token_id=EOS, eos_token_id=EOS))
    with pytest.raises(ModelError, match="padding_free"):
        check_apart(model, execution(padding_free=True))
