"""One start of a study: what has begun since, what it has printed, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from workflow.conftest import Study, wait_until

from . import victims
from .faults import Fault

END_SECONDS = 900.0  # for a run to end by itself, on a slow machine
GONE_SECONDS = 120.0  # for its processes to end after it
POLL_SECONDS = 0.05
JUMPING = Path(__file__).parent / "jumping"  # what lets a study's wall clock jump
COMMAND = re.compile(r"Command '.*?(understudy \S+) .*'")
COMPLAINT = re.compile(r"understudy|Error in (local)?rule |.*died with <Signals")


@dataclass
class Running:
    """A snakemake on a study, begun here. `began`: when each of its commands was first seen.

    What it says goes through a pipe: a file would be too large for some faults, or its disk too full.
    """

    study: Study
    began: dict[int, float] = field(default_factory=dict)
    _lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        command = self.study.command()
        path = os.pathsep.join([str(JUMPING), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": path, "CLOCK_OFFSET": str(self.clock)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def clock(self) -> Path:
        """The file that says by how many seconds the clock of the study's processes is off."""
        return self.study.folder / "clock"

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as said:
            for line in said:
                self._lines.append(line)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return "".join(self._lines)

    def complaints(self) -> list[str]:
        """What it has said of commands that failed: our messages, and Snakemake's where a command could say nothing."""
        return [COMMAND.sub(r"\1 …", line.strip()) for line in self.text.splitlines() if COMPLAINT.match(line)]

    def look(self) -> None:
        """Note which commands have begun."""
        now = time.monotonic()
        for pid in victims.commands(self.study):
            self.began.setdefault(pid, now)

    def has_reached(self, fault: Fault) -> bool:
        """Whether a fault's moment has come."""
        moments = list(self.began.values())
        return len(moments) >= fault.job and time.monotonic() >= moments[fault.job - 1] + fault.delay

    def wait(self) -> int:
        """Wait for its end and for that of all its processes; return the exit code."""
        code = self.process.wait(END_SECONDS)
        wait_until(lambda: not self.study.processes(), GONE_SECONDS)
        self._reader.join(GONE_SECONDS)
        return code

    def goes_on_after(self, command: int) -> bool:
        """Whether a command ends, and another begins, without a complaint; else the run is over."""
        before, alive = len(self.complaints()), {command}
        while not self.ended and len(self.complaints()) == before:
            known = set(self.began)
            self.look()
            if command not in alive and set(self.began) - known:
                return True
            alive = set(self.study.processes())
            time.sleep(POLL_SECONDS)
        self.wait()
        return False

    def cut_power(self) -> None:
        """SIGKILL to all of its processes at once."""
        self.process.kill()
        for pid in self.study.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait()

    def logs(self) -> dict[Path, str]:
        """What the study's commands have written to their logs."""
        return {path: path.read_text(errors="replace") for path in (self.study.results / "logs").rglob("*.log")}

    def parts(self) -> set[Path]:
        """Files and folders that are being written, or whose writer was killed."""
        return set(self.study.results.rglob("*.part"))
