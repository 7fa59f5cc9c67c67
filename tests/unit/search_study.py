"""A study whose trials are made up: what the search's tests run on.

The loss is a quadratic bowl in unit-like coordinates with a known optimum; the target's is the proxy's, moved along the
learning rate by the width rule. Rates above six times the best one diverge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from understudy.artifacts import Proposal, Regions, Starts
from understudy.config import StudyConfig, parse
from understudy.files import digest, write_json
from understudy.graph import PackRange, known_defaults
from understudy.search.planning import plan_pack
from understudy.search.propose import needs_history, propose
from understudy.search.transfer import transfer
from understudy.search.window import History, read_history
from understudy.sections import SearchSection, TargetSection, TransferSection, sections
from understudy.summary.tables import trials_frame
from understudy.trial import (
    CurvePoint,
    ModelCard,
    Pack,
    Packing,
    ResolvedExecution,
    TrialRecord,
    TrialResult,
    TrialSpec,
)

CONFIG = Path(__file__).parent / "study.yaml"
BEST_PROXY_RATE = 8e-3

Loss = Callable[[TrialSpec], float]


def config(**changes: Any) -> StudyConfig:
    """The shipped config with keys replaced, such as `target__window=2`."""
    raw = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = raw
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    return parse(raw)


def four_configurations(**changes: Any) -> StudyConfig:
    """A study whose space holds four."""
    return config(
        space={"learning_rate": [1e-3, 1e-2], "lora_r": [4, 16]},
        proxy__grid={},
        target__starts=1,
        transfer__learning_rate_exponent=0.0,
        defaults__learning_rate=1e-2,
        defaults__lora_r=16,
        **changes,
    )


def unsearched(name: str, defaults: dict[str, float], method: str = "lora") -> StudyConfig:
    """The shipped config without a hyperparameter in its space and grid, and with more defaults."""
    base = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    return config(
        space={key: value for key, value in base["space"].items() if key != name},
        proxy__grid={key: value for key, value in base["proxy"]["grid"].items() if key != name},
        defaults={**base["defaults"], **defaults},
        target__method=method,
    )


def card(role: str, hidden_size: int, model_type: str = "llama") -> ModelCard:
    return ModelCard(
        role=role,
        source="pretrained",
        name=role,
        path="nowhere",
        sha256="0" * 64,
        model_type=model_type,
        hidden_size=hidden_size,
        num_hidden_layers=2,
        vocab_size=2048,
        parameters=hidden_size**2,
        quantization="none",
    )


PROXY, TARGET = card("proxy", 64), card("target", 192)
EXECUTION = ResolvedExecution(
    device="cpu",
    threads=1,
    processes=1,
    micro_batch_size=32,
    dtype="float32",
    gradient_checkpointing=False,
    packing=Packing(trials=8, tokens=1024, dense=True),
)
FACTOR = (64 / 192) ** 0.781


def bowl(spec: TrialSpec) -> float:
    """The made-up loss: the learning rate matters most, then the rank's closeness to 16, then warm-up."""
    values = spec.hyperparameters
    best = BEST_PROXY_RATE * (FACTOR if spec.role == "target" else 1.0)
    rate = math.log10(float(values["learning_rate"]) / best)
    rank = math.log2(float(values.get("lora_r", 16))) - 4
    warmup = float(values["warmup_ratio"]) - 0.1
    return 2.0 + 0.5 * rate**2 + 0.05 * rank**2 + 2.0 * warmup**2


def elsewhere(spec: TrialSpec) -> float:
    """On the target the best rate is a hundredth of what the proxy says."""
    rate = math.log10(float(spec.hyperparameters["learning_rate"]) / (BEST_PROXY_RATE * FACTOR / 100))
    return 2 + rate**2


def rate_of(record: TrialRecord) -> float:
    return float(record.spec.hyperparameters["learning_rate"])


def record(spec: TrialSpec, loss: Loss = bowl, status: str | None = None) -> TrialRecord:
    """The made-up result of a trial."""
    best = BEST_PROXY_RATE * (FACTOR if spec.role == "target" else 1.0)
    found: Any = status or ("diverged" if float(spec.hyperparameters["learning_rate"]) > 6 * best else "complete")
    name = digest({"values": spec.hyperparameters, "seed": spec.seed, "stage": spec.stage})
    return TrialRecord(
        spec=spec, result=TrialResult(digest=name, status=found, objective=loss(spec) if found == "complete" else None)
    )


def stopped(record: TrialRecord, excess: float) -> TrialRecord:
    """The trial as halving leaves it: no objective, and a last loss above what it would have had."""
    loss = (record.result.objective or 0.0) + excess
    point = CurvePoint(step=1, tokens=100, train_loss=None, eval_loss=loss, learning_rate=1e-3)
    lost = {"status": "stopped", "objective": None, "curve": (point,), "message": "not among the best"}
    return record.model_copy(update={"result": record.result.model_copy(update=lost)})


def section(study: StudyConfig, name: str) -> Any:
    """A command's settings as it reads them: through JSON."""
    made = sections(study)[name]
    return type(made).model_validate_json(made.model_dump_json())


def planned(settings: SearchSection, origin: str, first: int, count: int, proxy: ModelCard = PROXY) -> Pack:
    """A pack of trials `first` to `first + count - 1`."""
    return plan_pack(settings, proxy, EXECUTION, f"{origin}-000", PackRange(origin, first, count, 0, count))


def proxy_records(study: StudyConfig, loss: Loss = bowl, proxy: ModelCard = PROXY) -> list[TrialRecord]:
    """The proxy stage's made-up trials."""
    settings: SearchSection = section(study, "search")
    grid = math.prod(len(values) for values in study.proxy.grid.values()) if study.proxy.grid else 0
    counts = {"random": study.proxy.random, "sobol": study.proxy.sobol, "grid": grid, "default": known_defaults(study)}
    specs = [
        spec for origin, count in counts.items() if count for spec in planned(settings, origin, 0, count, proxy).specs
    ]
    return [record(spec, loss) for spec in specs]


def transferred(
    study: StudyConfig, loss: Loss = bowl, proxy: ModelCard = PROXY, target: ModelCard = TARGET
) -> tuple[Regions, Starts]:
    """Regions and starts of the made-up proxy stage."""
    settings: TransferSection = section(study, "transfer")
    return transfer(settings, trials_frame(proxy_records(study, loss, proxy)), proxy, target)


def next_proposal(
    study: StudyConfig,
    folder: Path,
    number: int,
    regions: Regions,
    starts: Starts,
    stage: Literal["truncated", "target"] = "target",
    truncated: Sequence[Path] = (),
) -> Proposal:
    """What the command does, without writing."""
    settings: TargetSection = section(study, "target")
    known = needs_history(settings, number, starts)
    history = read_history(folder, number, settings.window, truncated) if known else History()
    return propose(settings, number, regions, starts, history, stage)


def run_target(
    study: StudyConfig,
    folder: Path,
    regions: Regions,
    starts: Starts,
    count: int,
    loss: Loss = bowl,
    stage: Literal["truncated", "target"] = "target",
    truncated: Sequence[Path] = (),
) -> list[TrialRecord]:
    """Propose and "train" the first `count` target trials below `folder`, one after the other."""
    records = []
    for number in range(count):
        proposal = next_proposal(study, folder, number, regions, starts, stage, truncated)
        records.append(record(proposal.spec, loss, "skipped" if proposal.skip else None))
        write_json(folder / f"{number:04d}" / "proposal.json", proposal)
        write_json(folder / f"{number:04d}" / "result.json", records[-1])
    return records


def best_of(records: Sequence[TrialRecord]) -> float:
    """The lowest objective."""
    return min(r.result.objective for r in records if r.result.objective is not None)
