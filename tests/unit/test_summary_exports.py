"""What a study leaves to the user's own trainer: the best config, the checkpoint, the exports."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import synthetic_files
import synthetic_study
from tiny_models import llama_config, save
from understudy import checksums
from understudy.cli import main
from understudy.data.encoding import Encoded
from understudy.data.notices import of_lengths
from understudy.models.quantization import quantization_config
from understudy.paths import StudyPaths
from understudy.settings import DataSettings
from understudy.store import Store
from understudy.summary import export
from understudy.trial import ResolvedExecution


@pytest.fixture(scope="module")
def study() -> synthetic_study.Study:
    return synthetic_study.make()


@pytest.fixture(scope="module")
def paths(study: synthetic_study.Study, tmp_path_factory: pytest.TempPathFactory) -> StudyPaths:
    """A study whose summary and report are written, below a folder with an awkward name."""
    root = tmp_path_factory.mktemp("it's a stüdy") / "results"
    return synthetic_files.reported(study, root)


def test_the_best_config_loads(study: synthetic_study.Study, paths: StudyPaths) -> None:
    document = yaml.safe_load(paths.best_config.read_text(encoding="utf-8"))
    assert document["hyperparameters"] == study.winner.hyperparameters
    assert document["expected"]["test_loss"]["value"] == study.test.winner_loss.value
    means = {score.rank: score.mean for score in study.winner.scores}
    assert document["expected"]["validation_loss"] == means[study.winner.rank] != means[0]
    assert document["checkpoint"] == "adapter"
    adapter = json.loads((paths.best_config.parent / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["made_for"] == f"f{study.winner.rank}s0"


def test_the_checkpoint_is_replaced_as_a_whole(study: synthetic_study.Study, paths: StudyPaths, tmp_path: Path) -> None:
    shutil.copytree(paths.root, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("best", "report.html"))
    best = StudyPaths(tmp_path).best_config.parent
    for stale in ("adapter/old.bin", "weights/old.bin"):
        (best / stale).parent.mkdir(parents=True)
        (best / stale).write_text("old")
    assert main(synthetic_files.report_arguments(tmp_path)) == 0
    assert [path.name for path in (best / "adapter").iterdir()] == ["adapter_config.json"]
    assert sorted(path.name for path in best.iterdir()) == [
        "adapter",
        "axolotl.yaml",
        "config.yaml",
        "llamafactory.yaml",
        "transformers.json",
        "trl.yaml",
    ]
    digest = study.winner.digests[0]
    (tmp_path / "store" / digest / "adapter" / "adapter_config.json").rename(
        tmp_path / "store" / digest / "adapter" / "model.safetensors"
    )
    assert main(synthetic_files.report_arguments(tmp_path)) == 0
    assert (best / "weights" / "model.safetensors").exists()
    assert not (best / "adapter").exists()


def test_a_missing_checkpoint_is_named(
    study: synthetic_study.Study, paths: StudyPaths, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(paths.root, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("best", "report.html"))
    adapter = tmp_path / "store" / study.winner.digests[0] / "adapter"
    (adapter / "adapter_config.json").unlink()
    adapter.rmdir()
    assert main(synthetic_files.report_arguments(tmp_path)) == 1
    assert str(adapter) in capfd.readouterr().err
    assert not StudyPaths(tmp_path).best_config.exists()


def test_an_altered_checkpoint_is_not_handed_out(
    study: synthetic_study.Study, paths: StudyPaths, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(paths.root, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("best", "report.html"))
    adapter = tmp_path / "store" / study.winner.digests[0] / "adapter"
    checksums.write_list(adapter)
    (adapter / "adapter_config.json").write_text("{}")
    assert main(synthetic_files.report_arguments(tmp_path)) == 1
    assert str(adapter) in capfd.readouterr().err
    assert not StudyPaths(tmp_path).best_config.exists()


@pytest.fixture
def best(study: synthetic_study.Study) -> export.Best:
    return export.Best(
        config=study.config,
        winner=study.winner,
        test=study.test,
        decode=study.decode,
        manifest=study.manifest,
        card=study.cards[1],
        execution=study.executions["target"].resolved,
    )


@pytest.mark.parametrize(
    ("batch_size", "processes", "micro", "expected"),
    [(16, 1, 8, (1, 8, 2)), (16, 4, 8, (4, 4, 1)), (12, 1, 8, (1, 6, 2)), (7, 2, 4, (1, 1, 7)), (1, 1, 8, (1, 1, 1))],
)
def test_batches_are_split_exactly(
    batch_size: int, processes: int, micro: int, expected: tuple[int, int, int], best: export.Best
) -> None:
    execution: ResolvedExecution = best.execution.model_copy(update={"processes": processes, "micro_batch_size": micro})
    assert export.batching(batch_size, execution) == expected
    if processes == 2 * (processes // 2):
        over_nodes = execution.model_copy(update={"processes": processes // 2, "nodes": 2})
        assert export.batching(batch_size, over_nodes) == expected


def test_transformers_and_peft_take_the_export(best: export.Best, tmp_path: Path) -> None:
    from peft import LoraConfig
    from transformers import AutoConfig, GPT2Config, LlamaConfig, TrainingArguments

    exported = export.transformers_arguments(best)
    values = best.winner.hyperparameters
    arguments = TrainingArguments(output_dir=str(tmp_path), **exported["training_arguments"])
    assert arguments.learning_rate == values["learning_rate"]
    assert arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == values["batch_size"]
    assert arguments.get_warmup_steps(1000) == pytest.approx(1000 * float(values["warmup_ratio"]), abs=1)
    assert arguments.lr_scheduler_type.value == values["lr_scheduler_type"]
    for kind in (LlamaConfig, GPT2Config):
        kind().save_pretrained(tmp_path)
        AutoConfig.from_pretrained(tmp_path, **exported["auto_config"])  # taken, or without a word left alone
    LlamaConfig(attention_dropout=0.1).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, **exported["auto_config"]).attention_dropout == 0.0
    adapter = LoraConfig(**exported["lora_config"])
    assert (adapter.r, adapter.lora_alpha, adapter.use_rslora) == (values["lora_r"], values["lora_alpha"], False)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL has no other name
@pytest.mark.parametrize("method", ["lora", "full"])
def test_trl_takes_the_export(method: str, best: export.Best, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    on_gpu = best.execution.model_copy(update={"device": "cuda", "dtype": "bfloat16"})
    quantized = best.card.model_copy(update={"quantization": "nf4" if method == "lora" else "none"})
    values = best.winner.hyperparameters
    if method == "full":
        values = {name: value for name, value in values.items() if not name.startswith(("lora", "use_rs"))}
    winner = best.winner.model_copy(update={"hyperparameters": values})
    exported = export.trl(dataclasses.replace(best, execution=on_gpu, card=quantized, winner=winner))
    (tmp_path / "trl.yaml").write_text(yaml.safe_dump({**exported, "output_dir": str(tmp_path), "use_cpu": True}))
    kinds = (trl.ScriptArguments, trl.SFTConfig, trl.ModelConfig)
    _, training, model = trl.TrlParser(kinds).parse_args_and_config(["--config", str(tmp_path / "trl.yaml")])
    assert training.learning_rate == values["learning_rate"]
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == values["batch_size"]
    assert (training.max_length, training.packing) == (best.manifest.max_length, False)
    assert training.completion_only_loss is True
    assert training.model_init_kwargs == {"attention_dropout": values["attention_dropout"]}
    adapter = trl.get_peft_config(model)
    if method == "full":
        assert (adapter, model.dtype) == (None, "float32")
        return
    assert (adapter.r, adapter.lora_alpha, adapter.target_modules) == (
        values["lora_r"],
        values["lora_alpha"],
        "all-linear",
    )
    held = trl.get_quantization_config(model)
    assert (held.load_in_4bit, held.bnb_4bit_use_double_quant, held.bnb_4bit_quant_type) == (True, True, "nf4")
    assert (model.dtype, training.bf16) == ("bfloat16", True)


def test_a_warm_up_of_all_steps_is_a_share_for_transformers_too(best: export.Best, tmp_path: Path) -> None:
    """A `warmup_steps` of 1 would be one step."""
    from transformers import TrainingArguments

    values = {**best.winner.hyperparameters, "warmup_ratio": 1.0}
    longest = dataclasses.replace(best, winner=best.winner.model_copy(update={"hyperparameters": values}))
    exported = export.transformers_arguments(longest)["training_arguments"]
    assert exported["warmup_steps"] == 0.999999
    assert TrainingArguments(output_dir=str(tmp_path), **exported).get_warmup_steps(1000) == 1000


def test_exports_follow_quantization_revision_and_method(best: export.Best) -> None:
    hub = best.card.model_copy(update={"source": "hub", "name": "org/base", "revision": "abc", "quantization": "nf4"})
    quantized = dataclasses.replace(best, card=hub)
    axolotl, factory = export.axolotl(quantized), export.llamafactory(quantized)
    assert (axolotl["adapter"], axolotl["load_in_4bit"], axolotl["revision_of_model"]) == ("qlora", True, "abc")
    assert (factory["quantization_bit"], factory["model_revision"]) == (4, "abc")
    assert axolotl["base_model"] == factory["model_name_or_path"] == "org/base"
    plain = {name: v for name, v in best.winner.hyperparameters.items() if not name.startswith(("lora", "use_rs"))}
    full = dataclasses.replace(best, winner=best.winner.model_copy(update={"hyperparameters": plain}))
    assert "adapter" not in export.axolotl(full)
    assert export.llamafactory(full)["finetuning_type"] == "full"
    assert "lora_config" not in export.transformers_arguments(full)
    assert export.best_document(full)["checkpoint"] == "weights"


def test_adams_betas_and_the_dtype_are_the_studys(best: export.Best) -> None:
    values = {**best.winner.hyperparameters, "adam_beta1": 0.8, "adam_beta2": 0.95}
    odd = dataclasses.replace(best, winner=best.winner.model_copy(update={"hyperparameters": values}))
    arguments = export.transformers_arguments(odd)["training_arguments"]
    for exported in (export.axolotl(odd), export.llamafactory(odd), arguments):
        assert (exported["adam_beta1"], exported["adam_beta2"]) == (0.8, 0.95)
        assert exported["bf16"] is (best.execution.dtype == "bfloat16") is False


def test_layers_and_attention_dropout_are_written_as_each_program_wants_them(
    best: export.Best, study: synthetic_study.Study, tmp_path: Path
) -> None:
    exported = export.axolotl(best), export.llamafactory(best), export.transformers_arguments(best)
    assert exported[0]["lora_target_linear"]
    assert exported[1]["lora_target"] == "all"
    assert exported[2]["lora_config"]["target_modules"] == "all-linear"
    values = {**best.winner.hyperparameters, "lora_target_modules": "q_proj,v_proj", "attention_dropout": 0.1}
    odd = dataclasses.replace(study, winner=study.winner.model_copy(update={"hyperparameters": values}))
    folder = synthetic_files.reported(odd, tmp_path).best_config.parent
    axolotl, factory, best_config = (
        yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in ("axolotl", "llamafactory", "config")
    )
    assert "lora_target_linear" not in axolotl
    assert axolotl["lora_target_modules"] == ["q_proj", "v_proj"]
    assert axolotl["overrides_of_model_config"] == {"attention_dropout": 0.1}
    assert factory["lora_target"] == "q_proj,v_proj"
    assert "the study's own was 0.1" in (folder / "llamafactory.yaml").read_text(encoding="utf-8")
    assert best_config["hyperparameters"]["lora_target_modules"] == "q_proj,v_proj"
    arguments = json.loads((folder / "transformers.json").read_text())
    assert arguments["lora_config"]["target_modules"] == ["q_proj", "v_proj"]
    assert arguments["auto_config"] == {"attention_dropout": 0.1}


def test_a_fractional_alpha_is_rounded_and_said(
    best: export.Best, study: synthetic_study.Study, tmp_path: Path
) -> None:
    values = {**best.winner.hyperparameters, "lora_alpha": 23.7, "label_smoothing_factor": 0.1}
    odd = dataclasses.replace(study, winner=study.winner.model_copy(update={"hyperparameters": values}))
    folder = synthetic_files.reported(odd, tmp_path).best_config.parent
    text = (folder / "axolotl.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["lora_alpha"] == 24
    assert "rounded from 23.7" in text
    assert "label_smoothing_factor 0.1" in text
    assert json.loads((folder / "transformers.json").read_text())["lora_config"]["lora_alpha"] == 23.7


def test_a_study_that_sharded_its_model_says_so(study: synthetic_study.Study, tmp_path: Path) -> None:
    """Weights of a size that needs it won't fit without, and how is each trainer's own business."""
    target = study.executions["target"]
    resolved = target.resolved.model_copy(update={"strategy": "fsdp", "processes": 8, "nodes": 2})
    sharded = {**study.executions, "target": target.model_copy(update={"resolved": resolved})}
    paths = synthetic_files.reported(dataclasses.replace(study, executions=sharded), tmp_path / "sharded")
    whole = synthetic_files.reported(study, tmp_path / "whole")
    for name in ("axolotl.yaml", "llamafactory.yaml", "trl.yaml"):
        assert "sharded the model over 16 processes" in (paths.best_config.parent / name).read_text(encoding="utf-8")
        assert "sharded" not in (whole.best_config.parent / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_transformers_arguments_load_a_quantized_base_as_the_study_did(
    best: export.Best, quantization: Any, device: Any, tmp_path: Path
) -> None:
    from transformers import BitsAndBytesConfig, TrainingArguments

    execution = best.execution.model_copy(
        update={"device": device, "dtype": "bfloat16", "gradient_checkpointing": True}
    )
    card = best.card.model_copy(update={"quantization": quantization})
    exported = export.transformers_arguments(dataclasses.replace(best, card=card, execution=execution))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the newest transformers have another name for it as well
        arguments = TrainingArguments(output_dir=str(tmp_path), **{**exported["training_arguments"], "bf16": False})
    assert arguments.gradient_checkpointing
    taken = torch.bfloat16 if device == "cuda" else torch.float32  # as in `load_base`
    assert (
        BitsAndBytesConfig(**json.loads(json.dumps(exported["bits_and_bytes_config"]))).to_dict()
        == quantization_config(quantization, taken).to_dict()
    )
    assert "gradient_checkpointing" not in export.transformers_arguments(best)["training_arguments"]
    assert "bits_and_bytes_config" not in export.transformers_arguments(best)


@pytest.mark.parametrize("data_format", ["messages", "alpaca", "prompt_completion", None])
def test_exports_say_what_an_epoch_was_and_which_answers_were_learnt(
    data_format: str | None, study: synthetic_study.Study, tmp_path: Path
) -> None:
    files = {"task": "files", "files": {"train": "d.jsonl"}, "format": data_format} if data_format else {}
    config = study.config.model_copy(update={"data": DataSettings.model_validate(files)})
    folder = synthetic_files.reported(dataclasses.replace(study, config=config), tmp_path).best_config.parent
    names = ("axolotl.yaml", "llamafactory.yaml", "trl.yaml")
    axolotl, factory, trl = ((folder / name).read_text(encoding="utf-8") for name in names)
    for text in (axolotl, factory, trl):
        assert f"# An epoch of the study was one pass over {study.manifest.train_examples} training examples." in text
    assert yaml.safe_load(factory).get("mask_history", False) == (data_format in ("messages", "alpaca"))
    assert ("# `roles_to_train: []` and `message_field_training: training`." in axolotl) == (data_format == "messages")
    assert ("Axolotl's `type: alpaca` does" in axolotl) == (data_format == "alpaca")
    assert ("as `template: alpaca` does" in factory) == (data_format == "alpaca")
    assert ("take the model's `template`" in factory) == (data_format == "messages")
    assert ("of `messages` TRL learns more" in trl) == (data_format == "messages")
    assert ("Alpaca's prompt, which TRL doesn't know" in trl) == (data_format == "alpaca")


def test_exports_say_what_was_cut_off_examples(study: synthetic_study.Study, tmp_path: Path) -> None:
    cut, other = of_lengths({"training": [Encoded([1, 2], 1, 4, "prompt")]}, 100)[0], "something else"
    cards = [card.model_copy(update={"notes": (other, cut)}) for card in study.cards]
    folder = synthetic_files.reported(dataclasses.replace(study, cards=cards), tmp_path).best_config.parent
    for name in ("axolotl.yaml", "llamafactory.yaml", "trl.yaml"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "# In the study 1 of 1 training examples are longer than data.max_length (100)" in text
        assert other not in text


def test_an_adapter_names_a_base_on_the_hub_by_its_id(study: synthetic_study.Study, tmp_path: Path) -> None:
    """So that it loads on another machine, too; the checksums hold, and the store keeps what was trained."""
    proxy, target = study.cards
    card = target.model_copy(update={"source": "hub", "name": "org/base", "revision": "abc", "path": "/cache/base/abc"})
    synthetic_files.write(dataclasses.replace(study, cards=(proxy, card)), tmp_path)
    paths = StudyPaths(tmp_path)
    adapter = Store(paths.store).adapter(study.winner.digests[0])
    settings = {"base_model_name_or_path": card.path, "revision": None, "r": 8}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "README.md").write_text(f"---\nbase_model: {card.path}\n---\n")
    checksums.write_list(adapter)
    for arguments in (synthetic_files.summarise_arguments(tmp_path), synthetic_files.report_arguments(tmp_path)):
        assert main(arguments) == 0
    copied = paths.best_config.parent / "adapter"
    named = {"base_model_name_or_path": "org/base", "revision": "abc", "r": 8}
    assert json.loads((copied / "adapter_config.json").read_text()) == named
    assert "base_model: org/base\n" in (copied / "README.md").read_text()
    assert checksums.altered(copied) == []
    assert json.loads((adapter / "adapter_config.json").read_text()) == settings


def test_plain_texts_are_no_supervised_pairs_to_llamafactory(best: export.Best) -> None:
    assert export.llamafactory(best)["stage"] == "sft"
    data = best.config.data.model_copy(update={"task": "files", "format": "text"})
    manifest = best.manifest.model_copy(update={"source": {"format": "text"}})
    text = dataclasses.replace(best, config=best.config.model_copy(update={"data": data}), manifest=manifest)
    exported = export.llamafactory(text)
    assert (exported["stage"], exported["packing"]) == ("pt", False)


def test_a_bfloat16_checkpoint_is_loaded_in_float32_for_full_fine_tuning(best: export.Best, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = save(tmp_path, llama_config())
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    plain = {name: v for name, v in best.winner.hyperparameters.items() if not name.startswith(("lora", "use_rs"))}
    full = dataclasses.replace(best, winner=best.winner.model_copy(update={"hyperparameters": plain}))
    exported = export.transformers_arguments(full)
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, config=AutoConfig.from_pretrained(folder, **exported["auto_config"])
    )
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert exported["processes"] == best.execution.processes
