"""The pack's loop: rounds of passes, evaluations, halving, and what happens when memory runs out."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from understudy.errors import UnderstudyError
from understudy.train import memory
from understudy.train.history import note, point_of
from understudy.train.loop import Examples
from understudy.train.packed.adapters import Stack, Weights
from understudy.train.packed.base import Base
from understudy.train.packed.halving import Brackets
from understudy.train.packed.passes import Passes, slot_of
from understudy.train.packed.rows import Corpus
from understudy.train.packed.rungs import Rungs
from understudy.train.packed.trials import Trial, choose, in_order, pieces
from understudy.trial import Packing, Status

READ_EVERY = 16  # rounds: on GPUs losses are looked at this much later, so that the device never waits for the host
TILE = 64  # tokens: what batched products take at least from each trial

Ended = Callable[[Trial, Status, str | None, Tensor | None], None]
Note = Callable[[str], None]


@dataclass
class _Unread:
    """The losses of a round's steps, still on the device."""

    losses: Tensor  # (trials,)
    steps: list[tuple[Trial, int, int, int]]  # trial, number of the step from 1, completion tokens, all tokens


class Pack:
    """Trials that train together until none is left.

    `ended` is told of each one, with its adapter's flat vector on the host, and `note` of what went otherwise than
    planned.
    """

    def __init__(
        self,
        base: Base,
        trials: Sequence[Trial],
        examples: Examples,
        corpus: Corpus,
        packing: Packing,
        brackets: Brackets | None,
        ended: Ended,
        note: Note,
        batched: bool = False,
    ) -> None:
        self._batched = batched
        self.base, self.rungs, self._ended, self._note = base, Rungs(brackets), ended, note
        self._untold: list[tuple[Trial, Status, str | None, Tensor | None]] = []
        self._clock, self._work = time.perf_counter(), Counter[str]()
        self.queue = in_order(trials)
        self.active: dict[int, Trial] = {}
        self.paused: list[Trial] = []  # at a rung, until their bracket is judged
        self.tokens, self.slots = packing.tokens, min(packing.trials, len(self.queue))
        self._corpus, self._examples = corpus, examples
        self._validation = Corpus(examples.validation, base.device)
        self._longest = int(max(corpus.lengths.max(), self._validation.lengths.max()))
        self._unread: list[_Unread] = []
        self._make_stack()

    def run(self, after_round: Callable[[], None] = lambda: None) -> None:
        """Train until every trial has ended. `after_round` may save the pack's state."""
        with torch.no_grad():
            while self._goes_on():
                self._round()
                self._tell()
                after_round()

    def _goes_on(self) -> bool:
        """Whether anything is left to do. Nobody may be left at a rung with nobody to wait for."""
        if not (self.queue or self.active):
            self._judge()
            self._tell()
            if self.paused and not self.queue:
                waiting = ", ".join(trial.spec.id for trial in self.paused)
                raise UnderstudyError(f"{waiting} wait at a rung of halving for trials that aren't in their pack")
        return bool(self.queue or self.active)

    def _tell(self) -> None:
        """Hand over who has ended. No split can lose them: a lack of memory here is an error."""
        while self._untold:
            self._ended(*self._untold.pop(0))

    def trials(self) -> list[Trial]:
        """Who hasn't ended, whether in training or not."""
        return [*self.active.values(), *self.queue, *self.paused]

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, between two rounds: plain values and copies of tensors.

        It changes nothing: whether and when a pack is saved doesn't show in what it does.
        """
        self._share_time()
        return {
            "tokens": self.tokens,
            "slots": self.slots,
            "paused": [trial.spec.id for trial in self.paused],
            "seats": {trial.spec.id: slot for slot, trial in self.active.items()},
            "trials": {
                trial.spec.id: trial.state(trial.waiting if trial.slot is None else self.stack.copy(trial.slot))
                for trial in self.trials()
            },
            "unread": [
                (part.losses.tolist(), [(trial.spec.id, *numbers) for trial, *numbers in part.steps])
                for part in self._unread
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Bring a pack that hasn't begun to a state: the same trials in the same slots. Others begin anew."""
        here = {trial.spec.id: trial for trial in self.queue}
        for id, trial in here.items():
            if id in state["trials"]:
                trial.restore(state["trials"][id])
        self.rungs.remember(here.values())
        seats = {id: slot for id, slot in state["seats"].items() if id in here}
        self.paused = [here[id] for id in state["paused"] if id in here]
        self.queue = in_order(trial for id, trial in here.items() if id not in state["paused"])
        self.tokens, self.slots = state["tokens"], state["slots"]
        del self.stack, self._passes
        memory.release()
        self._make_stack()
        for id, slot in seats.items():
            if slot < self.slots and here[id] in self.queue:  # else memory ran out for it
                self._seat(here[id], slot)
        self._unread = [
            _Unread(
                torch.tensor(losses, device=self.base.device),
                [(here[id], *numbers) for id, *numbers in steps],
            )
            for losses, steps in state["unread"]
        ]
        left = {trial.spec.id for trial in self.trials()}
        for trial in (trial for id, trial in here.items() if id not in left):  # memory ran out for it
            self._forget(trial)

    def _round(self) -> None:
        """Free slots are taken, what is due is done, some trials step. Where memory runs out, the pack splits."""
        at_work: list[Trial] = []
        try:
            for slot in range(self.slots):
                if slot not in self.active and self.queue:
                    at_work = [self.queue[0]]
                    self._seat(self.queue[0], slot)
            at_work = []
            due = [trial for trial in self.active.values() if self._is_due(trial)]
            if due or self.base.device.type == "cpu" or len(self._unread) >= READ_EVERY:
                self._read()
            for trial in due:
                at_work = [trial]
                if trial.slot is not None:
                    self._look(trial)
            at_work = choose(list(self.active.values()), self.tokens)
            if at_work:
                self._step(at_work)
        except (MemoryError, RuntimeError) as error:
            if not memory.is_out_of_memory(error):
                raise
            reason = memory.reason(error)
        else:
            return
        self._split(at_work, reason)

    def _read(self) -> None:
        """Look at the losses of the steps since the last time; end who has diverged."""
        if not self._unread:
            return
        losses = iter(torch.cat([part.losses[: len(part.steps)] for part in self._unread]).tolist())
        unread, self._unread = self._unread, []
        self._share_time()
        for part in unread:
            for trial, step, counted, own in part.steps:
                loss, history = next(losses), trial.history
                diverged_before = history.steps < step
                if math.isfinite(loss) and not diverged_before:
                    trial.since_evaluation.add(loss, counted)
                    continue
                history.completion_tokens -= counted
                history.tokens -= own
                if not diverged_before:
                    history.steps = step - 1
                    self._end(trial, "diverged", f"the training loss was {loss} in step {step} of {trial.steps}")

    def _step(self, chosen: Sequence[Trial]) -> None:
        """One optimizer step of each of these trials."""
        tokens = [trial.batch_tokens for trial in chosen]
        parts = pieces(chosen[0].batch, self._corpus, self.tokens) if len(chosen) == 1 else []
        if len(parts) > 1:
            losses = sum(self._passes.train([(chosen[0], part)], number) for number, part in enumerate(parts))
        else:
            losses = self._passes.train([(trial, trial.batch) for trial in chosen], 0)
        assert isinstance(losses, Tensor)
        unread = _Unread(losses, [])
        self._unread.append(unread)
        for trial, own in zip(chosen, tokens, strict=True):
            history, counted = trial.history, self._corpus.completion_tokens(trial.batch)
            self.stack.step(slot_of(trial), trial.rates[history.steps], trial.spec.hyperparameters)
            history.steps += 1
            history.completion_tokens += counted
            history.tokens += own
            unread.steps.append((trial, history.steps, counted, own))
            self._work[trial.spec.id] += own

    def _share_time(self) -> None:
        """The time since the last call is the trials' by the tokens that they put through the base since then.

        It is called when the device has been waited for. What it takes to seat trials and to keep what comes of them
        counts in the next share.
        """
        if not self._work:
            return
        now, tokens = time.perf_counter(), self._work.total()
        for trial in self.trials():
            trial.seconds += (now - self._clock) * self._work[trial.spec.id] / tokens
        self._clock, self._work = now, Counter()

    def _is_due(self, trial: Trial) -> bool:
        """Whether a trial is evaluated before its next step."""
        return self._evaluates(trial) or self.rungs.has(trial)

    def _evaluates(self, trial: Trial) -> bool:
        """Whether the learning curve gets a point here that it doesn't have yet."""
        return trial.looked_at < trial.history.steps and trial.history.steps in trial.evaluate_after

    def _look(self, trial: Trial) -> None:
        """Evaluate a trial, and decide what becomes of it."""
        on_curve, pauses = self._evaluates(trial), self.rungs.holds(trial)
        train_loss, loss = _train_loss(trial), self._evaluate(trial)
        # what memory may run out for comes before what can't be done twice
        held = self.stack.copy(slot_of(trial)) if pauses or trial.left == 0 else None
        self._share_time()
        history = trial.history
        trial.looked_at, rate = history.steps, trial.rates[history.steps - 1]
        if on_curve and not math.isfinite(loss):
            self._end(trial, "diverged", f"the validation loss was {loss} after step {history.steps}")
            return
        point = point_of(history, train_loss, rate) if math.isfinite(loss) else None
        if on_curve:
            note(history, trial.since_evaluation, rate)
        found = self.rungs.score(trial, train_loss)
        self.rungs.reach(trial, found, point)
        if held is None:
            return
        if trial.left == 0:
            self._end(trial, "complete", None, found, held.values)
        else:
            self._pause(trial, held)

    def _pause(self, trial: Trial, held: Weights) -> None:
        """Let a trial wait until its bracket can be judged."""
        slot = slot_of(trial)
        self.stack.empty(slot)
        del self.active[slot]
        trial.waiting, trial.slot = held, None
        self.paused.append(trial)
        self._judge()

    def _judge(self) -> None:
        """Let the paused trials whose brackets can be judged go on, or stop them."""
        for trial in list(self.paused):
            verdict = self.rungs.verdict(trial)
            if verdict is None:
                continue
            self.paused.remove(trial)
            if verdict is True:
                self.queue.append(trial)
            else:
                self._untold.append((trial, "stopped", verdict, None))
        self.queue = in_order(self.queue)

    def _evaluate(self, trial: Trial) -> float:
        """Put the validation metrics into the trial's history; return the summed loss."""
        corpus = self._validation
        loss, hits = self._passes.evaluate(trial, corpus, self.tokens)
        tokens, through = corpus.completion_tokens(range(len(corpus.lengths))), int(corpus.lengths.sum())
        self._work[trial.spec.id] += through
        trial.history.evaluated_tokens += through
        trial.history.metrics = self._examples.metrics(loss, hits, tokens)
        return loss

    def _seat(self, trial: Trial, slot: int) -> None:
        """A waiting trial takes a slot."""
        weights = trial.begin() if trial.waiting is None else trial.waiting
        self.stack.put(slot, trial.layout, weights, trial.spec.hyperparameters, trial.history.steps)
        trial.waiting, trial.slot = None, slot
        self.active[slot] = trial
        self.queue.remove(trial)

    def _end(
        self,
        trial: Trial,
        status: Status,
        message: str | None,
        last_score: float = math.inf,
        values: Tensor | None = None,
    ) -> None:
        """Take a trial out of the pack. Its last score stands for the rungs that it hasn't reached."""
        self._forget(trial)
        if trial.slot is None:
            self.queue.remove(trial)
        else:
            self.stack.empty(trial.slot)
            del self.active[trial.slot]
            trial.slot = None
        self.rungs.leave(trial, last_score)
        self._untold.append((trial, status, message, values))
        self._judge()

    def _split(self, at_work: Sequence[Trial], reason: str) -> None:
        """After an allocator has refused: half as many trials at a time, half as many tokens in a pass.

        What was being done is done again. A trial that doesn't fit all alone, example by example, ends.
        """
        for slot in self.active:
            self.stack.clear_gradients(slot)
        if self.slots == 1 and self.tokens <= self._longest:
            if not at_work:
                raise MemoryError(reason)
            for trial in at_work:
                steps = trial.history.steps
                where = f"in the evaluation after step {steps}" if self._is_due(trial) else f"in step {steps + 1}"
                self._end(trial, "out_of_memory", f"memory ran out {where} of {trial.steps}: {reason}")
            memory.release()
            return
        states = {slot: self.stack.take(slot) for slot in list(self.active)}
        for slot, trial in self.active.items():
            trial.waiting, trial.slot = states[slot], None
        self.queue = in_order([*self.active.values(), *self.queue])
        self.active = {}
        self.slots, self.tokens = max(1, self.slots // 2), max(1, self.tokens // 2)
        del self.stack, self._passes
        memory.release()
        self._note_split(reason)
        self._make_stack()

    def _forget(self, trial: Trial) -> None:
        """Leave unread what losses of a trial are; it ends."""
        for part in self._unread:
            kept = [index for index, (other, *_) in enumerate(part.steps) if other is not trial]
            if len(kept) < len(part.steps):
                part.losses, part.steps = part.losses[kept], [part.steps[index] for index in kept]

    def _note_split(self, reason: str) -> None:
        self._note(f"memory ran out ({reason}): went on with {self.slots} trials and {self.tokens} tokens at a time")

    def _make_stack(self) -> None:
        """Slots for as many trials as memory holds. A trial for which there is no memory at all ends."""
        slots, reason = self.slots, None
        while True:
            size = max((trial.layout.size for trial in self.trials()), default=0)
            try:
                self.stack = Stack(self.slots, size, self.base.device, self._batched)
                break
            except (MemoryError, RuntimeError) as error:
                if not (memory.is_out_of_memory(error) and self.queue):
                    raise
                reason = memory.reason(error)
            memory.release()
            if self.slots > 1:
                self.slots //= 2
            else:
                largest = max(self.queue, key=lambda trial: trial.layout.size)
                self._end(largest, "out_of_memory", f"memory ran out for the adapter itself: {reason}")
                self.slots, reason = slots, None
        if reason is not None:
            self._note_split(reason)
        self._passes = Passes(
            self.base, self.stack, self.slots, self._corpus, self._longest, TILE if self._batched else 1
        )


def _train_loss(trial: Trial) -> float:
    """The mean since the curve's last point, or that point's where the trial still stands there."""
    if trial.since_evaluation.weight:
        return trial.since_evaluation.mean
    return float(trial.history.curve[-1].train_loss or 0.0)
