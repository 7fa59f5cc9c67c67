"""What to try next, by the two-fidelity model: candidates all over the space and around the best, and which of them.

Of what is likely enough to beat the best so far, the smallest expected loss is chosen. Likely enough is a chance of
`LIKELY`; where nothing is, the largest chance counts, and without a result the expected loss and a standard deviation
of the proxy's surface. The expected improvement is no guide here: where the budget is a few runs, looking for what
might be much better but probably isn't costs more than it finds (measured: see `tests/benchmarks/transfer.md`). Running
trials are believed to come out as predicted. While nothing has a loss, failures lower the rate, half a decade at a
time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from scipy.special import ndtr

from understudy.artifacts import Outlook, Surface
from understudy.hyperparameters import Value
from understudy.search.failures import worse_than
from understudy.search.gaussian import Array
from understudy.search.sequences import scrambled_sobol, sobol_directions
from understudy.search.surface import LOG2_CANDIDATES, RATE, log_axis, points, posterior
from understudy.search.two_fidelity import TwoFidelity, Units
from understudy.search.values import Identity, from_units, identities, identity, placed, rounded
from understudy.space import Space

AROUND = 48  # candidates around each centre
CENTRES = 6  # the best of those all over the space, and of those tried
RADII = (0.02, 0.06, 0.15)  # in unit coordinates
MOVED = 0.5  # probability that a candidate around a centre differs from it in a coordinate
REDRAWN = 0.3  # share of those around a centre that have one coordinate drawn anew
LOOKED_AT = 256  # of the best candidates, for a larger gain
ROUNDS = 2  # of candidates around centres
LESS = 0.005  # in units: what counts as better
STEP_DOWN = math.sqrt(10)  # by which the rate falls below all that failed while there is no loss at all
LIKELY = 0.35  # chance to be better from which the expected loss decides


@dataclass(frozen=True)
class _Results:
    """Finished configurations with their losses, and those that failed while there is no loss to compare them with."""

    configurations: list[dict[str, Value]]
    losses: list[float]
    failed: list[dict[str, Value]]


class Acquisition:
    """Chooses the target's trials one by one.

    `surface` and `space` are those of `results/transfer/regions.json`; the parameter called `rate` may be shifted
    between the two models. `hints` are configurations of the space, such as the proxy's best: the first trial is one of
    them, since what a model imagines beyond its data waits for a result; then they are candidates beside those that are
    drawn. `truncated` has configurations with the losses of shorter runs of the same model, which count as a fidelity
    between. A loss that isn't finite is a failure.

    After a choice `outlook` says what the model expects; with `gain`, a share of the best loss, also how probable it is
    that a candidate beats it by so much.
    """

    def __init__(
        self,
        surface: Surface,
        space: Space,
        seed: int,
        hints: Sequence[Mapping[str, Value]] = (),
        gain: float = 0.0,
        truncated: Sequence[tuple[Mapping[str, Value], float]] = (),
        rate: str = RATE,
    ) -> None:
        self.surface, self.space = surface, space
        self._rate = rate
        self._gain = gain
        self._hints = [placed(space, {name: values[name] for name in space}) for values in hints]
        self._generator = np.random.default_rng(seed)
        known = len(surface.directions) == len(space)
        self._directions = surface.directions if known else sobol_directions(len(space), LOG2_CANDIDATES)
        self._process, self._axis = posterior(surface), log_axis(space, rate)
        short = _settled([placed(space, values) for values, _ in truncated], [loss for _, loss in truncated])
        self._truncated = (points(space, short.configurations), self._units(short.losses)) if short.losses else None
        self._failed = short.failed
        self.outlook: Outlook | None = None  # of the last choice

    def choose(
        self, finished: Sequence[dict[str, Value]], losses: Sequence[float], running: Sequence[dict[str, Value]] = ()
    ) -> dict[str, Value]:
        """What to try next, after some finished trials with their losses (nats), while others run."""
        results = _settled(finished, losses)
        tried = [*results.configurations, *running]
        x = points(self.space, tried) if tried else np.zeros((0, len(self.surface.lengths)))
        f = self._units(results.losses)
        known, best = len(f), float(f.min()) if len(f) else None
        model = told = TwoFidelity(self._process, *self._axis, x[:known], f, self._truncated)
        if known < len(tried):
            f = np.concatenate([f, model.predict(x[known:])[0]])
            model = TwoFidelity(self._process, *self._axis, x, f, self._truncated)

        def worth(configurations: Sequence[dict[str, Value]]) -> Array:
            coordinates = points(self.space, configurations)
            means, chances = model.prospects(coordinates, f.min() - LESS if len(f) else 0.0)
            if not len(f):
                unsure = 0.0 if self._truncated else np.sqrt(self._process.at(coordinates).variance)
                return np.asarray(-means - unsure)
            return np.where(chances >= LIKELY, 1 + ndtr(f.min() - means), chances)

        failed = [*results.failed, *self._failed]
        taken = {identity(values) for values in (*tried, *failed)}
        known_only = bool(self._hints) and not taken
        drawn = list(self._hints) if known_only else self._drawn(taken, failed, running)
        found = worth(drawn)
        for _ in range(0 if known_only else ROUNDS):  # around the best, then around the best of these
            centres = _first(drawn, found) + _first(tried, -f)
            near = np.concatenate([self._around(centre, radius) for centre in centres for radius in RADII])
            new = self._below(self._distinct(near, taken), failed, running)
            if new:
                drawn, found = drawn + new, np.concatenate([found, worth(new)])
        shift, decade = told.shift()[0], self._axis[1]
        self.outlook = Outlook(
            trust=float(rounded(told.trust())),
            chance=None,
            rate_shift=float(rounded(10 ** (-shift / decade))) if decade else 1.0,
        )
        first = drawn[int(np.argmax(found))]
        if best is not None:
            promising = [drawn[index] for index in np.argsort(-found, kind="stable")[:LOOKED_AT]]
            gain = self._gain * abs(min(results.losses)) / self.surface.spread
            worth_it = self._chance(model, promising, best - gain) if gain else None
            chance = self._chance(model, [first], best - LESS)
            self.outlook = self.outlook.model_copy(update={"chance": chance, "worth": worth_it})
        return first

    def _drawn(
        self, taken: set[Identity], failed: Sequence[dict[str, Value]], running: Sequence[dict[str, Value]]
    ) -> list[dict[str, Value]]:
        """Candidates all over the space, and the hints; at least one."""
        drawn = self._distinct(scrambled_sobol(self._directions, self._generator), taken)
        known = zip(identities(self._hints), self._hints, strict=True)
        drawn += [values for key, values in known if key not in taken]
        drawn = self._below(drawn, failed, running) or drawn
        return drawn or self._distinct(self._generator.random((1, len(self.space))), set())  # everything was tried

    def _below(
        self,
        candidates: list[dict[str, Value]],
        failed: Sequence[dict[str, Value]],
        running: Sequence[dict[str, Value]],
    ) -> list[dict[str, Value]]:
        """The candidates whose rate is well below all that failed; all of them where nothing has.

        Failures without a single loss say nothing but that the rate is too high, and the model, which knows levels
        only from losses, can't hear it. Running trials are on their way down, too; where there is no room below them,
        being below the failures is enough.
        """
        parameter = self.space.get(self._rate)
        if not failed or parameter is None or not parameter.ordered:
            return candidates
        rates = [float(each[self._rate]) for each in candidates]
        lowest = min(float(values[self._rate]) for values in failed)
        below_all = min([lowest, *(float(values[self._rate]) for values in running)])
        found = (
            list(compress(candidates, [rate <= most / STEP_DOWN for rate in rates])) for most in (below_all, lowest)
        )
        return next(filter(None, found), list(compress(candidates, [rate < lowest for rate in rates])))

    def _chance(self, model: TwoFidelity, configurations: Sequence[dict[str, Value]], level: float) -> float:
        """The largest of their chances to come out below a level."""
        return float(rounded(float(model.prospects(points(self.space, configurations), level)[1].max())))

    def _units(self, losses: Sequence[float]) -> Array:
        """The target's losses in the proxy's units (n,).

        The centre is the target's own: what lies a spread below it is its best so far, as the proxy's best lies a
        spread below the proxy's. The model's offset does the rest.
        """
        known = np.array(losses, dtype=np.float64)
        return Units(known.min() + self.surface.spread, self.surface.spread).of(known) if len(known) else known

    def _around(self, centre: Mapping[str, Value], radius: float) -> Array:
        """Points (AROUND, parameters) that differ from the centre in some coordinates."""
        shape, generator = (AROUND, len(self.space)), self._generator
        middle = np.array([parameter.to_unit(centre[name]) for name, parameter in self.space.items()])
        moved = generator.random(shape) < MOVED
        near = np.clip(middle + moved * radius * generator.standard_normal(shape), 0.0, 1.0)
        anew = np.flatnonzero(generator.random(AROUND) < REDRAWN)
        near[anew, generator.integers(len(self.space), size=len(anew))] = generator.random(len(anew))
        return near

    def _distinct(self, coordinates: Array, taken: set[Identity]) -> list[dict[str, Value]]:
        """The different configurations at unit coordinates (n, parameters) that aren't taken; from now on they are."""
        found = []
        candidates = from_units(self.space, coordinates.T.tolist())
        for key, values in zip(identities(candidates), candidates, strict=True):
            if key not in taken:
                taken.add(key)
                found.append(values)
        return found


def _settled(configurations: Sequence[dict[str, Value]], losses: Sequence[float]) -> _Results:
    """A failure, a loss that isn't finite, counts as worse than the worst loss by a margin, where there is one."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return _Results([], [], list(configurations))
    bad = worse_than(finite)
    return _Results(list(configurations), [loss if math.isfinite(loss) else bad for loss in losses], [])


def _first(configurations: Sequence[dict[str, Value]], worth: Array) -> list[dict[str, Value]]:
    order = np.argsort(-worth, kind="stable")[:CENTRES]
    return [configurations[index] for index in order]
