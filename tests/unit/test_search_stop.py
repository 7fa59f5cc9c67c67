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
    records = made.run_target(STOPPING, tmp_path, *made.transferred(STOPPING), 14)
    ran = [record.result.status != "skipped" for record in records]
    assert sum(ran) < 12
    assert not any(ran[sum(ran) :])  # nothing else was running when the first one was skipped
    assert all(ran[:FEWEST_WITH_STOP])
    assert made.best_of(records) < 2.02  # twice the gain above 2, the best of the bowl
    for number, record in enumerate(records):
        proposal = json.loads((tmp_path / f"{number:04d}" / "proposal.json").read_text())
        worth = (proposal["outlook"] or {}).get("worth")
        assert (proposal["skip"] is None) == (record.result.status != "skipped")
        if number == sum(ran):
            assert worth < 0.2
            assert "below 0.2, and the last" in proposal["skip"]
        elif proposal["skip"]:
            assert "was skipped, and no trial has beaten the best loss" in proposal["skip"]


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
    before = turn(14, [2.0, 2.0, 2.0, 2.0, 1.9, 0.0, 1.9, 1.9, 1.9, 1.9, 1.9], window=4, patience=6)
    records = list(before.history.visible)
    records[5] = made.record(records[5].spec, status="skipped")  # without having seen trial 4
    assert propose._reason_to_skip(replace(before, history=History(tuple(records))), HOPELESS) is None
    records.append(records[-1])
    assert propose._reason_to_skip(replace(before, history=History(tuple(records))), HOPELESS) is not None


@pytest.mark.parametrize("patience", [0, 2, 6])
@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("since", [0, 1, 3])
def test_after_a_skipped_trial_all_are_until_a_gain_shows_that_it_did_not_see(
    patience: int, window: int, since: int
) -> None:
    """Trial 12 was skipped; trial 13 + `since` is to be proposed, and trial `gained` brought a gain."""

    def reason(gained: int) -> str | None:
        number = 13 + since
        losses = [2.0 if trial < gained else 1.9 for trial in range(number)]
        before = turn(number, losses, window=window, patience=patience)
        records = list(before.history.visible)
        records[12] = made.record(records[12].spec, status="skipped")
        first_pending = number - window + 1
        pending = tuple(
            before.history.pending[0].model_copy(update={"number": trial, "skip": "why" if trial == 12 else None})
            for trial in range(first_pending, number)
        )
        history = replace(before.history, visible=tuple(records[:first_pending]), pending=pending)
        return propose._reason_to_skip(replace(before, history=history), HOPELESS.model_copy(update={"worth": 0.9}))

    seen_by_12 = 12 - window
    words = "t0012 was skipped, and no trial has beaten the best loss by 0.01 of it since"
    assert reason(0) == reason(seen_by_12) == words
    for gained in range(seen_by_12 + 1, 13 + since - window + 1):
        assert (reason(gained) is None) == (gained != 12 or since > window - 1), gained


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
