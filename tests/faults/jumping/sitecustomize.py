"""Python calls this at its start: a process's wall clock is as many seconds off as a file says at that moment.

Whoever was told another time than it is leaves a file behind that is named after its process.
"""

import os
import time
from pathlib import Path

FILE, TIME, TIME_NS = Path(os.environ["CLOCK_OFFSET"]), time.time, time.time_ns


def offset() -> int:
    try:
        found = int(FILE.read_text())
        FILE.with_suffix(f".{os.getpid()}").touch()
        return found
    except (OSError, ValueError):
        return 0


time.time = lambda: TIME() + offset()
time.time_ns = lambda: TIME_NS() + offset() * 10**9
