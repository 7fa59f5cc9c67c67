"""How few full-size runs a search needs, given what a proxy saw: everyone on the same tables of finished runs.

    python tests/benchmarks/transfer.py --steplaw steplaw_dense.csv [--table ours.parquet] [--quick] [--jobs 2] …

Prints tables, and a line of JSON at the end. `transfer.md` beside this file says what is compared and why. The modules
of `replays`:

    tables      tables of finished runs, and the published rules for them
    tasks       pairs of a source and a target, sets of them, sources that mislead
    replay      the proxy stage, and the loop of proposals, each snapped to the nearest run of the table
    methods     who takes part; simple, ours, optuna, smac and so on: the methods
    code        the code that a method runs: what of it a finished run depends on
    jobs        replays over processes, and the folder of finished ones
    record      finished replays in one file
    reports     reports in one file
    statistics  regrets, ranks, tests, intervals
    report      tables
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from replays import reports
from replays.jobs import Job, Terms, job, run_all
from replays.methods import ENTRIES, Entry
from replays.record import keep, lay_out
from replays.replay import PROXY_TRIALS, TRIALS, Run, proxy_budget
from replays.report import BUDGETS, report, speed
from replays.statistics import Results, at_cost, regrets
from replays.tables import Table, fine_tuning, step_law
from replays.tasks import Problem, Task, halves, listing, problem, task_sets
from understudy.errors import UserError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
REPLAYS = HERE / "transfer_replays.parquet"
QUICK_SEEDS = 2
T = TypeVar("T")


def main() -> None:
    """Replay what the command line asks for."""
    options = arguments(sys.argv[1:])
    try:
        tables = read(options)
        if options.write_tasks:
            written = {**written_tasks(options.tasks), **{table.name: listing(table) for table in tables}}
            options.tasks.write_text(reports.compact(json.dumps(written, indent=1)) + "\n", encoding="utf-8")
            return
        for table in tables:
            check(table, options.tasks)
        entries = entrants(options)
        with tempfile.TemporaryDirectory() as beside:
            told = measured(tables, entries, options, options.cache or Path(beside))
        if options.note:
            for line in reports.note(options.note, noted(told, options)):
                print(f"{options.note} no longer has of {line}", file=sys.stderr)
    except UserError as error:
        raise SystemExit(str(error)) from None
    print(json.dumps({"options": vars(options), "sets": told["sets"], "seconds": told["seconds"]}, default=str))


def read(options: argparse.Namespace) -> list[Table]:
    """The tables that were asked for."""
    tables = [step_law(options.steplaw)] if options.steplaw else []
    tables += [fine_tuning(path, options.config, options.price) for path in options.table]
    if not tables:
        raise UserError("there is nothing to replay; give --steplaw FILE.csv or --table FILE.parquet")
    return tables


def written_tasks(path: Path) -> dict[str, Any]:
    """The list of tasks, by table."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path} isn't a list of tasks: {error}; mend it, or delete it and --write-tasks") from None


def check(table: Table, path: Path) -> None:
    """Refuse a table whose tasks aren't those that are written down; of a new table say that it is one."""
    written = written_tasks(path)
    if table.name not in written:
        print(f"{table.name}: its tasks aren't in {path.name}; --write-tasks writes them down")
    elif written[table.name] != json.loads(json.dumps(listing(table))):
        raise UserError(f"the tasks of {table.name} aren't those in {path}; if that is meant, run with --write-tasks")


def entrants(options: argparse.Namespace) -> list[Entry]:
    """The methods that were asked for and whose packages are installed."""
    chosen = [ENTRIES[name] for name in options.methods]
    for entry in chosen:
        if entry.missing():
            print(f"{entry.name} is left out: it needs {', '.join(entry.missing())} (pip install -e '.[benchmark]')")
    return [entry for entry in chosen if not entry.missing()]


def measured(
    tables: Sequence[Table], entries: Sequence[Entry], options: argparse.Namespace, cache: Path
) -> dict[str, Any]:
    """All sets of all tables: what `report` says of each, and how long proposals took."""
    terms = Terms(options.seeds, TRIALS, options.window, options.proxy_trials)
    sets = {
        label(tables, table, name): tasks
        for table in tables
        for name, tasks in chosen_sets(table, options).items()
        if tasks
    }
    if not sets:
        half = f"the half for {options.half}" if options.half != "both" else "both halves"
        raise UserError(
            f"{half} of {', '.join(table.name for table in tables)} has no task; choose another --half or --sets"
        )
    by_table = {label(tables, table, name): table for table in tables for name in task_sets(table)}
    problems = {(name, task.id): problem(by_table[name], task) for name, tasks in sets.items() for task in tasks}
    jobs: dict[tuple[str, str], Job] = {}
    for each in problems.values():
        jobs |= {(entry.name, each.id): job(entry, each, terms, cache) for entry in able(entries, each)}
    if not options.quick and (recorded := lay_out(options.replays, jobs.values())):
        print(f"{recorded} replays are taken from {options.replays}", file=sys.stderr)
    runs = run_all(list(jobs.values()), options.jobs)
    if options.keep:
        print(f"{options.replays}: {keep(options.replays, jobs.values())}", file=sys.stderr)
    ours, lead = [entry.name for entry in entries if entry.ours], options.lead
    found = {}
    for name, tasks in sets.items():
        mine = [problems[name, task.id] for task in tasks]
        found[name] = report(name, results(mine, able(entries, mine[0]), runs, terms), ours, lead)
    seconds = {
        entry.name: [
            s for (name, _), each in runs.items() if name == entry.name for r in each.values() for s in r.seconds
        ]
        for entry in entries
        if any(name == entry.name for name, _ in runs)
    }
    named = {label(tables, table, name): f"{name} of {table.name}" for table in tables for name in task_sets(table)}
    return {"sets": found, "seconds": speed(seconds), "named": named}


def noted(told: Mapping[str, Any], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The reports as they are kept: by set, table and a window other than 1, with what was asked for."""
    asked = {"half": options.half, "window": options.window, "proxy_trials": options.proxy_trials}
    window = f", window {options.window}" if options.window != 1 else ""
    return {told["named"][name] + window: {**each, **asked} for name, each in told["sets"].items()}


def label(tables: Sequence[Table], table: Table, name: str) -> str:
    """What a set of tasks is called in the report: with its table's name where several tables have such a set."""
    alone = sum(name in task_sets(each) for each in tables) == 1
    return name if alone else f"{name} of {table.name}"


def chosen_sets(table: Table, options: argparse.Namespace) -> dict[str, list[Task]]:
    """The sets that were asked for, the targets of one half alone; with `--quick` one task of the first and last."""
    sets = task_sets(table)
    half = halves(table, sets)
    chosen = {
        name: [task for task in tasks if options.half in ("both", half[task.target])]
        for name, tasks in sets.items()
        if options.sets is None or name in options.sets
    }
    if options.quick:
        return {name: chosen[name][:1] for name in (next(iter(chosen)), list(chosen)[-1])}
    return chosen


def problem_sets(options: argparse.Namespace) -> dict[str, list[Problem]]:
    """The problems of all sets of all tables that were asked for. Ends with a message where there are none."""
    try:
        tables = read(options)
    except UserError as error:
        raise SystemExit(str(error)) from None
    sets = {
        label(tables, table, name): [problem(table, task) for task in tasks]
        for table in tables
        for name, tasks in chosen_sets(table, options).items()
        if tasks
    }
    if not sets:
        raise SystemExit(f"the half for {options.half} has no task; choose another --half or --sets")
    return sets


def over(problems: Sequence[Problem], work: Callable[[Problem], T], jobs: int) -> list[T]:
    """What `work` makes of each problem, in their order, by so many processes."""
    if jobs == 1:
        return [work(one) for one in problems]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(work, problems))


def results(
    problems: Sequence[Problem],
    entries: Sequence[Entry],
    runs: Mapping[tuple[str, str], Mapping[int, Run]],
    terms: Terms,
) -> Results:
    """The regrets of a set of tasks."""
    import numpy as np

    curves = {
        entry.name: np.stack([regrets(each, runs[entry.name, each.id], terms.trials) for each in problems])
        for entry in entries
    }
    budgeted = {
        entry.name: np.stack(
            [
                at_cost(each, curve, BUDGETS, spent(each, entry, terms))
                for each, curve in zip(problems, curves[entry.name], strict=True)
            ]
        )
        for entry in entries
    }
    return Results(tuple(each.task for each in problems), curves, budgeted)


def able(entries: Sequence[Entry], problem: Problem) -> list[Entry]:
    """Who can take part: shorter runs of the target aren't in every table."""
    return [entry for entry in entries if problem.truncated or not entry.truncated]


def spent(problem: Problem, entry: Entry, terms: Terms) -> float:
    """What a method costs before its first target run, in target runs."""
    proxy = problem.price * proxy_budget(problem, terms.proxy_trials) if entry.proxy else 0.0
    return proxy + problem.truncated_price * entry.truncated


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """The options that say which tasks are replayed."""
    add = parser.add_argument
    add("--steplaw", type=Path, help="the Step Law table, a CSV file")
    add("--table", type=Path, nargs="*", default=[], help="tables of fine-tuning runs, Parquet or CSV")
    add("--config", type=Path, default=ROOT / "config" / "config.yaml", help="the study that --table has runs of")
    add("--price", type=float, default=0.1, help="a proxy run's cost in target runs, where a table has no FLOPs")
    add("--sets", nargs="+", help="of tasks: matched, cheap, lies, own, own_lies; default all")
    add("--half", choices=("tuning", "reporting", "both"), default="reporting", help="whose targets")


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_tasks(parser)
    add = parser.add_argument
    add("--tasks", type=Path, default=HERE / "transfer_tasks.json", help="the list of tasks")
    add("--write-tasks", action="store_true", help="write these tables' tasks down and end")
    add("--methods", nargs="+", choices=list(ENTRIES), default=list(ENTRIES), metavar="METHOD", help="default all")
    add("--lead", default="understudy_two_fidelity", help="the method that is compared with its peers")
    add("--seeds", type=int, default=25)
    add("--window", type=int, default=1, help="proposal n sees the results of runs 0 to n - window")
    add("--proxy-trials", type=int, default=PROXY_TRIALS, help="at most half of the configurations")
    add("--cache", type=Path, help="folder of finished runs, which a run that is cut off goes on from")
    add(
        "--replays",
        type=Path,
        default=REPLAYS,
        help="finished runs that needn't be done again",
    )
    add(
        "--keep", action="store_true", help="add this run's to them, in place of what older versions of its methods did"
    )
    add("--note", type=Path, help="a JSON file to add the reports to, in place of what it has of the same sets")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    add("--quick", action="store_true", help="two tasks, two seeds, no extra packages: whether it runs")
    options = parser.parse_args(given)
    if options.keep and options.quick:
        parser.error("--quick does everything anew, so there is nothing to --keep")
    if not options.keep and options.replays != REPLAYS and not options.replays.exists():
        parser.error(f"there is no {options.replays}; with --keep it is made")
    if options.quick:
        options.seeds, options.half = QUICK_SEEDS, "both"
        options.methods = [name for name in options.methods if not ENTRIES[name].needs]
    return options


if __name__ == "__main__":
    main()
