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
from understudy.search.values import Identity, identity
from understudy.sections import SearchSection
from understudy.space import consistent
from understudy.stages import HalvingSettings
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
    plan = Pack(id=pack, specs=chosen, solo=solo)
    if settings.halving is None:
        return plan
    copies = _copies(settings, model, chosen, place)
    halving = _halving(settings.halving, [spec for spec in chosen if spec.id not in {*solo, *copies}])
    return plan.model_copy(update={"halving": halving, "notes": _why_unhalved(settings.halving, plan, halving, copies)})


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
            hyperparameters=consistent(settings.space, complete(values, known, "lora")),
            fidelity=settings.fidelity,
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


def _halving(settings: HalvingSettings, specs: Sequence[TrialSpec]) -> Halving:
    """Brackets of trials by number. Known-good configurations are needed whole by later steps, and in none.

    Trials after the last full bracket are in none either, until more trials fill it.
    """
    ids = [spec.id for spec in specs if spec.origin not in ("default", "echo")]
    size, factor = settings.bracket, settings.reduction_factor
    assert size is not None, "the sections decide it"
    return Halving(
        rungs=tuple(float(factor) ** -rung for rung in range(settings.rungs, 0, -1)),
        reduction_factor=factor,
        metric=settings.metric,
        brackets=tuple(tuple(ids[start : start + size]) for start in range(0, len(ids) - size + 1, size)),
    )


def _copies(
    settings: SearchSection, model: ModelCard, specs: Sequence[TrialSpec], place: PackRange
) -> Mapping[str, str]:
    """The pack's trials whose configuration is that of a known-good default, of a grid's point, or of an earlier trial
    of the same origin, by id, each with what it repeats.

    They run in full, as what they repeat may. The plan doesn't know how many Sobol trials there are, so a random trial
    isn't compared with those.
    """
    if place.origin == "default":
        return {}
    rate = learning_rate_rule(model.hidden_size, model.model_type, "lora")
    known = with_rate(settings.defaults, rate)
    first: dict[Identity, str] = {}

    def note(letter: str, configurations: Sequence[Mapping[str, Value]]) -> None:
        for number, values in enumerate(configurations):
            whole = consistent(settings.space, complete(values, known, "lora"))
            first.setdefault(identity(whole), trial_id(letter, number))

    note("d", [item.hyperparameters for item in known_good(settings.space, settings.defaults, rate, "lora")])
    if place.origin != "grid":
        note("g", grid_points(settings.grid))
    note(LETTERS[place.origin][1], _configurations(settings, rate, place.origin, 0, place.first + place.block))
    found = {spec.id: first[identity(spec.hyperparameters)] for spec in specs}
    return {id: original for id, original in found.items() if original != id}


def _why_unhalved(
    settings: HalvingSettings, plan: Pack, halving: Halving, copies: Mapping[str, str]
) -> tuple[str, ...]:
    """What keeps a pack of searched trials from having any bracket, in words."""
    size, count = settings.bracket or 0, len(plan.specs)
    if halving.brackets or count < size or plan.specs[0].origin == "default":
        return ()
    lost = [f"{len(plan.solo)} train alone"] if plan.solo else []
    if repeated := copies.keys() - plan.solo.keys():
        lost.append(f"{len(repeated)} repeat other trials")
    return (f"no trial is halved: a bracket takes {size}, but of {count} trials {' and '.join(lost)}",)


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
            hyperparameters=consistent(
                settings.space, complete(to_proxy(_searched(settings, proposal), scale), known, "lora")
            ),
            fidelity=settings.fidelity,
            seed=search_seed(settings.seed),
            parents=(proposal.spec.id,),
        )
        for proposal in sorted(proposals, key=lambda proposal: proposal.number)
        if proposal.skip is None
    )
    halving = settings.halving and _halving(settings.halving, specs)
    return Pack(id=pack, specs=specs, solo=_solo(specs, model, execution), halving=halving)


def _searched(settings: SearchSection, proposal: Proposal) -> dict[str, Value]:
    """A proposal's values of what is searched."""
    return {name: value for name, value in proposal.spec.hyperparameters.items() if name in settings.space}


def solo_text(pack: Pack) -> str:
    """How a pack's trials are trained, for the log."""
    lines = [f"{len(pack.specs) - len(pack.solo)} of {len(pack.specs)} trials share the base"]
    if pack.halving:
        halved = sum(len(bracket) for bracket in pack.halving.brackets)
        lines.append(
            f"brackets of {pack.halving.reduction_factor}-fold halving: {len(pack.halving.brackets)}; "
            f"{len(pack.specs) - halved} of {len(pack.specs)} trials are in none and run in full"
        )
    reasons = Counter(pack.solo.values())
    return "\n".join([*lines, *pack.notes, *(f"{count} alone: {reason}" for reason, count in reasons.items())])
