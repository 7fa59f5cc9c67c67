"""What a worker process sets on purpose: its threads, and that it ends with the process that started it."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

BEGAN = time.monotonic()  # a command imports this module first
POLL_SECONDS = 0.5
STARTED_BY = "UNDERSTUDY_STARTED_BY"  # the process id of the workflow that calls the commands
LIBRARY_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def age() -> float:
    """Seconds since this process began its command."""
    return time.monotonic() - BEGAN


def end_with_parent(started_by: int | None = None) -> None:
    """End this process when its parent has gone, also when it went before this is called.

    A `kill -9` of the workflow's main process reaches no child, and the ranks of `torchrun` sit in sessions of
    their own, which a kill of the process group doesn't reach either. PR_SET_PDEATHSIG would follow the parent's
    *thread*, which Snakemake may end early; so a daemon thread watches for a new parent.

    Imports take seconds in which the parent may go. So it is asked who started this process: `started_by`, or what
    `lead_children` left in the environment.
    """
    parent = os.getppid()
    if started_by is None and (noted := os.environ.get(STARTED_BY, "")).isdigit():
        started_by = int(noted)
    gone = started_by not in (None, parent) and _has_ended(started_by)

    def watch() -> None:
        while os.getppid() == parent and not gone:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def leave(exit_code: int) -> NoReturn:
    """End this process, and at once where torch is in it: to take such an interpreter apart takes 0.5 to 1.5 s.

    What has registered itself for the end is called, and output is flushed, as it would be otherwise.
    """
    if "torch" not in sys.modules:
        raise SystemExit(exit_code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(exit_code)


def _has_ended(pid: int | None) -> bool:
    """Whether a process is gone, as far as /proc tells; one that is dead and not reaped yet is gone too."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return Path("/proc/self").exists()
    return stat.rsplit(")", 1)[1].split()[0] in "ZX"


def fix_products() -> None:
    """Let MKL take each row of a product alike, however many there are and wherever in memory they begin.

    Its kernels for AVX-512 do that anyway. Those for AVX2, which it also takes on other makers' CPUs, do with this mode
    of "conditional numerical reproducibility" (oneMKL developer guide). Packed trials need it to be independent of each
    other to the bit. It costs nothing in large products and up to half more in slim ones, which was 3 % of a pack's
    time. MKL looks at it once, before its first product.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def limit_libraries() -> None:
    """One thread for numpy's and scipy's products, whatever the shell exported: sums differ between one and two.

    Libraries read these variables when they are loaded, so this comes first. What trains sets its own number.
    """
    os.environ.update(dict.fromkeys(LIBRARY_THREADS, "1"))


def set_threads(count: int) -> None:
    """Use `count` threads for every product, whatever Snakemake or the shell exported.

    Sums differ between one thread and two, so the number comes from `execution.json`. Call it before the first
    product is computed.
    """
    os.environ.update(dict.fromkeys(LIBRARY_THREADS, str(count)))
    fix_products()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    torch.set_num_threads(count)


def lead_children(package_folder: str, other_interpreter: bool = False) -> None:
    """Let child processes find this interpreter as `python`, the package whether it is installed or not, and us.

    What PYTHONPATH has beside is this interpreter's, and goes where they have another one.
    """
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    beside = [] if other_interpreter else os.environ.get("PYTHONPATH", "").split(os.pathsep)
    others = [folder for folder in beside if folder not in ("", package_folder)]
    os.environ["PYTHONPATH"] = os.pathsep.join([package_folder, *others])
    os.environ[STARTED_BY] = str(os.getpid())
