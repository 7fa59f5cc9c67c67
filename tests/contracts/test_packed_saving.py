"""The time of a pack, and how often and under which version its state is saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from training_study import make_job, make_spec
from understudy.settings import RunningSettings
from understudy.train import saving
from understudy.train.pack import train_pack
from understudy.train.packed import checkpoint
from understudy.train.packed import pack as loop
from understudy.trial import Pack

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]

SPEC = make_spec("r0001", learning_rate=1e-3, lora_r=9)


class Clock:
    """Time that passes only where a test lets it."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


def slowed(monkeypatch: pytest.MonkeyPatch, clock: Clock, seconds: Mapping[str, float]) -> None:
    """Let calls of a pack's methods take so many seconds each."""

    def slow(name: str, method: Any, taken: float) -> None:
        def called(*arguments: Any) -> Any:
            clock.now += taken
            return method(*arguments)

        monkeypatch.setattr(loop.Pack, name, called)

    for name, taken in seconds.items():
        slow(name, getattr(loop.Pack, name), taken)


def test_the_time_of_a_pack_is_its_trials_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it: waiting for losses, seats, evaluations; by the tokens that each puts through the base."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    slowed(monkeypatch, clock, {"_read": 1.0, "_seat": 10.0, "_evaluate": 100.0, "_step": 1000.0})
    twins = tuple(make_spec(f"r{number}", learning_rate=1e-3 * number) for number in (1, 2))
    long = make_spec("r3", num_train_epochs=3)
    found = train_pack(Pack(id="random-000", specs=(*twins, long)), make_job(tmp_path))
    seconds = [record.result.cost.wall_seconds for record in found.records]
    assert sum(seconds) == pytest.approx(clock.now)
    assert seconds[0] == pytest.approx(seconds[1], rel=0.05)
    assert seconds[2] > 2 * seconds[0]


class Saved:
    """What a checkpoint saves: it takes a while."""

    def __init__(self, clock: Clock, seconds: float, trials: Mapping[str, Any] | None = None) -> None:
        self.clock, self.seconds, self.trials = clock, seconds, dict(trials or {})

    def state(self) -> dict[str, Any]:
        self.clock.now += self.seconds
        return {"trials": self.trials}


def test_how_often_a_pack_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every so many seconds, or at most a twentieth of the time where it takes long."""
    clock = Clock()
    monkeypatch.setattr(saving, "time", clock)
    file = checkpoint.Checkpoint(tmp_path / "x.pt", seconds=5.0)

    def saved_after(pack: Any, rounds: int) -> list[int]:
        found = []
        for number in range(1, rounds + 1):
            clock.now += 1.0
            file.path.unlink(missing_ok=True)
            file.save_when_due(pack)
            found += [number] if file.path.exists() else []
        return found

    assert saved_after(Saved(clock, 0.0), 12) == [5, 10]
    assert saved_after(Saved(clock, 1.0), 50) == [3, 23, 43]


@pytest.mark.parametrize("what", ["format", "torch"])
def test_a_checkpoint_of_another_version_is_passed_over(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = checkpoint.Checkpoint(tmp_path / "x.pt")
    assert file.save(Saved(Clock(), 0.0, {"r0001": {}}))  # type: ignore[arg-type]
    assert file.trials() == {"r0001"}
    monkeypatch.setattr(checkpoint, "MADE_BY", {**checkpoint.MADE_BY, what: "another"})
    assert (file.load(), file.trials()) == (None, set())


def test_a_pack_is_saved_as_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, seen = dataclasses.replace(make_job(tmp_path), running=RunningSettings(checkpoint_minutes=0)), []
    monkeypatch.setattr(saving, "SHARE", 0)
    step = loop.Pack._round

    def between(self: Any) -> None:
        seen.append(len(list(job.store.glob("packs/*.pt"))))
        step(self)

    monkeypatch.setattr(loop.Pack, "_round", between)
    train_pack(Pack(id="random-000", specs=(SPEC,)), job)
    assert seen == [0, *[1] * (len(seen) - 1)]
    assert len(seen) > 5
    assert not list(job.store.glob("packs/*.pt"))
