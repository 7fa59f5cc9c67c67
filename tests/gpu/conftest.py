"""Tests on GPUs lease them as commands do, but many in one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from understudy import devices


@pytest.fixture(autouse=True)
def give_back() -> Iterator[Callable[[], None]]:
    """Give back what this process has leased, for the next test or for processes of this one."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")

    def give() -> None:
        for handle in devices._held:
            handle.close()
        devices._held.clear()
        if seen is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = seen

    yield give
    give()
