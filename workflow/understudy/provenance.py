"""On what a number was computed: software, hardware, host. Recorded beside results, never part of them."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "optuna", "polars", "snakemake")


def versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's model name, or the machine's architecture where the system doesn't tell."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as handle:
            for line in handle:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def collect(engine: str, device_name: str | None = None) -> dict[str, str]:
    """Flat provenance of this process: versions, engine, host, hardware, SLURM job where there is one."""
    record = {**versions(), "engine": engine, "host": platform.node(), "hardware": device_name or processor()}
    if job := os.environ.get("SLURM_JOB_ID"):
        record["slurm_job"] = job
    return record
