"""This program: `transfer` on the proxy's trial table, then `propose` on trial records in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from replays.replay import Seen, View
from replays.tables import Configuration
from understudy.artifacts import Proposal
from understudy.hyperparameters import complete
from understudy.search.propose import propose
from understudy.search.transfer import transfer
from understudy.search.window import History
from understudy.sections import TargetSection, TransferSection
from understudy.settings import Method
from understudy.stages import TargetSettings, TransferSettings
from understudy.summary.tables import trials_frame
from understudy.trial import TrialRecord, TrialResult, TrialSpec, search_seed

METHOD: Method = "lora"  # both models are trained alike: no scale between LoRA and full fine-tuning


class Understudy:
    """The product with a sampler of its own choice; `transfer` and `target` are keys of its config.

    `truncated` is how many shorter runs of the target come first, where there are such.
    """

    def __init__(
        self,
        sampler: str,
        transfer: Mapping[str, Any] | None = None,
        target: Mapping[str, Any] | None = None,
        truncated: int = 0,
    ) -> None:
        self._short = truncated
        self._transfer = TransferSettings.model_validate(transfer or {})
        self._target = TargetSettings.model_validate({"trials": 1000, "sampler": sampler, **(target or {})})

    def start(self, view: View, seed: int) -> None:
        self._names, self._seed = tuple(view.space), seed
        section = TransferSection(
            seed=seed, space=dict(view.space), defaults=view.defaults, transfer=self._transfer, method=METHOD
        )
        records = [self._record(self._spec(run, "proxy", view.defaults), run.loss) for run in view.proxy]
        self._regions, self._starts = transfer(
            section, trials_frame(records), *view.cards, view.tokens[1] / view.tokens[0]
        )
        self._section = TargetSection(
            seed=seed,
            window=view.window,
            starts=self._target.starts,
            sampler=self._target.sampler,
            explore=self._target.explore,
            prior_strength=self._target.prior_strength,
            method=METHOD,
        )
        self._proposals: list[Proposal] = []
        self._truncated: list[TrialRecord] = []
        if view.truncated is not None:
            self._run_short(view.truncated)

    def _run_short(self, run: Callable[[Configuration], Seen]) -> None:
        """The shorter runs, one after the other."""
        for number in range(self._short):
            seen = History(visible=tuple(self._truncated))
            spec = propose(self._section, number, self._regions, self._starts, seen, "truncated").spec
            found = run({name: spec.hyperparameters[name] for name in self._names})
            spec = spec.model_copy(update={"hyperparameters": {**spec.hyperparameters, **found.configuration}})
            self._truncated.append(self._record(spec, found.loss))

    def propose(self, history: Sequence[Seen], pending: Sequence[Configuration]) -> Configuration | None:
        self._settle([run.configuration for run in history] + list(pending))
        visible = self._proposals[: len(history)]
        seen = History(
            visible=tuple(self._record(each.spec, run.loss) for each, run in zip(visible, history, strict=True)),
            pending=tuple(self._proposals[len(history) :]),
            truncated=tuple(self._truncated),
        )
        proposal = propose(self._section, len(self._proposals), self._regions, self._starts, seen)
        self._proposals.append(proposal)
        return {name: proposal.spec.hyperparameters[name] for name in self._names}

    def _settle(self, configurations: Sequence[Configuration]) -> None:
        """Put what was really run in place of what was proposed."""
        for number, configuration in enumerate(configurations):
            spec = self._proposals[number].spec
            spec = spec.model_copy(update={"hyperparameters": {**spec.hyperparameters, **configuration}})
            self._proposals[number] = self._proposals[number].model_copy(update={"spec": spec})

    def _spec(self, run: Seen, stage: Any, defaults: Configuration) -> TrialSpec:
        return TrialSpec(
            id=run.id,
            stage=stage,
            origin=run.origin,
            hyperparameters=complete(run.configuration, defaults, METHOD),
            seed=search_seed(self._seed),
        )

    def _record(self, spec: TrialSpec, loss: float) -> TrialRecord:
        complete_ = math.isfinite(loss)
        result = TrialResult(
            digest=spec.id, status="complete" if complete_ else "diverged", objective=loss if complete_ else None
        )
        return TrialRecord(spec=spec, result=result)
