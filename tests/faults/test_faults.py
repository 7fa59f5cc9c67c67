"""Whatever happens to a study, its end is the same. `make faults` strikes 85 times, and says what was struck when."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from workflow.conftest import Study

from .conftest import PREPARED
from .faults import NEEDS_MOUNT, Fault, drawn
from .ordeal import Ordeal

pytestmark = [pytest.mark.workflow, pytest.mark.faults]

CHAIN = 17  # faults of one test, in as many studies as they need; each study is then run to its end


def prepared_copy(undisturbed: Study, folder: Path) -> Study:
    """A study that has data, models and execution, and nothing else yet."""
    folder.mkdir()
    for name in PREPARED:
        shutil.copytree(undisturbed.results / name, folder / "results" / name)
    shutil.copy(undisturbed.results / "pin.json", folder / "results")
    shutil.copytree(undisturbed.folder / ".snakemake", folder / ".snakemake")
    return Study(folder, undisturbed.config)


def ended(ordeal: Ordeal, undisturbed: Study) -> None:
    """Run the study to its end, and compare."""
    ordeal.finish()
    for name, content in ordeal.study.tables().items():
        assert content == undisturbed.tables()[name], f"{name} came out differently:\n{ordeal.printed()}"


@contextmanager
def shown(ordeal: Ordeal) -> Iterator[None]:
    """Say at once what broke: the rest of the night takes long."""
    try:
        yield
    except Exception as error:
        ordeal.tell(f"  broke: {type(error).__name__}: {error}")
        raise


def span(text: str) -> range:
    """`first-last`, or a number alone."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per chain of seeds."""
    seeds = [seed for part in str(metafunc.config.getoption("--fault-seeds")).split(",") for seed in span(part)]
    chains = [seeds[start : start + CHAIN] for start in range(0, len(seeds), CHAIN)]
    metafunc.parametrize("seeds", chains, ids=[f"seeds {chain[0]}-{chain[-1]}" for chain in chains])


def test_the_end_is_the_same_whatever_happens(
    undisturbed: Study, ground: Path, can_mount: bool, tally: list[Fault], seeds: Sequence[int]
) -> None:
    waiting = [fault for seed in seeds if (fault := drawn(seed)).kind not in NEEDS_MOUNT or can_mount]
    number = 0
    while waiting:
        ordeal = Ordeal(prepared_copy(undisturbed, ground / f"study{number}"))
        ordeal.tell(f"study {number} of seeds {seeds[0]}-{seeds[-1]}")
        with shown(ordeal):
            while waiting and (fault := ordeal.strike(waiting)):
                waiting.remove(fault)
                tally.append(fault)
            ended(ordeal, undisturbed)
        if not ordeal.struck:
            break
        number += 1
        shutil.rmtree(ordeal.study.folder)
    for fault in waiting:
        print(f"  {fault} fell out: a whole study gave it nothing to strike", flush=True)
    assert not [fault for fault in waiting if fault.is_kill], "there are always processes to be struck"
