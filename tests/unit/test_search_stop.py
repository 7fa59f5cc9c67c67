"""Target trials that aren't worth their price, and settings that would have no effect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import search_study as made
from understudy.artifacts import Outlook, Proposal
from understudy.errors import UserError
from understudy.files import read_model
from understudy.search import propose
from understudy.search.planning import plan_echo
from understudy.search.window import History, visible
from understudy.stages import FEWEST_WITH_STOP, StopSettings

STUDY = made.config(target__sampler="two_fidelity", target__window=1)
STOPPING = made.config(
    target__sampler="two_fidelity",
    target__window=1,
    target__stop={"gain": 0.005, "patience": 2, "chance": 0.2},
    target__trials=16,
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
            assert "below 0.2, and the last" in proposal["skip"]


HOPELESS = Outlook(trust=1.0, chance=0.0, rate_shift=1.0, worth=0.0)


def turn(number: int, losses: Sequence[float | None], window: int = 1, **stop: float) -> propose._Turn:
    """Before trial `number` of a study with `stop`, which sees trials with these losses; None is one that diverged."""
    stop = {"gain": 0.01, **stop}
    study = made.config(target__sampler="two_fidelity", target__window=window, target__trials=64, target__stop=stop)
    spec = made.planned(made.section(study, "search"), "random", 0, 1).specs[0]
    records = [made.record(spec, lambda _, loss=loss: loss, "diverged" if loss is None else None) for loss in losses]
    regions, starts = made.transferred(study)
    pending = [Proposal(number=0, spec=spec, kind="start", sampler="", visible=(), pending=())] * (window - 1)
    truncated = [made.record(spec, lambda _: 3.0)] * 8
    history = History(tuple(records), tuple(pending), tuple(truncated))
    return propose._Turn(made.section(study, "target"), number, regions, starts, history, "target")


@pytest.mark.parametrize("number", range(FEWEST_WITH_STOP + 2))
def test_the_first_trials_are_never_skipped(number: int) -> None:
    reason = propose._reason_to_skip(turn(number, [2.0] * number, patience=0), HOPELESS)
    assert (reason is not None) == (number >= FEWEST_WITH_STOP)


@pytest.mark.parametrize(
    ("losses", "waited"),
    [
        ([2.0, 2.0, 2.0, 2.0, 2.0], 4),
        ([2.0, 2.0, 1.9, 1.9, None], 2),  # one that diverged brought nothing, either
        ([2.0, 1.985, 1.975, 2.0, 2.0], 2),  # two steps of less than a hundredth make one of more
        ([None, 2.0, 2.0, 2.0, 1.99], 3),
        ([-2.0, -2.0, -1.99, -2.01, -2.01], 4),  # a log-likelihood, say
        ([-2.0, -2.0, -2.1, -2.1, -2.1], 2),
        ([2.0, 2.0, 2.0, 2.0, 1.9], 0),
        ([2.0, 2.0, 2.0, 1.9, 1.9], 1),
    ],
)
def test_a_trial_is_skipped_only_after_so_many_that_brought_nothing(
    losses: Sequence[float | None], waited: int
) -> None:
    assert propose._reason_to_skip(turn(5, losses, patience=waited + 1), HOPELESS) is None
    told = propose._reason_to_skip(turn(5, losses, patience=waited), HOPELESS)
    since = {0: "", 1: ", and the last trial didn't"}.get(waited, f", and the last {waited} trials didn't")
    assert told == f"the chance to beat the best loss by 0.01 of it is 0, below 0.3{since}"


@pytest.mark.parametrize("window", [1, 2, 3, 4])
@pytest.mark.parametrize("patience", [0, 1, 3, 6])
def test_the_config_knows_which_trial_is_the_first_that_can_be_skipped(window: int, patience: int) -> None:
    skipped = (
        number
        for number in range(20)
        if propose._reason_to_skip(
            turn(number, [2.0] * len(visible(number, window)), window, patience=patience), HOPELESS
        )
    )
    first = next(skipped)
    assert StopSettings(patience=patience).first_to_skip(window) == first
    settings = {"target__sampler": "two_fidelity", "target__window": window, "target__stop": {"patience": patience}}
    assert made.config(**settings, target__trials=max(first + 1, 4 * window)).target.stop is not None
    if first >= 4 * window:
        with pytest.raises(UserError, match=f"the first {first} trials always run"):
            made.config(**settings, target__trials=first)


def test_a_promising_trial_is_not_skipped_however_long_nothing_was_gained() -> None:
    for worth, words in ((0.4, None), (0.3, None), (0.29996, "is 0.299, below 0.3"), (0.0, "is 0, below 0.3")):
        reason = propose._reason_to_skip(turn(20, [2.0] * 20), HOPELESS.model_copy(update={"worth": worth}))
        assert (reason is None) == (words is None)
        assert words is None or words in str(reason)


def test_skipped_trials_are_not_counted_among_those_that_brought_nothing() -> None:
    made_up = turn(8, [2.0, 2.0, 2.0, 2.0, 2.0, 2.0], patience=6)
    skipped = made.record(made_up.history.visible[0].spec, status="skipped")
    longer = replace(made_up, history=History((*made_up.history.visible, skipped, skipped)))
    assert propose._reason_to_skip(longer, HOPELESS) is None


@pytest.mark.parametrize("patience", [0, 2, 6])
@pytest.mark.parametrize("pending", [False, True])
def test_after_a_skipped_trial_the_next_runs_only_where_one_that_was_running_brought_a_gain(
    patience: int, pending: bool
) -> None:
    promising = HOPELESS.model_copy(update={"worth": 0.9})

    def reason(*losses: float) -> str | None:
        before = turn(12, losses, window=2, patience=patience)
        history = before.history
        if pending:
            history = replace(history, pending=(history.pending[0].model_copy(update={"skip": "why"}),))
        else:
            skipped = made.record(before.history.visible[0].spec, status="skipped")
            history = replace(history, visible=(*history.visible, skipped))
        return propose._reason_to_skip(replace(before, history=history), promising)

    words = "was skipped, and the last 10 trials that ran didn't beat the best loss by 0.01 of it"
    assert words in str(reason(*[2.0] * 11))
    assert reason(*[2.0] * 10, 1.9) is None
    assert (reason(*[2.0] * 9, 1.9, 1.9) is None) == (patience > 1)


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
        ({"target__stop": {"patience": 0}, "target__trials": 4, "target__window": 1}, "first 4 trials always run"),
        ({"target__stop": {"patience": 8}, "target__trials": 10, "target__window": 2}, "first 10 trials always run"),
        ({"target__truncated": {"trials": 3}, "target__window": 3}, "more than `window`"),
    ],
)
def test_what_would_have_no_effect_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        made.config(target__sampler="two_fidelity", **changes)


def test_stop_needs_the_model() -> None:
    with pytest.raises(UserError, match="the sampler is `gp`"):
        made.config(target__sampler="gp", target__stop={})
