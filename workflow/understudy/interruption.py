"""Signals that ask a worker to end: it stops where it can go on later.

Schedulers send SIGTERM, or SIGUSR1 before a time limit; the keyboard sends SIGINT to all processes in the foreground.
While a trial or a pack trains, a signal is noted, and training looks for it between steps. At other times, such as
while a model is loaded or a lock is waited for, it ends the process at once; but one of several processes of a trial,
which the others would wait for, only notes it then as well, and all end together before the first step.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from understudy.errors import UnderstudyError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PATIENCE = "What is in training saves its checkpoints first; a third Ctrl-C ends at once.\n"


class InterruptionError(UnderstudyError):
    """A signal ended the work. The exit code is the shell's for it, so that the job counts as failed."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"interrupted ({signal.Signals(number).name}) {where}; start again to go on")
        self.number, self.where = number, where
        self.exit_code = 128 + number

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.number, self.where)


@dataclass
class _State:
    asked: signal.Signals | None = None
    deferring: int = 0


_state = _State()


def listen() -> None:
    """Let this process end itself in good order when it is asked to. Call it in the main thread."""
    for number in SIGNALS:
        signal.signal(number, _note)


def remember_ctrl_c() -> None:
    """For a command that doesn't `listen`: libraries may turn the exception of a Ctrl-C into one of their own."""

    def interrupt(number: int, _: FrameType | None) -> None:
        _state.asked = signal.Signals(number)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)


def asked() -> signal.Signals | None:
    """The first signal that asked this process to end; None while nobody has."""
    return _state.asked


def check() -> None:
    """End here if this process was asked to, before it begins something new."""
    if _state.asked is not None:
        raise _outside(_state.asked)


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, signals are only noted, and whoever works has to look for them.

    One that came before ends the process at the entrance, unless that lies inside of another such block.
    """
    _state.deferring += 1
    try:
        if _state.deferring == 1:
            check()
        yield
    finally:
        _state.deferring -= 1


def end_once() -> None:
    """Let a workflow's main process that ends on Ctrl-C do so: a second one is answered, a third ends it at once.

    What is in training saves first, which takes a moment. Snakemake by itself would break off with tracebacks.
    """

    def answer(number: int, _: FrameType | None) -> None:
        signal.signal(number, lambda number, _: os._exit(128 + number))
        os.write(2, PATIENCE.encode())  # `print` may be what was interrupted

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, answer)


def _note(number: int, _: FrameType | None) -> None:
    """The first signal counts; later ones mustn't disturb who is about to end, nor kill it while Python shuts down."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    _state.asked = signal.Signals(number)
    if not _state.deferring:
        raise _outside(_state.asked)


def _outside(number: signal.Signals) -> InterruptionError:
    return InterruptionError(number, "while nothing was in training; what has finished is kept")
