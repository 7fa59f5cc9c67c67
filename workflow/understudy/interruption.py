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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from understudy.errors import UnderstudyError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PATIENCE = "Workers are asked to end, and trials in training save first; a third Ctrl-C ends at once.\n"


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
    ctrl_c: bool = False  # where nobody listened
    deferring: int = 0
    ending: bool = False  # a signal was raised, not only noted


_state = _State()


def listen() -> None:
    """Let this process end itself in good order when it is asked to. Call it in the main thread."""
    for number in SIGNALS:
        signal.signal(number, _note)


@contextmanager
def remembering_ctrl_c() -> Iterator[None]:
    """For what runs before a command listens, or in one that doesn't: a Ctrl-C ends it as `KeyboardInterrupt`.

    Libraries may swallow that, or turn it into an exception of their own; it is turned back here. Where the signal is
    ignored, as in a script's background, it stays so.
    """
    before, _state.ctrl_c = signal.getsignal(signal.SIGINT), False

    def interrupt(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        _state.ctrl_c = True
        raise KeyboardInterrupt

    if before is signal.default_int_handler and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception as error:
        if _state.ctrl_c:
            raise KeyboardInterrupt from error
        raise
    else:
        if _state.ctrl_c:
            raise KeyboardInterrupt
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)


def ctrl_c_came() -> bool:
    """Whether it came where nobody listened."""
    return _state.ctrl_c


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


@contextmanager
def prevailing() -> Iterator[None]:
    """What a signal ends is interrupted, whatever libraries make of it.

    They may swallow the exception and go on half imported: torch without numpy, whose next import then recurses.
    """
    try:
        yield
    except InterruptionError:
        raise
    except Exception as error:
        if _state.asked is not None and _state.ending:
            raise _outside(_state.asked) from error
        raise
    if _state.ending:
        check()


def end_once() -> None:
    """Let a workflow's main process that ends on Ctrl-C do so: a second one is answered, a third ends it at once.

    What is in training saves first, which takes a moment. Snakemake by itself would break off with tracebacks.
    """

    def answer(number: int, _: FrameType | None) -> None:
        signal.signal(number, lambda number, _: os._exit(128 + number))
        with suppress(OSError):  # whoever read it may have ended, too
            os.write(2, PATIENCE.encode())  # `print` may be what was interrupted

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, answer)


def _note(number: int, _: FrameType | None) -> None:
    """The first signal counts; later ones mustn't disturb who is about to end, nor kill it while Python shuts down."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    _state.asked = signal.Signals(number)
    if not _state.deferring:
        _state.ending = True
        raise _outside(_state.asked)


def _outside(number: signal.Signals) -> InterruptionError:
    return InterruptionError(number, "while nothing was in training; what has finished is kept")
