"""How long a study still takes: from how fast its trials came, and how many of them run side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

FEWEST = {"proxy": 3}  # finished trials from which a stage's mean is taken for known; of full-size ones one says enough
LIKENESS = ("target", "finalist", "truncated", "proxy")  # whose mean a stage without finished trials goes by


@dataclass
class Pace:
    """How fast this run's trials of a stage came."""

    trials: int = 0
    work: float = 0.0  # seconds that they took, summed; of a packed trial, its share of the pack's time
    first: float = math.inf  # when the first one ended
    last: float = -math.inf

    def add(self, seconds: float, ended: float) -> None:
        """Count a trial."""
        self.trials, self.work = self.trials + 1, self.work + seconds
        self.first, self.last = min(self.first, ended), max(self.last, ended)

    def known(self, stage: str) -> bool:
        """Whether enough trials have finished to go by."""
        return self.trials >= FEWEST.get(stage, 1)

    @property
    def mean(self) -> float:
        """Seconds that a trial took."""
        return self.work / self.trials

    def seconds(self, stage: str, workers: int) -> float:
        """From one finished trial to the next, where `workers` run side by side.

        Trials that begin together end together, so the times of their ends count when these have come round twice, and
        only where they are longer: then starts of processes and waiting for results are in them. Not in the proxy
        stage: its last trials repeat the target's, and wait for them.
        """
        ideal = self.mean / workers
        if stage == "proxy" or self.trials < max(3, 2 * workers):
            return ideal
        return max(ideal, (self.last - self.first) / (self.trials - 1))


@dataclass(frozen=True)
class Outlook:
    """What is known of a run before its first trial ends."""

    side_by_side: Mapping[str, int]  # trials of each stage that run at the same time, at most
    costs: Mapping[str, float]  # a trial's seconds, in proxy trials' ones, for models of one size
    size_ratio: float | None  # parameters of the target per one of the proxy's; None while one is unknown

    def seconds_left(self, left: Mapping[str, int], paces: Mapping[str, Pace]) -> float | None:
        """Until the trials that are left of each stage have run, stage after stage; None while too little is known.

        A stage of which no trial has ended yet goes by another's trials, and by the models' sizes.
        """
        known = {stage: pace for stage, pace in paces.items() if pace.known(stage)}
        if not known:
            return None
        whole = 0.0
        for stage, count in left.items():
            if not count:
                continue
            workers = self.side_by_side.get(stage, 1)
            if stage in known:
                whole += count * known[stage].seconds(stage, workers)
                continue
            other = next(name for name in LIKENESS if name in known)
            relative = self._relative(stage, other)
            if relative is None:
                return None
            whole += count * relative * known[other].mean / workers
        return whole

    def _relative(self, stage: str, other: str) -> float | None:
        """How many times a trial of another stage one of this stage takes."""
        same_size = self.costs.get(stage, 1.0) / self.costs.get(other, 1.0)
        if (stage == "proxy") == (other == "proxy"):
            return same_size
        if self.size_ratio is None:
            return None
        return same_size * (self.size_ratio if other == "proxy" else 1 / self.size_ratio)
