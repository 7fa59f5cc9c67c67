"""Which jobs a run stops waiting for, by what the queue shows; `tests/slurm` has a real one."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from understudy import cluster_watch
from understudy.cluster import ClusterError, show_all_jobs
from understudy.cluster_watch import GONE_LOOKS, GONE_SECONDS, STAYING_SECONDS, Queued, Watch, known, queued, watch_jobs
from understudy.paths import StudyPaths

RUNS, PREEMPTED = Queued("RUNNING", "None", "a"), Queued("PREEMPTED", "None", "a")


@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL"])
def test_a_job_that_is_put_back_is_waited_for_and_one_that_is_not_is_found(state: str) -> None:
    watch, stays = Watch(print), {"1": Queued(state, "None", "a")}
    assert watch.look(["1"], stays, 0) == {}
    assert watch.look(["1"], {"1": Queued("PENDING", "BeginTime", "a")}, STAYING_SECONDS) == {}
    assert watch.look(["1"], stays, 2 * STAYING_SECONDS) == {}, "it was put back between"
    assert watch.look(["1"], stays, 3 * STAYING_SECONDS - 1) == {}
    assert watch.look(["1"], stays, 3 * STAYING_SECONDS) == stays


def test_a_job_that_is_not_listed_is_found_after_several_looks() -> None:
    watch = Watch(print)
    assert watch.look(["1"], {"1": RUNS}, 0) == {}
    assert watch.look(["1"], {}, 1) == {}
    assert watch.look(["1"], {}, 10 * GONE_SECONDS) == {}, "two looks, however far apart"
    assert watch.look(["1"], {}, 10 * GONE_SECONDS + 1) == {"1": None}


@pytest.mark.parametrize(
    ("reason", "hopeless"),
    [
        ("PartitionTimeLimit", True),
        ("QOSMaxWallDurationPerJobLimit", True),
        ("AssocMaxMemPerJob", True),
        ("MaxMemPerLimit", True),
        ("JobHeldAdmin", True),
        ("JobHoldMaxRequeue", True),
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


class Executor:
    """As much of the plugin as is used. Its polls keep all jobs but those that are said to be through or forgotten."""

    def __init__(self) -> None:
        self.run_uuid = "a"
        self.through: set[str] = set()
        self.forgotten: set[str] = set()
        self.succeeded: list[str] = []
        self.failed: list[tuple[str, str]] = []
        self.cancelled: list[str] = []
        self._submitted_job_clusters: set[str] = set()
        self._job_submission_executor: ThreadPoolExecutor | None = None
        self.next_seconds_between_status_checks: int | None = 100

    def cancel_jobs(self, active_jobs: list[Any]) -> None:
        self.cancelled += [job.external_jobid for job in active_jobs]
        if any(job.external_jobid == "other" for job in active_jobs):
            raise ValueError("scancel failed")

    async def check_active_jobs(self, active_jobs: list[Any]) -> AsyncIterator[Any]:
        for job in active_jobs:
            if job.external_jobid in self.through:
                self.report_job_success(job)
            elif job.external_jobid not in self.forgotten:
                yield job

    def report_job_success(self, job: Any) -> None:
        self.succeeded.append(job.external_jobid)

    def report_job_error(self, job: Any, msg: str, aux_logs: list[str]) -> None:
        assert aux_logs == ["/log"]
        self.failed.append((job.external_jobid, msg))


def job_of(id: str, *made: Path, **resources: Any) -> Any:
    return SimpleNamespace(
        external_jobid=id, aux={"slurm_logfile": "/log"}, job=SimpleNamespace(output=made, resources=resources)
    )


@pytest.fixture
def polls(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let an executor look at its jobs, at a time, with a queue or an error in its place: those it still waits for."""

    def poll(executor: Executor, jobs: list[Any], now: float, queue: dict[str, Queued] | Exception) -> list[str]:
        def answer(name: str) -> dict[str, Queued]:
            assert name == "a"
            if isinstance(queue, Exception):
                raise queue
            return queue

        async def active() -> list[str]:
            return [job.external_jobid async for job in executor.check_active_jobs(jobs)]

        monkeypatch.setattr(cluster_watch, "queued", answer)
        monkeypatch.setattr(cluster_watch, "time", SimpleNamespace(monotonic=lambda: now))
        return asyncio.run(active())

    return poll


@pytest.fixture
def paths(tmp_path: Path) -> StudyPaths:
    """Of a study whose run on SLURM has just been noted."""
    made = StudyPaths(tmp_path)
    made.cluster_runs.touch()
    return made


def test_the_plugin_waits_no_longer_for_what_is_lost(polls: Any, paths: StudyPaths) -> None:
    executor, jobs = Executor(), [job_of("1"), job_of("2")]
    watch_jobs(executor, paths, print)
    queue = {"1": PREEMPTED, "2": RUNS}
    assert polls(executor, jobs, 0.0, queue) == ["1", "2"]
    assert polls(executor, jobs, STAYING_SECONDS, ClusterError("slow")) == ["1", "2"]
    assert executor.next_seconds_between_status_checks == 100
    assert polls(executor, jobs, STAYING_SECONDS, queue) == ["2"]
    assert executor.failed == [("1", "SLURM-job '1' is PREEMPTED, and SLURM doesn't put it back into the queue. ")]
    assert executor.next_seconds_between_status_checks is None


def test_a_job_that_is_gone_counts_by_what_it_left(
    polls: Any, paths: StudyPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, made = tmp_path / "before", tmp_path / "made"
    before.touch()
    os.utime(before, (0, paths.cluster_runs.stat().st_mtime - 60))
    executor = Executor()
    watch_jobs(executor, paths, print)
    made.touch()
    jobs = [
        job_of("1", made),
        job_of("2", made, tmp_path / "not made"),
        job_of("3", made, before),
        job_of("hidden"),
        job_of("elsewhere", cluster="other"),
        job_of("extra", slurm_extra="'-M other'"),
    ]
    monkeypatch.setattr(cluster_watch, "known", lambda id: id == "hidden")
    left = [polls(executor, jobs, now, {}) for now in (0.0, 1.0, GONE_SECONDS)]
    assert left[:2] == [["1", "2", "3", "hidden", "elsewhere", "extra"]] * (GONE_LOOKS - 1)
    assert left[2] == ["hidden", "elsewhere", "extra"]
    assert executor.succeeded == ["1"]
    assert [id for id, _ in executor.failed] == ["2", "3"]


def test_what_slurm_says_of_one_job_hides_nothing_of_another(
    polls: Any, paths: StudyPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsure(id: str) -> bool:
        raise ClusterError(id)

    monkeypatch.setattr(cluster_watch, "known", unsure)
    executor, jobs = Executor(), [job_of("gone"), job_of("1")]
    watch_jobs(executor, paths, print)
    left = [polls(executor, jobs, now, {"1": PREEMPTED}) for now in (0.0, 1.0, GONE_SECONDS)]
    assert left[2] == ["gone"]
    assert [id for id, _ in executor.failed] == ["1"]


def test_jobs_that_the_plugin_forgets_while_slurm_does_not_answer_are_kept(polls: Any, paths: StudyPaths) -> None:
    executor, jobs = Executor(), [job_of("1"), job_of("2"), job_of("3")]
    watch_jobs(executor, paths, print)
    executor.forgotten, executor.through = {"1", "2"}, {"3"}
    assert polls(executor, jobs, 0.0, ClusterError("slow")) == ["1", "2"]
    assert executor.succeeded == ["3"]


def test_other_executors_are_left_alone(paths: StudyPaths) -> None:
    executor = SimpleNamespace(check_active_jobs=None)
    watch_jobs(executor, paths, print)
    assert vars(executor) == {"check_active_jobs": None}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder before all others in which commands are looked for."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def write(command: Path, text: str) -> None:
    command.write_text(f"#!/bin/sh\n{text}\n")
    command.chmod(0o755)


def test_the_queue_is_read_as_squeue_prints_it(commands: Path) -> None:
    write(commands / "squeue", "echo '7_1|PENDING|Priority|rule_a_wildcards_b|c'\necho slow")
    assert queued("x") == {"7_1": Queued("PENDING", "Priority", "rule_a_wildcards_b|c")}


def test_what_a_shell_hides_of_the_queue_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"SQUEUE_PARTITION": "other", "SCANCEL_STATE": "PENDING", "PATH": "/"})
    show_all_jobs()
    assert os.environ == {"PATH": "/", "SQUEUE_ALL": "1"}


def test_only_slurm_itself_says_that_it_knows_a_job_no_longer(commands: Path) -> None:
    write(commands / "scontrol", "true")
    assert known("7")
    write(commands / "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert not known("7")
    write(commands / "scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(ClusterError):
        known("7")
    write(commands / "scontrol", "echo 'Job 7_1 not found'; exit 1")
    assert not known("7_1")


def test_jobs_that_a_poll_holds_are_cancelled_with_the_others(paths: StudyPaths, commands: Path) -> None:
    executor, said, log = Executor(), list[str](), commands / "log"
    watch_jobs(executor, paths, said.append)
    write(commands / "scancel", f"echo $@ >> {log}")
    executor.cancel_jobs([job_of("1")])
    with pytest.raises(ValueError, match="scancel failed"):
        executor.cancel_jobs([job_of("other")])
    executor._submitted_job_clusters = {"b"}
    executor.cancel_jobs([])
    assert executor.cancelled == ["1", "other"]
    assert log.read_text() == "--name a\n--name a\n--name a --clusters=all\n"
    assert said == []
    write(commands / "scancel", "echo busy >&2; exit 1")
    executor.cancel_jobs([])
    assert said == [
        "SLURM doesn't answer (`scancel`: busy), so jobs of this run may go on; the study's next start finds them"
    ]


def test_at_the_end_nothing_more_is_submitted_or_reported(polls: Any, paths: StudyPaths, commands: Path) -> None:
    executor, log = Executor(), commands / "log"
    watch_jobs(executor, paths, print)
    write(commands / "scancel", f"cat {log} > {log}.then")
    go, submitted = threading.Event(), list[str]()

    def submit(id: str) -> None:
        go.wait(10)
        submitted.append(id)
        log.write_text(id)

    with ThreadPoolExecutor(1) as executor._job_submission_executor:
        for id in "12":
            executor._job_submission_executor.submit(submit, id)
        threading.Timer(0.2, go.set).start()
        executor.cancel_jobs([])
    assert submitted == ["1"], "the second waited for the first, which was under way"
    assert Path(f"{log}.then").read_text() == "1", "it is cancelled with the others"

    executor.through = {"1"}
    for queue in ({"1": RUNS, "2": PREEMPTED}, ClusterError("slow")):
        assert polls(executor, [job_of("1"), job_of("2")], STAYING_SECONDS, queue) == []
    assert executor.succeeded == []
    assert executor.failed == []


def test_a_command_that_is_not_there_is_no_other_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ClusterError, match="squeue"):
        queued("x")
