"""A disk that refuses a file: one message that names the file and says what to do, and the old file as it was."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from understudy import disk, lock
from understudy.errors import StorageError
from understudy.files import SILENT_SECONDS, folder_whole, sweep, written_whole

LIMITED = """
import resource, sys
from pathlib import Path
from understudy.errors import StorageError
from understudy.files import folder_whole, write_json, written_whole
path = Path(sys.argv[1])
{imports}
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    {write}
except StorageError as error:
    print(error)
"""
WRITERS = {
    "text": ("", "write_json(path, ['x' * 9000])"),
    "torch": ("import torch\nvalue = torch.zeros(9000)", "with written_whole(path) as b: torch.save(value, b)"),
    "polars": (
        "import polars as pl\nvalue = pl.DataFrame({'a': [str(i) for i in range(9000)]})",
        "with written_whole(path) as b: value.write_parquet(b)",
    ),
    "safetensors": (
        "import torch\nfrom safetensors.torch import save_file\nvalue = {'a': torch.zeros(9000)}",
        "with folder_whole(path) as b: b.mkdir(); save_file(value, b / 'model.safetensors')",
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whoever_writes_a_refused_file_is_named_and_the_old_one_stays(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "deep" / "file"
    if writer == "safetensors":
        path.mkdir(parents=True)
    else:
        path.parent.mkdir()
        path.write_text("old")
    imports, write = WRITERS[writer]
    script = LIMITED.format(imports=imports, write=write)
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{path} can't be written")
    assert "File too large" in done.stdout
    assert "start again with the same command" in done.stdout
    assert list(path.parent.iterdir()) == [path]
    assert list(path.iterdir()) == [] if writer == "safetensors" else path.read_text() == "old"


def test_a_command_whose_log_and_output_are_refused_says_so_on_the_terminal(tmp_path: Path) -> None:
    script = (
        "import resource, runpy, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        f"sys.argv = ['understudy', 'write-settings', '--content', '{{}}', '--output', {str(tmp_path / 'a.json')!r},"
        f" '--log', {str(tmp_path / 'a.log')!r}]\n"
        "runpy.run_module('understudy', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"understudy write-settings: {tmp_path / 'a.json'} can't be written")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.log"]


def test_a_lock_on_a_full_disk_is_named_and_leaves_nothing_that_holds_others_up(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path; from understudy import lease\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "with lease.held(Path(sys.argv[1])): pass"
    )
    path = tmp_path / "lock"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert f"StorageError: {path}.holder can't be written or opened: File too large" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]


def test_what_is_moved_into_place_is_on_the_disk_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, fsync, replace = [], os.fsync, Path.replace

    def flushed(descriptor: int) -> None:
        done.append(("flushed", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def moved(self: Path, target: Path) -> Path:
        done.append(("moved", self.name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", moved)
    with written_whole(tmp_path / "file") as beside:
        beside.write_text("a")
    assert done == [("flushed", beside.name), ("moved", beside.name)]
    done.clear()
    with folder_whole(tmp_path / "folder") as beside:
        (beside / "deeper").mkdir(parents=True)
        for name in ("a", "deeper/b"):
            (beside / name).write_text(name)
    assert sorted(done[:2]) == [("flushed", "a"), ("flushed", "b")]
    assert done[2:] == [("moved", beside.name)]


def test_a_folder_takes_the_place_of_what_a_killed_writer_left(tmp_path: Path) -> None:
    for name in (".adapter.123.part", "adapter", ".other.123.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text("old")
    with folder_whole(tmp_path / "adapter") as beside:
        beside.mkdir()
        (beside / "new").write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.123.part", "adapter"]
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["new"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_living_writer_is_at_stays_and_a_dead_ones_goes(tmp_path: Path, kind: str) -> None:
    sleeping = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    names = {
        "living": f"{os.uname().nodename}.{sleeping.pid}",
        "own": f"{os.uname().nodename}.{os.getpid()}",
        "lately": "another.node.1",
        "long ago": "another.node.2",
    }
    parts = {name: tmp_path / f".adapter.{who}.part" for name, who in names.items()}
    for part in parts.values():
        if kind == "folder":
            part.mkdir()
            (part / "weights").write_text("half")
        else:
            part.write_text("half")
    past = time.time() - SILENT_SECONDS - 1
    for path in (parts["long ago"], *parts["long ago"].glob("*")):
        os.utime(path, (past, past))
    sweep(tmp_path / "adapter")
    assert {name for name, part in parts.items() if part.exists()} == {"living", "lately"}
    sleeping.communicate()
    sweep(tmp_path / "adapter")
    assert {name for name, part in parts.items() if part.exists()} == {"lately"}


def test_of_two_writers_of_a_folder_neither_is_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "adapter"
    script = (
        "import sys; from pathlib import Path; from understudy.files import folder_whole\n"
        "with folder_whole(Path(sys.argv[1])) as b: b.mkdir(); (b / 'whose').write_text('theirs')"
    )
    other = [sys.executable, "-c", script, str(folder)]
    with folder_whole(folder) as beside:
        beside.mkdir()
        (beside / "whose").write_text("ours")
        subprocess.run(other, check=True)
        assert (folder / "whose").read_text() == "theirs"
        assert (beside / "whose").read_text() == "ours"
    assert (folder / "whose").read_text() == "ours"

    remove = shutil.rmtree

    def just_then(path: Path, ignore_errors: bool = False) -> None:
        remove(path, ignore_errors=ignore_errors)
        if path == folder:
            subprocess.run(other, check=True)

    monkeypatch.setattr(shutil, "rmtree", just_then)
    with folder_whole(folder) as beside:
        beside.mkdir()
        (beside / "whose").write_text("ours")
    assert (folder / "whose").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("number", disk.ADVICE)
def test_every_refusal_has_its_advice(tmp_path: Path, number: int) -> None:
    found = disk.refusal(OSError(number, os.strerror(number), str(tmp_path / "x")))
    assert isinstance(found, StorageError)
    assert str(tmp_path / "x") in str(found)
    assert os.strerror(number) in str(found)
    wrapped = ValueError(f"IO error: something (os error {number})")
    assert os.strerror(number) in str(disk.refusal(wrapped, tmp_path / "y"))


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    assert disk.refusal(FileNotFoundError(errno.ENOENT, "no such file", "x")) is None
    assert disk.refusal(ValueError("size 28")) is None
    with pytest.raises(ValueError, match="wrong"), disk.reported(tmp_path / "x", tmp_path / ".x.part"):
        raise ValueError("wrong")
    disk.require_room(tmp_path)


@pytest.mark.skipif(os.getuid() == 0, reason="permissions don't bind root")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="see to the permissions"):
        lock.acquire(tmp_path / "results" / ".lock")
    with pytest.raises(StorageError, match="see to the permissions"):
        disk.require_room(tmp_path)


def test_a_lock_is_taken_once_and_whose_it_is_may_be_garbled(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    lock.acquire(path)
    lock.acquire(path)
    holder = path.with_name(".lock.holder")
    assert json.loads(holder.read_text())["pid"] == os.getpid()
    holder.write_bytes(b"\xff\xfe")
    script = f"from pathlib import Path; from understudy import lock; lock.acquire(Path({str(path)!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "UserError: another run of this study is under way" in done.stderr
    lock.release()
    again = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
