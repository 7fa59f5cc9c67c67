"""From a spec to a finished record: load, prepare, train, measure, keep."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from understudy import checksums, interruption, process, provenance, watchdog
from understudy.data.encoding import Encoded, encode
from understudy.data.files import read_split
from understudy.errors import UnderstudyError
from understudy.files import folder_whole
from understudy.interruption import InterruptionError
from understudy.models.loading import Place, load_base, load_tokenizer
from understudy.models.peak_flops import peak_flops
from understudy.settings import Split
from understudy.store import Store
from understudy.train import determinism, memory
from understudy.train.adapters import trainable
from understudy.train.checkpoint import Checkpoint
from understudy.train.history import History
from understudy.train.layers import compiled
from understudy.train.loop import DivergedError, Examples, StoppedEarlyError, train
from understudy.train.memory import OutOfMemoryError
from understudy.train.ranks import Ranks, telling
from understudy.train.trial import Job, keeps_weights
from understudy.trial import (
    Cost,
    ResolvedExecution,
    RungScore,
    Status,
    TrialRecord,
    TrialResult,
    TrialSpec,
    early_stopped_digest,
    trial_digest,
)


class Engine:
    """Trains trials one after the other on one copy of the base and of the data."""

    def __init__(self, job: Job, ranks: Ranks | None = None) -> None:
        self.job = job
        self.ranks = ranks or Ranks()
        self.speaks_for_all = False  # memory ran out on this rank, and the others wait for it in vain until it is gone
        self.execution: ResolvedExecution = job.inputs.execution
        prepare_torch(self.execution)
        memory.require_like(job.gpu_bytes)

    def train(self, spec: TrialSpec) -> TrialRecord:
        """Train a trial and keep it in the store. Divergence and lack of memory are results, not errors.

        Where the job's limits stop it, it is kept in an entry of its own. One that was interrupted goes on from its
        checkpoint. Raises `InterruptionError` after a signal.
        """
        with watchdog.watching(self.job.running.watchdog_minutes, f"trial {spec.id}"):
            return determinism.as_far_as_possible(lambda: self._load_and_train(spec), self._forget_base)

    def _load_and_train(self, spec: TrialSpec) -> TrialRecord:
        with watchdog.input_output():
            base, examples = self._base(spec), self.examples
        with interruption.deferred():
            self._begin_together()
            return self._train(base, spec, examples)

    def _begin_together(self) -> None:
        """Wait until every rank has loaded, and end here on all of them where any was asked to end."""
        with watchdog.patient():  # another one may read its checkpoint from a slower disk
            number = self.ranks.largest(interruption.asked() or 0, self._device)
        if number:
            raise InterruptionError(number, "before training began; an earlier checkpoint is kept")

    def _train(self, base: nn.Module, spec: TrialSpec, examples: Examples) -> TrialRecord:
        memory.reset_peak()
        store, digest, history = Store(self.job.store), trial_digest(spec, self.job.inputs), History()
        limits = self.job.stop_above
        with_limits = early_stopped_digest(digest, limits) if limits else digest
        pause = 60 * self.job.running.checkpoint_minutes
        checkpoint = Checkpoint(store.checkpoint(digest), with_limits, self.ranks, self._device, pause)
        status, message = self._attempt(base, spec, examples, history, store.adapter(digest), checkpoint)
        memory.release()
        if status == "stopped":
            digest = with_limits
        seconds, peak = checkpoint.seconds, checkpoint.peak_bytes
        with watchdog.patient():  # the first rank may still be writing weights
            record = self.record(spec, digest, history, status, message, seconds, peak_bytes=peak)
        if self.ranks.index > 0:
            return record
        if (found := store.find(digest)) is not None:  # by somebody who took this process for dead: the first one stays
            return found
        store.save(record)
        return record

    def record(
        self,
        spec: TrialSpec,
        digest: str,
        history: History,
        status: Status,
        message: str | None,
        seconds: float,
        trained_by: str = "trainer",
        rung_scores: tuple[RungScore, ...] = (),
        peak_bytes: int | None = None,
    ) -> TrialRecord:
        """What came of a trial. `peak_bytes` is this process's, by default until now."""
        complete = status == "complete"
        result = TrialResult(
            digest=digest,
            status=status,
            objective=history.metrics["eval_loss"] if complete else None,
            metrics=history.metrics if complete else {},
            curve=tuple(history.curve),
            steps=history.steps,
            rung_scores=rung_scores,
            early_stop=history.early_stop,
            message=message,
            cost=self._cost(spec, history, seconds, memory.peak_bytes() if peak_bytes is None else peak_bytes),
            provenance=provenance.collect(trained_by, _device_name(self.execution)),
        )
        return TrialRecord(spec=spec, result=result)

    def _attempt(
        self,
        base: nn.Module,
        spec: TrialSpec,
        examples: Examples,
        history: History,
        folder: Path,
        checkpoint: Checkpoint,
    ) -> tuple[Status, str | None]:
        """Train; on success keep the weights of a finalist. The second value says why it isn't complete."""
        settings, execution, limits = self.job.inputs.training, self.execution, self.job.stop_above
        try:
            with trainable(base, spec, execution) as model, compiled(model, execution.torch_compile):
                if self._sharded:
                    with telling(None):
                        _shard(model, execution)
                train(model, spec, examples, execution, settings, self.ranks, history, limits, checkpoint)
                if keeps_weights(spec):
                    self._keep_weights(spec, model, folder)
        except StoppedEarlyError as error:
            return "stopped", str(error)
        except DivergedError as error:
            return "diverged", str(error)
        except OutOfMemoryError as error:
            if self._sharded:
                self._speak_for_all()
            return "out_of_memory", str(error)
        except (MemoryError, RuntimeError) as error:
            if not memory.is_out_of_memory(error):
                raise
            self._speak_for_all()
            where = f"after step {history.steps}" if history.steps else "while the trial was set up"
            return "out_of_memory", f"memory ran out {where}: {memory.reason(error)}"
        return "complete", None

    def _speak_for_all(self) -> None:
        """From now on this rank says what came of the trial, without asking the others."""
        self.speaks_for_all = self.ranks.count > 1
        self.ranks = Ranks()

    def _base(self, spec: TrialSpec) -> nn.Module:
        """The frozen base that all adapters share, or a fresh copy for full fine-tuning, which changes it."""
        if spec.method == "lora":
            return self.frozen_base
        base: nn.Module = load_base(self.job.inputs.model, self.execution, "full", self._where)
        return base

    @cached_property
    def frozen_base(self) -> nn.Module:
        base: nn.Module = load_base(self.job.inputs.model, self.execution, "lora", self._where)
        return base

    def _forget_base(self) -> None:
        """Load it anew for the next trial: one that was sharded, or stopped in the middle of a pass, isn't whole."""
        self.__dict__.pop("frozen_base", None)

    @property
    def _sharded(self) -> bool:
        """Whether a trial's parameters are sharded. Such an engine trains one trial: they can't be put together."""
        return self.execution.strategy == "fsdp"

    @property
    def _where(self) -> Place:
        return "host" if self._sharded else "device"

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.job.inputs.model)

    @cached_property
    def examples(self) -> Examples:
        data = self.job.inputs.data

        def read(path: Path, split: Split, limit: int) -> list[Encoded]:
            return encode(read_split(path, limit, data.splits[split].sha256), self._tokenizer, data.max_length)

        return Examples(
            train=read(self.job.train, "train", data.train_examples),
            validation=read(self.job.validation, "validation", data.validation_examples),
            pad_token_id=int(self._tokenizer.pad_token_id),
        )

    @property
    def _device(self) -> torch.device:
        """Where this process computes."""
        on_gpu = self.execution.device == "cuda"
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    def _cost(self, spec: TrialSpec, history: History, seconds: float, peak_bytes: int) -> Cost:
        """What the trial took, without loading base and data."""
        parameters = self.job.inputs.model.computing_parameters
        per_token = 4 if spec.method == "lora" else 6
        on_gpu = self.execution.device == "cuda"
        flops = float(parameters * (per_token * history.tokens + 2 * history.evaluated_tokens))
        gpu_seconds = seconds * self.execution.world_size if on_gpu else 0.0
        peak = peak_flops(_device_name(self.execution), self.execution.dtype)
        return Cost(
            tokens=history.tokens,
            flops=flops,
            wall_seconds=seconds,
            gpu_seconds=gpu_seconds,
            peak_memory_bytes=self.ranks.largest(peak_bytes, self._device),
            tokens_per_second=history.tokens / seconds if seconds > 0 else 0.0,
            mfu=flops / (peak * gpu_seconds) if peak and gpu_seconds else None,
        )

    def _keep_weights(self, spec: TrialSpec, model: nn.Module, folder: Path) -> None:
        """Write them. That memory runs out for it says nothing of the trial, which is through: it is an error."""
        try:
            self._save_weights(model, folder)
        except (MemoryError, RuntimeError) as error:
            if not memory.is_out_of_memory(error):
                raise
            raise UnderstudyError(
                f"memory ran out when the trained weights of {spec.id} were saved ({memory.reason(error)}); start "
                "again with more memory, which goes on from its last checkpoint, where there is one"
            ) from error

    def _save_weights(self, model: nn.Module, folder: Path) -> None:
        """Write the adapter in PEFT's format, or the whole model and its tokenizer, whole or not at all.

        Every rank has to call it; the first one writes.
        """
        gathered: dict[str, Any] = {}
        if self._sharded:
            from understudy.train.sharding import whole_state

            gathered = {"state_dict": whole_state(model, self.ranks)}
        if self.ranks.index > 0:
            return
        with watchdog.patient(), folder_whole(folder) as beside:
            if hasattr(model, "peft_config"):
                model.save_pretrained(beside, save_embedding_layers=False, **gathered)  # type: ignore[operator]
            else:
                model.save_pretrained(beside, **gathered)  # type: ignore[operator]
                self._tokenizer.save_pretrained(beside)
            checksums.write_list(beside)


def prepare_torch(execution: ResolvedExecution) -> None:
    """Threads and deterministic kernels."""
    determinism.require(on_gpu=execution.device == "cuda")
    process.set_threads(execution.threads)


def _shard(model: nn.Module, execution: ResolvedExecution) -> None:
    from understudy.train.sharding import shard_

    shard_(model, execution)


def _device_name(execution: ResolvedExecution) -> str | None:
    return torch.cuda.get_device_name() if execution.device == "cuda" else None
