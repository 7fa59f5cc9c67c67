"""From trials to regions and starts: importance, evidence, groups, boxes, the order of the starts."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import search_study as made
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from understudy.artifacts import Regions, Starts
from understudy.cli import main
from understudy.config import StudyConfig
from understudy.errors import UnderstudyError
from understudy.files import read_model, write_json
from understudy.search.clusters import embed, group
from understudy.search.defaults import learning_rate_rule
from understudy.search.evidence import locate
from understudy.search.guidance import inside, outside
from understudy.search.importance import importance_table, standings
from understudy.search.planning import plan_echo
from understudy.search.scaling import scale_rules, scaled
from understudy.search.transfer import SAME_RATE, transfer
from understudy.space import Choices, Range
from understudy.summary.tables import trials_frame
from understudy.trial import TrialRecord, TrialSpec


def two_bowls(spec: TrialSpec) -> float:
    """Good at two separate rates, each with its own rank."""
    values = spec.hyperparameters
    rate, rank = math.log10(float(values["learning_rate"])), int(values["lora_r"])
    far = 0.0 if (rank >= 16) == (rate > -2.5) else 1.0
    return 2 + min(abs(rate + 3.5), abs(rate + 1.5)) + far


def test_importance_finds_what_matters() -> None:
    study = made.config()
    table = importance_table(trials_frame(made.proxy_records(study)), study.space, 1)
    assert table.columns == ["parameter", "importance"]
    assert table["parameter"][0] == "learning_rate"
    assert table["importance"][0] > 0.5
    assert table["importance"].sum() == pytest.approx(1)
    assert set(table["parameter"]) == set(study.space)
    assert table["importance"].is_sorted(descending=True)
    assert table.equals(importance_table(trials_frame(made.proxy_records(study)[::-1]), study.space, 1))


def test_importance_of_a_choice_without_an_order() -> None:
    study = made.config()
    frame = trials_frame(made.proxy_records(study, lambda s: float(s.hyperparameters["lr_scheduler_type"] == "cosine")))
    assert importance_table(frame, study.space, 1).row(0)[0] == "lr_scheduler_type"


def test_layers_and_attention_dropout_are_searched_like_everything_else() -> None:
    """The proxy prefers two layers; importance, regions and starts say so, in the one spelling."""
    modules = ["all-linear", ["v_proj", "q_proj"], "down_proj"]
    study = made.config(
        space__lora_target_modules=modules, space__attention_dropout={"low": 0.0, "high": 0.3}, proxy__sobol=40
    )

    def loss(spec: TrialSpec) -> float:
        values = spec.hyperparameters
        return 2 + float(values["lora_target_modules"] != "q_proj,v_proj") + 2 * float(values["attention_dropout"])

    frame = trials_frame(made.proxy_records(study, loss))
    assert set(frame["lora_target_modules"]) == {"all-linear", "down_proj", "q_proj,v_proj"}
    table = importance_table(frame, study.space, 1)
    assert table["parameter"].head(2).to_list() == ["lora_target_modules", "attention_dropout"]
    regions, starts = made.transferred(study, loss)
    assert all(region.boxes["lora_target_modules"].choices == ("q_proj,v_proj",) for region in regions.regions)
    assert regions.space["lora_target_modules"] == study.space["lora_target_modules"]
    assert "q_proj,v_proj" in {start.hyperparameters["lora_target_modules"] for start in starts.starts}
    full = made.config(space__lora_target_modules=modules, target__method="full")
    assert "lora_target_modules" not in made.transferred(full)[0].space


def test_diverged_trials_enter_the_importance_as_the_worst() -> None:
    """With equal losses everywhere, only which trials diverged can say that the learning rate matters."""
    study = made.config()
    frame = trials_frame(made.proxy_records(study, lambda _: 2.0))
    assert frame.filter(pl.col("status") == "diverged").height >= 3
    assert importance_table(frame, study.space, 1)["parameter"][0] == "learning_rate"


def halved(records: list[TrialRecord], share: float = 0.2, excess: float = 0.3) -> list[TrialRecord]:
    """What halving leaves of a stage: all but the best of the searched trials are stopped, at a higher loss."""
    ranked = sorted(
        (r for r in records if r.spec.origin != "default" and r.result.objective is not None),
        key=lambda r: (r.result.objective, r.spec.id),
    )
    stopped = {r.spec.id for r in ranked[math.ceil(share * len(ranked)) :]}
    return [made.stopped(r, excess) if r.spec.id in stopped else r for r in records]


def test_stopped_trials_enter_the_importance_by_their_last_loss() -> None:
    """What ran in full says too little; with the others' last losses the importance is as without halving."""
    study = made.config()
    whole = trials_frame(made.proxy_records(study))
    frame = trials_frame(halved(made.proxy_records(study), share=0.15))
    assert frame.filter(pl.col("status") == "stopped").height > 25
    found, expected = (dict(importance_table(table, study.space, 1).rows()) for table in (frame, whole))
    assert found["learning_rate"] == pytest.approx(expected["learning_rate"], abs=0.1)
    assert list(found)[:2] == list(expected)[:2]


def test_the_standing_of_a_trial() -> None:
    rows = pl.DataFrame(
        {
            "status": ["complete", "stopped", "diverged", "complete", "stopped", "out_of_memory", "stopped"],
            "objective": [2.0, None, None, 3.0, None, None, None],
            "last_eval_loss": [2.0, 2.5, 9.0, 3.0, 2.5, None, None],
        }
    )
    assert standings(rows) == [1.0, 2.5, 6.5, 4.0, 2.5, 6.5, 5.0]


def test_halving_leaves_the_top_and_the_regions_as_they_are() -> None:
    study = made.config()
    settings, records = made.section(study, "transfer"), made.proxy_records(study)
    whole, starts = transfer(settings, trials_frame(records), made.PROXY, made.TARGET)
    kept = transfer(settings, trials_frame(halved(records, share=0.4)), made.PROXY, made.TARGET)
    assert kept[0].stopped > 15
    assert (kept[0].trials, kept[0].complete + kept[0].stopped) == (whole.trials, whole.complete)
    assert (kept[0].top, kept[0].threshold) == (whole.top, whole.threshold)
    assert [region.trials for region in kept[0].regions] == [region.trials for region in whole.regions]
    assert [region.boxes.keys() for region in kept[0].regions] == [region.boxes.keys() for region in whole.regions]
    assert kept[1].starts[0] == starts.starts[0]
    distances = [re.findall(r"(?:distance|variation) [\d.]+", found.model_dump_json()) for found in (whole, kept[0])]
    assert distances[0] == distances[1] != [], "the stopped trials are among the others"


def test_only_trials_that_ran_in_full_are_top_and_bad_ones_are_not_though_they_did() -> None:
    """What was never halved, such as a default, isn't among the best only because it has a final loss."""
    study = made.config(transfer__top_fraction=0.5)
    records = made.proxy_records(study, lambda spec: 9.0 if spec.origin == "default" else made.bowl(spec))
    regions, starts = transfer(made.section(study, "transfer"), trials_frame(halved(records)), made.PROXY, made.TARGET)
    named = {trial for region in regions.regions for trial in region.trials}
    complete = {r.spec.id for r in halved(records) if r.result.status == "complete"}
    assert named == complete - {"d00", "d01", "d02"}
    assert regions.top == len(named) < regions.complete < 0.5 * regions.trials
    rates = [start.hyperparameters["learning_rate"] for start in starts.starts]
    assert rates.index(3e-4) >= len(starts.starts) - 2, "worse than the median of all, so a fixed rate comes last"


def test_a_fixed_rate_is_compared_with_the_stopped_trials_too() -> None:
    """Worse than half of the few that went on, but better than half of all: no reason to come last."""
    study = made.config()
    records = made.proxy_records(study)
    searched = [r for r in halved(records) if r.spec.origin != "default"]
    fair = max(r.result.objective for r in searched if r.result.objective is not None) + 0.01
    records = made.proxy_records(study, lambda spec: fair if spec.origin == "default" else made.bowl(spec))
    kept = halved(records)
    assert sum(r.result.status == "stopped" for r in kept) > len(kept) / 2
    _, starts = transfer(made.section(study, "transfer"), trials_frame(kept), made.PROXY, made.TARGET)
    rates = [start.hyperparameters["learning_rate"] for start in starts.starts]
    assert rates.index(3e-4) < len(starts.starts) - 2


def test_importance_is_empty_where_nothing_can_be_said() -> None:
    study = made.config()
    frame = trials_frame(made.proxy_records(study))
    complete = frame.filter(pl.col("status") == "complete")
    assert importance_table(complete.head(3), study.space, 1).is_empty()
    assert importance_table(complete.with_columns(objective=pl.lit(1.0)), study.space, 1).is_empty()
    assert importance_table(frame.clear(), study.space, 1).is_empty()
    assert importance_table(complete.head(4), study.space, 1).height == len(study.space)


def test_importance_leaves_out_what_full_fine_tuning_lacks() -> None:
    study = made.config()
    frame = trials_frame(made.proxy_records(study)).with_columns(lora_r=pl.lit(None, dtype=pl.Int64))
    assert "lora_r" not in importance_table(frame, study.space, 1)["parameter"].to_list()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=4, max_size=30), st.integers(1, 3))
def test_the_distance_is_scipys(values: list[int], top: int) -> None:
    coordinates = np.array(values, dtype=float)
    labels = np.arange(len(values)) < top
    found = locate(coordinates, labels, True, 1)
    assert found.distance == pytest.approx(ks_2samp(coordinates[labels], coordinates[~labels]).statistic)
    assert 0 < found.p <= 1


def test_evidence_and_its_absence() -> None:
    generator = np.random.default_rng(3)
    top = np.arange(40) < 10
    apart = np.where(top, 0.1, 0.7) + 0.1 * generator.random(40)
    assert locate(apart, top, True, 1).p == pytest.approx(1 / 1000)
    p_values = [locate(generator.random(40), top, True, seed).p for seed in range(60)]
    assert 0.3 < np.mean(p_values) < 0.7
    choices = np.where(top, 0.0, 1.0)
    assert locate(choices, top, False, 1).distance == pytest.approx(1)
    assert locate(np.arange(40) % 4.0, top, False, 1).distance == pytest.approx(2 / 15)


def test_groups() -> None:
    generator = np.random.default_rng(5)
    spots = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    points = np.repeat(spots, 4, axis=0) + 0.03 * generator.random((12, 2))
    assert group(points, 3).groups == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11))
    assert len(group(points, 2).groups) == 2
    assert len(group(points, 1).groups) == 1
    assert len(group(generator.random((12, 2)), 3).groups) == 1
    assert len(group(np.zeros((12, 2)), 3).groups) == 1
    lonely = np.vstack([0.01 * generator.random((6, 2)), [[5.0, 5.0]]])
    assert group(lonely, 3).groups == (tuple(range(7)),)


def test_what_does_not_matter_cannot_split() -> None:
    space: dict[str, Range | Choices] = {
        "weight_decay": Range(low=0, high=1),
        "lr_scheduler_type": Choices(choices=("a", "b")),
    }
    rows = [{"weight_decay": 0.0, "lr_scheduler_type": "a"}, {"weight_decay": 1.0, "lr_scheduler_type": "b"}]
    points = embed(space, rows, {"weight_decay": 0.25, "lr_scheduler_type": 0.75})
    assert np.sum((points[0] - points[1]) ** 2) == pytest.approx(1.0)
    points = embed(space, rows, {"lr_scheduler_type": 0.75})
    assert np.sum((points[0] - points[1]) ** 2) == pytest.approx(0.75)


def test_one_region_around_one_optimum() -> None:
    regions, _ = made.transferred(made.config())
    (region,) = regions.regions
    rate = region.boxes["learning_rate"]
    assert rate.low is not None
    assert rate.high is not None
    assert rate.low < made.BEST_PROXY_RATE * made.FACTOR < rate.high
    assert rate.high / rate.low < 100
    assert "0.424" in rate.reason
    whole = region.boxes["weight_decay"]
    assert (whole.low, whole.high) == (0.0, 0.3)
    assert "too little evidence" in whole.reason
    assert 0 < region.volume < 1
    assert region.share == 1
    assert regions.top == len(region.trials) == math.ceil(0.25 * regions.complete)
    assert regions.trials == 51


def test_what_is_negligible_is_fixed_at_the_best_trials_image_and_keeps_its_range() -> None:
    """The loss has a weak third hyperparameter, so that of the other eight some are negligible, by both limits."""
    study = made.config(proxy__random=60, transfer__fix_below=0.05)
    records = {record.spec.id: record.spec for record in made.proxy_records(study)}
    regions, _ = made.transferred(study)
    (region,) = regions.regions
    best, held = records[region.trials[0]], {n: box for n, box in region.boxes.items() if box.fixed is not None}
    assert held.keys() < regions.space.keys() - {"learning_rate", "lora_r"}
    assert len(held) >= 3
    for name, box in region.boxes.items():
        p = float(re.search(r"p = ([\d.]+)", box.reason)[1])  # type: ignore[index]
        assert (name in held) == (box.importance < 0.05 and p > 0.2)
    for name, box in held.items():
        assert box.fixed == best.hyperparameters[name]
        assert f"guided proposals take the value of {region.trials[0]}" in box.reason
        parameter = regions.space[name]
        whole = parameter.choices if isinstance(parameter, Choices) else (parameter.low, parameter.high)
        assert (box.choices or (box.low, box.high)) == whole
        assert name in region.reason
    free, _ = made.transferred(made.config(proxy__random=60, transfer__fix_below=0.0))
    assert all(box.fixed is None for box in free.regions[0].boxes.values())
    assert free.regions[0].volume == region.volume
    default, _ = made.transferred(made.config(proxy__random=60))
    fixed_by_default = {n for n, box in default.regions[0].boxes.items() if box.fixed is not None}
    assert fixed_by_default == {n for n in held if held[n].importance < 0.01} != set()


def test_a_negligible_learning_rate_is_fixed_at_its_rescaled_value() -> None:
    study = made.config(
        proxy__random=60,
        proxy__grid={},
        transfer__fix_below=0.05,
        space__learning_rate={"low": 1e-3, "high": 1e-2, "log": True},
    )

    def loss(spec: TrialSpec) -> float:
        return 2 + float(spec.hyperparameters["warmup_ratio"])

    regions, starts = made.transferred(study, loss)
    best = next(start for start in starts.starts if start.parents == regions.regions[0].trials[:1])
    rate = regions.regions[0].boxes["learning_rate"].fixed
    records = {record.spec.id: record.spec for record in made.proxy_records(study)}
    assert rate == best.hyperparameters["learning_rate"]
    assert rate == pytest.approx(float(records[best.parents[0]].hyperparameters["learning_rate"]) * made.FACTOR)


def test_nothing_is_fixed_where_little_was_seen() -> None:
    study = made.config(transfer__fix_below=0.05)
    options, records = made.section(study, "transfer"), made.proxy_records(study)
    counts = {}
    for count in (3, 19, 20, 51):
        regions, _ = transfer(options, trials_frame(records[:count]), made.PROXY, made.TARGET)
        counts[count] = sum(box.fixed is not None for box in regions.regions[0].boxes.values())
    assert counts[3] == counts[19] == 0
    assert counts[20] > 0
    assert counts[51] > 0


def test_two_regions_around_two_optima() -> None:
    study = made.config(proxy__random=60, proxy__sobol=0)
    regions, starts = made.transferred(study, two_bowls)
    assert len(regions.regions) >= 2
    assert math.fsum(region.share for region in regions.regions) == pytest.approx(1)
    assert [region.best_objective for region in regions.regions] == sorted(r.best_objective for r in regions.regions)
    rates = [(r.boxes["learning_rate"].low or 0) * (r.boxes["learning_rate"].high or 0) for r in regions.regions]
    assert max(rates) > 50 * min(rates)
    firsts = [start.parents[0] for start in starts.starts if start.origin == "transferred"]
    assert set(firsts[: len(regions.regions)]) == {region.trials[0] for region in regions.regions}
    assert sum(len(region.trials) for region in regions.regions) == regions.top


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("padding", [0.0, 0.1, 1.0])
def test_boxes_lie_in_the_space_and_hold_their_trials(method: str, padding: float) -> None:
    study = made.config(
        target__method=method,
        transfer__padding=padding,
        space__lora_alpha={"low": 8, "high": 64},
        space__batch_size={"low": 4, "high": 32},
    )
    regions, starts = made.transferred(study, two_bowls)
    images = {start.parents[0]: start for start in starts.starts if start.origin == "transferred"}
    assert ("lora_r" in regions.space) == (method == "lora")
    for region in regions.regions:
        assert list(region.boxes) == list(regions.space)
        for name, box in region.boxes.items():
            parameter = regions.space[name]
            ends = box.choices if box.choices is not None else (box.low, box.high)
            assert all(parameter.contains(end) for end in ends if end is not None)
            assert box.choices or (box.low is not None and box.high is not None and box.low <= box.high)
        for trial in region.trials:
            if trial in images:
                assert outside(region, images[trial].hyperparameters) == []
    for start in starts.starts:
        assert all(parameter.contains(start.hyperparameters[name]) for name, parameter in regions.space.items())
        assert ("lora_r" in start.hyperparameters) == (method == "lora")
    assert all(parameter.contains(starts.default[name]) for name, parameter in regions.space.items())


def test_the_best_start_comes_first_and_defaults_by_their_evidence() -> None:
    study = made.config()
    regions, starts = made.transferred(study)
    first = starts.starts[0]
    assert first.parents == (regions.regions[0].trials[0],)
    assert first.expected_rank == 1
    assert starts.default["learning_rate"] == pytest.approx(learning_rate_rule(192, "llama", "lora"), rel=1e-5)
    identities = [str(sorted(start.hyperparameters.items())) for start in starts.starts]
    assert len(set(identities)) == len(identities)
    # In the made-up bowl both fixed rates are far below the best one: they come after everything else.
    assert [start.parents for start in starts.starts[-2:]] == [("d01",), ("d02",)]
    assert [start.hyperparameters["learning_rate"] for start in starts.starts[-2:]] == [3e-4, 1e-3]


def default_is_best(spec: TrialSpec) -> float:
    return 1.0 if spec.id == "d00" else made.bowl(spec)


def check_the_default_is_its_counterparts_image(proxy: int, target: int, study: StudyConfig) -> None:
    """d00 is the proxy's best trial: its image is the first start, and the default, and comes once."""
    cards = made.card("proxy", proxy), made.card("target", target)
    regions, starts = made.transferred(study, default_is_best, *cards)
    first = starts.starts[0]
    assert first.parents == ("d00",)
    assert first.hyperparameters == starts.default
    assert sum(start.parents == ("d00",) for start in starts.starts) == 1
    rule = learning_rate_rule(target, "llama", study.target.method)
    assert starts.default["learning_rate"] == pytest.approx(rule, rel=2e-5)
    rates = regions.space["learning_rate"]
    if isinstance(rates, Choices):
        near = [rate for rate in rates.choices if float(rate) == pytest.approx(rule, rel=1e-4)]
        assert near == [starts.default["learning_rate"]]
    proposal = made.next_proposal(study, Path(), 0, regions, starts)
    settings = made.section(study, "search")
    (echo,) = plan_echo(settings, cards[0], made.EXECUTION, regions.scale, "echo-000", [proposal]).specs
    (own,) = made.planned(settings, "default", 0, 1, cards[0]).specs
    shared = proposal.spec.hyperparameters
    assert {name: echo.hyperparameters[name] for name in shared} == {n: own.hyperparameters[n] for n in shared}


SMALL = {"proxy__random": 4, "proxy__sobol": 0, "proxy__grid": {}}


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("rates", [{"low": 1e-4, "high": 1e-1, "log": True}, [1e-4, 1e-3, 1e-2]])
def test_the_default_comes_once_at_widths_whose_rounding_differs(method: str, rates: Any) -> None:
    study = made.config(**SMALL, target__method=method, space__learning_rate=rates)
    check_the_default_is_its_counterparts_image(32, 64, study)


@settings(max_examples=20, deadline=None)
@given(st.integers(16, 8192), st.integers(16, 8192), st.sampled_from(["lora", "full"]))
def test_the_default_comes_once_at_any_width(proxy: int, target: int, method: str) -> None:
    check_the_default_is_its_counterparts_image(proxy, target, made.config(**SMALL, target__method=method))


@pytest.mark.parametrize("proxy", range(16, 2049, 127))
@pytest.mark.parametrize("target", [64, 896, 4096])
def test_the_rule_is_scaled_and_stays_itself(proxy: int, target: int) -> None:
    """Tolerance is wide enough at every border of rounding: many widths, without a transfer."""
    scale = scale_rules(made.card("proxy", proxy), made.card("target", target), "lora", "auto")
    image = scaled(learning_rate_rule(proxy, "llama", "lora"), scale["learning_rate"].factor)
    assert image == pytest.approx(learning_rate_rule(target, "llama", "lora"), rel=SAME_RATE)


def test_a_shorter_proxy_trial_scales_the_rate_by_tokens() -> None:
    """A quarter of the steps: four times the tokens on the target."""
    plain, short = made.config(), made.config(proxy__fidelity=0.25)
    (before, _), (after, starts) = made.transferred(plain), made.transferred(short)
    expected = before.scale["learning_rate"].factor * 4**plain.transfer.learning_rate_tokens_exponent
    assert after.scale["learning_rate"].factor == pytest.approx(expected, rel=1e-5)
    assert "for more tokens" in after.scale["learning_rate"].rule
    assert starts.default["learning_rate"] == learning_rate_rule(made.TARGET.hidden_size, "llama", "lora")
    assert {spec.fidelity for spec in made.planned(made.section(short, "search"), "random", 0, 2).specs} == {0.25}
    off = made.config(proxy__fidelity=0.25, transfer__learning_rate_tokens_exponent=0.0)
    assert made.transferred(off)[0].scale == before.scale


def test_a_default_that_tokens_alone_tell_from_its_image_waits() -> None:
    study = made.config(proxy__fidelity=0.5)
    _, starts = made.transferred(study, default_is_best)
    assert starts.starts[0].parents == ("d00",)
    assert starts.starts[0].hyperparameters != starts.default
    assert starts.default in [start.hyperparameters for start in starts.starts[3:]]


def test_models_of_different_exponents_have_different_defaults() -> None:
    study = made.config(**SMALL)
    cards = made.card("proxy", 64), made.card("target", 192, "qwen2")
    _, starts = made.transferred(study, default_is_best, *cards)
    assert starts.default["learning_rate"] == learning_rate_rule(192, "qwen2", "lora")
    assert starts.starts[0].parents == ("d00",)
    assert starts.starts[0].hyperparameters != starts.default


def test_a_fixed_rate_that_did_well_is_tried_early() -> None:
    def low_rates(spec: TrialSpec) -> float:
        return 2 + abs(math.log10(float(spec.hyperparameters["learning_rate"]) / 3.3e-4))

    _, starts = made.transferred(made.config(), low_rates)
    fixed = [start.hyperparameters["learning_rate"] for start in starts.starts[:4] if start.origin == "default"]
    assert fixed[:2] == [3e-4, 1e-3]
    assert {start.expected_rank for start in starts.starts if start.hyperparameters["learning_rate"] == 3e-4} == {None}


def test_choices_of_rates_are_scaled_and_united() -> None:
    study = made.config(space__learning_rate=[1e-3, 3e-3, 1e-2, 3e-2], proxy__random=40)
    regions, starts = made.transferred(study)
    rates = regions.space["learning_rate"]
    assert isinstance(rates, Choices)
    assert rates.ordered
    assert {1e-3, 3e-2} < set(rates.choices)
    assert starts.starts[0].hyperparameters["learning_rate"] in rates.choices
    chosen = regions.regions[0].boxes["learning_rate"].choices
    assert chosen
    assert all(inside(regions.regions[0].boxes["learning_rate"], value) for value in chosen)
    assert len(chosen) < len(rates.choices)


def test_echoes_change_nothing() -> None:
    study = made.config()
    records = made.proxy_records(study)
    echo = records[0].model_copy(update={"spec": records[0].spec.model_copy(update={"id": "e0000", "origin": "echo"})})
    options = made.section(study, "transfer")
    plain = transfer(options, trials_frame(records), made.PROXY, made.TARGET)
    assert transfer(options, trials_frame([*records, echo]), made.PROXY, made.TARGET) == plain


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_trials_give_a_region_that_excludes_nothing(count: int) -> None:
    study = made.config()
    records = made.proxy_records(study)[:count]
    options = made.section(study, "transfer")
    regions, starts = transfer(options, trials_frame(records), made.PROXY, made.TARGET)
    assert regions.top == min(3, count)
    assert len(regions.regions) == 1
    assert len(starts.starts) >= 3
    if count < 4:
        assert regions.regions[0].volume == pytest.approx(1)


def test_no_complete_trial_is_an_error_that_counts() -> None:
    study = made.config()
    records = [made.record(record.spec, status="diverged") for record in made.proxy_records(study)[:3]]
    with pytest.raises(UnderstudyError, match="3 diverged"):
        transfer(made.section(study, "transfer"), trials_frame(records), made.PROXY, made.TARGET)


def test_the_command_writes_both_files_the_same_each_time(tmp_path: Path) -> None:
    study = made.config()
    trials_frame(made.proxy_records(study)).write_parquet(tmp_path / "trials.parquet")
    write_json(tmp_path / "transfer.json", made.section(study, "transfer"))
    write_json(tmp_path / "proxy.json", made.PROXY)
    write_json(tmp_path / "target.json", made.TARGET)
    contents = []
    for run in ("a", "b"):
        words = {
            "settings": "transfer.json",
            "trials": "trials.parquet",
            "proxy-model": "proxy.json",
            "target-model": "target.json",
            "regions": f"{run}/regions.json",
            "starts": f"{run}/starts.json",
        }
        assert main(["transfer", *(part for k, v in words.items() for part in (f"--{k}", str(tmp_path / v)))]) == 0
        contents.append([(tmp_path / run / name).read_bytes() for name in ("regions.json", "starts.json")])
    assert contents[0] == contents[1]
    regions, starts = made.transferred(study)
    assert read_model(tmp_path / "a" / "regions.json", Regions) == regions
    assert read_model(tmp_path / "a" / "starts.json", Starts) == starts
