"""Conditional hyperparameters from the plan of the proxy's trials to the target's last proposal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import search_study as made
from understudy.artifacts import Proposal
from understudy.config import StudyConfig
from understudy.files import read_model
from understudy.hyperparameters import Value
from understudy.search.planning import plan_echo
from understudy.space import consistent
from understudy.trial import TrialSpec

SCHEDULES = ["linear", "cosine"]


def study(**changes: Any) -> StudyConfig:
    """The warm-up is searched for two of three schedules, the dropout for high ranks."""
    space = yaml.safe_load(made.CONFIG.read_text(encoding="utf-8"))["space"]
    order = ["learning_rate", "lora_r", "lr_scheduler_type"]
    space = {name: space[name] for name in [*order, *(name for name in space if name not in order)]}
    space["warmup_ratio"]["when"] = {"lr_scheduler_type": SCHEDULES}
    space["lora_dropout"]["when"] = {"lora_r": [16, 32]}
    return made.config(space=space, **changes)


def proposals(folder: Path) -> list[Proposal]:
    return [read_model(path, Proposal) for path in sorted(folder.glob("*/proposal.json"))]


def long_warmup(spec: TrialSpec) -> float:
    """A loss that is best with a long warm-up, which only two schedules have."""
    return made.bowl(spec) + 20 * (float(spec.hyperparameters["warmup_ratio"]) - 0.2) ** 2


def holds(values: Mapping[str, Value]) -> bool:
    """Whether what is not to be searched has its default."""
    rests = values["lr_scheduler_type"] in SCHEDULES or values["warmup_ratio"] == 0.03
    return rests and (values.get("lora_r", 16) in (16, 32) or values["lora_dropout"] == 0.05)


def test_the_proxys_trials_rest_where_they_should() -> None:
    settings = made.section(
        study(proxy__grid={"lr_scheduler_type": ["cosine", "constant_with_warmup"], "warmup_ratio": [0, 0.2]}), "search"
    )
    for origin, count in (("random", 16), ("sobol", 24), ("grid", 4)):
        found = [spec.hyperparameters for spec in made.planned(settings, origin, 0, count).specs]
        assert all(holds(values) for values in found)
        searched = {values["warmup_ratio"] for values in found if values["lr_scheduler_type"] in SCHEDULES}
        assert len(searched) > 1
        assert 0.03 not in searched
    plain = made.section(made.config(), "search")
    first = made.planned(plain, "random", 0, 16).specs
    assert not all(holds(spec.hyperparameters) for spec in first)


@pytest.mark.parametrize("sampler", ["two_fidelity", "tpe", "random"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_targets_trials_rest_where_they_should(sampler: str, method: str, tmp_path: Path) -> None:
    config = study(
        target__sampler=sampler, target__method=method, target__explore=0.5 if sampler != "two_fidelity" else 0.2
    )
    regions, starts = made.transferred(config, long_warmup)
    records = made.run_target(config, tmp_path, regions, starts, 8, long_warmup)
    found = [record.spec.hyperparameters for record in records]
    assert all(holds(values) for values in found)
    assert all(consistent(regions.space, values) == values for values in found)
    assert len({tuple(values.items()) for values in found}) == 8
    assert sum(values["warmup_ratio"] != 0.03 for values in found) > 2
    if sampler == "two_fidelity":
        best = min(records, key=lambda record: long_warmup(record.spec)).spec.hyperparameters
        assert best["warmup_ratio"] == pytest.approx(0.2, abs=0.05)


def test_what_rests_was_neither_drawn_nor_fixed(tmp_path: Path) -> None:
    config = study(target__sampler="tpe", target__starts=1, transfer__fix_below=0.05)
    made.run_target(config, tmp_path, *made.transferred(config), 12)
    resting = 0
    for proposal in proposals(tmp_path):
        if proposal.spec.hyperparameters["lr_scheduler_type"] not in SCHEDULES:
            resting += 1
            assert "warmup_ratio" not in (*proposal.redrawn, *proposal.fixed)
    assert resting


def test_an_echo_rests_on_the_proxy_too(tmp_path: Path) -> None:
    config = study(target__method="full")
    regions, starts = made.transferred(config)
    made.run_target(config, tmp_path, regions, starts, 8)
    settings = made.section(config, "search")
    pack = plan_echo(settings, made.PROXY, made.EXECUTION, regions.scale, "echo-000", proposals(tmp_path))
    assert len(pack.specs) == 8
    assert all(holds(spec.hyperparameters) for spec in pack.specs)
