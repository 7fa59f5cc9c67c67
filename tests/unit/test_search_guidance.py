"""How regions guide proposals: their shares, what is drawn anew inside, what they fix."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import search_study as made
from understudy.artifacts import Proposal, Region, Regions, Starts
from understudy.files import read_model
from understudy.search import guidance
from understudy.search.guidance import choose_place, draw, faded, fixed, move_inside, outside, place_shares
from understudy.search.propose import propose
from understudy.search.values import from_unit
from understudy.search.window import read_history
from understudy.trial import TrialRecord, TrialSpec, derive_seed

STUDY = made.config()


@pytest.fixture(scope="module")
def found() -> tuple[Regions, Starts]:
    return made.transferred(STUDY)


@pytest.fixture(scope="module")
def ran(found: tuple[Regions, Starts], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TrialRecord]]:
    folder = tmp_path_factory.mktemp("trials")
    return folder, made.run_target(STUDY, folder, *found, 16)


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
    assert explored([None] * 4, [2.0] * 6) == pytest.approx(explored([3.0, 3.1, 3.2, 3.3], [2.0] * 6))
    assert explored([1.0, 1.1], [2.0] * 6, explore=0.0) == 0.0
    assert explored([None], [None]) <= 0.2


def test_a_trial_in_several_regions_counts_in_equal_parts(found: tuple[Regions, Starts]) -> None:
    region = found[0].regions[0]
    records = [trial_at(rate, number, 2.0) for number, rate in enumerate([3e-3] * 5 + [6e-5])]
    assert guidance._counts([region, region], records) == [2.5, 2.5, 1]


def regions_of(places: list[tuple[float, float]]) -> list[Region]:
    """Regions of weights and volumes."""
    region, total = region_pair(0.1).regions[0], math.fsum(weight for weight, _ in places)
    return [region.model_copy(update={"share": weight / total, "volume": volume}) for weight, volume in places]


PLACES = st.lists(st.tuples(st.floats(0.01, 1), st.floats(1e-6, 1)), min_size=1, max_size=4)


@settings(max_examples=40)
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


@settings(max_examples=40)
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
    study = made.four_configurations(target__explore=0.0, target__window=1)
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
