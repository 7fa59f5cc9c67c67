"""How much each hyperparameter matters: functional ANOVA on the ranks of a stage's trials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from understudy.hyperparameters import Value
from understudy.search.fanova import variance_shares
from understudy.space import Choices, Space, widen
from understudy.trial import derive_seed

FEWEST = 4  # complete or stopped trials below which nothing is said
BAD = ("diverged", "out_of_memory")
SCHEMA = {"parameter": pl.String, "importance": pl.Float64}


def importance_table(frame: pl.DataFrame, space: Space, seed: int) -> pl.DataFrame:
    """Columns parameter, importance; the shares sum to 1 and are sorted from the largest.

    `frame` is the trial table of one stage. The importance is the share of the variance that a random forest's
    marginal over one hyperparameter explains (fANOVA, Hutter et al. 2014, on scikit-learn's forest), in unit
    coordinates. The objective enters as its rank, so that one loss out of scale can't decide everything: a trial that
    halving stopped goes by its last validation loss, and those that diverged or ran out of memory share the worst rank.
    Empty below four trials that are complete or stopped, or where all are equally good.
    """
    rows = frame.filter(pl.col("status").is_in(["complete", "stopped", *BAD])).sort("id")
    ranks = standings(rows)
    names = [name for name in space if name in rows.columns and rows[name].null_count() == 0]
    judged = rows.filter(pl.col("status").is_in(["complete", "stopped"])).height
    if judged < FEWEST or len(set(ranks)) < 2 or not names:
        return pl.DataFrame(schema=SCHEMA)
    shares = _fanova(rows.select(names).to_dicts(), ranks, {n: space[n] for n in names}, seed)
    table = pl.DataFrame({"parameter": list(shares), "importance": list(shares.values())}, schema=SCHEMA)
    return table.sort(["importance", "parameter"], descending=[True, False])


def standings(rows: pl.DataFrame) -> list[float]:
    """Each trial's rank from 1 for the best; equals share the mean of their ranks.

    A trial that was stopped goes by the last validation loss that was seen of it. What failed is worst.
    """
    keys = [_standing(row) for row in rows.select("status", "objective", "last_eval_loss").to_dicts()]
    places = {key: place for place, key in enumerate(sorted(set(keys)))}
    return pl.Series([places[key] for key in keys], dtype=pl.Int64).rank().to_list()


def _standing(row: Mapping[str, Any]) -> tuple[bool, float]:
    if row["status"] in BAD:
        return True, 0.0
    loss = row["objective"] if row["status"] == "complete" else row["last_eval_loss"]
    return False, math.inf if loss is None or math.isnan(loss) else loss


def _fanova(configurations: list[dict[str, Value]], targets: list[float], space: Space, seed: int) -> dict[str, float]:
    """Share of the variance by name; they sum to 1. A single choice has none, unless nothing has any."""
    wide = widen(space, list(configurations))
    columns: list[list[float]] = []
    places: dict[str, list[int]] = {}
    for name in sorted(wide):  # trees draw their columns by number
        parameter = wide[name]
        values = [configuration[name] for configuration in configurations]
        if isinstance(parameter, Choices) and len(parameter.choices) == 1:
            found = []
        elif parameter.ordered:
            found = [[parameter.to_unit(value) for value in values]]
        else:
            found = [[float(value == choice) for value in values] for choice in parameter.choices]
        places[name] = list(range(len(columns), len(columns) + len(found)))
        columns += found
    shares = variance_shares(
        np.array(columns).T, np.array(targets), list(places.values()), derive_seed(seed, "importance")
    )
    total, by_name = math.fsum(shares), dict(zip(places, shares, strict=True))
    return {name: by_name[name] / total if total else 1 / len(space) for name in space}
