"""The space: every value has a unit coordinate and comes back from it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from understudy.space import Choices, Range, at_rest, consistent, widen

floats = st.floats(1e-6, 1e6, allow_nan=False)


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    low = draw(floats)
    return Range(low=low, high=low * draw(st.floats(1.01, 1e3)), log=draw(st.booleans()))


@given(ranges(), st.floats(0, 1))
def test_a_range_holds_what_it_gives_and_finds_it_again(parameter: Range, u: float) -> None:
    value = parameter.from_unit(u)
    assert parameter.contains(value)
    assert abs(parameter.to_unit(value) - u) < 1e-6


@given(st.integers(1, 50), st.integers(1, 50), st.booleans())
def test_whole_numbers_are_equally_likely_on_a_linear_scale_and_come_back(low: int, width: int, log: bool) -> None:
    parameter = Range(low=low, high=low + width, log=log, integer=True)
    values = [parameter.from_unit(u) for u in np.linspace(0, 1, 2001)]
    assert all(isinstance(value, int) for value in values)
    assert set(values) == set(range(low, low + width + 1)) or log
    assert all(parameter.from_unit(parameter.to_unit(value)) == value for value in set(values))
    if not log:
        counts = np.unique(values, return_counts=True)[1]
        assert counts.max() - counts.min() <= 2


def test_a_log_range_is_geometric() -> None:
    parameter = Range(low=1e-4, high=1e-2, log=True)
    assert np.isclose(parameter.from_unit(0.5), 1e-3)
    assert np.isclose(parameter.to_unit(1e-3), 0.5)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=9, unique=True), st.floats(0, 1))
def test_choices_give_each_value_its_interval(values: list[int], u: float) -> None:
    parameter = Choices(choices=tuple(values))
    chosen = parameter.from_unit(u)
    assert abs(parameter.to_unit(chosen) - u) <= 0.5 / len(values) + 1e-9
    assert parameter.ordered == (values == sorted(values))


def test_widening_holds_the_newcomers_and_keeps_choices_ascending() -> None:
    space = {"learning_rate": Range(low=1e-4, high=1e-2, log=True), "lora_r": Choices(choices=(4, 16))}
    wide = widen(space, [{"learning_rate": 5e-2, "lora_r": 8}])
    assert wide["learning_rate"] == Range(low=1e-4, high=5e-2, log=True)
    assert wide["lora_r"] == Choices(choices=(4, 8, 16))


CONDITIONAL: dict[str, Range | Choices] = {
    "lr_scheduler_type": Choices(choices=("constant", "linear", "cosine")),
    "lora_r": Choices(choices=(4, 16), when={"lr_scheduler_type": ("linear", "cosine")}, rest=8),
    "warmup_ratio": Range(low=0, high=0.2, when={"lr_scheduler_type": ("linear",), "lora_r": (4, 8)}, rest=0.03),
}


def test_a_parameter_rests_unless_all_its_conditions_hold() -> None:
    searched = {"lr_scheduler_type": "linear", "lora_r": 4, "warmup_ratio": 0.1}
    assert at_rest(CONDITIONAL, searched) == set()
    assert consistent(CONDITIONAL, searched) == searched
    assert at_rest(CONDITIONAL, {**searched, "lora_r": 16}) == {"warmup_ratio"}
    resting = consistent(CONDITIONAL, {**searched, "lr_scheduler_type": "constant", "batch_size": 4})
    assert resting == {"lr_scheduler_type": "constant", "lora_r": 8, "warmup_ratio": 0.03, "batch_size": 4}
    assert consistent(CONDITIONAL, resting) == resting


def test_a_condition_is_judged_by_the_value_at_rest_and_not_without_one() -> None:
    space = {**CONDITIONAL, "warmup_ratio": Range(low=0, high=0.2, when={"lora_r": (8,)}, rest=0.03)}
    assert at_rest(space, {"lr_scheduler_type": "constant", "lora_r": 4, "warmup_ratio": 0.1}) == {"lora_r"}
    assert at_rest(space, {"lr_scheduler_type": "linear", "lora_r": 4, "warmup_ratio": 0.1}) == {"warmup_ratio"}
    assert at_rest(space, {"warmup_ratio": 0.1}) == set()
