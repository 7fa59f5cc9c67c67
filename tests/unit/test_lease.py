"""Locks over several machines: here processes, of which some pretend to be on another one without a shared flock."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from understudy import lease
from understudy.errors import StorageError

HOLD = """
import sys, time
from pathlib import Path
from understudy import lease
if "elsewhere" in sys.argv:  # another machine, on a file system that doesn't carry flock
    lease._boot = lambda: "another machine"
    lease.fcntl.flock = lambda *_: None
lease.BEAT_SECONDS = 0.1
with lease.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "SILENT_SECONDS", 1.0)


def holder(path: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(path), *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def seconds_until_held(path: Path) -> float:
    began = time.monotonic()
    with lease.held(path):
        return time.monotonic() - began


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """Such as one below a link to a disk that is gone."""
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "away")
    (tmp_path / "file").touch()
    for place in (tmp_path / "link", tmp_path / "file", Path("/proc/nothing")):
        with (
            pytest.raises(StorageError, match=f"the folder {place}.* can't be made"),
            lease.held(place / "x" / ".lock"),
        ):
            pass


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_who_comes_second_waits_until_a_living_holder_releases_it(tmp_path: Path, place: str) -> None:
    path = tmp_path / "entry" / ".lock"
    process = holder(path, place)
    with pytest.raises(lease.HeldError, match=f"process {process.pid}"), lease.held(path, wait=False):
        pass
    assert process.stdin is not None
    waiter = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    time.sleep(2)  # twice as long as a silent holder is believed to live
    assert waiter.stdout is not None
    process.communicate("\n")
    assert waiter.stdout.readline() == b"held\n"
    waiter.communicate(b"\n")
    assert [each.name for each in path.parent.iterdir()] == [".lock"]


def test_a_killed_holder_on_this_machine_costs_nothing_and_one_on_another_a_silence(tmp_path: Path) -> None:
    for place, least, most in (("here", 0.0, 0.5), ("elsewhere", 0.9, 3.0)):
        process = holder(tmp_path / ".lock", place)
        process.kill()
        process.communicate()
        assert least <= seconds_until_held(tmp_path / ".lock") < most


def test_who_does_not_wait_gets_a_dead_holders_lock_and_is_told_why_it_takes_long(tmp_path: Path) -> None:
    process = holder(tmp_path / ".lock", "elsewhere")
    process.kill()
    process.communicate()
    said: list[str] = []
    with lease.held(tmp_path / ".lock", wait=False, say=said.append):
        assert [f"process {process.pid} on " in line for line in said] == [True]


def test_without_flock_the_holders_file_alone_keeps_processes_of_one_machine_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lease.fcntl, "flock", missing)
    path = tmp_path / ".lock"
    with lease.held(path), pytest.raises(lease.HeldError), lease.held(path, wait=False):
        pass
    assert not path.with_name(".lock.holder").exists()


def test_a_holder_goes_on_counting_after_a_file_that_was_away_or_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    path = tmp_path / "lock"
    holder = path.with_name("lock.holder")
    with lease.held(path):
        for spoil in (holder.unlink, lambda: holder.write_bytes(b"")):
            spoil()
            deadline = time.monotonic() + 10
            while not holder.exists() or b"token" not in holder.read_bytes():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            first = holder.read_bytes()
            time.sleep(0.2)
            assert holder.read_bytes() != first
    assert not holder.exists()


def test_a_holder_that_was_taken_for_dead_leaves_its_successors_file_alone(tmp_path: Path) -> None:
    process = holder(tmp_path / ".lock", "elsewhere")
    file = tmp_path / ".lock.holder"
    process.send_signal(19)  # SIGSTOP: it counts no more
    with lease.held(tmp_path / ".lock"):
        ours = file.read_bytes()
        process.send_signal(18)  # SIGCONT
        out, _ = process.communicate("\n")
        assert out == "released\n"
        assert lease._token(file.read_bytes()) == lease._token(ours)


def test_only_what_was_read_of_a_dead_holder_is_cleared(tmp_path: Path) -> None:
    file = tmp_path / ".lock.holder"
    for found, left in ((b"dead", [file]), (b"another", [])):
        file.write_bytes(b"another")
        lease._Holder(file)._clear(found)
        assert list(tmp_path.iterdir()) == left
        assert not left or file.read_bytes() == b"another"


def test_whether_a_lock_is_held_shows_at_once_and_looking_disturbs_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, holder = tmp_path / "lock", tmp_path / "lock.holder"
    assert not lease.is_held(path)
    with lease.held(path):
        assert lease.is_held(path)
        mine = holder.read_text()
        with monkeypatch.context() as patch:  # no flock on this file system
            patch.setattr(lease.fcntl, "flock", without_flock)
            assert lease.is_held(path)
    assert not lease.is_held(path)
    holder.write_text(mine)  # this process was killed, and another one has the lock file's flock no more
    assert not lease.is_held(path)
    holder.write_text(mine.replace(lease._boot(), "another machine"))
    assert lease.is_held(path)
    holder.unlink()
    with path.open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.15, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with lease.held(path, wait=False):
            assert lease.is_held(path)


def without_flock(*_: object) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")
