"""How fast a trial at full size trains by itself, against TRL's SFTTrainer or transformers' Trainer with peft.

    python tests/benchmarks/full_size.py [--quick] [--shapes 0.5b 1.5b 7b] [--rows 1 2 4 8] [--rounds 3] [--tokens 1024]

All train the same adapter on the same base (random weights; bfloat16 or NF4) and see the same 512 examples once, in
batches of 16. Each measurement has a process of its own that trains once to warm up and once by the clock. Contenders
take turns, each with every number of rows per pass that it is given; its best counts. Prints tables and a line of
JSON. TRL is measured where it is installed (`pip install trl`); without it the Trainer alone is the peer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from packs.tasks import Shape, write_checkpoint

HERE = Path(__file__).parent
# hidden size, layers, heads, heads of keys and values, feed-forward size, vocabulary
SIZES = {
    "tiny": (64, 2, 4, 4, 192, 512),
    "0.5b": (896, 24, 14, 2, 4864, 151936),
    "1.5b": (1536, 28, 12, 2, 8960, 151936),
    "7b": (3584, 28, 28, 4, 18944, 152064),
}
OURS = ("understudy", "compiled")  # as it is by default, and with `torch_compile`
BASES = ("none", "nf4")  # LoRA on bfloat16 (float32 on CPUs), QLoRA


def main() -> None:
    """Measure what the command line asks for."""
    options = arguments(sys.argv[1:])
    contenders = [*OURS[: 1 if options.device == "cpu" else 2], "trainer", *(["trl"] if find_spec("trl") else [])]
    if "trl" not in contenders:
        print("TRL isn't installed: the peer is transformers' Trainer with peft\n")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.shapes:
            shape = Shape(16, options.tokens, *SIZES[size], architecture="qwen2")
            checkpoint = Path(folder) / size
            write_checkpoint(shape, checkpoint, torch.float32 if options.device == "cpu" else torch.bfloat16)
            for base in BASES:
                found.append({"shape": size, "base": base, **measure(shape, checkpoint, base, contenders, options)})
                print(table(found[-1]), flush=True)
    machine = {"device": options.device, "torch": torch.__version__, "load": os.getloadavg()[0]}
    print(json.dumps({"options": vars(options), "machine": machine, "measured": found}))


def arguments(words: list[str]) -> argparse.Namespace:
    """The command line's; `--quick` is a tiny shape, once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny shape, one round, one number of rows")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", nargs="+", choices=tuple(SIZES), default=["0.5b", "1.5b", "7b"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="per pass, divisors of 16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1024, help="of the longest example")
    options = parser.parse_args(words)
    if options.quick:
        options.shapes, options.rows, options.rounds, options.tokens = ["tiny"], [16], 1, 32
    return options


def measure(
    shape: Shape, checkpoint: Path, base: str, contenders: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    """Every contender's best, and the ratios of our faster one's to theirs."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name in contenders:
            for rows in options.rows:
                runs[name].append(run(shape, checkpoint, base, name, rows, options.device))
    best = {name: max(each, key=lambda one: one.get("rate", 0.0)) for name, each in runs.items()}
    ours, ratios = max((best[name] for name in OURS if name in best), key=lambda one: one.get("rate", 0.0)), {}
    for name, theirs in best.items():
        if name not in OURS and "rate" in theirs and "rate" in ours:
            ratios[name] = {key: ours[key] / theirs[key] for key in ("rate", "peak_bytes")}
    return {"best": best, "ratios": ratios, "runs": runs}


def run(shape: Shape, checkpoint: Path, base: str, name: str, rows: int, device: str) -> dict[str, Any]:
    """One measurement in a fresh process; the reason instead where it failed, as with too many rows."""
    order = {"shape": asdict(shape), "checkpoint": str(checkpoint), "base": base, "rows": rows, "device": device}
    command = [sys.executable, str(HERE / "full_size_worker.py"), name, json.dumps(order)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"rows": rows, "failed": lines[-1][:300]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"rows": rows, **answer}


def table(found: dict[str, Any]) -> str:
    """A shape's measurements, a line each."""
    lines = [f"{found['shape']}, {'QLoRA' if found['base'] == 'nf4' else 'LoRA'}"]
    for name, best in found["best"].items():
        if "failed" in best:
            lines.append(f"  {name:<12} failed: {best['failed']}")
            continue
        mfu = f"{best['mfu']:.1%}" if best["mfu"] is not None else "–"
        passes = f" at most, {best['passes']:.1f} passes a step" if "passes" in best else ""
        ratio = found["ratios"].get(name)
        text = (
            f"   we are {ratio['rate']:.2f} times as fast, with {ratio['peak_bytes']:.2f} of the memory"
            if ratio
            else ""
        )
        lines.append(
            f"  {name:<12} {best['rate']:>10,.0f} tokens/s   MFU {mfu:>6}   {best['peak_bytes'] / 2**30:>6.2f} GiB   "
            f"{best['rows']} rows{passes}{text}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
