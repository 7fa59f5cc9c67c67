"""GPUs are leased: two trials on one machine never share one, whatever the scheduler counted.

A lease is an exclusive lock on a file per device, named by its UUID, so that it holds across studies, users and those
containers of one machine that share `FOLDER`, and dies with its holder. Snakemake's `gpu` resource only counts.

Who has to wait is in a queue, and what those ahead want is left to them: else a trial that needs several GPUs would
hardly ever find them free at the same time among trials that need one.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from understudy import progress, turns
from understudy.errors import UserError
from understudy.trial import ResolvedExecution

FOLDER = Path("/tmp/understudy-gpus")  # one for all users, whatever TMPDIR says
WAIT_SECONDS = 0.5
SAY_SECONDS = 5.0  # a trial that ends gives its GPU to the next one in less
ASK_TORCH = """
import torch
for index in range(torch.cuda.device_count()):
    print(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
"""

_held: list[TextIO] = []  # kept open for as long as this process lives


def lease(execution: ResolvedExecution) -> None:
    """Wait for as many free GPUs as the execution has processes, and let this process see only these.

    A longer wait is said once. On CPUs, and where this process has its lease already, nothing happens. Call it before
    CUDA is initialised. Raises `UserError` where fewer devices are visible than are needed, or several are needed and
    they are parts of GPUs.
    """
    if execution.device == "cpu" or len(_held) >= execution.processes:
        return
    devices = visible()
    whole = [device for device in devices if not device.startswith("MIG")]
    if len(whole) < execution.processes > 1 and len(whole) < len(devices):
        raise UserError(
            f"`processes` is {execution.processes}, but GPUs here are split into instances (MIG), of which a process "
            "sees only one, so that several can't train together; set `processes: 1`, or take whole GPUs"
        )
    devices = devices if execution.processes == 1 else whole
    if len(devices) < execution.processes:
        needed = "1 GPU" if execution.processes == 1 else f"{execution.processes} GPUs, one per process"
        raise UserError(
            f"the trial needs {needed}; visible here: {len(devices)}; lower `processes` or ask the scheduler for more"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(_wait_for(turns.Wish(tuple(devices), execution.processes)))
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name
        settings = ["expandable_segments:True"]  # shapes differ in every pass
        if execution.cpu_offload:
            settings.append("pinned_max_round_threshold_mb:1")  # else each tensor on the host takes a power of two
        os.environ.setdefault("PYTORCH_ALLOC_CONF", ",".join(settings))


def require(count: int) -> None:
    """Raise `UserError` where a job that runs on this machine is to have more GPUs than are visible here."""
    if count and (shown := len(visible())) < count:
        fewer = ", lower `processes`" if count > 1 else ""
        raise UserError(
            f"`execution.device: cuda`: a job of this study needs {count} GPU{'s' * (count > 1)}, but "
            f"{shown or 'none'} {'are' if shown > 1 else 'is'} visible on this machine; set `device` to `auto` or "
            f"`cpu`{fewer}, or let a scheduler run the jobs"
        )


def visible(*, by_torch: bool = True) -> list[str]:
    """UUIDs of the GPUs that this process may use, in the order of CUDA_VISIBLE_DEVICES where it is set.

    Its UUIDs may be cut short, as CUDA has it, and its indices are in PCI order, which is CUDA's own where all GPUs of
    a machine are of one kind. Where they aren't, CUDA counts the fastest first, and torch is asked which they are,
    unless SLURM gave the numbers; so it is where nvidia-smi lists nothing, as in a container that has CUDA alone. That
    takes seconds; without `by_torch` the number is right. Of a GPU that is split (MIG) the instances count, one by one.
    """
    listed = _told("nvidia-smi", "-L") if shutil.which("nvidia-smi") else ""
    if "UUID" not in listed:
        return _told(sys.executable, "-c", ASK_TORCH).split() if by_torch else []
    gpus: list[list[str]] = []  # of each, itself or its instances
    models = set()
    for kind, model, uuid in re.findall(r"^(GPU|\s+MIG) (.*)\(UUID: ([^)\s]+)\)", listed, re.MULTILINE):
        if kind == "GPU":
            gpus.append([uuid])
            models.add(model.partition(":")[2].strip())
        else:
            gpus[-1] = [*(name for name in gpus[-1] if name.startswith("MIG")), uuid]
    every = [name for names in gpus for name in names]
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return every
    in_slots = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or "SLURM_JOB_ID" in os.environ
    if len(models) > 1 and not in_slots and by_torch and re.search(r"(^|,)\s*\d", wanted):
        found = [name for name in _told(sys.executable, "-c", ASK_TORCH).split() if name in every]
        if found:  # but for instances, which torch names otherwise
            return found
    found = []
    for name in filter(None, map(str.strip, wanted.split(","))):
        by_number = name.isdigit() and int(name) < len(gpus)
        if not by_number and not name.startswith(("GPU-", "MIG-")):
            break  # -1, NoDevFiles: what doesn't exist hides all that comes after it
        found.append(gpus[int(name)][0] if by_number else _whole(name, every))
    return found


def _told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _whole(name: str, every: list[str]) -> str:
    """A UUID that may be cut short; what fits none or several stays as it is."""
    fitting = [uuid for uuid in every if uuid.startswith(name)]
    return fitting[0] if len(fitting) == 1 else name


def _wait_for(wish: turns.Wish) -> list[str]:
    """Lock the devices as soon as they are free and nobody who came first wishes for them."""
    silent_until: float | None = time.monotonic() + SAY_SECONDS
    with turns.place(FOLDER, wish) as place:
        while not (leased := _try(place)):
            if silent_until is not None and time.monotonic() > silent_until:
                silent_until = None  # once
                wanted = "a free GPU" if wish.count == 1 else f"{wish.count} free GPUs"
                progress.tell(
                    f"understudy: a trial waits for {wanted}; of the {len(wish.devices)} that are visible here other "
                    f"processes hold too many, or came first (locks in {FOLDER})"
                )
            time.sleep(WAIT_SECONDS)
    return leased


def _try(place: turns.Place) -> list[str]:
    """Lock all devices that are wished for, or none. One process at a time looks, so that two can't hold half each."""
    with _opened("looking") as looking:
        fcntl.flock(looking, fcntl.LOCK_EX)
        queue = [*place.look(), place.wish]
        names = {name for wish in queue for name in wish.devices}
        locked = {name: handle for name in names if (handle := _lock(name)) is not None}
        free, allotted = set(locked), list[str]()
        for wish in queue:  # the last one is this process's
            allotted = [name for name in wish.devices if name in free][: wish.count]
            free -= {*allotted}
        leased = allotted if len(allotted) == place.wish.count else []
        for name, handle in locked.items():
            if name not in leased:
                handle.close()
        _held.extend(locked[name] for name in leased)
    return leased


def _lock(device: str) -> TextIO | None:
    """The lock of a device that is free."""
    handle = _opened(device.replace("/", "_"))
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    return handle


def _opened(name: str) -> TextIO:
    """A file of all users' that is only locked. To open another user's for writing may be forbidden."""
    path = FOLDER / name
    mask = os.umask(0)  # with one of 077 others would be shut out
    try:
        with suppress(FileExistsError):
            FOLDER.mkdir(0o1777)
        with suppress(FileExistsError):
            path.touch(0o644, exist_ok=False)
    finally:
        os.umask(mask)
    return path.open()
