"""From the top trials to regions: how many, what they hold, what they fix."""

from __future__ import annotations

import math
import re

import pytest

import search_study as made
from understudy.search.guidance import outside
from understudy.search.transfer import transfer
from understudy.space import Choices
from understudy.summary.tables import trials_frame
from understudy.trial import TrialSpec


def two_bowls(spec: TrialSpec) -> float:
    """Good at two separate rates, each with its own rank."""
    values = spec.hyperparameters
    rate, rank = math.log10(float(values["learning_rate"])), int(values["lora_r"])
    far = 0.0 if (rank >= 16) == (rate > -2.5) else 1.0
    return 2 + min(abs(rate + 3.5), abs(rate + 1.5)) + far


def test_one_region_around_one_optimum() -> None:
    regions, _ = made.transferred(made.config())
    (region,) = regions.regions
    rate = region.boxes["learning_rate"]
    assert rate.low is not None
    assert rate.high is not None
    assert rate.low < made.BEST_PROXY_RATE * made.FACTOR < rate.high
    assert rate.high / rate.low < 100
    assert "0.424" in rate.reason
    whole = region.boxes["weight_decay"]
    assert (whole.low, whole.high) == (0.0, 0.3)
    assert "too little evidence" in whole.reason
    assert 0 < region.volume < 1
    assert region.share == 1
    assert regions.top == len(region.trials) == math.ceil(0.25 * regions.complete)
    assert regions.trials == 51


def test_what_is_negligible_is_fixed_at_the_best_trials_image_and_keeps_its_range() -> None:
    """The loss has a weak third hyperparameter, so that of the other eight some are negligible, by both limits."""
    study = made.config(proxy__random=60, transfer__fix_below=0.05)
    records = {record.spec.id: record.spec for record in made.proxy_records(study)}
    regions, _ = made.transferred(study)
    (region,) = regions.regions
    best, held = records[region.trials[0]], {n: box for n, box in region.boxes.items() if box.fixed is not None}
    assert held.keys() < regions.space.keys() - {"learning_rate", "lora_r"}
    assert len(held) >= 3
    for name, box in region.boxes.items():
        p = float(re.search(r"p = ([\d.]+)", box.reason)[1])  # type: ignore[index]
        assert (name in held) == (box.importance < 0.05 and p > 0.2)
    for name, box in held.items():
        assert box.fixed == best.hyperparameters[name]
        assert f"it is negligible: the value of {region.trials[0]} will do" in box.reason
        parameter = regions.space[name]
        whole = parameter.choices if isinstance(parameter, Choices) else (parameter.low, parameter.high)
        assert (box.choices or (box.low, box.high)) == whole
        assert name in region.reason
    free, _ = made.transferred(made.config(proxy__random=60, transfer__fix_below=0.0))
    assert all(box.fixed is None for box in free.regions[0].boxes.values())
    assert free.regions[0].volume == region.volume
    default, _ = made.transferred(made.config(proxy__random=60))
    fixed_by_default = {n for n, box in default.regions[0].boxes.items() if box.fixed is not None}
    assert fixed_by_default == {n for n in held if held[n].importance < 0.01} != set()


def test_a_negligible_learning_rate_is_fixed_at_its_rescaled_value() -> None:
    study = made.config(
        proxy__random=60,
        proxy__grid={},
        transfer__fix_below=0.05,
        space__learning_rate={"low": 1e-3, "high": 1e-2, "log": True},
    )

    def loss(spec: TrialSpec) -> float:
        return 2 + float(spec.hyperparameters["warmup_ratio"])

    regions, starts = made.transferred(study, loss)
    best = next(start for start in starts.starts if start.parents == regions.regions[0].trials[:1])
    rate = regions.regions[0].boxes["learning_rate"].fixed
    records = {record.spec.id: record.spec for record in made.proxy_records(study)}
    assert rate == best.hyperparameters["learning_rate"]
    assert rate == pytest.approx(float(records[best.parents[0]].hyperparameters["learning_rate"]) * made.FACTOR)


def test_nothing_is_fixed_where_little_was_seen() -> None:
    study = made.config(transfer__fix_below=0.05)
    options, records = made.section(study, "transfer"), made.proxy_records(study)
    counts = {}
    for count in (3, 19, 20, 51):
        regions, _ = transfer(options, trials_frame(records[:count]), made.PROXY, made.TARGET)
        counts[count] = sum(box.fixed is not None for box in regions.regions[0].boxes.values())
    assert counts[3] == counts[19] == 0
    assert counts[20] > 0
    assert counts[51] > 0


def test_two_regions_around_two_optima() -> None:
    study = made.config(proxy__random=60, proxy__sobol=0)
    regions, starts = made.transferred(study, two_bowls)
    assert len(regions.regions) >= 2
    assert math.fsum(region.share for region in regions.regions) == pytest.approx(1)
    assert [region.best_objective for region in regions.regions] == sorted(r.best_objective for r in regions.regions)
    rates = [(r.boxes["learning_rate"].low or 0) * (r.boxes["learning_rate"].high or 0) for r in regions.regions]
    assert max(rates) > 50 * min(rates)
    firsts = [start.parents[0] for start in starts.starts if start.origin == "transferred"]
    assert set(firsts[: len(regions.regions)]) == {region.trials[0] for region in regions.regions}
    assert sum(len(region.trials) for region in regions.regions) == regions.top


def test_a_regions_share_is_the_weight_of_its_trials_by_rank() -> None:
    """Two regions of unequal size, of which the smaller one has the better trials."""
    study = made.config(proxy__random=60, proxy__sobol=0)
    regions, _ = made.transferred(study, two_bowls)
    complete = [record for record in made.proxy_records(study, two_bowls) if record.result.objective is not None]
    order = [r.spec.id for r in sorted(complete, key=lambda record: (record.result.objective, record.spec.id))]
    weights = [sum(regions.top - order.index(trial) for trial in region.trials) for region in regions.regions]
    assert [region.share for region in regions.regions] == pytest.approx([weight / sum(weights) for weight in weights])
    assert len({len(region.trials) for region in regions.regions}) > 1


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("padding", [0.0, 0.1, 1.0])
def test_boxes_lie_in_the_space_and_hold_their_trials(method: str, padding: float) -> None:
    study = made.config(
        target__method=method,
        transfer__padding=padding,
        space__lora_alpha={"low": 8, "high": 64},
        space__batch_size={"low": 4, "high": 32},
    )
    regions, starts = made.transferred(study, two_bowls)
    images = {start.parents[0]: start for start in starts.starts if start.origin == "transferred"}
    assert ("lora_r" in regions.space) == (method == "lora")
    for region in regions.regions:
        assert list(region.boxes) == list(regions.space)
        for name, box in region.boxes.items():
            parameter = regions.space[name]
            ends = box.choices if box.choices is not None else (box.low, box.high)
            assert all(parameter.contains(end) for end in ends if end is not None)
            assert box.choices or (box.low is not None and box.high is not None and box.low <= box.high)
        for trial in region.trials:
            if trial in images:
                assert outside(region, images[trial].hyperparameters) == []
    for start in starts.starts:
        assert all(parameter.contains(start.hyperparameters[name]) for name, parameter in regions.space.items())
        assert ("lora_r" in start.hyperparameters) == (method == "lora")
    assert all(parameter.contains(starts.default[name]) for name, parameter in regions.space.items())
