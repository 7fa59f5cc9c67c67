"""One target trial: a start, or a sampler's draw that is guided into a region or left free to explore."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from understudy.artifacts import Outlook, Proposal, Region, Regions, Start, Starts
from understudy.hyperparameters import Value, complete
from understudy.search.early_stopping import stop_above
from understudy.search.guidance import choose_place, draw, fixed, move_inside, outside, place_shares
from understudy.search.samplers import CANDIDATES, candidates, refined
from understudy.search.surface import predicted
from understudy.search.values import Identity, from_unit, identity
from understudy.search.window import History
from understudy.sections import TargetSection
from understudy.space import Space
from understudy.stages import FEWEST_WITH_STOP
from understudy.trial import Origin, TrialSpec, derive_seed, search_seed

FRESH_DRAWS = 64  # attempts to leave the configurations that were tried before; then a repeat is let through

CHECK = FEWEST_WITH_STOP - 1  # number of the trial that is the default's, where two_fidelity hasn't taken it before
LETTERS = {"truncated": "u", "target": "t"}
SAMPLER_CLASSES = {
    "two_fidelity": "TwoFidelitySampler",
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "random": "RandomSampler",
}


@dataclass(frozen=True)
class Draw:
    """A configuration of the space, and which of its hyperparameters were drawn anew or fixed by its region."""

    values: dict[str, Value]
    redrawn: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()


def propose(
    settings: TargetSection,
    number: int,
    regions: Regions,
    starts: Starts,
    history: History,
    stage: Literal["truncated", "target"] = "target",
) -> Proposal:
    """Proposal `number` of a stage. It follows from the seed, the number, the transfer and the history alone.

    With `early_stopping` it has limits on the trial's losses, unless it is the default configuration, since what that
    comes to has to be known, or a truncated run.
    """
    proposal = _without_limits(settings, number, regions, starts, history, stage)
    early, values = settings.early_stopping, proposal.spec.hyperparameters
    if early is None or settings.evaluations is None or identity(values) == identity(starts.default):
        return proposal
    if stage == "truncated":
        return proposal
    limits = {
        "stop_above": stop_above(early, settings.evaluations, history.visible),
        "visible": tuple(record.spec.id for record in (*history.truncated, *history.visible)),
    }
    return proposal.model_copy(update=limits)


def _without_limits(
    settings: TargetSection,
    number: int,
    regions: Regions,
    starts: Starts,
    history: History,
    stage: Literal["truncated", "target"],
) -> Proposal:
    """What is tried, and why.

    The first ones are the starts. Then a place is drawn: a region, or all of the space to explore. The sampler's
    study has what the history shows; of its candidates the one nearest to the region is taken and the rest of it
    drawn anew inside. Whoever made it, it says what the proxy's surface predicts.
    """
    proposal = _proposed(settings, number, regions, starts, history, stage)
    if regions.surface is None:
        return proposal
    loss = predicted(regions.surface, regions.space, proposal.spec.hyperparameters)
    return proposal.model_copy(update={"predicted": loss})


def _proposed(
    settings: TargetSection,
    number: int,
    regions: Regions,
    starts: Starts,
    history: History,
    stage: Literal["truncated", "target"],
) -> Proposal:
    if is_start(settings, number, starts):
        return _from_start(settings, number, starts.starts[number])
    if settings.sampler == "two_fidelity":
        return _from_surface(settings, number, regions, starts, history, stage)
    shares = place_shares(regions.regions, history.visible, settings.explore, settings.prior_strength)
    place = choose_place(shares, derive_seed(settings.seed, "explore", number))
    region = regions.regions[place] if place < len(regions.regions) else None
    seeds = [derive_seed(settings.seed, "propose", number, i) for i in range(CANDIDATES[settings.sampler])]
    drawn = candidates(regions.space, history, settings.sampler, seeds)
    chosen = _choose(drawn, regions.space, region, history, derive_seed(settings.seed, "redraw", number))
    return Proposal(
        number=number,
        spec=_spec(
            settings,
            number,
            complete(chosen.values, starts.default, settings.method),
            "refined",
            region.trials if region else (),
        ),
        kind="guided" if region else "explore",
        region=region.id if region else None,
        sampler=SAMPLER_CLASSES[settings.sampler],
        redrawn=chosen.redrawn,
        fixed=chosen.fixed,
        visible=tuple(record.spec.id for record in history.visible),
        pending=tuple(proposal.spec.id for proposal in history.pending),
    )


def _from_surface(
    settings: TargetSection,
    number: int,
    regions: Regions,
    starts: Starts,
    history: History,
    stage: Literal["truncated", "target"],
) -> Proposal:
    """A proposal of the two-fidelity model, which has the proxy's surface in it and needs no regions to guide it.

    The first trial is one of the starts, or what was run truncated; from then on they are candidates among others, so
    that the evidence decides when they are run. The default configuration alone is certain, at the latest as trial
    `CHECK`: where the proxy misleads, it shows what the others should reach.
    """
    tried = {identity(spec.hyperparameters) for spec in _specs(history)}
    known: dict[Identity, tuple[dict[str, Value], Origin, tuple[str, ...]]] = {
        identity(spec.hyperparameters): (spec.hyperparameters, spec.origin, (spec.id,))
        for spec in (record.spec for record in history.truncated)
    }
    known |= {
        identity(each.hyperparameters): (each.hyperparameters, each.origin, each.parents) for each in starts.starts
    }
    outlook = None
    if number == CHECK and identity(starts.default) not in tried:
        values = starts.default
    else:
        hints = [{name: whole[name] for name in regions.space} for whole, _, _ in known.values()]
        gain = settings.stop.gain if settings.stop and stage == "target" else 0.0
        seed = derive_seed(settings.seed, "propose", *(() if stage == "target" else (stage,)), number)
        chosen, outlook = refined(regions.space, history, seed, regions.surface, hints, gain)
        values = complete(chosen, starts.default, settings.method)
    is_start = identity(values) in {identity(start.hyperparameters) for start in starts.starts}
    region = next((region for region in regions.regions if not outside(region, values)), None)
    # a known one with all of its digits, by which the store knows it
    values, origin, parents = known.get(identity(values), (values, "refined", region.trials if region else ()))
    return Proposal(
        number=number,
        spec=_spec(settings, number, values, origin, parents, stage),
        kind="start" if is_start else "guided" if region else "explore",
        region=region.id if region and not is_start else None,
        sampler=SAMPLER_CLASSES[settings.sampler],
        visible=tuple(record.spec.id for record in (*history.truncated, *history.visible)),
        pending=tuple(proposal.spec.id for proposal in history.pending),
        outlook=outlook,
        skip=_reason_to_skip(settings, number, outlook),
    )


def _reason_to_skip(settings: TargetSection, number: int, outlook: Outlook | None) -> str | None:
    """Why a trial after the default's isn't worth its price, if it isn't."""
    stop = settings.stop
    if stop is None or outlook is None or outlook.worth is None or number <= CHECK or outlook.worth >= stop.chance:
        return None
    return f"the chance to beat the best loss by {stop.gain:.2g} of it is {outlook.worth:.2g}, below {stop.chance:.2g}"


def needs_history(settings: TargetSection, number: int, starts: Starts) -> bool:
    """Whether proposal `number` is made from results: all but starts that nothing stops."""
    return settings.early_stopping is not None or not is_start(settings, number, starts)


def is_start(settings: TargetSection, number: int, starts: Starts) -> bool:
    """Whether proposal `number` is one of the starts, which follow from the transfer alone."""
    return settings.sampler != "two_fidelity" and number < min(settings.starts, len(starts.starts))


def _from_start(settings: TargetSection, number: int, start: Start) -> Proposal:
    return Proposal(
        number=number,
        spec=_spec(settings, number, start.hyperparameters, start.origin, start.parents),
        kind="start",
        sampler="transfer",
        visible=(),
        pending=(),
    )


def _spec(
    settings: TargetSection,
    number: int,
    values: dict[str, Value],
    origin: Origin,
    parents: tuple[str, ...],
    stage: Literal["truncated", "target"] = "target",
) -> TrialSpec:
    return TrialSpec(
        id=f"{LETTERS[stage]}{number:04d}",
        stage=stage,
        origin=origin,
        hyperparameters=values,
        method=settings.method,
        fidelity=settings.fidelity if stage == "truncated" else 1.0,
        seed=search_seed(settings.seed),
        parents=parents,
    )


def _choose(
    drawn: Sequence[dict[str, Value]], space: Space, region: Region | None, history: History, seed: int
) -> Draw:
    """The candidate with the fewest values outside the region, brought inside; the first one where there is none.

    One that was tried before gives way to the next, then to a uniform draw, and at last to one in which what the region
    fixes is free.
    """
    taken = {_identity_in(space, spec.hyperparameters) for spec in _specs(history)}
    held = fixed(region) if region else {}
    order = sorted(drawn, key=lambda values: len(outside(region, values)) if region else 0)  # stable
    for values in order:
        moved, redrawn = move_inside(space, region, values, seed) if region else (values, [])
        if _identity_in(space, moved) not in taken:
            return Draw(moved, tuple(redrawn), tuple(held))
    generator = random.Random(derive_seed(seed, "fresh"))
    for keeping in (held, {}) if held else (held,):
        for _ in range(FRESH_DRAWS):
            fresh = _uniform(space, region, generator) | keeping
            if _identity_in(space, fresh) not in taken:
                return _drawn(space, fresh, keeping)
    return _drawn(space, fresh, keeping)


def _drawn(space: Space, values: dict[str, Value], held: Mapping[str, Value]) -> Draw:
    return Draw(values, tuple(name for name in space if name not in held), tuple(held))


def _uniform(space: Space, region: Region | None, generator: random.Random) -> dict[str, Value]:
    """A uniform draw of the region, or of the whole space."""
    if region is None:
        return from_unit(space, [generator.random() for _ in space])
    return {name: draw(parameter, region.boxes[name], generator.random()) for name, parameter in space.items()}


def _specs(history: History) -> list[TrialSpec]:
    return [*(record.spec for record in history.visible), *(proposal.spec for proposal in history.pending)]


def _identity_in(space: Space, values: dict[str, Value]) -> Identity:
    return identity({name: values[name] for name in space})
