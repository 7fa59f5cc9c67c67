"""Target trials proposed from the proxy's surface."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

import search_study as made
from understudy.artifacts import Proposal
from understudy.files import read_model
from understudy.hyperparameters import Value
from understudy.process import set_threads
from understudy.search import propose
from understudy.search.acquisition import STEP_DOWN, Acquisition
from understudy.search.distributions import to_optuna
from understudy.search.refinement import TwoFidelitySampler
from understudy.search.sequences import uniform
from understudy.search.surface import MOST, log_axis, make_surface, points, posterior
from understudy.search.two_fidelity import TwoFidelity, Units
from understudy.search.window import History, read_history
from understudy.space import Choices, Range
from understudy.trial import TrialRecord, TrialSpec

STUDY = made.config(target__sampler="two_fidelity", target__window=1)
SPACE: dict[str, Range | Choices] = {
    "learning_rate": Range(low=1e-4, high=1e-1, log=True),
    "warmup_ratio": Range(low=0, high=0.3),
    "lr_scheduler_type": Choices(choices=("linear", "cosine")),
}


def test_the_first_trials_are_where_the_proxy_was_best(tmp_path: Path) -> None:
    regions, starts = made.transferred(STUDY)
    records = made.run_target(STUDY, tmp_path, regions, starts, 4)
    spec = records[0].spec
    best = min(made.bowl(spec.model_copy(update={"hyperparameters": start.hyperparameters})) for start in starts.starts)
    assert made.bowl(spec) < 2.2
    assert made.best_of(records) <= best + 0.02


@pytest.mark.parametrize("sampler", ["two_fidelity", "tpe"])
def test_rates_may_be_a_list(tmp_path: Path, sampler: str) -> None:
    """Whose images on the target have more digits than a searched value."""
    few: dict[str, Any] = {} if sampler == "two_fidelity" else {"target__starts": 1}
    study = made.config(target__sampler=sampler, space__learning_rate=[2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2], **few)
    regions, starts = made.transferred(study)
    listed = regions.space["learning_rate"]
    assert isinstance(listed, Choices)
    records = made.run_target(study, tmp_path, regions, starts, 8)
    rates = {record.spec.hyperparameters["learning_rate"] for record in records}
    assert rates <= set(listed.choices)
    assert made.best_of(records) < 2.2


def test_a_start_is_told_as_one(tmp_path: Path) -> None:
    regions, starts = made.transferred(STUDY)
    made.run_target(STUDY, tmp_path, regions, starts, propose.CHECK + 1)
    told = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/proposal.json"))]
    known = [start.hyperparameters for start in starts.starts]
    for proposal in told:
        assert (proposal["kind"] == "start") == (proposal["spec"]["hyperparameters"] in known)
        assert proposal["sampler"] == "TwoFidelitySampler"
        assert proposal["spec"]["origin"] in ("refined", "transferred", "default")
    assert "start" in [proposal["kind"] for proposal in told]


@pytest.mark.long
def test_it_beats_a_search_without_the_proxy(tmp_path: Path) -> None:
    ours, others = [], []
    for seed in range(1, 4):
        study = made.config(seed=seed, target__sampler="two_fidelity", target__window=1)
        ours.append(made.best_of(made.run_target(study, tmp_path / f"a{seed}", *made.transferred(study), 4)))
        blind = made.config(seed=seed, target__sampler="tpe", target__explore=1.0, target__starts=1, target__window=1)
        regions, starts = made.transferred(blind)
        poor = starts.model_copy(update={"starts": starts.starts[-1:]})
        others.append(made.best_of(made.run_target(blind, tmp_path / f"b{seed}", regions, poor, 16)))
    assert statistics.mean(ours) < statistics.mean(others)


def test_it_recovers_from_a_proxy_that_misleads(tmp_path: Path) -> None:
    records = made.run_target(STUDY, tmp_path, *made.transferred(STUDY), 12, made.elsewhere)
    assert made.elsewhere(records[0].spec) > 4
    assert made.best_of(records) < 2.1


def test_nothing_is_proposed_twice(tmp_path: Path) -> None:
    study = made.config(
        space={"learning_rate": [1e-3, 1e-2], "lora_r": [4, 16]},
        proxy__grid={},
        target__window=2,
        target__sampler="two_fidelity",
        transfer__learning_rate_exponent=0.0,
        defaults__learning_rate=1e-2,
        defaults__lora_r=16,
    )
    regions, starts = made.transferred(study)
    records = made.run_target(study, tmp_path, regions, starts, 4)
    assert len({json.dumps(record.spec.hyperparameters) for record in records}) == 4
    assert len(made.run_target(study, tmp_path, regions, starts, 6)) == 6


@pytest.mark.parametrize("window", [1, 3])
def test_a_cliff_that_the_proxy_saw_is_kept_away_from(
    tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss falls towards a rate above which everything diverges, on both models alike."""

    def height(spec: TrialSpec) -> float:
        edge = made.BEST_PROXY_RATE * (made.FACTOR if spec.role == "target" else 1.0)
        return math.log10(float(spec.hyperparameters["learning_rate"]) / edge)

    plain = made.record

    def record(spec: TrialSpec, loss: made.Loss, status: str | None = None) -> TrialRecord:
        return plain(spec, loss, status or ("diverged" if height(spec) > 0 else "complete"))

    monkeypatch.setattr(made, "record", record)

    def falling(spec: TrialSpec) -> float:
        return 3 - 0.4 * height(spec)

    study = made.config(target__sampler="two_fidelity", target__window=window)
    found = made.transferred(study, falling)
    assert found[0].surface is not None
    assert len(found[0].surface.points) == found[0].trials > found[0].complete  # failed ones, too
    records = made.run_target(study, tmp_path, *found, 12, falling)
    assert sum(record.result.status == "diverged" for record in records) <= 3
    assert made.best_of(records) < 3.05


@pytest.mark.parametrize(("factor", "window"), [(3, 1), (20, 1), (20, 4)])
def test_while_everything_fails_the_rate_goes_down(
    tmp_path: Path, factor: float, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the target everything diverges whose rate isn't many times below the proxy's best."""
    best, plain = made.BEST_PROXY_RATE * made.FACTOR, made.record
    study = made.config(target__sampler="two_fidelity", target__window=window)
    found = made.transferred(study)

    def record(spec: TrialSpec, loss: made.Loss = made.bowl, status: str | None = None) -> TrialRecord:
        rate = float(spec.hyperparameters["learning_rate"])
        return plain(spec, loss, status or ("diverged" if rate > best / factor else "complete"))

    monkeypatch.setattr(made, "record", record)
    records = made.run_target(study, tmp_path, *found, 12)
    statuses = [each.result.status for each in records]
    assert statuses[0] == "diverged"
    assert "complete" in statuses[: 4 + window]
    assert statuses.count("complete") >= 4
    trusts = [
        told.outlook.trust
        for told in (read_model(path, Proposal) for path in sorted(tmp_path.glob("*/proposal.json")))
        if told.outlook and told.number <= statuses.index("complete")
    ]
    assert max(trusts) == min(trusts)  # failures say nothing for the proxy


def test_the_rate_goes_down_without_a_log_scale_too() -> None:
    space: dict[str, Range | Choices] = {**SPACE, "learning_rate": Range(low=1e-5, high=1e-2)}
    images = [uniform(space, 1, number) for number in range(30)]
    sampler = TwoFidelitySampler(make_surface(space, images, [loss(values) for values in images]), space, seed=1)
    study = optuna.create_study(sampler=sampler)
    rates = []
    for _ in range(3):
        trial = study.ask(sampler.distributions)
        rates.append(trial.params["learning_rate"])
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert rates[1] <= rates[0] / STEP_DOWN
    assert rates[2] <= rates[1] / STEP_DOWN


def test_running_trials_are_on_their_way_down_too() -> None:
    images = [uniform(SPACE, 1, number) for number in range(8)]
    acquisition = Acquisition(make_surface(SPACE, images, [loss(values) for values in images]), SPACE, seed=1)
    failed, running = ({**images[0], "learning_rate": rate} for rate in (1e-3, 3e-4))
    candidates = [{**images[0], "learning_rate": rate} for rate in (5e-5, 9e-5, 1e-4, 2.5e-4, 3e-4, 9e-4)]
    assert acquisition._below(candidates, [failed], [running]) == candidates[:2]
    assert acquisition._below(candidates, [failed], []) == candidates[:5]
    assert acquisition._below(candidates[2:], [failed], [running]) == candidates[2:5]


def test_truncated_runs_leave_the_first_choice_to_the_expected_loss() -> None:
    """Without them the proxy's uncertainty would count as well; here it knows low rates alone, and the best is high."""
    low: dict[str, Range | Choices] = {**SPACE, "learning_rate": Range(low=1e-4, high=3e-3, log=True)}
    images, short = ([uniform(space, seed, number) for number in range(12)] for seed, space in ((3, low), (13, SPACE)))
    hints = [uniform(SPACE, 23, number) for number in range(20)]
    surface, losses = make_surface(SPACE, images, [loss(values) for values in images]), [loss(each) for each in short]
    sampler = TwoFidelitySampler(surface, SPACE, 1, hints, truncated=list(zip(short, losses, strict=True)))
    chosen = optuna.create_study(sampler=sampler).ask(sampler.distributions).params
    truncated = points(SPACE, short), Units(min(losses) + surface.spread, surface.spread).of(np.array(losses))
    none, places = (np.zeros((0, len(surface.lengths))), np.zeros(0)), points(SPACE, hints)
    model = TwoFidelity(posterior(surface), *log_axis(SPACE, "learning_rate"), *none, truncated)
    expected, unsure = model.predict(places)[0], np.sqrt(posterior(surface).at(places).variance)
    assert chosen == hints[int(np.argmin(expected))]
    assert np.argmin(expected) != np.argmin(expected + unsure)


def test_what_failed_truncated_is_not_run_whole() -> None:
    """Nor where its value has no place on a log scale; of these choices it would be the best."""
    space: dict[str, Range | Choices] = {
        "weight_decay": Range(low=1e-4, high=0.1, log=True),
        "lr_scheduler_type": Choices(choices=("linear", "cosine")),
    }
    start: dict[str, Value] = {"weight_decay": 0.0, "lr_scheduler_type": "linear"}
    images = [uniform(space, 1, number) for number in range(30)]
    surface = make_surface(space, [*images, start], [*(2 + float(each["weight_decay"]) for each in images), 1.0])
    proposed = []
    for truncated in ([], [(start, math.inf)]):
        sampler = TwoFidelitySampler(surface, space, seed=1, hints=[start], truncated=truncated)
        proposed.append(optuna.create_study(sampler=sampler).ask(sampler.distributions).params)
    assert proposed[0] == {**start, "weight_decay": 1e-4}
    assert proposed[1] != proposed[0]


def test_what_is_skipped_is_not_running(tmp_path: Path) -> None:
    found = made.transferred(STUDY)
    made.run_target(STUDY, tmp_path, *found, 7)
    settings = made.section(STUDY, "target").model_copy(update={"window": 3})
    past = read_history(tmp_path, 7, 3)
    skipped = [each.model_copy(update={"skip": "hardly worth it"}) for each in past.pending]
    without = propose.propose(settings, 7, *found, History(visible=past.visible))
    assert propose.propose(settings, 7, *found, History(past.visible, tuple(skipped))).outlook == without.outlook
    assert propose.propose(settings, 7, *found, past).outlook != without.outlook


def test_chances_are_those_to_beat_a_loss_that_somebody_has() -> None:
    """The more running trials are expected to be far better, the less a chance to beat them would say."""
    images = [uniform(SPACE, 1, number) for number in range(30)]
    surface = make_surface(SPACE, images, [loss(values) for values in images])
    poor = {"learning_rate": 1e-4, "warmup_ratio": 0.3, "lr_scheduler_type": "linear"}
    good = {"learning_rate": 1e-2, "warmup_ratio": 0.0, "lr_scheduler_type": "linear"}
    sampler = TwoFidelitySampler(surface, SPACE, seed=1, gain=0.01)
    study = optuna.create_study(sampler=sampler)
    params = [{name: to_optuna(SPACE[name], values[name]) for name in SPACE} for values in (poor, good)]
    make = optuna.trial.create_trial
    study.add_trial(make(params=params[0], distributions=sampler.distributions, value=loss(poor)))
    study.add_trial(make(params=params[1], distributions=sampler.distributions, state=optuna.trial.TrialState.RUNNING))
    study.ask(sampler.distributions)
    assert sampler.outlook is not None
    assert sampler.outlook.worth is not None
    assert sampler.outlook.worth > 0.9


def test_a_result_within_the_window_changes_nothing(tmp_path: Path) -> None:
    study = made.config(target__sampler="two_fidelity", target__window=3)
    found = made.transferred(study)
    made.run_target(study, tmp_path / "a", *found, 8)
    records = made.run_target(study, tmp_path / "b", *found, 5)
    again = made.next_proposal(study, tmp_path / "b", 5, *found)
    assert again == made.next_proposal(study, tmp_path / "a", 5, *found)
    assert [each.spec.id for each in records][:3] == list(again.visible)


def loss(values: Mapping[str, Value]) -> float:
    return 2 + (math.log10(float(values["learning_rate"])) + 2) ** 2 + float(values["warmup_ratio"])


def test_it_is_a_sampler_for_any_optuna_study() -> None:
    images = [uniform(SPACE, 1, number) for number in range(30)]
    sampler = TwoFidelitySampler(make_surface(SPACE, images, [loss(values) for values in images]), SPACE, seed=1)
    study = optuna.create_study(sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
        warmup = trial.suggest_float("warmup_ratio", 0, 0.3)
        trial.suggest_categorical("lr_scheduler_type", ("linear", "cosine"))
        return loss({"learning_rate": rate, "warmup_ratio": warmup})

    study.optimize(objective, n_trials=4)
    assert study.best_value < 2.05
    upwards = optuna.create_study(direction="maximize", sampler=TwoFidelitySampler(sampler.surface, SPACE, seed=1))
    upwards.optimize(lambda trial: -objective(trial), n_trials=4)
    assert [trial.params for trial in upwards.trials] == [trial.params for trial in study.trials]
    upwards.add_trial(
        optuna.trial.create_trial(params=study.trials[0].params, distributions=sampler.distributions, value=-math.inf)
    )
    assert upwards.ask(sampler.distributions).params
    with pytest.raises(ValueError, match="lora_r isn't in the space"):
        study.ask().suggest_int("lora_r", 1, 8)


def test_the_surface_knows_failed_trials_and_stays_small() -> None:
    images = [uniform(SPACE, 1, number) for number in range(1000)]
    losses = [None if loss(values) > 3.5 else loss(values) for values in images]
    surface = make_surface(SPACE, images, losses)
    assert len(surface.points) <= MOST
    assert max(surface.values) < 3
    assert min(surface.values) == pytest.approx(-1)


def test_more_tokens_move_the_batch_size() -> None:
    space: dict[str, Range | Choices] = {"batch_size": Range(low=1, high=100, log=True), **SPACE}
    images = [uniform(space, 1, number) for number in range(20)]
    losses = [loss(values) for values in images]
    plain, moved = (np.array(make_surface(space, images, losses, factor).points) for factor in (1.0, 10.0))
    assert moved[:, 0] - plain[:, 0] == pytest.approx(np.full(20, 0.5))
    assert moved[:, 1:].tolist() == plain[:, 1:].tolist()


def test_even_choices_have_a_log_scale() -> None:
    space: dict[str, Range | Choices] = {
        "lora_r": Choices(choices=(1, 2)),
        "batch_size": Choices(choices=(4, 8, 16, 32)),
    }
    images = [uniform(space, 1, number) for number in range(20)]
    plain, moved = (np.array(make_surface(space, images, range(20), factor).points) for factor in (1.0, 2.0))
    assert moved[:, 1] - plain[:, 1] == pytest.approx(np.full(20, 1 / 4))  # from one choice to the next
    uneven = {"batch_size": Choices(choices=(4, 8, 12))}
    whole: dict[str, Range | Choices] = {"batch_size": Range(low=1, high=64, log=True, integer=True)}
    decade = log_axis(whole, "batch_size")[1]
    assert whole["batch_size"].to_unit(40) - whole["batch_size"].to_unit(4) == pytest.approx(decade)
    for other in (uneven, {"batch_size": Choices(choices=(8,))}, {"batch_size": Range(low=1, high=9)}):
        assert log_axis(other, "batch_size") == (None, 0.0)
    listed: dict[str, Range | Choices] = {"learning_rate": Choices(choices=(1e-5, 2e-5, 5e-5, 1e-4, 1e-3))}
    assert log_axis(listed, "learning_rate") == (0, pytest.approx(1 / 2))
    places = points(listed, [{"learning_rate": rate} for rate in (1e-5, 1e-4, 1e-3)])
    assert places[:, 0] == pytest.approx(np.array([0, 0.5, 1]))


def test_a_surface_by_hand_needs_no_directions() -> None:
    images = [uniform(SPACE, 1, number) for number in range(30)]
    surface = make_surface(SPACE, images, [loss(values) for values in images])
    bare = surface.model_copy(update={"directions": ()})
    other = surface.model_copy(update={"directions": surface.directions[:1]})
    found = []
    for each in (surface, bare, other):
        study = optuna.create_study(sampler=TwoFidelitySampler(each, SPACE, seed=4))
        found.append(study.ask(study.sampler.distributions).params)
    assert surface.directions
    assert found[0] == found[1] == found[2]


def test_a_proposal_is_quick() -> None:
    """At most 2 seconds on one core, with 1,000 proxy trials and 100 finished ones."""
    set_threads(1)
    space = STUDY.space
    images = [uniform(space, 1, number) for number in range(1000)]
    sampler = TwoFidelitySampler(make_surface(space, images, [loss(values) for values in images]), space, seed=1)
    study = optuna.create_study(sampler=sampler)
    for number in range(100):
        values = uniform(space, 2, number)
        params = {name: to_optuna(parameter, values[name]) for name, parameter in space.items()}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=sampler.distributions, value=loss(values))
        )
    began = time.process_time()
    study.ask(sampler.distributions)
    assert time.process_time() - began < 2
