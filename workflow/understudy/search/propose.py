"""One target trial: a start, or a sampler's draw that is guided into a region or left free to explore."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from understudy.artifacts import Outlook, Proposal, Region, Regions, Starts
from understudy.hyperparameters import Value, complete
from understudy.search.early_stopping import stop_above
from understudy.search.guidance import choose_place, draw, fixed, move_inside, outside, place_shares
from understudy.search.samplers import CANDIDATES, candidates, refined
from understudy.search.surface import predicted
from understudy.search.values import Identity, from_unit, identities, identity, placed
from understudy.search.window import History
from understudy.sections import TargetSection
from understudy.space import Space, at_rest, consistent
from understudy.stages import FEWEST_WITH_STOP
from understudy.trial import Origin, TrialSpec, derive_seed, search_seed

Stage = Literal["truncated", "target"]
FRESH_DRAWS = 64  # attempts to leave the configurations that were tried before; then a repeat is let through
HINTS = 256  # of the starts, the first, are candidates with two_fidelity: 10,000 proxy trials make 1,500 starts
CHECK = 2  # number of the trial that is the default's at the latest, with two_fidelity
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


@dataclass(frozen=True)
class _Turn:
    """What a proposal is made from."""

    settings: TargetSection
    number: int
    regions: Regions
    starts: Starts
    history: History
    stage: Stage

    @property
    def visible(self) -> tuple[str, ...]:
        return tuple(record.spec.id for record in (*self.history.truncated, *self.history.visible))

    @property
    def pending(self) -> tuple[str, ...]:
        return tuple(proposal.spec.id for proposal in self.history.pending)

    @property
    def tried(self) -> list[TrialSpec]:
        """Of this stage."""
        return [record.spec for record in self.history.visible] + [each.spec for each in self.history.pending]

    def seed(self, purpose: str, *numbers: int) -> int:
        """Of the study's seed; truncated runs have others than the target's trials of the same number."""
        return derive_seed(self.settings.seed, purpose, *(() if self.stage == "target" else (self.stage,)), *numbers)

    def spec(self, values: dict[str, Value], origin: Origin, parents: tuple[str, ...]) -> TrialSpec:
        return TrialSpec(
            id=f"{LETTERS[self.stage]}{self.number:04d}",
            stage=self.stage,
            origin=origin,
            hyperparameters=values,
            method=self.settings.method,
            fidelity=self.settings.fidelity if self.stage == "truncated" else 1.0,
            seed=search_seed(self.settings.seed),
            parents=parents,
        )


def propose(
    settings: TargetSection,
    number: int,
    regions: Regions,
    starts: Starts,
    history: History,
    stage: Stage = "target",
) -> Proposal:
    """Proposal `number` of a stage. It follows from the seed, the number, the transfer and the history alone.

    Whoever makes it, it says what the proxy's surface predicts. With `early_stopping` it has limits on the trial's
    losses, unless it is the default configuration, since what that comes to has to be known, or a truncated run.
    """
    turn = _Turn(settings, number, regions, starts, history, stage)
    if is_start(settings, number, starts):
        proposal = _from_start(turn)
    elif settings.sampler == "two_fidelity":
        proposal = _from_surface(turn)
    else:
        proposal = _guided(turn)
    changes: dict[str, Any] = {}
    values = proposal.spec.hyperparameters
    if regions.surface is not None:
        changes["predicted"] = predicted(regions.surface, regions.space, values)
    early, evaluations, is_default = settings.early_stopping, settings.evaluations, identity(values) == _default(starts)
    if early is not None and evaluations is not None and stage == "target" and not is_default:
        changes |= {"stop_above": stop_above(early, evaluations, history.visible), "visible": turn.visible}
    return proposal.model_copy(update=changes)


def _guided(turn: _Turn) -> Proposal:
    """By one of Optuna's samplers: a place is drawn, a region or all of the space to explore.

    The sampler's study has what the history shows; of its candidates the one nearest to the region is taken and the
    rest of it drawn anew inside.
    """
    settings, regions = turn.settings, turn.regions
    shares = place_shares(regions.regions, turn.history.visible, settings.explore, settings.prior_strength)
    place = choose_place(shares, turn.seed("explore", turn.number))
    region = regions.regions[place] if place < len(regions.regions) else None
    seeds = [turn.seed("propose", turn.number, i) for i in range(CANDIDATES[settings.sampler])]
    drawn = candidates(regions.space, turn.history, settings.sampler, seeds)
    chosen = _choose(drawn, regions.space, region, turn.tried, turn.seed("redraw", turn.number))
    values = complete(chosen.values, turn.starts.default, settings.method)
    return Proposal(
        number=turn.number,
        spec=turn.spec(values, "refined", region.trials if region else ()),
        kind="guided" if region else "explore",
        region=region.id if region else None,
        sampler=SAMPLER_CLASSES[settings.sampler],
        redrawn=chosen.redrawn,
        fixed=chosen.fixed,
        visible=turn.visible,
        pending=turn.pending,
    )


def _from_surface(turn: _Turn) -> Proposal:
    """By the two-fidelity model, which has the proxy's surface in it and needs no regions to guide it.

    The first trial is one of the starts, or what was run truncated; from then on they are candidates among others, so
    that the evidence decides when they are run. The default configuration alone is certain, since it shows what the
    others should reach where the proxy misleads: as trial `CHECK` at the latest, and earlier where that shows.
    """
    settings, regions, starts = turn.settings, turn.regions, turn.starts
    space, short = regions.space, [record.spec for record in turn.history.truncated]
    at_short = identities([placed(space, spec.hyperparameters) for spec in short])
    at_start = identities([placed(space, start.hyperparameters) for start in starts.starts])
    known: dict[Identity, tuple[dict[str, Value], Origin, tuple[str, ...]]] = {
        **{key: (spec.hyperparameters, spec.origin, (spec.id,)) for key, spec in zip(at_short, short, strict=True)},
        **{
            key: (start.hyperparameters, start.origin, start.parents)
            for key, start in zip(at_start, starts.starts, strict=True)
        },
    }
    outlook = None
    due = turn.number == CHECK or (turn.number < CHECK and _misled(turn))
    if due and _default(starts) not in {identity(spec.hyperparameters) for spec in turn.tried}:
        values = starts.default
    else:
        hints = [{name: whole[name] for name in space} for whole, _, _ in islice(known.values(), len(short) + HINTS)]
        gain = settings.stop.gain if settings.stop and turn.stage == "target" else 0.0
        seed = turn.seed("propose", turn.number)
        chosen, outlook = refined(space, turn.history, seed, regions.surface, hints, gain)
        values = complete(chosen, starts.default, settings.method)
    region = next((region for region in regions.regions if not outside(region, values)), None)
    # a known one as it is, with all of its digits, by which the store knows it
    key = identity(placed(space, values))
    values, origin, parents = known.get(key, (values, "refined", region.trials if region else ()))
    is_start = key in at_start
    return Proposal(
        number=turn.number,
        spec=turn.spec(values, origin, parents),
        kind="start" if is_start else "guided" if region else "explore",
        region=region.id if region and not is_start else None,
        sampler=SAMPLER_CLASSES[settings.sampler],
        visible=turn.visible,
        pending=turn.pending,
        outlook=outlook,
        skip=_reason_to_skip(turn, outlook),
    )


def _misled(turn: _Turn) -> bool:
    """Whether a trial, chosen after the proxy, diverged or did worse on the target than half of the proxy's trials.

    A larger model that was trained on the same data should do better than that, unless tokens differ, or it was
    trained for a part of its steps alone.
    """
    surface, results = turn.regions.surface, [record.result for record in turn.history.visible]
    losses = [result.objective for result in results if result.objective is not None and turn.stage == "target"]
    worse = surface is not None and any(loss > surface.centre for loss in losses)
    return worse or any(result.status == "diverged" for result in results)


def _reason_to_skip(turn: _Turn, outlook: Outlook | None) -> str | None:
    """Why a trial isn't worth its price; None where it is, and for the first few.

    After one that was skipped all are, until a gain shows that it didn't see: the model's candidates are drawn anew for
    each proposal, and its chance with them.
    """
    stop = turn.settings.stop
    if stop is None or turn.number < FEWEST_WITH_STOP or outlook is None or outlook.worth is None:
        return None
    seen = list(enumerate(record.result for record in turn.history.visible))
    ran = [(number, result.objective) for number, result in seen if result.status != "skipped"]
    waited = without_gain([objective for _, objective in ran], stop.gain)
    last_gain = ran[-1 - waited][0] if waited < len(ran) else -1
    skipped = [number for number, result in seen if result.status == "skipped"]
    skipped += [proposal.number for proposal in turn.history.pending if proposal.skip]
    if skipped and last_gain <= skipped[-1] - turn.settings.window:
        name = f"{LETTERS[turn.stage]}{skipped[-1]:04d}"
        return f"{name} was skipped, and no trial has beaten the best loss by {stop.gain:g} of it since"
    if waited < stop.patience or outlook.worth >= stop.chance:
        return None
    trials = "trial" if waited == 1 else f"{waited} trials"
    chance = math.floor(1000 * outlook.worth) / 1000  # rounded down, so that it reads as below the limit
    found = f"the chance to beat the best loss by {stop.gain:g} of it is {chance:g}, below {stop.chance:g}"
    return f"{found}, and the last {trials} didn't" if waited else found


def without_gain(losses: Iterable[float | None], gain: float) -> int:
    """How many trials ran since the loss last fell by `gain`, a share of what it was; None is a trial without a loss.

    Small steps add up: each is measured from the last loss that counted, as with Keras's `min_delta`.
    """
    reference, waited = math.inf, 0
    for loss in losses:
        waited += 1
        if loss is not None and (math.isinf(reference) or loss < reference - gain * abs(reference)):
            reference, waited = loss, 0
    return waited


def needs_history(settings: TargetSection, number: int, starts: Starts) -> bool:
    """Whether proposal `number` is made from results: all but starts that nothing stops."""
    return settings.early_stopping is not None or not is_start(settings, number, starts)


def is_start(settings: TargetSection, number: int, starts: Starts) -> bool:
    """Whether proposal `number` is one of the starts, which follow from the transfer alone."""
    return settings.sampler != "two_fidelity" and number < min(settings.starts, len(starts.starts))


def _from_start(turn: _Turn) -> Proposal:
    start = turn.starts.starts[turn.number]
    return Proposal(
        number=turn.number,
        spec=turn.spec(start.hyperparameters, start.origin, start.parents),
        kind="start",
        sampler="transfer",
        visible=(),
        pending=(),
    )


def _default(starts: Starts) -> Identity:
    return identity(starts.default)


def _choose(
    drawn: Sequence[dict[str, Value]], space: Space, region: Region | None, tried: Sequence[TrialSpec], seed: int
) -> Draw:
    """The candidate with the fewest values outside the region, brought inside; the first one where there is none.

    One that was tried before gives way to the next, then to a uniform draw, and at last to one in which what the region
    fixes is free.
    """
    taken = {_identity_in(space, spec.hyperparameters) for spec in tried}
    held = fixed(region) if region else {}
    order = sorted(drawn, key=lambda values: len(outside(region, values)) if region else 0)  # stable
    for values in order:
        moved, redrawn = move_inside(space, region, values, seed) if region else (values, [])
        if _identity_in(space, consistent(space, moved)) not in taken:
            return _drawn(space, moved, redrawn, held)
    generator = random.Random(derive_seed(seed, "fresh"))
    for keeping in (held, {}) if held else (held,):
        for _ in range(FRESH_DRAWS):
            fresh = _uniform(space, region, generator) | keeping
            if _identity_in(space, consistent(space, fresh)) not in taken:
                return _drawn(space, fresh, space, keeping)
    return _drawn(space, fresh, space, keeping)


def _drawn(space: Space, values: dict[str, Value], redrawn: Iterable[str], held: Mapping[str, Value]) -> Draw:
    """What rests was neither drawn anew nor fixed."""
    resting = at_rest(space, values)
    return Draw(
        consistent(space, values),
        tuple(name for name in redrawn if name not in held and name not in resting),
        tuple(name for name in held if name not in resting),
    )


def _uniform(space: Space, region: Region | None, generator: random.Random) -> dict[str, Value]:
    """A uniform draw of the region, or of the whole space."""
    if region is None:
        return from_unit(space, [generator.random() for _ in space])
    return {name: draw(parameter, region.boxes[name], generator.random()) for name, parameter in space.items()}


def _identity_in(space: Space, values: dict[str, Value]) -> Identity:
    return identity({name: values[name] for name in space})
