"""The best configuration in the words of other trainers: Axolotl, LLaMA-Factory, TRL, transformers with peft."""

from __future__ import annotations

from typing import Any

from understudy.hyperparameters import ALL_LINEAR, target_modules
from understudy.settings import CHATS, Quantization
from understudy.summary.best import Best, plain_values
from understudy.trial import ResolvedExecution

SHARED = (  # named alike in transformers and LLaMA-Factory
    "learning_rate",
    "num_train_epochs",
    "weight_decay",
    "lr_scheduler_type",
    "max_grad_norm",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "label_smoothing_factor",
)
AXOLOTL = {
    "learning_rate": "learning_rate",
    "num_train_epochs": "num_epochs",
    "weight_decay": "weight_decay",
    "warmup_ratio": "warmup_ratio",
    "lr_scheduler_type": "lr_scheduler",
    "max_grad_norm": "max_grad_norm",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
}
AXOLOTL_ALPACA = "The study put rows into Stanford Alpaca's prompt, as Axolotl's `type: alpaca` does."
LLAMAFACTORY_ALPACA = (  # read in its data/template.py, not run
    "The study put rows into Stanford Alpaca's prompt, as `template: alpaca` does, but for an `input`, which\n"
    "stands behind the instruction there and had a heading of its own in the study."
)
LLAMAFACTORY_CHATS = (
    "The study put chats into the chat template of the model's own tokenizer: take the model's `template`."
)
AXOLOTL_CHATS = (  # read in `ChatTemplateStrategy` of its prompt strategies, not run
    "Of a chat the study learnt the last answer alone; Axolotl's `chat_template` learns every answer.\n"
    "For the same, give each row's last answer the key `training: true`, and the entry in `datasets`\n"
    "`roles_to_train: []` and `message_field_training: training`."
)
AXOLOTL_WEIGHTS = (  # read in `resolve_dtype`, not run
    "The study held the weights in float32 and computed in bfloat16; with `bf16: true` Axolotl holds them in\n"
    "bfloat16, too, where small updates round away. With `bf16: false` it computes in float32."
)


TRL_ALPACA = (
    "The study put rows into Stanford Alpaca's prompt, which TRL doesn't know: write rows as `prompt`, with that\n"
    "text, and `completion`."
)
TRL_CHATS = (
    "Of a chat the study learnt the last answer alone; of `messages` TRL learns more. For the same, write rows as\n"
    "`prompt`, the turns before it, and `completion`, a list with that answer."
)


def batching(batch_size: int, execution: ResolvedExecution) -> tuple[int, int, int]:
    """Processes, examples per process and forward pass, and accumulated passes, whose product is `batch_size`.

    The processes are those of the study, of all nodes, where they divide the batch, else one.
    """
    processes = execution.world_size if batch_size % execution.world_size == 0 else 1
    rows = batch_size // processes
    per_device = max(size for size in range(1, min(rows, execution.micro_batch_size) + 1) if rows % size == 0)
    return processes, per_device, rows // per_device


def axolotl(best: Best) -> dict[str, Any]:
    """An Axolotl config without `datasets` and `output_dir`; LoRA's alpha is rounded, since Axolotl wants it whole."""
    values = plain_values(best.winner.hyperparameters)
    _, per_device, accumulated = batching(values["batch_size"], best.execution)
    config: dict[str, Any] = {"base_model": best.base_model}
    if best.card.revision:
        config["revision_of_model"] = best.card.revision
    config |= _axolotl_loading(best.card.quantization)
    if best.lora:
        modules = target_modules(values["lora_target_modules"])
        config |= {"adapter": "qlora" if best.card.quantization == "nf4" else "lora"}
        config |= {"lora_r": values["lora_r"], "lora_alpha": _whole(values["lora_alpha"])}
        config |= {"lora_dropout": values["lora_dropout"]}
        config |= {"lora_target_linear": True} if modules == ALL_LINEAR else {"lora_target_modules": modules}
        config |= {"peft_use_rslora": values["use_rslora"]}
    return config | {
        "overrides_of_model_config": {"attention_dropout": values["attention_dropout"]},
        "sequence_len": best.manifest.max_length,
        "sample_packing": False,
        "train_on_inputs": False,
        "micro_batch_size": per_device,
        "gradient_accumulation_steps": accumulated,
        "optimizer": "adamw_torch",
        **{theirs: values[ours] for ours, theirs in AXOLOTL.items()},
        "bf16": best.execution.dtype == "bfloat16",
        "gradient_checkpointing": best.execution.gradient_checkpointing,
    }


def llamafactory(best: Best) -> dict[str, Any]:
    """A LLaMA-Factory config without `dataset`, `template` and `output_dir`; LoRA's alpha is rounded, as it must be.

    It has no key for the dropout on attention weights.
    """
    values = plain_values(best.winner.hyperparameters)
    _, per_device, accumulated = batching(values["batch_size"], best.execution)
    config: dict[str, Any] = {"model_name_or_path": best.base_model}
    if best.card.revision:
        config["model_revision"] = best.card.revision
    # its `sft` leaves out examples without a prompt, and its `pt` packs them unless told otherwise
    config |= {"stage": "pt", "packing": False} if best.data_format == "text" else {"stage": "sft"}
    config |= {"do_train": True, "finetuning_type": "lora" if best.lora else "full"}
    if best.lora:
        modules = values["lora_target_modules"]
        config |= {
            "lora_rank": values["lora_r"],
            "lora_alpha": _whole(values["lora_alpha"]),
            "lora_dropout": values["lora_dropout"],
            "lora_target": "all" if modules == ALL_LINEAR else modules,
            "use_rslora": values["use_rslora"],
        }
    if best.card.quantization != "none":
        config["quantization_bit"] = 4 if best.card.quantization == "nf4" else 8
    if best.data_format in ("alpaca", *CHATS):  # its `alpaca` rows may have a history
        config["mask_history"] = True
    return config | {
        "cutoff_len": best.manifest.max_length,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulated,
        **{name: values[name] for name in SHARED},
        "warmup_ratio": values["warmup_ratio"],
        "optim": "adamw_torch",
        "bf16": best.execution.dtype == "bfloat16",
    }


def trl(best: Best) -> dict[str, Any]:
    """A config of TRL's `trl sft` without data and `output_dir`; LoRA's alpha is rounded, as its command wants it."""
    values = plain_values(best.winner.hyperparameters)
    _, per_device, accumulated = batching(values["batch_size"], best.execution)
    in_16_bits = best.execution.dtype == "bfloat16"
    config: dict[str, Any] = {"model_name_or_path": best.base_model}
    if best.card.revision:
        config["model_revision"] = best.card.revision
    config["dtype"] = "bfloat16" if in_16_bits and best.lora and best.execution.device == "cuda" else "float32"
    config["model_init_kwargs"] = {"attention_dropout": values["attention_dropout"]}
    if best.card.quantization == "nf4":
        config |= {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
    elif best.card.quantization == "int8":
        config |= {"load_in_8bit": True}
    if best.lora:
        config |= {
            "use_peft": True,
            "lora_r": values["lora_r"],
            "lora_alpha": _whole(values["lora_alpha"]),
            "lora_dropout": values["lora_dropout"],
            "lora_target_modules": target_modules(values["lora_target_modules"]),
            "use_rslora": values["use_rslora"],
        }
    if best.data_format != "text":
        config["completion_only_loss"] = True
    return config | {
        "max_length": best.manifest.max_length,
        "packing": False,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulated,
        **{name: values[name] for name in SHARED},
        "warmup_steps": min(values["warmup_ratio"], 0.999999),  # below 1 the share of the steps
        "optim": "adamw_torch",
        "bf16": in_16_bits,
        "gradient_checkpointing": best.execution.gradient_checkpointing,
    }


def transformers_arguments(best: Best) -> dict[str, Any]:
    """Keyword arguments of transformers 5's `TrainingArguments` and `AutoConfig.from_pretrained`, peft's `LoraConfig`.

    A quantized target has those of `BitsAndBytesConfig`, too. In transformers 5 a `warmup_steps` below 1 is the share
    of the steps; a share of 1 is given as 0.999999. After full fine-tuning the config says that the weights are
    float32, as the study held them: a checkpoint's own dtype may round small updates away. Batch sizes are for
    `processes`.
    """
    values = plain_values(best.winner.hyperparameters)
    processes, per_device, accumulated = batching(values["batch_size"], best.execution)
    arguments: dict[str, Any] = {
        "transformers_version": ">=5",
        "processes": processes,
        "training_arguments": {
            "per_device_train_batch_size": per_device,
            "gradient_accumulation_steps": accumulated,
            **{name: values[name] for name in SHARED},
            "warmup_steps": min(values["warmup_ratio"], 0.999999),
            "optim": "adamw_torch",
            "bf16": best.execution.dtype == "bfloat16",
            # the name that all of transformers 5 takes; where the study had none, neither has the default
            **({"gradient_checkpointing": True} if best.execution.gradient_checkpointing else {}),
        },
        "auto_config": {
            "attention_dropout": values["attention_dropout"],
            **({} if best.lora else {"dtype": "float32"}),
        },
    }
    if best.card.quantization != "none":
        arguments["bits_and_bytes_config"] = _bits_and_bytes(best)
    if best.lora:
        arguments["lora_config"] = {
            "task_type": "CAUSAL_LM",
            "r": values["lora_r"],
            "lora_alpha": values["lora_alpha"],
            "lora_dropout": values["lora_dropout"],
            "use_rslora": values["use_rslora"],
            "target_modules": target_modules(values["lora_target_modules"]),
        }
    return arguments


def _axolotl_loading(quantization: Quantization) -> dict[str, bool]:
    return {"load_in_4bit": quantization == "nf4", "load_in_8bit": quantization == "int8"}


def _bits_and_bytes(best: Best) -> dict[str, Any]:
    """How the study's base was quantized; products are in bfloat16 on GPUs that have it."""
    if best.card.quantization == "int8":
        return {"load_in_8bit": True, "llm_int8_threshold": 0.0}
    on_gpu = best.execution.device == "cuda"
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": best.execution.dtype if on_gpu else "float32",
    }


def _whole(alpha: float) -> int:
    return max(1, round(alpha))
