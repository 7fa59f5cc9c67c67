"""Tables that answer a question: who is best, does the proxy agree, what did it cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import polars as pl

from understudy.artifacts import Explained, Proposal, Regions, Winner
from understudy.hyperparameters import HYPERPARAMETERS, Value
from understudy.summary.statistics import Statistic, bootstrap_pairs, kendall, spearman, top_quartile_recall
from understudy.trial import TrialRecord, derive_seed

AGREEMENT_SCHEMA = {
    "statistic": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "confidence": pl.Float64,
    "pairs": pl.Int64,
}
STATISTICS: Mapping[str, Statistic] = {
    "spearman": spearman,
    "kendall": kendall,
    "top_quartile_recall": top_quartile_recall,
}
EARLY_STOPPING_SCHEMA = {"stopped": pl.Int64, "trials": pl.Int64, "saved": pl.Float64}
SURFACE = "surface_"  # before the names of statistics about what the proxy's surface predicted
IMPORTANCE_SCHEMA = {"stage": pl.String, "parameter": pl.String, "importance": pl.Float64}
STAGE_ORDER = ("proxy", "echo", "truncated", "target", "finalist", "total")
SECONDS_PER_HOUR = 3600.0


def echo_pairs(trials: pl.DataFrame) -> pl.DataFrame:
    """Configurations that both models ran to the end: id (the target trial's), echo, target and proxy loss; by id."""
    echoes = trials.filter(pl.col("stage") == "proxy", pl.col("origin") == "echo").select(
        pl.col("parents").list.first().alias("id"), pl.col("id").alias("echo"), pl.col("objective").alias("proxy")
    )
    pairs = _target_runs(trials).join(echoes, on="id").drop_nulls()
    return pairs.select("id", "echo", "target", "proxy").sort("id", "echo")


def surface_pairs(trials: pl.DataFrame, proposals: Sequence[Proposal]) -> pl.DataFrame:
    """Target trials that ran to the end, and what the proxy's surface predicted of them: id, target, predicted; by id.

    Losses in nats, the predicted one at the proxy's level. The surface was fitted before any target result.
    """
    known = {proposal.spec.id: proposal.predicted for proposal in proposals if proposal.predicted is not None}
    told = pl.DataFrame(list(known.items()), schema={"id": pl.String, "predicted": pl.Float64}, orient="row")
    return _target_runs(trials).join(told, on="id").drop_nulls().sort("id")


def _target_runs(trials: pl.DataFrame) -> pl.DataFrame:
    """Target trials, id and target, each training run once: where a space is small some of them come again."""
    runs = trials.filter(pl.col("stage") == "target").sort("id").unique("digest", keep="first", maintain_order=True)
    return runs.select("id", pl.col("objective").alias("target"))


def agreement(pairs: pl.DataFrame, confidence: float, seed: int) -> pl.DataFrame:
    """Rank agreement of proxy and target on `echo_pairs`, with intervals: `AGREEMENT_SCHEMA`.

    Value and interval are null where there are too few pairs to tell.
    """
    return _agreement(pairs, "proxy", "", confidence, seed)


def with_surface(agreement: pl.DataFrame, pairs: pl.DataFrame, confidence: float, seed: int) -> pl.DataFrame:
    """The agreement with rows `surface_…`, the same statistics on `surface_pairs`; as it was where there are none."""
    if not len(pairs):
        return agreement
    return pl.concat([agreement, _agreement(pairs, "predicted", SURFACE, confidence, seed)])


def _agreement(pairs: pl.DataFrame, other: str, prefix: str, confidence: float, seed: int) -> pl.DataFrame:
    """Every statistic of a column and the target's losses, its name after a prefix."""
    x, y = (pairs[name].to_numpy() for name in (other, "target"))
    rows = []
    for name, statistic in STATISTICS.items():
        found = bootstrap_pairs(x, y, statistic, confidence, derive_seed(seed, "summary", prefix + name))
        numbers = found.model_dump() if found else {"confidence": confidence}
        rows.append({"statistic": prefix + name, "pairs": len(pairs), **numbers})
    return pl.DataFrame(rows, schema=AGREEMENT_SCHEMA)


def with_explained(agreement: pl.DataFrame, explained: Explained | None) -> pl.DataFrame:
    """The agreement with a row `proxy_explained`: how well the proxy's losses follow its hyperparameters, an R².

    `pairs` are the trials that were predicted. No row where there were too few to tell.
    """
    if explained is None:
        return agreement
    row = {"statistic": "proxy_explained", "value": explained.value, "pairs": explained.trials}
    return _with_row(agreement, row)


def with_spread(agreement: pl.DataFrame, pairs: pl.DataFrame, trials: pl.DataFrame) -> pl.DataFrame:
    """The agreement with a row `pair_spread`: how far apart the `echo_pairs` lie on the proxy.

    That is the distance from their best to their median loss there, as a share of the same distance in the proxy's own
    search. The smaller it is, the more noise decides their order. No row where either has no two losses.
    """
    own = pl.col("stage") == "proxy", pl.col("origin") != "echo"
    search, near = _best_to_median(trials.filter(*own)["objective"]), _best_to_median(pairs["proxy"])
    if not search or near is None:
        return agreement
    return _with_row(agreement, {"statistic": "pair_spread", "value": near / search, "pairs": len(pairs)})


def _best_to_median(losses: pl.Series) -> float | None:
    known = losses.drop_nulls().to_list()
    return statistics.median(known) - min(known) if len(known) > 1 else None


def _with_row(agreement: pl.DataFrame, row: Mapping[str, object]) -> pl.DataFrame:
    """The table with a row that has no interval."""
    return pl.concat([agreement, pl.DataFrame([row], schema_overrides=AGREEMENT_SCHEMA)], how="diagonal")


def with_trust(agreement: pl.DataFrame, proposals: Sequence[Proposal]) -> pl.DataFrame:
    """The agreement with a last row `trust`: what the two-fidelity model came to think of the proxy.

    No row where no proposal saw a result of the target: that would be the model's prior alone.
    """
    told = [proposal for proposal in proposals if proposal.outlook is not None and proposal.visible]
    if not told:
        return agreement
    last = max(told, key=lambda proposal: proposal.number)
    assert last.outlook is not None
    return _with_row(agreement, {"statistic": "trust", "value": last.outlook.trust, "pairs": len(last.visible)})


def cost_per_stage(trials: pl.DataFrame, costs: pl.DataFrame) -> pl.DataFrame:
    """What each stage took: stage, trials, flops, wall_seconds, gpu_hours, tokens_per_second, mfu, share.

    `wall_seconds` sums over trials as if they had run one after the other, and `tokens_per_second` goes by that sum.
    `mfu` (model FLOPs utilisation) is the mean over GPU time, null where no trial has one; `share` is that of all
    FLOPs. The echo trials, which measure how well the proxy agrees with the target, are told apart from the proxy's own
    search. The last row is the total.
    """
    stage = pl.when(pl.col("origin") == "echo").then(pl.lit("echo")).otherwise("stage")
    named = trials.select("id", "stage", stage.alias("part")).join(costs, on=["id", "stage"])
    measured = pl.when(pl.col("mfu").is_not_null()).then("gpu_seconds")
    sums = (
        pl.len().cast(pl.Int64).alias("trials"),
        pl.col("flops").sum(),
        pl.col("wall_seconds").sum(),
        (pl.col("gpu_seconds").sum() / SECONDS_PER_HOUR).alias("gpu_hours"),
        pl.when(pl.col("wall_seconds").sum() > 0)
        .then(pl.col("tokens").sum() / pl.col("wall_seconds").sum())
        .alias("tokens_per_second"),
        pl.when(measured.sum() > 0).then((pl.col("mfu") * measured).sum() / measured.sum()).alias("mfu"),
    )
    # sorted before it is summed: the last digit of a sum depends on the order
    parts = named.sort("part", "id").group_by("part", maintain_order=True).agg(sums)
    total = named.sort("part", "id").select(pl.lit("total").alias("part"), *sums) if len(named) else parts
    order = pl.col("part").replace_strict(STAGE_ORDER, range(len(STAGE_ORDER)), return_dtype=pl.Int64)
    whole = pl.col("flops").filter(pl.col("part") == "total").first()
    share = pl.when(whole > 0).then(pl.col("flops") / whole)
    together = pl.concat([parts, total]).sort(order)
    return together.with_columns(share.alias("share")).rename({"part": "stage"})


def leaderboard(trials: pl.DataFrame, winner: Winner, searched: Sequence[str]) -> pl.DataFrame:
    """Finalists by mean validation loss, then target trials by loss; what has no loss comes last in each part.

    Columns: name, kind (finalist | target), origin, winner, status, mean, sd (of a sample, over seeds), seeds (with a
    loss), then the searched hyperparameters. Finalist 0 is the default configuration.
    """
    values = [name for name in HYPERPARAMETERS if name in searched]
    columns = ["name", "kind", "origin", "winner", "status", "mean", "sd", "seeds", *values]
    parts = [_finalists(trials, winner, values), _targets(trials, values)]
    return pl.concat([part.select(columns) for part in parts])


def _finalists(trials: pl.DataFrame, winner: Winner, values: Sequence[str]) -> pl.DataFrame:
    rank = pl.col("id").str.extract(r"^f(\d+)s\d+$").cast(pl.Int64)
    seeds = pl.col("objective").count()
    name = pl.when(pl.col("rank") == 0).then(pl.lit("default")).otherwise(pl.format("finalist {}", "rank"))
    return (
        trials.filter(pl.col("stage") == "finalist")
        .with_columns(rank.alias("rank"))
        .sort("rank", "id")
        .group_by("rank", maintain_order=True)
        .agg(
            pl.lit("finalist").alias("kind"),
            pl.col("origin").first(),
            pl.when(seeds == pl.len()).then(pl.lit("complete")).otherwise(pl.lit("incomplete")).first().alias("status"),
            pl.when(seeds > 0).then(pl.col("objective").mean()).first().alias("mean"),
            pl.col("objective").std().alias("sd"),
            seeds.cast(pl.Int64).alias("seeds"),
            *(pl.col(name).first() for name in values),
        )
        .with_columns(name.alias("name"), (pl.col("rank") == winner.rank).alias("winner"))
        .sort("mean", "rank", nulls_last=True)
    )


def _targets(trials: pl.DataFrame, values: Sequence[str]) -> pl.DataFrame:
    return (
        trials.filter(pl.col("stage") == "target")
        .select(
            pl.col("id").alias("name"),
            pl.lit("target").alias("kind"),
            "origin",
            pl.lit(False).alias("winner"),
            "status",
            pl.col("objective").alias("mean"),
            pl.lit(None, pl.Float64).alias("sd"),
            pl.col("objective").is_not_null().cast(pl.Int64).alias("seeds"),
            *values,
        )
        .sort("mean", "name", nulls_last=True)
    )


def unfixed(regions: Regions) -> Regions:
    """The regions for a sampler that they don't guide: in them nothing is fixed."""
    free = [
        region.model_copy(
            update={"boxes": {name: box.model_copy(update={"fixed": None}) for name, box in region.boxes.items()}}
        )
        for region in regions.regions
    ]
    return regions.model_copy(update={"regions": tuple(free)})


def progress_steps(trials: pl.DataFrame, costs: pl.DataFrame, kinds: Mapping[str, str]) -> pl.DataFrame:
    """The target's trials in order: id, kind (start | guided | explore), objective, best (so far), flops (cumulative).

    The cumulative cost begins with the proxy's search and the truncated runs; the echoes, which come after it, aren't
    in it.
    """
    target = trials.filter(pl.col("stage") == "target").select("id", "stage", "objective")
    before = search_flops(trials, costs)
    return (
        target.join(costs.select("id", "stage", "flops"), on=["id", "stage"], how="left")
        .sort("id")
        .with_columns(
            pl.col("id").replace_strict(dict(kinds), default="guided", return_dtype=pl.String).alias("kind"),
            pl.col("objective").cum_min().forward_fill().alias("best"),
            (pl.col("flops").fill_null(0.0).cum_sum() + before).alias("flops"),
        )
        .select("id", "kind", "objective", "best", "flops")
    )


def search_flops(trials: pl.DataFrame, costs: pl.DataFrame) -> float:
    """FLOPs before the target's first trial: the proxy's own search, without the echoes, and truncated runs."""
    before = trials.filter(pl.col("stage").is_in(["proxy", "truncated"]), pl.col("origin") != "echo")
    proxy = before.select("id", "stage")
    return float(proxy.join(costs, on=["id", "stage"]).sort("id")["flops"].sum())


def default_loss(trials: pl.DataFrame, default: Mapping[str, Value]) -> float | None:
    """The default configuration's validation loss: of the search trial with its values, else the finalists' mean."""
    same = pl.all_horizontal(pl.col(name) == value for name, value in default.items())
    searched = trials.filter(pl.col("stage") == "target", same)["objective"].drop_nulls()
    repeated = trials.filter(pl.col("stage") == "finalist", pl.col("id").str.starts_with("f0s"))["objective"]
    if len(searched):
        return float(searched[0])
    mean = repeated.mean()
    return float(mean) if isinstance(mean, float) else None


def early_stopping(records: Sequence[TrialRecord], proposals: Sequence[Proposal]) -> pl.DataFrame:
    """What early stopping of target trials came to: `EARLY_STOPPING_SCHEMA`, one row, or none where it was off.

    Trials stopped and trials run, and the share of the target search's steps that weren't run. A step counts by its
    batch size, as it costs.
    """
    if not any(proposal.stop_above for proposal in proposals):
        return pl.DataFrame(schema=EARLY_STOPPING_SCHEMA)
    ran = [record for record in records if record.spec.stage == "target" and record.result.status != "skipped"]
    whole = saved = 0
    for record in ran:
        batch, stop = int(record.spec.hyperparameters["batch_size"]), record.result.early_stop
        whole += batch * (stop.steps if stop else record.result.steps)
        saved += batch * (stop.steps - stop.step if stop else 0)
    row = {
        "stopped": sum(record.result.early_stop is not None for record in ran),
        "trials": len(ran),
        "saved": saved / whole if whole else 0.0,
    }
    return pl.DataFrame([row], schema=EARLY_STOPPING_SCHEMA)


def importance(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """One table of stage, parameter and importance from one per stage, each stage's largest first."""
    stages = [table.select(pl.lit(stage).alias("stage"), "parameter", "importance") for stage, table in tables.items()]
    table = pl.concat([pl.DataFrame(schema=IMPORTANCE_SCHEMA), *stages])
    return table.sort("stage", "importance", "parameter", descending=[False, True, False])
