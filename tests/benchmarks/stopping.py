"""When to stop a study: what `target.stop` saves and what it loses, beside Optuna's terminators and a fixed number.

    python tests/benchmarks/stopping.py --steplaw steplaw_dense.csv [--seeds 5] [--jobs 2]
    python tests/benchmarks/stopping.py --table tests/benchmarks/transfer_runs.parquet --half both

The replays are those of `transfer.py` with `understudy_two_fidelity`, of sixteen runs each. Every rule looks at the
same runs after each and says when it would have stopped: the program's by how long there was no gain and by the
chance of one that the next proposal sees; Optuna's by the runs so far, with as few first ones as the program needs in
place of 20 or 30, their defaults, which a study of sixteen runs never reaches (Optuna 4.9 calls them deprecated).
Prints the mean number of runs and the mean regret, in percent of the best loss, when a rule stopped, and how often a
run gained as much, by the chance that it was given; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np

import transfer
from replays.ours import Understudy
from replays.replay import PROXY_TRIALS, TRIALS, Run, View, replay
from replays.simple import finite
from replays.statistics import regrets
from replays.tasks import Problem
from understudy.search.distributions import distribution, to_optuna
from understudy.search.propose import without_gain
from understudy.search.quiet import quiet_optuna
from understudy.search.window import visible
from understudy.stages import FEWEST_WITH_STOP, StopSettings

NEVER = 1e-9  # a chance below which nothing stops, so that a replay goes on and notes all chances
DEFAULT = StopSettings()
PATIENCES = (0, 4, DEFAULT.patience, 8)  # of the program's rule; 0 asks the model alone
CHANCES = (0.05, DEFAULT.chance, 0.5, 1.0)  # likewise; 1 doesn't ask it
FIXED = (4, 6, 8, 12, TRIALS)
STAGNATION = (3, 5, 8)  # runs without a better one
BINS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 1.01)  # of chances


class Noting(Understudy):
    """The product's own sampler, which notes the chance of a gain before each run and never stops by it."""

    def __init__(self, gain: float) -> None:
        super().__init__("two_fidelity")
        self._stop = StopSettings(gain=gain, chance=NEVER)

    def start(self, view: View, seed: int) -> None:
        super().start(view, seed)
        self._section = self._section.model_copy(update={"stop": self._stop})

    def worths(self) -> list[float | None]:
        """Before each run; None where the model wasn't asked."""
        return [each.outlook.worth if each.outlook else None for each in self._proposals]


def main() -> None:
    """Replay, judge, print."""
    options = arguments(sys.argv[1:])
    found: dict[str, dict[str, Any]] = {}
    for name, problems in transfer.problem_sets(options).items():
        found[name] = judged(problems, options)
        print(f"\n{name}: {len(problems)} tasks, {options.seeds} seeds")
        print_tables(**found[name])
    print(json.dumps({"options": vars(options), "sets": found}, default=str))


def judged(problems: Sequence[Problem], options: argparse.Namespace) -> dict[str, Any]:
    """Every rule's mean number of runs, and mean regret, over tasks and seeds; and what became of the chances."""
    settings = [pair for pair in product(options.patience, options.chance) if pair[0] > 0 or pair[1] < 1]
    work = partial(stops, seeds=options.seeds, gain=options.gain, window=options.window, settings=settings)
    each = transfer.over(problems, work, options.jobs)
    rows = [row for rows, _ in each for row in rows]
    rules = {rule: np.mean([row[rule] for row in rows], axis=0).tolist() for rule in rows[0]}
    return {"rules": rules, "chances": kept([pair for _, pairs in each for pair in pairs])}


def kept(pairs: Sequence[tuple[float, bool]]) -> dict[str, tuple[int, float, float]]:
    """How the chances that were given came true, in bins: how many, their mean, the share that gained so much."""
    found = {}
    for low, high in pairwise(BINS):
        inside = [pair for pair in pairs if low <= pair[0] < high]
        if inside:
            chance, share = np.mean(inside, axis=0).tolist()
            found[f"{low:g} to {min(high, 1):g}"] = (len(inside), chance, share)
    return found


def stops(
    problem: Problem, seeds: int, gain: float, window: int, settings: Sequence[tuple[int, float]]
) -> tuple[list[dict[str, tuple[int, float]]], list[tuple[float, bool]]]:
    """For each seed and rule, after how many runs it stops, and the regret there in percent.

    The program's rule has each of the `settings`, patience and chance. And for each run whose proposal gave a gain a
    chance: that chance, and whether the run gained so much.
    """
    found, pairs = [], list[tuple[float, bool]]()
    for seed in range(seeds):
        method = Noting(gain)
        run = replay(problem, method, seed, TRIALS, window, PROXY_TRIALS)
        (curve,) = regrets(problem, {seed: run}, TRIALS)
        worths = method.worths()
        losses = finite([problem.target[index] for index in run.indices])
        places = {f"{count} runs": count for count in FIXED}
        for patience, chance in settings:
            places[named(patience, chance)] = by_outlook(worths, losses, gain, window, patience, chance)
        for name, make in terminators(gain).items():
            places[name] = min(by_terminator(problem, run, make) + window - 1, TRIALS)  # those that run meanwhile
        found.append({rule: (count, float(curve[count - 1])) for rule, count in places.items()})
        for number, worth in enumerate(worths):
            if worth is not None:
                best = min(losses[: seen(number, window)])
                pairs.append((worth, losses[number] < best - gain * abs(best)))
    return found, pairs


def named(patience: int, chance: float) -> str:
    """The program's rule with these settings."""
    parts = [f"patience {patience}"] * (patience > 0) + [f"chance {chance:g}"] * (chance < 1)
    return ", ".join(parts) + " alone" * (len(parts) == 1)


def seen(number: int, window: int) -> int:
    """How many results proposal `number` sees."""
    return len(visible(number, window))


def by_outlook(
    worths: Sequence[float | None], losses: Sequence[float], gain: float, window: int, patience: int, chance: float
) -> int:
    """Runs before the first whose chance of a gain is too small, while those it sees brought none for so long."""
    for number, worth in enumerate(worths):
        hopeless = number >= FEWEST_WITH_STOP and worth is not None and worth < chance
        if hopeless and without_gain(losses[: seen(number, window)], gain) >= patience:
            return number
    return len(worths)


def by_terminator(problem: Problem, run: Run, make: Callable[[Any], Any]) -> int:
    """Runs after which a terminator of Optuna's ends a study of them."""
    seen = [problem.configuration(index) for index in run.indices]
    losses = finite([problem.target[index] for index in run.indices])
    with quiet_optuna() as optuna, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental, and deprecated
        from optuna import terminator as terminators_of_optuna

        study = optuna.create_study()
        distributions = {name: distribution(each) for name, each in problem.space.items()}
        terminator = make(terminators_of_optuna)
        for number, (values, loss) in enumerate(zip(seen, losses, strict=True), 1):
            params = {name: to_optuna(problem.space[name], values[name]) for name in problem.space}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=loss))
            if terminator.should_terminate(study):
                return number
    return len(losses)


def terminators(gain: float) -> Mapping[str, Callable[[Any], Any]]:
    """Optuna's, by name.

    More than so many runs without a better one; a bound of the regret (Makarova et al. 2022), here against `gain`; the
    expected minimum of the regret and how it shrinks, EMMR (Ishibashi et al. 2023).
    """

    def stagnation(optuna: Any, runs: int) -> Any:
        return optuna.Terminator(optuna.BestValueStagnationEvaluator(runs), min_n_trials=FEWEST_WITH_STOP)

    def bound(optuna: Any) -> Any:
        evaluator = optuna.RegretBoundEvaluator(min_n_trials=FEWEST_WITH_STOP, seed=1)

        class Share(optuna.BaseErrorEvaluator):  # type: ignore[misc]
            """The gain, in nats, of the best loss so far."""

            def evaluate(self, trials: Sequence[Any], study_direction: Any) -> float:  # noqa: ARG002
                return gain * abs(min(trial.value for trial in trials))

        return optuna.Terminator(evaluator, Share(), min_n_trials=FEWEST_WITH_STOP)

    def emmr(optuna: Any) -> Any:
        evaluator = optuna.EMMREvaluator(min_n_trials=2, seed=1)
        error = optuna.MedianErrorEvaluator(evaluator, warm_up_trials=2, n_initial_trials=FEWEST_WITH_STOP)
        return optuna.Terminator(evaluator, error, min_n_trials=FEWEST_WITH_STOP)

    named = {f"Optuna, stagnation of {runs}": partial(stagnation, runs=runs) for runs in STAGNATION}
    return {**named, "Optuna, regret bound": bound, "Optuna, EMMR": emmr}


def print_tables(rules: Mapping[str, tuple[float, float]], chances: Mapping[str, tuple[int, float, float]]) -> None:
    """The rules of one set, and what became of the chances."""
    print("| rule | runs | regret |\n|---|--:|--:|")
    for rule, (runs, regret) in rules.items():
        print(f"| {rule} | {runs:.1f} | {regret:.3f} |")
    print("\n| chance given to a gain | runs | its mean | share that gained |\n|---|--:|--:|--:|")
    for name, (count, chance, share) in chances.items():
        print(f"| {name} | {count} | {chance:.3f} | {share:.3f} |")


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    transfer.add_tasks(parser)
    add = parser.add_argument
    add("--seeds", type=int, default=5)
    add("--gain", type=float, default=DEFAULT.gain, help="what would be worth a run, as a share of the best loss")
    add("--window", type=int, default=1, help="a proposal sees the results of all but so many less one before it")
    add(
        "--patience", type=int, nargs="+", default=PATIENCES, help="to try: runs without a gain; 0 asks the model alone"
    )
    add("--chance", type=float, nargs="+", default=CHANCES, help="to try: of a gain; 1 doesn't ask the model")
    add("--jobs", type=int, default=1, help="processes")
    add("--quick", action="store_true", help="one task of the first and last set, one seed: whether it runs")
    options = parser.parse_args(given)
    if options.quick:
        options.seeds, options.half = 1, "both"
    return options


if __name__ == "__main__":
    main()
