"""The tables that are printed, and the same as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from replays.statistics import (
    FEW,
    Results,
    average_ranks,
    best_peer,
    by_lie,
    by_lie_at_cost,
    difference,
    interval,
    mean_of_targets,
    summary,
    wilcoxon_holm,
)

KS = (1, 2, 3, 4, 6, 8, 16)
LIES_AT = (4, 16)
BUDGETS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
LIES_AT_COST = (8, 16, 24)  # of BUDGETS


def report(name: str, results: Results, ours: Sequence[str], lead: str | None) -> dict[str, Any]:
    """Print everything about a set of tasks and return it; `lead` is the method that is compared with its peers."""
    seeds = next(iter(results.curves.values())).shape[1]
    print(f"\n## {name}: {len(results.tasks)} tasks, {len(set(results.targets))} targets, {seeds} seeds")
    found: dict[str, Any] = {
        "tasks": [task.id for task in results.tasks],
        "seeds": seeds,
        "regret": {each: {k: summary(results.curves[each], k) for k in KS} for each in results.methods},
        "budget": {
            each: dict(zip(BUDGETS, results.budgeted[each].mean(axis=(0, 1)).tolist(), strict=True))
            for each in results.methods
        },
        "ranks": {k: average_ranks(results, k) for k in KS},
    }
    for figure, words in (("mean", "mean"), ("p90", "90th percentile"), ("worst", "worst")):
        rows = {each: [found["regret"][each][k][figure] for k in KS] for each in results.methods}
        print_table(f"relative regret in percent after k target runs, {words}", KS, rows)
    print_table(
        "average rank after k target runs", KS, {e: [found["ranks"][k][e] for k in KS] for e in results.methods}
    )
    costs = {each: list(found["budget"][each].values()) for each in results.methods}
    print_table(
        "mean relative regret in percent by total cost in target runs, the proxy stage included", BUDGETS, costs
    )
    found["by_target"] = {each: {k: mean_of_targets(results, each, k) for k in KS} for each in results.methods}
    if len(set(results.targets)) > 1:
        alike = {each: list(found["by_target"][each].values()) for each in results.methods}
        print_table("mean relative regret in percent after k target runs, each target counted once", KS, alike)
    found["lies"] = {k: by_lie(results, k) for k in LIES_AT}
    found["lies_budget"] = {cost: by_lie_at_cost(results, BUDGETS.index(cost)) for cost in LIES_AT_COST}
    for k, rows in found["lies"].items():
        _print_lies(f"after {k} target runs", rows)
    for cost, rows in found["lies_budget"].items():
        _print_lies(f"at a total cost of {cost} target runs, the proxy stage included", rows)
    if lead in results.curves and len(results.curves) > len(ours):
        found["lead"] = compared(results, str(lead), ours)
    return found


def _print_lies(when: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Nothing for a set without lies."""
    if lies := list(next(iter(rows.values()))):
        values = {name: list(row.values()) for name, row in rows.items()}
        print_table(f"mean relative regret in percent {when}, by lie", lies, values)


def compared(results: Results, lead: str, ours: Sequence[str], ks: Sequence[int] = KS) -> dict[str, Any]:
    """The lead against its peers: the best of them at each k, and all of them one by one."""
    peers = [each for each in results.methods if each not in ours]
    ends = {k: interval(results, results.curves[lead][:, :, k - 1]) for k in ks}
    told: dict[str, Any] = {
        "method": lead,
        "interval": {k: {"low": low, "high": high} for k, (low, high) in ends.items()},
        "best_peer": {},
        "p": {k: wilcoxon_holm(results, lead, peers, k) for k in ks},
    }
    targets = len(set(results.targets))
    over = "targets" if targets > 1 else "seeds"
    rows = {end: [told["interval"][k][end] for k in ks] for end in ("low", "high")}
    print_table(f"{lead}: the mean's 95 % interval over {over}", ks, rows)
    print(f"\n{lead} minus the best peer, in percentage points (below 0: better), with the 95 % interval over {over}")
    print("| k | best peer | difference | interval | p (Wilcoxon, Holm) |\n|--:|---|--:|---|--:|")
    for k in ks:
        peer = best_peer(results, ours, k)
        told["best_peer"][k] = {"name": peer, **(gap := difference(results, lead, peer, k))}
        ends_at = f"{gap['low']:+.3f} to {gap['high']:+.3f}"
        print(f"| {k} | {peer} | {gap['difference']:+.3f} | {ends_at} | {told['p'][k][peer]:.3g} |")
    if targets < FEW:
        print(f"\n{_caution(targets)}")
    told["differences"] = {peer: {k: difference(results, lead, peer, k) for k in ks} for peer in peers}
    for figure, words in (("difference", "in percentage points"), ("high", "upper end of that interval")):
        rows = {peer: [told["differences"][peer][k][figure] for k in ks] for peer in peers}
        print_table(f"{lead} minus each peer, {words}", ks, rows, sign="+")
    print_table("p of that (Wilcoxon, Holm)", ks, {peer: [told["p"][k][peer] for k in ks] for peer in peers})
    return told


def _caution(targets: int) -> str:
    """What an interval over so few targets is worth."""
    if targets == 1:
        return "There is 1 target: the interval is over its seeds, and says nothing about other targets."
    return f"There are {targets} targets: the interval is hardly more than the range of their means."


def speed(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Seconds of a proposal, by method: the mean and the longest."""
    found = {name: {"mean": sum(each) / len(each), "longest": max(each)} for name, each in seconds.items() if each}
    if found:
        rows = {name: list(each.values()) for name, each in found.items()}
        print_table("seconds of a proposal, of what was replayed now", ("mean", "longest"), rows)
    return found


def print_table(title: str, columns: Sequence[object], rows: Mapping[str, Sequence[float]], sign: str = "") -> None:
    print(f"\n{title}")
    print("| method | " + " | ".join(map(str, columns)) + " |")
    print("|---|" + "--:|" * len(columns))
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:{sign}.3f}" for value in values) + " |")
