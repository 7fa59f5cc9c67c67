"""The target's starts and their order, the scale rules, and the command that writes them."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import search_study as made
from understudy.artifacts import Regions, Starts
from understudy.cli import main
from understudy.config import StudyConfig
from understudy.errors import UnderstudyError
from understudy.files import read_model, write_json
from understudy.search.defaults import learning_rate_rule
from understudy.search.guidance import inside
from understudy.search.planning import plan_echo
from understudy.search.scaling import scale_rules, scaled
from understudy.search.surface import log_axis
from understudy.search.transfer import SAME_RATE, transfer
from understudy.space import Choices, Range
from understudy.summary.tables import trials_frame
from understudy.trial import TrialSpec


def test_the_best_start_comes_first_and_defaults_by_their_evidence() -> None:
    study = made.config()
    regions, starts = made.transferred(study)
    first = starts.starts[0]
    assert first.parents == (regions.regions[0].trials[0],)
    assert first.expected_rank == 1
    assert starts.default["learning_rate"] == pytest.approx(learning_rate_rule(192, "llama", "lora"), rel=1e-5)
    identities = [str(sorted(start.hyperparameters.items())) for start in starts.starts]
    assert len(set(identities)) == len(identities)
    # In the made-up bowl both fixed rates are far below the best one: they come after everything else.
    assert [start.parents for start in starts.starts[-2:]] == [("d01",), ("d02",)]
    assert [start.hyperparameters["learning_rate"] for start in starts.starts[-2:]] == [3e-4, 1e-3]


def test_a_fixed_rate_is_told_by_its_own_trial_on_the_proxy() -> None:
    """The first of full fine-tuning's fixed rates is the default here, so others are left than on the proxy."""
    _, starts = made.transferred(made.config(target__method="full", defaults__learning_rate=3e-5))
    fixed = {
        start.hyperparameters["learning_rate"]: start.parents for start in starts.starts if "fixed" in start.reason
    }
    assert fixed == {1e-4: ("d02",), 2e-5: ()}  # a tenth of 1e-3, and of 2e-4, which the proxy didn't run


def default_is_best(spec: TrialSpec) -> float:
    return 1.0 if spec.id == "d00" else made.bowl(spec)


def check_the_default_is_its_counterparts_image(proxy: int, target: int, study: StudyConfig) -> None:
    """d00 is the proxy's best trial: its image is the first start, and the default, and comes once."""
    cards = made.card("proxy", proxy), made.card("target", target)
    regions, starts = made.transferred(study, default_is_best, *cards)
    first = starts.starts[0]
    assert first.parents == ("d00",)
    assert first.hyperparameters == starts.default
    assert sum(start.parents == ("d00",) for start in starts.starts) == 1
    rule = learning_rate_rule(target, "llama", study.target.method)
    assert starts.default["learning_rate"] == pytest.approx(rule, rel=2e-5)
    rates = regions.space["learning_rate"]
    if isinstance(rates, Choices):
        near = [rate for rate in rates.choices if float(rate) == pytest.approx(rule, rel=1e-4)]
        assert near == [starts.default["learning_rate"]]
    proposal = made.next_proposal(study, Path(), 0, regions, starts)
    settings = made.section(study, "search")
    (echo,) = plan_echo(settings, cards[0], made.EXECUTION, regions.scale, "echo-000", [proposal]).specs
    (own,) = made.planned(settings, "default", 0, 1, cards[0]).specs
    shared = proposal.spec.hyperparameters
    assert {name: echo.hyperparameters[name] for name in shared} == {n: own.hyperparameters[n] for n in shared}


SMALL = {"proxy__random": 4, "proxy__sobol": 0, "proxy__grid": {}}


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("rates", [{"low": 1e-4, "high": 1e-1, "log": True}, [1e-4, 1e-3, 1e-2]])
def test_the_default_comes_once_at_widths_whose_rounding_differs(method: str, rates: Any) -> None:
    study = made.config(**SMALL, target__method=method, space__learning_rate=rates)
    check_the_default_is_its_counterparts_image(32, 64, study)


@settings(max_examples=20)
@given(st.integers(16, 8192), st.integers(16, 8192), st.sampled_from(["lora", "full"]))
def test_the_default_comes_once_at_any_width(proxy: int, target: int, method: str) -> None:
    check_the_default_is_its_counterparts_image(proxy, target, made.config(**SMALL, target__method=method))


@pytest.mark.parametrize("proxy", range(16, 2049, 127))
@pytest.mark.parametrize("target", [64, 896, 4096])
def test_the_rule_is_scaled_and_stays_itself(proxy: int, target: int) -> None:
    """Tolerance is wide enough at every border of rounding: many widths, without a transfer."""
    scale = scale_rules(made.card("proxy", proxy), made.card("target", target), "lora", "auto")
    image = scaled(learning_rate_rule(proxy, "llama", "lora"), scale["learning_rate"].factor)
    assert image == pytest.approx(learning_rate_rule(target, "llama", "lora"), rel=SAME_RATE)


def test_a_shorter_proxy_trial_scales_the_rate_by_tokens() -> None:
    """A quarter of the steps: four times the tokens on the target."""
    plain, short = made.config(), made.config(proxy__fidelity=0.25)
    (before, _), (after, starts) = made.transferred(plain), made.transferred(short)
    expected = before.scale["learning_rate"].factor * 4**plain.transfer.learning_rate_tokens_exponent
    assert after.scale["learning_rate"].factor == pytest.approx(expected, rel=1e-5)
    assert "for more tokens" in after.scale["learning_rate"].rule
    assert starts.default["learning_rate"] == learning_rate_rule(made.TARGET.hidden_size, "llama", "lora")
    assert {spec.fidelity for spec in made.planned(made.section(short, "search"), "random", 0, 2).specs} == {0.25}
    off = made.config(proxy__fidelity=0.25, transfer__learning_rate_tokens_exponent=0.0)
    assert made.transferred(off)[0].scale == before.scale


def test_more_tokens_move_the_surfaces_batch_size_by_their_exponent() -> None:
    found = [
        made.transferred(made.config(proxy__fidelity=0.25, transfer__batch_size_exponent=exponent))[0]
        for exponent in (0.0, 1.0)
    ]
    axis, decade = log_axis(found[0].space, "batch_size")
    assert axis is not None
    plain, moved = (np.array(regions.surface.points) for regions in found if regions.surface is not None)
    expected = np.zeros_like(plain)
    expected[:, axis] = math.log10(4) * decade
    assert moved - plain == pytest.approx(expected, abs=1e-7)


def test_a_default_that_tokens_alone_tell_from_its_image_waits() -> None:
    study = made.config(proxy__fidelity=0.5)
    _, starts = made.transferred(study, default_is_best)
    assert starts.starts[0].parents == ("d00",)
    assert starts.starts[0].hyperparameters != starts.default
    assert starts.default in [start.hyperparameters for start in starts.starts[3:]]


def test_models_of_different_exponents_have_different_defaults() -> None:
    study = made.config(**SMALL)
    cards = made.card("proxy", 64), made.card("target", 192, "qwen2")
    _, starts = made.transferred(study, default_is_best, *cards)
    assert starts.default["learning_rate"] == learning_rate_rule(192, "qwen2", "lora")
    assert starts.starts[0].parents == ("d00",)
    assert starts.starts[0].hyperparameters != starts.default


def test_a_fixed_rate_that_did_well_is_tried_early() -> None:
    def low_rates(spec: TrialSpec) -> float:
        return 2 + abs(math.log10(float(spec.hyperparameters["learning_rate"]) / 3.3e-4))

    _, starts = made.transferred(made.config(), low_rates)
    fixed = [start.hyperparameters["learning_rate"] for start in starts.starts[:4] if start.origin == "default"]
    assert fixed[:2] == [3e-4, 1e-3]
    assert {start.expected_rank for start in starts.starts if start.hyperparameters["learning_rate"] == 3e-4} == {None}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_published_rule_is_a_start_beside_a_default_of_the_users_own_rate(method: Any) -> None:
    study = made.config(defaults__learning_rate=2e-3, target__method=method)
    regions, starts = made.transferred(study)
    rule = learning_rate_rule(made.TARGET.hidden_size, "llama", method)
    found = [start for start in starts.starts if "published rule's rate" in start.reason]
    assert starts.default["learning_rate"] == 2e-3
    assert len(found) == 1
    assert starts.starts.index(found[0]) < study.target.starts
    assert found[0].hyperparameters == {**starts.default, "learning_rate": pytest.approx(rule, rel=SAME_RATE)}
    assert found[0].reason.endswith("; not run on the proxy")
    rates = regions.space["learning_rate"]
    assert isinstance(rates, Range)
    assert rates.low <= rule <= rates.high


@pytest.mark.parametrize(("factor", "count"), [(None, 0), (1.0, 0), (1.02, 0), (0.97, 0), (1.2, 1)])
def test_the_published_rule_is_no_start_beside_a_default_of_nearly_its_rate(factor: float | None, count: int) -> None:
    rule = learning_rate_rule(made.TARGET.hidden_size, "llama", "lora")
    _, starts = made.transferred(made.config(**({"defaults__learning_rate": factor * rule} if factor else {})))
    assert (
        sum("published rule's rate" in start.reason and bool(start.parents) is False for start in starts.starts)
        == count
    )


def test_the_published_rule_has_the_defaults_place() -> None:
    found = made.transferred(made.config(defaults__learning_rate=2e-2, transfer__max_regions=3))[1].starts
    names = ["rule" if "published rule's rate" in start.reason else start.parents[0] for start in found]
    assert names.index("rule") == names.index("d00") + 1


def test_the_published_rule_is_no_start_where_the_rate_is_not_searched() -> None:
    study = made.unsearched("learning_rate", {"learning_rate": 2e-3})
    assert {start.hyperparameters["learning_rate"] for start in made.transferred(study)[1].starts} == {2e-3}


def test_choices_of_rates_are_scaled_and_united() -> None:
    study = made.config(space__learning_rate=[1e-3, 3e-3, 1e-2, 3e-2], proxy__random=40)
    regions, starts = made.transferred(study)
    rates = regions.space["learning_rate"]
    assert isinstance(rates, Choices)
    assert rates.ordered
    assert {1e-3, 3e-2} < set(rates.choices)
    assert starts.starts[0].hyperparameters["learning_rate"] in rates.choices
    chosen = regions.regions[0].boxes["learning_rate"].choices
    assert chosen
    assert all(inside(regions.regions[0].boxes["learning_rate"], value) for value in chosen)
    assert len(chosen) < len(rates.choices)


def test_the_defaults_objective_is_that_of_its_own_trial() -> None:
    study = made.config()
    records = made.proxy_records(study, made.elsewhere)
    (own,) = (record.result.objective for record in records if record.spec.id == "d00")
    regions, _ = made.transferred(study, made.elsewhere)
    assert regions.default_objective == own
    assert regions.default_objective != regions.regions[0].best_objective


def test_echoes_change_nothing() -> None:
    study = made.config()
    records = made.proxy_records(study)
    echo = records[0].model_copy(update={"spec": records[0].spec.model_copy(update={"id": "e0000", "origin": "echo"})})
    options = made.section(study, "transfer")
    plain = transfer(options, trials_frame(records), made.PROXY, made.TARGET)
    assert transfer(options, trials_frame([*records, echo]), made.PROXY, made.TARGET) == plain


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_trials_give_a_region_that_excludes_nothing(count: int) -> None:
    study = made.config()
    records = made.proxy_records(study)[:count]
    options = made.section(study, "transfer")
    regions, starts = transfer(options, trials_frame(records), made.PROXY, made.TARGET)
    assert regions.top == min(3, count)
    assert len(regions.regions) == 1
    assert len(starts.starts) >= 3
    if count < 4:
        assert regions.regions[0].volume == pytest.approx(1)


def test_no_complete_trial_is_an_error_that_counts() -> None:
    study = made.config()
    records = [made.record(record.spec, status="diverged") for record in made.proxy_records(study)[:3]]
    with pytest.raises(UnderstudyError, match="3 diverged"):
        transfer(made.section(study, "transfer"), trials_frame(records), made.PROXY, made.TARGET)


def write_inputs(folder: Path, study: StudyConfig, loss: made.Loss = made.bowl) -> None:
    """What the command reads."""
    trials_frame(made.proxy_records(study, loss)).write_parquet(folder / "trials.parquet")
    write_json(folder / "transfer.json", made.section(study, "transfer"))
    write_json(folder / "proxy.json", made.PROXY)
    write_json(folder / "target.json", made.TARGET)


def run_command(folder: Path, run: str) -> Path:
    """Run it; the folder of its outputs."""
    words = {
        "settings": "transfer.json",
        "trials": "trials.parquet",
        "proxy-model": "proxy.json",
        "target-model": "target.json",
        "regions": f"{run}/regions.json",
        "starts": f"{run}/starts.json",
    }
    assert main(["transfer", *(part for k, v in words.items() for part in (f"--{k}", str(folder / v)))]) == 0
    return folder / run


def test_losses_as_good_as_chance_are_told_before_the_target_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, words = made.config(proxy__sobol=32), "It can't be told from"
    write_inputs(tmp_path, study)
    explained = read_model(run_command(tmp_path, "bowl") / "regions.json", Regions).explained
    assert explained is not None
    assert explained.value > 0.5
    assert words not in capsys.readouterr().err

    write_inputs(tmp_path, study, lambda spec: 2 + random.Random(spec.id).random())
    explained = read_model(run_command(tmp_path, "noise") / "regions.json", Regions).explained
    assert explained is not None
    assert f"{words} {explained.trials} trials" in capsys.readouterr().err


def test_the_command_writes_both_files_the_same_each_time(tmp_path: Path) -> None:
    study = made.config()
    write_inputs(tmp_path, study)
    folders = [run_command(tmp_path, run) for run in ("a", "b")]
    contents = [[(folder / name).read_bytes() for name in ("regions.json", "starts.json")] for folder in folders]
    assert contents[0] == contents[1]
    regions, starts = made.transferred(study)
    assert read_model(tmp_path / "a" / "regions.json", Regions) == regions
    assert read_model(tmp_path / "a" / "starts.json", Starts) == starts
