"""What stopping target trials early saves, and how often it stops the best one: a replay of finished runs.

    python tests/benchmarks/early_stopping.py [--orders 1000] [--table tests/benchmarks/transfer_runs.parquet]

The runs are the table's on the target, one seed, with their learning curves. A study is `--trials` of them in a random
order: drawn from all, or from the best quarter, as after a good proxy. Trial n is judged by the limits that a proposal
with `--window` would hold, or by one of Optuna's pruners, which sees the same trials. Orders of one half of the runs
choose margin and number of visible trials of `reach`, orders of the other half are reported. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import polars as pl

from understudy.search.early_stopping import stop_above
from understudy.search.window import visible
from understudy.stages import EarlyStoppingSettings
from understudy.steps import evaluation_step, find_stop, total_steps
from understudy.trial import CurvePoint, TrialRecord, TrialResult, TrialSpec

EXAMPLES = 960  # that a trial of the default study trains on
MARGINS = (0.0, 0.1, 0.25, 0.5, 1.0)
VISIBLE = (2, 3, 4, 6)  # one curve alone can't show how much falls differ
RISK = 0.01  # share of orders, of either kind, whose best trial a default may stop
BEST_SHARE = 0.25

Order = Sequence[TrialRecord]
Stops = dict[int, int]  # trial's place in the order to the evaluation that stopped it
Replay = Callable[[Order, int], Stops]  # of an order, with a window


@dataclass(frozen=True)
class Figures:
    """Of one contender over many orders."""

    name: str
    kind: str  # of orders
    saved: float  # share of all steps, each counted by its batch size
    stopped: float  # trials in an order
    best_stopped: float  # share of orders
    regret: float  # nats: best of those that ran in full, less the best of all; mean
    worst_regret: float


def main() -> None:
    """Choose on one half of the runs, print the table of the other half."""
    options = arguments(sys.argv[1:])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    runs = read_runs(options.table)
    first, second = (draw_orders(half, options.orders, options.trials) for half in (runs[::2], runs[1::2]))
    tuned = [
        (margin, count, measure(f"reach {margin}", ours("reach", count, margin), first, options.window))
        for margin, count in itertools.product(MARGINS, VISIBLE)
    ]
    margin, count, _ = max(tuned, key=lambda found: worth(found[2]))
    told = [
        figures
        for name, replay in contenders(count).items()
        for figures in measure(name, replay, second, options.window)
    ]
    print_table(told, margin, count, options.orders)
    chosen = {"rule": "reach", "margin": margin, "visible": count}
    tuning = [{"margin": m, "visible": v, "figures": [asdict(each) for each in found]} for m, v, found in tuned]
    print(json.dumps({"chosen": chosen, "tuning": tuning, "reporting": [asdict(figures) for figures in told]}))


def read_runs(table: Path) -> list[TrialRecord]:
    """The table's runs on the target with its first seed, as the program's own records."""
    frame = pl.read_parquet(table).filter(
        pl.col("model") == "target_fp32", pl.col("seed") == pl.col("seed").min(), pl.col("status") == "complete"
    )
    return [record_of(row) for row in frame.sort("id").iter_rows(named=True)]


def record_of(row: Mapping[str, Any]) -> TrialRecord:
    values = {name: row[name] for name in ("learning_rate", "batch_size", "num_train_epochs")}
    steps, losses = total_steps(EXAMPLES, values, 1.0), row["curve"]
    curve = tuple(
        CurvePoint(
            step=evaluation_step(steps, number, len(losses)), tokens=0, train_loss=None, eval_loss=loss, learning_rate=0
        )
        for number, loss in enumerate(losses, start=1)
    )
    spec = TrialSpec(id=row["id"], stage="target", origin="sobol", hyperparameters=values, seed=row["seed"])
    result = TrialResult(digest=row["id"], status="complete", objective=losses[-1], curve=curve, steps=steps)
    return TrialRecord(spec=spec, result=result)


def draw_orders(runs: Sequence[TrialRecord], orders: int, trials: int) -> dict[str, list[Order]]:
    """Random orders without repeats, by the kind of runs that they are drawn from."""
    ranked = sorted(runs, key=final)
    pools = {"all": ranked, "best quarter": ranked[: max(trials, round(BEST_SHARE * len(ranked)))]}
    generator = np.random.default_rng(1)
    return {
        kind: [[pool[i] for i in generator.choice(len(pool), trials, replace=False)] for _ in range(orders)]
        for kind, pool in pools.items()
    }


def final(record: TrialRecord) -> float:
    assert record.result.objective is not None
    return record.result.objective


def contenders(count: int) -> dict[str, Replay]:
    """Who is reported: every margin, the median, and Optuna's pruners, which wait for as many trials."""
    pruners: dict[str, optuna.pruners.BasePruner] = {
        "Optuna's MedianPruner": optuna.pruners.MedianPruner(n_startup_trials=count),
        "Optuna's PercentilePruner(25)": optuna.pruners.PercentilePruner(25, n_startup_trials=count),
        "Optuna's PercentilePruner(75)": optuna.pruners.PercentilePruner(75, n_startup_trials=count),
        "Optuna's SuccessiveHalvingPruner(1, 2)": optuna.pruners.SuccessiveHalvingPruner(1, 2),
    }
    reach = {f"reach, margin {margin:g}": ours("reach", count, margin) for margin in MARGINS}
    return {
        **reach,
        "median": ours("median", count),
        **{name: partial(optunas, each) for name, each in pruners.items()},
    }


def ours(rule: Any, count: int, margin: float | None = None) -> Replay:
    """The program's own rule."""
    settings = EarlyStoppingSettings(rule=rule, visible=count, margin=margin)

    def replay(order: Order, window: int) -> Stops:
        stops: Stops = {}
        for place, record in enumerate(order):
            seen = [order[number] for number in visible(place, window) if number not in stops]
            limits = stop_above(settings, len(record.result.curve), seen)
            stop = find_stop(record.result.curve, record.result.steps, limits)
            if stop is not None:
                stops[place] = stop.number
        return stops

    return replay


def optunas(pruner: optuna.pruners.BasePruner, order: Order, window: int) -> Stops:
    """A pruner that is asked after every evaluation but the last, in a study of the visible trials."""
    stops: Stops = {}
    finished: list[optuna.trial.FrozenTrial] = []
    for place, record in enumerate(order):
        study = optuna.create_study(pruner=pruner)
        study.add_trials([finished[number] for number in visible(place, window)])
        trial = study.ask()
        for number, point in enumerate(record.result.curve, start=1):
            trial.report(point.eval_loss, number)
            if number < len(record.result.curve) and trial.should_prune():
                stops[place] = number
                break
        if place in stops:
            finished.append(study.tell(trial, state=optuna.trial.TrialState.PRUNED))
        else:
            finished.append(study.tell(trial, final(record)))
    return stops


def measure(name: str, replay: Replay, orders: Mapping[str, Sequence[Order]], window: int) -> list[Figures]:
    """A contender's figures on each kind of orders."""
    found = []
    for kind, several in orders.items():
        rows = np.array([judged(order, replay(order, window)) for order in several])
        saved, stopped, best_stopped, regret = rows.mean(axis=0).tolist()
        found.append(Figures(name, kind, saved, stopped, best_stopped, regret, float(rows[:, 3].max())))
    return found


def judged(order: Order, stops: Stops) -> tuple[float, float, float, float]:
    """Share of the steps saved, trials stopped, whether the best one is among them, and the regret in nats."""
    weights = [int(record.spec.hyperparameters["batch_size"]) for record in order]
    steps = [record.result.steps for record in order]
    whole = sum(weight * count for weight, count in zip(weights, steps, strict=True))
    left = sum(
        weights[place] * (steps[place] - order[place].result.curve[number - 1].step) for place, number in stops.items()
    )
    losses = [final(record) for record in order]
    best = int(np.argmin(losses))
    kept = min(loss for place, loss in enumerate(losses) if place not in stops)
    return left / whole, len(stops), float(best in stops), kept - losses[best]


def worth(found: Sequence[Figures]) -> tuple[bool, float]:
    """Larger for a better default: it risks little, then it saves much, by the mean over the kinds of orders."""
    risk = max(figures.best_stopped for figures in found)
    return risk <= RISK, float(np.mean([figures.saved for figures in found])) if risk <= RISK else -risk


def print_table(told: Sequence[Figures], margin: float, count: int, orders: int) -> None:
    print(f"chosen on the other half: margin {margin:g}, visible {count}. {orders} orders of each kind:\n")
    for kind in dict.fromkeys(figures.kind for figures in told):
        print(f"| orders of {kind} runs | saved | trials stopped | best stopped | regret, nats: mean | worst |")
        print("|---|--:|--:|--:|--:|--:|")
        for each in told:
            if each.kind == kind:
                print(
                    f"| {each.name} | {each.saved:.1%} | {each.stopped:.1f} | {each.best_stopped:.1%} | "
                    f"{each.regret:.5f} | {each.worst_regret:.3f} |"
                )
        print()


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--table", type=Path, default=Path(__file__).parent / "transfer_runs.parquet")
    add("--orders", type=int, default=1000, help="of each kind, and as many for choosing")
    add("--trials", type=int, default=16)
    add("--window", type=int, default=4)
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
