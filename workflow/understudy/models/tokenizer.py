"""The tokenizer of the built-in models: byte-level BPE, trained on their corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

END, PAD = "<|endoftext|>", "<|pad|>"

# Plain role lines, an answer ends the text: enough to try chat data on a built-in model.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def train_tokenizer(corpus: Sequence[str], vocab_size: int, folder: Path) -> None:
    """Train a byte-level BPE with `vocab_size` entries on the corpus; write it as AutoTokenizer loads it.

    The same corpus gives the same bytes: all 256 bytes are entries beforehand, and ties go by their order.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE, padding_side="right"
    )
    fast.save_pretrained(folder)


def tokens_of(pieces: Sequence[tuple[str, bool]], tokenizer: Any, wanted: int) -> list[int]:
    """The first `wanted` tokens of some pieces of text, over and over if need be.

    After a piece that says that it is the end of its text comes the end-of-sequence token. Raises `ValueError` where
    there is no text.
    """
    if not any(text for text, _ in pieces):
        raise ValueError("there is no text to pretrain on")
    tokens: list[int] = []
    while len(tokens) < wanted:
        for text, is_end in pieces:
            tokens += tokenizer(text, return_attention_mask=False)["input_ids"]
            tokens += [tokenizer.eos_token_id] * is_end
            if len(tokens) >= wanted:
                break
    return tokens[:wanted]
