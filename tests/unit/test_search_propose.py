"""The target's proposals: the window, Optuna's own answer, regions at work, and whether all that finds anything."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import search_study as made
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from understudy.artifacts import Proposal, Region, Regions, Starts
from understudy.cli import main
from understudy.errors import CorruptFileError
from understudy.files import read_model, write_json
from understudy.search.clusters import embed
from understudy.search.guidance import choose_place, draw, faded, fixed, move_inside, outside, place_shares
from understudy.search.propose import propose
from understudy.search.values import from_unit
from understudy.search.window import History, pending, read_history, visible
from understudy.space import Choices
from understudy.trial import TrialRecord, TrialSpec, derive_seed, search_seed

STUDY = made.config()


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


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp"])
def test_guided_proposals_lie_in_their_region(
    sampler: str, found: tuple[Regions, Starts], ran: tuple[Path, list[TrialRecord]]
) -> None:
    options = made.section(made.config(target__explore=0.0, target__sampler=sampler), "target")
    for number in (6, 12):
        proposal = propose(options, number, *found, read_history(ran[0], number, 4))
        assert proposal.kind == "guided"
        assert proposal.region is not None
        region = found[0].regions[proposal.region]
        assert outside(region, proposal.spec.hyperparameters) == []
        assert proposal.spec.parents == region.trials


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


def test_exploring_happens_as_often_as_it_should(found: tuple[Regions, Starts]) -> None:
    shares = place_shares(found[0].regions, [], 0.2)
    assert shares == pytest.approx([0.8, 0.2])
    places = [choose_place(shares, derive_seed(1, "explore", n)) for n in range(500)]
    assert 70 < places.count(1) < 130


def trial_at(rate: float, number: int, loss: float | None) -> TrialRecord:
    values = {**made.proxy_records(STUDY)[0].spec.hyperparameters, "learning_rate": rate}
    spec = TrialSpec(id=f"t{number:04d}", stage="target", origin="refined", hyperparameters=values, seed=1)
    return made.record(spec, lambda _: loss or 0.0, "diverged" if loss is None else "complete")


def test_the_targets_evidence_moves_the_shares(found: tuple[Regions, Starts]) -> None:
    """Inside the region lies 3e-3, outside of it 6e-5."""
    regions = found[0].regions
    out, into = 6e-5, 3e-3
    assert outside(regions[0], trial_at(out, 0, 1.0).spec.hyperparameters) == ["learning_rate"]
    assert outside(regions[0], trial_at(into, 0, 1.0).spec.hyperparameters) == []

    def explored(losses_out: list[float | None], losses_in: list[float | None], explore: float = 0.2) -> float:
        pairs = [(out, loss) for loss in losses_out] + [(into, loss) for loss in losses_in]
        return place_shares(regions, [trial_at(rate, i, loss) for i, (rate, loss) in enumerate(pairs)], explore)[-1]

    assert explored([], [2.0] * 8) == pytest.approx(0.2)
    assert explored([1.0, 1.1], [2.0] * 6) > 0.4
    assert explored([3.0, 3.1], [2.0] * 6) < 0.2
    assert explored([None, None], [2.0] * 6) == pytest.approx(explored([3.0, 3.1], [2.0] * 6))
    assert explored([1.0, 1.1], [2.0] * 6, explore=0.0) == 0.0
    assert explored([None], [None]) <= 0.2


PLACES = st.lists(st.tuples(st.floats(0.01, 1), st.floats(1e-6, 1)), min_size=1, max_size=4)


def regions_of(places: list[tuple[float, float]]) -> list[Region]:
    """Regions of weights and volumes."""
    region, total = region_pair(0.1).regions[0], math.fsum(weight for weight, _ in places)
    return [region.model_copy(update={"share": weight / total, "volume": volume}) for weight, volume in places]


@settings(max_examples=40, deadline=None)
@given(places=PLACES, explore=st.floats(0.01, 1), strength=st.floats(0.5, 50), results=st.integers(0, 500))
def test_shares_fade_from_the_transfers_to_the_volumes(
    places: list[tuple[float, float]], explore: float, strength: float, results: int
) -> None:
    regions = regions_of(places)
    transfers = [(1 - explore) * region.share for region in regions] + [explore]
    volumes = np.array([region.volume for region in regions] + [1.0])
    found, later = (faded(regions, explore, strength, n) for n in (results, results + 1))
    assert math.fsum(found) == pytest.approx(1)
    if results <= strength:
        assert found == pytest.approx(transfers)
    if all(transfers):  # densities in the order of before, nearer to each other with every result
        density, next_density = (np.log(np.array(shares) / volumes) for shares in (found, later))
        assert np.ptp(next_density) <= np.ptp(density) + 1e-9
        expected = np.log(np.array(transfers) / volumes) * strength / max(results, strength)
        assert density - density[-1] == pytest.approx(expected - expected[-1], abs=1e-6)
        assert faded(regions, explore, strength, 10**9) == pytest.approx(volumes / volumes.sum(), rel=1e-4)


def test_places_without_share_or_volume_stay_defined() -> None:
    point = regions_of([(1.0, 0.0)])
    assert faded(point, 0.0, 10, 1000) == [1.0, 0.0]
    assert faded(point, 0.2, 10, 10) == pytest.approx([0.8, 0.2])
    assert faded(point, 0.2, 10, 10**6) == pytest.approx([0.0, 1.0], abs=1e-6)


def test_the_shares_of_proposals_fade_with_the_results_that_count(found: tuple[Regions, Starts]) -> None:
    """All as good in the region as outside, so that only the number of results speaks; skipped trials don't."""
    regions = found[0].regions
    records = [trial_at(rate, number, 2.0) for number, rate in enumerate([6e-5, 3e-3] * 10)]
    skipped = [r.model_copy(update={"result": r.result.model_copy(update={"status": "skipped"})}) for r in records]
    strong, weak = (place_shares(regions, records, 0.2, strength)[-1] for strength in (20, 4))
    assert strong == place_shares(regions, records, 0.2)[-1] < weak
    evidence = [share / prior for share, prior in zip(place_shares(regions, records, 0.2), [0.8, 0.2], strict=True)]
    raw = [prior * e for prior, e in zip(faded(regions, 0.2, 4, 20), evidence, strict=True)]
    assert weak == pytest.approx(raw[-1] / sum(raw))
    assert place_shares(regions, skipped, 0.2, 4) == pytest.approx([0.8, 0.2])


def test_the_priors_strength_changes_no_proposal_before_it(
    found: tuple[Regions, Starts], ran: tuple[Path, list[TrialRecord]]
) -> None:
    """Strength 6 and window 4: proposal 9 sees six results, proposal 10 seven."""
    weak = made.config(target__prior_strength=6)
    for number in range(10):
        proposal = made.next_proposal(weak, ran[0], number, *found)
        assert proposal == read_model(ran[0] / f"{number:04d}" / "proposal.json", Proposal)
    free = made.section(made.config(target__prior_strength=1e-3), "target")
    kinds = [propose(free, number, *found, read_history(ran[0], number, 4)).kind for number in range(10, 16)]
    told = [read_model(ran[0] / f"{number:04d}" / "proposal.json", Proposal).kind for number in range(10, 16)]
    assert kinds.count("explore") > told.count("explore")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), padding=st.sampled_from([0.0, 0.1]))
def test_whatever_is_moved_inside_is_inside(seed: int, padding: float) -> None:
    regions = region_pair(padding)
    generator = random.Random(seed)
    values = from_unit(regions.space, [generator.random() for _ in regions.space])
    for region in regions.regions:
        moved, redrawn = move_inside(regions.space, region, values, seed)
        assert outside(region, moved) == []
        assert redrawn == outside(region, values)
        assert set(redrawn).isdisjoint(fixed(region))
        assert {n for n in values if moved[n] != values[n]} <= {*redrawn, *fixed(region)}
        assert moved.items() >= fixed(region).items()
        assert all(regions.space[name].contains(value) for name, value in moved.items())


@pytest.fixture(scope="module")
def fixing() -> tuple[Regions, Starts]:
    """A transfer that calls some hyperparameters negligible."""
    return made.transferred(made.config(proxy__random=60, transfer__fix_below=0.05))


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp"])
def test_guided_proposals_have_the_regions_fixed_values_and_exploring_ones_are_free(
    sampler: str, fixing: tuple[Regions, Starts], ran: tuple[Path, list[TrialRecord]]
) -> None:
    region, history = fixing[0].regions[0], read_history(ran[0], 12, 4)
    held = fixed(region)
    assert len(held) >= 3
    guided, free = (
        propose(
            made.section(made.config(target__explore=explore, target__sampler=sampler), "target"), 12, *fixing, history
        )
        for explore in (0.0, 1.0)
    )
    assert (guided.kind, free.kind) == ("guided", "explore")
    assert guided.spec.hyperparameters.items() >= held.items()
    assert set(guided.fixed) == set(held)
    assert set(guided.redrawn).isdisjoint(held)
    assert free.fixed == ()
    assert sum(free.spec.hyperparameters[name] != value for name, value in held.items()) > 1


def test_another_value_of_what_is_fixed_is_inside_all_the_same(fixing: tuple[Regions, Starts]) -> None:
    region, space = fixing[0].regions[0], fixing[0].space
    values = {name: draw(parameter, region.boxes[name], 0.5) for name, parameter in space.items()}
    for name in fixed(region):
        for u in (0.0, 0.3, 1.0):
            assert outside(region, values | {name: space[name].from_unit(u)}) == []


def test_where_all_is_tried_but_what_is_fixed_that_becomes_free(tmp_path: Path) -> None:
    """Four configurations, of which a region that fixes the rank has two."""
    study = made.config(
        space={"learning_rate": [1e-3, 1e-2], "lora_r": [4, 16]},
        proxy__grid={},
        target__starts=1,
        target__explore=0.0,
        target__window=1,
        transfer__learning_rate_exponent=0.0,
        defaults__learning_rate=1e-2,
        defaults__lora_r=16,
    )
    regions, starts = made.transferred(study)
    (region,) = regions.regions
    boxes = {
        "learning_rate": region.boxes["learning_rate"].model_copy(update={"choices": (1e-3, 1e-2)}),
        "lora_r": region.boxes["lora_r"].model_copy(update={"choices": (4, 16), "fixed": 16}),
    }
    held = regions.model_copy(update={"regions": (region.model_copy(update={"boxes": boxes}),)})
    records = made.run_target(study, tmp_path, held, starts, 4)
    assert len({json.dumps(record.spec.hyperparameters) for record in records}) == 4
    told = [read_model(path, Proposal) for path in sorted(tmp_path.glob("*/proposal.json"))]
    ranks = [proposal.spec.hyperparameters["lora_r"] for proposal in told]
    assert ranks == [16, 16, 4, 4]
    assert [proposal.fixed for proposal in told] == [(), ("lora_r",), (), ()]
    assert set(told[-1].redrawn) == {"learning_rate", "lora_r"}


PAIRS: dict[float, Regions] = {}


def region_pair(padding: float) -> Regions:
    """Regions over ranges, whole numbers and choices; made once."""
    if padding not in PAIRS:
        study = made.config(
            transfer__padding=padding,
            space__lora_r={"low": 4, "high": 32, "log": True},
            proxy__random=40,
            defaults__lora_r=16,
        )
        PAIRS[padding] = made.transferred(study)[0]
    return PAIRS[padding]


def test_a_side_is_covered_to_its_ends(found: tuple[Regions, Starts]) -> None:
    region = region_pair(0.1).regions[0]
    box, parameter = region.boxes["lora_r"], region_pair(0.1).space["lora_r"]
    drawn = {draw(parameter, box, u / 400) for u in range(400)}
    assert (min(drawn), max(drawn)) == (box.low, box.high)
    rates = [draw(found[0].space["learning_rate"], found[0].regions[0].boxes["learning_rate"], u) for u in (0.0, 1.0)]
    box = found[0].regions[0].boxes["learning_rate"]
    assert rates == pytest.approx([box.low, box.high], rel=1e-5)


def test_nothing_is_proposed_twice(tmp_path: Path) -> None:
    """A space of four configurations with room for each exactly once."""
    study = made.config(
        space={"learning_rate": [1e-3, 1e-2], "lora_r": [4, 16]},
        proxy__grid={},
        target__starts=1,
        target__explore=1.0,
        target__window=2,
        transfer__learning_rate_exponent=0.0,
        defaults__learning_rate=1e-2,
        defaults__lora_r=16,
    )
    regions, starts = made.transferred(study)
    records = made.run_target(study, tmp_path, regions, starts, 4)
    assert len({json.dumps(record.spec.hyperparameters) for record in records}) == 4
    assert len(made.run_target(study, tmp_path, regions, starts, 6)) == 6


@pytest.mark.parametrize("method", ["lora", "full"])
def test_proposals_are_complete(method: str, tmp_path: Path) -> None:
    study = made.config(target__method=method)
    records = made.run_target(study, tmp_path, *made.transferred(study), 8)
    assert {tuple(record.spec.hyperparameters) for record in records} == {tuple(records[0].spec.hyperparameters)}
    assert ("lora_r" in records[7].spec.hyperparameters) == (method == "lora")
    assert {record.spec.method for record in records} == {method}


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


def test_history_of_pending_starts_is_enough(found: tuple[Regions, Starts]) -> None:
    """Proposal n with nothing visible yet still comes out, inside a region."""
    options = made.section(made.config(target__starts=1, target__explore=0.0), "target")
    first = propose(options, 0, *found, History())
    proposal = propose(options, 1, *found, History(pending=(first,)))
    region: Region = found[0].regions[0]
    assert outside(region, proposal.spec.hyperparameters) == []
    assert proposal.pending == ("t0000",)
