"""Where a pack's time goes: clocks put around the engine's functions from the outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from understudy.train.packed import batched, head, products
from understudy.train.packed.adapters import Stack
from understudy.train.packed.base import FrozenLinear
from understudy.train.packed.decoder import Decoder

# A function's time is that of its part, less the time of other parts' functions that it calls. So what is left of
# `_linear_backward` are the products with the base's weights, and its dequantization.
PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "base products": ((FrozenLinear, "forward"), (Decoder, "_linear_backward")),
    "adapters": tuple((module, name) for module in (products, batched) for name in ("apply", "apply_backward")),
    "attention": ((Decoder, "_attention"), (Decoder, "_attention_backward")),
    "head": ((head, "losses_and_gradient"),),
    "optimizer": ((Stack, "step"),),
}
REST = "rest"  # norms, activations, rotary positions, and the host's work between


class Clock:
    """Seconds by part. `wait` returns when the device has nothing left to do."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait
        self._seconds = dict.fromkeys([*PARTS, REST], 0.0)
        self._running = [REST]
        self._since = 0.0

    def start(self) -> None:
        """Begin to count."""
        self._since = time.perf_counter()

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its time going to a part."""

        def timed(*arguments: Any, **named: Any) -> Any:
            self.turn()
            self._running.append(part)
            try:
                return function(*arguments, **named)
            finally:
                self.turn()
                self._running.pop()

        return timed

    def turn(self) -> None:
        """Give the time since the last turn to the part that is running."""
        self._wait()
        now = time.perf_counter()
        self._seconds[self._running[-1]] += now - self._since
        self._since = now

    def shares(self) -> dict[str, float]:
        """Each part's share; they sum to 1."""
        return {part: seconds / sum(self._seconds.values()) for part, seconds in self._seconds.items()}


@contextmanager
def clocked(clock: Clock) -> Iterator[Clock]:
    """The engine with the clock in it."""
    with ExitStack() as patches:
        for part, functions in PARTS.items():
            for owner, name in functions:
                patches.enter_context(mock.patch.object(owner, name, clock.around(part, getattr(owner, name))))
        clock.start()
        yield clock
        clock.turn()
