"""Leases of GPUs, with real locks and processes; only the list of devices is made up."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from understudy import devices, progress, turns
from understudy.errors import UserError
from understudy.trial import ResolvedExecution

CODE = """
import os, sys
from pathlib import Path
from understudy import devices
devices.FOLDER = Path(os.environ["LOCKS"])
from understudy.trial import ResolvedExecution
devices.lease(ResolvedExecution(
    device="cuda", threads=1, processes=int(sys.argv[1]), micro_batch_size=1, dtype="float32",
    gradient_checkpointing=False,
))
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with three GPUs."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    list_devices(program, *(f"GPU {i}: NVIDIA H100 80GB HBM3 (UUID: GPU-{name})" for i, name in enumerate("abc")))
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "LOCKS": str(tmp_path / "locks")}


def list_devices(program: Path, *lines: str) -> None:
    """Let the stand-in for nvidia-smi print these lines for `-L`."""
    program.write_text('#!/bin/sh\n[ "$1" = -L ] && cat <<END\n' + "\n".join(lines) + "\nEND\n")
    program.chmod(0o755)


@contextmanager
def trial(processes: int, machine: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", CODE, str(processes)]
    process = subprocess.Popen(command, env=machine, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def waiting(locks: Path) -> list[Path]:
    return list(locks.glob("waiting-*"))


def wait_for(there: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not there():
        assert time.monotonic() < until
        time.sleep(0.05)


def leased(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_no_two_trials_share_a_gpu_and_a_killed_one_gives_its_own_back(machine: dict[str, str]) -> None:
    with trial(2, machine) as first, trial(1, machine) as second:
        taken = [leased(first), leased(second)]
        assert sorted(",".join(taken).split(",")) == ["GPU-a", "GPU-b", "GPU-c"]
        with trial(1, machine) as third:
            first.kill()
            assert leased(third) in taken[0].split(",")


def test_a_trial_that_needs_several_has_its_turn_before_those_that_come_after(machine: dict[str, str]) -> None:
    """Whatever becomes free is kept for it. What it doesn't wish for isn't, nor is anything once it was killed."""
    others = {**machine, "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}
    locks = Path(machine["LOCKS"])
    with trial(1, others) as first, trial(1, others) as second:
        taken = [leased(first), leased(second)]
        with trial(2, others) as large:
            wait_for(lambda: len(waiting(locks)) == 1)
            with trial(1, others) as late, trial(1, machine) as elsewhere:
                assert leased(elsewhere) == "GPU-c"
                wait_for(lambda: len(waiting(locks)) == 2)
                end(first)
                time.sleep(3 * devices.WAIT_SECONDS)
                assert len(waiting(locks)) == 2  # one is free, and nobody takes it
                end(second)
                assert leased(large) == "GPU-a,GPU-b"
                end(large)
                assert leased(late) in taken
                with trial(2, others) as killed:
                    wait_for(lambda: len(waiting(locks)) == 1)
                    end(killed)
                    with trial(1, others) as last:
                        assert leased(last) in taken
    assert not waiting(locks)


def test_who_is_stopped_while_it_waits_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(turns.time, "monotonic", lambda: now[0])
    wishes = [turns.Wish((f"GPU-{name}",), 1) for name in "abc"]
    with (
        turns.place(tmp_path, wishes[0]) as a,
        turns.place(tmp_path, wishes[1]) as b,
        turns.place(tmp_path, wishes[2]) as c,
    ):
        assert [a.look(), b.look(), c.look()] == [[], wishes[:1], wishes[:2]]
        now[0] += turns.SILENT_SECONDS
        assert [b.look(), c.look()] == [[], wishes[1:2]]
        assert a.look() == []  # it has woken up, and has its place again
        assert b.look() == wishes[:1]
    assert not list(tmp_path.iterdir())


def test_users_with_temporary_folders_and_masks_of_their_own_share_the_locks(
    machine: dict[str, str], tmp_path: Path
) -> None:
    careful = {**machine, "TMPDIR": str(tmp_path)}
    before = os.umask(0o077)
    try:
        with trial(2, careful) as first, trial(1, machine) as second:
            assert len({*leased(first).split(","), leased(second)}) == 3
    finally:
        os.umask(before)
    folder = tmp_path / "locks"
    assert folder.stat().st_mode & 0o7777 == 0o1777
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_only_locks_that_were_taken_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "FOLDER", tmp_path)
    monkeypatch.setattr(devices, "_held", held := [])
    with (tmp_path / "GPU-a").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        wish = turns.Wish(("GPU-a", "GPU-b", "GPU-c"), 1)
        assert devices._wait_for(wish) == ["GPU-b"]  # a file left open would be a warning, and so an error
    (lock,) = held
    assert Path(lock.name) == tmp_path / "GPU-b"
    lock.close()


def test_torch_is_asked_only_by_who_has_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(devices, "_told", lambda *_: "GPU-a\nGPU-b\n")
    assert devices.visible(by_torch=False) == []
    assert devices.visible() == ["GPU-a", "GPU-b"]


def test_a_longer_wait_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "FOLDER", tmp_path)
    monkeypatch.setattr(devices, "visible", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.setattr(devices, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(devices, "SAY_SECONDS", 0.3)
    monkeypatch.setattr(devices, "_held", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")  # so that it is put back
    monkeypatch.setattr(progress, "_terminal", sys.stderr)
    execution = ResolvedExecution(
        device="cuda", threads=1, processes=2, micro_batch_size=1, dtype="float32", gradient_checkpointing=False
    )
    for seconds, said in ((0.1, 0), (1.0, 1)):
        other = (tmp_path / "GPU-b").open("w")
        fcntl.flock(other, fcntl.LOCK_EX)
        threading.Timer(seconds, other.close).start()
        devices.lease(execution)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
        words = (
            "understudy: a trial waits for 2 free GPUs; of the 2 that are visible here other processes hold too many, "
            "or came first"
        )
        assert capfd.readouterr().err.count(words) == said
        while devices._held:
            devices._held.pop().close()


@pytest.mark.parametrize(
    ("given", "offload", "found"),
    [
        ("", False, "expandable_segments:True"),
        ("", True, "expandable_segments:True,pinned_max_round_threshold_mb:1"),
        ("PYTORCH_ALLOC_CONF", True, "own"),
        ("PYTORCH_CUDA_ALLOC_CONF", True, "None"),
    ],
)
def test_torchs_allocator_is_set_unless_the_user_has(
    given: str, offload: bool, found: str, machine: dict[str, str]
) -> None:
    others = {name: value for name, value in machine.items() if "ALLOC_CONF" not in name}
    code = CODE.replace("sys.stdin.read()", 'print(os.environ.get("PYTORCH_ALLOC_CONF"))')
    code = code.replace("gradient_checkpointing=False", f"gradient_checkpointing=False, cpu_offload={offload}")
    told = subprocess.run(
        [sys.executable, "-c", code, "1"],
        env={**others, **({given: "own"} if given else {})},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split()[-1] == found


def test_only_what_the_scheduler_allotted_is_leased(machine: dict[str, str]) -> None:
    allotted = {**machine, "CUDA_VISIBLE_DEVICES": "2"}
    with trial(1, allotted) as process:
        assert leased(process) == "GPU-c"
    short = subprocess.run(
        [sys.executable, "-c", CODE, "2"], env=allotted, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert "needs 2 GPUs" in short.stderr


@pytest.mark.parametrize(
    ("allotted", "expected"),
    [
        (None, ["GPU-12ab-1", "MIG-77aa-1", "MIG-78aa-2"]),
        ("1,0", ["MIG-77aa-1", "GPU-12ab-1"]),
        ("MIG-78", ["MIG-78aa-2"]),
        ("GPU-12ab-1", ["GPU-12ab-1"]),
        ("MIG-7", ["MIG-7"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,9,1", ["GPU-12ab-1"]),
    ],
)
def test_instances_of_a_split_gpu_count_and_names_may_be_short(
    machine: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allotted: str | None, expected: list[str]
) -> None:
    list_devices(
        tmp_path / "bin" / "nvidia-smi",
        "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-12ab-1)",
        "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-34cd-2)",
        "  MIG 3g.20gb     Device  0: (UUID: MIG-77aa-1)",
        "  MIG 3g.20gb     Device  1: (UUID: MIG-78aa-2)",
    )
    monkeypatch.setenv("PATH", machine["PATH"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if allotted is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allotted)
    assert devices.visible() == expected


def test_instances_do_not_train_together(machine: dict[str, str], tmp_path: Path) -> None:
    """CUDA shows a process one of them at most."""
    instances = [f"  MIG 3g.20gb     Device  {number}: (UUID: MIG-{number})" for number in range(2)]
    list_devices(tmp_path / "bin" / "nvidia-smi", "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)", *instances)
    with trial(1, machine) as alone:
        assert leased(alone) == "MIG-0"
    whole = [f"GPU {number}: NVIDIA A100-SXM4-40GB (UUID: GPU-{number})" for number in (2, 3)]
    together = subprocess.run([sys.executable, "-c", CODE, "2"], env=machine, capture_output=True, text=True)
    assert "can't train together; set `processes: 1`" in together.stderr
    list_devices(tmp_path / "bin" / "nvidia-smi", "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)", *instances, *whole)
    with trial(2, machine) as both:
        assert leased(both) == "GPU-2,GPU-3"


def test_where_nvidia_smi_lists_nothing_torch_is_asked(
    machine: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_devices(tmp_path / "bin" / "nvidia-smi", "Failed to initialize NVML: Driver/library version mismatch")
    monkeypatch.setenv("PATH", machine["PATH"])
    monkeypatch.setattr(devices, "ASK_TORCH", "print('GPU-x'); print('GPU-y')")
    assert devices.visible() == ["GPU-x", "GPU-y"]


@pytest.mark.parametrize(
    ("allotted", "order", "expected"),
    [
        ("0", None, ["GPU-fast"]),  # CUDA's first is the fastest, not the one in the first slot
        (" 1", None, ["GPU-fast"]),  # torch, which the stand-in is for, knows what that is
        ("0", "PCI_BUS_ID", ["GPU-slow"]),
        ("GPU-slow", None, ["GPU-slow"]),
        (None, None, ["GPU-slow", "GPU-fast"]),
    ],
)
def test_numbers_of_gpus_of_several_kinds_are_cudas(
    machine: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    allotted: str | None,
    order: str | None,
    expected: list[str],
) -> None:
    kinds = [f"GPU {i}: {name} (UUID: GPU-{id})" for i, (name, id) in enumerate((("T400", "slow"), ("H100", "fast")))]
    list_devices(tmp_path / "bin" / "nvidia-smi", *kinds)
    monkeypatch.setenv("PATH", machine["PATH"])
    monkeypatch.setattr(devices, "ASK_TORCH", "print('GPU-fast')")
    for name, value in (("CUDA_VISIBLE_DEVICES", allotted), ("CUDA_DEVICE_ORDER", order)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert devices.visible() == expected
    monkeypatch.setattr(devices, "ASK_TORCH", "")  # it has no CUDA
    assert len(devices.visible()) == len(devices.visible(by_torch=False)) == len(expected)


def test_without_gpus_nothing_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert devices.visible() == []


@pytest.mark.parametrize(("listed", "needed", "said"), [(0, 1, "1 GPU, but none is"), (2, 4, "4 GPUs, but 2 are")])
def test_what_a_run_needs_is_asked_of_it_at_once(
    listed: int, needed: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "visible", lambda: [f"GPU-{number}" for number in range(listed)])
    with pytest.raises(UserError, match=said):
        devices.require(needed)
    devices.require(listed)
