"""A checkpoint's folder: whether it is complete, what it is, and its digest."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from understudy.errors import ModelError
from understudy.files import file_sha256
from understudy.models.folder import TOKENIZER_FILES, WEIGHTS, loaded, weights
from understudy.settings import Quantization
from understudy.trial import EXPERTS

SHARD = re.compile(r"(?P<start>.+)-\d{5}-of-(?P<count>\d{5})(?P<end>\.safetensors|\.bin)")
SPARE_POSITIONS = 2  # rows that a table of positions may have before the first, as OPT's
SHOWN = 5  # missing shards that an error names
CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k_experts")  # how configs call the experts of a token


@dataclass(frozen=True)
class Checkpoint:
    """What is in a checkpoint. `sha256` covers the names and bytes of everything that is loaded."""

    sha256: str
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    parameters: int
    active_parameters: int | None  # that a token passes through, where those aren't all


def inspect(folder: Path, quantization: Quantization) -> Checkpoint:
    """Check that transformers can load a causal language model and its tokenizer from a folder, and describe them.

    The weights are hashed, not loaded. Raises `ModelError` naming the folder and what is missing in it, or what keeps
    it from being quantized.
    """
    found = weights(folder)
    _check_complete(folder, found)
    _check_whole(found)
    model = without_weights(folder)
    config = model.config
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"the checkpoint in {folder} is quantized already; take the original one, "
            "and say with `quantization` how it is to be held"
        )
    if quantization != "none" and (experts := _share_of_experts(model)) > 0.1:
        raise ModelError(
            f"`quantization: {quantization}` would leave {100 * experts:.0f} % of the weights in {folder} as they are: "
            "bitsandbytes quantizes linear layers, and transformers holds the experts of this model in tensors of "
            "another kind; set it to `none`, or take a model without experts"
        )
    text = config.get_text_config()
    return Checkpoint(
        sha256=_sha256(folder),
        model_type=config.model_type,
        hidden_size=text.hidden_size,
        num_hidden_layers=text.num_hidden_layers,
        vocab_size=text.vocab_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        active_parameters=_active_parameters(model, text),
    )


def notes_on_length(folder: Path, max_length: int) -> tuple[str, ...]:
    """What examples of so many tokens mean for the model in a folder, in words.

    Raises `ModelError` where it has learnt an embedding for each position, and has too few of them.
    """
    model = without_weights(folder)
    if (positions := learned_positions(model)) is not None and max_length > positions:
        raise ModelError(
            f"the model in {folder} has {positions} positions, and `data.max_length` is {max_length}; lower it to "
            f"{positions} or less"
        )
    context = _context(model)
    if context is None or max_length <= context:
        return ()
    return (f"data.max_length ({max_length}) is more than the {context} tokens that the model was made for",)


def learned_positions(model: Any) -> int | None:
    """How many positions a model has learnt an embedding for; None where it can go on without end."""
    context, tokens = _context(model), model.get_input_embeddings()
    tables = [each for each in model.modules() if isinstance(each, torch.nn.Embedding) and each is not tokens]
    if context is None or not any(0 <= each.num_embeddings - context <= SPARE_POSITIONS for each in tables):
        return None
    return context


def _context(model: Any) -> int | None:
    """The tokens that a model was made for, where its config says so."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def without_weights(folder: Path) -> Any:
    """A checkpoint's model with tensors that have nothing but a shape."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder} can't be loaded as a causal language model: {' '.join(str(error).split())[:300]}; "
            "take a checkpoint that `transformers.AutoModelForCausalLM` of the installed version loads"
        ) from error


def _share_of_experts(model: Any) -> float:
    """Of the weights, those in tensors with an axis for the experts, which belong to no linear layer."""
    stacked = sum(int(parameter.numel()) for parameter in model.parameters() if parameter.dim() > 2)
    return stacked / sum(int(parameter.numel()) for parameter in model.parameters())


def _active_parameters(model: Any, text: Any) -> int | None:
    """How many parameters a token passes through in a mixture of experts; None elsewhere.

    Experts are stacked along the first axis of their tensors, and each token goes to some of them.
    """
    experts, chosen = (
        next((found for name in names if isinstance(found := getattr(text, name, None), int)), None)
        for names in (EXPERTS, CHOSEN)
    )
    if not experts or not chosen:
        return None
    shapes = [parameter.shape for parameter in model.parameters()]
    stacked = sum(shape.numel() for shape in shapes if len(shape) > 2 and shape[0] == experts)
    whole = sum(shape.numel() for shape in shapes)
    return whole - stacked // experts * (experts - min(chosen, experts)) if stacked else None


def check_tokenizer(folder: Path, needs_chat_template: bool) -> None:
    """Check that a folder's tokenizer loads and can do what the data need; raise `ModelError`."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever the tokenizer's own code raises
        raise ModelError(f"the tokenizer in {folder} can't be loaded: {' '.join(str(error).split())[:300]}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer in {folder} has no end-of-sequence token; set `eos_token` for it")
    if needs_chat_template and tokenizer.chat_template is None:
        raise ModelError(
            f"the data are chats, but the tokenizer in {folder} has no chat template; take a model that was made for "
            "chats, give the tokenizer a template, or use data in the format prompt_completion"
        )


def _check_complete(folder: Path, found: list[Path]) -> None:
    missing = []
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        missing.append("config.json" + (" (this is an adapter; merge it into its base model first)" if adapter else ""))
    if not found:
        missing.append(f"weights ({' or '.join(WEIGHTS)})")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        missing.append(f"a tokenizer ({', '.join(TOKENIZER_FILES)})")
    incomplete = _missing_shards(folder, found)
    missing += incomplete
    if missing:
        raise ModelError(
            f"the model folder {folder} lacks {', '.join(missing)}; "
            + ("is the download complete? Give" if incomplete else "give")
            + " a folder as `save_pretrained` writes it"
        )


def _missing_shards(folder: Path, found: list[Path]) -> list[str]:
    """What is missing of weights in several files, in words.

    These are shards that the index names; without an index, it, and those that the names of the others promise.
    """
    if not found:
        return []
    single = "model.safetensors" if found[0].suffix == ".safetensors" else "pytorch_model.bin"
    index = folder / f"{single}.index.json"
    there = {path.name for path in found}
    if index.is_file():
        return _shards(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) - there)
    parts = [match for name in there if (match := SHARD.fullmatch(name))]
    if single in there or not parts:  # transformers takes the single file then, and looks for no others
        return []
    promised = {
        f"{part['start']}-{number:05}-of-{part['count']}{part['end']}"
        for part in parts
        for number in range(1, int(part["count"]) + 1)
    }
    return [*_shards(promised - there), f"the index {index.name}"]


def _shards(names: set[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(sorted(names)[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return [f"the {'shard' if len(names) == 1 else 'shards'} {shown}"]


def _check_whole(found: list[Path]) -> None:
    """Raise `ModelError` for a file in safetensors whose header doesn't fit its length, as when it was cut off."""
    from safetensors import SafetensorError, safe_open

    for path in found:
        if path.suffix != ".safetensors":
            continue
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path} isn't a whole file of weights ({' '.join(str(error).split())[:200]}; it has "
                f"{path.stat().st_size:,} bytes); is the download complete? Fetch this file again"
            ) from error


def _sha256(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in loaded(folder):
        whole.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return whole.hexdigest()
