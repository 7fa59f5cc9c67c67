"""What a scheduler is asked for, per job: memory, time, place. Known before anything has run, and without torch.

Notation: P parameters, h hidden size, L layers, V vocabulary, i feed-forward width. The estimates are bounds for a
scheduler, made to be too large rather than too small, and not verified beyond a few models: what still runs out of
memory or time is tried again with more. How much of it a trial uses is `prepare-execution`'s to decide.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from understudy.config import StudyConfig
from understudy.errors import CorruptFileError, UserError
from understudy.files import read_model
from understudy.hyperparameters import HYPERPARAMETERS
from understudy.settings import (
    Dtype,
    ModelSettings,
    PretrainSettings,
    ProxyExecution,
    Quantization,
    Role,
    StageExecution,
    TargetExecution,
)
from understudy.space import Choices
from understudy.trial import EXPERTS, ModelCard

MB = 10**6
STEP_MB = 512  # estimates are rounded up to a multiple of this
WORKFLOW_MB = 1000  # Snakemake twice (the job and the step within it), beside the command; measured: 0.26 GB
PROCESS_MB = 1500  # Python, torch and the data on the CPU; measured: 0.5 GB
GPU_PROCESS_MB = 4000  # and with CUDA's libraries
HELD_BYTES = {"int8": 1.1, "nf4": 0.6}  # per parameter of a quantized layer
MARGIN = 1.25

CPU_FLOPS = 5e9  # per thread and second, what small models reach in float32
GPU_FLOPS = 2e13  # per GPU and second: an older one, or a short batch on a new one
TIME_MARGIN = 2.0
STARTUP_MINUTES = 15  # loading weights from a shared file system, and the workflow's own start
LEAST_MINUTES = 30
MOST_TIMES = 4  # the first attempt's estimate, of time and memory: who runs out of either again has to say how much

CPU_ROWS = 32  # of a forward pass, as `prepare-execution` takes them on CPUs
PACK_TOKENS = 2048  # likewise
MOST_TRIALS = 64
RANK_BOUND = 64


@dataclass(frozen=True)
class ModelSize:
    """P, h, L and V of a base model, and whether it is a mixture of experts; `source` says where they are from."""

    parameters: int
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    source: str
    experts: bool = False


# What a model on the hub is taken for until it has been fetched: Llama 3.1 8B.
UNKNOWN = ModelSize(8_030_261_248, 4096, 32, 128_256, "default")


def model_size(settings: ModelSettings, card: Path) -> ModelSize:
    """The size of a base model: from its pretraining settings, its card if it is prepared, or its local folder.

    A model of which neither is there is taken for `UNKNOWN`. What can't be read is the commands' to report.
    """
    if settings.pretrain is not None:
        return _pretrained(settings.pretrain)
    try:
        prepared = read_model(card, ModelCard)
    except CorruptFileError:
        prepared = None
    if prepared is not None and prepared.name == settings.model_name_or_path:
        shape = (prepared.parameters, prepared.hidden_size, prepared.num_hidden_layers, prepared.vocab_size)
        return ModelSize(*shape, "card", prepared.active_parameters is not None)
    try:
        path = Path(str(settings.model_name_or_path)).expanduser() / "config.json"
        return _from_config(json.loads(path.read_text(encoding="utf-8")), _weight_bytes(path.parent))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return UNKNOWN


def job_limits(study: StudyConfig, role: Role, card: Path) -> dict[str, int | str | Callable[[Any, int], int]]:
    """Snakemake resources of a job that trains on the role's base: what is given in the config, else estimates.

    `mem_mb` and `runtime` (minutes) are functions of the wildcards and the attempt, from 1: each attempt asks for
    that many times the first one's, up to the config's limits, or four times where it has none. What the config gives
    itself grows only where it gives a larger limit as well: a trial that goes on from its checkpoint needs no more
    memory. `card` is the path of the role's `model.json`; a hub model's size is looked up there whenever an amount is
    asked for, since the run that fetches the model submits its trials as well.

    A job with GPUs says that it wants one node: SLURM counts them per job, and would take some from each of several.
    Snakemake would cut a rule's threads to the `--cores` of the machine that submits, and `cpus_per_task` not.
    """
    asked, how = getattr(study.resources, role), getattr(study.execution, role)
    on_gpus = study.execution.device == "cuda"
    named = {
        "cpus_per_task": how.threads * how.processes,
        "nodes": 1 if on_gpus else None,
        "gpu_model": asked.gpu_model if on_gpus else None,
        "slurm_partition": asked.partition,
        "slurm_account": study.resources.account,
        "constraint": asked.constraint,
    }
    size = _sizes(getattr(study.models, role), card)
    return {
        "mem_mb": _amount(asked.mem_mb, asked.max_mem_mb, partial(estimated_mem_mb, study, role), size),
        "runtime": _amount(asked.runtime, asked.max_runtime, partial(estimated_runtime, study, role), size),
        **{name: value for name, value in named.items() if value is not None},
    }


def trial_limits(study: StudyConfig, card: Path) -> dict[str, int | str | Callable[[Any, int], int]]:
    """The same for a target trial, with its GPUs, and over several nodes where it has them.

    Of several nodes the SLURM plugin is asked for one task each. `mpi` says that the command starts these by `srun`
    itself: the plugin would start it in a step of one task, which has one node. GPUs as `gres` are those of each node,
    where `gpu` would leave their distribution to SLURM; `tasks_per_gpu: 0` keeps the plugin from asking for tasks by
    GPU as well.
    """
    limits, how = job_limits(study, "target", card), study.execution.target
    on_gpus = study.execution.device == "cuda"
    if how.nodes == 1:
        return {"gpu": how.processes if on_gpus else 0, **limits}
    limits |= {"nodes": how.nodes, "tasks": how.nodes, "mpi": "srun"}
    if on_gpus:
        kind = ["gpu", limits.pop("gpu_model", None), how.processes]
        limits |= {"gres": ":".join(str(part) for part in kind if part is not None), "tasks_per_gpu": 0}
    return limits


def estimated_mem_mb(study: StudyConfig, role: Role, size: ModelSize) -> int:
    """Memory of a job on its host, in MB.

    On GPUs the files' pages, in 16 bits, are shared by all processes on their way through the host. Each process holds
    all weights there for a while where a quantized base or a mixture of experts may be sharded; with `cpu_offload` a
    share of the states stays there; after full fine-tuning the first process holds the weights, in 32 bits, to write
    them. On CPUs everything stays there, in float32: 16 bytes per parameter of full fine-tuning with AdamW, else 4 for
    the frozen base and 16 per parameter of adapters of rank 64 on all linear layers, r (8 h + 15 h) each layer; and
    what tokens hold until their gradients are there: 36 h values per layer in packs, else 154 h bytes per layer and
    16 V for the logits (`models/estimates.py`).
    """
    how: StageExecution = getattr(study.execution, role)
    full = role == "target" and study.target.method == "full"
    if study.execution.device == "cuda":
        each: float = GPU_PROCESS_MB * MB
        shared = (2 + (4 if full else 0)) * size.parameters
        if isinstance(how, TargetExecution):
            if how.strategy != "ddp" and (how.processes > 1 or how.strategy == "fsdp"):
                each += _held_bytes(size, study.models.target.quantization, how.dtype, full)
            if how.cpu_offload is True:
                each += (16 if full else 4) * size.parameters / (how.nodes * how.processes)
    else:
        shared = 0
        states = 16 * size.parameters if full else 4 * size.parameters
        each = PROCESS_MB * MB + states + _training_bytes(study, how, size, adapters=not full)
    whole = WORKFLOW_MB * MB + MARGIN * (how.processes * each + shared)
    return STEP_MB * math.ceil(whole / MB / STEP_MB)


def estimated_runtime(study: StudyConfig, role: Role, size: ModelSize) -> int:
    """Time limit of a job, in minutes: 6 P per training token (Kaplan et al. 2020, section 2.1), 2 P in evaluations.

    A pack's trials count one by one.
    """
    how: StageExecution = getattr(study.execution, role)
    data = study.data
    tokens = data.max_length * data.train_examples * _most_epochs(study)
    evaluated = data.max_length * data.validation_examples * study.training.evaluations
    trials = study.proxy.pack_size if role == "proxy" else 1
    flops = trials * size.parameters * (6 * tokens + 2 * evaluated)
    processes = how.processes * (study.execution.target.nodes if role == "target" else 1)
    speed = processes * (GPU_FLOPS if study.execution.device == "cuda" else CPU_FLOPS * how.threads)
    return max(LEAST_MINUTES, STARTUP_MINUTES + math.ceil(TIME_MARGIN * flops / speed / 60))


def look_limits(study: StudyConfig) -> dict[str, int]:
    """What the step asks for that looks at a machine and trains nothing: one of its GPUs, and little else."""
    on_gpus = study.execution.device == "cuda"
    process = GPU_PROCESS_MB if on_gpus else PROCESS_MB
    return {"gpu": 1 if on_gpus else 0, "mem_mb": WORKFLOW_MB + process, "runtime": LEAST_MINUTES}


def _held_bytes(size: ModelSize, quantization: Quantization, dtype: Dtype, full: bool) -> float:
    """What a process holds of a model on the host, to shard it, beside the files' pages where those will do.

    They will not where weights are quantized, cast to float32, or experts, whose tensors transformers stacks.
    """
    if quantization == "none":
        cast = dtype == "float32" and not full
        return 4 * size.parameters if cast else 2 * size.parameters if size.experts else 0
    ends = min(size.parameters, 2 * size.vocab_size * size.hidden_size)  # aren't quantized
    return HELD_BYTES[quantization] * (size.parameters - ends) + 2 * ends


def crowded(study: StudyConfig, cores: int) -> list[str]:
    """What to say where one trial alone keeps more cores busy than the run may use: one line per role."""
    lines = []
    for role in ("proxy", "target"):
        how: StageExecution = getattr(study.execution, role)
        busy = how.threads * how.processes
        if busy > cores:
            lines.append(
                f"`execution.{role}` keeps {busy} cores busy per trial ({how.processes} × {how.threads} threads), but "
                f"this run has {cores}: trials run one at a time and share what there is. Threads stay as they are, "
                "since sums depend on their number"
            )
    return lines


def throttled(cores: int, there: int) -> list[str]:
    """What to say where a run counts on more cores than `there` are, as `hardware.cores` tells: one line at most.

    Snakemake's `--cores all` knows nothing of a container's quota.
    """
    if there >= cores:
        return []
    return [
        f"this run counts on {cores} cores, but has {there}, by what its processes may run on or its container's "
        "quota: jobs side by side will slow each other down"
    ]


def unasked(study: StudyConfig) -> list[str]:
    """What to say where a scheduler would be asked for no GPU though the config doesn't say that none is wanted."""
    if study.execution.device != "auto":
        return []
    return [
        "`execution.device` is `auto`, but what a job asks for must be known before it runs: jobs ask the scheduler "
        "for no GPU and train on the CPU. Say `device: cuda`, or `cpu` if that is what you want"
    ]


def require_scheduler(study: StudyConfig, allocated: str | None) -> None:
    """Refuse trials over several nodes where no scheduler gives each of them as many; before the proxy is paid for.

    `allocated` is the number of nodes of the job that this run is in itself. Raises `UserError`.
    """
    nodes = study.execution.target.nodes
    if nodes > 1 and allocated != str(nodes):
        raise UserError(
            f"`execution.target.nodes` is {nodes}, but this run submits no jobs; run the study with the SLURM profile "
            f"(`--workflow-profile workflow/profiles/slurm`), inside a SLURM job of {nodes} nodes, or set `nodes: 1`"
        )


def _sizes(settings: ModelSettings, card: Path) -> Callable[[], ModelSize]:
    """The size of a base model: what is known now, or at a later call where nothing is now."""
    known = [model_size(settings, card)]

    def size() -> ModelSize:
        if known[0] is UNKNOWN:
            known[0] = model_size(settings, card)
        return known[0]

    return size


def _amount(
    given: int | Literal["auto"], most: int | None, estimated: Callable[[ModelSize], int], size: Callable[[], ModelSize]
) -> Callable[[Any, int], int]:
    """The amount of an attempt. Snakemake passes arguments by these names."""

    def amount(wildcards: Any, attempt: int) -> int:  # noqa: ARG001
        first = estimated(size()) if given == "auto" else given
        limit = most or first * (MOST_TIMES if given == "auto" else 1)
        return min(first * attempt, limit)

    return amount


def _training_bytes(study: StudyConfig, how: StageExecution, size: ModelSize, adapters: bool) -> float:
    """Adapters' states and the tokens in flight, on the CPU."""
    trial = 16 * RANK_BOUND * 23 * size.hidden_size * size.num_hidden_layers if adapters else 0
    if isinstance(how, ProxyExecution) and how.packed:
        trials = min(study.proxy.pack_size, MOST_TRIALS) if how.pack_trials == "auto" else how.pack_trials
        tokens = max(PACK_TOKENS, study.data.max_length) if how.pack_tokens == "auto" else how.pack_tokens
        return trials * trial + tokens * 4 * 36 * size.hidden_size * (size.num_hidden_layers + 1)
    rows = CPU_ROWS if how.micro_batch_size == "auto" else how.micro_batch_size
    token = 154 * size.hidden_size * size.num_hidden_layers + 16 * size.vocab_size
    return trial + rows * study.data.max_length * token


def _most_epochs(study: StudyConfig) -> float:
    """The most epochs that a trial may have."""
    name = "num_train_epochs"
    searched = study.space.get(name)
    if searched is None:
        return float(study.defaults.get(name, HYPERPARAMETERS[name].default))
    highest = max(map(float, searched.choices)) if isinstance(searched, Choices) else float(searched.high)
    return max([highest, *(float(value) for value in study.proxy.grid.get(name, ()))])


def _pretrained(settings: PretrainSettings) -> ModelSize:
    shape = (settings.hidden_size, settings.num_hidden_layers, settings.vocab_size)
    return ModelSize(_parameters(*shape, settings.intermediate_size, 1.0, tied=True), *shape, "pretrain")


def _from_config(config: Mapping[str, Any], weight_bytes: int) -> ModelSize:
    """The size that a checkpoint's `config.json` tells; models of text and images have it in `text_config`.

    Where the weights' files say more, as they do for mixtures of experts, they count.
    """
    text = config.get("text_config", config)
    shape = (int(text["hidden_size"]), int(text["num_hidden_layers"]), int(text["vocab_size"]))
    heads = int(text["num_attention_heads"])
    share = int(text.get("num_key_value_heads") or heads) / heads
    width = int(text.get("intermediate_size") or 4 * shape[0])
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
    kind = str(config.get("dtype", config.get("torch_dtype")))
    told = _parameters(*shape, width, share, tied)
    parameters = max(told, weight_bytes // (4 if kind == "float32" else 2))
    return ModelSize(parameters, *shape, "config.json", any(text.get(name) for name in EXPERTS))


def _weight_bytes(folder: Path) -> int:
    found = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    return sum(path.stat().st_size for path in found)


def _parameters(hidden: int, layers: int, vocab: int, width: int, key_value_share: float, tied: bool) -> int:
    """P of a Llama: per layer two h × h matrices, two of the keys' and values' share, three h × i, two norms."""
    layer = round(2 * hidden**2 * (1 + key_value_share)) + 3 * hidden * width + 2 * hidden
    return vocab * hidden * (1 if tied else 2) + layers * layer + hidden
