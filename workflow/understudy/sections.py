"""The settings that each command reads: a slice of the config, so that a change reaches only whom it concerns.

The workflow writes each slice to `results/settings/{name}.json`. Numbers of trials are in none of them: they
shape the graph, and raising one must not touch what is finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from understudy.hyperparameters import ALL_LINEAR, Value
from understudy.settings import (
    DataSettings,
    DecodeSettings,
    ExecutionSettings,
    Method,
    ModelSettings,
    Role,
    RunningSettings,
    Sampler,
    Section,
    TestSettings,
    TrainingSettings,
)
from understudy.space import SearchSpace
from understudy.stages import EarlyStoppingSettings, HalvingSettings, ProxySettings, StopSettings, TransferSettings

if TYPE_CHECKING:  # whole configs are the workflow's alone
    from understudy.config import StudyConfig

SomeSection = TypeVar("SomeSection", bound=Section)


class DataSection(Section):
    """For `prepare_data`."""

    seed: int
    cache: str
    data: DataSettings
    sources: dict[str, str] = Field(default_factory=dict)  # `data.sources.fingerprints`, to notice changed files

    @model_serializer(mode="wrap")
    def _without_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Of built-in data there are none, and a slice stays as it was before there were any."""
        values: dict[str, Any] = serialize(self)
        return {name: value for name, value in values.items() if name != "sources" or value}


class ModelSection(Section):
    """For `prepare_model`."""

    seed: int
    cache: str
    role: Role
    model: ModelSettings
    threads: int
    lora_target_modules: tuple[str, ...] = ()  # values that name layers, which the model must have


class ExecutionSection(Section):
    """For `prepare_execution`."""

    execution: ExecutionSettings
    method: Method = "lora"  # of the target


class RunningSection(Section):
    """For every command that trains. What finished with other values stays finished."""

    running: RunningSettings


class TrainingSection(Section):
    """For every command that trains or evaluates."""

    training: TrainingSettings


class SearchSection(Section):
    """For planning the proxy stage."""

    seed: int
    space: SearchSpace
    defaults: dict[str, Value]
    grid: dict[str, tuple[Value, ...]]
    fidelity: float = 1.0
    halving: HalvingSettings | None = None


class TransferSection(Section):
    """For the transfer."""

    seed: int
    space: SearchSpace
    defaults: dict[str, Value]
    transfer: TransferSettings
    fidelity: float = 1.0  # of the proxy's trials
    method: Method


class TargetSection(Section):
    """For the target's proposals."""

    seed: int
    window: int
    starts: int
    sampler: Sampler
    explore: float
    prior_strength: float
    stop: StopSettings | None = None
    fidelity: float = 1.0  # of truncated runs
    early_stopping: EarlyStoppingSettings | None = None
    evaluations: int | None = None  # of each trial; only where trials are stopped early
    method: Method


class FinalistSection(Section):
    """For choosing finalists and a winner."""

    seed: int
    configurations: int
    seeds: int


class TestSection(Section):
    """For the final test."""

    seed: int
    test: TestSettings


class DecodeSection(Section):
    """For the decoding search."""

    seed: int
    decode: DecodeSettings


class SummarySection(Section):
    """For tables, figures and the report."""

    seed: int
    space: SearchSpace
    confidence: float
    sampler: Sampler


def sections(config: StudyConfig, sources: Mapping[str, str] | None = None) -> dict[str, Section]:
    """Every slice of a config by name. `sources` are the digests of the user's files."""
    shared: dict[str, Any] = {"seed": config.seed, "space": config.space}
    target = config.target
    return {
        "study": config,
        "data": DataSection(seed=config.seed, cache=config.cache, data=config.data, sources=dict(sources or {})),
        **{f"model-{role}": _model(config, role) for role in ("proxy", "target")},
        "execution": ExecutionSection(execution=_part(ExecutionSettings, config.execution), method=target.method),
        "running": RunningSection(running=_part(RunningSettings, config.execution)),
        "training": TrainingSection(training=config.training),
        "search": SearchSection(
            **shared,
            defaults=config.defaults,
            grid=config.proxy.grid,
            fidelity=config.proxy.fidelity,
            halving=_halving(config.proxy),
        ),
        "transfer": TransferSection(
            **shared,
            defaults=config.defaults,
            transfer=config.transfer,
            fidelity=config.proxy.fidelity,
            method=target.method,
        ),
        "target": TargetSection(
            seed=config.seed,
            window=target.window,
            starts=target.starts,
            sampler=target.sampler,
            explore=target.explore,
            prior_strength=target.prior_strength,
            stop=target.stop,
            fidelity=target.truncated.fidelity if target.truncated else 1.0,
            early_stopping=target.early_stopping,
            evaluations=config.training.evaluations if target.early_stopping is not None else None,
            method=target.method,
        ),
        "finalists": FinalistSection(
            seed=config.seed, configurations=config.finalists.configurations, seeds=config.finalists.seeds
        ),
        "test": TestSection(seed=config.seed, test=config.test),
        "decode": DecodeSection(seed=config.seed, decode=config.decode),
        "summary": SummarySection(**shared, confidence=config.test.confidence, sampler=target.sampler),
    }


def _model(config: StudyConfig, role: Role) -> ModelSection:
    model: ModelSettings = getattr(config.models, role)
    threads = getattr(config.execution, role).threads
    modules = "lora_target_modules"
    named = {str(value) for value in (*config.values_of(modules), config.defaults.get(modules, ALL_LINEAR))}
    return ModelSection(
        seed=config.seed,
        cache=config.cache,
        role=role,
        model=model,
        threads=threads,
        lora_target_modules=tuple(sorted(named - {ALL_LINEAR}))
        if role == "proxy" or config.target.method == "lora"
        else (),
    )


def _part(model: type[SomeSection], whole: Section) -> SomeSection:
    """Those keys of a section that `model` has."""
    return model(**{name: getattr(whole, name) for name in model.model_fields})


def _halving(proxy: ProxySettings) -> HalvingSettings | None:
    """With the bracket's size decided."""
    return proxy.halving and proxy.halving.model_copy(update={"bracket": proxy.bracket})
