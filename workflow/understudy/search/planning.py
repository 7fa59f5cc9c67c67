"""Packs of proxy trials: their specs follow from the config and the trials' numbers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from understudy.artifacts import Proposal, ScaleRule
from understudy.errors import UserError
from understudy.graph import PackRange
from understudy.hyperparameters import Value, complete
from understudy.packing import reason_for_solo
from understudy.search.defaults import known_good, learning_rate_rule, with_rate
from understudy.search.grid import grid_points
from understudy.search.scaling import to_proxy
from understudy.search.sequences import sobol, uniform
from understudy.sections import SearchSection
from understudy.settings import HalvingSettings
from understudy.trial import Halving, ModelCard, Origin, Pack, ResolvedExecution, TrialSpec, search_seed

LETTERS: Mapping[str, tuple[Origin, str]] = {
    "random": ("random", "r"),
    "sobol": ("sobol", "q"),
    "grid": ("grid", "g"),
    "default": ("default", "d"),
}


def trial_id(letter: str, number: int) -> str:
    """The number-th trial's id: `r0007`; the few defaults have two digits (`d01`)."""
    return f"{letter}{number:02d}" if letter == "d" else f"{letter}{number:04d}"


def plan_pack(
    settings: SearchSection, model: ModelCard, execution: ResolvedExecution, pack: str, place: PackRange
) -> Pack:
    """The specs of a pack, in the order of their numbers, and how they are trained.

    A block's trials are dealt to its packs by length, so that the trials of a pack end at about the same time. With
    halving they are dealt in order: a bracket of like lengths would let the best of the short trials go on, however
    they do against the long ones.

    Raises `UserError` for an unknown origin, and where the grid or the defaults have fewer trials.
    """
    specs = _block(settings, model, pack, place)
    order = range(len(specs)) if settings.halving else sorted(range(len(specs)), key=lambda i: (-_length(specs[i]), i))
    start = place.index * place.size
    chosen = tuple(specs[i] for i in sorted(order[start : start + place.count]))
    solo = _solo(chosen, model, execution)
    return Pack(id=pack, specs=chosen, solo=solo, halving=_halving(settings.halving, chosen, solo))


def _block(settings: SearchSection, model: ModelCard, pack: str, place: PackRange) -> list[TrialSpec]:
    """All specs of the pack's block, by number."""
    if place.origin not in LETTERS:
        raise UserError(f"pack `{pack}` has no known origin; valid are {', '.join(LETTERS)}, as in `random-000`")
    origin, letter = LETTERS[place.origin]
    rate = learning_rate_rule(model.hidden_size, model.model_type, "lora")
    known = with_rate(settings.defaults, rate)
    chosen = _configurations(settings, rate, place.origin, place.first, place.block)
    if len(chosen) < place.block:
        raise UserError(
            f"pack `{pack}` wants {place.block} trials from number {place.first} on, but the config's {place.origin} "
            f"gives only {len(chosen)} of them; run the workflow again, so that it plans the packs anew"
        )
    return [
        TrialSpec(
            id=trial_id(letter, place.first + i),
            stage="proxy",
            origin=origin,
            hyperparameters=complete(values, known, "lora"),
            seed=search_seed(settings.seed),
        )
        for i, values in enumerate(chosen)
    ]


def _length(spec: TrialSpec) -> float:
    """Optimizer steps of a trial, up to a factor that all have in common."""
    return float(spec.hyperparameters["num_train_epochs"]) / float(spec.hyperparameters["batch_size"])


def _solo(specs: Sequence[TrialSpec], model: ModelCard, execution: ResolvedExecution) -> dict[str, str]:
    """The trials that can't be packed, by id, each with the reason."""
    reasons = {spec.id: reason_for_solo(spec, model, execution) for spec in specs}
    return {trial: reason for trial, reason in reasons.items() if reason is not None}


def _halving(settings: HalvingSettings | None, specs: Sequence[TrialSpec], solo: Mapping[str, str]) -> Halving | None:
    """Brackets of a pack's packable trials by number; None where there is none.

    Known-good configurations are needed whole by later steps. Trials after the last full bracket run in full, so that
    an extension, which fills that bracket, never changes what became of a finished trial.
    """
    if settings is None or settings.bracket is None:
        return None
    ids = [spec.id for spec in specs if spec.origin != "default" and spec.id not in solo]
    size, factor = settings.bracket, settings.reduction_factor
    brackets = tuple(tuple(ids[start : start + size]) for start in range(0, len(ids) - size + 1, size))
    if not brackets:
        return None
    return Halving(
        rungs=tuple(float(factor) ** -rung for rung in range(settings.rungs, 0, -1)),
        reduction_factor=factor,
        metric=settings.metric,
        brackets=brackets,
    )


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
    execution: ResolvedExecution,
    scale: Mapping[str, ScaleRule],
    pack: str,
    proposals: Sequence[Proposal],
) -> Pack:
    """The specs that run target configurations on the proxy, each searched value divided by its scale.

    What isn't searched, and what a fully fine-tuned target lacks (the adapter's settings), is the proxy default's. A
    start that is the image of a proxy trial comes out as that trial's own configuration, whose result the store has.
    What the target skips isn't run here either.
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
        if proposal.skip is None
    )
    return Pack(id=pack, specs=specs, solo=_solo(specs, model, execution))


def _searched(settings: SearchSection, proposal: Proposal) -> dict[str, Value]:
    """A proposal's values of what is searched."""
    return {name: value for name, value in proposal.spec.hyperparameters.items() if name in settings.space}


def solo_text(pack: Pack) -> str:
    """How a pack's trials are trained, for the log."""
    lines = [f"{len(pack.specs) - len(pack.solo)} of {len(pack.specs)} trials share the base"]
    if pack.halving:
        lines.append(f"brackets of {pack.halving.reduction_factor}-fold halving: {len(pack.halving.brackets)}")
    reasons = Counter(pack.solo.values())
    return "\n".join([*lines, *(f"{count} alone: {reason}" for reason, count in reasons.items())])
