"""Truncated runs of the target: a fidelity between the proxy and whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest

import search_study as made
from understudy.artifacts import Proposal, Regions, Starts
from understudy.errors import UserError
from understudy.files import read_model, write_json
from understudy.search import propose
from understudy.trial import TrialRecord

SHORT = made.config(
    target__sampler="two_fidelity", target__window=1, target__truncated={"trials": 12, "fidelity": 0.25}
)


def run_short(folder: Path, found: tuple[Regions, Starts], loss: made.Loss) -> list[Path]:
    """Truncated runs below `folder`; their results."""
    made.run_target(SHORT, folder, *found, 12, loss, "truncated")
    return sorted(folder.glob("*/result.json"))


def test_truncated_runs_come_first_and_are_told_apart(tmp_path: Path) -> None:
    found = made.transferred(SHORT)
    short = run_short(tmp_path / "short", found, made.bowl)
    records = made.run_target(SHORT, tmp_path / "whole", *found, 3, truncated=short)
    specs = [read_model(path, TrialRecord).spec for path in short]
    assert [spec.id for spec in specs] == [f"u{number:04d}" for number in range(12)]
    assert {(spec.stage, spec.fidelity, spec.role) for spec in specs} == {("truncated", 0.25, "target")}
    assert {(record.spec.stage, record.spec.fidelity) for record in records} == {("target", 1.0)}
    proposal = read_model(tmp_path / "whole" / "0001" / "proposal.json", Proposal)
    assert proposal.visible == (*(spec.id for spec in specs), "t0000")


def test_what_was_best_in_short_is_run_first_in_full(tmp_path: Path) -> None:
    """The proxy misleads, truncated runs don't: with them the first trial is near the optimum, without far from it."""
    found = made.transferred(SHORT)
    short = run_short(tmp_path / "short", found, made.elsewhere)
    first = made.run_target(SHORT, tmp_path / "with", *found, 1, made.elsewhere, truncated=short)[0]
    best = min((read_model(path, TrialRecord) for path in short), key=lambda record: made.elsewhere(record.spec))
    assert made.elsewhere(first.spec) <= made.elsewhere(best.spec) + 0.1
    assert first.spec.parents
    assert made.elsewhere(made.run_target(SHORT, tmp_path / "without", *found, 1, made.elsewhere)[0].spec) > 4


def test_what_was_best_in_short_counts_while_others_run(tmp_path: Path) -> None:
    """The proxy misleads, and no proposal sees a whole run: those before it are running. The third is the default's."""
    wide = made.config(target__sampler="two_fidelity", target__window=4, target__truncated={"trials": 12})
    found = made.transferred(wide)
    short = run_short(tmp_path / "short", found, made.elsewhere)
    told = made.run_target(wide, tmp_path / "with", *found, propose.CHECK, made.elsewhere, truncated=short)
    untold = made.run_target(wide, tmp_path / "without", *found, propose.CHECK, made.elsewhere)
    assert max(made.elsewhere(record.spec) for record in told) < 3
    assert min(made.elsewhere(record.spec) for record in untold) > 4


def test_truncated_runs_that_all_failed_lower_the_rate(tmp_path: Path) -> None:
    found = made.transferred(SHORT)
    short = run_short(tmp_path / "short", found, made.bowl)
    rates = []
    for path in short:
        record = read_model(path, TrialRecord)
        lost = record.result.model_copy(update={"status": "diverged", "objective": None})
        write_json(path, record.model_copy(update={"result": lost}))
        rates.append(made.rate_of(record))
    (record,) = made.run_target(SHORT, tmp_path / "whole", *found, 1, truncated=short)
    assert made.rate_of(record) < min(rates)


def test_truncated_runs_need_the_model() -> None:
    with pytest.raises(UserError, match="the sampler is `tpe`"):
        made.config(target__sampler="tpe", target__truncated={})
