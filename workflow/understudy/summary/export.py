"""The best configuration for the user's own trainer: `results/best/`.

config.yaml        everything, under the names of this program (written last: it stands for the whole folder)
axolotl.yaml       the same for Axolotl
llamafactory.yaml  the same for LLaMA-Factory
trl.yaml           the same for TRL's `trl sft`
transformers.json  arguments of transformers' `TrainingArguments`, `AutoConfig` and `BitsAndBytesConfig`, and of peft's
                   `LoraConfig`
adapter/           the winner's adapter of its best seed; weights/ after full fine-tuning
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from understudy.artifacts import Interval
from understudy.checksums import LIST, require_unaltered, write_list
from understudy.errors import CorruptFileError
from understudy.files import folder_whole, write_json, write_text
from understudy.settings import CHATS
from understudy.store import Store
from understudy.summary.best import Best, plain_values
from understudy.summary.trainers import (
    AXOLOTL_ALPACA,
    AXOLOTL_CHATS,
    AXOLOTL_WEIGHTS,
    LLAMAFACTORY_ALPACA,
    LLAMAFACTORY_CHATS,
    TRL_ALPACA,
    TRL_CHATS,
    axolotl,
    batching,
    llamafactory,
    transformers_arguments,
    trl,
)
from understudy.trial import ModelCard

CUT = "longer than data.max_length"  # in a model's notes on examples that were cut


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
        "hyperparameters": plain_values(best.winner.hyperparameters),
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
        document["generation"] = plain_values(best.decode.trials[0].generation)
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


def write_best(best: Best, store: Store, folder: Path) -> None:
    """Fill `results/best/`; `config.yaml` comes last."""
    processes = batching(int(best.winner.hyperparameters["batch_size"]), best.execution)[0]
    epoch = f"An epoch of the study was one pass over {best.manifest.train_examples} training examples."
    notes = [f"The batch sizes are for {processes} process(es).", epoch, *_rounding_note(best)]
    if best.execution.strategy == "fsdp":
        over = f"The study sharded the model over {best.execution.world_size} processes"
        notes.append(f"{over}; say here how your trainer is to do that (`fsdp`, `deepspeed`).")
    notes += [f"In the study {note}; this program does otherwise." for note in best.card.notes if CUT in note]
    smoothing, dropout = (best.winner.hyperparameters[name] for name in ("label_smoothing_factor", "attention_dropout"))
    left_out = [f"Not carried over: label_smoothing_factor {smoothing:g}."] if smoothing else []
    left_out += [AXOLOTL_ALPACA] if best.data_format == "alpaca" else []
    left_out += [AXOLOTL_CHATS] if best.data_format in CHATS else []
    left_out += [AXOLOTL_WEIGHTS] if not best.lora and best.execution.dtype == "bfloat16" else []
    write_text(
        folder / "axolotl.yaml",
        _yaml(axolotl(best), "For Axolotl; add `datasets` and `output_dir`.", *notes, *left_out),
    )
    wanted = "For LLaMA-Factory; add `dataset`, `template` and `output_dir`."
    left_out = [f"It takes attention_dropout from the checkpoint's config.json; the study's own was {dropout:g}."]
    left_out += [LLAMAFACTORY_ALPACA] if best.data_format == "alpaca" else []
    left_out += [LLAMAFACTORY_CHATS] if best.data_format in CHATS else []
    write_text(folder / "llamafactory.yaml", _yaml(llamafactory(best), wanted, *notes, *left_out))
    left_out = [TRL_ALPACA] if best.data_format == "alpaca" else [TRL_CHATS] if best.data_format in CHATS else []
    if best.lora and best.card.quantization != "none":
        left_out.append("On a quantized base TRL holds adapters in bfloat16, the study in float32.")
    if best.card.quantization == "int8":
        left_out.append("It computes outliers of activations apart, which the study didn't.")
    write_text(
        folder / "trl.yaml",
        _yaml(
            trl(best),
            "For `trl sft --config` (TRL 1.16, transformers 5); add `dataset_name` and `output_dir`.",
            *notes,
            *left_out,
        ),
    )
    write_json(folder / "transformers.json", transformers_arguments(best))
    if best.winner.digests:
        _replace_checkpoint(store.adapter(best.winner.digests[0]), folder, best.card)
    write_text(folder / "config.yaml", best_yaml(best))


def _replace_checkpoint(source: Path, folder: Path, card: ModelCard) -> None:
    """Copy a checkpoint to `adapter/`, or to `weights/` where it is a whole model; an earlier one goes."""
    if not source.is_dir():
        raise CorruptFileError(f"the winner's checkpoint is missing: {source}; run the workflow again to train it anew")
    require_unaltered(source, "the trial's trained weights")
    name = "adapter" if (source / "adapter_config.json").exists() else "weights"
    with folder_whole(folder / name) as beside:
        shutil.copytree(source, beside)
        if name == "adapter" and card.source == "hub":
            _name_base(beside, card)
    shutil.rmtree(folder / ("weights" if name == "adapter" else "adapter"), ignore_errors=True)


def _name_base(folder: Path, card: ModelCard) -> None:
    """Have an adapter name its base by the hub's id and commit, which hold on every machine, not by a folder."""
    settings = folder / "adapter_config.json"
    values = json.loads(settings.read_text(encoding="utf-8"))
    text = json.dumps(values | {"base_model_name_or_path": card.name, "revision": card.revision}, indent=2)
    write_text(settings, text)
    if (readme := folder / "README.md").exists():
        write_text(readme, readme.read_text(encoding="utf-8").replace(card.path, card.name))
    if (folder / LIST).exists():
        write_list(folder)


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
