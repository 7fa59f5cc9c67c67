"""Packs of proxy trials: their specs follow from the config and the trials' numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from understudy.artifacts import Proposal, ScaleRule
from understudy.errors import UserError
from understudy.hyperparameters import Value, complete
from understudy.search.defaults import known_good, learning_rate_rule, with_rate
from understudy.search.grid import grid_points
from understudy.search.scaling import to_proxy
from understudy.search.sequences import sobol, uniform
from understudy.sections import SearchSection
from understudy.trial import ModelCard, Origin, Pack, TrialSpec, search_seed

LETTERS: Mapping[str, tuple[Origin, str]] = {
    "random": ("random", "r"),
    "sobol": ("sobol", "q"),
    "grid": ("grid", "g"),
    "default": ("default", "d"),
}


def trial_id(letter: str, number: int) -> str:
    """The number-th trial's id: `r0007`; the few defaults have two digits (`d01`)."""
    return f"{letter}{number:02d}" if letter == "d" else f"{letter}{number:04d}"


def plan_pack(settings: SearchSection, model: ModelCard, pack: str, first: int, count: int) -> Pack:
    """The specs of trials `first` to `first + count - 1` of the pack's origin.

    Raises `UserError` for an unknown origin, and where the grid or the defaults have fewer trials.
    """
    kind = pack.rsplit("-", 1)[0]
    if kind not in LETTERS:
        raise UserError(f"pack `{pack}` has no known origin; valid are {', '.join(LETTERS)}, as in `random-000`")
    origin, letter = LETTERS[kind]
    rate = learning_rate_rule(model.hidden_size, model.model_type, "lora")
    known = with_rate(settings.defaults, rate)
    chosen = _configurations(settings, rate, kind, first, count)
    if len(chosen) < count:
        raise UserError(
            f"pack `{pack}` wants {count} trials from number {first} on, but the config's {kind} gives only "
            f"{len(chosen)} of them; run the workflow again, so that it plans the packs anew"
        )
    specs = tuple(
        TrialSpec(
            id=trial_id(letter, first + i),
            stage="proxy",
            origin=origin,
            hyperparameters=complete(values, known, "lora"),
            seed=search_seed(settings.seed),
        )
        for i, values in enumerate(chosen)
    )
    return Pack(id=pack, specs=specs)


def _configurations(
    settings: SearchSection, rate: float, kind: str, first: int, count: int
) -> Sequence[Mapping[str, Value]]:
    """Searched values, or whole configurations, of some trials of one origin; `rate` is the published rule's."""
    if kind == "random":
        return [uniform(settings.space, settings.seed, first + i) for i in range(count)]
    if kind == "sobol":
        return sobol(settings.space, settings.seed, first, count)
    if kind == "grid":
        return grid_points(settings.grid)[first : first + count]
    known = known_good(settings.space, settings.defaults, rate, "lora")
    return [item.hyperparameters for item in known[first : first + count]]


def plan_echo(
    settings: SearchSection,
    model: ModelCard,
    scale: Mapping[str, ScaleRule],
    pack: str,
    proposals: Sequence[Proposal],
) -> Pack:
    """The specs that run target configurations on the proxy, each searched value divided by its scale.

    What isn't searched, and what a fully fine-tuned target lacks (the adapter's settings), is the proxy default's. A
    start that is the image of a proxy trial comes out as that trial's own configuration, whose result the store has.
    """
    known = with_rate(settings.defaults, learning_rate_rule(model.hidden_size, model.model_type, "lora"))
    specs = tuple(
        TrialSpec(
            id=trial_id("e", proposal.number),
            stage="proxy",
            origin="echo",
            hyperparameters=complete(to_proxy(_searched(settings, proposal), scale), known, "lora"),
            seed=search_seed(settings.seed),
            parents=(proposal.spec.id,),
        )
        for proposal in sorted(proposals, key=lambda proposal: proposal.number)
    )
    return Pack(id=pack, specs=specs)


def _searched(settings: SearchSection, proposal: Proposal) -> dict[str, Value]:
    """A proposal's values of what is searched."""
    return {name: value for name, value in proposal.spec.hyperparameters.items() if name in settings.space}
