"""One replay: the proxy stage, then a method that proposes target runs one after the other.

Notation: n configurations, d coordinates after embedding, k target runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from replays.tables import Configuration
from replays.tasks import Problem
from understudy.search.clusters import embed
from understudy.search.defaults import known_good, learning_rate_rule
from understudy.search.grid import grid_points
from understudy.search.sequences import sobol, uniform
from understudy.space import Space
from understudy.trial import ModelCard, derive_seed

TRIALS = 16  # target runs of a replay
PROXY_TRIALS = 32  # at most half of the configurations that there are
RANDOM_SHARE = 1 / 3  # of the proxy's trials beside grid and defaults; the others are a Sobol sequence


@dataclass(frozen=True)
class Seen:
    """A finished run: of the proxy with the id that the proxy stage gives it, of the target with its number.

    `loss` is infinite where it failed.
    """

    id: str
    origin: str
    configuration: Configuration
    loss: float


@dataclass(frozen=True)
class View:
    """What a method may know when it starts; `scale` is what published rules multiply the proxy's values by."""

    space: Space
    proxy: tuple[Seen, ...]
    defaults: Configuration
    default: Configuration
    rule: Configuration
    scale: Mapping[str, float]
    cards: tuple[ModelCard, ModelCard]
    tokens: tuple[float, float]
    trials: int
    window: int
    truncated: Callable[[Configuration], Seen] | None = None  # a shorter run of the target


class Method(Protocol):
    """A way to choose target runs."""

    def start(self, view: View, seed: int) -> None:
        """Learn what there is to know before the first run."""

    def propose(self, history: Sequence[Seen], pending: Sequence[Configuration]) -> Configuration | None:
        """The next configuration, anywhere in the space; None where the method has no more to say.

        `history` has the finished runs in order, with the configurations that were really run; `pending` those that
        are still running.
        """


@dataclass(frozen=True)
class Run:
    """What came of a replay: the target runs as indices of configurations, and the seconds that each proposal took.

    The first one's seconds include the start.
    """

    seed: int
    indices: tuple[int, ...]
    seconds: tuple[float, ...]


class Snapper:
    """The nearest configuration of a table that wasn't taken yet, in unit-cube distance; the first of equals."""

    def __init__(self, space: Space, configurations: Sequence[Configuration]) -> None:
        self.space = space
        self._weights = dict.fromkeys(space, 1.0)
        self._points = embed(space, configurations, self._weights)  # (n, d)
        self.taken: list[int] = []

    def take(self, configuration: Configuration) -> int:
        point = embed(self.space, [configuration], self._weights)[0]
        distances = ((self._points - point) ** 2).sum(axis=1)
        distances[self.taken] = np.inf
        index = int(np.argmin(np.round(distances, 12)))
        self.taken.append(index)
        return index


def proxy_budget(problem: Problem, wanted: int = PROXY_TRIALS) -> int:
    """Trials of the proxy stage: a search that could afford most of a grid would need no search."""
    return min(wanted, len(problem.keys) // 2)


def proxy_stage(problem: Problem, seed: int, wanted: int = PROXY_TRIALS) -> tuple[Seen, ...]:
    """The proxy's trials, as the product plans them: known-good defaults, a grid, uniform and Sobol points.

    Each is the nearest configuration that wasn't tried yet, with the source's loss.
    """
    budget = proxy_budget(problem, wanted)
    card, seed = problem.cards[0], derive_seed(seed, "proxy")
    rate = learning_rate_rule(card.hidden_size, card.model_type, "lora")
    known = [item.hyperparameters for item in known_good(problem.space, problem.defaults, rate, "lora")]
    base = {"learning_rate": rate, **problem.defaults}
    grid = [{**base, **point} for point in grid_points(problem.grid)][: budget // 4]
    rest = max(0, budget - len(known) - len(grid))
    random = [uniform(problem.space, seed, i) for i in range(round(rest * RANDOM_SHARE))]
    plan = {
        "default": ("d{:02d}", known),
        "grid": ("g{:04d}", grid),
        "random": ("r{:04d}", random),
        "sobol": ("q{:04d}", sobol(problem.space, seed, 0, rest - len(random))),
    }
    snapper = Snapper(problem.space, problem.configurations)
    losses = problem.source
    if problem.task.lie == "shuffled":
        losses = tuple(np.random.default_rng(derive_seed(seed, "shuffled")).permutation(losses).tolist())
    found = []
    for origin, (name, chosen) in plan.items():
        for number, values in enumerate(chosen):
            index = snapper.take({each: values[each] for each in problem.names})
            found.append(Seen(name.format(number), origin, problem.configuration(index), losses[index]))
    return tuple(found)


def _shorter(problem: Problem) -> Callable[[Configuration], Seen] | None:
    """Shorter runs of the target, each of the nearest configuration that wasn't run so yet; None where there are none.

    Whole runs may repeat their configurations.
    """
    losses = problem.truncated
    if losses is None:
        return None
    snapper = Snapper(problem.space, problem.configurations)

    def run(configuration: Configuration) -> Seen:
        index = snapper.take(configuration)
        return Seen(f"u{len(snapper.taken) - 1:04d}", "truncated", problem.configuration(index), losses[index])

    return run


def replay(problem: Problem, method: Method, seed: int, trials: int, window: int, proxy_trials: int) -> Run:
    """Run a method on a task. With window W, proposal n sees the results of runs 0 to n - W."""
    view = View(
        space=problem.space,
        proxy=proxy_stage(problem, seed, proxy_trials),
        defaults=problem.defaults,
        default=problem.default,
        rule=problem.rule,
        scale=problem.scale,
        cards=problem.cards,
        tokens=problem.tokens,
        trials=trials,
        window=window,
        truncated=_shorter(problem),
    )
    snapper = Snapper(problem.space, problem.configurations)
    history: list[Seen] = []
    seconds: list[float] = []
    began = time.perf_counter()
    method.start(view, derive_seed(seed, "method"))
    for number in range(min(trials, len(problem.keys))):
        visible = max(0, number - window + 1)
        proposal = method.propose(history[:visible], [run.configuration for run in history[visible:]])
        seconds.append(time.perf_counter() - began)
        if proposal is None:
            break
        index = snapper.take(proposal)
        history.append(Seen(f"t{number:04d}", "target", problem.configuration(index), problem.target[index]))
        began = time.perf_counter()
    return Run(seed, tuple(snapper.taken), tuple(seconds))
