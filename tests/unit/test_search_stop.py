"""Target trials that aren't worth their price, and settings that would have no effect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import search_study as made
from understudy.artifacts import Outlook, Proposal
from understudy.errors import UserError
from understudy.files import read_model
from understudy.search import propose
from understudy.search.planning import plan_echo
from understudy.stages import FEWEST_WITH_STOP

STUDY = made.config(target__sampler="two_fidelity", target__window=1)
STOPPING = made.config(
    target__sampler="two_fidelity", target__window=1, target__stop={"gain": 0.005, "chance": 0.2}, target__trials=16
)


def test_what_is_not_worth_it_is_skipped(tmp_path: Path) -> None:
    records = made.run_target(STOPPING, tmp_path, *made.transferred(STOPPING), 12)
    ran = [record.result.status != "skipped" for record in records]
    assert sum(ran) < 12
    assert all(ran[:FEWEST_WITH_STOP])
    assert made.best_of(records) < 2.02  # twice the gain above 2, the best of the bowl
    for number, record in enumerate(records):
        proposal = json.loads((tmp_path / f"{number:04d}" / "proposal.json").read_text())
        worth = (proposal["outlook"] or {}).get("worth")
        assert (proposal["skip"] is None) == (record.result.status != "skipped")
        if proposal["skip"]:
            assert worth < 0.2
            assert "below 0.2" in proposal["skip"]


def test_the_first_trials_are_never_skipped() -> None:
    hopeless = Outlook(trust=1.0, chance=0.0, rate_shift=1.0, worth=0.0)
    settings = made.section(STOPPING, "target")
    assert propose._reason_to_skip(settings, FEWEST_WITH_STOP - 1, hopeless) is None
    assert propose._reason_to_skip(settings, FEWEST_WITH_STOP, hopeless) is not None


@pytest.mark.long
def test_where_the_proxy_misleads_nothing_is_skipped_too_early(tmp_path: Path) -> None:
    records = made.run_target(STOPPING, tmp_path, *made.transferred(STOPPING), 12, made.elsewhere)
    assert made.best_of(records) < 2.1


def test_without_stop_nothing_is_skipped(tmp_path: Path) -> None:
    records = made.run_target(STUDY, tmp_path, *made.transferred(STUDY), 8)
    assert "skipped" not in [record.result.status for record in records]
    told = json.loads((tmp_path / "0007" / "proposal.json").read_text())
    assert told["skip"] is None
    assert told["outlook"]["worth"] is None


def test_what_the_target_skips_is_not_echoed(tmp_path: Path) -> None:
    found = made.transferred(STOPPING)
    made.run_target(STOPPING, tmp_path, *found, 12)
    proposals = [read_model(path, Proposal) for path in sorted(tmp_path.glob("*/proposal.json"))]
    search = made.section(STOPPING, "search")
    pack = plan_echo(search, made.PROXY, made.EXECUTION, found[0].scale, "echo-000", proposals)
    ran = [proposal.spec.id for proposal in proposals if proposal.skip is None]
    assert [spec.parents[0] for spec in pack.specs] == ran
    assert len(ran) < len(proposals)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target__starts": 5}, "`starts` guides Optuna's samplers"),
        ({"target__explore": 0.5}, "`explore` guides Optuna's samplers"),
        ({"target__prior_strength": 3.0}, "`prior_strength` guides Optuna's samplers"),
        ({"target__stop": True}, "write `stop: {}` to switch it on"),
        ({"target__truncated": False}, "leave `truncated` out to switch it off"),
        ({"target__stop": {}, "target__trials": 4, "target__window": 1}, "`stop` would skip nothing"),
        ({"target__truncated": {"trials": 3}, "target__window": 3}, "more than `window`"),
    ],
)
def test_what_would_have_no_effect_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        made.config(target__sampler="two_fidelity", **changes)


def test_stop_needs_the_model() -> None:
    with pytest.raises(UserError, match="the sampler is `gp`"):
        made.config(target__sampler="gp", target__stop={})
