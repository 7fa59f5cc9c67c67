"""The config of halving and of early stopping: one line each, and refused where they could stop nothing."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from shipped_config import problems, schema_for_yaml, shipped
from understudy import config
from understudy.sections import SearchSection, sections


@pytest.fixture
def raw() -> dict[str, Any]:
    return shipped()


HALVING: list[tuple[int, dict[str, int], int]] = [
    # size of a pack, settings, size of a bracket
    (18, {}, 9),
    (9, {"rungs": 2, "reduction_factor": 3}, 9),
    (20, {}, 10),
    (16, {}, 8),
    (26, {}, 13),
    (17, {}, 17),
    (4, {}, 4),
    (16, {"rungs": 3, "reduction_factor": 2}, 8),
    (6, {"rungs": 1, "reduction_factor": 2}, 2),
    (20, {"bracket": 5}, 5),
]


@pytest.mark.parametrize(("pack_size", "halving", "bracket"), HALVING)
def test_halving_is_one_line(raw: dict[str, Any], pack_size: int, halving: dict[str, int], bracket: int) -> None:
    raw["proxy"] |= {"pack_size": pack_size, "halving": halving}
    jsonschema.validate(raw, schema_for_yaml())
    section = sections(config.parse(raw))["search"]
    assert isinstance(section, SearchSection)
    assert section.halving is not None
    assert section.halving.bracket == bracket


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"proxy": {"pack_size": 2, "halving": {}}}, "make brackets of at least 4 trials (`pack_size` is 2)"),
        ({"proxy": {"pack_size": 1, "halving": {"rungs": 1}}}, "at least 2 trials"),
        ({"proxy": {"random": 8, "sobol": 9, "grid": {}, "halving": {}}}, "`random` 8, `sobol` 9, `grid` 0"),
        ({"proxy": {"halving": {}}, "execution": {"proxy": {"packed": False}}}, "`execution.proxy.packed` is false"),
        ({"proxy": {"halving": {}}, "execution": {"proxy": {"gradient_checkpointing": True}}}, "one after the other"),
        ({"proxy": {"halving": {}}, "execution": {"device": "cpu", "proxy": {"dtype": "bfloat16"}}}, "is bfloat16"),
        ({"proxy": {"halving": {}}, "defaults": {"attention_dropout": 0.1}}, "`attention_dropout` above 0 train alone"),
        (
            {
                "proxy": {"halving": {}},
                "space": {"attention_dropout": {"low": 0.1, "high": 0.2}},
                "defaults": {"attention_dropout": 0.1},
            },
            "`attention_dropout` above 0 train alone",
        ),
        (
            {"proxy": {"halving": {}, "grid": {}}, "space": {"lora_target_modules": ["lm_head", "q_proj,lm_head"]}},
            "all `lora_target_modules` name others",
        ),
    ],
)
def test_halving_that_could_stop_nothing_is_refused(raw: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    for section, values in changes.items():
        raw[section] |= values
    (text,) = problems(raw).values()
    assert words in text


@pytest.mark.parametrize(
    "changes",
    [
        {"proxy": {"halving": None}, "defaults": {"attention_dropout": 0.1}},
        {"proxy": {"halving": {}}, "space": {"attention_dropout": {"low": 0.0, "high": 0.2}}},
        {"proxy": {"halving": {}}, "space": {"attention_dropout": [0.1, 0.2]}},  # the grid's trials have none
        {"proxy": {"halving": {}}, "space": {"lora_target_modules": ["lm_head", "q_proj"]}},
        {"proxy": {"halving": {}}, "execution": {"proxy": {"dtype": "bfloat16"}}},  # on GPUs that is as it should be
    ],
)
def test_halving_that_could_stop_something_is_taken(raw: dict[str, Any], changes: dict[str, Any]) -> None:
    for section, values in changes.items():
        raw[section] |= values
    assert (config.parse(raw).proxy.halving is None) == (changes["proxy"]["halving"] is None)


def test_halving_changes_the_plan_of_packs_alone(raw: dict[str, Any]) -> None:
    before = sections(config.parse(raw))
    raw["proxy"]["halving"] = {}
    after = sections(config.parse(raw))
    assert [name for name in before if before[name] != after[name]] == ["study", "search"]


def test_early_stopping_is_one_line_that_reaches_proposals_alone(raw: dict[str, Any]) -> None:
    before = sections(config.parse(raw))
    raw["training"]["evaluations"] += 1
    with_more = sections(config.parse(raw))
    assert with_more["target"] == before["target"]
    raw["target"]["early_stopping"] = {}
    jsonschema.validate(raw, schema_for_yaml())
    after = sections(config.parse(raw))
    assert [name for name in before if with_more[name] != after[name]] == ["study", "target"]
    assert after["target"].model_dump()["evaluations"] == raw["training"]["evaluations"]


def test_early_stopping_needs_something_to_judge_by(raw: dict[str, Any]) -> None:
    raw["target"]["early_stopping"] = {}
    raw["training"]["evaluations"] = 1
    (text,) = problems(raw).values()
    assert "`training.evaluations` is 1; raise it to at least 2" in text
    raw["target"]["early_stopping"] = None
    config.parse(raw)
    raw["training"]["evaluations"] = 2
    raw["target"]["early_stopping"] = {"visible": 9}
    config.parse(raw)
