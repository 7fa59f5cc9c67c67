"""From a model card to a tokenizer and a base model in memory."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from understudy.errors import ModelError
from understudy.models.folder import weights
from understudy.models.imports import import_models
from understudy.models.quantization import keep_weights_unpacked, quantization_config, quantizing_on
from understudy.settings import Method
from understudy.trial import ModelCard, ResolvedExecution

FILED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # as safetensors calls them
Place = Literal["device", "host", "spread"]  # spread: over all GPUs that this process sees

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def checkpoint_folder(card: ModelCard) -> str:
    """The checkpoint's folder. Raises `ModelError` where it is gone, as when the cache was emptied."""
    if not Path(card.path).is_dir():
        raise ModelError(
            f"the {card.role}'s checkpoint {card.path} is gone; delete models/{card.role}/model.json in the study's "
            "results and run the workflow again, which puts it back; trials that are finished stay so"
        )
    return card.path


def load_tokenizer(card: ModelCard) -> Any:
    """The checkpoint's tokenizer. Where it has no padding token that the model knows, the end-of-sequence token pads.

    Raises `ModelError` where it has no end-of-sequence token either, since completions could not end, and where there
    is no checkpoint.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_folder(card), local_files_only=True)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer in {card.path} has no end-of-sequence token; set `eos_token` in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= card.vocab_size:  # added without a row for it
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    card: ModelCard, execution: ResolvedExecution, method: Method, where: Place = "device"
) -> PreTrainedModel:
    """The base model in eval mode, quantized as the card says: on the stage's device, or elsewhere.

    For LoRA nothing in it requires a gradient. Weights that aren't quantized are float32 on CPUs and for full
    fine-tuning; a frozen base on a GPU has the execution's dtype. For full fine-tuning on the host, where many
    processes may wait to shard it, they are as the files have them, whose pages they share (but for experts, which are
    stacked): `shard_` casts layer by layer. The GPU is torch's current one. Raises `ModelError` where full fine-tuning
    of a quantized model is asked for, where there is no checkpoint, and where a quantized model is to be spread over
    GPUs that are too small for it.
    """
    if method == "full" and card.quantization != "none":
        raise ModelError(
            f"`target.method: full` trains the weights themselves, but the {card.role} is quantized "
            f"({card.quantization}); set `models.{card.role}.quantization: none`, or `target.method: lora`"
        )
    import_models()
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    on_gpu = execution.device == "cuda"
    if on_gpu and execution.dtype == "float32":
        repeat_shared_keys()
    dtype = torch.bfloat16 if on_gpu and method == "lora" and execution.dtype == "bfloat16" else torch.float32
    gpu = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    device = gpu if where == "device" else torch.device("cpu")
    quantized_elsewhere = on_gpu and where == "host" and card.quantization != "none"
    as_filed = method == "full" and where == "host"
    try:
        with quantizing_on(gpu) if quantized_elsewhere else nullcontext():
            model = AutoModelForCausalLM.from_pretrained(
                checkpoint_folder(card),
                dtype=_filed_dtype(Path(card.path)) if as_filed else dtype,
                device_map="auto" if where == "spread" else {"": device},
                quantization_config=quantization_config(card.quantization, dtype),
                local_files_only=True,
                **({"attn_implementation": execution.attention} if execution.attention else {}),
            )
    except ValueError as error:
        if "dispatched on the CPU" not in str(error):
            raise
        raise ModelError(
            f"the {card.role}, quantized to {card.quantization}, doesn't fit into the memory of this job's GPUs, and "
            f"can't lie on the host in part; set `execution.{card.role}.processes` to more GPUs"
        ) from error
    if card.quantization == "nf4":
        keep_weights_unpacked(model)
    if as_filed:
        _restore_buffers(model, dtype)
    if method == "lora":
        model.requires_grad_(False)
    model.config.use_cache = False
    base: PreTrainedModel = model
    return base


def repeat_shared_keys() -> None:
    """Let transformers repeat keys and values that several heads share, for the rest of this process.

    Handed on as they are, no fused kernel of torch's takes them in float32 on a GPU (its memory-efficient one wants as
    many as there are queries, the others 16 bits), and the plain one holds all scores, T x T for each head.
    """
    from transformers.integrations import sdpa_attention

    sdpa_attention.use_gqa_in_sdpa = lambda *_, **__: False


def _filed_dtype(folder: Path) -> torch.dtype:
    """The type that all weights have in a checkpoint's files, whatever its config says; float32 where they differ.

    Files that aren't in safetensors don't say.
    """
    from safetensors import safe_open

    told: set[str] = set()
    for path in weights(folder):
        if path.suffix != ".safetensors":
            return torch.float32
        with safe_open(path, framework="numpy") as file:
            told |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    kinds = {FILED.get(kind) for kind in told if kind[0] in "FB" and kind != "BOOL"}
    return (kinds.pop() if len(kinds) == 1 else None) or torch.float32


def _restore_buffers(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let a model's buffers be of `dtype` where they have numbers.

    Those that no file has get the values of a model built so, as Gemma's scale of embeddings.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        built = AutoModelForCausalLM.from_config(model.config, dtype=dtype)
    filed = model.state_dict().keys()
    found = dict(model.named_buffers())
    for name, buffer in built.named_buffers():
        found[name].data = found[name].data.to(buffer.dtype) if name in filed else buffer.data
