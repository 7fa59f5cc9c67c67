"""Tiny models with random weights and made-up examples: what the trainer's tests train."""

from __future__ import annotations

import os
import random
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from understudy.artifacts import Proposal
from understudy.data.encoding import Encoded
from understudy.files import file_sha256, write_json
from understudy.hyperparameters import Value, complete
from understudy.settings import Method, Quantization, TrainingSettings
from understudy.train import launch
from understudy.train.trial import Job
from understudy.trial import (
    DataManifest,
    ModelCard,
    ResolvedExecution,
    SplitFile,
    TrialInputs,
    TrialRecord,
    TrialSpec,
)

DEVICE = "cuda" if hasattr(torch.cuda, "emulated") else "cpu"  # see `tests/gpu/emulation`
EOS, PAD = 0, 1
VOCABULARY = 264
WORDS = ("open", "close", "file", "list", "of", "the", "path", "value", "name", "returns")


def execution(**changes: Any) -> ResolvedExecution:
    """One thread in float32, and what the test says."""
    plain = {
        "device": DEVICE,
        "threads": 1,
        "processes": 1,
        "micro_batch_size": 64,
        "dtype": "float32",
        "gradient_checkpointing": False,
        "packing": {"trials": 8, "tokens": 2048, "dense": True},
    }
    return ResolvedExecution.model_validate({**plain, **changes})


def random_examples(count: int, seed: int = 0, longest: int = 40) -> list[Encoded]:
    """Random tokens, prompts and completions of many lengths."""
    draw = random.Random(seed)
    examples = []
    for _ in range(count):
        prompt, completion = draw.randint(1, longest // 2), draw.randint(1, longest // 2)
        ids = [draw.randrange(2, VOCABULARY) for _ in range(prompt + completion)]
        examples.append(Encoded(ids, prompt, draw.randint(1, 3) * completion))
    return examples


def tiny_llama(seed: int = 0, hidden: int = 32, **changes: Any) -> LlamaForCausalLM:
    """A Llama of two layers, frozen, in evaluation mode, whose weights are large enough to make gradients differ."""
    torch.manual_seed(seed)
    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**config, **changes}))
    model.config.use_cache = False
    return model.requires_grad_(False).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": EOS, "<pad>": PAD, **{letter: number for number, letter in enumerate(letters, start=2)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def write_checkpoint(folder: Path, quantization: Quantization = "none", hidden: int = 64) -> ModelCard:
    """A tiny model and its tokenizer in a folder."""
    model = tiny_llama(hidden=hidden)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return ModelCard(
        role="proxy",
        source="local",
        name="tiny",
        path=str(folder),
        sha256=f"tiny-{hidden}",
        model_type="llama",
        hidden_size=hidden,
        num_hidden_layers=2,
        vocab_size=VOCABULARY,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        quantization=quantization,
    )


def write_split(path: Path, count: int, seed: int) -> None:
    """Prompts of some words; completions are these words in alphabetical order."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        words = [draw.choice(WORDS) for _ in range(draw.randint(2, 5))]
        rows.append(
            {
                "id": f"{number:04d}",
                "group": f"{number:04d}",
                "prompt": " ".join(words) + ": ",
                "completion": " ".join(sorted(words)),
                "chat": False,
            }
        )
    pl.DataFrame(rows).write_parquet(path)


def make_job(root: Path, quantization: Quantization = "none", evaluations: int = 2, **changes: Any) -> Job:
    """A job on a tiny study below `root`: 48 training and 16 validation examples."""
    root.mkdir(parents=True, exist_ok=True)
    card = write_checkpoint(root / "checkpoint", quantization)
    write_split(root / "train.parquet", 48, 1)
    write_split(root / "validation.parquet", 16, 2)
    manifest = DataManifest(
        task="files",
        source={},
        counts={},
        splits={
            "train": SplitFile(examples=48, sha256=file_sha256(root / "train.parquet")),
            "validation": SplitFile(examples=16, sha256=file_sha256(root / "validation.parquet")),
            "test": SplitFile(examples=48, sha256="test"),
        },
        max_length=64,
        train_examples=48,
        validation_examples=16,
        test_examples=None,
    )
    inputs = TrialInputs(
        data=manifest,
        model=card,
        execution=execution(**changes),
        training=TrainingSettings(evaluations=evaluations),
    )
    return Job(inputs, root / "train.parquet", root / "validation.parquet", root / "store", root / "progress.jsonl")


def make_spec(id: str = "r0001", method: Method = "lora", **values: Any) -> TrialSpec:
    """A short trial. Fields of the spec and hyperparameters may be given; the rest is customary."""
    fields = {name: values.pop(name) for name in list(values) if name in TrialSpec.model_fields}
    plain: dict[str, Value] = {
        "learning_rate": 5e-3,
        "batch_size": 8,
        "num_train_epochs": 1,
        "weight_decay": 0.1,
        "warmup_ratio": 0.2,
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
    }
    hyperparameters = complete({**plain, **values}, {}, method)
    return TrialSpec.model_validate(
        {
            "id": id,
            "stage": "proxy",
            "origin": "random",
            "seed": 7,
            "method": method,
            "hyperparameters": hyperparameters,
            **fields,
        }
    )


def load_tiny(job: Job) -> Any:
    """The job's checkpoint as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(job.inputs.model.path)


def target_words(root: Path, job: Job, proposal: Proposal | None, **settings: Any) -> list[str]:
    """The arguments of train-target, with the files that they name written; without a proposal, all but that one."""
    files: dict[str, Any] = {
        "model": job.inputs.model,
        "manifest": job.inputs.data,
        "execution": {"role": "target", "resolved": job.inputs.execution.model_dump()},
        "training": {"training": job.inputs.training.model_dump()},
        **settings,
    }
    if proposal is not None:
        files["proposal"] = proposal
    for name, content in files.items():
        write_json(root / f"{name}.json", content)
    words = ["train-target", "--output", str(root / "result.json"), "--store", str(job.store)]
    words += ["--train", str(job.train), "--validation", str(job.validation), "--progress", str(job.progress)]
    return words + [word for name in {**files, "proposal": 0} for word in (f"--{name}", str(root / f"{name}.json"))]


def run_rank_on_a_small_gpu(spec: TrialSpec, job: Job) -> Any:
    """As `launch.run_rank`, but torch has a GPU of 24 GiB."""
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_properties = lambda _: SimpleNamespace(total_memory=24 * 2**30)
    return launch.run_rank(spec, job)


def run_rank_short_of_memory(spec: TrialSpec, job: Job, moment: str = "train") -> TrialRecord:
    """As `launch.run_rank`, but rank 1 may take only 60 MB more than it has when training begins."""
    from understudy.train import engine

    original = getattr(engine, moment)

    def limited(*arguments: Any) -> Any:
        if os.environ["RANK"] == "1":
            limit_memory(60)
        return original(*arguments)

    setattr(engine, moment, limited)
    return launch.run_rank(spec, job)


def run_rank_short_of_memory_in_set_up(spec: TrialSpec, job: Job) -> TrialRecord:
    """The same, but when the adapter is put on."""
    return run_rank_short_of_memory(spec, job, "trainable")


def run_rank_without_last_words(spec: TrialSpec, _job: Job) -> TrialRecord:
    """Fail where the disk takes no message."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8))
    raise ValueError(f"{spec.id} can't go on")


def limit_memory(megabytes: int) -> None:
    """Let this process map only so much more memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
