"""The one training loop, for every stage, method and number of processes."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy import interruption, watchdog
from understudy.data.encoding import Encoded
from understudy.interruption import InterruptionError
from understudy.settings import TrainingSettings
from understudy.steps import evaluation_steps, find_stop, total_steps
from understudy.train.batches import batches, completion_tokens, micro_batches
from understudy.train.checkpoint import Checkpoint, Position
from understudy.train.evaluation import score
from understudy.train.forward import collate, completion_logits, device_of
from understudy.train.gradients import Gradients
from understudy.train.memory import OutOfMemoryError
from understudy.train.optimizer import make_optimizer, make_schedule
from understudy.train.ranks import Ranks, telling
from understudy.trial import CurvePoint, EarlyStop, ResolvedExecution, TrialSpec, derive_seed


@dataclass(frozen=True)
class Examples:
    """What a trial trains on and is judged on, tokenised."""

    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    pad_token_id: int


@dataclass
class History:
    """What has happened so far. It outlives an exception, so that a failed trial keeps its curve."""

    curve: list[CurvePoint] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)  # of the newest evaluation
    steps: int = 0
    completion_tokens: int = 0  # trained on
    tokens: int = 0  # trained on, prompts included, without padding
    evaluated_tokens: int = 0  # likewise, in evaluations
    early_stop: EarlyStop | None = None

    def state(self) -> dict[str, Any]:
        """Plain values from which `restore` brings it back, before a trial has ended."""
        return {**vars(self), "metrics": dict(self.metrics), "curve": [point.model_dump() for point in self.curve]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state` gave."""
        vars(self).update({**state, "curve": [CurvePoint.model_validate(point) for point in state["curve"]]})


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
    hyperparameters = spec.hyperparameters
    steps = total_steps(len(examples.train), hyperparameters, spec.fidelity)
    evaluate_after = evaluation_steps(steps, settings.evaluations)
    smoothing, max_norm = float(hyperparameters["label_smoothing_factor"]), float(hyperparameters["max_grad_norm"])

    gradients = Gradients([parameter for parameter in model.parameters() if parameter.requires_grad])
    optimizer = make_optimizer(model, hyperparameters)
    schedule = make_schedule(optimizer, hyperparameters, steps)
    position = Position(model, optimizer, schedule, history, MeanLoss())
    model.train()
    torch.manual_seed(derive_seed(spec.seed, "dropout", ranks.index))

    def save_or_stop(save: bool, stop: bool) -> None:
        if save or stop:
            kept = checkpoint is not None and checkpoint.save(position, sound=gradients.trouble.item() == 0)
            if stop:
                raise _interrupted(history.steps, steps, kept)

    def evaluate_if_due() -> None:
        if history.steps not in evaluate_after or (history.curve and history.curve[-1].step == history.steps):
            return
        stop = evaluate(model, examples, execution, ranks, history, gradients.trouble)
        note(history, position.since_evaluation, position.rate)
        history.early_stop = find_stop(history.curve, steps, stop_above)
        if history.early_stop is not None:
            raise StoppedEarlyError(history.early_stop.message)
        if history.steps < steps:
            save_or_stop(save=False, stop=stop)

    if checkpoint is not None:
        checkpoint.resume(position)
    evaluate_if_due()  # the step was saved before its evaluation
    batch_size = int(hyperparameters["batch_size"])
    for batch in batches(examples.train, batch_size, steps, spec.seed, done=history.steps):
        counted = completion_tokens(batch)
        gradients.clear()
        with telling(gradients.trouble):
            for rows in micro_batches(batch, execution.micro_batch_size, ranks.index, ranks.count):
                loss = _summed_loss(model, rows, examples.pad_token_id, execution, smoothing) / counted
                loss.backward()  # type: ignore[no-untyped-call]
                gradients.loss += loss.detach()
                watchdog.beat()

        wants_save, wants_stop = checkpoint is not None and checkpoint.due(), interruption.asked() is not None
        batch_loss, trouble, save, stop = gradients.add_up(ranks, wants_save, wants_stop)
        if trouble:
            raise OutOfMemoryError(f"memory ran out in step {history.steps + 1} of {steps}")
        if not math.isfinite(batch_loss):
            raise DivergedError(f"the training loss was {batch_loss} in step {history.steps + 1} of {steps}")

        gradients.clip_(max_norm)
        position.rate = float(optimizer.param_groups[0]["lr"])
        with telling(gradients.trouble):  # the first step allocates the moments
            optimizer.step()
        history.steps += 1
        if history.steps < steps:  # a polynomial that is all warm-up has no rate beyond its end
            schedule.step()

        history.completion_tokens += counted
        history.tokens += sum(len(example.input_ids) for example in batch)
        position.since_evaluation.add(batch_loss, counted)
        save_or_stop(save, stop)
        evaluate_if_due()


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
    trouble: Tensor,
) -> bool:
    """Put the validation metrics into `history`. Each rank scores its share of the examples.

    Returns whether any rank has been asked to end.
    """
    share = examples.validation[ranks.index :: ranks.count]
    with telling(trouble):
        scores = score(model, share, examples.pad_token_id, execution)
        found = [math.fsum(scores.losses), float(sum(scores.tokens)), float(sum(scores.correct)), 0.0]
    trouble_here, asked_here = bool(trouble.item() > 0), float(interruption.asked() is not None)
    told = [*([0.0, 0.0, 0.0, 1.0] if trouble_here else found), asked_here]
    sums = torch.tensor(told, dtype=torch.float64, device=device_of(model))
    ranks.sum_(sums)
    loss, tokens, correct, trouble_anywhere, asked = sums.tolist()
    if trouble_anywhere:
        raise OutOfMemoryError(f"memory ran out in or before the evaluation after step {history.steps}")
    if not math.isfinite(loss):
        raise DivergedError(f"the validation loss was {loss} after step {history.steps}")
    history.evaluated_tokens += sum(len(example.input_ids) for example in examples.validation)
    history.metrics = {
        "eval_loss": loss / tokens,
        "eval_nats_per_byte": loss / sum(example.completion_bytes for example in examples.validation),
        "eval_accuracy": correct / tokens,
    }
    return bool(asked > 0)


def _summed_loss(
    model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, execution: ResolvedExecution, smoothing: float
) -> Tensor:
    """The summed cross entropy of a micro-batch's completion tokens, in nats."""
    batch = collate(rows, pad_token_id, device_of(model))
    logits = completion_logits(model, batch, execution)
    return F.cross_entropy(logits, batch.targets, reduction="sum", label_smoothing=smoothing)


def note(history: History, train_loss: MeanLoss, rate: float) -> None:
    """Add a point to the learning curve."""
    history.metrics["train_loss"] = train_loss.take()
    history.curve.append(point_of(history, history.metrics["train_loss"], rate))


def point_of(history: History, train_loss: float, rate: float) -> CurvePoint:
    """The learning curve's point at the newest evaluation."""
    return CurvePoint(
        step=history.steps,
        tokens=history.completion_tokens,
        train_loss=train_loss,
        eval_loss=history.metrics["eval_loss"],
        learning_rate=rate,
    )


@dataclass
class MeanLoss:
    """The mean of the batches' losses weighted by their tokens, started anew when it is taken."""

    total: float = 0.0
    weight: int = 0

    def add(self, value: float, weight: int) -> None:
        self.total += value * weight
        self.weight += weight

    @property
    def mean(self) -> float:
        return self.total / self.weight

    def take(self) -> float:
        mean = self.mean
        self.total, self.weight = 0.0, 0
        return mean
