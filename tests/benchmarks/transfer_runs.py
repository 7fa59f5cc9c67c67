"""Make the table of fine-tuning runs that `transfer.py` replays: the same configurations on several models.

    make run
    python tests/benchmarks/transfer_runs.py [--results results] [--configurations 320] [--jobs 2] --output runs.parquet

The configurations are the first of the study's own Sobol sequence in its whole space. Each is run on the proxy in NF4,
the proxy in float32 and the target in float32, on the study's data with its seed, and on the target for a quarter of
its steps, with a schedule of that length; the first `--repeated` of them with further seeds, too. Finished trials are
kept in the store, so that it can be interrupted. A row of the table is a run:

    id, model, seed, fidelity (share of the steps that were run), the searched hyperparameters, status, eval_loss, curve
    (losses at equal distances, the last of them eval_loss), flops, parameters, hidden_size, model_type

Losses are in nats per completion token.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy import progress
from understudy.files import read_model
from understudy.hyperparameters import complete
from understudy.models.execution import resolve
from understudy.models.hardware import detect
from understudy.paths import StudyPaths
from understudy.process import set_threads
from understudy.search.defaults import learning_rate_rule, with_rate
from understudy.search.sequences import sobol
from understudy.sections import SearchSection, TrainingSection
from understudy.settings import ExecutionSettings
from understudy.train.pack import train_pack
from understudy.train.trial import Job
from understudy.trial import DataManifest, ModelCard, Pack, TrialInputs, TrialSpec

ROLES = {
    "proxy_nf4": ("proxy", "nf4", 1.0),
    "proxy_fp32": ("proxy", "none", 1.0),
    "target_fp32": ("target", "none", 1.0),
    "truncated_fp32": ("target", "none", 0.25),
}
PACK = 20


@dataclass(frozen=True)
class Batch:
    """One pack on one model."""

    model: str
    inputs: TrialInputs
    specs: tuple[TrialSpec, ...]


def main() -> None:
    """Run what is missing, then write the table."""
    options = arguments(sys.argv[1:])
    paths = StudyPaths(options.results)
    search = read_model(paths.settings("search"), SearchSection)
    batches = [batch for model in options.models for batch in planned(model, paths, search, options)]
    began, rows = time.perf_counter(), []
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(run, batch, paths, options.store, list(search.space)) for batch in batches]
        for number, future in enumerate(as_completed(waiting), 1):
            rows += future.result()
            print(f"{number} of {len(batches)} packs after {time.perf_counter() - began:.0f} s", file=sys.stderr)
    write(rows, options.output)


def planned(model: str, paths: StudyPaths, search: SearchSection, options: argparse.Namespace) -> list[Batch]:
    """The packs of a model: all configurations with the first seed, some with the others."""
    role, quantization, fidelity = ROLES[model]
    card = read_model(paths.model(role), ModelCard).model_copy(update={"quantization": quantization})
    data = read_model(paths.manifest, DataManifest)
    # both models train in packs here, which only the proxy's do in a study: the losses are the same
    as_proxy = card.model_copy(update={"role": "proxy"})
    execution = resolve(ExecutionSettings(device="cpu"), as_proxy, data.max_length, detect("cpu")).resolved
    training = read_model(paths.settings("training"), TrainingSection).training
    inputs = TrialInputs(data=data, model=card, execution=execution, training=training)
    base = with_rate(search.defaults, learning_rate_rule(card.hidden_size, card.model_type, "lora"))
    configurations = sobol(search.space, search.seed, 0, options.configurations)
    batches = []
    for seed in range(1, options.seeds + 1):
        specs = [
            TrialSpec(
                id=f"c{number:04d}",
                stage="proxy",
                origin="sobol",
                hyperparameters=complete(values, base, "lora"),
                fidelity=fidelity,
                seed=seed,
            )
            for number, values in enumerate(configurations if seed == 1 else configurations[: options.repeated])
        ]
        specs.sort(key=lambda spec: -_length(spec))  # trials of a pack end together
        batches += [Batch(model, inputs, tuple(specs[i : i + PACK])) for i in range(0, len(specs), PACK)]
    return batches


def _length(spec: TrialSpec) -> float:
    return float(spec.hyperparameters["num_train_epochs"]) / float(spec.hyperparameters["batch_size"])


def run(batch: Batch, paths: StudyPaths, store: Path, searched: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a pack."""
    set_threads(1)
    progress.set_terminal(io.StringIO())
    job = Job(batch.inputs, paths.data("train"), paths.data("validation"), store, store / "progress.jsonl")
    results = train_pack(Pack(id=f"{batch.model}-{batch.specs[0].id}", specs=batch.specs), job)
    model = batch.inputs.model
    return [
        {
            "id": record.spec.id,
            "model": batch.model,
            "seed": record.spec.seed,
            "fidelity": record.spec.fidelity,
            **{name: record.spec.hyperparameters[name] for name in searched},
            "status": record.result.status,
            "eval_loss": record.result.objective,
            "curve": [point.eval_loss for point in record.result.curve],
            "flops": record.result.cost.flops,
            "parameters": model.parameters,
            "hidden_size": model.hidden_size,
            "model_type": model.model_type,
        }
        for record in results.records
    ]


def write(rows: Sequence[dict[str, Any]], output: Path) -> None:
    """A small Parquet file, sorted."""
    import polars as pl

    frame = pl.DataFrame(rows, infer_schema_length=None).sort("model", "seed", "id")
    frame = frame.with_columns(pl.col("curve").cast(pl.List(pl.Float32)), pl.col("flops").cast(pl.Float32))
    frame.write_parquet(output, compression="zstd", compression_level=19, statistics=False)
    print(f"{frame.height} runs of {frame['id'].n_unique()} configurations in {output}")


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--results", type=Path, default=Path("results"), help="a study that has prepared its data and models")
    add("--models", nargs="+", choices=list(ROLES), default=list(ROLES), metavar="MODEL", help="default all")
    add("--store", type=Path, default=Path(".cache/transfer-runs"), help="where finished trials are kept")
    add("--configurations", type=int, default=320)
    add("--repeated", type=int, default=64, help="configurations with all seeds")
    add("--seeds", type=int, default=3)
    add("--jobs", type=int, default=2, help="processes of one thread")
    add("--output", type=Path, required=True)
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
