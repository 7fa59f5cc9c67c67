"""The best configuration for the user's own trainer: `results/best/`.

config.yaml        everything, under the names of this program (written last: it stands for the whole folder)
axolotl.yaml       the same for Axolotl
llamafactory.yaml  the same for LLaMA-Factory
transformers.json  arguments of transformers' `TrainingArguments` and `AutoConfig`, and of peft's `LoraConfig`
adapter/           the winner's adapter of its best seed; weights/ after full fine-tuning
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from understudy.artifacts import DecodeResults, Interval, TestResult, Winner
from understudy.checksums import require_unaltered
from understudy.config import StudyConfig
from understudy.errors import CorruptFileError
from understudy.files import write_json, write_text, writer
from understudy.hyperparameters import ALL_LINEAR, target_modules
from understudy.settings import Quantization
from understudy.store import Store
from understudy.trial import DataManifest, ModelCard, ResolvedExecution

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


@dataclass(frozen=True)
class Best:
    """What the exports are made from."""

    config: StudyConfig
    winner: Winner
    test: TestResult
    decode: DecodeResults
    manifest: DataManifest
    card: ModelCard  # the target's
    execution: ResolvedExecution  # the target's

    @property
    def base_model(self) -> str:
        """What `from_pretrained` loads: the hub's name, or the folder."""
        return self.card.name if self.card.source == "hub" else self.card.path

    @property
    def lora(self) -> bool:
        return "lora_r" in self.winner.hyperparameters


def batching(batch_size: int, execution: ResolvedExecution) -> tuple[int, int, int]:
    """Processes, examples per process and forward pass, and accumulated passes, whose product is `batch_size`.

    The processes are those of the study where they divide the batch, else one.
    """
    processes = execution.processes if batch_size % execution.processes == 0 else 1
    rows = batch_size // processes
    per_device = max(size for size in range(1, min(rows, execution.micro_batch_size) + 1) if rows % size == 0)
    return processes, per_device, rows // per_device


def best_document(best: Best) -> dict[str, Any]:
    """The content of `best/config.yaml`."""
    score = next((score for score in best.winner.scores if score.rank == best.winner.rank), None)
    document: dict[str, Any] = {
        "base_model": {
            "name": best.card.name,
            "revision": best.card.revision,
            "path": best.card.path,
            "sha256": best.card.sha256,
            "quantization": best.card.quantization,
        },
        "method": "lora" if best.lora else "full",
        "hyperparameters": _plain(best.winner.hyperparameters),
        "data": {
            **best.config.data.model_dump(mode="json", include={"task", "files", "format"}, exclude_none=True),
            "max_length": best.manifest.max_length,
            "train_examples": best.manifest.train_examples,
            "train_sha256": best.manifest.splits["train"].sha256,
        },
        "expected": {
            "unit": "nats per completion token",
            "validation_loss": score.mean if score else None,
            "test_loss": _interval(best.test.winner_loss),
            "gain_over_default_on_test": _interval(best.test.gain) if best.test.gain else None,
        },
    }
    if best.decode.trials:
        document["generation"] = _plain(best.decode.trials[0].generation)
    if best.winner.digests:
        document["checkpoint"] = "adapter" if best.lora else "weights"
    return document


def wanted_yaml(best: Best) -> str:
    """The part of `best/config.yaml` that a person copies: model, method, hyperparameters."""
    document = best_document(best)
    model = document["base_model"]
    names = {name: model[name] for name in ("name", "revision", "quantization") if model[name] is not None}
    wanted = {key: document[key] for key in ("method", "hyperparameters")}
    return _yaml({"base_model": names} | wanted)


def best_yaml(best: Best) -> str:
    """`best/config.yaml` as text."""
    return _yaml(
        best_document(best), "The best configuration of the study; an epoch is one pass over `data.train_examples`."
    )


def axolotl(best: Best) -> dict[str, Any]:
    """An Axolotl config without `datasets` and `output_dir`; LoRA's alpha is rounded, since Axolotl wants it whole."""
    values = _plain(best.winner.hyperparameters)
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
    values = _plain(best.winner.hyperparameters)
    _, per_device, accumulated = batching(values["batch_size"], best.execution)
    config: dict[str, Any] = {"model_name_or_path": best.base_model}
    if best.card.revision:
        config["model_revision"] = best.card.revision
    config |= {"stage": "sft", "do_train": True, "finetuning_type": "lora" if best.lora else "full"}
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
    return config | {
        "cutoff_len": best.manifest.max_length,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulated,
        **{name: values[name] for name in SHARED},
        "warmup_ratio": values["warmup_ratio"],
        "optim": "adamw_torch",
        "bf16": best.execution.dtype == "bfloat16",
    }


def transformers_arguments(best: Best) -> dict[str, Any]:
    """Keyword arguments of transformers 5's `TrainingArguments` and `AutoConfig.from_pretrained`, peft's `LoraConfig`.

    In transformers 5 a `warmup_steps` below 1 is the share of the steps; a share of 1 is given as 0.999999.
    """
    values = _plain(best.winner.hyperparameters)
    _, per_device, accumulated = batching(values["batch_size"], best.execution)
    arguments: dict[str, Any] = {
        "training_arguments": {
            "per_device_train_batch_size": per_device,
            "gradient_accumulation_steps": accumulated,
            **{name: values[name] for name in SHARED},
            "warmup_steps": min(values["warmup_ratio"], 0.999999),
            "optim": "adamw_torch",
            "bf16": best.execution.dtype == "bfloat16",
        },
        "auto_config": {"attention_dropout": values["attention_dropout"]},
    }
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


def write_best(best: Best, store: Store, folder: Path) -> None:
    """Fill `results/best/`; `config.yaml` comes last."""
    processes = batching(int(best.winner.hyperparameters["batch_size"]), best.execution)[0]
    notes = [f"The batch sizes are for {processes} process(es).", *_rounding_note(best)]
    smoothing, dropout = (best.winner.hyperparameters[name] for name in ("label_smoothing_factor", "attention_dropout"))
    left_out = [f"Not carried over: label_smoothing_factor {smoothing:g}."] if smoothing else []
    write_text(
        folder / "axolotl.yaml",
        _yaml(axolotl(best), "For Axolotl; add `datasets` and `output_dir`.", *notes, *left_out),
    )
    wanted = "For LLaMA-Factory; add `dataset`, `template` and `output_dir`."
    left_out = [f"It takes attention_dropout from the checkpoint's config.json; the study had {dropout:g}."]
    write_text(folder / "llamafactory.yaml", _yaml(llamafactory(best), wanted, *notes, *left_out))
    write_json(folder / "transformers.json", transformers_arguments(best))
    if best.winner.digests:
        _replace_checkpoint(store.adapter(best.winner.digests[0]), folder)
    write_text(folder / "config.yaml", best_yaml(best))


def _replace_checkpoint(source: Path, folder: Path) -> None:
    """Copy a checkpoint to `adapter/`, or to `weights/` where it is a whole model; an earlier one goes."""
    if not source.is_dir():
        raise CorruptFileError(f"the winner's checkpoint is missing: {source}; run the workflow again to train it anew")
    require_unaltered(source, "the trial's trained weights")
    name = "adapter" if (source / "adapter_config.json").exists() else "weights"
    beside, old = (folder / f".{name}.{writer()}.{part}" for part in ("part", "old"))
    try:
        shutil.copytree(source, beside)
        if (folder / name).exists():
            (folder / name).replace(old)
        beside.replace(folder / name)
    finally:
        for leftover in (beside, old):
            shutil.rmtree(leftover, ignore_errors=True)
    shutil.rmtree(folder / ("weights" if name == "adapter" else "adapter"), ignore_errors=True)


def _axolotl_loading(quantization: Quantization) -> dict[str, bool]:
    return {"load_in_4bit": quantization == "nf4", "load_in_8bit": quantization == "int8"}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as other programs want them: alpha as a whole number where it is one."""
    alpha = values.get("lora_alpha")
    whole = {"lora_alpha": int(alpha)} if isinstance(alpha, float) and alpha.is_integer() else {}
    return {**values, **whole}


def _whole(alpha: float) -> int:
    return max(1, round(alpha))


def _rounding_note(best: Best) -> list[str]:
    alpha = best.winner.hyperparameters.get("lora_alpha")
    if not isinstance(alpha, float) or alpha.is_integer():
        return []
    return [f"lora_alpha is rounded from {alpha!r}, which this program can't take."]


def _interval(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high, "confidence": interval.confidence}


def _yaml(document: Mapping[str, Any], *comments: str) -> str:
    lines = [f"# {line}\n" for comment in comments if comment for line in comment.splitlines()]
    return "".join(lines) + yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=1000)
