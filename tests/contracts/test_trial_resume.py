"""A trial that is interrupted goes on where it was, and its result is the same as if nothing had happened."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import interruptions
from interruptions import Plan, always_saved, exit_code, said, steps_of
from training_study import make_job, make_spec, target_words
from understudy.artifacts import Proposal
from understudy.errors import StorageError
from understudy.files import write_json
from understudy.store import Store
from understudy.train import saving
from understudy.train.engine import Engine
from understudy.train.launch import train_alone
from understudy.train.trial import Job
from understudy.trial import TrialRecord, TrialSpec, trial_digest

VALUES: dict[str, Any] = {
    "stage": "finalist",  # its weights are kept, so that they can be compared
    "num_train_epochs": 2,
    "lr_scheduler_type": "cosine",
    "attention_dropout": 0.1,
}
LORA = make_spec("f0s0", lora_dropout=0.2, **VALUES)
FULL = make_spec("f0s0", "full", **{**VALUES, "learning_rate": 1e-3})
STEPS = 12
KILLS = (
    Plan("step", 1, signal.SIGKILL),
    Plan("step", 4, signal.SIGKILL),
    Plan("checkpoint", 3, signal.SIGKILL),
    Plan("marker", 2, signal.SIGKILL),
    Plan("old checkpoint goes", 2, signal.SIGKILL),
    Plan("evaluation", 2, signal.SIGKILL),
    Plan("record", 1, signal.SIGKILL),
)


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def job_of(root: Path, **changes: Any) -> Job:
    return always_saved(make_job(root, evaluations=4, **changes))


def outcome(record: TrialRecord, job: Job) -> tuple[Any, dict[str, bytes]]:
    """All that must be the same: the result apart from cost and provenance, its tokens, and the weights' bytes."""
    plain = record.model_dump(mode="json")
    cost = plain["result"].pop("cost")
    plain["result"].pop("provenance")
    folder = Store(job.store).adapter(record.result.digest)
    weights = {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}
    assert weights
    return (plain, cost["tokens"], cost["flops"]), weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes of the two trials when nothing interrupts them, and nothing is saved."""
    job = make_job(tmp_path_factory.mktemp("whole"), evaluations=4)
    return {spec.method: outcome(train_alone(spec, job), job) for spec in (LORA, FULL)}


@pytest.mark.parametrize("spec", [pytest.param(LORA, marks=pytest.mark.long), FULL], ids=["lora", "full"])
def test_killed_again_and_again(spec: TrialSpec, whole: dict[str, Any], tmp_path: Path) -> None:
    job = job_of(tmp_path)
    seen = []
    for plan in KILLS:
        assert exit_code(interruptions.trained, spec, job, plan) == -signal.SIGKILL, plan
        seen.append(max(steps_of(job.store), default=0))
    assert seen == [0, 3, 5, 6, 8, 12, 12]
    record = train_alone(spec, job)
    assert outcome(record, job) == whole[spec.method]
    assert not Store(job.store).checkpoint(record.result.digest).exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)])
def test_a_signal_ends_it_after_the_running_step(number: int, code: int, whole: dict[str, Any], tmp_path: Path) -> None:
    """Step 6 has an evaluation, which comes after the next start."""
    job = replace(job_of(tmp_path), running=make_job(tmp_path).running)  # nothing is due
    assert exit_code(interruptions.trained, LORA, job, Plan("step", 6, number)) == code
    name = signal.Signals(number).name
    assert said(job) == f"interrupted ({name}) in step 6 of 12; the checkpoint is kept; start again to go on"
    assert steps_of(job.store) == [6]
    assert exit_code(interruptions.trained, LORA, job, Plan("evaluation", 2, number)) == code
    assert f"({name}) in step 9 of 12" in said(job)
    assert outcome(train_alone(LORA, job), job) == whole["lora"]


def test_a_signal_in_the_last_evaluation_comes_too_late(whole: dict[str, Any], tmp_path: Path) -> None:
    job = job_of(tmp_path)
    assert exit_code(interruptions.trained, LORA, job, Plan("evaluation", 4, signal.SIGTERM)) == 0
    assert outcome(train_alone(LORA, job), job) == whole["lora"]


def test_a_checkpoint_that_stands_is_not_written_again(whole: dict[str, Any], tmp_path: Path) -> None:
    """A signal comes in the evaluation after a step that is saved: to write it again could only lose it."""
    job = job_of(tmp_path)
    exit_code(interruptions.trained, LORA, job, Plan("evaluation", 2, signal.SIGKILL))
    (path,) = job.store.glob("*/checkpoint/step-*/rank-0.pt")
    before = path.stat()
    assert exit_code(interruptions.trained, LORA, job, Plan("evaluation", 1, signal.SIGTERM)) == 143
    assert said(job) == "interrupted (SIGTERM) in step 6 of 12; the checkpoint is kept; start again to go on"
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert outcome(train_alone(LORA, job), job) == whole["lora"]


def test_seconds_of_all_attempts_are_counted(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    exit_code(interruptions.trained, LORA, job, Plan("step", 8, signal.SIGKILL))
    (path,) = job.store.glob("*/checkpoint/step-*/rank-0.pt")
    state = torch.load(path, weights_only=True)
    state["state"].update(seconds=1000.0, peak_bytes=10**15)
    state["seal"] = saving.seal(state["state"])
    torch.save(state, path)
    marker = path.parent / "whole.json"
    write_json(marker, {**json.loads(marker.read_text()), "seals": [state["seal"]]})
    cost = train_alone(LORA, job).result.cost
    assert 1000 < cost.wall_seconds < 1100
    assert cost.peak_memory_bytes == 10**15


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A trial with a checkpoint after step 7."""
    job = job_of(tmp_path_factory.mktemp("interrupted"))
    assert exit_code(interruptions.trained, LORA, job, Plan("step", 8, signal.SIGKILL)) == -signal.SIGKILL
    assert steps_of(job.store) == [7]
    return job


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 16
    path.write_bytes(content)


def change_marker(folder: Path, **changes: Any) -> None:
    path = folder / "whole.json"
    write_json(path, {**json.loads(path.read_text()), **changes})


def second_rank(folder: Path) -> None:
    """Make it one of two processes."""
    seals = json.loads((folder / "whole.json").read_text())["seals"]
    shutil.copy(folder / "rank-0.pt", folder / "rank-1.pt")
    change_marker(folder, seals=seals * 2)


DAMAGE = {
    "cut off": lambda folder: cut(folder / "rank-0.pt"),
    "empty": lambda folder: (folder / "rank-0.pt").write_bytes(b""),
    "missing": lambda folder: (folder / "rank-0.pt").unlink(),
    "a bit of the weights": lambda folder: flip(folder / "rank-0.pt", (folder / "rank-0.pt").stat().st_size // 2),
    "marker cut off": lambda folder: cut(folder / "whole.json"),
    "marker of another step": lambda folder: change_marker(folder, step=6),
    "another trial": lambda folder: change_marker(folder, trial="0" * 32),
    "another format": lambda folder: change_marker(folder, format=0),
    "another torch": lambda folder: change_marker(folder, torch="1.0"),
    "two processes": second_rank,
    "no seals": lambda folder: change_marker(folder, seals=None),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_cannot_be_used_is_said_and_the_trial_begins_anew(
    name: str, interrupted: Job, whole: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = replace(interrupted, store=tmp_path / "store")
    shutil.copytree(interrupted.store, job.store)
    (folder,) = job.store.glob("*/checkpoint/step-*")
    DAMAGE[name](folder)
    record = train_alone(LORA, job)
    said = capsys.readouterr().out
    assert said.count("begins anew") == 1
    assert str(folder) in said
    assert outcome(record, job) == whole["lora"]


def test_the_checkpoint_is_used_where_nothing_is_wrong_with_it(
    interrupted: Job, whole: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = replace(interrupted, store=tmp_path / "store")
    shutil.copytree(interrupted.store, job.store)
    assert outcome(train_alone(LORA, job), job) == whole["lora"]
    assert "goes on after step 7" in capsys.readouterr().out


@pytest.mark.parametrize("error", [OSError(116, "Stale file handle"), MemoryError("no memory")])
def test_a_checkpoint_that_cannot_be_read_now_is_kept(
    error: Exception,
    interrupted: Job,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    job = replace(interrupted, store=tmp_path / "store")
    shutil.copytree(interrupted.store, job.store)
    with monkeypatch.context() as patch:
        patch.setattr(saving.torch, "load", refuse)
        with pytest.raises(StorageError, match=r"rank-0.pt can't be read \(.*it is kept: start again"):
            train_alone(LORA, job)
    assert outcome(train_alone(LORA, job), job) == whole["lora"]
    assert "goes on after step 7" in capsys.readouterr().out


def test_limits_that_stop_a_trial_have_checkpoints_of_their_own(
    interrupted: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit may have stopped it before the step where it is."""
    job = replace(interrupted, store=tmp_path / "store", stop_above=(0.1, None, None))
    shutil.copytree(interrupted.store, job.store)
    result = train_alone(LORA, job).result
    assert (result.status, result.steps) == ("stopped", 3)
    assert "begins anew" in capsys.readouterr().out
    assert not Store(job.store).checkpoint(trial_digest(LORA, job.inputs)).exists()


def test_no_flipped_bit_goes_unnoticed(interrupted: Job, tmp_path: Path) -> None:
    """Either the file can't be used, or what it says is what was written."""
    (original,) = interrupted.store.glob("*/checkpoint/step-*/rank-0.pt")
    written, draw = saving.load_sealed(original), random.Random(0)
    assert written is not None
    path, refused = tmp_path / "flipped.pt", 0
    for _ in range(100):
        shutil.copy(original, path)
        flip(path, draw.randrange(path.stat().st_size))
        found = saving.load_sealed(path)
        refused += found is None
        assert found is None or (found[0] == written[0] and saving.seal(found[1]) == written[0])
    assert refused > 50


@pytest.mark.parametrize("mapped", [False, True])
def test_no_length_of_a_file_that_was_cut_off_passes_for_a_disk_that_fails(
    mapped: bool, interrupted: Job, tmp_path: Path
) -> None:
    """Some make torch look for what lies before the file's beginning."""
    (original,) = interrupted.store.glob("*/checkpoint/step-*/rank-0.pt")
    content, path = original.read_bytes(), tmp_path / "cut.pt"
    for part in range(300):
        path.write_bytes(content[: len(content) * part // 300])
        assert saving.load_sealed(path, mapped) is None


def test_a_full_disk_costs_the_checkpoint_and_not_the_trial(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    job = job_of(tmp_path)
    monkeypatch.setattr(saving, "SHARE", 0)
    monkeypatch.setattr(saving.torch, "save", full)
    assert outcome(Engine(job).train(LORA), job) == whole["lora"]
    assert "couldn't be written ([Errno 28] No space left on device)" in capsys.readouterr().out


# --- two processes


def test_sharded_weights_are_saved_by_those_who_hold_them(tmp_path: Path) -> None:
    processes = [interruptions.in_a_process(interruptions.sharded, tmp_path, rank) for rank in (0, 1)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    weights = [
        torch.load(path, weights_only=True)["state"]["weights"]["0.weight"].shape[0]
        for path in sorted(tmp_path.glob("checkpoint/*/rank-*.pt"))
    ]
    assert weights == [3, 2]


TWO = make_spec("t0003", stage="target", num_train_epochs=2, lora_dropout=0.2, batch_size=6)
TWO_FULL = make_spec("t0003", "full", stage="target", num_train_epochs=2, attention_dropout=0.1, batch_size=6)


def command(root: Path, plan: Plan | None, spec: TrialSpec = TWO, **changes: Any) -> subprocess.CompletedProcess[str]:
    """The command train-target over two ranks, one of which follows the plan."""
    job = job_of(root, processes=2, **changes)
    proposal = Proposal(number=3, spec=spec, kind="start", sampler="transfer", visible=(), pending=())
    running = {"running": {"checkpoint_minutes": 0, "watchdog_minutes": 2}}
    return interruptions.command(target_words(root, job, proposal, running=running), plan)


def result(root: Path) -> Any:
    plain = json.loads((root / "result.json").read_text())
    for name in ("cost", "provenance"):
        del plain["result"][name]
    del plain["checksum"]  # covers these two as well
    return plain


@pytest.mark.long
def test_two_processes(tmp_path: Path) -> None:
    """One is asked to end while it loads, one is killed, all are asked, some twice, then one stops for good.

    It still ends as if nothing had happened.
    """
    store = make_job(tmp_path / "cut").store
    early = command(tmp_path / "cut", Plan("base", 1, signal.SIGUSR1, rank=1))
    assert early.returncode == 128 + signal.SIGUSR1
    assert "interrupted (SIGUSR1) before training began" in early.stderr
    assert not steps_of(store)

    killed = command(tmp_path / "cut", Plan("step", 4, signal.SIGKILL, rank=1))
    assert killed.returncode == 1
    assert "process 1 of 2 of trial t0003 ended with exit code -9" in killed.stderr
    assert steps_of(store)[-1] == 3

    asked = command(tmp_path / "cut", Plan("step", 3, signal.SIGUSR1, rank=1, group=True))
    assert asked.returncode == 128 + signal.SIGUSR1
    (step,) = steps_of(store)
    assert f"interrupted (SIGUSR1) in step {step} of 16; the checkpoint is kept; start again to go on" in asked.stderr
    assert 6 <= step < 16
    assert sorted(path.name for path in store.glob("*/checkpoint/*/*")) == ["rank-0.pt", "rank-1.pt", "whole.json"]

    hung = command(tmp_path / "cut", Plan("step", 2, signal.SIGSTOP, rank=1))
    assert hung.returncode == 1
    assert "an impatient process made no progress for 0.05 minutes and was ended" in hung.stderr
    assert "process 0 of 2 of trial t0003 ended with exit code 124: no progress for 2 minutes" in hung.stderr

    assert command(tmp_path / "cut", None).returncode == 0
    assert command(tmp_path / "whole", None).returncode == 0
    assert result(tmp_path / "cut") == result(tmp_path / "whole")
    assert not list(store.glob("*/checkpoint"))


@pytest.mark.parametrize(
    ("spec", "quantization"),
    [(TWO, "nf4"), pytest.param(TWO_FULL, "none", marks=pytest.mark.long)],
    ids=["lora on nf4", "full"],
)
def test_two_processes_that_share_a_model(spec: TrialSpec, quantization: str, tmp_path: Path) -> None:
    """Each has saved its own shards of weights and optimizer, and its own dropout masks go on where they were."""
    how = {"strategy": "fsdp", "quantization": quantization}
    store = make_job(tmp_path / "cut").store
    killed = command(tmp_path / "cut", Plan("step", 5, signal.SIGKILL, rank=1), spec, **how)
    assert killed.returncode == 1
    assert steps_of(store)[-1] == 4
    asked = command(tmp_path / "cut", Plan("step", 3, signal.SIGUSR1, rank=1, group=True), spec, **how)
    assert asked.returncode == 128 + signal.SIGUSR1
    (step,) = steps_of(store)
    assert 7 <= step < 16
    for root in ("cut", "whole"):
        assert command(tmp_path / root, None, spec, **how).returncode == 0
    assert result(tmp_path / "cut") == result(tmp_path / "whole")
