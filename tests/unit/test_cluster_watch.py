"""Which jobs a run stops waiting for, by what the queue shows; `tests/slurm` has a real one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from understudy import cluster_watch
from understudy.cluster import ClusterError
from understudy.cluster_watch import GONE_SECONDS, STAYING_SECONDS, Queued, Watch, watch_jobs

RUNS, PREEMPTED = Queued("RUNNING", "None", "a"), Queued("PREEMPTED", "None", "a")


@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL"])
def test_a_job_that_is_put_back_is_waited_for_and_one_that_is_not_is_lost(state: str) -> None:
    watch, stays = Watch(print), {"1": Queued(state, "None", "a")}
    assert watch.look(["1"], stays, 0) == {}
    assert watch.look(["1"], {"1": Queued("PENDING", "BeginTime", "a")}, STAYING_SECONDS) == {}
    assert watch.look(["1"], stays, 2 * STAYING_SECONDS) == {}, "it was put back between"
    assert watch.look(["1"], stays, 3 * STAYING_SECONDS - 1) == {}
    assert state in watch.look(["1"], stays, 3 * STAYING_SECONDS)["1"]


def test_a_job_that_the_queue_forgot_is_lost_after_several_looks() -> None:
    watch = Watch(print)
    assert watch.look(["1", "2_7"], {"1": RUNS, "2": RUNS}, 0) == {}, "of an array's task the whole will do"
    assert watch.look(["1"], {}, 1) == {}
    assert watch.look(["1"], {}, 10 * GONE_SECONDS) == {}, "two looks, however far apart"
    assert "gone from the queue" in watch.look(["1"], {}, 10 * GONE_SECONDS + 1)["1"]


@pytest.mark.parametrize(
    ("reason", "hopeless"),
    [
        ("PartitionTimeLimit", True),
        ("QOSMaxWallDurationPerJobLimit", True),
        ("AssocMaxMemPerJob", True),
        ("MaxMemPerLimit", True),
        ("JobHeldAdmin", True),
        ("launch_failed_requeued_held", True),
        ("Priority", False),
        ("Resources", False),
        ("QOSMaxJobsPerUserLimit", False),
        ("AssocGrpGRES", False),
        ("ReqNodeNotAvail", False),
    ],
)
def test_a_reason_that_time_does_not_cure_is_told_once(reason: str, hopeless: bool) -> None:
    said: list[str] = []
    watch, queue = Watch(said.append), {id: Queued("PENDING", reason, "rule_a") for id in "12"}
    for now in (0, 20):
        assert watch.look(["1", "2"], queue, now) == {}
    assert len(said) == hopeless
    assert all(f"SLURM job 1 (rule_a) can't begin as it is: {reason}." in line for line in said)


def test_the_plugin_waits_no_longer_for_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[tuple[str, str]] = []
    answers: list[Any] = [{"1": PREEMPTED, "2": RUNS}, ClusterError("slow"), {"1": PREEMPTED, "2": RUNS}]
    clock = iter((0.0, STAYING_SECONDS))

    async def check_active_jobs(active_jobs: list[Any]) -> Any:
        for job in active_jobs:
            yield job

    def queued() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    executor = SimpleNamespace(
        run_uuid="a",
        check_active_jobs=check_active_jobs,
        report_job_error=lambda job, msg: failed.append((job.external_jobid, msg)),
    )
    monkeypatch.setattr(cluster_watch, "queued", queued)
    monkeypatch.setattr(cluster_watch, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    watch_jobs(executor, print)
    jobs = [SimpleNamespace(external_jobid=id) for id in "12"]

    async def active() -> list[str]:
        return [job.external_jobid async for job in executor.check_active_jobs(jobs)]

    left = [asyncio.run(active()) for _ in range(3)]
    assert left == [["1", "2"], ["1", "2"], ["2"]]
    assert [id for id, _ in failed] == ["1"]


def test_other_executors_are_left_alone() -> None:
    executor = SimpleNamespace(check_active_jobs=None)
    watch_jobs(executor, print)
    assert executor.check_active_jobs is None


def test_the_queue_is_read_as_squeue_prints_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\necho '7|PENDING|Priority|rule_a_wildcards_b|c'\necho slow\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert cluster_watch.queued() == {"7": Queued("PENDING", "Priority", "rule_a_wildcards_b|c")}
