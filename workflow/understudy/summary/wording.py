"""Numbers as a person reads them: losses, intervals, durations, costs, agreement in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from understudy.artifacts import Interval
from understudy.hyperparameters import Value
from understudy.settings import Quantization
from understudy.space import Choices, Space, at_rest
from understudy.summary.style import flop_unit

# A convention of this program's, not a standard one: from which rank correlation on each word is used.
ENOUGH_PAIRS = 10  # below, a resampled rank correlation says next to nothing
ENOUGH_SEEDS = 5  # below, resampled seeds hardly show how much they differ: intervals come out a tenth too narrow
FOLLOWED, DOUBTED = 0.9, 0.5  # least trust in the proxy to be called so
ALIKE = 0.5  # least rank correlation to be called roughly alike
WORDS = ((0.8, "much"), (ALIKE, "roughly"), (0.2, "only faintly"))
PREDICTED = ((0.8, "well"), (0.5, "roughly"))  # least R² of predictions to be called so
EDGE = 0.02  # of a range: so near to its end is at it
CLOSE = 0.5  # largest spread of trials, compared with the search's, to be called close together


def value_text(value: Value | None) -> str:
    """A hyperparameter's value: four significant digits, true and false as YAML spells them."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def loss_text(value: float | None) -> str:
    """A loss, or a difference of losses, in nats per token, with four decimals."""
    return "–" if value is None else f"{value:.4f}"


def interval_text(interval: Interval, signed: bool = False) -> str:
    """`0.0270, 95 % interval 0.0150 to 0.0390`."""
    sign = "+" if signed else ""
    value, low, high = (f"{number:{sign}.4f}" for number in (interval.value, interval.low, interval.high))
    return f"{value}, {interval.confidence * 100:g} % interval {low} to {high}"


def seconds_text(seconds: float) -> str:
    """`0:01:55`, hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def flops_text(flops: float) -> str:
    """`2.94 TFLOP`."""
    scale, unit = flop_unit(flops)
    return f"{flops / scale:.3g} {unit}"


def parameters_text(count: int) -> str:
    """`2.2 M`, `7.2 B`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def quantization_text(quantization: Quantization) -> str:
    """`NF4`, `LLM.int8()`, `not quantized`."""
    return {"nf4": "NF4", "int8": "LLM.int8()", "none": "not quantized"}[quantization]


def percent_text(share: float | None) -> str:
    """`16 %`."""
    return "–" if share is None else f"{share * 100:.0f} %"


def count_text(number: int) -> str:
    """`once`, `twice`, `3 times`."""
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def counted(number: int, noun: str) -> str:
    """A number of things: 1 seed, 3 seeds."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def edges_text(values: Mapping[str, Value], space: Space) -> str | None:
    """Which of the best values lie at an end of what was searched, where more of it may be better; None of none.

    0 is an end of its own, and of two choices both are ends.
    """
    found = []
    resting = at_rest(space, values)
    for name, parameter in space.items():
        value = values.get(name)
        if name in resting or not parameter.ordered or not value or isinstance(value, str):
            continue
        if isinstance(parameter, Choices):
            low, high, ends = parameter.choices[0], parameter.choices[-1], len(parameter.choices) > 2
            ends = ends and value in (low, high)
        else:
            low, high = parameter.low, parameter.high
            ends = not (low < float(value) < high and EDGE < parameter.to_unit(value) < 1 - EDGE)
        if ends:
            found.append(f"{name} ({value_text(low)} to {value_text(high)})")
    if not found:
        return None
    more = "these ranges" if len(found) > 1 else "this range"
    return f"At an end of what was searched: {', '.join(found)}; a study with {more} widened may do better."


def verdict(gain: Interval | None, winner_is_default: bool) -> str:
    """What an interval of the gain allows to say, in one sentence."""
    if gain is None:
        return "The default configuration failed with every seed, so there is no gain to measure."
    if winner_is_default:
        return "The winner is the default configuration itself: the search found nothing better on validation."
    if gain.low > 0:
        return "The gain's interval lies above 0: the winner is better than the default."
    if gain.high < 0:
        return "The gain's interval lies below 0: the default is better than the winner."
    return "The gain's interval includes 0: the default may be as good."


def few_seeds_text(seeds: int) -> str | None:
    """What to add to intervals over seeds that are too few to show how much they differ; None from five on."""
    if seeds >= ENOUGH_SEEDS:
        return None
    return f"With {counted(seeds, 'seed')} the intervals hardly hold what another seed would change."


def agreement_text(spearman: tuple[float, float, float] | None, pairs: int) -> str:
    """How alike proxy and target rank the same configurations, in words and a number."""
    if spearman is None:
        return f"Whether the proxy agrees with the target isn't known: {counted(pairs, 'configuration')} ran on both."
    value, low, high = spearman
    if pairs < ENOUGH_PAIRS:
        return (
            f"Too few configurations ran on both to tell whether the proxy ranks as the target does: "
            f"Spearman {value:.2f} from {counted(pairs, 'pair')}."
        )
    word = next((word for least, word in WORDS if value >= least), None)
    sentence = f"The proxy ranks configurations {word} as the target does"
    if word is None:
        sentence = "The proxy doesn't rank configurations as the target does"
    return f"{sentence}: Spearman {value:.2f} ({low:.2f} to {high:.2f}, {pairs} configurations run on both)."


def explained_text(explained: float | None, trials: int) -> str | None:
    """How well the proxy's losses follow its hyperparameters, in words and a number; None where that isn't known."""
    if explained is None:
        return None
    number = f"cross-validated R² {round(explained, 2) + 0.0:.2f}"  # + 0.0: no minus before zero
    if explained <= 0:
        return (
            f"It can't be told from {counted(trials, 'trial')} that the proxy's losses follow its hyperparameters "
            f"({number}). Noise may decide them; then longer proxy trials, or more of them, would help."
        )
    word = next((word for least, word in PREDICTED if explained >= least), "poorly")
    return f"A model of the proxy's trials predicts those that it hasn't seen {word}: {number}, {trials} trials."


def surface_text(spearman: tuple[float, float, float] | None, trials: int) -> str | None:
    """How well the proxy's fitted surface foresaw the target's order, in words and a number.

    None where it predicted none of the trials that have a loss.
    """
    if not trials:
        return None
    if spearman is None or trials < ENOUGH_PAIRS:
        number = f"Spearman {spearman[0]:.2f} from {trials}" if spearman else f"{trials} with a loss"
        return f"Too few target trials to tell whether the surface fitted to the proxy's search foresaw them: {number}."
    value, low, high = spearman
    word = next((word for least, word in WORDS if value >= least), None)
    ranks = f"ranks the target's trials {word} as they came out" if word else "doesn't rank the trials as they came out"
    return (
        f"Before any target result, the surface fitted to the proxy's search {ranks}: "
        f"Spearman {value:.2f} ({low:.2f} to {high:.2f}, {trials} target trials)."
    )


def trust_text(trust: float | None) -> str | None:
    """What the two-fidelity model made of the proxy, in words and a number; None where another sampler proposed."""
    if trust is None:
        return None
    belief = f"by its model, with probability {trust:.2f} the target is better where the proxy is"
    if trust >= FOLLOWED:
        return f"The sampler followed the proxy ({belief})."
    if trust >= DOUBTED:
        return f"The sampler was in doubt about the proxy ({belief})."
    return f"The sampler left the proxy aside and went by the target's own results ({belief})."


def trust_check_text(trust: float | None, spearman: tuple[float, float, float] | None, pairs: int) -> str:
    """The trust check in one sentence: what the sampler made of the proxy, and how alike the two models rank."""
    measured = agreement_text(spearman, pairs)
    made = trust_text(trust)
    return f"{made.removesuffix('.')}; {measured[0].lower()}{measured[1:]}" if made else measured


def early_stopping_text(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What early stopping came to, from `derived.early_stopping`; None where it was off."""
    if not rows:
        return None
    row = rows[0]
    if not row["stopped"]:
        return f"The limits in the proposals stopped none of {row['trials']} target trials."
    return (
        f"The limits in the proposals stopped {row['stopped']} of {row['trials']} target trials, which saved "
        f"{percent_text(row['saved'])} of the target search's steps (each counted by its batch size)."
    )


def apart_text(
    spearman: tuple[float, float, float] | None, pairs: int, trust: float | None, spread: float | None
) -> str | None:
    """What to make of a trust and a rank agreement that seem to contradict each other; None where they don't.

    They do where the sampler followed the proxy, but the configurations run on both aren't even roughly ranked alike.
    `spread` is how far apart these lie on the proxy, as a share of the distance from best to median in its search.
    """
    if spearman is None or trust is None or spread is None or pairs < ENOUGH_PAIRS:
        return None
    if trust < FOLLOWED or spearman[0] >= ALIKE:
        return None
    if spread <= CLOSE:
        return (
            "That trust needn't contradict that rank agreement: the trials run on both lie so close together that "
            "noise decides their order (from the best to the median they span "
            f"{percent_text(spread)} of what the proxy's own search spans)."
        )
    return (
        "That trust contradicts that rank agreement, and the trials run on both don't lie so close together that noise "
        "would explain it: go by the rank agreement, which was measured."
    )


def statuses_text(statuses: Iterable[tuple[str, int]]) -> str:
    """`90 trials complete, 24 stopped early, 2 diverged, 1 out of memory`."""
    counts = dict(statuses)
    parts = [f"{counted(counts.pop('complete', 0), 'trial')} complete"]
    if stopped := counts.pop("stopped", 0):
        parts.append(f"{stopped} stopped early")
    return ", ".join(parts + [f"{count} {status.replace('_', ' ')}" for status, count in sorted(counts.items())])
