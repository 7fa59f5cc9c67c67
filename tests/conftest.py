"""What has to be set before the first product is computed, as the commands do it; and which worker runs which tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from understudy.process import fix_products, limit_libraries

limit_libraries()
fix_products()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile("understudy", deadline=None)  # how long an example takes is the machine's matter
hypothesis.settings.load_profile("understudy")
if "EMULATED_GPUS" in os.environ:
    import torch  # not before the lines above

    if not hasattr(torch.cuda, "emulated"):  # every test for GPUs would be skipped
        pytest.exit("the emulated GPUs aren't there; see `tests/gpu/emulation`", 1)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread, where its sums have one order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-seeds", default="0-5,7", help="seeds of the faults to inject, such as 0-4,7")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole studies first: they take longest."""
    items.sort(key=lambda item: not {"workflow", "slurm"} & {mark.name for mark in item.iter_markers()})  # stable


class ByFixture(LoadScopeScheduling):  # type: ignore[misc]  # the plugin has no types
    """A file's tests go to one worker, since they share what is expensive; so do those of whole studies that end well.

    The plugin's own groups (`--dist loadgroup`) are part of a test's id, which this pytest doesn't let them change.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return str(Path(file).parent) if "/workflow/" in file else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFixture:
    config.option.loadscopereorder = False  # else the files with most tests come first
    return ByFixture(config, log)
