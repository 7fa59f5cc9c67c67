"""A worker that hangs ends itself; one that is slow, suspended, or under a clock that jumps doesn't."""

from __future__ import annotations

import ast
import os
import signal
import time
from pathlib import Path

import pytest

import interruptions
import understudy
from interruptions import in_a_process
from packed_study import without_cost
from training_study import make_job, make_spec
from understudy import progress, watchdog
from understudy.train.pack import train_pack
from understudy.train.trial import Job
from understudy.trial import Pack, TrialRecord, TrialResult

PACKAGE = Path(understudy.__file__).parent
SPEC = make_spec()
PACK = Pack(id="random-000", specs=tuple(make_spec(f"r{n:04d}", lora_r=n, num_train_epochs=2) for n in (2, 3, 4)))
LIMIT = 1.0  # seconds
LATER = ("evaluation", "checkpoint", "base")


@pytest.mark.parametrize("moment", ["step", *(pytest.param(name, marks=pytest.mark.long) for name in LATER)])
def test_a_trial_that_hangs_ends_itself(moment: str, tmp_path: Path) -> None:
    ended_by_watchdog(interruptions.hanging, make_job(tmp_path), moment, "trial r0001")


def test_a_pack_that_hangs_ends_itself(tmp_path: Path) -> None:
    ended_by_watchdog(interruptions.hanging_pack, make_job(tmp_path), "round of a pack", "pack random-000")


def ended_by_watchdog(work: object, job: Job, moment: str, name: str) -> None:
    process = in_a_process(work, PACK if "pack" in name else SPEC, interruptions.always_saved(job, LIMIT), moment)
    process.join(60)
    assert process.exitcode == watchdog.EXIT_CODE
    said = interruptions.said(job)
    assert said.startswith(f"understudy: {name} made no progress for {LIMIT / 60:g} minutes and was ended")
    assert "`execution.watchdog_minutes`" in said
    assert not list(job.store.glob("*/record.json"))


def test_who_is_slow_or_suspended_is_left_alone(tmp_path: Path) -> None:
    """Each pass takes most of the limit; a stop of the whole process takes more than it."""
    begun = tmp_path / "begun"
    process = in_a_process(interruptions.working, LIMIT, 0.5 * LIMIT, 4, begun)
    while not begun.exists() and process.is_alive():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(3 * LIMIT)
    os.kill(process.pid, signal.SIGCONT)
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize(("megabytes", "code"), [(3, 0), (0, watchdog.EXIT_CODE)])
def test_who_reads_while_it_loads_is_left_alone(megabytes: int, code: int) -> None:
    process = in_a_process(interruptions.loading, LIMIT, 4 * LIMIT, megabytes)
    process.join(60)
    assert process.exitcode == code


def test_nobody_is_watched_outside_or_with_zero_minutes() -> None:
    process = in_a_process(interruptions.idle, 0.01)
    process.join(60)
    assert process.exitcode == 0


# --- clocks


def test_nothing_that_trains_reads_the_wall_clock() -> None:
    """It may be set while a trial runs. Progress and the notes of a cluster's runs carry it, for people.

    What mends files compares it with theirs, before anything runs: Snakemake would refuse those of the future. What
    sweeps half files asks how old those of other machines are.
    """
    readers = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "datetime.now", "time.localtime")
    }
    assert readers == {"progress.py", "cluster.py", "mending.py", "files.py"}


def test_progress_bears_a_clock_that_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What belongs to this run shows in the order of lines, and no time is negative."""
    path = tmp_path / "progress.jsonl"
    steps = [
        (5000.0, lambda: progress.start(path, {"proxy": 5}, workers=1)),
        (6000.0, lambda: progress.finished(path, record("r0001"), reused=False)),
        (100.0, lambda: progress.start(path, {"proxy": 5}, workers=1)),  # the clock was set back since
        (160.0, lambda: progress.finished(path, record("r0002"), reused=False)),
        (161.0, lambda: progress.finished(path, record("r0003"), reused=False)),
        (162.0, lambda: progress.finished(path, record("r0004"), reused=False)),
    ]
    for now, step in steps:
        monkeypatch.setattr(time, "time", lambda now=now: now)
        step()
    monkeypatch.setattr(time, "time", lambda: 40.0)
    found = progress.state(path)
    assert found.seconds_left() == pytest.approx(10.0)  # one more trial, of which this run's took 10 s each
    assert "· 0:00 passed" in found.line("proxy")


def record(id: str) -> TrialRecord:
    result = TrialResult.model_validate({"digest": id, "status": "complete", "cost": {"wall_seconds": 10.0}})
    return TrialRecord(spec=make_spec(id), result=result)


# --- packs and signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_a_pack(number: int, tmp_path: Path) -> None:
    whole = train_pack(PACK, make_job(tmp_path / "whole"))
    job = make_job(tmp_path / "cut")
    plan = interruptions.Plan("round of a pack", 3, number)
    assert interruptions.exit_code(interruptions.trained_pack, PACK, job, plan) == 128 + number
    name = signal.Signals(number).name
    assert interruptions.said(job) == (
        f"interrupted ({name}) with 3 of the pack's trials not finished; its checkpoint is kept; start again to go on"
    )
    assert len(list(job.store.glob("packs/*.pt"))) == 1
    assert without_cost(train_pack(PACK, job)) == without_cost(whole)
    assert not list(job.store.glob("packs/*.pt"))


def test_a_pack_whose_checkpoint_was_altered_begins_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One bit of a weight: torch alone would take it."""
    whole = train_pack(PACK, make_job(tmp_path / "whole"))
    job = make_job(tmp_path / "cut")
    interruptions.exit_code(
        interruptions.trained_pack, PACK, job, interruptions.Plan("round of a pack", 3, signal.SIGTERM)
    )
    (path,) = job.store.glob("packs/*.pt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    assert without_cost(train_pack(PACK, job)) == without_cost(whole)
    assert "isn't what was written; the pack begins anew" in capsys.readouterr().out
