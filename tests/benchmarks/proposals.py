"""How long a proposal of the target takes: the command as the workflow runs it, on one core.

    python tests/benchmarks/proposals.py [--proxy-trials 1000] [--target-trials 100] [--repeats 5]

The trials are made up: the default study's space, a bowl with noise for a loss. Each sampler proposes the trial after
`--target-trials` finished ones, with and without truncated runs of the target for `two_fidelity`. Prints a table in
seconds, and a line of JSON at the end: `command` is the whole process, `proposal` what it takes without starting Python
and importing, both as the median.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from understudy.artifacts import Proposal
from understudy.config import StudyConfig, parse
from understudy.files import write_json
from understudy.hyperparameters import Value, complete
from understudy.search.sequences import uniform
from understudy.search.transfer import transfer
from understudy.sections import sections
from understudy.summary.tables import trials_frame
from understudy.trial import ModelCard, TrialRecord, TrialResult, TrialSpec

ROOT = Path(__file__).parents[2]
SAMPLERS = ("two_fidelity", "gp", "tpe", "random")
TRUNCATED = 8
TIMED = """
import sys, time
from understudy.cli import main
import understudy.cli.propose, optuna, scipy.optimize, scipy.stats, understudy.search.refinement
began = time.perf_counter()
assert main(sys.argv[1:]) == 0
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Study:
    """A study's files as a proposal reads them."""

    folder: Path
    arguments: tuple[str, ...]


def main() -> None:
    """Make the files, run the command, print."""
    options = arguments()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # and every process that is started from here
    found: dict[str, dict[str, float]] = {}
    for sampler in SAMPLERS:
        for short in (0, TRUNCATED) if sampler == "two_fidelity" else (0,):
            with tempfile.TemporaryDirectory() as folder:
                study = prepare(Path(folder), sampler, short, options)
                name = sampler + (f", {short} truncated runs" if short else "")
                found[name] = {
                    "proposal": statistics.median(inside(study) for _ in range(options.repeats)),
                    "command": statistics.median(whole(study) for _ in range(options.repeats)),
                }
    print(f"{options.proxy_trials} proxy trials, {options.target_trials} target trials, one core, seconds")
    print("| sampler | proposal | command |\n|---|--:|--:|")
    for name, row in found.items():
        print(f"| {name} | {row['proposal']:.2f} | {row['command']:.2f} |")
    print(json.dumps({"options": vars(options), "seconds": found}))


def prepare(folder: Path, sampler: str, short: int, options: argparse.Namespace) -> Study:
    """Write everything that the next proposal reads."""
    raw: dict[str, Any] = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))
    raw["target"] |= {"sampler": sampler, "window": 1, **({"truncated": {"trials": short}} if short else {})}
    study = parse(raw)
    parts: dict[str, Any] = dict(sections(study))
    proxy = [record(study, "proxy", f"r{number:04d}", 1, number) for number in range(options.proxy_trials)]
    regions, starts = transfer(parts["transfer"], trials_frame(proxy), card("proxy", 64), card("target", 192))
    written = {"regions": regions, "starts": starts, "settings": parts["target"]}
    for name, content in written.items():
        write_json(folder / f"{name}.json", content)
    for number in range(options.target_trials):
        finish(folder / "trials" / f"{number:04d}", record(study, "target", f"t{number:04d}", 2, number), number)
    results = []
    for number in range(short):
        finish(folder / "short" / f"{number:04d}", record(study, "truncated", f"u{number:04d}", 3, number), number)
        results.append(str(folder / "short" / f"{number:04d}" / "result.json"))
    words = {**{name: folder / f"{name}.json" for name in written}, "trials-dir": folder / "trials"}
    words |= {"number": options.target_trials, "output": folder / "proposal.json"}
    given = [part for name, value in words.items() for part in (f"--{name}", str(value))]
    return Study(folder, ("propose", *given, "--truncated", *results))


def record(study: StudyConfig, stage: Any, id: str, seed: int, number: int) -> TrialRecord:
    """A finished trial at a uniform point of the space."""
    values = uniform(study.space, seed, number)
    spec = TrialSpec(
        id=id,
        stage=stage,
        origin="random",
        hyperparameters=complete(values, study.defaults, "lora"),
        fidelity=0.25 if stage == "truncated" else 1.0,
        seed=seed,
    )
    result = TrialResult(digest="0" * 32, status="complete", objective=loss(values, number))
    return TrialRecord(spec=spec, result=result)


def loss(values: Mapping[str, Value], number: int) -> float:
    """A bowl in the learning rate and less in the rest, with a noise of 0.01."""
    rate = math.log10(float(values["learning_rate"]) / 4e-3)
    rest = float(values["warmup_ratio"]) + 0.1 * float(values["lora_dropout"])
    return 5 + 0.3 * rate**2 + 0.1 * rest + 0.01 * math.sin(12.9898 * number)


def finish(folder: Path, trial: TrialRecord, number: int) -> None:
    """The two files of a finished trial."""
    proposal = Proposal(number=number, spec=trial.spec, kind="guided", sampler="random", visible=(), pending=())
    write_json(folder / "proposal.json", proposal)
    write_json(folder / "result.json", trial)


def card(role: Any, width: int) -> ModelCard:
    """A Llama's, by its width."""
    return ModelCard(
        role=role,
        source="local",
        name=role,
        path="nowhere",
        sha256="0" * 64,
        model_type="llama",
        hidden_size=width,
        num_hidden_layers=2,
        vocab_size=2048,
        parameters=10**6,
        quantization="none",
    )


def whole(study: Study) -> float:
    """Seconds of the command."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "understudy", *study.arguments], check=True)
    return time.perf_counter() - began


def inside(study: Study) -> float:
    """Seconds of the command once everything is imported."""
    command = [sys.executable, "-c", TIMED, *study.arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxy-trials", type=int, default=1000)
    parser.add_argument("--target-trials", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
