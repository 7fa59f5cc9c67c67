"""The process in which trials of the benchmark are trained: it loads once and then takes orders.

Nothing here is a trainer of its own. Trials that train alone go through `understudy.train.loop.train`, packs through
`understudy.train.packed.pack.Pack`, as they do in a study; only evaluations are left out, for all alike.
"""

from __future__ import annotations

import ctypes
import gc
import platform
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

from packs.ablations import ABLATIONS, Ablation, PaddedCorpus
from packs.parts import Clock, clocked
from packs.tasks import Device, Shape, Task, random_examples, spec_of, write_checkpoint
from understudy import process
from understudy.models.estimates import pack_shape
from understudy.models.hardware import detect
from understudy.models.loading import load_base
from understudy.settings import ProxyExecution, TrainingSettings
from understudy.train import loop, memory
from understudy.train.adapters import trainable
from understudy.train.engine import prepare_torch
from understudy.train.history import History
from understudy.train.packed.adapters import Fresh
from understudy.train.packed.base import read_base
from understudy.train.packed.pack import Pack
from understudy.train.packed.rows import Corpus
from understudy.train.packed.trials import Orders, Trial
from understudy.train.ranks import Ranks
from understudy.trial import ModelCard, Packing, ResolvedExecution, TrialSpec

Timed = Callable[[], tuple[dict[int, float], list[str]]]  # trains; the trials' losses, and what went otherwise


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
        except Exception:  # the parent raises it, whatever it is
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
        self.batched = device == "cuda"  # which products a pack takes here
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
        """Write a checkpoint with random weights."""
        write_checkpoint(shape, folder, getattr(torch, self.execution.dtype))

    def load(self, shape: Shape, folder: Path, pass_tokens: int | None) -> Packing:
        """Load the checkpoint in NF4; return how `prepare_execution` would let packs on it run."""
        self.forget()
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
        self._by_compiler: dict[bool, Any] = {}
        gc.freeze()  # what is loaded stays, so that collecting a task's garbage takes no time
        return self.packing

    def prepare(self, task: Task) -> None:
        """Set everything up that isn't timed: the adapters and optimizers of the task's trials."""
        self.forget()
        _start_peak()
        ablation = ABLATIONS[task.ablation] if task.ablation else Ablation("")
        self._open.enter_context(_no_evaluations())
        self._open.enter_context(ablation.patched())
        if task.compiled:
            self._open.enter_context(mock.patch.object(self.base.model, "forward", self._compiled(task.ragged)))
        examples = random_examples(self.shape, task.ragged)
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
        spec = spec_of(task, task.first)
        execution = self.execution.model_copy(
            update={"micro_batch_size": max(1, task.pass_tokens // self.shape.tokens)}
        )
        model = self._open.enter_context(trainable(self.base, spec, execution))

        def timed() -> tuple[dict[int, float], list[str]]:
            history = History()
            loop.train(model, spec, examples, execution, TrainingSettings(evaluations=1), Ranks(), history)
            return {task.first: _loss(history)}, []

        return timed

    def _together(self, task: Task, examples: loop.Examples, ablation: Ablation) -> Timed:
        """A pack, set up as `understudy.train.packed.train.train_together` does."""
        dense = self.packing.dense and not ablation.dequantizing
        batched = self.batched != ablation.other_products
        base = read_base(self.base, dense)
        corpus = (PaddedCorpus if ablation.padded else Corpus)(examples.train, base.device)
        specs = [spec_of(task, number) for number in range(task.first, task.first + task.trials)]
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

        packing, notes = Packing(trials=task.trials, tokens=task.pass_tokens, dense=dense), list[str]()
        trials = [begin(spec) for spec in specs]
        pack = Pack(base, trials, examples, corpus, packing, None, ended, notes.append, batched)

        def timed() -> tuple[dict[int, float], list[str]]:
            pack.run()
            return losses, notes

        return timed

    def _compiled(self, ragged: bool) -> Any:
        """The base's forward pass by `torch.compile`, whose code is kept for as long as the base is."""
        if ragged not in self._by_compiler:
            torch._inductor.config.compile_threads = 1  # else it keeps processes of its own
            torch._dynamo.config.recompile_limit = 1024
            self._by_compiler[ragged] = torch.compile(self.base.model.forward, dynamic=None if ragged else False)
        return self._by_compiler[ragged]

    def _wait(self) -> None:
        if self.execution.device == "cuda":
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Let go of the last task."""
        self._open.close()
        self._open = ExitStack()
        self._timed = _nothing_prepared
        memory.release()


def _nothing_prepared() -> tuple[dict[int, float], list[str]]:
    raise RuntimeError("`prepare` comes before `run`")


def _loss(history: History) -> float:
    loss = history.curve[-1].train_loss
    assert loss is not None
    return loss


@contextmanager
def _no_evaluations() -> Iterator[None]:
    """How often trials are evaluated is the study's affair; here nobody is, so that every contender only trains."""

    def alone(_: Any, __: Any, ___: Any, ____: Any, history: History, _____: Any) -> None:
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
