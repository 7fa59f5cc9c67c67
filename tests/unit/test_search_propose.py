"""The target's proposals: the window, Optuna's own answer, and whether all that finds anything."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

import search_study as made
from understudy.artifacts import Proposal, Region, Regions, Starts
from understudy.cli import main
from understudy.errors import CorruptFileError
from understudy.files import read_model, write_json
from understudy.search.clusters import embed
from understudy.search.guidance import outside
from understudy.search.propose import Stage, _Turn, propose
from understudy.search.window import History, pending, read_history, visible
from understudy.space import Choices
from understudy.trial import TrialRecord, TrialSpec, derive_seed, search_seed

STUDY = made.config()
STAGES: tuple[Stage, ...] = ("target", "truncated")


@pytest.fixture(scope="module")
def found() -> tuple[Regions, Starts]:
    return made.transferred(STUDY)


@pytest.fixture(scope="module")
def ran(found: tuple[Regions, Starts], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TrialRecord]]:
    folder = tmp_path_factory.mktemp("trials")
    return folder, made.run_target(STUDY, folder, *found, 16)


@given(number=st.integers(0, 200), window=st.integers(1, 60))
def test_the_window_splits_the_past(number: int, window: int) -> None:
    assert [*visible(number, window), *pending(number, window)] == list(range(number))
    assert len(pending(number, window)) == min(number, window - 1)


def test_starts_come_first_and_know_nothing(found: tuple[Regions, Starts], ran: tuple[Path, list[TrialRecord]]) -> None:
    folder, records = ran
    for number in range(6):
        proposal = read_model(folder / f"{number:04d}" / "proposal.json", Proposal)
        assert (proposal.kind, proposal.sampler, proposal.visible, proposal.pending) == ("start", "transfer", (), ())
        assert proposal.spec.hyperparameters == found[1].starts[number].hyperparameters
        assert proposal.spec.id == f"t{number:04d}"
        assert proposal.spec.origin == found[1].starts[number].origin
    assert {record.spec.seed for record in records} == {search_seed(STUDY.seed)}
    assert {record.spec.origin for record in records[6:]} == {"refined"}


def test_a_proposal_knows_its_window(ran: tuple[Path, list[TrialRecord]]) -> None:
    proposal = read_model(ran[0] / "0010" / "proposal.json", Proposal)
    assert proposal.visible == tuple(f"t{n:04d}" for n in range(7))
    assert proposal.pending == ("t0007", "t0008", "t0009")


def test_results_inside_the_window_cannot_matter(
    found: tuple[Regions, Starts], ran: tuple[Path, list[TrialRecord]], tmp_path: Path
) -> None:
    folder = tmp_path / "trials"
    shutil.copytree(ran[0], folder)
    before = made.next_proposal(STUDY, folder, 10, *found)
    (folder / "0009" / "result.json").unlink()
    worse = made.record(ran[1][8].spec, lambda _: 99.0)
    write_json(folder / "0008" / "result.json", worse)
    assert made.next_proposal(STUDY, folder, 10, *found) == before
    write_json(folder / "0006" / "result.json", made.record(ran[1][6].spec, lambda _: 0.5))
    write_json(folder / "0003" / "result.json", made.record(ran[1][3].spec, lambda _: 0.4))
    assert made.next_proposal(STUDY, folder, 10, *found) != before
    (folder / "0005" / "result.json").unlink()
    with pytest.raises(CorruptFileError, match=r"0005/result.json is missing"):
        made.next_proposal(STUDY, folder, 10, *found)


def test_a_result_of_another_trial_is_refused(ran: tuple[Path, list[TrialRecord]], tmp_path: Path) -> None:
    folder = tmp_path / "trials"
    shutil.copytree(ran[0], folder)
    shutil.copy(folder / "0001" / "result.json", folder / "0002" / "result.json")
    with pytest.raises(CorruptFileError, match="result of another trial"):
        read_history(folder, 8, 4)


def test_raising_the_number_of_trials_continues_the_list(
    found: tuple[Regions, Starts], ran: tuple[Path, list[TrialRecord]], tmp_path: Path
) -> None:
    longer = made.config(target__trials=40)
    made.run_target(longer, tmp_path, *found, 8)
    for number in range(8):
        name = f"{number:04d}/proposal.json"
        assert (tmp_path / name).read_bytes() == (ran[0] / name).read_bytes()


def test_another_process_and_order_of_files_give_the_same_bytes(
    found: tuple[Regions, Starts], ran: tuple[Path, list[TrialRecord]], tmp_path: Path
) -> None:
    write_json(tmp_path / "target.json", made.section(STUDY, "target"))
    write_json(tmp_path / "regions.json", found[0])
    write_json(tmp_path / "starts.json", found[1])
    words = ["propose", "--number", "12", "--trials-dir", str(ran[0]), "--output", str(tmp_path / "p.json")]
    for name in ("settings", "regions", "starts"):
        words += [f"--{name}", str(tmp_path / f"{'target' if name == 'settings' else name}.json")]
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    code = "import sys; from understudy.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, *words], check=True, env=environment)
    expected = (ran[0] / "0012" / "proposal.json").read_bytes()
    assert (tmp_path / "p.json").read_bytes() == expected
    assert main(words) == 0
    assert (tmp_path / "p.json").read_bytes() == expected


def test_a_proposal_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    """Imports are a third of its time, and were half with scipy's distributions and optimizers."""
    study = made.config(target__sampler="two_fidelity", target__window=1)
    regions, starts = made.transferred(study)
    made.run_target(study, tmp_path / "trials", regions, starts, 6)
    found = {"settings": made.section(study, "target"), "regions": regions, "starts": starts}
    words = ["propose", "--number", "6", "--trials-dir", tmp_path / "trials", "--output", tmp_path / "proposal.json"]
    for name, content in found.items():
        write_json(tmp_path / f"{name}.json", content)
        words += [f"--{name}", tmp_path / f"{name}.json"]
    code = "import sys; from understudy.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True, capture_output=True, text=True)
    proposal = read_model(tmp_path / "proposal.json", Proposal)
    assert proposal.outlook is not None
    assert not {"torch", "polars", "sklearn", "scipy.stats", "scipy.optimize"} & set(ran.stdout.split())


def optunas_answer(
    regions: Regions, records: list[TrialRecord], running: list[TrialSpec], seed: int
) -> dict[str, object]:
    """What Optuna asks for in a study that is put together here, without the program's own code."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, parameter in regions.space.items():
        if not isinstance(parameter, Choices):
            distributions[name] = optuna.distributions.FloatDistribution(
                parameter.low, parameter.high, log=parameter.log
            )
        elif name == "lr_scheduler_type":
            distributions[name] = optuna.distributions.CategoricalDistribution(parameter.choices)
        else:
            distributions[name] = optuna.distributions.IntDistribution(0, len(parameter.choices) - 1)

    def params(spec: TrialSpec) -> dict[str, object]:
        coded = {}
        for name, distribution in distributions.items():
            value = spec.hyperparameters[name]
            whole = isinstance(distribution, optuna.distributions.IntDistribution)
            coded[name] = regions.space[name].choices.index(value) if whole else value
        return coded

    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=1)
    study = optuna.create_study(sampler=sampler)
    for record in records:
        value = record.result.objective
        study.add_trial(optuna.trial.create_trial(params=params(record.spec), distributions=distributions, value=value))
    for spec in running:
        state = optuna.trial.TrialState.RUNNING
        study.add_trial(optuna.trial.create_trial(state=state, params=params(spec), distributions=distributions))
    return dict(study.ask(distributions).params)


@pytest.mark.parametrize("number", [6, 9, 13])
def test_an_exploring_proposal_is_what_optuna_asks(
    number: int, found: tuple[Regions, Starts], ran: tuple[Path, list[TrialRecord]]
) -> None:
    options = made.section(made.config(target__explore=1.0), "target")
    proposal = propose(options, number, *found, read_history(ran[0], number, 4))
    records, running = ran[1][: number - 3], [record.spec for record in ran[1][number - 3 : number]]
    assert all(record.result.status == "complete" for record in records)
    asked = optunas_answer(found[0], records, running, derive_seed(STUDY.seed, "propose", number, 0))
    assert proposal.kind == "explore"
    assert proposal.redrawn == ()
    for name, value in asked.items():
        ours = proposal.spec.hyperparameters[name]
        if isinstance(value, float):
            assert ours == pytest.approx(value, rel=1e-5)
        elif name == "lr_scheduler_type":
            assert ours == value
        else:
            assert ours == found[0].space[name].choices[value]  # type: ignore[union-attr, index]


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "two_fidelity"])
def test_every_proposal_says_what_the_proxys_surface_predicts(
    sampler: str, found: tuple[Regions, Starts], ran: tuple[Path, list[TrialRecord]]
) -> None:
    """By scikit-learn's process with the surface's kernel; the target's results don't change it."""
    options = made.section(made.config(target__sampler=sampler), "target")
    surface = found[0].surface
    assert surface is not None
    kernel = ConstantKernel(surface.variance) * Matern(surface.lengths, nu=2.5)
    process = GaussianProcessRegressor(kernel, alpha=surface.noise + 1e-8, optimizer=None)
    process.fit(surface.points, surface.values)
    for number in (0, 8):
        proposal = propose(options, number, *found, read_history(ran[0], number, 4))
        [mean] = process.predict(
            embed(found[0].space, [proposal.spec.hyperparameters], dict.fromkeys(found[0].space, 1))
        )
        nats = surface.centre + surface.spread * (math.expm1(mean) if mean > 0 else mean)
        assert proposal.predicted == pytest.approx(nats, rel=2e-5)
    silent = found[0].model_copy(update={"surface": None})
    if sampler != "two_fidelity":
        assert propose(options, 8, silent, found[1], read_history(ran[0], 8, 4)).predicted is None


def test_what_is_predicted_is_the_proxys_loss_of_the_counterpart(found: tuple[Regions, Starts]) -> None:
    """The starts' parents were run on the proxy, so their losses are nearly known."""
    proxy = {record.spec.id: record.result.objective for record in made.proxy_records(STUDY)}
    options = made.section(STUDY, "target")
    images = [(n, start) for n, start in enumerate(found[1].starts[:6]) if start.origin == "transferred"]
    assert len(images) >= 2
    for number, start in images:
        told = propose(options, number, *found, History()).predicted
        assert told == pytest.approx(proxy[start.parents[0]], abs=0.02)


def test_nothing_is_proposed_twice(tmp_path: Path) -> None:
    """A space of four configurations with room for each exactly once."""
    study = made.four_configurations(target__explore=1.0, target__window=2)
    regions, starts = made.transferred(study)
    records = made.run_target(study, tmp_path, regions, starts, 4)
    assert len({json.dumps(record.spec.hyperparameters) for record in records}) == 4
    assert len(made.run_target(study, tmp_path, regions, starts, 6)) == 6


def test_the_first_starts_alone_are_candidates(
    found: tuple[Regions, Starts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions, starts = found
    study = made.config(target__sampler="two_fidelity", target__window=1)
    backwards = starts.model_copy(update={"starts": starts.starts[::-1]})
    of_all = made.next_proposal(study, tmp_path, 0, regions, backwards)
    assert of_all.spec.hyperparameters == starts.starts[0].hyperparameters
    monkeypatch.setattr("understudy.search.propose.HINTS", 1)
    of_one = made.next_proposal(study, tmp_path, 0, regions, backwards)
    assert of_one.spec.hyperparameters == starts.starts[-1].hyperparameters
    assert of_one.kind == "start"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_proposals_are_complete(method: str, tmp_path: Path) -> None:
    study = made.config(target__method=method)
    records = made.run_target(study, tmp_path, *made.transferred(study), 8)
    assert {tuple(record.spec.hyperparameters) for record in records} == {tuple(records[0].spec.hyperparameters)}
    assert ("lora_r" in records[7].spec.hyperparameters) == (method == "lora")
    assert {record.spec.method for record in records} == {method}


@pytest.mark.long
def test_the_guided_search_beats_the_unguided_one(tmp_path: Path) -> None:
    """Median best loss over three seeds of 14 trials, without starts, on the made-up bowl."""
    best: dict[str, list[float]] = {"guided": [], "random": []}
    for seed in range(1, 4):
        study = made.config(seed=seed, target__starts=1, target__explore=0.2)
        regions, starts = made.transferred(study)
        poor = starts.model_copy(update={"starts": starts.starts[-1:]})  # a fixed rate, far off here
        best["guided"].append(made.best_of(made.run_target(study, tmp_path / f"g{seed}", regions, poor, 14)))
        blind = made.config(seed=seed, target__starts=1, target__explore=1.0, target__sampler="random")
        best["random"].append(made.best_of(made.run_target(blind, tmp_path / f"r{seed}", regions, poor, 14)))
    assert statistics.median(best["guided"]) < statistics.median(best["random"])


def test_the_model_learns_within_the_region(tmp_path: Path) -> None:
    """On a bowl in two dimensions TPE's later proposals are better than its earlier ones, by the median."""

    def loss(spec: TrialSpec) -> float:
        values = spec.hyperparameters
        rate = math.log10(float(values["learning_rate"]) / 2e-3)
        return 2 + rate**2 + 10 * (float(values["warmup_ratio"]) - 0.2) ** 2

    study = made.config(
        space={"learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}, "warmup_ratio": {"low": 0, "high": 0.5}},
        proxy__grid={},
        target__trials=40,
        target__starts=2,
    )
    regions, starts = made.transferred(study, loss)
    records = made.run_target(study, tmp_path, regions, starts, 30, loss)
    losses = [loss(record.spec) for record in records]
    assert statistics.median(losses[18:]) < statistics.median(losses[2:12])


def test_truncated_runs_have_seeds_of_their_own(found: tuple[Regions, Starts]) -> None:
    target, truncated = (_Turn(made.section(STUDY, "target"), 7, *found, History(), stage) for stage in STAGES)
    assert target.seed("propose", 7) != truncated.seed("propose", 7)


def test_history_of_pending_starts_is_enough(found: tuple[Regions, Starts]) -> None:
    """Proposal n with nothing visible yet still comes out, inside a region."""
    options = made.section(made.config(target__starts=1, target__explore=0.0), "target")
    first = propose(options, 0, *found, History())
    proposal = propose(options, 1, *found, History(pending=(first,)))
    region: Region = found[0].regions[0]
    assert outside(region, proposal.spec.hyperparameters) == []
    assert proposal.pending == ("t0000",)
