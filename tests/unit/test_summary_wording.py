"""What the headline and the report say of a study, sentence by sentence."""

from __future__ import annotations

import pytest

from understudy.artifacts import Interval
from understudy.space import Choices, Range
from understudy.summary.wording import (
    agreement_text,
    apart_text,
    edges_text,
    explained_text,
    few_seeds_text,
    surface_text,
    trust_check_text,
    trust_text,
    verdict,
)


def test_what_lies_at_an_end_of_its_range_is_told() -> None:
    space = {
        "learning_rate": Range(low=1e-4, high=1e-2, log=True),
        "lora_dropout": Range(low=0.0, high=0.1),
        "lora_r": Choices(choices=(4, 8, 16)),
        "lr_scheduler_type": Choices(choices=("linear", "cosine", "constant")),
        "batch_size": Choices(choices=(8, 16)),
    }
    inside = {"learning_rate": 1e-3, "lora_dropout": 0.0, "lora_r": 8, "lr_scheduler_type": "linear", "batch_size": 8}
    assert edges_text(inside, space) is None
    text = edges_text({**inside, "learning_rate": 9.9e-3, "lora_r": 4}, space)
    assert text is not None
    assert "learning_rate (0.0001 to 0.01), lora_r (4 to 16); a study with these ranges widened" in text
    assert "a study with this range widened" in str(edges_text({**inside, "lora_dropout": 0.1}, space))
    whole = {"lora_r": Range(low=4, high=32, log=True, integer=True)}
    assert [edges_text({"lora_r": rank}, whole) is None for rank in (4, 5, 31, 32)] == [False, True, True, False]
    resting = {**space, "lora_dropout": Range(low=0.0, high=0.1, when={"lora_r": (4,)}, rest=0.1)}
    assert edges_text({**inside, "lora_dropout": 0.1}, resting) is None


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.03, "the winner is better"),
        (0.0, 0.03, "may be as good"),
        (-0.01, 0.03, "may be as good"),
        (-0.03, 0.0, "may be as good"),
        (-0.03, -0.01, "default is better"),
    ],
)
def test_the_verdict_follows_the_interval(low: float, high: float, words: str) -> None:
    gain = Interval(value=(low + high) / 2, low=low, high=high, confidence=0.95)
    assert words in verdict(gain, winner_is_default=False)


def test_few_seeds_are_warned_about() -> None:
    assert [few_seeds_text(seeds) is None for seeds in (1, 4, 5, 6)] == [False, False, True, True]


def test_agreement_in_words() -> None:
    assert "much as the target does: Spearman 0.93" in agreement_text((0.93, 0.8, 0.98), 16)
    assert "doesn't rank" in agreement_text((-0.1, -0.5, 0.4), 16)
    assert "isn't known" in agreement_text(None, 2)


def test_the_surfaces_agreement_in_words() -> None:
    assert surface_text(None, 0) is None
    assert "much as they came out: Spearman 0.85 (0.70 to 0.95, 16 target trials)" in str(
        surface_text((0.85, 0.7, 0.95), 16)
    )
    assert "doesn't rank the trials as they came out: Spearman 0.10" in str(surface_text((0.1, -0.4, 0.5), 16))
    assert "Too few target trials" in str(surface_text((0.9, 0.1, 1.0), 4))
    assert "2 with a loss" in str(surface_text(None, 2))


def test_what_the_proxy_explains_in_words() -> None:
    assert explained_text(None, 0) is None
    assert "hasn't seen well: cross-validated R² 0.83, 36 trials." in str(explained_text(0.83, 36))
    assert "hasn't seen roughly" in str(explained_text(0.5, 36))
    assert "hasn't seen poorly" in str(explained_text(0.1, 36))
    assert "It can't be told from 24 trials" in str(explained_text(-0.12, 24))
    assert "(cross-validated R² 0.00)" in str(explained_text(-0.001, 24))


def test_a_trust_that_seems_to_contradict_the_agreement_is_explained() -> None:
    low, high = (0.13, -0.5, 0.6), (0.7, 0.3, 0.9)
    close, wide = apart_text(low, 12, 0.95, 0.19), apart_text(low, 12, 0.95, 0.8)
    assert "noise decides their order (from the best to the median they span 19 % of what" in str(close)
    assert "go by the rank agreement" in str(wide)
    for nothing in (
        apart_text(high, 12, 0.95, 0.19),
        apart_text(low, 12, 0.6, 0.19),
        apart_text(low, 9, 0.95, 0.19),
        apart_text(None, 12, 0.95, 0.19),
        apart_text(low, 12, None, 0.19),
        apart_text(low, 12, 0.95, None),
    ):
        assert nothing is None


def test_trust_in_words() -> None:
    assert trust_text(None) is None
    for trust, word in ((0.97, "followed"), (0.6, "in doubt"), (0.02, "left the proxy aside")):
        sentence = trust_text(trust)
        assert sentence is not None
        assert word in sentence
        assert f"{trust:.2f}" in sentence


def test_the_trust_check_is_one_sentence() -> None:
    spearman = (0.93, 0.8, 0.98)
    assert trust_check_text(None, spearman, 16) == agreement_text(spearman, 16)
    for measured, words in ((spearman, "; the proxy ranks configurations much"), (None, "; whether the proxy agrees")):
        sentence = trust_check_text(0.97, measured, 16)
        assert sentence.startswith("The sampler followed the proxy (by its model")
        assert words in sentence
        assert sentence.count(". ") == 0
