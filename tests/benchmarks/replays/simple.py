"""Methods that need no library: random search, the proxy's ranked list, a fixed default, a published rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from replays.replay import Seen, View
from replays.tables import Configuration
from understudy.search.sequences import uniform
from understudy.space import Range

MARGIN = 0.1  # of the losses' range, by which a failed run is worse than the worst


def finite(losses: Sequence[float]) -> list[float]:
    """Losses for libraries that can't take an infinite one: a failed run is a little worse than the worst."""
    known = [loss for loss in losses if math.isfinite(loss)]
    if not known:
        return [0.0] * len(losses)
    bad = max(known) + (MARGIN * (max(known) - min(known)) or MARGIN)
    return [loss if math.isfinite(loss) else bad for loss in losses]


class Random:
    """Independent uniform points of the space."""

    def start(self, view: View, seed: int) -> None:
        self._space, self._seed = view.space, seed

    def propose(self, history: Sequence[Seen], pending: Sequence[Configuration]) -> Configuration | None:
        return uniform(self._space, self._seed, len(history) + len(pending))


class Ranked:
    """The proxy's configurations from the best to the worst: as they are, or rescaled by the published rule."""

    def __init__(self, scaled: bool) -> None:
        self._scaled = scaled

    def start(self, view: View, seed: int) -> None:  # noqa: ARG002 - nothing is drawn
        order = sorted(proxy_runs(view, self._scaled), key=lambda trial: (trial.loss, trial.id))
        self._list = [trial.configuration for trial in order]

    def propose(self, history: Sequence[Seen], pending: Sequence[Configuration]) -> Configuration | None:
        number = len(history) + len(pending)
        return self._list[number] if number < len(self._list) else None


def rescaled(configuration: Configuration, view: View) -> Configuration:
    """A proxy configuration with every value that a published rule scales, scaled, inside the space."""
    values = dict(configuration)
    for name, factor in view.scale.items():
        parameter = view.space.get(name)
        if isinstance(parameter, Range):
            value = min(max(float(values[name]) * factor, parameter.low), parameter.high)
            values[name] = round(value) if parameter.integer else value
    return values


def proxy_runs(view: View, scaled: bool) -> tuple[Seen, ...]:
    """The proxy's trials: as they are, or with configurations rescaled by the published rule."""
    if not scaled:
        return view.proxy
    return tuple(replace(trial, configuration=rescaled(trial.configuration, view)) for trial in view.proxy)


class Fixed:
    """One configuration and no search: a customary default, or the published rule's."""

    def __init__(self, which: str) -> None:
        self._which = which

    def start(self, view: View, seed: int) -> None:  # noqa: ARG002 - nothing is drawn
        chosen = view.rule if self._which == "rule" else view.default
        self._configuration = {name: chosen[name] for name in view.space}

    def propose(self, history: Sequence[Seen], pending: Sequence[Configuration]) -> Configuration | None:
        return None if history or pending else self._configuration
