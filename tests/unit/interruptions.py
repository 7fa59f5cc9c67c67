"""Real processes that train and get a signal at a chosen moment: what the tests of resuming have in common."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from understudy import interruption, progress, watchdog
from understudy.settings import RunningSettings
from understudy.train import checkpoint, engine, launch, loop, pack, saving
from understudy.train.history import History, MeanLoss
from understudy.train.packed import pack as packed
from understudy.train.trial import Job
from understudy.trial import TrialRecord, TrialSpec

# what is called at which moment of a trial
MOMENTS: dict[str, tuple[Any, str]] = {
    "step": (loop, "completion_tokens"),
    "forward pass": (loop, "_summed_loss"),
    "evaluation": (loop, "score"),
    "checkpoint": (checkpoint.Checkpoint, "_write"),
    "marker": (checkpoint.Checkpoint, "_complete"),
    "old checkpoint goes": (checkpoint.Checkpoint, "_keep_only"),
    "base": (engine, "load_base"),
    "record": (engine.Store, "save"),
    "round of a pack": (packed.Pack, "_round"),
}
# what takes seconds to import; the tests' own modules aren't found so early
PRELOADED = [
    "transformers.models.llama.modeling_llama",
    "peft",
    "understudy.train.engine",
    "understudy.train.packed.train",
]
PLAN = "UNDERSTUDY_TEST_PLAN"


@dataclass(frozen=True)
class Plan:
    """At the `count`-th time that a moment comes, process `rank` gets a signal, or all of its process group."""

    moment: str
    count: int
    signal: int
    rank: int = 0
    group: bool = False

    def prepare(self) -> None:
        """Let it come so in this process. A stopped or signalled process goes on where it was."""
        owner, name = MOMENTS[self.moment]
        original, seen = getattr(owner, name), 0

        def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == self.count:
                (os.killpg if self.group else os.kill)(os.getpgrp() if self.group else os.getpid(), self.signal)
            return original(*arguments, **named)

        setattr(owner, name, counted)


def always_saved(job: Job, watchdog_seconds: float = 0) -> Job:
    """The job with a checkpoint after every step, as `every_step` makes it."""
    return replace(job, running=RunningSettings(checkpoint_minutes=0, watchdog_minutes=watchdog_seconds / 60))


def every_step() -> None:
    """Let checkpoints take as much of the time as they want."""
    saving.SHARE = 0


def in_a_process(work: Callable[..., object], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Start `work` in a process of its own that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def exit_code(work: Callable[..., object], *arguments: Any) -> int | None:
    """What a process of its own ends with."""
    process = in_a_process(work, *arguments)
    process.join()
    return process.exitcode


def trained(spec: TrialSpec, job: Job, plan: Plan | None) -> None:
    """Train alone, as a command does, while the plan comes true."""
    _as_a_command(plan, job, lambda: launch.train_alone(spec, job))


def trained_pack(plan_of_pack: Any, job: Job, plan: Plan | None) -> None:
    """The same with a pack."""
    _as_a_command(plan, job, lambda: pack.train_pack(plan_of_pack, job))


def command(words: Sequence[str], plan: Plan | None) -> subprocess.CompletedProcess[str]:
    """A command of the program to its end, whose ranks follow the plan."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    if plan is not None:
        environment[PLAN] = json.dumps(vars(plan))
    whole = [sys.executable, __file__, *words]
    return subprocess.run(whole, env=environment, capture_output=True, text=True, start_new_session=True)


def said(job: Job) -> str:
    """What the last interrupted process said."""
    return (job.store.parent / "said.txt").read_text()


def _as_a_command(plan: Plan | None, job: Job, work: Callable[[], object]) -> None:
    every_step()
    interruption.listen()
    if plan is not None:
        plan.prepare()
    try:
        work()
    except interruption.InterruptionError as error:
        (job.store.parent / "said.txt").write_text(str(error))
        sys.exit(error.exit_code)


def run_rank(spec: TrialSpec, job: Job) -> TrialRecord | interruption.InterruptionError:
    """As `launch.run_rank`, with the plan of the environment."""
    every_step()
    plan = Plan(**json.loads(os.environ[PLAN]))
    if int(os.environ["RANK"]) == plan.rank:
        plan.prepare()
    elif plan.signal == signal.SIGSTOP:
        impatient()
    return _original_run_rank(spec, job)


_original_run_rank = launch.run_rank


def impatient() -> None:
    """Let the watchdog wait only seconds once training has begun: to get there may take longer than that."""
    original = loop.completion_tokens

    def hurrying(batch: Any) -> int:
        watchdog._state.watched[-1] = ("an impatient process", 3.0)
        return original(batch)

    loop.completion_tokens = hurrying


def hang(*_: Any, **__: Any) -> None:
    """For ever."""
    time.sleep(10**6)


def hanging(spec: TrialSpec, job: Job, moment: str) -> None:
    """Train, and hang at a moment."""
    _hang_at(moment, job)
    launch.train_alone(spec, job)


def hanging_pack(plan_of_pack: Any, job: Job, moment: str) -> None:
    """The same with a pack."""
    _hang_at(moment, job)
    pack.train_pack(plan_of_pack, job)


def _hang_at(moment: str, job: Job) -> None:
    every_step()
    owner, name = MOMENTS[moment]
    setattr(owner, name, hang)
    progress.set_terminal((job.store.parent / "said.txt").open("w"))


def working(limit: float, pass_seconds: float, passes: int, begun: Path) -> None:
    """Be watched, and slow; `begun` is made when it begins."""
    with watchdog.watching(limit / 60, "slow work"):
        begun.touch()
        for _ in range(passes):
            for _ in range(20):  # a stop cuts at most one of these naps short
                time.sleep(pass_seconds / 20)
            watchdog.beat()


def loading(limit: float, seconds: float, megabytes: int) -> None:
    """Load something without a beat: twice per limit, so many megabytes are read."""
    with watchdog.watching(limit / 60, "loading"), watchdog.input_output(), Path("/dev/zero").open("rb") as source:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            source.read(megabytes * 2**20)
            time.sleep(limit / 2)


def idle(limit: float) -> None:
    """Have been watched, and be watched for no time at all; wait for longer than it takes to notice."""
    with watchdog.watching(limit / 60, "work"):
        pass
    with watchdog.watching(0, "no work"):
        time.sleep(1.0)


def sharded(folder: Path, rank: int) -> None:
    """One of two processes that train a model of sharded weights, save, and go on in a fresh copy."""
    import torch
    from torch import distributed, nn
    from torch.distributed.fsdp import fully_shard

    from understudy.train.ranks import Ranks

    def fresh() -> checkpoint.Position:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))  # 5 and 3 rows on two processes
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return checkpoint.Position(model, optimizer, schedule, History(), MeanLoss())

    def step(position: checkpoint.Position) -> None:
        position.optimizer.zero_grad()
        position.model(torch.randn(4, 6)).square().sum().backward()
        position.optimizer.step()
        position.schedule.step()
        position.history.steps += 1

    def file() -> checkpoint.Checkpoint:
        return checkpoint.Checkpoint(folder / "checkpoint", "x", Ranks(rank, 2), torch.device("cpu"), 0)

    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", rank=rank, world_size=2, store=store)
    whole, resumed = fresh(), fresh()
    step(whole)
    step(whole)
    assert file().save(whole, sound=True)
    draws = torch.get_rng_state()
    step(whole)
    torch.manual_seed(99)
    file().resume(resumed)
    assert torch.equal(torch.get_rng_state(), draws)
    step(resumed)
    same = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(one.full_tensor(), other.full_tensor()) for one, other in same)
    assert whole.schedule.get_last_lr() == resumed.schedule.get_last_lr()
    distributed.destroy_process_group()


def steps_of(folder: Path) -> list[int]:
    """After which steps whole checkpoints stand in a store."""
    return sorted(json.loads(path.read_text())["step"] for path in folder.glob("*/checkpoint/step-*/whole.json"))


def main() -> int:
    """A command of understudy whose ranks follow the plan."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    from understudy import cli

    LocalElasticAgent._shutdown.__defaults__ = (signal.SIGTERM, 1)  # seconds for a rank that doesn't answer; else 30
    if PLAN in os.environ:
        launch.run_rank = run_rank
    return cli.main()


if __name__ == "__main__":
    import interruptions

    sys.exit(interruptions.main())  # under its own name, by which the ranks find it
