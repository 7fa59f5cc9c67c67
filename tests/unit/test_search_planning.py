"""The proxy's trials: reference sequences, prefix stability, known-good defaults, echoes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import qmc

import search_study as made
from understudy.artifacts import Proposal
from understudy.cli import main
from understudy.errors import UserError
from understudy.files import read_model, write_json
from understudy.graph import known_defaults, proxy_packs
from understudy.hyperparameters import HYPERPARAMETERS
from understudy.search.defaults import known_good, learning_rate_rule
from understudy.search.grid import grid_points, grid_size
from understudy.search.planning import plan_echo
from understudy.search.scaling import scale_rules, to_proxy, to_target
from understudy.search.sequences import scrambled_sobol, sobol, sobol_directions, uniform
from understudy.search.values import rounded
from understudy.space import Choices, Range
from understudy.trial import Execution, Pack, TrialSpec, derive_seed, search_seed


def steps(spec: TrialSpec) -> float:
    """Optimizer steps, up to a factor."""
    return float(spec.hyperparameters["num_train_epochs"]) / int(spec.hyperparameters["batch_size"])


LINE: dict[str, Range | Choices] = {
    name: Range(low=0.0, high=1.0) for name in ("weight_decay", "warmup_ratio", "lora_dropout")
}


@pytest.mark.parametrize(("first", "count"), [(0, 1), (0, 8), (0, 11), (3, 5), (16, 1)])
def test_sobol_is_scipys_sequence(first: int, count: int) -> None:
    reference = qmc.Sobol(3, scramble=True, rng=derive_seed(9, "sobol")).random_base2(5)
    ours = sobol(LINE, 9, first, count)
    assert [list(point.values()) for point in ours] == [
        [rounded(float(u)) for u in point] for point in reference[first : first + count]
    ]


@pytest.mark.parametrize("dimensions", [1, 2, 10, 40])
def test_a_proposals_candidates_are_scipys_too(dimensions: int) -> None:
    directions = sobol_directions(dimensions, 7)
    for seed in range(3):
        ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
        expected = qmc.Sobol(dimensions, rng=theirs).random(2**7)
        assert np.array_equal(scrambled_sobol(directions, ours), expected)
        assert ours.random() == theirs.random()


def test_trials_of_an_origin_follow_from_their_number_alone() -> None:
    space = made.config().space
    assert sobol(space, 1, 0, 24)[:7] == sobol(space, 1, 0, 7)
    assert sobol(space, 1, 7, 9) == sobol(space, 1, 0, 24)[7:16]
    assert sobol(space, 1, 0, 4) != sobol(space, 2, 0, 4)
    draws = [uniform(space, 1, i) for i in range(50)]
    assert uniform(space, 1, 33) == draws[33]
    assert len({str(values) for values in draws}) == 50


def test_uniform_covers_the_space_evenly() -> None:
    space = made.config().space
    draws = [uniform(space, 1, i) for i in range(600)]
    counts = [
        sum(values["lr_scheduler_type"] == choice for values in draws) for choice in space["lr_scheduler_type"].choices
    ]
    assert min(counts) > 150
    middle = sum(float(values["learning_rate"]) < 10**-2.5 for values in draws)
    assert 250 < middle < 350


def test_packs_are_slices_of_one_list() -> None:
    settings = made.section(made.config(), "search")
    for origin, count in (("random", 9), ("sobol", 9), ("grid", 8), ("default", 3)):
        whole = made.planned(settings, origin, 0, count).specs
        part = made.planned(settings, origin, 2, count - 2).specs
        assert part == whole[2:]
        assert {spec.seed for spec in whole} == {search_seed(settings.seed)}
        assert {spec.origin for spec in whole} == {origin}
        assert all(list(spec.hyperparameters) == list(HYPERPARAMETERS) for spec in whole)


def test_ids_count_per_origin() -> None:
    settings = made.section(made.config(), "search")
    ids = [made.planned(settings, origin, 1, 1).specs[0].id for origin in ("random", "sobol", "grid", "default")]
    assert ids == ["r0001", "q0001", "g0001", "d01"]


def test_whole_numbers_survive_the_settings_file() -> None:
    settings = made.section(made.config(space__lora_r={"low": 4, "high": 64, "log": True}), "search")
    ranks = [spec.hyperparameters["lora_r"] for spec in made.planned(settings, "random", 0, 20).specs]
    assert all(type(rank) is int for rank in ranks)
    assert len(set(ranks)) > 8


def test_the_grid_is_the_product_of_its_axes() -> None:
    study = made.config()
    points = grid_points(study.proxy.grid)
    assert [tuple(point.values()) for point in points] == list(itertools.product([1e-3, 3e-3, 1e-2, 3e-2], [4, 32]))
    assert grid_size(study.proxy.grid) == len(points) == 8
    assert (grid_size({}), grid_points({})) == (0, [])
    specs = made.planned(made.section(study, "search"), "grid", 0, 8).specs
    assert specs[3].hyperparameters["learning_rate"] == 3e-3
    assert specs[3].hyperparameters["lora_alpha"] == study.defaults["lora_alpha"]


def test_what_the_grid_leaves_out_is_the_known_default() -> None:
    study = made.config(proxy__grid={"lora_r": [4, 8]})
    specs = made.planned(made.section(study, "search"), "grid", 0, 2).specs
    assert {spec.hyperparameters["learning_rate"] for spec in specs} == {learning_rate_rule(64, "llama", "lora")}


def test_too_many_trials_and_unknown_origins_are_refused() -> None:
    settings = made.section(made.config(), "search")
    with pytest.raises(UserError, match="only 3 of them"):
        made.planned(settings, "grid", 5, 8)
    with pytest.raises(UserError, match="valid are random, sobol"):
        made.planned(settings, "sobel", 0, 8)


def test_the_published_rule() -> None:
    """The values of the cookbook's formula, worked out by hand for its reference width and two others."""
    assert learning_rate_rule(2000, "llama", "lora") == pytest.approx(5e-4)
    assert learning_rate_rule(2000, "qwen2", "full") == pytest.approx(5e-5)
    assert learning_rate_rule(8000, "llama", "lora") == pytest.approx(5e-4 * 0.33867, rel=1e-4)
    assert learning_rate_rule(8000, "qwen3", "lora") == pytest.approx(5e-4 * 0.89813, rel=1e-4)
    assert learning_rate_rule(8000, "gemma", "lora") == learning_rate_rule(8000, "llama", "lora")
    assert learning_rate_rule(8000, "llama", "lora", 1.0) == pytest.approx(1.25e-4)


@pytest.mark.parametrize("rate", [None, 3e-4, 1e-3, 5e-3])
def test_there_are_three_different_known_good_configurations(rate: float | None) -> None:
    defaults = {"lora_r": 32} if rate is None else {"lora_r": 32, "learning_rate": rate}
    found = known_good(made.config().space, defaults, 7e-3, "lora")
    assert len(found) == known_defaults(made.config()) == 3 == len({str(item.hyperparameters) for item in found})
    assert found[0].hyperparameters["learning_rate"] == (rate or 7e-3)
    assert all(item.hyperparameters["lora_r"] == 32 for item in found)


@pytest.mark.parametrize("defaults", [{}, {"learning_rate": 3e-4}])
def test_a_rate_that_is_not_searched_has_no_fixed_rates(defaults: dict[str, float]) -> None:
    study = made.unsearched("learning_rate", defaults)
    (only,) = known_good(study.space, study.defaults, 7e-3, "lora")
    assert only.hyperparameters["learning_rate"] == defaults.get("learning_rate", 7e-3)
    assert only.hyperparameters["lora_r"] == study.defaults["lora_r"]
    assert proxy_packs(study)["default-000"].count == known_defaults(study) == 1
    specs = made.planned(made.section(study, "search"), "default", 0, 1).specs
    assert [spec.id for spec in specs] == ["d00"]
    with pytest.raises(UserError, match="only 1 of them"):
        made.planned(made.section(study, "search"), "default", 0, 2)


def test_the_highest_rank_goes_with_the_fixed_rates() -> None:
    space = made.config().space
    found = known_good(space, {"lora_r": 8}, 7e-3, "lora")
    assert [item.hyperparameters["lora_r"] for item in found] == [8, 32, 32]
    assert [item.hyperparameters["learning_rate"] for item in found] == [7e-3, 3e-4, 1e-3]
    without = {name: parameter for name, parameter in space.items() if name != "lora_r"}
    assert known_good(without, {"lora_r": 8}, 7e-3, "lora")[1].hyperparameters["lora_r"] == 8
    assert [i.hyperparameters["learning_rate"] for i in known_good(space, {}, 7e-4, "full")] == [7e-4, 3e-5, 1e-4]


def test_a_rank_that_rests_goes_with_the_fixed_rates() -> None:
    ranks = {"choices": [16, 32, 64], "when": {"lr_scheduler_type": ["cosine"]}}
    study = made.config(space__lora_r=ranks, defaults__lr_scheduler_type="linear")
    found = known_good(study.space, study.defaults, 7e-3, "lora")
    assert [item.hyperparameters["lora_r"] for item in found] == [16, 16, 16]
    assert "at rank 16" in found[1].reason


def test_which_rates_are_fixed_depends_on_the_default_alone() -> None:
    found = known_good(made.config().space, {"learning_rate": 3e-5}, 7e-3, "full")
    assert [item.hyperparameters["learning_rate"] for item in found] == [3e-5, 1e-4, 2e-5]
    assert [item.fixed for item in found] == [None, 1e-3, 2e-4]


@given(rate=st.floats(1e-6, 1.0), width=st.integers(16, 20_000), method=st.sampled_from(["lora", "full"]))
def test_scaling_to_the_target_and_back_changes_nothing(rate: float, width: int, method: str) -> None:
    values = {"learning_rate": rounded(rate), "batch_size": 8, "warmup_ratio": 0.1}
    scale = scale_rules(made.PROXY, made.card("target", width), method, "auto")  # type: ignore[arg-type]
    assert to_proxy(to_target(values, scale, method), scale) == values  # type: ignore[arg-type]


def test_the_scale_is_the_rules_ratio() -> None:
    scale = scale_rules(made.PROXY, made.TARGET, "lora", "auto")["learning_rate"]
    ratio = learning_rate_rule(192, "llama", "lora") / learning_rate_rule(64, "llama", "lora")
    assert scale.factor == pytest.approx(ratio, rel=1e-5)
    full = scale_rules(made.PROXY, made.TARGET, "full", 0.5)["learning_rate"]
    assert full.factor == pytest.approx(0.1 * (1 / 3) ** 0.5)
    assert "learning_rate_exponent" in full.source


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_echo_is_the_proxy_trial_that_a_start_came_from(method: str, tmp_path: Path) -> None:
    study = made.config(target__method=method)
    regions, starts = made.transferred(study)
    proposals = [made.next_proposal(study, tmp_path, n, regions, starts) for n in range(5)]
    settings = made.section(study, "search")
    pack = plan_echo(settings, made.PROXY, made.EXECUTION, regions.scale, "echo-000", proposals[::-1])
    originals = {record.spec.id: record.spec for record in made.proxy_records(study)}
    assert [spec.id for spec in pack.specs] == [f"e{n:04d}" for n in range(5)]
    compared = 0
    for spec, proposal in zip(pack.specs, proposals, strict=True):
        assert (spec.parents, spec.origin, spec.method) == ((proposal.spec.id,), "echo", "lora")
        if proposal.spec.origin == "transferred":
            original = originals[proposal.spec.parents[0]].hyperparameters
            shared = proposal.spec.hyperparameters
            assert {n: spec.hyperparameters[n] for n in shared} == {n: original[n] for n in shared}
            compared += 1
    assert compared >= 2


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("defaults", [{}, {"learning_rate": 5e-3}])
def test_what_is_not_searched_is_each_models_default(method: str, defaults: dict[str, float], tmp_path: Path) -> None:
    study = made.unsearched("learning_rate", defaults, method)
    regions, starts = made.transferred(study)
    assert regions.scale == {}
    on_proxy = defaults.get("learning_rate", learning_rate_rule(64, "llama", "lora"))
    rule = learning_rate_rule(192, "llama", method)  # type: ignore[arg-type]
    assert starts.default["learning_rate"] == pytest.approx(defaults.get("learning_rate", rule), rel=1e-5)
    assert {start.hyperparameters["learning_rate"] for start in starts.starts} == {starts.default["learning_rate"]}
    assert sum(start.origin == "default" for start in starts.starts) <= 1
    assert all("not searched" in start.reason for start in starts.starts if start.origin == "transferred")
    made.run_target(study, tmp_path, regions, starts, 9)
    proposals = [read_model(tmp_path / f"{n:04d}" / "proposal.json", Proposal) for n in range(9)]
    assert {p.kind for p in proposals} >= {"start", "guided"}
    assert {p.spec.hyperparameters["learning_rate"] for p in proposals} == {starts.default["learning_rate"]}
    pack = plan_echo(made.section(study, "search"), made.PROXY, made.EXECUTION, regions.scale, "echo-000", proposals)
    assert {spec.hyperparameters["learning_rate"] for spec in pack.specs} == {on_proxy}


def test_the_commands_write_packs(tmp_path: Path) -> None:
    study = made.config()
    regions, starts = made.transferred(study)
    write_json(tmp_path / "search.json", made.section(study, "search"))
    write_json(tmp_path / "model.json", made.PROXY)
    write_json(tmp_path / "execution.json", Execution(role="proxy", resolved=made.EXECUTION))
    write_json(tmp_path / "regions.json", regions)
    write_json(tmp_path / "p0.json", made.next_proposal(study, tmp_path, 0, regions, starts))
    common = ["--settings", str(tmp_path / "search.json"), "--model", str(tmp_path / "model.json")]
    common += ["--execution", str(tmp_path / "execution.json")]
    output = tmp_path / "specs.json"
    words = ["plan-pack", *common, "--pack", "random-001", "--output", str(output)]
    words += ["--first", "0", "--block", "6", "--index", "1", "--size", "4"]
    assert main(words) == 0
    block = made.planned(made.section(study, "search"), "random", 0, 6).specs
    shortest = sorted(block, key=lambda spec: (steps(spec), -int(spec.id[1:])))[:2]
    assert list(read_model(output, Pack).specs) == sorted(shortest, key=lambda spec: spec.id)
    words = ["plan-echo", *common, "--regions", str(tmp_path / "regions.json"), "--pack", "echo-000", "--proposals"]
    assert main([*words, str(tmp_path / "p0.json"), "--output", str(output)]) == 0
    assert [spec.id for spec in read_model(output, Pack).specs] == ["e0000"]
    assert read_model(tmp_path / "p0.json", Proposal).number == 0
