"""What every sampler has to keep, whichever it is: the contract of `understudy.search.samplers`."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pytest

from understudy import space
from understudy.artifacts import Proposal, Surface
from understudy.errors import UserError
from understudy.hyperparameters import Value, complete
from understudy.search.distributions import from_optuna, to_optuna
from understudy.search.refinement import TwoFidelitySampler
from understudy.search.samplers import candidates, refined, told_values
from understudy.search.surface import make_surface
from understudy.search.values import from_unit
from understudy.search.window import History
from understudy.settings import Sampler
from understudy.space import Choices, Range
from understudy.trial import TrialRecord, TrialResult, TrialSpec

SPACE: dict[str, Range | Choices] = {
    "learning_rate": Range(low=1e-4, high=1e-1, log=True),
    "lora_r": Range(low=2, high=64, log=True, integer=True),
    "num_train_epochs": Range(low=1, high=3),
    "batch_size": Choices(choices=(4, 8, 16, 32)),
    "lr_scheduler_type": Choices(choices=("linear", "cosine", "constant")),
    "use_rslora": Choices(choices=(False, True)),
    "max_grad_norm": Choices(choices=(1.0,)),
    "warmup_ratio": Range(low=0, high=0.2, when={"lr_scheduler_type": ("linear", "cosine")}, rest=0.03),
}
SAMPLERS: tuple[Sampler, ...] = ("two_fidelity", "tpe", "gp", "random")
STATUSES = ("complete", "diverged", "out_of_memory", "failed", "stopped", "skipped")


def spec(number: int) -> TrialSpec:
    generator = random.Random(number)
    values = from_unit(SPACE, [generator.random() for _ in SPACE])
    return TrialSpec(
        id=f"t{number:04d}", stage="target", origin="refined", hyperparameters=complete(values, {}, "lora"), seed=1
    )


def loss(of: TrialSpec, times: float = 1) -> float:
    """Best at so many times the rate that is the proxy's best."""
    return 2 + (math.log10(float(of.hyperparameters["learning_rate"]) / times) + 2) ** 2


def trial(number: int, status: str = "complete") -> TrialRecord:
    made: Any = status
    objective = loss(spec(number)) if status == "complete" else None
    return TrialRecord(spec=spec(number), result=TrialResult(digest="0" * 32, status=made, objective=objective))


def running(number: int) -> Proposal:
    return Proposal(number=number, spec=spec(number), kind="guided", sampler="x", visible=(), pending=())


def history(statuses: list[str], pending: int = 3) -> History:
    visible = tuple(trial(n, status) for n, status in enumerate(statuses))
    return History(visible, tuple(running(len(statuses) + i) for i in range(pending)))


@cache
def surface() -> Surface:
    """What a proxy with the same losses would have left."""
    proxy = [trial(1000 + number) for number in range(24)]
    images = [{name: record.spec.hyperparameters[name] for name in SPACE} for record in proxy]
    return make_surface(SPACE, images, [record.result.objective for record in proxy])


def asked(past: History, sampler: Sampler, seeds: Sequence[int]) -> list[dict[str, Value]]:
    if sampler == "two_fidelity":
        return [refined(SPACE, past, seed, surface(), [])[0] for seed in seeds]
    return candidates(SPACE, past, sampler, seeds)


@pytest.fixture(params=SAMPLERS)
def sampler(request: pytest.FixtureRequest) -> Sampler:
    name: Sampler = request.param
    return name


def seeds(sampler: Sampler) -> list[int]:
    return [1, 2] if sampler in ("gp", "two_fidelity") else list(range(30))


@pytest.mark.parametrize("statuses", [[], ["complete"], ["complete"] * 8], ids=["none", "one", "eight"])
def test_every_value_is_in_its_range_and_of_its_kind(sampler: Sampler, statuses: list[str]) -> None:
    for values in asked(history(statuses), sampler, seeds(sampler)):
        assert list(values) == list(SPACE)
        assert all(SPACE[name].contains(value) for name, value in values.items())
        assert type(values["lora_r"]) is int
        assert type(values["learning_rate"]) is float
        assert type(values["batch_size"]) is int
        assert type(values["use_rslora"]) is bool
        assert complete(values, {}, "lora")["max_grad_norm"] == 1.0


def test_a_conditional_parameter_is_searched_where_its_condition_holds(sampler: Sampler) -> None:
    found = [values for count in range(4) for values in asked(history(["complete"] * count), sampler, seeds(sampler))]
    resting = [values["warmup_ratio"] == 0.03 for values in found]
    assert resting == [values["lr_scheduler_type"] == "constant" for values in found]
    assert sampler in ("gp", "two_fidelity") or {*resting} == {False, True}


def test_one_seed_gives_one_configuration(sampler: Sampler) -> None:
    past = history(["complete"] * 6)
    first, again, other = asked(past, sampler, [7, 7, 8])
    assert first == again
    assert first != other
    assert asked(past, sampler, [7]) == [first]


def test_one_seed_gives_one_configuration_in_another_process(sampler: Sampler) -> None:
    past = history(["complete"] * 6)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import json, test_samplers as t\n"
        "print(json.dumps(t.asked(t.history(['complete'] * 6), sys.argv[2], [7, 8])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), sampler],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "2"},
    )
    assert json.loads(done.stdout) == asked(past, sampler, [7, 8])


@pytest.mark.parametrize("status", STATUSES[1:])
def test_no_status_breaks_it(sampler: Sampler, status: str) -> None:
    for past in (history([status]), history(["complete", status, "complete", status])):
        told = told_values(past.visible)
        assert all(value is None or math.isfinite(value) for value in told)
        assert all(SPACE[n].contains(v) for n, v in asked(past, sampler, [3])[0].items())


def test_losses_out_of_scale_and_not_finite_are_told_as_bad(sampler: Sampler) -> None:
    past = history(["complete"] * 6)
    broken = list(past.visible)
    for place, value in ((1, float("nan")), (3, float("inf")), (5, 1e300)):
        result = broken[place].result.model_copy(update={"objective": value})
        broken[place] = broken[place].model_copy(update={"result": result})
    told = told_values(broken)
    assert all(value is not None and math.isfinite(value) and value < 100 for value in told)
    good = [told[0], told[2], told[4]]
    assert min(told[1], told[3]) > max(good)  # type: ignore[type-var, operator]
    assert told[5] >= max(good)  # type: ignore[type-var, operator]
    asked(History(tuple(broken), past.pending), sampler, [3])


@pytest.mark.parametrize("model", ["tpe", "gp"])
def test_the_model_proposes_from_the_first_result_on(model: Sampler) -> None:
    """One completed trial and three running ones: past the fallback, which is what the random sampler gives."""
    past = history(["complete"])
    assert asked(past, model, [5]) != asked(past, "random", [5])
    assert asked(history([]), model, [5]) == asked(history([]), "random", [5])


@pytest.mark.parametrize("model", ["two_fidelity", "tpe", "gp"])
def test_results_and_running_trials_matter(model: Sampler) -> None:
    past = history(["complete"] * 8)
    reversed_losses = tuple(
        record.model_copy(update={"result": record.result.model_copy(update={"objective": -loss(record.spec)})})
        for record in past.visible
    )
    several = list(range(5))
    before = asked(past, model, several)
    assert before != asked(History(reversed_losses, past.pending), model, several)
    assert before != asked(History(past.visible), model, several)


def test_the_proxy_matters_to_two_fidelity() -> None:
    past, inverted = history(["complete"]), surface().model_copy(update={"values": [-v for v in surface().values]})
    assert asked(past, "two_fidelity", [5]) != [refined(SPACE, past, 5, inverted, [])[0]]
    with pytest.raises(UserError, match="run the workflow again"):
        refined(SPACE, past, 5, None, [])


def test_two_fidelity_begins_where_the_proxy_is_best_and_takes_hints() -> None:
    first = asked(history([], pending=0), "two_fidelity", [5])[0]
    assert math.log10(float(first["learning_rate"])) == pytest.approx(-2, abs=0.4)
    hint = from_unit(SPACE, [2 / 3, *[0.5] * 7])
    taken, outlook = refined(SPACE, history([], pending=0), 5, surface(), [hint])
    assert loss_of(taken) <= loss_of(hint) + 0.05
    assert 0.8 < outlook.trust < 0.95
    assert outlook.chance is None
    after = refined(SPACE, history(["complete"] * 8), 5, surface(), [])[1]
    assert after.trust > 0.95
    assert after.chance is not None
    assert 0 < after.chance < 1


def as_written(record: TrialRecord) -> TrialRecord:
    """The same with more digits than a searched value has, and a decay that has no place on its log scale."""
    generator = random.Random(record.spec.id)
    raw = {name: parameter.from_unit(generator.random()) for name, parameter in SPACE.items()}
    values = record.spec.hyperparameters | raw | {"weight_decay": 0.0}
    return record.model_copy(update={"spec": record.spec.model_copy(update={"hyperparameters": values})})


@pytest.mark.parametrize("short", [(), ("complete", "failed", "complete", "diverged")], ids=["whole", "truncated"])
@pytest.mark.parametrize("statuses", [(), ("failed", "out_of_memory"), ("complete", *STATUSES)], ids=len)
@pytest.mark.parametrize("pending", [0, 2])
def test_in_an_optuna_study_two_fidelity_proposes_the_same(
    statuses: tuple[str, ...], short: tuple[str, ...], pending: int
) -> None:
    wide: dict[str, Range | Choices] = {**SPACE, "weight_decay": Range(low=1e-4, high=0.1, log=True)}
    visible = [as_written(trial(number, status)) for number, status in enumerate(statuses)]
    truncated = [as_written(trial(100 + number, status)) for number, status in enumerate(short)]
    ahead = [as_written(trial(200 + number)).spec for number in range(pending)]
    running_now = [running(number).model_copy(update={"spec": each}) for number, each in enumerate(ahead)]
    skipped = running(300).model_copy(update={"skip": "not worth it"})
    past = History(tuple(visible), (*running_now, skipped), truncated=tuple(truncated))
    hints = [as_written(trial(400)).spec.hyperparameters]
    images = [values_in(wide, as_written(trial(1000 + number)).spec) for number in range(24)]
    proxy = make_surface(wide, images, [loss(trial(1000 + number).spec) for number in range(24)])

    told = zip(truncated, told_values(truncated), strict=True)
    losses = [
        (values_in(wide, record.spec), value if record.result.status == "complete" else math.inf)
        for record, value in told
        if value is not None
    ]
    sampler = TwoFidelitySampler(proxy, wide, 5, hints, 0.01, losses)
    study = optuna.create_study(sampler=sampler)
    for record, value in zip(visible, told_values(visible), strict=True):
        if value is not None:
            state = "COMPLETE" if record.result.status == "complete" else "FAIL"
            study.add_trial(added(sampler, wide, record.spec, state, value))
    for each in ahead:
        study.add_trial(added(sampler, wide, each, "RUNNING"))
    found = study.ask(sampler.distributions).params
    values = {name: from_optuna(parameter, found[name]) for name, parameter in wide.items()}
    assert refined(wide, past, 5, proxy, hints, 0.01) == (space.consistent(wide, values), sampler.outlook)


def values_in(wide: space.Space, of: TrialSpec) -> dict[str, Value]:
    return {name: of.hyperparameters[name] for name in wide}


def added(
    sampler: TwoFidelitySampler, wide: space.Space, of: TrialSpec, state: str, value: float | None = None
) -> optuna.trial.FrozenTrial:
    params = {name: to_optuna(parameter, of.hyperparameters[name]) for name, parameter in wide.items()}
    known = value if state == "COMPLETE" else None
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState[state], params=params, distributions=sampler.distributions, value=known
    )


@pytest.mark.parametrize("times", [1 / 3, 1, 3])
def test_two_fidelity_learns_how_many_times_the_proxys_the_targets_rate_is(times: float) -> None:
    past = history(["complete"] * 8)
    moved = tuple(
        record.model_copy(update={"result": record.result.model_copy(update={"objective": loss(record.spec, times)})})
        for record in past.visible
    )
    _, outlook = refined(SPACE, History(moved, past.pending), 5, surface(), [])
    assert outlook.rate_shift == pytest.approx(times, rel=0.15)


def loss_of(values: dict[str, Value]) -> float:
    return 2 + (math.log10(float(values["learning_rate"])) + 2) ** 2
