"""The contracts that stages hand to each other: what a trial is, what came of it, and on what it ran."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from understudy.files import digest
from understudy.frozen import Frozen
from understudy.hyperparameters import Value
from understudy.settings import CHATS, Attention, HalvingMetric, Method, Quantization, Role, Split, TrainingSettings

FORMAT_VERSION: Final = 1
# by device; raise it when a change to training, tokenisation or evaluation can change a number there
ENGINE_VERSIONS = {"cpu": 2, "cuda": 3}
CHATS_VERSION = 2  # the same of what writes chats alone

# fields of the execution that are left out of digests at their defaults: they came after engine version 2, and finished
# trials of before are the same
LATER = ("strategy", "nodes", "cpu_offload", "attention", "torch_compile", "padding_free", "pass_tokens")
# Measured with LoRA on one core: 80 for a model of 4 layers of width 192, 200 for 2 layers of width 64.
CPU_PASS_TOKENS = 128
# how models' configs call the number of their experts
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

Stage = Literal["proxy", "truncated", "target", "finalist"]
Origin = Literal["random", "sobol", "grid", "default", "echo", "transferred", "refined"]
Status = Literal["complete", "stopped", "diverged", "out_of_memory", "failed", "skipped"]


class TrialSpec(Frozen):
    """What to train. `hyperparameters` is complete, in the order of the hyperparameter table."""

    format_version: Literal[1] = FORMAT_VERSION
    id: str = Field(description="r0007, q0003 (Sobol), g0003, d01, e0004 (echo), u0002 (truncated), t0012, f1s2")
    stage: Stage
    origin: Origin
    hyperparameters: dict[str, Value]
    method: Method = "lora"
    fidelity: float = Field(default=1.0, gt=0, le=1, description="share of the training steps that is run")
    seed: int = Field(description="of the adapter's initialisation, data order and dropout")
    parents: tuple[str, ...] = Field(default=(), description="ids of the trials that this one was derived from")

    @property
    def role(self) -> Role:
        """Which base model the trial trains."""
        return "proxy" if self.stage == "proxy" else "target"


class CurvePoint(Frozen):
    """One evaluation during training. Losses are mean nats per completion token."""

    step: int
    tokens: int = Field(description="completion tokens trained on so far")
    train_loss: float | None = Field(description="mean since the previous point")
    eval_loss: float
    learning_rate: float


class Cost(Frozen):
    """What a trial took.

    FLOPs are estimated as 6 (full) or 4 (LoRA: no gradients of the frozen weights) per parameter and processed token,
    plus 2 per parameter and evaluated token (Kaplan et al. 2020, section 2.1); of a mixture's experts those count that
    a token passes through. Adapters, attention scores, padding
    and recomputed activations are left out; embeddings and the head count for every token, though the head only sees
    completions. Times leave out loading. The peak is one process's: on GPUs since the trial began, on CPUs since the
    process did.
    """

    tokens: int = Field(default=0, description="trained on, prompts included, padding not")
    flops: float = 0.0
    wall_seconds: float = 0.0
    gpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    tokens_per_second: float = Field(default=0.0, description="trained on, in the trial's time, evaluations included")
    mfu: float | None = Field(
        default=None,
        description="model FLOPs utilisation (Chowdhery et al. 2022, section 4.1): `flops` as a share of what the "
        "trial's GPUs could have done in its time; None on CPUs and where a GPU's peak isn't known",
    )


class RungScore(Frozen):
    """What successive halving compares at a rung.

    Where a config has halving, trials outside of brackets have scores too: more trials may put them into one.
    """

    share: float = Field(description="of the trial's own steps")
    metric: HalvingMetric
    score: float | None = Field(description="smaller is better; None for the worst: not a number, or no end")
    step: int | None = Field(default=None, description="after which it stood there; None where it had ended before")
    point: CurvePoint | None = Field(default=None, description="its learning curve there; None without a finite loss")


class EarlyStop(Frozen):
    """Where a target trial was ended by the limits of its proposal. Losses in nats per completion token."""

    number: int = Field(description="of the evaluation, from 1")
    evaluations: int = Field(description="that the trial would have had")
    step: int
    steps: int = Field(description="that the trial would have had")
    best_loss: float = Field(description="of all evaluations until then")
    limit: float

    @property
    def message(self) -> str:
        """Why the trial was stopped, in words."""
        return (
            f"after {self.step} of its {self.steps} steps its best loss was {self.best_loss:.4f}, above the limit of "
            f"{self.limit:.4f} that earlier trials set"
        )


class TrialResult(Frozen):
    """What came of a trial. `objective` is the final validation loss; None unless the status is `complete`."""

    format_version: Literal[1] = FORMAT_VERSION
    digest: str
    status: Status
    objective: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    steps: int = 0
    rung_scores: tuple[RungScore, ...] = ()
    early_stop: EarlyStop | None = None
    message: str | None = Field(default=None, description="why, where the status isn't `complete`")
    cost: Cost = Cost()
    provenance: dict[str, str] = Field(default_factory=dict)


class TrialRecord(Frozen):
    """A spec and its result: the content of every result file."""

    spec: TrialSpec
    result: TrialResult


class Halving(Frozen):
    """Successive halving (Jamieson & Talwalkar 2016) within a pack.

    Every trial of the pack is evaluated at the rungs. At each of them the best 1 / `reduction_factor` of a bracket's
    trials, rounded up, go on and the others stop.
    """

    rungs: tuple[float, ...] = Field(description="shares of a trial's own steps, ascending, each below 1")
    reduction_factor: int
    metric: HalvingMetric
    brackets: tuple[tuple[str, ...], ...] = Field(description="ids of the trials that are compared with each other")


class Pack(Frozen):
    """The trials that one job trains."""

    format_version: Literal[1] = FORMAT_VERSION
    id: str
    specs: tuple[TrialSpec, ...]
    solo: dict[str, str] = Field(
        default_factory=dict, description="trials that are trained alone, by id, and what the packed engine can't do"
    )
    halving: Halving | None = None
    notes: tuple[str, ...] = Field(default=(), description="what the plan couldn't do of what the config wants")


class PackResults(Frozen):
    """The records of a pack, in the pack's order."""

    format_version: Literal[1] = FORMAT_VERSION
    id: str
    records: tuple[TrialRecord, ...]
    notes: tuple[str, ...] = Field(default=(), description="what went otherwise than planned, such as a split")


class SplitFile(Frozen):
    """One split of the data set."""

    examples: int
    sha256: str = Field(description="of the file")
    content: str | None = Field(
        default=None, description="digest of what the examples say that are used; None: an older version wrote the file"
    )

    @property
    def identity(self) -> str:
        """What trials on it depend on. Where an example came from, and what else is in the file, isn't part of it."""
        return self.content or self.sha256


class DataManifest(Frozen):
    """What `prepare_data` wrote: three parquet files with columns id, group, prompt, completion, chat."""

    format_version: Literal[1] = FORMAT_VERSION
    task: str
    source: dict[str, str] = Field(description="where the examples come from: files, or the interpreter's version")
    counts: dict[str, int] = Field(description="examples found, dropped by reason, kept")
    splits: dict[Split, SplitFile]
    max_length: int
    train_examples: int
    validation_examples: int
    test_examples: int | None


class ModelCard(Frozen):
    """What `prepare_model` wrote: where a checkpoint is, and what it is."""

    format_version: Literal[1] = FORMAT_VERSION
    role: Role
    source: Literal["pretrained", "local", "hub"]
    name: str
    revision: str | None = None
    path: str = Field(description="folder that AutoModelForCausalLM and AutoTokenizer load")
    sha256: str = Field(description="over the names and bytes of config, tokenizer and weights")
    model_type: str = Field(description="transformers' architecture name, such as llama or qwen2")
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    parameters: int
    active_parameters: int | None = Field(
        default=None, description="of a mixture of experts, those that a token passes through"
    )
    quantization: Quantization
    notes: tuple[str, ...] = Field(default=(), description="what its tokenizer, or `data.max_length`, does to the data")

    @property
    def computing_parameters(self) -> int:
        """Those that a token passes through."""
        return self.active_parameters or self.parameters

    @model_serializer(mode="wrap")
    def _without_what_is_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Cards that have nothing to say of something stay as they were before it could be said."""
        values: dict[str, Any] = serialize(self)
        return {name: value for name, value in values.items() if name not in ("notes", "active_parameters") or value}


class Packing(Frozen):
    """How the trials of a pack share a device."""

    trials: int = Field(description="trials that are in training at the same time")
    tokens: int = Field(description="tokens that go through the base at once, of all trials together")
    dense: bool = Field(description="whether a quantized base's weights are held dequantized as well")


class ResolvedExecution(Frozen):
    """How one stage's trials run, with nothing left to decide."""

    device: Literal["cpu", "cuda"]
    threads: int
    processes: int = Field(description="per node")
    micro_batch_size: int
    dtype: Literal["float32", "bfloat16"]
    gradient_checkpointing: bool
    packing: Packing | None = Field(default=None, description="None: trials are trained alone")
    strategy: Literal["ddp", "fsdp"] = Field(default="ddp", description="of one process alone: plain training")
    nodes: int = 1
    cpu_offload: bool = False
    attention: Attention | None = Field(default=None, description="None: what transformers takes")
    torch_compile: bool = False
    padding_free: bool = Field(default=False, description="micro-batches are one row, example after example")
    pass_tokens: int = Field(
        default=CPU_PASS_TOKENS, description="tokens whose work one more forward and backward pass is worth"
    )

    @property
    def world_size(self) -> int:
        """Processes that train a trial together, over all nodes."""
        return self.nodes * self.processes

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What came later is left out where it changes nothing: digests stay those of finished trials."""
        values: dict[str, Any] = serialize(self)
        fields = type(self).model_fields
        return {name: value for name, value in values.items() if name not in LATER or value != fields[name].default}


class Execution(Frozen):
    """What `prepare_execution` wrote for one role: the proxy stage must not wait for the target's model."""

    format_version: Literal[1] = FORMAT_VERSION
    role: Role
    resolved: ResolvedExecution
    notes: tuple[str, ...] = Field(default=(), description="how each `auto` was decided")
    gpu_bytes: int | None = Field(
        default=None, description="memory of the GPU, or the smallest, that it was decided on"
    )


class TrialInputs(Frozen):
    """Everything beside the spec that can change a trial's numbers."""

    data: DataManifest
    model: ModelCard
    execution: ResolvedExecution
    training: TrainingSettings


def trial_digest(spec: TrialSpec, inputs: TrialInputs) -> str:
    """The name of the trial's store entry: the same for the same numbers, whatever the trial is called."""
    data, model = inputs.data, inputs.model
    return digest(
        {
            "engine": ENGINE_VERSIONS[inputs.execution.device],
            "hyperparameters": spec.hyperparameters,
            "method": spec.method,
            "fidelity": spec.fidelity,
            "seed": spec.seed,
            "data": {
                "train": data.splits["train"].identity,
                "validation": data.splits["validation"].identity,
                "max_length": data.max_length,
                "train_examples": data.train_examples,
                "validation_examples": data.validation_examples,
                **({"chats": CHATS_VERSION} if data.source.get("format") in CHATS else {}),
            },
            "model": {"sha256": model.sha256, "quantization": model.quantization},
            "execution": inputs.execution.model_dump(mode="json"),
            "training": inputs.training.model_dump(mode="json"),
        }
    )


def halved_digest(digests: Mapping[str, str], id: str, halving: Halving) -> str:
    """The store entry of a trial that its bracket may stop; one that isn't stopped has its plain entry.

    `digests` has the plain ones of the pack's trials by id. Whether a trial stops depends on its bracket's members.
    """
    bracket = next(bracket for bracket in halving.brackets if id in bracket)
    rule = halving.model_dump(mode="json", exclude={"brackets"})
    return digest({"trial": digests[id], "halving": rule, "bracket": [digests[member] for member in bracket]})


def early_stopped_digest(plain: str, stop_above: Sequence[float | None]) -> str:
    """The store entry of a trial that these limits stopped; one that they don't stop has its plain one."""
    return digest({"trial": plain, "stop_above": list(stop_above)})


def derive_seed(seed: int, *labels: str | int) -> int:
    """A seed below 2**31 that follows from the study's seed and some labels."""
    text = "/".join(str(part) for part in (seed, *labels))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF


def search_seed(seed: int) -> int:
    """The seed of every search trial of both stages: common random numbers make trials comparable."""
    return derive_seed(seed, "trial", "search")


def finalist_seed(seed: int, index: int) -> int:
    """The seed of a finalist's repeat: fresh, so that the choice of the best isn't judged on its own luck."""
    return derive_seed(seed, "trial", "finalist", index)
