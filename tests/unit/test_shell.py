"""Words for many files: bash's own expansion of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from understudy.paths import StudyPaths
from understudy.shell import braced

LONGEST = 128 * 1024  # bytes of one argument: linux/binfmts.h, MAX_ARG_STRLEN


def expanded(words: str) -> list[Path]:
    done = subprocess.run(["bash", "-c", f"printf '%s\\n' {words}"], capture_output=True, text=True, check=True)
    return [Path(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("root", ["results", "it's a {st,ü}dy/$HOME"])
def test_bash_makes_the_paths_of_it(root: str) -> None:
    paths = StudyPaths(Path(root))
    packs = [paths.pack_results(name) for name in ("default-000", "random-000", "random-001", "grid-000")]
    targets = [paths.target_result(number) for number in range(12)]
    holes = [paths.proposal(number) for number in (3, 5, 6)]
    finalists = [paths.finalist_result(rank, seed) for rank in range(3) for seed in range(2)]
    for files in (packs, packs[:1], targets, targets[4:5], holes, finalists, [*packs, *targets, *holes]):
        assert expanded(braced(files)) == files


def test_ten_thousand_packs_and_a_thousand_targets_fit_into_a_command() -> None:
    paths = StudyPaths(Path("/a/long/path" * 10))
    packs = [paths.pack_results(f"random-{number:03d}") for number in range(10_000)]
    targets = [paths.target_result(number) for number in range(1000)]
    words = braced([*packs, *targets])
    assert len(words.encode()) < LONGEST
    assert expanded(words) == [*packs, *targets]
    assert sum(len(str(path)) for path in packs) > LONGEST
