"""The config's sections as frozen models, one class per section of `config.yaml`, with every default.

The descriptions become the JSON schema that editors complete from, and `config/README.md`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from understudy.frozen import Frozen
from understudy.quantities import megabytes, minutes

Role = Literal["proxy", "target"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Quantization = Literal["nf4", "int8", "none"]
DataFormat = Literal["prompt_completion", "alpaca", "sharegpt", "messages", "text"]
GPU_MODEL = r"^[A-Za-z0-9_.]+$"
CHATS = ("sharegpt", "messages")  # the formats whose examples have turns
Sampler = Literal["two_fidelity", "tpe", "gp", "random"]
Method = Literal["lora", "full"]
HalvingMetric = Literal["eval_loss", "eval_nats_per_byte", "eval_accuracy", "train_loss"]
Dtype = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]
LeftBehind = Literal["cancel", "wait"]
Attention = Literal["sdpa", "flash_attention_2", "eager"]


class Section(Frozen):
    """A section of the config: frozen, and unknown keys are refused."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true`, `yes` and their like where they would count as the numbers 1 and 0."""
        if isinstance(value, bool):
            annotation = cls.model_fields[str(info.field_name)].annotation
            kinds = {annotation, *get_args(annotation)}
            if kinds & {int, float} and bool not in kinds:
                auto = " or `auto`" if Literal["auto"] in kinds else ""
                number = "a whole number" if int in kinds else "a number"
                raise ValueError(f"must be {number}{auto}, but got {str(value).lower()}")
        return value


def expanded(path: str) -> str:
    """A path with the home that a `~` stands for. Raises `ValueError` where nobody's is known."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise ValueError(f"names a home that isn't known: {path!r}") from error


class DataFiles(Section):
    """The user's own data, one file per split."""

    train: str = Field(description="file of training examples: .jsonl, .json, .csv or .parquet")
    validation: str | None = Field(default=None, description="validation file; cut from the training file if absent")
    test: str | None = Field(default=None, description="test file; cut from the training file if absent")

    @field_validator("*")
    @classmethod
    def _of_a_known_home(cls, value: str | None) -> str | None:
        expanded(value or "")
        return value


class DataSettings(Section):
    """What the models are tuned on."""

    task: Literal["docstrings", "files"] = Field(
        default="docstrings",
        description="`docstrings` is built in (signatures to docstrings of the standard library); `files` is your own",
    )
    files: DataFiles | None = Field(default=None, description="your files, for `task: files`")
    format: DataFormat = Field(default="prompt_completion", description="how an example is written in your files")
    max_length: int = Field(
        default=128, ge=8, description="tokens of prompt and completion; longer ones lose the prompt's beginning"
    )
    train_examples: int = Field(default=512, ge=1, description="examples in the subset that a trial trains on")
    validation_examples: int = Field(default=256, ge=2, description="validation examples that a trial is judged on")
    test_examples: int | None = Field(default=None, ge=2, description="test examples of the final test; all if absent")
    validation_share: float = Field(
        default=0.1, gt=0, lt=0.5, description="share of the examples that becomes the validation split without a file"
    )
    test_share: float = Field(
        default=0.1, gt=0, lt=0.5, description="share of the examples that becomes the test split without a file"
    )

    @model_validator(mode="after")
    def _files_go_with_the_task(self) -> DataSettings:
        if self.task == "files" and self.files is None:
            raise ValueError("`task: files` needs `files` with at least `train`")
        if self.task != "files" and self.files is not None:
            raise ValueError(f"`files` goes with `task: files`, but the task is `{self.task}`")
        return self


class PretrainSettings(Section):
    """A small Llama-architecture model that is pretrained on the standard library's source."""

    hidden_size: int = Field(ge=8, description="width")
    num_hidden_layers: int = Field(ge=1, description="depth")
    num_attention_heads: int = Field(ge=1, description="attention heads; divides the width")
    intermediate_size: int = Field(ge=8, description="width of the feed-forward layers")
    vocab_size: int = Field(default=2048, ge=300, description="size of the byte-level BPE vocabulary")
    steps: int = Field(default=300, ge=1, description="optimizer steps")
    batch_size: int = Field(default=16, ge=1, description="sequences per step")
    sequence_length: int = Field(default=128, ge=8, description="tokens per sequence")
    learning_rate: float = Field(default=3e-3, gt=0, description="peak rate of AdamW, cosine schedule")

    @model_validator(mode="after")
    def _heads_divide(self) -> PretrainSettings:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `hidden_size`, but got {self.num_attention_heads} "
                f"and {self.hidden_size}"
            )
        return self


class ModelSettings(Section):
    """A base model: a checkpoint of your own, or one that is pretrained here."""

    model_name_or_path: str | None = Field(
        default=None, min_length=1, description="a local folder, or an id on the Hugging Face hub"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub model")
    pretrain: PretrainSettings | None = Field(default=None, description="pretrain a small model instead")
    quantization: Quantization = Field(default="none", description="how the frozen base is held, by bitsandbytes")

    @field_validator("model_name_or_path")
    @classmethod
    def _of_a_known_home(cls, value: str | None) -> str | None:
        expanded(value or "")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> ModelSettings:
        if (self.model_name_or_path is None) == (self.pretrain is None):
            raise ValueError("give exactly one of `model_name_or_path` and `pretrain`")
        if self.revision is not None and self.model_name_or_path is None:
            raise ValueError("`revision` goes with `model_name_or_path`")
        return self


class ModelsSettings(Section):
    """The two base models."""

    proxy: ModelSettings = Field(description="the small model that is searched")
    target: ModelSettings = Field(description="the full-size model that is wanted")


class TrainingSettings(Section):
    """What all trials have in common."""

    evaluations: int = Field(default=4, ge=1, description="validation points on a trial's learning curve")


class FinalistSettings(Section):
    """Who is trained again, with several fresh seeds, before one of them is called best."""

    configurations: int = Field(default=2, ge=1, description="best trials that go on, beside the default configuration")
    seeds: int = Field(default=3, ge=1, description="seeds that each of them is trained with")


class TestSettings(Section):
    """The one evaluation on the held-out split."""

    bootstrap_samples: int = Field(default=10_000, ge=100, description="resamples of examples and seeds")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="level of every interval")


class DecodeSettings(Section):
    """The search for decoding hyperparameters of the winner; nothing is trained."""

    trials: int = Field(default=8, ge=0, description="decoding configurations to try, the greedy one first; 0 skips it")
    examples: int = Field(default=32, ge=1, description="validation prompts that are completed")
    max_new_tokens: int = Field(default=32, ge=1, description="length limit of a completion")


class StageExecution(Section):
    """How a stage's trials run. Everything here can change sums, so it is part of every trial's digest."""

    threads: int = Field(default=1, ge=1, description="CPU threads per process")
    processes: int = Field(default=1, ge=1, description="processes per trial and node (torchrun); one GPU each")
    micro_batch_size: int | Literal["auto"] = Field(
        default="auto", description="rows per forward pass and process; smaller ones are accumulated"
    )
    pass_tokens: int | Literal["auto"] = Field(
        default="auto",
        description="tokens whose work one more pass of a trial alone is worth: batches are cut into passes where "
        "padding costs more; `auto` is 128 on CPUs and in packs, on GPUs estimated from their kind",
    )
    dtype: Dtype = Field(default="auto", description="compute type; `auto` is float32 on CPUs, bfloat16 on GPUs")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations to save memory")

    @model_validator(mode="after")
    def _positive(self) -> StageExecution:
        if self.micro_batch_size != "auto" and self.micro_batch_size < 1:
            raise ValueError(f"`micro_batch_size` must be at least 1, but got {self.micro_batch_size}")
        if self.pass_tokens != "auto" and self.pass_tokens < 1:
            raise ValueError(f"`pass_tokens` must be at least 1, but got {self.pass_tokens}")
        return self


class ProxyExecution(StageExecution):
    """How the proxy's trials run; the packed ones share a base, each as if it were alone."""

    processes: int = Field(default=1, ge=1, le=1, description="always 1: a pack runs on one device")
    packed: bool = Field(default=True, description="train many trials at the same time on one base, where that can be")
    pack_trials: int | Literal["auto"] = Field(
        default="auto", description="trials in training at the same time; `auto` takes what memory holds, at most 64"
    )
    pack_tokens: int | Literal["auto"] = Field(
        default="auto", description="tokens of all trials that go through the base at once; `auto` likewise"
    )

    @model_validator(mode="after")
    def _packs_make_sense(self) -> ProxyExecution:
        for name, value in (("pack_trials", self.pack_trials), ("pack_tokens", self.pack_tokens)):
            if value == "auto":
                continue
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {value}")
            if not self.packed:
                raise ValueError(f"`{name}` goes with `packed: true`, but got {name}: {value} and packed: false")
        return self


class TargetExecution(StageExecution):
    """How the target's trials run: each alone, on one or many processes."""

    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto",
        description="of several processes: `ddp` has the whole model in each and sums gradients; `fsdp` (torch's "
        "FSDP2) shards parameters, gradients and optimizer state; `auto` takes `ddp` unless its estimate doesn't fit",
    )
    nodes: int = Field(default=1, ge=1, description="nodes per trial, each with `processes`; more than one need SLURM")
    cpu_offload: bool | Literal["auto"] = Field(
        default="auto", description="with `fsdp`: hold shards in the host's memory; `auto` where nothing else fits"
    )
    attention: Attention | Literal["auto"] = Field(
        default="auto", description="kernel of attention; `auto` is what transformers takes, mostly `sdpa`"
    )
    torch_compile: bool = Field(default=False, description="compile the decoder layers (torch.compile)")
    padding_free: bool | Literal["auto"] = Field(
        default="auto",
        description="a micro-batch's examples stand one behind the other in one row and don't see each other, instead "
        "of being padded to one length; `auto` where attention is `flash_attention_2`, which keeps them apart at no "
        "cost; others do it with a mask, which takes longer the longer the row is",
    )

    @model_validator(mode="after")
    def _strategy_makes_sense(self) -> TargetExecution:
        if self.cpu_offload is True and self.strategy != "fsdp":
            raise ValueError(f"`cpu_offload: true` goes with `strategy: fsdp`, but the strategy is `{self.strategy}`")
        if self.strategy == "fsdp" and self.nodes * self.processes == 1 and self.cpu_offload is not True:
            raise ValueError(
                "`strategy: fsdp` shards over several processes, but `nodes` and `processes` are 1; raise `processes`, "
                "set `cpu_offload: true`, or take `strategy: ddp`, which with one process is plain training"
            )
        if self.torch_compile and self.strategy == "fsdp":
            raise ValueError("`torch_compile` isn't tested with `strategy: fsdp`; leave one of the two out")
        return self


class ExecutionSettings(Section):
    """Where trials run."""

    device: Device = Field(default="auto", description="`auto` takes the GPU where there is one")
    proxy: ProxyExecution = Field(default=ProxyExecution(), description="the proxy's trials")
    target: TargetExecution = Field(default=TargetExecution(), description="the target's trials")


class RunningSettings(Section):
    """How running trials are kept safe: nothing that can change a number, so it is part of no digest."""

    checkpoint_minutes: float = Field(
        default=5,
        ge=0,
        allow_inf_nan=False,
        description="between two checkpoints of a trial or pack: what a kill costs; longer where saving takes long",
    )
    watchdog_minutes: float = Field(
        default=30,
        ge=0,
        allow_inf_nan=False,
        description="a worker without progress for so long ends itself, so that a retry can go on; 0 switches that off",
    )


class StudyExecution(RunningSettings, ExecutionSettings):
    """Where trials run, and how they are kept safe."""


class StageResources(Section):
    """What a scheduler is asked for, for each job of a stage. On one machine these numbers hold nothing back."""

    mem_mb: int | Literal["auto"] = Field(
        default="auto",
        description="memory of a job in MB; `auto` estimates it from the model's size, more at each attempt",
    )
    max_mem_mb: int | None = Field(
        default=None,
        ge=1,
        description="the most of any attempt, in MB: what a node has; if absent `mem_mb`, or 4 times the estimate",
    )
    runtime: int | Literal["auto"] = Field(
        default="auto", description="time limit of a job in minutes; `auto` estimates it likewise"
    )
    max_runtime: int | None = Field(
        default=None,
        ge=1,
        description="the most of any attempt: the partition's limit; if absent `runtime`, or 4 times the estimate",
    )
    gpu_model: str | None = Field(
        default=None,
        json_schema_extra={"pattern": GPU_MODEL},
        description="the GPUs' type, as the scheduler calls it",
    )
    partition: str | None = Field(default=None, min_length=1, description="partition of SLURM; its default if absent")
    constraint: str | None = Field(
        default=None, min_length=1, description="features that a node must have, such as `ib&a100`"
    )

    @field_validator("mem_mb", "runtime", mode="before")
    @classmethod
    def _in_words(cls, value: Any, info: ValidationInfo) -> Any:
        """`200G` and `24:00:00`, as SLURM has them, are told in this key's unit."""
        if not isinstance(value, str) or value == "auto":
            return value
        unit, found = ("MB", megabytes(value)) if info.field_name == "mem_mb" else ("minutes", minutes(value))
        hint = f"; {found} would be that" if found else ""
        raise ValueError(f"must be whole {unit} or `auto`, but got {value!r}{hint}")

    @field_validator("gpu_model")
    @classmethod
    def _known_to_the_plugin(cls, value: str | None) -> str | None:
        if value is not None and not re.match(GPU_MODEL, value):
            raise ValueError(
                f"may have letters, digits, `_` and `.`, which is what Snakemake's SLURM plugin takes, but got "
                f"{value!r}; leave it out and choose the nodes by `constraint` or `partition`"
            )
        return value

    @model_validator(mode="after")
    def _first_attempt_fits(self) -> StageResources:
        for name, value, most in (
            ("mem_mb", self.mem_mb, self.max_mem_mb),
            ("runtime", self.runtime, self.max_runtime),
        ):
            if value == "auto":
                continue
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {value}")
            if most is not None and value > most:
                raise ValueError(f"`{name}` may be at most `max_{name}`, but got {value} and {most}")
        return self


class ResourcesSettings(Section):
    """What a scheduler is asked for. Nothing here changes a result."""

    account: str | None = Field(default=None, min_length=1, description="account of SLURM that pays")
    left_behind: LeftBehind = Field(
        default="cancel",
        description="what happens to the SLURM jobs of a run whose main process died, before a new run begins; "
        "those that haven't begun are cancelled either way",
    )
    proxy: StageResources = Field(default=StageResources(), description="jobs of the proxy's packs")
    target: StageResources = Field(default=StageResources(), description="jobs of target trials and finalists")
