"""What the proxy shows of each hyperparameter: importance, evidence, groups of good trials."""

from __future__ import annotations

import math
import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

import search_study as made
from understudy.search.clusters import embed, group
from understudy.search.evidence import locate
from understudy.search.importance import importance_table, standings
from understudy.search.transfer import transfer
from understudy.space import Choices, Range
from understudy.summary.tables import trials_frame
from understudy.trial import TrialRecord, TrialSpec


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


@settings(max_examples=25)
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
