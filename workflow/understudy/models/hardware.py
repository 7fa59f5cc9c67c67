"""What the machine has: GPUs, memory, cores. Nothing here depends on how busy it is."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from understudy.settings import Device

GIB = 2**30
FIRST_WITH_BFLOAT16 = 8  # CUDA's compute capability: Ampere
CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
STUDY_JOB = "UNDERSTUDY_STUDY_JOB"  # the job of SLURM that the workflow itself runs in, if it does


@dataclass(frozen=True)
class Hardware:
    """The number of GPUs, the smallest one's memory in bytes, whether all know bfloat16; memory and cores beside.

    `kinds` are what torch calls the GPUs, each name once.

    `own_job`: they are what a job of this step's own was given, and other steps ask for more.
    """

    gpus: int = 0
    memory_bytes: int = 0
    bfloat16: bool = False
    host_bytes: int = 0
    cores: int = 1
    own_job: bool = False
    kinds: tuple[str, ...] = ()


def detect(device: Device) -> Hardware:
    """The hardware of this machine; no GPU is looked for where the config says `cpu`."""
    host = Hardware(host_bytes=host_bytes(), cores=cores(), own_job=_job_of_its_own())
    if device == "cpu":
        return host
    if "SLURM_JOB_ID" in os.environ:  # whose numbers of GPUs are those of their slots, as `devices.visible` has it
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    import torch

    if not torch.cuda.is_available():
        return host
    count = torch.cuda.device_count()
    properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    kinds = tuple(sorted({each.name for each in properties}))
    memory = min(each.total_memory for each in properties)
    bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False) and all(
        each.major >= FIRST_WITH_BFLOAT16 for each in properties
    )
    return replace(host, gpus=count, memory_bytes=memory, bfloat16=bfloat16, kinds=kinds)


def host_bytes() -> int:
    """Memory that this process and its like may take in all: the machine's, or less where its control group says so.

    A step that is a job of a cluster counts the machine: its own limits are what this very step asked for, and say
    nothing of trials. Where the whole study is in one job, its limits are those of all.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if _job_of_its_own():
        return machine
    limits = [*_limits("", "memory.max"), *_limits("memory", "memory.limit_in_bytes")]
    return min([machine, *(int(text) for text in limits if text.isdigit())])


def cores() -> int:
    """Cores that this process and its like may keep busy: those it is bound to, or its control group's quota.

    In a step that is a job of a cluster all of the machine's, as with `host_bytes`.
    """
    if _job_of_its_own():
        return os.cpu_count() or 1
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pairs = [text.split() for text in _limits("", "cpu.max")]
    periods = [int(text) for text in _limits("cpu", "cpu.cfs_period_us")]
    pairs += [[quota, str(period)] for quota, period in zip(_limits("cpu", "cpu.cfs_quota_us"), periods, strict=False)]
    quotas = [int(quota) / int(period) for quota, period in pairs if quota.isdigit() and int(period) > 0]
    return max(1, min([bound, *(math.ceil(quota) for quota in quotas)]))


def note_job() -> None:
    """Let every process that this one starts know which job of a cluster it is in, if any."""
    if (job := os.environ.get("SLURM_JOB_ID")) is not None:
        os.environ[STUDY_JOB] = job


def _job_of_its_own() -> bool:
    """Whether this step alone is a job of a cluster: another one than the workflow's own, if that is in one."""
    job = os.environ.get("SLURM_JOB_ID")
    return job is not None and job != os.environ.get(STUDY_JOB)


def _limits(controller: str, name: str) -> Iterator[str]:
    """The contents of a limit's file in this process's control group and all groups above it; version 2 for ""."""
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        root = CGROUPS / controller
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if (folder / name).is_file():
                yield (folder / name).read_text(encoding="utf-8").strip()
            if folder == root:
                break
