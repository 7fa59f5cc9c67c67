"""When the default configuration is run on the target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import search_study as made
from understudy.artifacts import Proposal
from understudy.files import read_model
from understudy.search import propose
from understudy.search.values import identity
from understudy.search.window import History
from understudy.trial import TrialSpec

STUDY = made.config(target__sampler="two_fidelity", target__window=1)


def test_the_default_is_run_among_the_first(tmp_path: Path) -> None:
    regions, starts = made.transferred(STUDY)
    records = made.run_target(STUDY, tmp_path, regions, starts, propose.CHECK + 1)
    assert len(records) == 3
    assert starts.default in [record.spec.hyperparameters for record in records]


@pytest.mark.parametrize(
    ("happened", "next_one"),
    [("diverged", True), ("out_of_memory", False), ("worse than the median", True), ("better than the median", False)],
)
def test_a_disappointing_target_gets_the_default_next(happened: str, next_one: bool) -> None:
    """A larger model that does worse than half of the proxy's trials, where the proxy was best."""

    def low_rank(spec: TrialSpec) -> float:
        return made.bowl(spec) + 0.1 * float(spec.hyperparameters["lora_r"])

    regions, starts = made.transferred(STUDY, low_rank)
    assert regions.surface is not None
    loss = regions.surface.centre + (0.01 if happened == "worse than the median" else -0.01)
    settings = made.section(STUDY, "target")
    first = propose.propose(settings, 0, regions, starts, History()).spec
    status = happened if happened in ("diverged", "out_of_memory") else "complete"
    seen = made.record(first, lambda _: loss, status)
    second = propose.propose(settings, 1, regions, starts, History(visible=(seen,))).spec.hyperparameters
    assert first.hyperparameters != starts.default
    assert (second == starts.default) == next_one
    if happened != "diverged":
        short = propose.propose(settings, 1, regions, starts, History(visible=(seen,)), "truncated")
        assert short.spec.hyperparameters != starts.default, "a part of the steps does worse anyway"


def test_the_default_is_not_proposed_again_while_it_runs(tmp_path: Path) -> None:
    study = made.config(target__sampler="two_fidelity", target__window=4)
    found, settings = made.transferred(study), made.section(study, "target")
    default = found[1].default
    first = made.next_proposal(study, tmp_path, 0, *found)
    running = first.model_copy(update={"spec": first.spec.model_copy(update={"hyperparameters": default})})
    assert propose.propose(settings, propose.CHECK, *found, History()).spec.hyperparameters == default
    again = propose.propose(settings, propose.CHECK, *found, History(pending=(running,)))
    assert again.spec.hyperparameters != default


@pytest.mark.parametrize("sampler", ["two_fidelity", "tpe", "gp", "random"])
def test_a_default_may_have_no_place_on_a_log_scale(tmp_path: Path, sampler: str) -> None:
    """Weight decay is searched from 1e-4 on; the default configuration, a trial of both stages, has none."""
    few: dict[str, Any] = {} if sampler == "two_fidelity" else {"target__starts": 2}
    study = made.config(target__sampler=sampler, space__weight_decay={"low": 1e-4, "high": 0.1, "log": True}, **few)
    regions, starts = made.transferred(study)
    assert starts.default["weight_decay"] == 0
    records = made.run_target(study, tmp_path, regions, starts, propose.CHECK + 5)
    tried = [identity(record.spec.hyperparameters) for record in records]
    assert len(set(tried)) == len(tried)
    decays = [record.spec.hyperparameters["weight_decay"] for record in records]
    assert all(decay == 0 or 1e-4 <= float(decay) <= 0.1 for decay in decays)
    assert max(decays) > 0
    if sampler == "two_fidelity":
        assert starts.default in [record.spec.hyperparameters for record in records]
        first = read_model(tmp_path / "0000" / "proposal.json", Proposal)
        assert first.kind == "start"
        assert first.spec.hyperparameters in [start.hyperparameters for start in starts.starts]
