"""Whole studies through the real Snakemake, each in a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TINY = ROOT / "config" / "examples" / "tiny.yaml"
TRIAL_TABLES = ("proxy/trials.parquet", "summary/trials.parquet", "summary/trials.csv", "summary/curves.parquet")


@dataclass
class Study:
    """A folder in which a study runs; its results are in `results` below it."""

    folder: Path
    config: dict[str, Any]

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def command(self, *options: str, cores: int = 2) -> list[str]:
        """The snakemake call, after writing the config."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "study.yaml"
        text = yaml.safe_dump({**self.config, "results": "results"})
        if not config.exists() or config.read_text() != text:
            config.write_text(text)
        snakefile = ROOT / "workflow" / "Snakefile"
        head = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), "--directory", str(self.folder)]
        return [*head, "--configfile", str(config), "--cores", str(cores), *options]

    def run(self, *options: str, cores: int = 2) -> subprocess.CompletedProcess[str]:
        """Run to the end and return what was printed (stderr is in stdout)."""
        command = self.command(*options, cores=cores)
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)

    def start(self, *options: str, cores: int = 2) -> subprocess.Popen[str]:
        """Start in a process group of its own; what it prints is in `output.txt`."""
        command = self.command(*options, cores=cores)
        with (self.folder / "output.txt").open("w") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, text=True, start_new_session=True)

    def tables(self) -> dict[str, bytes]:
        """The bytes of the trial tables."""
        return {name: (self.results / name).read_bytes() for name in TRIAL_TABLES}

    def trained(self) -> dict[str, int]:
        """When each finished trial in the store was written, by digest."""
        return {path.parent.name: path.stat().st_mtime_ns for path in (self.results / "store").glob("*/record.json")}

    def finished(self) -> int:
        """Trials that the study has reported as finished."""
        path = self.results / "progress.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return sum(1 for line in lines if line.endswith("}") and json.loads(line)["event"] == "trial")

    def processes(self) -> list[int]:
        """Living processes that work in the study's folder."""
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _works_in(path, self.folder)]


def _works_in(process: Path, folder: Path) -> bool:
    try:
        state = (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
        return state != "Z" and (process / "cwd").readlink() == folder.resolve()
    except OSError:
        return False


def wait_until(condition: Any, seconds: float) -> None:
    """Wait for a condition; fail the test when it doesn't come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def kill_group(process: subprocess.Popen[str]) -> None:
    """`kill -9` of a process group."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tiny(**changes: Any) -> dict[str, Any]:
    """The tiny study; `target__trials=5` changes one key."""
    config: dict[str, Any] = yaml.safe_load(TINY.read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = config
        for name in parents:
            section = section.setdefault(name, {})
        section[last] = value
    return config


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A finished tiny study. Tests that change it work on a copy."""
    study = Study(tmp_path_factory.mktemp("finished"), tiny())
    done = study.run(cores=2)
    assert done.returncode == 0, done.stdout
    (study.folder / "output.txt").write_text(done.stdout)
    return study
