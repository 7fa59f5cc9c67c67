"""From examples to one long row of tokens, against a plain version with loops."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy.data.encoding import Encoded
from understudy.train.packed.rows import BUCKET, ROUND, Corpus, Rows, Spans, slot_lengths


@st.composite
def corpora(draw: st.DrawFn) -> list[Encoded]:
    """Tokens tell of their example and position."""
    examples = []
    for number in range(draw(st.integers(1, 6))):
        length = draw(st.integers(2, 50))
        start = draw(st.integers(0, length - 1))
        examples.append(Encoded([100 * number + position for position in range(length)], start, 1))
    return examples


Wanted = list[tuple[int, list[int]]]


@st.composite
def passes(draw: st.DrawFn) -> tuple[list[Encoded], Wanted, int]:
    examples = draw(corpora())
    chosen = st.lists(st.integers(0, len(examples) - 1), min_size=1, max_size=5)
    slots = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True))
    return examples, [(slot, draw(chosen)) for slot in slots], draw(st.sampled_from([1, 64]))


def plain(examples: list[Encoded], wanted: Wanted) -> list[list[tuple[int, int]]]:
    """Each trial's tokens as (token, position), row by row."""
    return [
        [(token, position) for index in chosen for position, token in enumerate(examples[index].input_ids)]
        for _, chosen in wanted
    ]


def check_spans(spans: Spans, wanted: Wanted, counts: list[int], tile: int) -> None:
    """Shares in order, one after the other, rounded up, and every tile's owner."""
    end = 0
    for (slot, start, stop), (expected, _), count in zip(spans.each, wanted, counts, strict=True):
        assert (slot, start, stop) == (expected, end, end + -(-count // tile) * tile)
        end = stop
    assert spans.end == end
    if tile > 1:
        owners = [slot for slot, start, stop in spans.each for _ in range((stop - start) // spans.tile)]
        assert spans.owners.tolist() == owners
        assert spans.tile % tile == 0


@given(passes())
def test_tokens_stand_trial_by_trial(given: tuple[list[Encoded], Wanted, int]) -> None:
    examples, wanted, tile = given
    rows = Corpus(examples, torch.device("cpu")).rows(wanted, tile)
    tokens = plain(examples, wanted)
    check_spans(rows.spans, wanted, [len(own) for own in tokens], tile)
    assert len(rows.ids) == len(rows.positions) == len(rows.places) == -(-rows.spans.end // ROUND) * ROUND
    for (_, start, _), own in zip(rows.spans.each, tokens, strict=True):
        part = slice(start, start + len(own))
        assert list(zip(rows.ids[part].tolist(), rows.positions[part].tolist(), strict=True)) == own


def real(rows: Rows, tokens: list[list[tuple[int, int]]]) -> list[int]:
    """Where tokens stand that belong to somebody."""
    starts = [start for _, start, _ in rows.spans.each]
    return [start + offset for start, own in zip(starts, tokens, strict=True) for offset in range(len(own))]


@given(passes())
def test_completion_tokens_are_predicted_one_before(given: tuple[list[Encoded], Wanted, int]) -> None:
    examples, wanted, tile = given
    rows = Corpus(examples, torch.device("cpu")).rows(wanted, tile)
    expected, counts = [], []
    for (_, start, _), (_, chosen) in zip(rows.spans.each, wanted, strict=True):
        place, before = start, len(expected)
        for index in chosen:
            example = examples[index]
            first = max(example.completion_start, 1)
            expected += [(place + t - 1, example.input_ids[t]) for t in range(first, len(example.input_ids))]
            place += len(example.input_ids)
        counts.append(len(expected) - before)
    assert list(rows.counts) == counts
    check_spans(rows.answer_spans, wanted, counts, tile)
    assert len(rows.predicting) == -(-rows.answer_spans.end // ROUND) * ROUND
    assert rows.targets.tolist() == [token for _, token in expected]
    assert rows.predicting[rows.answers].tolist() == [place for place, _ in expected]
    shares = torch.split(rows.answers, counts)
    for share, (_, start, _) in zip(shares, rows.answer_spans.each, strict=True):
        assert share.tolist() == list(range(start, start + len(share)))


@given(passes())
def test_attentions_slots_hold_whole_rows_and_lead_back(given: tuple[list[Encoded], Wanted, int]) -> None:
    examples, wanted, tile = given
    rows = Corpus(examples, torch.device("cpu")).rows(wanted, tile)
    ids, slots = rows.ids[rows.slots].tolist(), rows.slots.tolist()
    found, end = [], 0
    for bucket in rows.buckets:
        assert bucket.start == end
        assert bucket.length % BUCKET == 0
        for row in range(bucket.rows):
            own = ids[end + row * bucket.length : end + (row + 1) * bucket.length]
            length = len(examples[own[0] // 100].input_ids)
            assert bucket.length - BUCKET < length <= bucket.length
            assert own[:length] == examples[own[0] // 100].input_ids
            assert own[length:] == [own[length - 1]] * (bucket.length - length)
            found.append(own[0] // 100)
        end += bucket.rows * bucket.length
    assert end == len(slots)
    assert [bucket.length for bucket in rows.buckets] == sorted({bucket.length for bucket in rows.buckets})
    assert sorted(found) == sorted(index for _, chosen in wanted for index in chosen)
    places, somebodys = rows.places.tolist(), set(real(rows, plain(examples, wanted)))
    for token, place in enumerate(places):
        assert place == len(slots) if token not in somebodys else slots[place] == token
    assert len({places[token] for token in somebodys}) == len(somebodys)


def test_slots_of_attention_have_few_lengths_where_kernels_are_dear() -> None:
    lengths = np.arange(1, 4097)
    found = {few: slot_lengths(lengths, few) for few in (False, True)}
    for rounded in found.values():
        assert (rounded >= lengths).all()
        assert (rounded % BUCKET == 0).all()
    assert (found[False] - lengths < BUCKET).all()
    assert (found[True] - lengths <= np.maximum(BUCKET - 1, lengths / 4)).all()
    used = {few: len(np.unique(rounded[199:2000])) for few, rounded in found.items()}
    assert used == {False: 113, True: 14}
    assert np.array_equal(*(rounded[:127] for rounded in found.values()))


@given(passes())
def test_a_trials_rows_do_not_depend_on_the_others(given: tuple[list[Encoded], Wanted, int]) -> None:
    examples, wanted, tile = given
    corpus = Corpus(examples, torch.device("cpu"))
    rows = corpus.rows(wanted, tile)
    for number, (slot, chosen) in enumerate(wanted):
        alone = corpus.rows([(slot, chosen)], tile)
        _, start, stop = rows.spans.each[number]
        assert alone.spans.each == ((slot, 0, stop - start),)
        assert torch.equal(alone.ids[: stop - start], rows.ids[start:stop])
        assert alone.counts == (rows.counts[number],)
        assert torch.equal(alone.targets, torch.split(rows.targets, list(rows.counts))[number])


def test_counts_of_some_examples() -> None:
    corpus = Corpus([Encoded([5, 6, 7], 1, 1), Encoded([8, 9], 0, 1), Encoded([1, 2, 3, 4], 3, 1)], torch.device("cpu"))
    assert len(corpus) == 3
    assert corpus.tokens([0, 0, 2]) == 10
    assert corpus.completion_tokens([0, 1, 2]) == 2 + 1 + 1  # nothing predicts a first token
