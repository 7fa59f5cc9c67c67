"""The trial table and what is derived from it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

import synthetic_study
from understudy.artifacts import Explained, Outlook
from understudy.cli import main
from understudy.errors import CorruptFileError
from understudy.files import write_json
from understudy.hyperparameters import HYPERPARAMETERS
from understudy.summary import derived
from understudy.summary.panels import by_name, pairs_of
from understudy.summary.tables import (
    costs_frame,
    curves_frame,
    provenance_frame,
    trials_frame,
    write_csv,
    write_parquet,
)
from understudy.trial import PackResults, TrialRecord


@pytest.fixture(scope="module")
def study() -> synthetic_study.Study:
    return synthetic_study.make()


@pytest.fixture(scope="module")
def trials(study: synthetic_study.Study) -> pl.DataFrame:
    return trials_frame(study.records)


def changed(record: TrialRecord, **result: object) -> TrialRecord:
    return record.model_copy(update={"result": record.result.model_copy(update=result)})


def test_the_table_is_the_same_bytes_in_any_order(study: synthetic_study.Study, tmp_path: Path) -> None:
    for name in ("one", "two"):
        records = list(study.records)
        random.Random(name).shuffle(records)
        for table in (trials_frame, costs_frame, curves_frame, provenance_frame):
            write_parquet(table(records), tmp_path / name / f"{table.__name__}.parquet")
        write_csv(trials_frame(records), tmp_path / name / "trials.csv")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_cost_and_provenance_cannot_change_the_trial_table(study: synthetic_study.Study) -> None:
    elsewhere = [
        changed(r, cost=r.result.cost.model_copy(update={"wall_seconds": 9.9}), provenance={"host": "other"})
        for r in study.records
    ]
    assert trials_frame(elsewhere).equals(trials_frame(study.records))
    assert not costs_frame(elsewhere).equals(costs_frame(study.records))


def test_rows_say_what_the_records_say(study: synthetic_study.Study, trials: pl.DataFrame) -> None:
    assert trials.select("stage", "id").rows() == sorted((r.spec.stage, r.spec.id) for r in study.records)
    kinds = {float: pl.Float64, int: pl.Int64, str: pl.String, bool: pl.Boolean}
    for name, item in HYPERPARAMETERS.items():
        assert trials.schema[name] == kinds[item.kind]
    record = study.targets[3]
    row = trials.row(by_predicate=(pl.col("id") == "t0003") & (pl.col("stage") == "target"), named=True)
    assert row["objective"] == record.result.objective
    assert row["parents"] == ["q0003"]
    assert row["metric_bits_per_byte"] == record.result.metrics["bits_per_byte"]
    assert {name: row[name] for name in record.spec.hyperparameters} == record.spec.hyperparameters


def test_only_complete_trials_have_an_objective_and_missing_values_are_null(study: synthetic_study.Study) -> None:
    record = study.targets[0]
    full = {name: value for name, value in record.spec.hyperparameters.items() if not name.startswith("lora_")}
    spec = record.spec.model_copy(update={"hyperparameters": full, "method": "full"})
    odd = changed(record, status="stopped", objective=1.0, metrics={}).model_copy(update={"spec": spec})
    row = trials_frame([odd, *study.targets[1:]]).row(0, named=True)
    assert row["objective"] is None
    assert row["lora_r"] is None
    assert row["metric_bits_per_byte"] is None


def test_a_stopped_trial_keeps_its_curve_and_its_last_loss(study: synthetic_study.Study) -> None:
    points = study.targets[0].result.curve[:2]
    lost = changed(study.targets[0], status="stopped", objective=None, metrics={}, curve=points)
    bare = changed(study.targets[1], status="stopped", objective=None, metrics={}, curve=())
    rows = trials_frame([lost, bare, *study.targets[2:]]).select("objective", "last_eval_loss").rows()
    assert rows[:2] == [(None, points[1].eval_loss), (None, None)]
    assert rows[2] == (study.targets[2].result.objective, study.targets[2].result.curve[-1].eval_loss)
    assert curves_frame([lost])["eval_loss"].to_list() == [point.eval_loss for point in points]


def test_an_empty_study_has_typed_tables() -> None:
    assert trials_frame([]).schema["parents"] == pl.List(pl.String)
    assert len(curves_frame([])) == len(costs_frame([])) == len(provenance_frame([])) == 0


def test_an_id_given_twice_is_refused(study: synthetic_study.Study) -> None:
    with pytest.raises(CorruptFileError, match="target/t0000"):
        trials_frame([*study.targets, study.targets[0]])


def test_csv_joins_parents_with_spaces(study: synthetic_study.Study, tmp_path: Path) -> None:
    spec = study.targets[0].spec.model_copy(update={"parents": ("q0001", "r0002")})
    write_csv(trials_frame([study.targets[0].model_copy(update={"spec": spec})]), tmp_path / "t.csv")
    assert pl.read_csv(tmp_path / "t.csv")["parents"].to_list() == ["q0001 r0002"]


def test_collect_proxy_gathers_every_pack(study: synthetic_study.Study, tmp_path: Path) -> None:
    packs = {"b": study.proxy[:20], "a": study.proxy[20:]}
    for name, records in packs.items():
        write_json(tmp_path / f"{name}.json", PackResults(id=name, records=tuple(records)))
    files = [str(tmp_path / f"{name}.json") for name in packs]
    assert main(["collect-proxy", "--packs", *files, "--output", str(tmp_path / "trials.parquet")]) == 0
    assert pl.read_parquet(tmp_path / "trials.parquet").equals(trials_frame(study.proxy))


def test_agreement_pairs_each_trial_with_its_echo(study: synthetic_study.Study, trials: pl.DataFrame) -> None:
    pairs = derived.echo_pairs(trials)
    losses = {r.spec.id: r.result.objective for r in study.records}
    assert pairs["id"].to_list() == [f"t{i:04d}" for i in range(16) if i != 9]  # t0009 ran out of memory
    for row in pairs.iter_rows(named=True):
        assert row["target"] == losses[row["id"]]
        assert row["proxy"] == losses["e" + row["id"][1:]]
    found = by_name(derived.agreement(pairs, 0.95, seed=1))
    expected = stats.spearmanr(pairs["proxy"].to_numpy(), pairs["target"].to_numpy()).statistic
    assert found["spearman"][0] == pytest.approx(expected)
    assert found["spearman"][1] < expected <= found["spearman"][2]


def test_more_confidence_needs_wider_intervals(trials: pl.DataFrame) -> None:
    pairs = derived.echo_pairs(trials)
    narrow, wide = (derived.agreement(pairs, confidence, seed=1) for confidence in (0.5, 0.99))
    assert narrow["confidence"].to_list() == [0.5] * 3
    assert wide["confidence"].to_list() == [0.99] * 3
    assert ((narrow["high"] - narrow["low"]) < (wide["high"] - wide["low"])).all()


def test_the_surfaces_agreement_is_about_all_complete_target_trials(
    study: synthetic_study.Study, trials: pl.DataFrame
) -> None:
    echoed = trials.filter(pl.col("id") != "e0003")  # one pair less, but not one prediction less
    echoes = derived.agreement(derived.echo_pairs(echoed), 0.95, seed=1)
    pairs = derived.surface_pairs(echoed, study.proposals)
    losses = {r.spec.id: r.result.objective for r in study.targets}
    told = {proposal.spec.id: proposal.predicted for proposal in study.proposals}
    assert pairs.rows() == [(i, losses[i], told[i]) for i in sorted(losses) if losses[i] is not None]
    table = derived.with_surface(echoes, pairs, 0.95, seed=1)
    assert table[:3].equals(echoes)
    assert table["statistic"].to_list()[3:] == ["surface_spearman", "surface_kendall", "surface_top_quartile_recall"]
    assert (pairs_of(table), pairs_of(table, "surface_spearman")) == (14, 15)
    found = by_name(table)
    x, y = pairs["predicted"].to_numpy(), pairs["target"].to_numpy()
    assert found["surface_spearman"][0] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found["surface_kendall"][0] == pytest.approx(stats.kendalltau(x, y).statistic)
    assert found["surface_spearman"][1] < found["surface_spearman"][0] <= found["surface_spearman"][2]
    assert found["surface_spearman"] != found["spearman"]


def test_without_predictions_there_are_no_rows_about_the_surface(
    study: synthetic_study.Study, trials: pl.DataFrame
) -> None:
    silent = [proposal.model_copy(update={"predicted": None}) for proposal in study.proposals]
    pairs = derived.surface_pairs(trials, silent)
    table = derived.agreement(derived.echo_pairs(trials), 0.95, seed=1)
    assert len(pairs) == 0
    assert derived.with_surface(table, pairs, 0.95, seed=1).equals(table)
    assert pairs_of(table, "surface_spearman") == 0
    two = derived.with_surface(table, derived.surface_pairs(trials, study.proposals[:2]), 0.95, seed=1)
    assert two["value"].null_count() == 3
    assert pairs_of(two, "surface_spearman") == 2


def test_the_pairs_spread_is_compared_with_the_proxys_own_search(
    study: synthetic_study.Study, trials: pl.DataFrame
) -> None:
    pairs = derived.echo_pairs(trials)
    table = derived.with_spread(derived.agreement(pairs, 0.95, seed=1), pairs, trials)
    own = [r.result.objective for r in study.proxy if r.spec.origin != "echo" and r.result.objective is not None]
    near = pairs["proxy"].to_list()
    expected = (np.median(near) - min(near)) / (np.median(own) - min(own))
    assert by_name(table)["pair_spread"][0] == pytest.approx(expected)
    assert pairs_of(table) == 15
    one = derived.with_spread(derived.agreement(pairs, 0.95, seed=1), pairs[:1], trials)
    assert "pair_spread" not in one["statistic"]
    assert "pair_spread" not in derived.with_spread(table[:3], pairs, trials.filter(pl.col("origin") == "echo"))


def test_how_well_the_proxys_losses_follow_is_a_row(trials: pl.DataFrame) -> None:
    table = derived.agreement(derived.echo_pairs(trials), 0.95, seed=1)
    told = derived.with_explained(table, Explained(value=0.7, trials=30))
    assert by_name(told)["proxy_explained"][0] == 0.7
    assert pairs_of(told, "proxy_explained") == 30
    assert told.schema == table.schema
    assert pairs_of(told) == pairs_of(table)
    assert derived.with_explained(table, None).equals(table)


def test_without_echoes_there_is_no_agreement(study: synthetic_study.Study) -> None:
    alone = trials_frame([r for r in study.records if r.spec.origin != "echo"])
    table = derived.agreement(derived.echo_pairs(alone), 0.95, seed=1)
    assert table["value"].null_count() == len(table) == 3
    assert table["pairs"].to_list() == [0, 0, 0]


def test_costs_sum_by_stage(study: synthetic_study.Study, trials: pl.DataFrame) -> None:
    table = derived.cost_per_stage(trials, costs_frame(study.records))
    assert table["stage"].to_list() == ["proxy", "echo", "target", "finalist", "total"]
    assert table["trials"].to_list() == [52, 16, 16, 9, 93]
    flops = {r.spec.id: r.result.cost.flops for r in study.proxy if r.spec.origin != "echo"}
    assert table["flops"][0] == pytest.approx(sum(flops.values()))
    assert table["share"][:4].sum() == pytest.approx(1)
    assert table["share"][0] == pytest.approx(table["flops"][0] / table["flops"][4])


def test_rates_are_means_over_the_time_they_took(study: synthetic_study.Study, trials: pl.DataFrame) -> None:
    """Tokens per second of all time, MFU of the GPU time for which it is known."""
    gpu = {"t0000": (10.0, 0.5), "t0001": (30.0, 0.1), "t0002": (99.0, None)}
    costs = costs_frame(study.records).with_columns(
        pl.col("id")
        .replace_strict({id: seconds for id, (seconds, _) in gpu.items()}, default=0.0)
        .alias("gpu_seconds"),
        pl.col("id").replace_strict({id: mfu for id, (_, mfu) in gpu.items()}, default=None).alias("mfu"),
    )
    table = derived.cost_per_stage(trials, costs)
    assert table.filter(pl.col("stage") == "target")["mfu"].item() == pytest.approx((10 * 0.5 + 30 * 0.1) / 40)
    assert table["mfu"].null_count() == 3, "all but the target and the total"
    proxy = [r.result.cost for r in study.proxy if r.spec.origin != "echo"]
    expected = sum(cost.tokens for cost in proxy) / sum(cost.wall_seconds for cost in proxy)
    assert table["tokens_per_second"][0] == pytest.approx(expected)


def test_the_leaderboard_ranks_finalists_first(study: synthetic_study.Study, trials: pl.DataFrame) -> None:
    table = derived.leaderboard(trials, study.winner, list(study.config.space))
    finalists, targets = table[:3], table[3:]
    assert finalists["name"][0] == f"finalist {study.winner.rank}"
    assert finalists["winner"].to_list() == [True, False, False]
    for score in study.winner.scores:
        row = finalists.row(
            by_predicate=pl.col("name") == (f"finalist {score.rank}" if score.rank else "default"), named=True
        )
        assert row["mean"] == pytest.approx(np.mean(score.objectives))
        assert row["sd"] == pytest.approx(np.std(score.objectives, ddof=1))
    assert targets["mean"].to_list()[:-1] == sorted(targets["mean"].to_list()[:-1])
    assert targets["name"][-1] == "t0009"
    assert targets["status"][-1] == "out_of_memory"


def test_progress_starts_with_the_proxys_cost(study: synthetic_study.Study, trials: pl.DataFrame) -> None:
    costs = costs_frame(study.records)
    steps = derived.progress_steps(trials, costs, {p.spec.id: p.kind for p in study.proposals})
    spent = sum(r.result.cost.flops for r in study.proxy if r.spec.origin != "echo")
    best = float("inf")
    for row, record, proposal in zip(steps.iter_rows(named=True), study.targets, study.proposals, strict=True):
        spent += record.result.cost.flops
        best = min(best, record.result.objective or float("inf"))
        assert row["flops"] == pytest.approx(spent)
        assert row["best"] == best
        assert row["kind"] == proposal.kind


def test_the_default_is_found_among_trials_or_finalists(study: synthetic_study.Study, trials: pl.DataFrame) -> None:
    default = study.starts.default
    assert derived.default_loss(trials, default) == study.targets[1].result.objective
    unsearched = trials.filter(pl.col("id") != "t0001")
    seeds = [r.result.objective for r in study.finalists[:3]]
    assert derived.default_loss(unsearched, default) == pytest.approx(np.mean(seeds))
    assert derived.default_loss(unsearched.filter(pl.col("stage") == "proxy"), default) is None


def test_a_configuration_that_came_again_is_one_pair(study: synthetic_study.Study, trials: pl.DataFrame) -> None:
    pairs, foreseen = derived.echo_pairs(trials), derived.surface_pairs(trials, study.proposals)
    first, again = pairs["id"][:2]
    digest = trials.filter(id=first)["digest"][0]
    repeated = trials.with_columns(
        pl.when(pl.col("id") == again).then(pl.lit(digest)).otherwise("digest").alias("digest")
    )
    assert derived.echo_pairs(repeated).equals(pairs.filter(pl.col("id") != again))
    assert derived.surface_pairs(repeated, study.proposals).equals(foreseen.filter(pl.col("id") != again))


def test_trust_is_what_the_last_proposal_believed(study: synthetic_study.Study, trials: pl.DataFrame) -> None:
    agreed = derived.agreement(derived.echo_pairs(trials), 0.95, seed=1)
    assert derived.with_trust(agreed, study.proposals).equals(agreed)
    outlooks = [Outlook(trust=trust, chance=0.5, rate_shift=1.0) for trust in (0.9, 0.4, 0.2)]
    proposals = [
        proposal.model_copy(update={"outlook": outlook, "visible": ()})
        for proposal, outlook in zip(study.proposals, [*outlooks, None], strict=False)
    ]
    assert derived.with_trust(agreed, proposals).equals(agreed)  # nothing but the model's prior
    proposals[2] = proposals[2].model_copy(update={"visible": ("t0000",)})
    table = derived.with_trust(agreed, proposals)
    assert by_name(table)["trust"][0] == 0.2
    assert table.schema == agreed.schema
    assert pairs_of(table) == pairs_of(agreed) == 15
