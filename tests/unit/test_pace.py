"""How long a study still takes, against a simulated machine that knows."""

from __future__ import annotations

import heapq
import io
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from synthetic_study import make
from training_study import make_job, make_spec
from understudy import abreast, process, progress
from understudy.abreast import Room
from understudy.config import StudyConfig, parse
from understudy.files import write_json
from understudy.pace import Outlook, Pace
from understudy.paths import StudyPaths
from understudy.train.launch import train_alone
from understudy.train.pack import train_pack
from understudy.train.trial import train_trial
from understudy.trial import Pack, TrialRecord, TrialResult

ROOT = Path(__file__).parents[2]
HOUR = 3600.0


def study(**changes: Any) -> StudyConfig:
    raw: dict[str, Any] = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    for path, value in changes.items():
        section, key = path.split("__")
        raw[section] = {**raw[section], key: value}
    return parse(raw)


def ends(durations: Sequence[float], workers: int) -> list[float]:
    """When each trial ends where `workers` run at the same time and begin in order."""
    free = [0.0] * workers
    found = []
    for seconds in durations:
        found.append(heapq.heappop(free) + seconds)
        heapq.heappush(free, found[-1])
    return found


@pytest.mark.parametrize("spread", [0.0, 0.5])
@pytest.mark.parametrize(("done", "workers"), [(1, 4), (3, 4), (4, 4), (5, 4), (8, 4), (12, 4), (20, 4), (3, 1)])
def test_what_is_left_of_the_target_is_near_the_truth(done: int, workers: int, spread: float) -> None:
    """Also where trials that begin together end together, four within a second and then none for an hour."""
    numbers = random.Random(done)
    durations = [HOUR * numbers.lognormvariate(0, spread) for _ in range(24)]
    ended = sorted(zip(ends(durations, workers), durations, strict=True))
    pace = Pace()
    for when, seconds in ended[:done]:
        pace.add(seconds, when)
    outlook = Outlook({"target": workers}, {}, None)
    left = outlook.seconds_left({"target": 24 - done}, {"target": pace})
    assert left is not None
    truth = ended[-1][0] - ended[done - 1][0]
    assert left == pytest.approx(truth, rel=0.25 if spread == 0 else 0.6, abs=HOUR)


def test_waiting_between_trials_counts_once_it_shows() -> None:
    pace = Pace()
    for number in range(6):
        pace.add(10.0, 30.0 * number)
    assert pace.seconds("target", 4) == pytest.approx(2.5)
    assert pace.seconds("target", 2) == pytest.approx(30.0)
    assert pace.seconds("proxy", 2) == pytest.approx(5.0)


def finish(path: Path, stage: str, id: str, seconds: float, status: str = "complete", reused: bool = False) -> None:
    result = TrialResult.model_validate({"digest": id, "status": status, "cost": {"wall_seconds": seconds}})
    spec = make_spec(id).model_copy(update={"stage": stage})
    progress.finished(path, TrialRecord(spec=spec, result=result), reused)


def test_one_target_trial_says_how_long_the_rest_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 cores hold 64 such trials, but 4 run side by side."""
    config = study(target__trials=24, target__window=4, finalists__seeds=3)
    room = Room(64)
    path = StudyPaths(tmp_path).progress
    side_by_side = abreast.side_by_side(config, room)
    assert side_by_side == {"proxy": 4, "truncated": 4, "target": 4, "finalist": 9}
    totals = {"proxy": 0, "truncated": 0, "target": 24, "finalist": 9}
    monkeypatch.setattr(time, "time", lambda: 1e9)
    progress.start(path, totals, 4, side_by_side, abreast.costs(config, room))
    monkeypatch.setattr(time, "time", lambda: 1e9 + HOUR)
    finish(path, "target", "t0000", HOUR)
    assert progress.state(path).seconds_left() == pytest.approx((23 / 4 + 9 / 9) * HOUR)
    assert "about 6:45:00 left" in progress.state(path).line("target")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_a_trial_with_a_process_of_its_own_counts_by_that_processs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "age", lambda: HOUR)
    job = make_job(tmp_path, evaluations=1)
    train_alone(make_spec("t0000", stage="target"), job)
    assert progress.state(job.progress).stages["target"].pace.mean == HOUR


def test_starting_and_loading_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They aren't in what a trial cost; what it cost before a checkpoint isn't in the time of its last process."""
    job = make_job(tmp_path)
    progress.start(job.progress, {"target": 4, "finalist": 2}, 1, {"target": 1, "finalist": 2})
    for number, (held, cost, passed) in enumerate([(50.0, 10.0, 50.0), (50.0, 90.0, 70.0)]):
        monkeypatch.setattr(process, "age", lambda held=held: held)
        result = TrialResult.model_validate({"digest": "0", "status": "complete", "cost": {"wall_seconds": cost}})
        spec = make_spec(f"t{number:04d}", stage="target", learning_rate=1e-3 * (number + 1))
        trained = TrialRecord(spec=spec, result=result)
        train_trial(spec, job, lambda _, trained=trained: trained, only=True)
        assert progress.state(job.progress).seconds_left() == pytest.approx((3 - number) * passed + passed)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_trials_of_a_pack_that_train_alone_count_by_what_they_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share a process, one after the other."""
    monkeypatch.setattr(process, "age", lambda: HOUR)
    job = make_job(tmp_path, evaluations=1, packing=None)
    specs = make_spec("r0001"), make_spec("r0002", lora_r=2)
    train_pack(Pack(id="default-000", specs=specs, solo={spec.id: "packing is off" for spec in specs}), job)
    logged = [json.loads(line) for line in job.progress.read_text().splitlines()]
    seconds = [line["wall_seconds"] for line in logged if line["event"] == "trial"]
    assert len(seconds) == 2
    assert max(seconds) < HOUR


def test_nothing_is_said_before_enough_is_known(tmp_path: Path) -> None:
    """Three proxy trials say how long those are; what a target trial takes, both models' sizes."""
    paths = StudyPaths(tmp_path)
    progress.start(paths.progress, {"proxy": 5, "target": 2}, 2, {"proxy": 1}, {"target": 0.5})
    for number in range(4):
        finish(paths.progress, "proxy", f"r{number:04d}", 2.0)
        state = progress.state(paths.progress)
        assert state.seconds_left() is None
        assert "left" not in state.line("proxy")
    proxy, target = make().cards
    for role, card, parameters in (("proxy", proxy, 100), ("target", target, 700)):
        assert progress.state(paths.progress).seconds_left() is None
        write_json(paths.model(role), card.model_copy(update={"parameters": parameters}))
    assert progress.state(paths.progress).seconds_left() == pytest.approx(1 * 2.0 + 2 * 2.0 * 7 * 0.5 / 2)


def test_three_trials_of_the_proxy_are_enough_for_itself(tmp_path: Path) -> None:
    path = StudyPaths(tmp_path).progress
    progress.start(path, {"proxy": 9}, 2, {"proxy": 3})
    for number in range(3):
        assert progress.state(path).seconds_left() is None
        finish(path, "proxy", f"r{number:04d}", 2.0)
    assert progress.state(path).seconds_left() == pytest.approx(6 * 2.0 / 3)


def test_trials_that_were_not_trained_now_say_nothing_of_the_pace(tmp_path: Path) -> None:
    path = StudyPaths(tmp_path).progress
    progress.start(path, {"target": 9}, 1)
    finish(path, "target", "t0000", HOUR, reused=True)
    finish(path, "target", "t0001", 0.0, status="skipped")
    assert progress.state(path).seconds_left() is None
    finish(path, "target", "t0002", 10.0)
    assert progress.state(path).seconds_left() == pytest.approx(6 * 10.0)


def test_more_trials_than_were_planned_are_no_more_than_there_are(tmp_path: Path) -> None:
    path = StudyPaths(tmp_path).progress
    progress.start(path, {"target": 1}, 1)
    for number, line in enumerate(("1 of 1 trials", "2 of 2 trials")):
        finish(path, "target", f"t{number:04d}", 1.0)
        assert line in progress.state(path).line("target")


def test_echoes_that_are_left_go_by_the_targets_trials() -> None:
    """In a run that found the proxy's search finished."""
    outlook = Outlook({"proxy": 1, "target": 2}, {"target": 0.5}, 10.0)
    pace = Pace()
    pace.add(100.0, 0.0)
    assert outlook.seconds_left({"proxy": 3, "target": 2}, {"target": pace}) == pytest.approx(3 * 100 / 5 + 2 * 100 / 2)
    assert outlook.seconds_left({"finalist": 4}, {"target": pace}) == pytest.approx(4 * 200)


def test_lines_of_other_versions_and_altered_ones_are_borne(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    line = {"event": "start", "time": 1.0, "totals": {"target": 3}, "workers": 2}
    for more in ({}, {"side_by_side": 7, "costs": None}, {"side_by_side": {"target": "x"}, "costs": {"target": 0}}):
        path.write_text(json.dumps({**line, **more}) + "\n")
        finish(path, "target", "t0000", 10.0)
        assert progress.state(path).seconds_left() == pytest.approx(10.0)
    path.write_text('{"time": 1.0, "totals": {"target": 3}, "workers": 2, "side_by_side": {"target": Infinity}}\n')
    assert progress.state(path).side_by_side["target"] == 2


ROOMS: list[tuple[dict[str, Any], Room, int]] = [
    # execution, what there is, target trials at the same time
    ({}, Room(64), 3),
    ({}, Room(2), 2),
    ({"target": {"threads": 4}}, Room(11), 2),
    ({"target": {"threads": 4}}, Room(3), 1),
    ({"device": "cuda"}, Room(64, 8), 3),
    ({"device": "cuda", "target": {"processes": 4}}, Room(64, 8), 2),
    ({"device": "cuda", "target": {"processes": 4}}, Room(64, 2), 1),
    ({"target": {"nodes": 2}}, Room(64), 1),
    ({"device": "cuda", "target": {"nodes": 2}}, Room(64, 8), 1),
    ({"target": {"nodes": 2}}, Room(None, jobs=100), 3),
    ({}, Room(None, jobs=100), 3),
    ({}, Room(None, jobs=2), 2),
]


@pytest.mark.parametrize(("execution", "room", "expected"), ROOMS)
def test_target_trials_that_run_side_by_side(execution: dict[str, Any], room: Room, expected: int) -> None:
    raw = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    found = abreast.side_by_side(parse({**raw, "execution": execution}), room)
    assert found["target"] == found["truncated"] == expected


def test_what_a_target_trial_costs_beside_one_of_the_proxy() -> None:
    many = study(execution__target={"processes": 4, "threads": 2}, proxy__fidelity=0.5)
    assert abreast.costs(many, Room(64, 8))["target"] == pytest.approx(1 / 4 / 0.5)
    assert abreast.costs(many, Room(64))["finalist"] == pytest.approx(1 / 8 / 0.5)
    full = study(target__method="full", target__truncated={"trials": 4, "fidelity": 0.25})
    assert abreast.costs(full, Room(4)) == pytest.approx(
        {"proxy": 1, "truncated": 0.375, "target": 1.5, "finalist": 1.5}
    )


def test_a_window_that_leaves_gpus_idle_is_told() -> None:
    config = study(execution__device="cuda", target__trials=24, target__window=4)
    (line,) = abreast.narrow(config, Room(64, 8))
    assert line.startswith("8 GPUs, but `target.window` (4) lets 4 target trials side by side run, where 8 would fit")
    assert line.endswith("at most a quarter of `target.trials` (6 for 24 trials)")
    assert abreast.narrow(config, Room(64, 4)) == []
    assert abreast.narrow(config, Room(64)) == [], "how many GPUs there are isn't known"
    shared = study(execution__device="cuda", target__trials=24, target__window=4, execution__target={"processes": 2})
    assert abreast.narrow(shared, Room(64, 8)) == []


def test_batches_that_leave_processes_without_rows_are_told() -> None:
    eight = {"execution__target": {"processes": 4, "nodes": 2}}
    (line,) = abreast.idle(study(**eight))
    assert line.startswith("a batch of 4 has rows for 4 of the 8 processes of a target trial")
    assert abreast.idle(study(execution__target={"processes": 4})) == []
    assert abreast.idle(study(**eight, space__batch_size=[8, 16], proxy__grid={}, defaults__batch_size=8)) == []
    (line,) = abreast.idle(study(**eight, space__batch_size=[8, 16], proxy__grid={"batch_size": [2]}))
    assert line.startswith("a batch of 2")
    (line,) = abreast.idle(study(**eight, space__batch_size=[8, 16], proxy__grid={}, defaults__batch_size=6))
    assert line.startswith("a batch of 6"), "the default configuration is a trial, too"


def test_idle_cores_are_told_where_the_window_could_be_wider() -> None:
    assert abreast.narrow(study(), Room(64)) == []
    (line,) = abreast.narrow(study(target__window=1), Room(64))
    assert line.startswith("64 cores, but `target.window` (1) lets one target trial at a time run, where 64 would fit")


def test_notes_and_trials_of_jobs_elsewhere_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's terminal is the scheduler's log, which nobody reads."""
    path, here, there = tmp_path / "progress.jsonl", io.StringIO(), io.StringIO()
    monkeypatch.setattr(progress, "FOLLOW_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_terminal", there)
    progress.start(path, {"target": 3}, 1)
    progress.note(path, "an earlier run's note")
    monkeypatch.setattr(progress, "_terminal", here)
    progress.follow(path)
    monkeypatch.setattr(progress, "tell", lambda _: None)
    progress.note(path, "target: may not fit")
    deadline = time.monotonic() + 20
    while "\n" not in here.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert here.getvalue() == "target: may not fit\n"
