"""The one training loop, for every stage, method and number of processes."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy import interruption, watchdog
from understudy.data.encoding import Encoded
from understudy.interruption import InterruptionError
from understudy.settings import TrainingSettings
from understudy.steps import evaluation_steps, find_stop, total_steps
from understudy.train import determinism
from understudy.train.apart import check_apart
from understudy.train.batches import batches, completion_tokens, rank_passes
from understudy.train.checkpoint import Checkpoint, Position
from understudy.train.evaluation import score
from understudy.train.forward import collate, completion_logits, device_of
from understudy.train.gradients import Gradients
from understudy.train.history import History, MeanLoss, note
from understudy.train.memory import OutOfMemoryError
from understudy.train.optimizer import make_optimizer, make_schedule
from understudy.train.ranks import Ranks, telling
from understudy.trial import ResolvedExecution, TrialSpec, derive_seed

if TYPE_CHECKING:
    from understudy.train.sharding import ShardedGradients


@dataclass(frozen=True)
class Examples:
    """What a trial trains on and is judged on, tokenised."""

    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    pad_token_id: int

    def metrics(self, loss: float, correct: float, tokens: float) -> dict[str, float]:
        """What an evaluation found, from its sums over the validation examples' completion tokens; losses in nats."""
        return {
            "eval_loss": loss / tokens,
            "eval_nats_per_byte": loss / sum(example.completion_bytes for example in self.validation),
            "eval_accuracy": correct / tokens,
        }


class DivergedError(Exception):
    """A loss is infinite or not a number."""


class StoppedEarlyError(Exception):
    """The best loss is above the limit for this part of the steps."""


def train(
    model: nn.Module,
    spec: TrialSpec,
    examples: Examples,
    execution: ResolvedExecution,
    settings: TrainingSettings,
    ranks: Ranks,
    history: History,
    stop_above: Sequence[float | None] = (),
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train `model` in place and write down in `history` what happens.

    The loss of a batch is the sum over its completion tokens divided by their number, however the batch is split
    into micro-batches and over ranks. Raises `DivergedError` as soon as a loss isn't finite, `OutOfMemoryError` where
    an allocator refused, and `StoppedEarlyError` by the limits `stop_above` (see `find_stop`); each on every rank,
    since all of them go by the same sums. With a checkpoint it goes on from there and saves now and then. After a
    signal the running step is finished and saved, and every rank raises `InterruptionError`.
    """
    _Training(model, spec, examples, execution, settings, ranks, history, stop_above, checkpoint).run()


class _Training:
    """One rank's part in the training of a trial. The arguments are `train`'s."""

    def __init__(
        self,
        model: nn.Module,
        spec: TrialSpec,
        examples: Examples,
        execution: ResolvedExecution,
        settings: TrainingSettings,
        ranks: Ranks,
        history: History,
        stop_above: Sequence[float | None],
        checkpoint: Checkpoint | None,
    ) -> None:
        self._model, self._spec, self._examples, self._execution = model, spec, examples, execution
        self._ranks, self._history, self._stop_above, self._checkpoint = ranks, history, stop_above, checkpoint
        self._steps = total_steps(len(examples.train), spec.hyperparameters, spec.fidelity)
        self._evaluate_after = evaluation_steps(self._steps, settings.evaluations)
        self._gradients = _gradients(model, execution.strategy == "fsdp")
        self._optimizer = make_optimizer(model, spec.hyperparameters)
        self._schedule = make_schedule(self._optimizer, spec.hyperparameters, self._steps)
        self._position = Position(model, self._optimizer, self._schedule, history, MeanLoss())

    def run(self) -> None:
        """All steps from where the checkpoint is, or from the first."""
        if self._execution.padding_free:
            check_apart(self._model, self._execution)
        self._model.train()
        torch.manual_seed(derive_seed(self._spec.seed, "dropout", self._ranks.index))
        if self._checkpoint is not None:
            self._checkpoint.resume(self._position)
        self._evaluate_if_due()  # a step is saved before its evaluation
        batch_size = int(self._spec.hyperparameters["batch_size"])
        done = self._history.steps
        for batch in batches(self._examples.train, batch_size, self._steps, self._spec.seed, done=done):
            save, stop = self._take_step(batch, completion_tokens(batch))
            self._save_or_stop(save, stop)
            self._evaluate_if_due()

    def _take_step(self, batch: Sequence[Encoded], counted: int) -> tuple[bool, bool]:
        """One optimizer step; `counted` are the batch's completion tokens. Whether to save, and whether to stop."""
        history, gradients, step = self._history, self._gradients, self._history.steps + 1
        self._backward(batch, counted)
        wants_save = self._checkpoint is not None and self._checkpoint.due()
        agreed = gradients.add_up(self._ranks, wants_save, interruption.asked() is not None)
        batch_loss, trouble, save, stop, refused = agreed
        if refused:
            raise RuntimeError(f"an operation of this model {determinism.MISSING}")
        if trouble:
            raise OutOfMemoryError(f"memory ran out in step {step} of {self._steps}")
        if not math.isfinite(batch_loss):
            raise DivergedError(f"the training loss was {batch_loss} in step {step} of {self._steps}")

        gradients.clip_(float(self._spec.hyperparameters["max_grad_norm"]))
        self._position.rate = float(self._optimizer.param_groups[0]["lr"])
        with telling(gradients.trouble):  # the first step allocates the moments
            self._optimizer.step()
        history.steps = step
        if step < self._steps:  # a polynomial that is all warm-up has no rate beyond its end
            self._schedule.step()

        history.completion_tokens += counted
        history.tokens += sum(len(example.input_ids) for example in batch)
        self._position.since_evaluation.add(batch_loss, counted)
        return save, stop

    def _backward(self, batch: Sequence[Encoded], counted: int) -> None:
        """This rank's share of the batch's gradients."""
        gradients, ranks = self._gradients, self._ranks
        gradients.clear()
        with telling(gradients.trouble), determinism.telling(gradients.refused if ranks.count > 1 else None):
            for rows, counts in rank_passes(batch, self._execution, ranks.index, ranks.count):
                loss = self._summed_loss(rows) / counted
                if not counts:  # the other ranks need this one's part in their passes, and nothing else of it
                    loss = loss * 0
                loss.backward()  # type: ignore[no-untyped-call]
                gradients.loss += loss.detach()
                watchdog.beat()

    def _summed_loss(self, rows: Sequence[Encoded]) -> Tensor:
        """The summed cross entropy of a micro-batch's completion tokens, in nats."""
        batch = collate(rows, self._examples.pad_token_id, device_of(self._model), self._execution)
        logits = completion_logits(self._model, batch, self._execution)
        smoothing = float(self._spec.hyperparameters["label_smoothing_factor"])
        return F.cross_entropy(logits, batch.targets, reduction="sum", label_smoothing=smoothing)

    def _evaluate_if_due(self) -> None:
        history = self._history
        if history.steps not in self._evaluate_after or (history.curve and history.curve[-1].step == history.steps):
            return
        trouble = self._gradients.trouble
        stop = evaluate(self._model, self._examples, self._execution, self._ranks, history, trouble)
        note(history, self._position.since_evaluation, self._position.rate)
        history.early_stop = find_stop(history.curve, self._steps, self._stop_above)
        if history.early_stop is not None:
            raise StoppedEarlyError(history.early_stop.message)
        if history.steps < self._steps:
            self._save_or_stop(save=False, stop=stop)

    def _save_or_stop(self, save: bool, stop: bool) -> None:
        if not (save or stop):
            return
        trouble = self._gradients.trouble
        sound = trouble is None or trouble.item() == 0
        kept = self._checkpoint is not None and self._checkpoint.save(self._position, sound)
        if stop:
            raise _interrupted(self._history.steps, self._steps, kept)


def _interrupted(done: int, steps: int, kept: bool) -> InterruptionError:
    """What every rank raises, also one that got no signal itself."""
    state = (
        "the checkpoint is kept" if kept else "it couldn't be saved, and an earlier checkpoint counts if there is one"
    )
    return InterruptionError(interruption.asked() or signal.SIGTERM, f"in step {done} of {steps}; {state}")


def evaluate(
    model: nn.Module,
    examples: Examples,
    execution: ResolvedExecution,
    ranks: Ranks,
    history: History,
    trouble: Tensor | None,
) -> bool:
    """Put the validation metrics into `history`. Each rank scores its share of the examples.

    Returns whether any rank has been asked to end.
    """
    share = list(examples.validation[ranks.index :: ranks.count])
    own = len(share)
    if execution.strategy == "fsdp" and own * ranks.count < len(examples.validation):
        share.append(examples.validation[0])  # as many passes on every rank; this one doesn't count
    with telling(trouble):
        scores = score(model, share, examples.pad_token_id, execution)
        sums_here = (math.fsum(scores.losses[:own]), sum(scores.tokens[:own]), sum(scores.correct[:own]))
        found = [*map(float, sums_here), 0.0]
    trouble_here = trouble is not None and bool(trouble.item() > 0)
    told = [*([0.0, 0.0, 0.0, 1.0] if trouble_here else found), float(interruption.asked() is not None)]
    sums = torch.tensor(told, dtype=torch.float64, device=device_of(model))
    ranks.sum_(sums)
    loss, tokens, correct, trouble_anywhere, asked = sums.tolist()
    if trouble_anywhere:
        raise OutOfMemoryError(f"memory ran out in or before the evaluation after step {history.steps}")
    if not math.isfinite(loss):
        raise DivergedError(f"the validation loss was {loss} after step {history.steps}")
    history.evaluated_tokens += sum(len(example.input_ids) for example in examples.validation)
    history.metrics = examples.metrics(loss, correct, tokens)
    return bool(asked > 0)


def _gradients(model: nn.Module, sharded: bool) -> Gradients | ShardedGradients:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not sharded:
        return Gradients(trained)
    from understudy.train.sharding import ShardedGradients

    return ShardedGradients(trained, device_of(model))
