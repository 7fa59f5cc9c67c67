"""What a dead run left behind, against stand-ins for SLURM's commands; `tests/slurm` has the real ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from understudy import cluster
from understudy.paths import StudyPaths

QUEUE = """#!/bin/sh
cat "$QUEUE"
"""
CANCEL = """#!/bin/sh
echo "$@" >> "$QUEUE.cancelled"
: > "$QUEUE"
"""


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyPaths:
    """A study that was run on SLURM, and the commands; the queue is a file, empty at first."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("squeue", QUEUE), ("scancel", CANCEL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    (tmp_path / "queue").touch()
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("QUEUE", str(tmp_path / "queue"))
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.01)
    made = StudyPaths(tmp_path / "results")
    made.root.mkdir()
    made.cluster_runs.touch()
    return made


def queue(paths: StudyPaths, *jobs: tuple[int, str, str]) -> None:
    lines = [f"{id}|{state}|{name}|rule_train_pack_wildcards_default-000" for id, state, name in jobs]
    (paths.root.parent / "queue").write_text("\n".join(lines) + "\n")


def cancelled(paths: StudyPaths) -> str:
    path = paths.root.parent / "queue.cancelled"
    return path.read_text() if path.exists() else ""


def test_jobs_of_this_study_that_have_not_ended_are_cancelled_and_no_others(paths: StudyPaths) -> None:
    ours, others = cluster.mark(paths.root), cluster.mark(paths.root / "other")
    assert ours != others
    states = ("RUNNING", "PENDING", "COMPLETED", "COMPLETING", "FAILED")
    queue(paths, *((i, state, f"{ours}_a") for i, state in enumerate(states)), (9, "RUNNING", f"{others}_a"))
    said: list[str] = []
    cluster.clear(paths, "cancel", said.append)
    assert cancelled(paths).split() == ["0", "1", "3"]
    assert "left 3 SLURM jobs behind" in said[0]


def queue_until_the_third(paths: StudyPaths) -> Path:
    """The queue is empty when it is asked for the fourth time; the file has a line for each time."""
    asked = paths.root.parent / "asked"
    until_the_third = f'#!/bin/sh\necho >> {asked}\n[ "$(wc -l < {asked})" -gt 3 ] || cat "$QUEUE"\n'
    (paths.root.parent / "bin" / "squeue").write_text(until_the_third)
    return asked


def test_jobs_that_run_are_waited_for(paths: StudyPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    queue(paths, (1, "RUNNING", f"{cluster.mark(paths.root)}_a"))
    asked = queue_until_the_third(paths)
    monkeypatch.setattr(cluster, "REMIND_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "CANCEL_SECONDS", 0.0)  # concerns what was cancelled alone
    said: list[str] = []
    cluster.clear(paths, "wait", said.append)
    assert len(asked.read_text().splitlines()) == 4
    assert not cancelled(paths)
    assert [words.startswith("still waiting for 1 SLURM job") for words in said] == [False, True, True, True]


def test_jobs_that_have_not_begun_are_not_waited_for(paths: StudyPaths) -> None:
    ours = cluster.mark(paths.root)
    queue(paths, (1, "RUNNING", f"{ours}_a"), (2, "PENDING", f"{ours}_a"), (3, "REQUEUE_HOLD", f"{ours}_a"))
    cluster.clear(paths, "wait", lambda _: None)
    assert cancelled(paths).splitlines() == ["--state=PENDING 2 3"]


def test_a_job_that_does_not_end_is_reported(paths: StudyPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    queue(paths, (1, "COMPLETING", f"{cluster.mark(paths.root)}_a"))
    (paths.root.parent / "bin" / "scancel").write_text("#!/bin/sh\n")
    monkeypatch.setattr(cluster, "CANCEL_SECONDS", 0.1)
    with pytest.raises(cluster.ClusterError, match=r"job 1 .* still COMPLETING"):
        cluster.clear(paths, "cancel", lambda _: None)


def test_a_cluster_that_does_not_answer_stops_the_run_and_a_study_of_one_machine_does_not_ask(
    paths: StudyPaths,
) -> None:
    (paths.root.parent / "bin" / "squeue").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    with pytest.raises(cluster.ClusterError, match="no controller"):
        cluster.clear(paths, "cancel", lambda _: None)
    paths.cluster_runs.unlink()
    cluster.clear(paths, "cancel", lambda _: None)


def test_jobs_are_named_after_the_study_and_that_is_noted_before_the_first(paths: StudyPaths) -> None:
    plugin = SimpleNamespace(run_uuid="mine_1234", slurm_logdir=Path("elsewhere"))
    cluster.mark_jobs(plugin, paths, own_logs=True)
    assert plugin.run_uuid == f"{cluster.mark(paths.root)}_mine_1234"
    assert plugin.slurm_logdir == paths.root / "logs" / "slurm"
    assert json.loads(paths.cluster_runs.read_text())["jobs"] == plugin.run_uuid
    other = SimpleNamespace()
    cluster.mark_jobs(other, paths, own_logs=True)
    assert vars(other) == {}


def test_jobs_that_are_not_warned_before_their_time_is_up_are_told() -> None:
    """`--default-resources` replaces the profile's, the signal among them. Other executors know none."""
    plugin = SimpleNamespace(run_uuid="1")
    warned, not_warned = (SimpleNamespace(resources=each) for each in ({"slurm_extra": "'--signal=USR1@120'"}, {}))
    assert cluster.unwarned(plugin, [not_warned, warned]) == []
    assert cluster.unwarned(SimpleNamespace(), [not_warned]) == []
    (line,) = cluster.unwarned(plugin, [not_warned])
    assert "--signal=USR1@120" in line
