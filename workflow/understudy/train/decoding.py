"""The decoding search: which arguments of `generate` make the winner's completions most like the references."""

from __future__ import annotations

import operator
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sacrebleu.metrics import CHRF
from transformers import GenerationConfig

from understudy import watchdog
from understudy.artifacts import DecodeTrial
from understudy.errors import ModelError
from understudy.hyperparameters import Value
from understudy.models.checkpoint import learned_positions
from understudy.settings import DecodeSettings
from understudy.train.forward import autocast
from understudy.trial import ResolvedExecution, derive_seed

BATCH = 16  # prompts that are completed at a time
THOUGHT = "</think>"  # the end of one, as Qwen 3 and DeepSeek-R1 write it


def configuration(seed: int, index: int) -> dict[str, Value]:
    """The index-th decoding configuration: greedy, then beam search, then sampling at random settings.

    It depends on the seed and the index alone. Ranges are those that model cards recommend from: temperature 0.1 to
    1.2, nucleus 0.5 to 1, repetition penalty 1 to 1.3 (Keskar et al. 2019 use 1.2).
    """
    if index == 0:
        return {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
    if index == 1:
        return {"do_sample": False, "num_beams": 4, "repetition_penalty": 1.0}
    draw = np.random.default_rng(derive_seed(seed, "decode", index))
    penalty = round(float(draw.uniform(1.0, 1.3)), 3)
    if index % 4 == 1:
        return {"do_sample": False, "num_beams": int(draw.integers(2, 6)), "repetition_penalty": penalty}
    return {
        "do_sample": True,
        "num_beams": 1,
        "temperature": round(float(draw.uniform(0.1, 1.2)), 3),
        "top_p": round(float(draw.uniform(0.5, 1.0)), 3),
        "repetition_penalty": penalty,
    }


def room(model: Any, max_length: int, max_new_tokens: int) -> int:
    """Tokens of a prompt that leave room for its completion: `max_length`, where positions aren't learnt one by one.

    Raises `ModelError` where there is none.
    """
    positions = learned_positions(model)
    if positions is not None and max_new_tokens >= positions:
        raise ModelError(
            f"`decode.max_new_tokens` is {max_new_tokens}, but the target has {positions} positions for a prompt and "
            "its completion together; lower it, and start again, which trains nothing anew"
        )
    return max_length if positions is None else min(max_length, positions - max_new_tokens)


def search(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    references: Sequence[str],
    settings: DecodeSettings,
    execution: ResolvedExecution,
    seed: int,
) -> tuple[DecodeTrial, ...]:
    """Score `settings.trials` configurations on the same prompts (tokens); best chrF first, ties to the earlier one."""
    trials: list[DecodeTrial] = []
    for index in range(settings.trials):
        generation = configuration(seed, index)
        torch.manual_seed(derive_seed(seed, "decode-run"))
        began = time.perf_counter()
        completions: list[list[int]] = []
        for start in range(0, len(prompts), BATCH):
            chunk = prompts[start : start + BATCH]
            completions += complete(model, tokenizer, chunk, generation, settings.max_new_tokens, execution)
            watchdog.beat()
        texts = [
            _answer(tokenizer.decode(tokens, skip_special_tokens=True), reference)
            for tokens, reference in zip(completions, references, strict=True)
        ]
        trials.append(
            DecodeTrial(
                id=f"c{index:02d}",
                generation=generation,
                chrf=round(CHRF().corpus_score(texts, [list(references)]).score, 6),
                exact_match=sum(map(operator.eq, texts, references)) / len(references),
                mean_new_tokens=sum(map(len, completions)) / len(completions),
                wall_seconds=time.perf_counter() - began,
            )
        )
    return tuple(sorted(trials, key=lambda trial: (-trial.chrf, trial.id)))


def _answer(text: str, reference: str) -> str:
    """A completion without the thoughts before it, which templates open, and write empty, for answers without any."""
    return (text if THOUGHT in reference else text.rpartition(THOUGHT)[2]).strip()


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    generation: dict[str, Value],
    max_new_tokens: int,
    execution: ResolvedExecution,
) -> list[list[int]]:
    """Generate for a batch of prompts; the new tokens of each, without end-of-sequence and padding."""
    pad = tokenizer.pad_token_id
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=execution.device)
    mask = torch.tensor(
        [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=execution.device
    )
    config = GenerationConfig(
        **generation,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=True,
    )
    with torch.no_grad(), autocast(execution):
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    ends = {tokenizer.eos_token_id, pad}
    completions: list[list[int]] = []
    for row in output[:, width:].tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        completions.append(row[:stop])
    return completions
