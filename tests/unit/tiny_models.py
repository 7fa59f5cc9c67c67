"""Tiny random checkpoints of several architectures, with a tokenizer, for the tests of models and encoding."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from understudy.models.tokenizer import train_tokenizer
from understudy.trial import ModelCard, ResolvedExecution

TEXTS = (
    "def add(a, b):\n    '''Return the sum of two numbers.'''\n    return a + b\n",
    "Ä sentence with ünicode – ok.\n" * 3,
)
EXECUTION = ResolvedExecution(
    device="cpu", threads=1, processes=1, micro_batch_size=32, dtype="float32", gradient_checkpointing=False
)


@cache
def llama_config() -> Any:
    from transformers import LlamaConfig

    # input sizes of 48 and 80: no multiples of the 64 weights that share a scale
    return LlamaConfig(
        vocab_size=320,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=1,
    )


def configs() -> dict[str, Any]:
    """A config per architecture: a Llama, a Qwen2 (biases), a GPT-2 (Conv1D instead of Linear)."""
    from transformers import GPT2Config, Qwen2Config

    shared = {"vocab_size": 320, "eos_token_id": 0, "bos_token_id": None, "pad_token_id": 1}
    qwen2 = Qwen2Config(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=80,
        **shared,
    )
    gpt2 = GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=64, **shared)
    return {"llama": llama_config(), "qwen2": qwen2, "gpt2": gpt2}


def save(folder: Path, config: Any) -> Path:
    """A checkpoint with random weights, as anybody might have one."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    train_tokenizer(TEXTS, 320, folder)
    return folder


def card(folder: Path, quantization: str = "none") -> ModelCard:
    """A card as `prepare_model` would write it, for tests of what comes after."""
    return ModelCard.model_validate(
        {
            "role": "proxy",
            "source": "local",
            "name": str(folder),
            "path": str(folder),
            "sha256": "",
            "model_type": "llama",
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "vocab_size": 320,
            "parameters": 1,
            "quantization": quantization,
        }
    )
