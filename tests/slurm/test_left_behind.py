"""Jobs that a dead run left behind in a real SLURM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from understudy.cluster import clear, mark
from understudy.paths import StudyPaths

from .cluster import NEEDS_CLUSTER, Cluster, spoken_to

pytestmark = NEEDS_CLUSTER


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """One node; this process talks to it, too."""
    made = Cluster(tmp_path_factory.mktemp("slurm"), nodes=1)
    with spoken_to(made, monkeypatch):
        yield made


def test_what_runs_is_waited_for_and_what_has_not_begun_is_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    """Neither a held job nor one that was put back and held would ever end."""
    paths = StudyPaths(tmp_path / "results")
    paths.root.mkdir()
    paths.cluster_runs.touch()

    def submit(name: str, *options: str) -> str:
        words = ["--parsable", "--output=/dev/null", "--mem=100", f"--job-name={name}_run", f"--comment={options[-1]}"]
        return cluster.call("sbatch", *words, *options).strip()

    ours, others = mark(paths.root), mark(tmp_path / "other")
    held, foreign = submit(ours, "--hold", "--wrap=true"), submit(others, "--hold", "--wrap=true")
    back = submit(ours, "--wrap=sleep 600")
    cluster.wait_for_job("--wrap=sleep 600")
    cluster.call("scontrol", "requeuehold", back)
    running = submit(ours, "--wrap=sleep 6")
    cluster.wait_for_job("--wrap=sleep 6")

    said: list[str] = []
    clear(paths, "wait", said.append)
    jobs = {each.id: each.state for each in cluster.jobs()}
    assert jobs == {foreign: "PENDING"}
    ends = {}
    for line in cluster.call("scontrol", "--oneliner", "show", "job").splitlines():
        fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
        ends[fields["JobId"]] = fields["JobState"]
    assert ends == {held: "CANCELLED", back: "CANCELLED", running: "COMPLETED", foreign: "PENDING"}
    assert "left 3 SLURM jobs behind" in said[0]
