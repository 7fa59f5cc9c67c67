"""A study whose training takes no time: all of its trials are in the store before it starts, with made-up numbers.

Everything else is real: data, base models, finalists, test and decoding, all of them tiny. The trials of both stages
are planned and proposed here by the same functions as in the workflow's commands, so that these find each trial.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from understudy import graph
from understudy.artifacts import Proposal
from understudy.config import StudyConfig, parse
from understudy.files import read_model
from understudy.hyperparameters import Value
from understudy.paths import StudyPaths
from understudy.search.planning import plan_echo, plan_pack
from understudy.search.propose import needs_history, propose
from understudy.search.transfer import transfer
from understudy.search.window import History, pending, visible
from understudy.sections import sections
from understudy.settings import Role
from understudy.stages import TargetSettings
from understudy.store import Store
from understudy.summary.tables import trials_frame
from understudy.trial import (
    Cost,
    CurvePoint,
    DataManifest,
    Execution,
    ModelCard,
    TrialInputs,
    TrialRecord,
    TrialResult,
    TrialSpec,
    trial_digest,
)

ROOT = Path(__file__).parents[2]
DEFAULTS = 3  # known-good configurations among the proxy's trials
WINDOW: int = TargetSettings.model_fields["window"].default
STARTS: int = TargetSettings.model_fields["starts"].default


@dataclass(frozen=True)
class Size:
    """How many trials of each stage a study has; the echoes are as many as the target's."""

    proxy: int
    target: int

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.proxy}x{self.target}"


def raw_config(size: Size, folder: Path, sampler: str) -> dict[str, Any]:
    """The study: the default study's space, the tiny one's data and models, the schema's pack size and window."""
    examples = ROOT / "config"
    raw: dict[str, Any] = yaml.safe_load((examples / "examples" / "tiny.yaml").read_text(encoding="utf-8"))
    default = yaml.safe_load((examples / "config.yaml").read_text(encoding="utf-8"))
    drawn = size.proxy - DEFAULTS
    target = {"trials": size.target, "sampler": sampler, "window": max(1, min(WINDOW, size.target // 4))}
    if sampler != "two_fidelity":
        target["starts"] = min(STARTS, size.target)
    return raw | {
        "results": "results",
        "cache": str(folder.parent / "cache"),
        "space": default["space"],
        "defaults": default["defaults"],
        "proxy": {"random": drawn - drawn // 2, "sobol": drawn // 2},
        "target": target,
    }


class Filler:
    """Puts the trials of a prepared study into its store."""

    def __init__(self, raw: Mapping[str, Any], folder: Path) -> None:
        self.study: StudyConfig = parse(dict(raw))
        self.paths = StudyPaths(folder / self.study.results)
        self.sections: dict[str, Any] = dict(sections(self.study))
        self.store = Store(self.paths.store)
        self.cards = {role: read_model(self.paths.model(role), ModelCard) for role in ("proxy", "target")}
        self.inputs = {role: self._inputs(role) for role in ("proxy", "target")}

    def fill(self) -> int:
        """Plan, propose and "train" everything; return how many trials that were."""
        search, card = self.sections["search"], self.cards["proxy"]
        execution = self.inputs["proxy"].execution
        packs = [plan_pack(search, card, execution, id, place) for id, place in graph.proxy_packs(self.study).items()]
        proxy = self._train([spec for pack in packs for spec in pack.specs])
        regions, starts = transfer(self.sections["transfer"], trials_frame(proxy), card, self.cards["target"])
        proposals: list[Proposal] = []
        target: list[TrialRecord] = []
        settings, window = self.sections["target"], self.study.target.window
        for number in range(self.study.target.trials):
            history = History()
            if needs_history(settings, number, starts):
                seen, running = visible(number, window), pending(number, window)
                history = History(tuple(target[n] for n in seen), tuple(proposals[n] for n in running))
            proposals.append(propose(settings, number, regions, starts, history))
            target += self._train([proposals[-1].spec])
        echoes = [
            plan_echo(search, card, execution, regions.scale, id, [proposals[n] for n in place.numbers])
            for id, place in graph.echo_packs(self.study).items()
        ]
        return len(proxy) + len(target) + len(self._train([spec for pack in echoes for spec in pack.specs]))

    def _train(self, specs: Iterable[TrialSpec]) -> list[TrialRecord]:
        records = [made_up(spec, self.inputs[spec.role]) for spec in specs]
        for record in records:
            self.store.save(record)
        return records

    def _inputs(self, role: Role) -> TrialInputs:
        return TrialInputs(
            data=read_model(self.paths.manifest, DataManifest),
            model=self.cards[role],
            execution=read_model(self.paths.execution(role), Execution).resolved,
            training=self.study.training,
        )


def made_up(spec: TrialSpec, inputs: TrialInputs) -> TrialRecord:
    """A finished trial whose loss follows from its configuration alone."""
    digest = trial_digest(spec, inputs)
    last = loss(spec.hyperparameters, int(digest[:8], 16) / 16**8)
    points = inputs.training.evaluations
    curve = [
        CurvePoint(
            step=i, tokens=100 * i, train_loss=last + 0.1, eval_loss=last + 0.1 * (points - i), learning_rate=0.0
        )
        for i in range(1, points + 1)
    ]
    result = TrialResult(
        digest=digest,
        status="complete",
        objective=last,
        metrics={"eval_loss": last},
        curve=tuple(curve),
        steps=points,
        cost=Cost(tokens=100 * points, flops=1e9, wall_seconds=0.1, peak_memory_bytes=2**28),
        provenance={"made_up": "yes"},
    )
    return TrialRecord(spec=spec, result=result)


def loss(values: Mapping[str, Value], luck: float) -> float:
    """A bowl in the learning rate and less in the rest; `luck` in [0, 1) moves it by 0.02."""
    rate = math.log10(float(values["learning_rate"]) / 4e-3)
    rest = float(values["warmup_ratio"]) + 0.1 * float(values["lora_dropout"])
    return 5 + 0.3 * rate**2 + 0.1 * rest + 0.02 * luck


def sizes(given: Sequence[str]) -> list[Size]:
    """`PROXYxTARGET` as sizes; a number N alone has N proxy trials and about 2·√N of the target, at least 4."""
    found = []
    for text in given:
        proxy, _, target = text.partition("x")
        count = int(target) if target else max(4, round(2 * math.sqrt(int(proxy))))
        found.append(Size(int(proxy), count))
    return found
