"""A study that is as small as can be and still has every part, and how often it is struck."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from workflow.conftest import Study, tiny

from .faults import Fault
from .strikes import mount

# a checkpoint at every chance, and an end to what hangs: half a minute was too little on a machine with a load of 18
KEPT_SAFE = {"checkpoint_minutes": 0.0, "watchdog_minutes": 1.0}
PREPARED = ("settings", "data", "models", "execution")


def tiny_faulty(cache: Path) -> dict[str, object]:
    """Two packs, two target trials and two finalists over two ranks each, no decoding and no echoes."""
    return tiny(
        cache=str(cache),
        proxy__sobol=2,
        proxy__grid={},
        proxy__echo=False,
        target__trials=2,
        decode__trials=0,
        execution={"device": "cpu", "target": {"processes": 2}, **KEPT_SAFE},
    )


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study as it comes out when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    study = Study(folder / "study", tiny_faulty(folder / "cache"))
    done = study.run()
    assert done.returncode == 0, done.stdout
    return study


@pytest.fixture(scope="session")
def can_mount(tmp_path_factory: pytest.TempPathFactory) -> bool:
    """Whether this process may mount file systems."""
    folder = tmp_path_factory.mktemp("mount")
    try:
        mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


@pytest.fixture
def ground(tmp_path: Path, can_mount: bool) -> Iterator[Path]:
    """A folder for studies, on a file system of its own where that can be."""
    if not can_mount:
        yield tmp_path
        return
    mount("-t", "tmpfs", "-o", "size=48m", "tmpfs", str(tmp_path))
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.fixture(scope="session")
def tally() -> Iterator[list[Fault]]:
    """The faults that have struck, of which a summary is printed at the end."""
    struck: list[Fault] = []
    yield struck
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(fault.kind for fault in struck).items()))
    kills = sum(fault.is_kill for fault in struck)
    print(f"\nstruck {len(struck)} times: {kinds}; {kills} of them signals that ended a process", flush=True)
