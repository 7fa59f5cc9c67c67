"""The process in which trials of the benchmark are trained: it loads once and then takes orders.

Nothing here is a trainer of its own. Trials that train alone go through `understudy.train.loop.train`, packs through
`understudy.train.packed.pack.Pack`, as they do in a study; only evaluations are left out, for all alike.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import random
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from packing_ablations import ABLATIONS, Ablation, PaddedCorpus
from packing_parts import Clock, clocked

from understudy import process
from understudy.data.encoding import Encoded
from understudy.hyperparameters import complete
from understudy.models.estimates import pack_shape
from understudy.models.hardware import detect
from understudy.models.loading import load_base
from understudy.settings import ProxyExecution, TrainingSettings
from understudy.train import loop, memory
from understudy.train.adapters import trainable
from understudy.train.engine import prepare_torch
from understudy.train.packed.adapters import Fresh
from understudy.train.packed.base import read_base
from understudy.train.packed.pack import Pack
from understudy.train.packed.rows import Corpus
from understudy.train.packed.trials import Orders, Trial
from understudy.train.ranks import Ranks
from understudy.trial import ModelCard, Packing, ResolvedExecution, TrialSpec

EXAMPLES = 512  # of the training set; a power of two, so that a number of steps comes out exactly from epochs
Device = Literal["cpu", "cuda"]
Architecture = Literal["llama", "qwen2"]
Timed = Callable[[], tuple[dict[int, float], list[str]]]  # trains; the trials' losses, and what went otherwise


@dataclass(frozen=True)
class Shape:
    """A base model, and what one optimizer step of a trial sees of the data."""

    rows: int
    tokens: int  # per row
    hidden: int
    layers: int
    heads: int
    key_heads: int
    intermediate: int
    vocabulary: int
    architecture: Architecture


@dataclass(frozen=True)
class Task:
    """What one process does in one measurement: train trials `first`, `first` + 1, … for so many steps each."""

    kind: Literal["solo", "pack"]
    trials: int  # one where `kind` is solo
    rows: int  # of each trial's step
    steps: int
    pass_tokens: int  # that may go through the model at once
    ragged: bool
    rank: int
    dropout: float
    first: int = 0
    ablation: str | None = None


@dataclass(frozen=True)
class Measured:
    """When the timed part began and ended, on the clock that all processes share, and what came of it."""

    start: float
    stop: float
    peak_bytes: int
    losses: dict[int, float]  # each trial's mean training loss over all its steps
    notes: tuple[str, ...]


def serve(orders: Connection, device: Device, threads: int) -> None:
    """Take orders (a method's name, its arguments) until there are no more; answer (whether it worked, result)."""
    process.end_with_parent()
    worker = Worker(device, threads)
    while True:
        try:
            name, arguments = orders.recv()
        except EOFError:
            return
        try:
            orders.send((True, getattr(worker, name)(*arguments)))
        except Exception:
            orders.send((False, traceback.format_exc()))


class Worker:
    """One base in memory, and the trials that are trained on it."""

    def __init__(self, device: Device, threads: int) -> None:
        dtype: Literal["float32", "bfloat16"] = "bfloat16" if device == "cuda" else "float32"
        self.execution = ResolvedExecution(
            device=device,
            threads=threads,
            processes=1,
            micro_batch_size=1,
            dtype=dtype,
            gradient_checkpointing=False,
        )
        prepare_torch(self.execution)
        self._open = ExitStack()  # what a prepared task holds until the next one
        self._timed: Timed = _nothing_prepared

    def device(self) -> str:
        """What it runs on."""
        if self.execution.device == "cuda":
            return torch.cuda.get_device_name()
        table = Path("/proc/cpuinfo")
        lines = table.read_text().splitlines() if table.exists() else []
        return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())

    def write(self, shape: Shape, folder: Path) -> None:
        """Write a checkpoint with random weights, large enough that gradients matter."""
        from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.manual_seed(0)
        options = {
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_heads,
            "intermediate_size": shape.intermediate,
            "max_position_embeddings": max(2048, shape.tokens),
            "tie_word_embeddings": True,
            "initializer_range": 1.5 * shape.hidden**-0.5,
        }
        model: Any
        if shape.architecture == "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**options))
        else:
            model = LlamaForCausalLM(LlamaConfig(**options))
        model.to(getattr(torch, self.execution.dtype)).save_pretrained(folder)

    def load(self, shape: Shape, folder: Path, pass_tokens: int | None) -> Packing:
        """Load the checkpoint in NF4; return how `prepare_execution` would let packs on it run."""
        self._forget()
        gc.unfreeze()
        self.base: Any = None
        parameters = sum(path.stat().st_size for path in folder.glob("*.safetensors")) // (
            2 if self.execution.dtype == "bfloat16" else 4
        )
        card = ModelCard(
            role="proxy",
            source="local",
            name=shape.architecture,
            path=str(folder),
            sha256="",
            model_type=shape.architecture,
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            vocab_size=shape.vocabulary,
            parameters=parameters,
            quantization="nf4",
        )
        device = self.execution.device
        settings = ProxyExecution(threads=self.execution.threads, pack_tokens=pass_tokens or "auto")
        self.packing, _ = pack_shape(settings, card, shape.tokens, device, self.execution.dtype, detect(device))
        self.base = load_base(card, self.execution, "lora")
        self.shape = shape
        gc.freeze()  # what is loaded stays, so that collecting a task's garbage takes no time
        return self.packing

    def prepare(self, task: Task) -> None:
        """Set everything up that isn't timed: the adapters and optimizers of the task's trials."""
        self._forget()
        _start_peak()
        ablation = ABLATIONS[task.ablation] if task.ablation else Ablation("")
        self._open.enter_context(_no_evaluations())
        self._open.enter_context(ablation.patched())
        examples = self._examples(task.ragged)
        self._timed = self._alone(task, examples) if task.kind == "solo" else self._together(task, examples, ablation)

    def run(self) -> Measured:
        """Train what `prepare` set up, and measure it."""
        self._wait()
        start = time.perf_counter()
        losses, notes = self._timed()
        self._wait()
        return Measured(start, time.perf_counter(), _peak_bytes(), losses, tuple(notes))

    def shares(self, task: Task) -> dict[str, float]:
        """The parts' shares of a task's time, with clocks in the engine's functions: slower than without."""
        self.prepare(task)
        self.run()
        self.prepare(task)
        with clocked(Clock(self._wait)) as clock:
            self.run()
        return clock.shares()

    def _alone(self, task: Task, examples: loop.Examples) -> Timed:
        """One trial through peft, transformers' modules and the program's own loop."""
        spec = _spec(task, task.first)
        execution = self.execution.model_copy(
            update={"micro_batch_size": max(1, task.pass_tokens // self.shape.tokens)}
        )
        model = self._open.enter_context(trainable(self.base, spec, execution))

        def timed() -> tuple[dict[int, float], list[str]]:
            history = loop.History()
            loop.train(model, spec, examples, execution, TrainingSettings(evaluations=1), Ranks(), history)
            return {task.first: _loss(history)}, []

        return timed

    def _together(self, task: Task, examples: loop.Examples, ablation: Ablation) -> Timed:
        """A pack, set up as `understudy.train.packed.train.train_together` does."""
        dense = self.packing.dense and not ablation.dequantizing
        batched = (self.execution.device == "cuda") != ablation.other_products
        base = read_base(self.base, dense)
        corpus = (PaddedCorpus if ablation.padded else Corpus)(examples.train, base.device)
        specs = [_spec(task, number) for number in range(task.first, task.first + task.trials)]
        fresh, orders = Fresh(base), Orders(len(corpus))
        common = fresh.common_layout(specs) if batched else None
        losses: dict[int, float] = {}

        def begin(spec: TrialSpec) -> Trial:
            layout = common or fresh.layout(spec)
            return Trial(spec, layout, corpus, 1, orders, partial(fresh.weights, spec, layout))

        def ended(trial: Trial, status: str, message: str | None, _: Any) -> None:
            if status != "complete":
                raise RuntimeError(f"trial {trial.spec.id} is {status}: {message}")
            losses[trial.spec.seed] = _loss(trial.history)

        packing = Packing(trials=task.trials, tokens=task.pass_tokens, dense=dense)
        pack = Pack(base, [begin(spec) for spec in specs], examples, corpus, packing, None, ended, batched)

        def timed() -> tuple[dict[int, float], list[str]]:
            pack.run()
            return losses, pack.notes

        return timed

    def _examples(self, ragged: bool) -> loop.Examples:
        """Random tokens, in rows of one length or of lengths from a quarter of it on; the last third is completion."""
        draw, longest = random.Random(0), self.shape.tokens
        examples = []
        for _ in range(EXAMPLES):
            length = draw.randint(longest // 4, longest) if ragged else longest
            ids = [draw.randrange(self.shape.vocabulary) for _ in range(length)]
            examples.append(Encoded(ids, length - length // 3, length // 3))
        return loop.Examples(train=examples, validation=examples[:1], pad_token_id=0)

    def _wait(self) -> None:
        if self.execution.device == "cuda":
            torch.cuda.synchronize()

    def _forget(self) -> None:
        """Let go of the last task."""
        self._open.close()
        self._open = ExitStack()
        self._timed = _nothing_prepared
        memory.release()


def _nothing_prepared() -> tuple[dict[int, float], list[str]]:
    raise RuntimeError("`prepare` comes before `run`")


def _spec(task: Task, number: int) -> TrialSpec:
    """Trial `number`: seed and learning rate of its own."""
    values = {
        "learning_rate": 5e-3 * (1 + number % 4),
        "batch_size": task.rows,
        "num_train_epochs": task.steps * task.rows / EXAMPLES,
        "lora_r": task.rank,
        "lora_alpha": 2 * task.rank,
        "lora_dropout": task.dropout,
    }
    return TrialSpec(
        id=f"r{number:04d}", stage="proxy", origin="random", hyperparameters=complete(values, {}, "lora"), seed=number
    )


def _loss(history: loop.History) -> float:
    loss = history.curve[-1].train_loss
    assert loss is not None
    return loss


@contextmanager
def _no_evaluations() -> Iterator[None]:
    """How often trials are evaluated is the study's affair; here nobody is, so that every contender only trains."""

    def alone(_: Any, __: Any, ___: Any, ____: Any, history: loop.History, _____: Any) -> None:
        history.metrics = {"eval_loss": 0.0}

    def in_pack(_: Pack, trial: Trial) -> float:
        trial.history.metrics = {"eval_loss": 0.0}
        return 0.0

    with mock.patch.object(loop, "evaluate", alone), mock.patch.object(Pack, "_evaluate", in_pack):
        yield


def _start_peak() -> None:
    """Forget earlier peaks: of the GPU's allocator, or on Linux of this process, whose freed memory is given back."""
    memory.reset_peak()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):
        pass


def _peak_bytes() -> int:
    """Memory held at most since `_start_peak`; where the system can't tell, since the process began."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
        except (OSError, StopIteration):
            pass
    return memory.peak_bytes()
