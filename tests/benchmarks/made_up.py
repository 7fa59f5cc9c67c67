"""How few full-size runs a search needs on problems drawn at random, some with a proxy that misleads.

    python tests/benchmarks/made_up.py [--problems 96] [--seeds 2] [--half reporting] [--methods …] [--cache FOLDER]

`replays/surfaces.py` says what is drawn. The replays are those of `transfer.py`. A method is judged by what its best
run so far is worth without noise: the regret is the distance from the best loss that there is, in percent of the
distance from that to the median. Prints tables by how the proxy is related to the target, and a line of JSON at the
end. Problems are for reporting and for tuning by turns, four at a time: of 96, each half has 48.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from replays.jobs import Job, Terms, job, run_all
from replays.methods import ENTRIES, Entry
from replays.replay import PROXY_TRIALS, TRIALS, Run
from replays.report import KS, compared, print_table
from replays.statistics import Array, Results, summary
from replays.surfaces import RELATIONS, MadeUp, made_up, scale

STEP = len(RELATIONS)
HALVES = {"reporting": (0,), "tuning": (1,), "both": (0, 1)}
QUICK = {"problems": STEP, "seeds": 1, "half": "both", "trials": 3, "methods": ["random", "understudy_two_fidelity"]}


def main() -> None:
    """Draw, replay, print."""
    options = arguments(sys.argv[1:])
    problems = [made_up(number) for number in numbers(options.problems, options.half)]
    entries = [ENTRIES[name] for name in options.methods]
    terms = Terms(options.seeds, options.trials, options.window, PROXY_TRIALS)
    with tempfile.TemporaryDirectory() as beside:
        cache = options.cache or Path(beside)
        jobs: list[Job] = [job(entry, each.problem, terms, cache) for each in problems for entry in entries]
        runs = run_all(jobs, options.jobs)
    found = {}
    for relation in ("all", *RELATIONS):
        chosen = [each for each in problems if relation in ("all", each.relation)]
        found[relation] = report(relation, results(chosen, entries, runs, terms), options)
    print(json.dumps({"options": vars(options), "sets": found}, default=str))


def numbers(count: int, half: str) -> list[int]:
    """The first problems of a half; each relation has its share in both."""
    return [number for number in range(count) if number // STEP % 2 in HALVES[half]]


def results(
    problems: Sequence[MadeUp],
    entries: Sequence[Entry],
    runs: Mapping[tuple[str, str], Mapping[int, Run]],
    terms: Terms,
) -> Results:
    """The regrets without noise, (problems, seeds, trials), of each method."""
    curves = {
        entry.name: np.stack([regrets(each, runs[entry.name, each.problem.id], terms.trials) for each in problems])
        for entry in entries
    }
    return Results(tuple(each.problem.task for each in problems), curves, {})


def regrets(made: MadeUp, runs: Mapping[int, Run], trials: int) -> Array:
    """Of the run with the smallest loss so far, by its loss without noise: (seeds, trials), in percent.

    Where all diverged so far it is that of the worst run that didn't. A method with no more to say stays where it is.
    """
    finite = made.truth[np.isfinite(made.truth)]
    seen = np.array(made.problem.target)
    curves = []
    for _, run in sorted(runs.items()):
        chosen = list(run.indices) + [run.indices[-1]] * (trials - len(run.indices))
        losses = seen[chosen]
        best = [chosen[int(np.argmin(losses[: k + 1]))] for k in range(trials)]
        curves.append(np.minimum(made.truth[best], finite.max()))
    return np.asarray(100 * (np.array(curves) - finite.min()) / scale(made.truth))


def report(relation: str, found: Results, options: argparse.Namespace) -> dict[str, Any]:
    """Print what came of the problems of one relation, and return it."""
    ks = [k for k in KS if k <= options.trials]
    print(f"\n## {relation}: {len(found.tasks)} problems, {options.seeds} seeds")
    told = {each: {k: summary(found.curves[each], k) for k in ks} for each in found.methods}
    for figure, words in (("mean", "mean"), ("p90", "90th percentile")):
        rows = {each: [told[each][k][figure] for k in ks] for each in found.methods}
        print_table(f"regret in percent of median minus best after k target runs, {words}", ks, rows)
    ours = [name for name in found.methods if ENTRIES[name].ours]
    lead = compared(found, options.lead, ours, ks) if options.lead in ours and len(ours) < len(found.methods) else None
    return {"regret": told, "lead": lead}


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    free = [name for name, entry in ENTRIES.items() if not entry.needs and not entry.truncated]
    add("--problems", type=int, default=96, help="how many are drawn, of which --half takes its part")
    add("--half", choices=tuple(HALVES), default="reporting", help="which problems")
    add("--seeds", type=int, default=2)
    add("--trials", type=int, default=TRIALS, help="target runs of a replay")
    add("--window", type=int, default=1, help="proposal n sees the results of runs 0 to n - window")
    add("--methods", nargs="+", choices=list(ENTRIES), default=free, metavar="METHOD", help="default: all but extras")
    add(
        "--lead",
        choices=list(ENTRIES),
        default="understudy_two_fidelity",
        metavar="METHOD",
        help="the method that is compared with its peers",
    )
    add("--cache", type=Path, help="folder of finished runs; without one nothing is kept")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    add(
        "--quick",
        action="store_true",
        help="four problems, one seed, three runs, two methods, whatever else is asked for",
    )
    options = parser.parse_args(given)
    if options.quick:
        vars(options).update(QUICK)
    if len(numbers(options.problems, options.half)) < STEP:
        parser.error(f"--problems {options.problems} leaves none of some kind in the half; 8 or more do in any")
    return options


if __name__ == "__main__":
    main()
