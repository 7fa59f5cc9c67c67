"""How many trials run side by side, and what a trial costs beside a proxy trial: known before anything has run."""

from __future__ import annotations

from dataclasses import dataclass

from understudy import graph
from understudy.config import StudyConfig
from understudy.hyperparameters import HYPERPARAMETERS
from understudy.settings import Role, StageExecution, TargetExecution


@dataclass(frozen=True)
class Room:
    """What a run may use. None: it isn't known, or doesn't count."""

    cores: int | None
    gpus: int | None = None
    jobs: int | None = None  # in a scheduler's queue


def side_by_side(study: StudyConfig, room: Room) -> dict[str, int]:
    """Trials of each stage, of the proxy its packs, that run at the same time, at most."""
    target = _fitting(study, "target", room)
    in_window = min(target, study.target.window)
    return {
        "proxy": min(_fitting(study, "proxy", room), max(1, len(graph.proxy_packs(study)))),
        "truncated": in_window,
        "target": in_window,
        "finalist": min(target, len(graph.finalist_runs(study))),
    }


def costs(study: StudyConfig, room: Room) -> dict[str, float]:
    """Seconds of a trial of each stage in those of a proxy trial, were both models of one size.

    Both read the same tokens, and a stage with more devices or threads is taken to be as many times faster. Full
    fine-tuning takes 6 operations per parameter and token, where LoRA takes 4.
    """
    how = study.execution
    on_gpus = how.device == "cuda" or room.gpus is not None
    speed = how.target.nodes * how.target.processes * (1.0 if on_gpus else how.target.threads / how.proxy.threads)
    target = (1.5 if study.target.method == "full" else 1.0) / speed / study.proxy.fidelity
    short = study.target.truncated.fidelity if study.target.truncated else 1.0
    return {"proxy": 1.0, "truncated": short * target, "target": target, "finalist": target}


def narrow(study: StudyConfig, room: Room) -> list[str]:
    """What to say where a run has room for more target trials than the window lets run: one line at most.

    Of cores only where the window could be wider: idle ones cost little.
    """
    fitting, target = _fitting(study, "target", room), study.target
    most = max(1, target.trials // 4)
    if study.execution.device == "cuda" and room.gpus is None:  # whatever cores there are, GPUs are what is short
        return []
    if fitting <= target.window or (room.gpus is None and target.window == most):
        return []
    there = f"{room.gpus} GPUs" if room.gpus is not None else f"{room.cores} cores"
    at_work = "one target trial at a time" if target.window == 1 else f"{target.window} target trials side by side"
    return [
        f"{there}, but `target.window` ({target.window}) lets {at_work} run, where {fitting} would fit; "
        f"it can be at most a quarter of `target.trials` ({most} for {target.trials} trials)"
    ]


def idle(study: StudyConfig) -> list[str]:
    """What to say of batches with fewer rows than a target trial has processes: one line at most."""
    how, default = study.execution.target, study.defaults.get("batch_size", HYPERPARAMETERS["batch_size"].default)
    least = min(int(size) for size in (default, *study.values_of("batch_size")))
    processes = how.nodes * how.processes
    if least >= processes:
        return []
    return [
        f"a batch of {least} has rows for {least} of the {processes} processes of a target trial; the others wait. "
        "Fewer `execution.target.processes`, or larger batches in `space`, would use them"
    ]


def _fitting(study: StudyConfig, role: Role, room: Room) -> int:
    """Trials of a role for which a run has room; the first one runs in any case."""
    how: StageExecution = getattr(study.execution, role)
    limits = [] if room.jobs is None else [room.jobs]
    if room.cores is not None:
        limits.append(room.cores // (how.threads * how.processes))
    if room.gpus is not None:
        limits.append(room.gpus // how.processes)
    if room.jobs is None and isinstance(how, TargetExecution) and how.nodes > 1:
        limits.append(1)  # see `trial_cores` in rules/jobs.smk
    return max(1, min(limits, default=1))
