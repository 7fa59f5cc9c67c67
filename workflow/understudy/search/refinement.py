"""An Optuna sampler that proposes what the two-fidelity model expects to be better than anything so far.

It can be used without the workflow:

    regions = read_model(Path("results/transfer/regions.json"), Regions)
    study = optuna.create_study(sampler=TwoFidelitySampler(regions.surface, regions.space, seed=1))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from scipy.special import ndtr
from scipy.stats import qmc

from understudy.artifacts import Outlook, Surface
from understudy.hyperparameters import Value
from understudy.search.distributions import distribution, from_optuna, to_optuna
from understudy.search.gaussian import Array
from understudy.search.surface import points, posterior, rate_axis
from understudy.search.two_fidelity import TwoFidelity, Units
from understudy.search.values import Identity, from_unit, identity, rounded
from understudy.space import Space

SPREAD_OUT = 2048  # candidates all over the space, a power of two
AROUND = 48  # candidates around each centre
CENTRES = 6  # the best of those all over the space, and of those tried
RADII = (0.02, 0.06, 0.15)  # in unit coordinates
MOVED = 0.5  # probability that a candidate around a centre differs from it in a coordinate
REDRAWN = 0.3  # share of those around a centre that have one coordinate drawn anew
LOOKED_AT = 256  # of the best candidates, for a larger gain
ROUNDS = 2  # of candidates around centres
LESS = 0.005  # in units: what counts as better
LIKELY = 0.35  # chance to be better from which the expected loss decides


class TwoFidelitySampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """Proposes by the two-fidelity model: of what is likely enough to beat the best so far, the smallest expected loss.

    Likely enough is a chance of `LIKELY`; where nothing is, the largest chance counts, and without a result the
    expected loss and a standard deviation of the proxy's surface. The expected improvement is no guide here: where the
    budget is a few runs, looking for what might be much better but probably isn't costs more than it finds (measured:
    see `tests/benchmarks/README.md`). Running trials are believed to come out as predicted.

    `surface` and `space` are those of `results/transfer/regions.json`; a trial's parameters have `distributions`.
    `hints` are configurations of the space, such as the proxy's best: the first trial is one of them, since what a
    model imagines beyond its data waits for a result; then they are candidates beside those that the sampler draws.
    `truncated` has configurations with the losses of shorter runs of the same model, which count as a fidelity between.
    With `gain`, a share of the best loss, `outlook.worth` says how probable it is that a candidate beats it by so much.
    """

    def __init__(
        self,
        surface: Surface,
        space: Space,
        seed: int,
        hints: Sequence[Mapping[str, Value]] = (),
        gain: float = 0.0,
        truncated: Sequence[tuple[Mapping[str, Value], float]] = (),
    ) -> None:
        self.surface, self.space = surface, space
        self.distributions = {name: distribution(parameter) for name, parameter in space.items()}
        self._gain = gain
        self._hints = [dict(values) for values in hints]
        self._generator = np.random.default_rng(seed)
        self._process, self._axis = posterior(surface), rate_axis(space)
        self._truncated = self._measured(truncated) if truncated else None
        self.outlook: Outlook | None = None  # of the last proposal

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:  # noqa: ARG002
        """The whole space, with or without finished trials."""
        return dict(self.distributions)

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """All parameters of a trial."""
        states = optuna.trial.TrialState
        told = study.get_trials(deepcopy=False, states=(states.COMPLETE,))
        running = [
            other
            for other in study.get_trials(deepcopy=False, states=(states.RUNNING,))
            if other.number != trial.number and set(self.space) <= set(other.params)
        ]
        tried = [self._values(other.params) for other in (*told, *running)]
        values = self._best(tried, [float(other.value) for other in told])
        return {name: to_optuna(parameter, values[name]) for name, parameter in self.space.items()}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:  # noqa: ARG002
        """Never needed in the surface's space.

        Raises `ValueError`: the surface knows nothing of another parameter.
        """
        raise ValueError(f"{param_name} isn't in the space of the proxy's surface, which has {', '.join(self.space)}")

    def _values(self, params: Mapping[str, Any]) -> dict[str, Value]:
        return {name: from_optuna(parameter, params[name]) for name, parameter in self.space.items()}

    def _best(self, tried: Sequence[dict[str, Value]], losses: Sequence[float]) -> dict[str, Value]:
        """What to try after `tried`, of which the first ones have losses and the others are running."""
        x = points(self.space, tried) if tried else np.zeros((0, len(self.surface.lengths)))
        f = self._units(losses)
        model = told = TwoFidelity(self._process, *self._axis, x[: len(f)], f, self._truncated)
        if len(f) < len(tried):
            f = np.concatenate([f, model.predict(x[len(f) :])[0]])
            model = TwoFidelity(self._process, *self._axis, x, f, self._truncated)

        def worth(configurations: Sequence[dict[str, Value]]) -> Array:
            coordinates = points(self.space, configurations)
            means, chances = model.prospects(coordinates, f.min() - LESS if len(f) else 0.0)
            if not len(f):
                unsure = 0.0 if self._truncated else np.sqrt(self._process.at(coordinates).variance)
                return np.asarray(-means - unsure)
            return np.where(chances >= LIKELY, 1 + ndtr(f.min() - means), chances)

        taken = {identity(values) for values in tried}
        everywhere = qmc.Sobol(len(self.space), rng=self._generator).random(SPREAD_OUT)
        drawn = self._distinct(everywhere, taken)
        drawn += [values for values in self._hints if identity(values) not in taken]
        if not drawn:  # everything was tried
            drawn = self._distinct(self._generator.random((1, len(self.space))), set())
        known_only = bool(self._hints) and not tried
        if known_only:
            drawn = list(self._hints)
        found = worth(drawn)
        for _ in range(0 if known_only else ROUNDS):  # around the best, then around the best of these
            centres = _first(drawn, found) + _first(tried, -f)
            near = np.concatenate([self._around(centre, radius) for centre in centres for radius in RADII])
            new = self._distinct(near, taken | {identity(values) for values in drawn})
            if new:
                drawn, found = drawn + new, np.concatenate([found, worth(new)])
        place = int(np.argmax(found))
        worthwhile = None
        if losses and self._gain:
            few = points(self.space, [drawn[index] for index in np.argsort(-found, kind="stable")[:LOOKED_AT]])
            less = self._gain * abs(min(losses)) / self.surface.spread
            worthwhile = float(rounded(float(model.prospects(few, f.min() - less)[1].max())))
        shift, decade = told.shift()[0], self._axis[1]
        self.outlook = Outlook(
            trust=float(rounded(told.trust())),
            chance=self._chance(model, drawn[place], f.min()) if len(f) else None,
            worth=worthwhile,
            rate_shift=float(rounded(10 ** (-shift / decade))) if decade else 1.0,
        )
        return drawn[place]

    def _chance(self, model: TwoFidelity, values: Mapping[str, Value], best: float) -> float:
        return float(rounded(float(model.prospects(points(self.space, [values]), best - LESS)[1][0])))

    def _measured(self, truncated: Sequence[tuple[Mapping[str, Value], float]]) -> tuple[Array, Array]:
        """Unit coordinates (n, d) and losses (n,) in units."""
        return points(self.space, [values for values, _ in truncated]), self._units([loss for _, loss in truncated])

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
        """The different configurations at unit coordinates (n, parameters) that aren't taken."""
        found: dict[Identity, dict[str, Value]] = {}
        for row in coordinates.tolist():
            values = from_unit(self.space, row)
            if (key := identity(values)) not in taken:
                found.setdefault(key, values)
        return list(found.values())


def _first(configurations: Sequence[dict[str, Value]], worth: Array) -> list[dict[str, Value]]:
    order = np.argsort(-worth, kind="stable")[:CENTRES]
    return [configurations[index] for index in order]
