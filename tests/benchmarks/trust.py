"""How soon a proxy that lies is noticed: how far the model trusts it after so many target runs.

    python tests/benchmarks/trust.py --steplaw steplaw_dense.csv [--seeds 5] [--jobs 2]
    python tests/benchmarks/trust.py --table tests/benchmarks/transfer_runs.parquet --half both

The replays are those of `transfer.py` with `understudy_two_fidelity`. Trust is the probability that the model gives to
its story that the target follows the proxy and falls where it falls; it stands in every proposal that was asked of the
model (the default isn't where its turn has come). Prints for each set, and for each kind of lie in it, how the proxy's
trials rank as the target would (Spearman, the median of the replays), the mean trust after k results, and the share of
replays in which it is at least a half; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import transfer
from replays.ours import Understudy
from replays.replay import PROXY_TRIALS, TRIALS, Seen, View, replay
from replays.simple import finite
from replays.tasks import Problem
from understudy.search.window import visible

RESULTS = (0, 1, 3, 4, 6, 8, 12, 15)  # how many a proposal sees
HALF = 0.5


class Noting(Understudy):
    """The product's own sampler, which notes its trust in the proxy before each run."""

    def __init__(self) -> None:
        super().__init__("two_fidelity")
        self.proxy: Sequence[Seen] = ()

    def start(self, view: View, seed: int) -> None:
        super().start(view, seed)
        self.proxy = view.proxy

    def trusts(self) -> list[float | None]:
        """Before each run; None where the model wasn't asked."""
        return [each.outlook.trust if each.outlook else None for each in self._proposals]


def main() -> None:
    """Replay, count, print."""
    options = arguments(sys.argv[1:])
    work = partial(trusts, seeds=options.seeds, window=options.window)
    found = {}
    for name, problems in transfer.problem_sets(options).items():
        each = transfer.over(problems, work, options.jobs)
        for kind, places in by_kind(problems).items():
            replays = [replayed for place in places for replayed in each[place]]
            found[f"{name}, {kind}" if kind else name] = {
                "tasks": len(places),
                "agreement": float(np.median([ranks for ranks, _ in replays])),
                "trust": summed([noted for _, noted in replays]),
            }
    print_table(found, options.seeds)
    print(json.dumps({"options": vars(options), "sets": found}, default=str))


def by_kind(problems: Sequence[Problem]) -> dict[str, list[int]]:
    """The places of a set's problems by what is done to their sources; nothing is an empty name."""
    kinds: dict[str, list[int]] = defaultdict(list)
    for place, problem in enumerate(problems):
        kinds[problem.task.lie or ""].append(place)
    return dict(kinds)


def trusts(problem: Problem, seeds: int, window: int) -> list[tuple[float, dict[int, float]]]:
    """For each seed how the proxy's trials rank as the target would, and the trust by how many results were seen."""
    found = []
    losses = dict(zip(problem.keys, problem.target, strict=True))
    for seed in range(seeds):
        method = Noting()
        replay(problem, method, seed, TRIALS, window, PROXY_TRIALS)
        same = [losses[tuple(trial.configuration[name] for name in problem.names)] for trial in method.proxy]
        ranks = spearmanr(finite([trial.loss for trial in method.proxy]), finite(same)).statistic
        told = enumerate(method.trusts())
        noted = {len(visible(number, window)): trust for number, trust in told if trust is not None}
        found.append((float(ranks), noted))
    return found


def summed(replays: Sequence[Mapping[int, float]]) -> dict[int, tuple[float, float]]:
    """Mean trust, and the share of replays with at least a half, by how many results were seen."""
    found = {}
    for seen in RESULTS:
        given = np.array([each[seen] for each in replays if seen in each])
        if len(given):
            found[seen] = (float(given.mean()), float((given >= HALF).mean()))
    return found


def print_table(found: Mapping[str, Mapping[str, Any]], seeds: int) -> None:
    """A row per kind of task."""
    print(f"mean trust after k results, and the share of replays with {HALF:g} and more; {seeds} seeds")
    print("| set | tasks | agreement | " + " | ".join(map(str, RESULTS)) + " |")
    print("|---|--:|--:|" + "--:|" * len(RESULTS))
    for row, told in found.items():
        cells = ["{:.2f}, {:.2f}".format(*told["trust"][seen]) if seen in told["trust"] else "" for seen in RESULTS]
        print(f"| {row} | {told['tasks']} | {told['agreement']:.2f} | " + " | ".join(cells) + " |")


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    transfer.add_tasks(parser)
    add = parser.add_argument
    add("--seeds", type=int, default=5)
    add("--window", type=int, default=1, help="proposal n sees the results of runs 0 to n - window")
    add("--jobs", type=int, default=1, help="processes")
    add("--quick", action="store_true", help="one task of the first and last set, one seed: whether it runs")
    options = parser.parse_args(given)
    if options.quick:
        options.seeds, options.half = 1, "both"
    return options


if __name__ == "__main__":
    main()
