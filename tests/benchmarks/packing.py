"""How fast packed trials train against trials that train alone: everything in one run, in turns.

    python tests/benchmarks/packing.py [--quick] [--ablate] [--device cuda] [--shapes 8x64@64 …]

Prints tables, and a line of JSON at the end. `packing.md` beside this file says what is compared and why. The modules
of `packs`:

    contest    who is compared, the check that all train the same trials, and the rounds
    pool       worker processes, and one measurement with some of them at the same time
    worker     a worker: loads the base once, then trains alone or in packs
    tasks      what is trained: models, examples, trials
    parts      clocks in the packed engine, for the shares of its time
    ablations  the packed engine without one of its tricks
    tables     ratios and tables
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from packs import tables
from packs.contest import Effort, Entrants, ablate, compare, process_each
from packs.pool import Arrangement, Pool, ask_all
from packs.tasks import Architecture, Shape, Task
from understudy.models.hardware import cores

# hidden size, layers, heads, heads of keys and values, feed-forward size, vocabulary, architecture
SIZES: dict[str, tuple[int, int, int, int, int, int, Architecture]] = {
    "64": (64, 2, 4, 4, 192, 2048, "llama"),
    "128": (128, 2, 4, 4, 384, 2048, "llama"),
    "256": (256, 2, 8, 8, 768, 2048, "llama"),
    "0.5b": (896, 24, 14, 2, 4864, 151936, "qwen2"),
    "1.5b": (1536, 28, 12, 2, 8960, 151936, "qwen2"),
}
SHAPES = {
    "cpu": ["4x32@64", "8x64@64", "16x64@64", "8x64@128", "16x128@128", "4x32@256", "8x128@256", "16x256@256"],
    "cuda": ["4x256@0.5b", "4x256@1.5b"],
}


def main() -> None:
    """Measure what the command line asks for."""
    options = arguments(sys.argv[1:])
    entrants = entrants_of(options)
    load, pool = os.getloadavg()[0], Pool(options.device)
    found = []
    try:
        for arrangement in (*entrants.solo, *entrants.packs):
            pool.workers(arrangement)
        machine = {
            "device": ask_all(pool.all()[:1], ("device",))[0],
            "cores": cores(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "load_before": load,
        }
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
        for name in options.shapes:
            found.append(measured(pool, entrants, name, options))
    finally:
        pool.end()
    machine["load_after"] = os.getloadavg()[0]
    print(json.dumps({"machine": machine, "options": vars(options), "shapes": found}))


def measured(pool: Pool, entrants: Entrants, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one shape, printed as tables and returned as plain values."""
    shape = shape_of(name)
    effort = Effort(options.steps, options.seconds, options.repeats, options.longest)
    whole = entrants.packs[0]
    with tempfile.TemporaryDirectory() as folder:
        load = "load", shape, Path(folder), options.tokens
        ask_all(pool.all()[:1], ("write", shape, Path(folder)))
        packing = ask_all(pool.all(), load)[0]
        print(f"\n{name}: {shape.rows} rows of {shape.tokens} tokens in a trial's step, hidden size {shape.hidden}")
        task = Task(
            kind="solo",
            trials=1,
            rows=shape.rows,
            steps=options.steps,
            pass_tokens=packing.tokens,
            ragged=options.ragged,
            rank=options.rank,
            dropout=options.dropout,
        )
        contest = compare(pool, entrants, shape, task, options.trials, effort)
        result: dict[str, Any] = {
            "shape": {"name": name, **asdict(shape)},
            "packing": {"tokens": packing.tokens, "dense": packing.dense},
            "contenders": [contender.as_json() for contender in contest.contenders],
            "left_out": contest.left_out,
            "process_each": {"rate": process_each(entrants, load, task)},
        }
    result |= tables.ratios(result["contenders"])
    tables.print_comparison(result)
    packed = replace(task, kind="pack", trials=options.inside, steps=min(options.steps, 20))
    about = {"k": options.inside, "arrangement": str(whole)}
    result["shares"] = {**about, "parts": ask_all(pool.workers(whole), ("shares", packed))[0]}
    tables.print_shares(result["shares"])
    if options.ablate:
        result["ablations"] = {**about, "without": ablate(pool, entrants, replace(packed, ragged=True), effort)}
        tables.print_ablations(result["ablations"])
    return result


def entrants_of(options: argparse.Namespace) -> Entrants:
    """On CPUs packs take all threads in one process, or one thread each in many; a GPU has one pack."""
    whole = Arrangement(1, options.threads)
    beside = tuple(Arrangement(count, 1) for count in options.processes if count > 1)
    packs = (whole, *beside) if options.device == "cpu" else (whole,)
    return Entrants(options.device, (whole, *beside), packs, (False, True) if options.compile else (False,))


def shape_of(name: str) -> Shape:
    """The shape that is called ROWSxTOKENS@SIZE."""
    each, _, size = name.partition("@")
    rows, _, tokens = each.partition("x")
    return Shape(int(rows), int(tokens), *SIZES[size])


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line, with what follows from the device filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--shapes", nargs="+", type=_shape, help=f"ROWSxTOKENS@SIZE, sizes {', '.join(SIZES)}")
    add("--trials", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32], help="trials of a pack")
    add("--steps", type=int, default=200, help="optimizer steps of a trial in one measurement, at most")
    add("--seconds", type=float, default=1.0, help="that a measurement should take; it has as many steps as fit")
    add("--repeats", type=int, default=5, help="measurements of everyone, in turns; the median counts")
    add("--longest", type=float, default=5.0, help="leave K out where K steps of trials alone take more seconds")
    add("--threads", type=int, help="of the process that has them all; default all cores, with a GPU 1")
    add("--processes", nargs="+", type=int, help="side by side; default as many as threads, on a GPU 2 4 8")
    add("--tokens", type=int, help="of a pass; default what `prepare_execution` decides")
    add("--rank", type=int, default=16)
    add("--dropout", type=float, default=0.0, help="of the adapters")
    add("--ragged", action="store_true", help="rows of a quarter to the whole of the tokens")
    add("--inside", type=int, default=8, help="trials of the pack whose time is split up, and of the ablations")
    add("--ablate", action="store_true", help="also switch single tricks off")
    add("--compile", action="store_true", help="trials alone also with `torch.compile`, whose own time isn't counted")
    add("--quick", action="store_true", help="one small shape and hardly any steps: whether it runs, not how fast")
    options = parser.parse_args(given)
    if options.quick:
        options.shapes, options.trials, options.inside = ["4x32@64"], [2, 4], 4
        options.steps, options.seconds, options.repeats = 8, 0.1, 1
    on_cpu = options.device == "cpu"
    options.shapes = options.shapes or SHAPES[options.device]
    options.threads = options.threads or (cores() if on_cpu else 1)
    options.processes = options.processes or ([options.threads] if on_cpu else [2, 4, 8])
    return options


def _shape(name: str) -> str:
    try:
        shape_of(name)
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"must be like 8x64@64, sizes {', '.join(SIZES)}, but got {name!r}") from None
    return name


if __name__ == "__main__":
    main()
