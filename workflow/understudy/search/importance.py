"""How much each hyperparameter matters: functional ANOVA on the ranks of a stage's trials."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import polars as pl

from understudy.hyperparameters import Value
from understudy.search.quiet import quiet_optuna
from understudy.space import Space, widen
from understudy.trial import derive_seed

FEWEST = 4  # complete or stopped trials below which nothing is said
BAD = ("diverged", "out_of_memory")
SCHEMA = {"parameter": pl.String, "importance": pl.Float64}


def importance_table(frame: pl.DataFrame, space: Space, seed: int) -> pl.DataFrame:
    """Columns parameter, importance; the shares sum to 1 and are sorted from the largest.

    `frame` is the trial table of one stage. The importance is the share of the variance that a random forest's
    marginal over one hyperparameter explains (fANOVA, Hutter et al. 2014, by optuna and scikit-learn), in unit
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
    """Share of the variance by name."""
    with quiet_optuna() as optuna, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's and optuna's remarks on their own interfaces
        wide = widen(space, list(configurations))
        study = optuna.create_study()
        distributions = {
            name: optuna.distributions.FloatDistribution(0.0, 1.0)
            if parameter.ordered
            else optuna.distributions.CategoricalDistribution(range(len(parameter.choices)))
            for name, parameter in wide.items()
        }
        for values, target in zip(configurations, targets, strict=True):
            params = {
                name: parameter.to_unit(values[name]) if parameter.ordered else parameter.choices.index(values[name])
                for name, parameter in wide.items()
            }
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=target))
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=derive_seed(seed, "importance"))
        shares: dict[str, float] = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(shares[name]) for name in space}
