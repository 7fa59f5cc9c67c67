"""How trials are dealt to packs: by length, in blocks, in brackets; and which of them train alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

import search_study as made
from understudy.config import StudyConfig
from understudy.graph import BLOCK, echo_packs, proxy_packs, totals
from understudy.packing import PACKABLE, reason_for_solo
from understudy.search.planning import plan_echo, plan_pack, solo_text
from understudy.trial import ModelCard, Pack, ResolvedExecution, TrialSpec


def packs(study: StudyConfig, origin: str, **changes: Any) -> dict[str, Pack]:
    """An origin's packs as the workflow plans them; `changes` are the execution's."""
    settings = made.section(study, "search")
    execution = made.EXECUTION.model_copy(update=changes)
    return {
        name: plan_pack(settings, made.PROXY, execution, name, place)
        for name, place in proxy_packs(study).items()
        if place.origin == origin
    }


def ids(pack: Pack) -> list[str]:
    return [spec.id for spec in pack.specs]


def steps(spec: TrialSpec) -> float:
    """Optimizer steps, up to a factor."""
    return float(spec.hyperparameters["num_train_epochs"]) / int(spec.hyperparameters["batch_size"])


@pytest.mark.parametrize("count", [1, 4, 15, 16, 17, 37, 48])
def test_every_trial_is_in_one_pack(count: int) -> None:
    study = made.config(proxy__random=count, proxy__pack_size=4)
    planned = packs(study, "random")
    assert len(planned) == -(-count // 4)
    found = list(itertools.chain.from_iterable(ids(pack) for pack in planned.values()))
    assert sorted(found) == [f"r{number:04d}" for number in range(count)]
    assert all(ids(pack) == sorted(ids(pack)) for pack in planned.values())
    assert all(len(pack.specs) == 4 for pack in list(planned.values())[:-1])
    assert sum(place.count for place in proxy_packs(study).values()) + 16 == totals(study)["proxy"]


def test_trials_of_a_pack_are_of_similar_length() -> None:
    planned = list(packs(made.config(proxy__random=40, proxy__pack_size=4), "random").values())
    for block in (planned[:BLOCK], planned[BLOCK : 2 * BLOCK], planned[2 * BLOCK :]):
        for longer, shorter in itertools.pairwise(block):
            assert min(map(steps, longer.specs)) >= max(map(steps, shorter.specs))
    first = [number for pack in planned[:BLOCK] for number in ids(pack)]
    assert sorted(first) == [f"r{number:04d}" for number in range(16)]
    ties = [spec for pack in planned[:BLOCK] for spec in sorted(pack.specs, key=lambda spec: -steps(spec))]
    assert [spec.id for spec in ties] == [spec.id for spec in sorted(ties, key=lambda s: (-steps(s), s.id))]
    contiguous = [[f"r{number:04d}" for number in range(start, start + 4)] for start in range(0, 40, 4)]
    assert [ids(pack) for pack in planned] != contiguous


@pytest.mark.parametrize(("before", "after"), [(16, 32), (20, 21), (22, 48), (31, 64)])
def test_an_extension_forms_only_the_last_block_anew(before: int, after: int) -> None:
    few, many = (packs(made.config(proxy__random=n, proxy__pack_size=4), "random") for n in (before, after))
    whole = before // 16 * BLOCK
    assert list(few.values())[:whole] == list(many.values())[:whole]
    specs = [{spec.id: spec for pack in planned.values() for spec in pack.specs} for planned in (few, many)]
    assert specs[0].items() <= specs[1].items()


def halved(**changes: Any) -> StudyConfig:
    values = {"proxy__random": 40, "proxy__pack_size": 18, "proxy__halving": {}} | changes
    return made.config(**values)


def test_brackets_are_consecutive_and_an_incomplete_one_is_not_halved() -> None:
    first, second, third = packs(halved(), "random").values()
    assert first.halving is not None
    assert first.halving.rungs == pytest.approx((1 / 9, 1 / 3))
    assert (first.halving.reduction_factor, first.halving.metric) == (3, "eval_loss")
    assert [list(bracket) for bracket in first.halving.brackets] == [ids(first)[:9], ids(first)[9:]]
    assert ids(first) == [f"r{number:04d}" for number in range(18)]
    assert second.halving is not None
    assert list(second.halving.brackets[1]) == ids(second)[9:]
    assert ids(third) == [f"r{number:04d}" for number in range(36, 40)]
    assert third.halving is not None  # its trials are scored, for an extension
    assert third.halving.brackets == ()
    assert third.halving.rungs == first.halving.rungs
    assert solo_text(third).splitlines()[1:] == [
        "brackets of 3-fold halving: 0; 4 of 4 trials are in none and run in full"
    ]
    assert {pack.notes for pack in (first, second, third)} == {()}


@pytest.mark.parametrize(("before", "after"), [(36, 40), (25, 40), (45, 50)])
def test_an_extension_keeps_every_bracket(before: int, after: int) -> None:
    brackets = []
    for count in (before, after):
        planned = packs(halved(proxy__random=count), "random").values()
        brackets.append([bracket for pack in planned if pack.halving for bracket in pack.halving.brackets])
    assert brackets[0] == brackets[1][: len(brackets[0])]
    assert [len(found) for found in brackets] == [before // 9, after // 9]


def test_defaults_and_echoes_are_never_halved() -> None:
    study = halved(proxy__pack_size=3, proxy__halving={"rungs": 1})
    (default,) = packs(study, "default").values()
    assert len(default.specs) == 3
    assert default.halving is not None
    assert default.halving.brackets == ()
    regions, starts = made.transferred(study)
    from pathlib import Path

    proposals = [made.next_proposal(study, Path(), n, regions, starts) for n in range(3)]
    settings = made.section(study, "search")
    echo = plan_echo(settings, made.PROXY, made.EXECUTION, regions.scale, "echo-000", proposals)
    assert (len(echo.specs), echo.halving, echo.solo) == (3, default.halving, {})
    assert all(len(pack.halving.brackets[0]) == 3 for pack in packs(study, "sobol").values() if pack.halving)


def test_trials_that_train_alone_are_in_no_bracket() -> None:
    study = halved(space__attention_dropout=[0.0, 0.1])
    dropped, brackets = 0, 0
    for pack in packs(study, "random").values():
        masked = {spec.id for spec in pack.specs if float(spec.hyperparameters["attention_dropout"]) > 0}
        assert pack.solo.keys() == masked
        assert all("attention" in reason for reason in pack.solo.values())
        found = [trial for bracket in (pack.halving.brackets if pack.halving else ()) for trial in bracket]
        packable = [trial for trial in ids(pack) if trial not in masked]
        assert found == packable[: len(packable) // 9 * 9]
        dropped, brackets = dropped + len(masked), brackets + len(found) // 9
    assert 10 < dropped < 30
    assert 1 <= brackets <= 3


def test_packs_without_a_bracket_say_so() -> None:
    study = halved(space__attention_dropout=[0.0, 0.1, 0.2, 0.3])
    without = [pack for pack in packs(study, "random").values() if not pack.halving or not pack.halving.brackets]
    noted = [pack for pack in without if pack.notes]
    assert [len(pack.specs) for pack in without if not pack.notes] == [4]  # too few as they are
    assert noted
    for pack in noted:
        alone = len(pack.solo)
        assert pack.notes == (f"no trial is halved: a bracket takes 9, but of 18 trials {alone} train alone",)
        assert pack.notes[0] in solo_text(pack).splitlines()


def few_configurations(**changes: Any) -> StudyConfig:
    """Six in all: most trials are copies of others."""
    space = {"learning_rate": [1e-3, 3e-3, 1e-2], "lora_r": [4, 32]}
    halving = {"rungs": 1, "bracket": 2}
    values = {"space": space, "proxy__grid": {"learning_rate": [1e-3], "lora_r": [4, 32]}, "proxy__halving": halving}
    return made.config(**{**values, "proxy__pack_size": 6, "proxy__random": 18, "proxy__sobol": 16, **changes})


def test_copies_are_in_no_bracket() -> None:
    study = few_configurations()
    for origin in ("grid", "sobol", "random"):
        planned = packs(study, origin).values()
        specs = [
            spec for other in ("default", *{"grid", origin}) for p in packs(study, other).values() for spec in p.specs
        ]
        first: dict[str, str] = {}
        order = {"d": 0, "g": 1, "q": 2, "r": 2}
        for spec in sorted(specs, key=lambda spec: (order[spec.id[0]], spec.id)):
            first.setdefault(str(spec.hyperparameters), spec.id)
        bracketed = [id for pack in planned if pack.halving for bracket in pack.halving.brackets for id in bracket]
        own = [spec.id for pack in planned for spec in pack.specs if first[str(spec.hyperparameters)] == spec.id]
        assert set(bracketed) <= set(own)
        assert len(own) < sum(len(pack.specs) for pack in planned)
        if origin != "grid":
            assert bracketed
            assert any("repeat other trials" in note for pack in planned for note in pack.notes)


@pytest.mark.parametrize("key", ["proxy__random", "proxy__sobol"])
def test_an_extension_keeps_brackets_among_copies(key: str) -> None:
    found = []
    for count in (12, 24):
        study = few_configurations(**{key: count})
        planned = [pack for origin in ("random", "sobol", "grid") for pack in packs(study, origin).values()]
        found.append({pack.id: pack.halving for pack in planned})
    assert found[0].items() <= found[1].items()


def test_without_packing_every_trial_says_why_it_is_alone() -> None:
    (default,) = packs(made.config(), "default", packing=None).values()
    assert default.solo.keys() == set(ids(default))
    assert solo_text(default).splitlines() == [
        "0 of 3 trials share the base",
        "3 alone: packing is switched off by `execution.proxy.packed: false`",
    ]


@pytest.mark.parametrize(
    ("spec", "card", "execution", "words"),
    [
        ({"method": "full"}, {}, {}, "full fine-tuning"),
        ({}, {"model_type": "gpt2"}, {}, "`gpt2`, only on llama, qwen2"),
        ({}, {}, {"packing": None}, "packed: false"),
        ({}, {}, {"gradient_checkpointing": True}, "gradient_checkpointing"),
        ({"hyperparameters": {"attention_dropout": 0.1}}, {}, {}, "the trial's own seed"),
    ],
)
def test_reasons_to_train_alone(
    spec: dict[str, Any], card: dict[str, Any], execution: dict[str, Any], words: str
) -> None:
    made_spec = TrialSpec(id="r0000", stage="proxy", origin="random", hyperparameters={}, seed=1)
    trial: TrialSpec = made_spec.model_copy(update=spec)
    model: ModelCard = made.PROXY.model_copy(update=card)
    how: ResolvedExecution = made.EXECUTION.model_copy(update=execution)
    assert words in (reason_for_solo(trial, model, how) or "")
    assert reason_for_solo(made_spec, made.PROXY, made.EXECUTION) is None


def test_packable_types_are_transformers_names() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert set(PACKABLE) <= set(CONFIG_MAPPING_NAMES)


def test_echo_packs_hold_proposals_in_order() -> None:
    study = made.config(target__trials=40, proxy__pack_size=4)
    numbers = [number for place in echo_packs(study).values() for number in place.numbers]
    assert numbers == list(range(40))
    assert [place.count for place in echo_packs(study).values()] == [4] * 10
