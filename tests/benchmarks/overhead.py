"""What the workflow itself costs: whole studies whose training takes no time.

    python tests/benchmarks/overhead.py [--studies 10 100 1000 10000] [--cores 2] [--quick]
    python tests/benchmarks/overhead.py --studies 10 100 --profile workflow/profiles/slurm -- --executor slurm …

A study `N` has N proxy trials in packs of the default size, about 2·√N target trials and as many echoes; `1000x50` says
both. All of its search trials are in the store beforehand (`overhead_study.py`), so the real rules and commands find
them, as they do in a rerun; finalists, test and decoding are trained and run, on tiny models. Each study stands in a
folder of its own below `--folder`. What stands after `--` goes to Snakemake.

Printed are, per study, seconds of the proxy stage for each proxy trial and of the target stage for each target trial,
as they come one after the other; how they grow with the number of trials; `snakemake -n` before and after; memory and
processor time of Snakemake's process; and a training command's start-up (`startup.py`). The last line is JSON. A
machine that does something else meanwhile makes seconds larger, processor seconds less so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from overhead_process import Watched, watch
from overhead_study import Filler, Size, raw_config, sizes
from startup import PHASES, ROLES, startup
from understudy.paths import StudyPaths

ROOT = Path(__file__).parents[2]
QUICK = ("10x4",)


@dataclass(frozen=True)
class Measured:
    """One study. All in seconds but for the memory; a stage's are those from its begin to its last trial."""

    size: Size
    proxy: float  # from Snakemake's first job to the proxy's table
    transfer: float
    target: float
    rest: float  # finalists, test, decoding, tables, report: training in it is real
    summary: float  # of that tables, figures and report
    run: Watched
    dry_before: Watched
    dry_after: Watched

    @property
    def per_proxy_trial(self) -> float:
        return self.proxy / self.size.proxy

    @property
    def per_target_trial(self) -> float:
        return self.target / self.size.target


def main() -> None:
    """Run every study, print."""
    options = arguments(sys.argv[1:])
    with tempfile.TemporaryDirectory() as beside:
        folder = (options.folder or Path(beside)).resolve()
        found = [measure(size, folder / size.name, options) for size in sizes(options.studies)]
    starts = {role: startup(role, options.repeats) for role in ROLES}
    print_studies(found, options)
    print_startup(starts)
    told = [
        asdict(each) | {"per_proxy_trial": each.per_proxy_trial, "per_target_trial": each.per_target_trial}
        for each in found
    ]
    for each in told:
        for name in ("run", "dry_before", "dry_after"):
            del each[name]["output"]
    print(
        json.dumps(
            {"options": vars(options), "studies": told, "growth": growths(found), "startup": starts}, default=str
        )
    )


def measure(size: Size, folder: Path, options: argparse.Namespace) -> Measured:
    """Prepare a study, fill its store, and run it to its end."""
    folder.mkdir(parents=True)
    raw = raw_config(size, folder, options.sampler)
    (folder / "study.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    dry_before = snakemake(folder, options, "--dry-run")
    snakemake(folder, options, "--until", "prepare_execution")
    filler = Filler(raw, folder)
    filled = filler.fill()
    run = snakemake(folder, options)
    times = stage_times(filler.paths, size, filled)
    dry_after = snakemake(folder, options, "--dry-run")
    if "Nothing to be done" not in dry_after.output:
        raise RuntimeError(f"{folder}: the finished study isn't finished\n{dry_after.output[-3000:]}")
    print(f"{size.name}: {run.seconds:.1f} s", file=sys.stderr, flush=True)
    return Measured(size, *times, run, dry_before, dry_after)


def snakemake(folder: Path, options: argparse.Namespace, *more: str) -> Watched:
    """Snakemake on a study."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    command += ["--directory", str(folder), "--configfile", str(folder / "study.yaml"), "--cores", str(options.cores)]
    if options.profile:
        command += ["--workflow-profile", str(options.profile.resolve())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow")}
    return watch([*command, *more, *options.snakemake], folder / "output.txt", environment)


def stage_times(paths: StudyPaths, size: Size, filled: int) -> tuple[float, float, float, float, float]:
    """Seconds of proxy, transfer, target, all that comes after, and the summary in that: by the files' times.

    Raises `RuntimeError` where a trial of the search wasn't found in the store: then something was trained.
    """
    lines = [json.loads(line) for line in paths.progress.read_text(encoding="utf-8").splitlines()]
    searched = [line for line in lines if line["event"] == "trial" and line["stage"] != "finalist"]
    trained = [line["id"] for line in searched if not line["reused"]]
    if trained or len(searched) != filled:
        raise RuntimeError(f"of {filled} trials {len(searched)} ran, and {', '.join(trained[:9])} weren't in the store")
    began = max(line["time"] for line in lines if line["event"] == "start")
    collected, transferred = paths.proxy_trials.stat().st_mtime, paths.starts.stat().st_mtime
    target = max(paths.target_result(number).stat().st_mtime for number in range(size.target))
    judged = max(paths.test.stat().st_mtime, paths.decode.stat().st_mtime)
    ended = paths.best_config.stat().st_mtime
    return collected - began, transferred - collected, target - transferred, ended - target, ended - judged


def growths(found: Sequence[Measured]) -> dict[str, float]:
    """The exponents k of n^k by which times grow with the number of trials n; n log n is near 1.2 to 1.3."""
    if len(found) < 2:
        return {}
    proxy, target = [each.size.proxy for each in found], [each.size.target for each in found]
    return {
        "proxy": exponent(proxy, [each.proxy for each in found]),
        "target": exponent(target, [each.target for each in found]),
        "transfer": exponent(proxy, [each.transfer for each in found]),
        "summary": exponent(proxy, [each.summary for each in found]),
        "dry": exponent(proxy, [each.dry_before.seconds for each in found]),
        "memory": exponent(proxy, [float(each.run.main_peak_bytes) for each in found]),
    }


def exponent(counts: Sequence[int], values: Sequence[float]) -> float:
    """The slope of log(value) over log(count) by least squares."""
    x, y = [math.log(count) for count in counts], [math.log(value) for value in values]
    centre, middle = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - centre) ** 2 for a in x)
    if spread == 0:
        return math.nan
    return sum((a - centre) * (b - middle) for a, b in zip(x, y, strict=True)) / spread


def print_studies(found: Sequence[Measured], options: argparse.Namespace) -> None:
    """The table of studies, and how they grow."""
    print(f"{options.cores} cores, seconds; load of the machine {os.getloadavg()[0]:.1f}")
    print(
        "| proxy x target trials | per proxy trial | per target trial | transfer | tables and report | all"
        " | Snakemake's CPU | its memory, MiB | -n before | -n after |"
    )
    print("|---|" + "--:|" * 9)
    for each in found:
        cells = [each.per_proxy_trial, each.per_target_trial, each.transfer, each.summary, each.run.seconds]
        cells += [each.run.main_cpu_seconds]
        text = " | ".join(f"{cell:.3f}" if cell < 1 else f"{cell:.1f}" for cell in cells)
        dry = f"{each.dry_before.seconds:.1f} | {each.dry_after.seconds:.1f}"
        print(f"| {each.size.name} | {text} | {each.run.main_peak_bytes / 2**20:.0f} | {dry} |")
    if found_growths := growths(found):
        print("grows like n^k, k: " + ", ".join(f"{name} {k:.2f}" for name, k in found_growths.items()))


def print_startup(starts: dict[str, dict[str, float]]) -> None:
    """The start-up of a training command by phase."""
    print("| start-up | " + " | ".join(PHASES) + " | all |\n|---|" + "--:|" * (len(PHASES) + 1))
    for role, phases in starts.items():
        print(f"| {role} | " + " | ".join(f"{phases[name]:.2f}" for name in (*PHASES, "all")) + " |")


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--studies", nargs="+", default=["10", "100", "1000", "10000"], metavar="PROXY[xTARGET]")
    add("--cores", type=int, default=2)
    add("--sampler", default="two_fidelity", help="who proposes the target's trials")
    add("--profile", type=Path, help="a workflow profile, such as workflow/profiles/slurm")
    add("--folder", type=Path, help="where the studies stand, and stay; it must be seen by all nodes of a cluster")
    add("--repeats", type=int, default=3, help="of start-ups, whose shortest counts")
    add("--quick", action="store_true", help="one study of a few trials: whether it runs")
    add("snakemake", nargs="*", help="what goes to Snakemake, after --")
    options: Any = parser.parse_args(given)
    if options.quick:
        options.studies, options.repeats = list(QUICK), 1
    return options


if __name__ == "__main__":
    main()
