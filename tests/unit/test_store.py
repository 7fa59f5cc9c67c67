"""Files appear whole, the store answers for nothing that it doesn't hold, and a digest covers what it must."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from understudy import files, lock, progress
from understudy.errors import CorruptFileError, UserError
from understudy.files import write_json, written_whole
from understudy.settings import TrainingSettings
from understudy.store import Store
from understudy.trial import (
    Cost,
    DataManifest,
    ModelCard,
    ResolvedExecution,
    SplitFile,
    TrialInputs,
    TrialRecord,
    TrialResult,
    TrialSpec,
    trial_digest,
)

SPEC = TrialSpec(id="r0001", stage="proxy", origin="random", hyperparameters={"learning_rate": 1e-3}, seed=7)
INPUTS = TrialInputs(
    data=DataManifest(
        task="docstrings",
        source={},
        counts={},
        splits={name: SplitFile(examples=9, sha256=name) for name in ("train", "validation", "test")},  # type: ignore[misc]
        max_length=8,
        train_examples=4,
        validation_examples=4,
        test_examples=None,
    ),
    model=ModelCard(
        role="proxy",
        source="local",
        name="m",
        path="/m",
        sha256="abc",
        model_type="llama",
        hidden_size=8,
        num_hidden_layers=1,
        vocab_size=300,
        parameters=1000,
        quantization="nf4",
    ),
    execution=ResolvedExecution(
        device="cpu", threads=1, processes=1, micro_batch_size=8, dtype="float32", gradient_checkpointing=False
    ),
    training=TrainingSettings(),
)


def record(digest: str) -> TrialRecord:
    return TrialRecord(spec=SPEC, result=TrialResult(digest=digest, status="complete", objective=2.0))


def _write_half(path: Path) -> None:
    with written_whole(path) as beside:
        beside.write_text("half")
        raise RuntimeError


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"x": float("nan")})
    with pytest.raises(RuntimeError):
        _write_half(path)
    assert path.read_text() == '{\n  "x": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_two_machines_that_write_one_file_do_not_write_into_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process ids repeat from machine to machine; whoever is last is whole."""
    with written_whole(tmp_path / "a.json") as first:
        first.write_text("first")
        monkeypatch.setattr(files.os, "uname", lambda: SimpleNamespace(nodename="elsewhere"))
        with written_whole(tmp_path / "a.json") as second:
            second.write_text("second")
        assert (tmp_path / "a.json").read_text() == "second"
    assert (tmp_path / "a.json").read_text() == "first"


def test_the_store_returns_what_was_saved_and_refuses_what_is_broken(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find("d1") is None
    store.save(record("d1"))
    assert store.find("d1") == record("d1")

    path = store.entry("d1") / "record.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(CorruptFileError, match=str(path)):
        store.find("d1")
    write_json(store.entry("d1") / "record.json", record("d2"))
    with pytest.raises(CorruptFileError, match="d2"):
        store.find("d1")


def test_what_a_killed_writer_left_goes_with_the_next_save(tmp_path: Path) -> None:
    store = Store(tmp_path)
    left = store.entry("d1") / ".record.json.123.part"
    left.parent.mkdir()
    left.touch()
    os.utime(left, (0, 0))
    store.save(record("d1"))
    assert [path.name for path in store.entry("d1").iterdir()] == ["record.json"]


def test_the_digest_covers_what_changes_numbers_and_nothing_else() -> None:
    base = trial_digest(SPEC, INPUTS)
    renamed = SPEC.model_copy(update={"id": "q0009", "origin": "sobol", "parents": ("x",)})
    moved = INPUTS.model_copy(update={"model": INPUTS.model.model_copy(update={"path": "/elsewhere", "name": "n"})})
    assert trial_digest(renamed, moved) == base

    changed = [
        trial_digest(SPEC.model_copy(update={"seed": 8}), INPUTS),
        trial_digest(SPEC.model_copy(update={"fidelity": 0.5}), INPUTS),
        trial_digest(SPEC.model_copy(update={"method": "full"}), INPUTS),
        trial_digest(SPEC.model_copy(update={"hyperparameters": {"learning_rate": 2e-3}}), INPUTS),
        *(
            trial_digest(SPEC, INPUTS.model_copy(update={part: getattr(INPUTS, part).model_copy(update=update)}))
            for part, update in [
                ("model", {"sha256": "abd"}),
                ("model", {"quantization": "none"}),
                ("data", {"train_examples": 5}),
                ("data", {"max_length": 9}),
                ("execution", {"threads": 2}),
                ("execution", {"micro_batch_size": 4}),
                ("training", {"evaluations": 9}),
            ]
        ),
    ]
    assert len({base, *changed}) == 1 + len(changed)


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    code = (
        "import time; from pathlib import Path; from understudy import lock\n"
        f"lock.acquire(Path({str(path)!r})); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {holder.pid}"):
            lock.acquire(path)
    finally:
        holder.kill()
        holder.communicate()
    lock.acquire(path)
    lock.release()


def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    child = (
        "import os, time; from pathlib import Path; from understudy import process\n"
        f"process.end_with_parent(); Path({str(pid_file)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], start_new_session=True)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker = int(pid_file.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while _alive(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_progress_counts_a_trial_once_and_survives_a_line_cut_off_by_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    progress.start(path, {"proxy": 4, "target": 0, "finalist": 0}, workers=2)
    cost = Cost(wall_seconds=2.0)
    for objective in (3.0, 2.7, 2.5):
        result = TrialResult(digest="d", status="complete", objective=objective, cost=cost)
        progress.finished(path, TrialRecord(spec=SPEC, result=result), reused=False)
    with path.open("a") as handle:
        handle.write('{"event": "tri')
    state = progress.state(path)
    line = state.line("proxy")
    assert "1 of 4 trials ·" in line
    assert "best 2.5000 (r0001)" in line
    assert "about 0:03 left" in line  # three more, two at a time


def test_progress_names_trials_without_a_loss(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    progress.start(path, {"proxy": 8, "target": 2, "finalist": 0}, workers=1)
    for number, status in enumerate(["stopped", "complete", "diverged", "stopped", "out_of_memory", "diverged"]):
        spec = SPEC.model_copy(update={"id": f"r{number:04d}"})
        objective = 2.5 if status == "complete" else None
        result = TrialResult.model_validate({"digest": "d", "status": status, "objective": objective})
        progress.finished(path, TrialRecord(spec=spec, result=result), reused=False)
    line = progress.state(path).line("proxy")
    assert "6 of 8 trials (2 stopped early, 2 diverged, 1 out of memory) · best 2.5000 (r0001)" in line
