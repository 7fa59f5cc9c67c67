"""The losses that everything is judged by, against transformers' and torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from training_study import EOS, PAD, VOCABULARY, execution, random_examples, tiny_llama, write_checkpoint
from understudy.data.encoding import Encoded
from understudy.models.loading import load_base
from understudy.train.evaluation import completion_losses, score
from understudy.train.forward import collate, completion_logits

SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": PAD}


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **SIZES))


def gpt_neox() -> Any:
    config = GPTNeoXConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, **SIZES)
    return GPTNeoXForCausalLM(config)


def gemma2() -> Any:
    """Its logits are squashed after the head, and one of its layers has a sliding window."""
    config = Gemma2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        sliding_window=8,
        final_logit_softcapping=1.0,
        **SIZES,
    )
    return Gemma2ForCausalLM(config)


def reference(model: Any, example: Encoded) -> tuple[float, int, int]:
    """Loss, tokens and hits of one example alone, by transformers' own loss on labels."""
    ids = torch.tensor([example.input_ids])
    labels = ids.clone()
    labels[0, : example.completion_start] = -100
    with torch.no_grad():
        output = model.eval()(input_ids=ids, labels=labels, attention_mask=torch.ones_like(ids))
    count = int((labels[0, 1:] != -100).sum())
    hits = int((output.logits[0, :-1].argmax(-1) == labels[0, 1:]).sum())
    return float(output.loss) * count, count, hits


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize("build", [tiny_llama, gpt2, gpt_neox, gemma2])
def test_losses_are_those_of_each_example_alone(build: Any, padding_free: bool) -> None:
    torch.manual_seed(0)
    model = build()
    examples = random_examples(21, seed=3)
    scores = score(model, examples, PAD, execution(micro_batch_size=4, padding_free=padding_free))
    expected = [reference(model, example) for example in examples]
    assert scores.losses == pytest.approx([loss for loss, _, _ in expected], rel=1e-5)
    assert scores.tokens == [count for _, count, _ in expected]
    assert scores.correct == [hits for _, _, hits in expected]
    assert sum(scores.correct) >= 0


def test_losses_without_an_output_embedding() -> None:
    """A model that doesn't say where its head is computes all logits; the result is the same."""
    model, examples = tiny_llama(), random_examples(6)
    plain = completion_losses(model, examples, PAD, execution())
    headless = tiny_llama()
    headless.get_output_embeddings = lambda: None
    assert completion_losses(headless, examples, PAD, execution())[0] == pytest.approx(plain[0], rel=1e-6)


def test_the_head_sees_completion_positions_only() -> None:
    model, examples = tiny_llama(), random_examples(5)
    seen = []
    model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    batch = collate(examples, PAD, torch.device("cpu"), execution())
    logits = completion_logits(model, batch, execution())
    assert seen == [len(batch.targets)]
    assert logits.shape == (len(batch.targets), VOCABULARY)
    assert not model.lm_head._forward_pre_hooks  # the hook is gone again


def test_hits_are_counted() -> None:
    """A model that always predicts token 9 is right exactly where 9 comes next."""
    model = tiny_llama(tie_word_embeddings=False)
    model.lm_head.forward = lambda hidden: F.one_hot(torch.full(hidden.shape[:-1], 9), VOCABULARY).float()
    scores = score(model, [Encoded([4, 9, 9, 3], 1, 3), Encoded([9, 9, 4, 9], 2, 2)], PAD, execution())
    assert scores.correct == [2, 1]
    assert scores.tokens == [3, 2]


def test_evaluation_leaves_the_mode_alone() -> None:
    model = tiny_llama().train()
    model.model.layers[0].eval()
    completion_losses(model, random_examples(3), PAD, execution())
    assert model.training
    assert model.model.layers[1].training
    assert not model.model.layers[0].training


def test_dropout_is_off() -> None:
    torch.manual_seed(0)
    model = gpt2().train()  # drops a tenth
    examples = random_examples(4)
    assert completion_losses(model, examples, PAD, execution()) == completion_losses(model, examples, PAD, execution())


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_losses_stay_near_and_do_not_change(tmp_path: Any, quantization: Any) -> None:
    card = write_checkpoint(tmp_path, quantization)
    model, examples = load_base(card, execution(), "lora"), random_examples(12)
    first = completion_losses(model, examples, PAD, execution())
    assert completion_losses(model, examples, PAD, execution()) == first
    exact = load_base(card.model_copy(update={"quantization": "none"}), execution(), "lora")
    expected = completion_losses(exact, examples, PAD, execution())[0]
    assert sum(first[0]) == pytest.approx(sum(expected), rel=0.15)
    assert first[0] != pytest.approx(expected, rel=1e-6)


def test_bfloat16_is_near_float32_and_counts_in_float32() -> None:
    model, examples = tiny_llama(), random_examples(12)
    exact = completion_losses(model, examples, PAD, execution())[0]
    coarse = completion_losses(model, examples, PAD, execution(dtype="bfloat16"))[0]
    assert coarse == pytest.approx(exact, rel=0.05)
    assert coarse != pytest.approx(exact, rel=1e-5)
