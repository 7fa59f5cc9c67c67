"""A trial in a pack: what it does at each of its steps, and what it has done so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from understudy.hyperparameters import Value
from understudy.steps import evaluation_steps, total_steps
from understudy.train.batches import data_order
from understudy.train.history import History, MeanLoss
from understudy.train.optimizer import make_schedule
from understudy.train.packed.adapters import Weights
from understudy.train.packed.layout import Layout
from understudy.train.packed.rows import Corpus
from understudy.trial import RungScore, TrialSpec, derive_seed


class Orders:
    """The data order of every seed, as far as it has been asked for. Trials of one seed share it."""

    def __init__(self, examples: int) -> None:
        self._examples = examples
        self._streams: dict[int, Iterator[int]] = {}
        self._known: dict[int, list[int]] = {}

    def between(self, seed: int, start: int, stop: int) -> list[int]:
        """Elements `start` to `stop` of the seed's endless stream of example numbers."""
        stream = self._streams.setdefault(seed, data_order(self._examples, seed))
        known = self._known.setdefault(seed, [])
        known.extend(islice(stream, max(0, stop - len(known))))
        return known[start:stop]


@dataclass
class Trial:
    """A trial of a pack, in training or waiting."""

    spec: TrialSpec
    layout: Layout
    corpus: Corpus  # the training subset
    evaluations: int
    orders: Orders
    begin: Callable[[], Weights]  # what it holds before its first step
    own: Layout | None = None  # without padding, where `layout` has some: what is saved
    waiting: Weights | None = None  # what it holds while it is in no slot, once it has begun; on the host
    slot: int | None = None
    looked_at: int = 0  # the step after which it was last evaluated
    rung: int = 0  # of successive halving: how many it has passed
    rung_scores: list[RungScore] = field(default_factory=list)  # of those that it has reached
    history: History = field(default_factory=History)
    since_evaluation: MeanLoss = field(default_factory=MeanLoss)
    seconds: float = 0.0  # its share of the pack's time
    _batch: tuple[int, list[int], int] = (-1, [], 0)

    @cached_property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return total_steps(len(self.corpus), self.spec.hyperparameters, self.spec.fidelity)

    @cached_property
    def evaluate_after(self) -> set[int]:
        return evaluation_steps(self.steps, self.evaluations)

    @cached_property
    def rates(self) -> list[float]:
        """The learning rate of every step."""
        return learning_rates(self.spec.hyperparameters, self.steps)

    @cached_property
    def smoothing(self) -> float:
        return float(self.spec.hyperparameters["label_smoothing_factor"])

    @property
    def left(self) -> int:
        """Steps that are still to do."""
        return self.steps - self.history.steps

    @property
    def batch(self) -> list[int]:
        """The examples of the next step."""
        return self._next[1]

    @property
    def batch_tokens(self) -> int:
        """Tokens of the next step, prompts included."""
        return self._next[2]

    @property
    def _next(self) -> tuple[int, list[int], int]:
        done = self.history.steps
        if self._batch[0] != done:
            size = int(self.spec.hyperparameters["batch_size"])
            examples = self.orders.between(self.spec.seed, done * size, (done + 1) * size)
            self._batch = done, examples, self.corpus.tokens(examples)
        return self._batch

    @staticmethod
    def _moved(vectors: Sequence[Tensor], layout: Layout | None, to: Layout | None) -> list[Tensor]:
        return [vector if layout is None or to is None else layout.moved(vector, to) for vector in vectors]

    def state(self, weights: Weights | None) -> dict[str, Any]:
        """Plain values and tensors from which `restore` brings it back; `weights` is None before it has begun."""
        return {
            "weights": None if weights is None else self._moved(weights.vectors, self.layout, self.own),
            "looked_at": self.looked_at,
            "rung": self.rung,
            "rung_scores": [found.model_dump() for found in self.rung_scores],
            "seconds": self.seconds,
            "since_evaluation": asdict(self.since_evaluation),
            "history": self.history.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state` gave."""
        saved = state["weights"]
        self.waiting = None if saved is None else Weights(*self._moved(saved, self.own, self.layout))
        self.looked_at, self.rung, self.seconds = state["looked_at"], state["rung"], state["seconds"]
        self.rung_scores = [RungScore.model_validate(found) for found in state["rung_scores"]]
        self.since_evaluation = MeanLoss(**state["since_evaluation"])
        self.history.restore(state["history"])

    def dropout_seed(self, part: int) -> int:
        """The seed of the next step's masks; `part` counts the pieces that its batch is cut into."""
        return derive_seed(self.spec.seed, "dropout", self.history.steps, part)


def learning_rates(hyperparameters: Mapping[str, Value], steps: int) -> list[float]:
    """The learning rate of every step, from the schedule that a solo run has."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=float(hyperparameters["learning_rate"]))
    schedule = make_schedule(optimizer, hyperparameters, steps)
    rates = [float(optimizer.param_groups[0]["lr"])]
    for _ in range(steps - 1):
        optimizer.step()
        schedule.step()
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return rates


def in_order(trials: Iterable[Trial]) -> list[Trial]:
    """Those with most steps left first."""
    return sorted(trials, key=lambda trial: (-trial.left, trial.spec.id))


def choose(active: Sequence[Trial], tokens: int) -> list[Trial]:
    """Who takes a step in the next pass: as many as fit into `tokens`, those with most steps left first.

    So the longest trials, on which the pack's time hangs, never wait, and the others fill the passes up. A batch that
    doesn't fit goes alone, in pieces.
    """
    chosen: list[Trial] = []
    room = tokens
    for trial in in_order(active):
        if not chosen or trial.batch_tokens <= room:
            chosen.append(trial)
            room -= trial.batch_tokens
    return chosen


def pieces(batch: Sequence[int], corpus: Corpus, tokens: int) -> list[list[int]]:
    """A batch in pieces of at most `tokens` tokens, or of one example that is longer; neighbours stay neighbours.

    It depends on the batch alone, whoever else is in training.
    """
    found: list[list[int]] = [[]]
    room = tokens
    for example in batch:
        length = int(corpus.lengths[example])
        if found[-1] and length > room:
            found.append([])
            room = tokens
        found[-1].append(example)
        room -= length
    return found
