"""A command watched from outside: how long it took, its processor time, and the memory of its main process."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.05
TICKS = os.sysconf("SC_CLK_TCK")
KIB = 1024


@dataclass(frozen=True)
class Watched:
    """What a command took. `main` is its first process alone, `all` that with every process that it waited for."""

    seconds: float
    main_cpu_seconds: float
    all_cpu_seconds: float
    main_peak_bytes: int
    output: str


def watch(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Watched:
    """Run a command to its end; what it prints goes to `log`. Raises `RuntimeError` with the end of that if it fails.

    The resources that the kernel tells of an ended process have its children's peak in them, so memory and processor
    time of the main process are read while it runs: to within the last `POLL_SECONDS`.
    """
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as handle:
        process = subprocess.Popen(command, stdout=handle, stderr=handle, env=environment)
    peak, cpu = 0, 0.0
    while True:
        peak, cpu = max(peak, peak_bytes(process.pid)), max(cpu, cpu_seconds(process.pid))
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    output = log.read_text(encoding="utf-8")
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}; the end of {log}:\n{output[-3000:]}")
    return Watched(seconds, cpu, usage.ru_utime + usage.ru_stime, peak, output)


def peak_bytes(process: int) -> int:
    """The most memory that a living process has held; 0 of one that has ended."""
    for line in _read(process, "status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * KIB
    return 0


def cpu_seconds(process: int) -> float:
    """Processor time of a process's own threads so far; 0 of one that is gone."""
    text = _read(process, "stat")
    if not text:
        return 0.0
    after_name = text.rsplit(")", 1)[1].split()  # the name may have spaces in it
    user, system = after_name[11:13]
    return (int(user) + int(system)) / TICKS


def _read(process: int, name: str) -> str:
    try:
        return (Path("/proc") / str(process) / name).read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ""
