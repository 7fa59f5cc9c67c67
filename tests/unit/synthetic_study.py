"""A whole study with made-up numbers, built from the contract models: what the summary's tests are run on.

The loss is a smooth bowl in (log learning rate, log rank, warm-up) with seeded noise; the proxy's is the same bowl
elsewhere, as a smaller model's would be. Configurations with too high a rate diverge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from understudy.artifacts import (
    Box,
    DecodeResults,
    DecodeTrial,
    Finalist,
    Interval,
    Proposal,
    Region,
    Regions,
    ScaleRule,
    Score,
    Selection,
    Start,
    Starts,
    TestResult,
    Winner,
)
from understudy.config import StudyConfig, parse
from understudy.files import digest
from understudy.hyperparameters import Value, complete
from understudy.settings import Role
from understudy.trial import (
    Cost,
    CurvePoint,
    DataManifest,
    Execution,
    ModelCard,
    ResolvedExecution,
    SplitFile,
    TrialRecord,
    TrialResult,
    TrialSpec,
    finalist_seed,
    search_seed,
)

CONFIG = Path(__file__).parent / "study.yaml"
RATE_FACTOR = 0.42
FIXED: dict[str, Value] = {"weight_decay": 0.123, "lora_alpha": 16}  # by both regions
PROVENANCE = {"python": "3.11.9", "torch": "2.13.0", "host": "node-a", "hardware": "A CPU with 2 cores"}


ROLES: tuple[Role, ...] = ("proxy", "target")


@dataclass
class Study:
    """Everything that `summarise` and `report` read."""

    config: StudyConfig
    proxy: list[TrialRecord]
    targets: list[TrialRecord]
    finalists: list[TrialRecord]
    proposals: list[Proposal]
    regions: Regions
    starts: Starts
    winner: Winner
    test: TestResult
    decode: DecodeResults
    manifest: DataManifest
    executions: dict[Role, Execution]
    cards: list[ModelCard]
    selection: Selection = field(default_factory=lambda: Selection(finalists=()))

    @property
    def records(self) -> list[TrialRecord]:
        return [*self.proxy, *self.targets, *self.finalists]


def loss(values: dict[str, Value], role: str, noise: float) -> float:
    """The made-up validation loss, in nats per token."""
    best_rate = 8e-3 * (1.0 if role == "proxy" else RATE_FACTOR)
    rate = math.log10(float(values["learning_rate"]) / best_rate)
    rank = math.log2(float(values["lora_r"])) - 4
    warmup = float(values["warmup_ratio"]) - 0.1
    floor = 2.31 if role == "proxy" else 1.72
    steep = 2.2 if rate > 0 else 0.28
    return floor + steep * rate**2 + 0.012 * rank**2 + 0.3 * warmup**2 + 0.02 * noise


def record(spec: TrialSpec, noise: float, status: str | None = None, curve: bool = True) -> TrialRecord:
    """A trial with its made-up result; diverged where the loss would be above 4."""
    value = loss(spec.hyperparameters, spec.role, noise)
    found: Any = status or ("diverged" if value > 4 else "complete")
    steps = round(512 * float(spec.hyperparameters["num_train_epochs"]) / float(spec.hyperparameters["batch_size"]))
    size = 2.3e5 if spec.role == "proxy" else 2.2e6
    tokens = steps * int(spec.hyperparameters["batch_size"]) * 60
    points = [
        CurvePoint(
            step=max(1, round(steps * part)),
            tokens=round(tokens * part),
            train_loss=None if part == 0.25 else value + 0.9 * (1 - part),
            eval_loss=value + 0.8 * (1 - part) ** 2,
            learning_rate=float(spec.hyperparameters["learning_rate"]) * (1 - part),
        )
        for part in (0.25, 0.5, 0.75, 1.0)
    ]
    result = TrialResult(
        digest=digest({"id": spec.id, "stage": spec.stage, "values": spec.hyperparameters, "seed": spec.seed}),
        status=found,
        objective=value if found == "complete" else None,
        metrics={"bits_per_byte": value * 0.38} if found == "complete" else {},
        curve=tuple(points) if curve and found == "complete" else (),
        steps=steps,
        message=None if found == "complete" else f"made up: {found}",
        cost=Cost(
            tokens=tokens,
            flops=4 * size * tokens,
            wall_seconds=steps * (0.02 if spec.role == "proxy" else 0.11),
            peak_memory_bytes=int(size * 40),
        ),
        provenance=PROVENANCE,
    )
    return TrialRecord(spec=spec, result=result)


def _values(config: StudyConfig, unit: list[float]) -> dict[str, Value]:
    values = {name: parameter.from_unit(u) for (name, parameter), u in zip(config.space.items(), unit, strict=True)}
    return complete(values, config.defaults, "lora")


def _proxy(config: StudyConfig, generator: np.random.Generator) -> list[TrialRecord]:
    records = []
    for prefix, origin, count in (("r", "random", 16), ("q", "sobol", 24), ("g", "grid", 8), ("d", "default", 4)):
        for number in range(count):
            values = _values(config, list(generator.random(len(config.space))))
            if origin == "default":
                values["learning_rate"] = 0.004 * (1 + number)
            trial = f"{prefix}{number:02d}" if prefix == "d" else f"{prefix}{number:04d}"
            spec = TrialSpec(
                id=trial, stage="proxy", origin=origin, hyperparameters=values, seed=search_seed(config.seed)
            )
            records.append(record(spec, float(generator.normal())))
    return records


def _targets(
    config: StudyConfig, default: dict[str, Value], generator: np.random.Generator
) -> tuple[list[TrialRecord], list[Proposal]]:
    records, proposals = [], []
    for number in range(16):
        values = _values(config, list(generator.random(len(config.space))))
        values["learning_rate"] = float(10 ** generator.normal(-2.5, 0.35))
        kind: Any = "start" if number < 6 else "explore" if number % 5 == 0 else "guided"
        origin: Any = "default" if number == 1 else "transferred" if number < 6 else "refined"
        values = dict(default) if number == 1 else values
        spec = TrialSpec(
            id=f"t{number:04d}",
            stage="target",
            origin=origin,
            hyperparameters=values,
            seed=search_seed(config.seed),
            parents=(f"q{number:04d}",) if number < 6 else (),
        )
        status = "out_of_memory" if number == 9 else None
        records.append(record(spec, float(generator.normal()), status))
        visible = tuple(f"t{i:04d}" for i in range(max(0, number - 3)))
        proposals.append(
            Proposal(
                number=number,
                spec=spec,
                kind=kind,
                region=number % 2 if kind == "guided" else None,
                sampler="transfer" if kind == "start" else "TPESampler",
                visible=visible,
                pending=tuple(f"t{i:04d}" for i in range(max(0, number - 3), number)),
                predicted=loss(values | {"learning_rate": float(values["learning_rate"]) / RATE_FACTOR}, "proxy", 0.0),
            )
        )
    return records, proposals


def _echoes(targets: list[TrialRecord], generator: np.random.Generator) -> list[TrialRecord]:
    records = []
    for number, target in enumerate(targets):
        values = target.spec.hyperparameters
        values = values | {"learning_rate": float(values["learning_rate"]) / RATE_FACTOR}
        spec = TrialSpec(
            id=f"e{number:04d}",
            stage="proxy",
            origin="echo",
            hyperparameters=values,
            seed=target.spec.seed,
            parents=(target.spec.id,),
        )
        records.append(record(spec, float(generator.normal())))
    return records


def _regions(config: StudyConfig, proxy: list[TrialRecord]) -> Regions:
    scored = sorted((r for r in proxy if r.result.objective is not None), key=lambda r: r.result.objective or 0.0)
    top = [r.spec.id for r in scored[:12]]
    halves = (top[::2], top[1::2])
    regions = []
    for number, trials in enumerate(halves):
        boxes = {
            name: Box(
                low=None if hasattr(parameter, "choices") else float(parameter.from_unit(0.2 + 0.2 * number)),
                high=None if hasattr(parameter, "choices") else float(parameter.from_unit(0.6 + 0.2 * number)),
                choices=parameter.choices[: 2 + number] if hasattr(parameter, "choices") else None,
                fixed=FIXED.get(name),
                importance=0.5 if name == "learning_rate" else 0.05,
                reason=f"the region's trials lie here on {name}",
            )
            for name, parameter in config.space.items()
        }
        regions.append(
            Region(
                id=number,
                trials=tuple(trials),
                best_objective=scored[number].result.objective or 0.0,
                mean_objective=2.4 + number / 10,
                share=0.6 if number == 0 else 0.4,
                volume=0.02,
                boxes=boxes,
                reason=f"cluster {number} of the best quarter & its <padding>",
            )
        )
    rule = ScaleRule(factor=RATE_FACTOR, rule="(64 / 192)^0.781 = 0.42", source="LoRA Without Regret (2025)")
    return Regions(
        trials=len(proxy),
        complete=len(scored),
        top=len(top),
        threshold=scored[11].result.objective or 0.0,
        median_objective=scored[len(scored) // 2].result.objective or 0.0,
        default_objective=2.6,
        scale={"learning_rate": rule},
        space=dict(config.space),
        regions=tuple(regions),
    )


def _finalists(
    config: StudyConfig, targets: list[TrialRecord], default: dict[str, Value], generator: np.random.Generator
) -> tuple[list[TrialRecord], Selection, Winner]:
    scored = sorted((r for r in targets if r.result.objective is not None), key=lambda r: r.result.objective or 0.0)
    chosen = [(None, default)] + [(r.spec.id, r.spec.hyperparameters) for r in scored[:2]]
    records: list[TrialRecord] = []
    for rank, (trial, values) in enumerate(chosen):
        for index in range(3):
            spec = TrialSpec(
                id=f"f{rank}s{index}",
                stage="finalist",
                origin="default" if rank == 0 else "refined",
                hyperparameters=values,
                seed=finalist_seed(config.seed, index),
                parents=(trial,) if trial else (),
            )
            records.append(record(spec, float(generator.normal())))
    scores = []
    for rank in range(3):
        objectives = tuple(r.result.objective for r in records[3 * rank : 3 * rank + 3])
        known = [value for value in objectives if value is not None]
        mean, deviation = float(np.mean(known)), float(np.std(known, ddof=1))
        scores.append(Score(rank=rank, objectives=objectives, mean=mean, standard_deviation=deviation))
    best = min(scores, key=lambda score: score.mean or 0.0).rank
    finalists = tuple(
        Finalist(
            rank=rank, trial=trial, origin="default" if rank == 0 else "refined", objective=None, hyperparameters=values
        )
        for rank, (trial, values) in enumerate(chosen)
    )
    winner = Winner(
        rank=best,
        hyperparameters=chosen[best][1],
        digests=tuple(r.result.digest for r in records[3 * best : 3 * best + 3]),
        default_digests=tuple(r.result.digest for r in records[:3]),
        scores=tuple(scores),
    )
    return records, Selection(finalists=finalists), winner


def _card(role: Any, hidden: int, layers: int, parameters: int, quantization: Any) -> ModelCard:
    return ModelCard(
        role=role,
        source="pretrained",
        name=f"llama-{hidden}x{layers}",
        path=f"cache/models/{role}",
        sha256=digest(role) * 2,
        model_type="llama",
        hidden_size=hidden,
        num_hidden_layers=layers,
        vocab_size=2048,
        parameters=parameters,
        quantization=quantization,
    )


def _interval(value: float, half: float) -> Interval:
    return Interval(value=value, low=value - half, high=value + half, confidence=0.95)


def make(seed: int = 7) -> Study:
    """A study of 52 proxy trials, their 16 echoes, 16 target trials and 9 finalist runs."""
    config = parse(yaml.safe_load(CONFIG.read_text(encoding="utf-8")))
    generator = np.random.default_rng(seed)
    default = complete({"learning_rate": 1.2e-3}, config.defaults, "lora")
    proxy = _proxy(config, generator)
    regions = _regions(config, proxy)
    targets, proposals = _targets(config, default, generator)
    finalists, selection, winner = _finalists(config, targets, default, generator)
    means = {score.rank: score.mean or 0.0 for score in winner.scores}
    gain = means[0] - means[winner.rank]
    start = Start(hyperparameters=default, origin="default", parents=("d00",), expected_rank=None, reason="default")
    settings = ResolvedExecution(
        device="cpu", threads=1, processes=1, micro_batch_size=8, dtype="float32", gradient_checkpointing=False
    )
    splits: Any = {
        name: SplitFile(examples=count, sha256=digest(name) * 2)
        for name, count in (("train", 4000), ("validation", 500), ("test", 480))
    }
    return Study(
        config=config,
        proxy=proxy + _echoes(targets, generator),
        targets=targets,
        finalists=finalists,
        proposals=proposals,
        regions=regions,
        starts=Starts(default=default, starts=(start,)),
        winner=winner,
        test=TestResult(
            looks=1,
            examples=480,
            seeds=3,
            winner_loss=_interval(1.745, 0.05),
            default_loss=_interval(1.745 + gain, 0.05),
            gain=_interval(gain, 0.015),
            validation_gain=_interval(gain, 0.012),
        ),
        decode=DecodeResults(
            examples=32,
            trials=tuple(
                DecodeTrial(
                    id=f"b{i}",
                    generation={"do_sample": bool(i), "num_beams": 1, "temperature": 1.0 - i / 10},
                    chrf=31.5 - i,
                    exact_match=0.03,
                    mean_new_tokens=17.2,
                    wall_seconds=3.1,
                )
                for i in range(4)
            ),
        ),
        manifest=DataManifest(
            task="docstrings",
            source={"interpreter": "CPython 3.11.9"},
            counts={"found": 5200, "too_short": 220, "kept": 4980},
            splits=splits,
            max_length=96,
            train_examples=512,
            validation_examples=256,
            test_examples=None,
        ),
        executions={
            role: Execution(role=role, resolved=settings, notes=("device: cpu, since torch sees no GPU",))
            for role in ROLES
        },
        cards=[_card("proxy", 64, 2, 230_000, "nf4"), _card("target", 192, 4, 2_200_000, "none")],
        selection=selection,
    )
