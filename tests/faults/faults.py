"""What can go wrong, drawn from a seed: the kind of a fault, when it strikes, and what it strikes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

# Signals to a process of the study: snakemake, a command, or one of a trial's two processes
KILLS = (
    "kill main",  # SIGKILL
    "kill rank",
    "terminate worker",  # SIGTERM
    "preempt rank",  # SIGUSR1, as schedulers send it
    "kill worker",
    "terminate main",
    "terminate rank",
    "preempt worker",
    "preempt main",
)
OTHERS = (
    "damage store",  # a record of a trained trial is cut off or altered while nothing runs
    "full disk",  # no byte is left where the study lies; needs a file system of its own
    "damage weights",  # likewise a file of a finalist's adapter, before the test has used it
    "damage checkpoint",  # where a trial or a pack stands that was cut down in the middle
    "damage copy",  # a result that a rule declares, whose truth is in the store
    "small files",  # RLIMIT_FSIZE of a command
    "damage plan",  # specs, proposals, regions, starts, selection, winner
    "clock",  # it jumps by hours, to and fro; then times of change are off, in the past and in the future
    "read-only",  # the results folder, when the study is started again; needs a mount
    "damage table",  # a parquet file
    "second run",  # another snakemake on the same study
    "stop rank",  # SIGSTOP to one of a trial's two processes: the watchdog ends the trial
    "damage settings",  # a slice of the config, a model's card, the execution, the manifest
    "damage notes",  # progress, pin, looks, lock
)
NEEDS_MOUNT = ("full disk", "read-only")
TURN = 5  # seeds, of which the first, third and fifth are kills
ALTERATIONS = ("cut off", "emptied", "one bit", "zeros")


@dataclass(frozen=True)
class Fault:
    """One fault. It strikes `delay` seconds after the `job`-th command of a start has begun, or as soon after that as
    there is what it strikes.
    """

    seed: int
    kind: str
    job: int
    delay: float

    @property
    def is_kill(self) -> bool:
        return self.kind in KILLS

    @property
    def may_wait(self) -> bool:
        """Whether what it strikes may not be there when its moment has come."""
        return self.kind.startswith("damage") or self.kind.endswith("rank")

    @property
    def random(self) -> random.Random:
        """For what else has to be drawn, such as the file."""
        return random.Random(f"{self.seed}/{self.kind}")

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.kind}"


def drawn(seed: int) -> Fault:
    """The fault of a seed. Kinds take turns, so that any run of seeds has them all alike."""
    chosen, (turn, place) = random.Random(seed), divmod(seed, TURN)
    kinds, number = (OTHERS, 2 * turn + place // 2) if place % 2 else (KILLS, 3 * turn + place // 2)
    return Fault(seed, kinds[number % len(kinds)], chosen.randint(1, 3), chosen.uniform(0.0, 5.0))


def alter(path: Path, chosen: random.Random) -> str:
    """Damage a file that isn't empty, so that it is another one; return how."""
    whole = path.read_bytes()
    while True:
        content, how, place = bytearray(whole), chosen.choice(ALTERATIONS), chosen.randrange(len(whole))
        if how == "cut off":
            del content[place:]
        elif how == "emptied":
            content.clear()
        elif how == "one bit":
            content[place] ^= 1 << chosen.randrange(8)
        else:
            content[place : place + 64] = bytes(len(content[place : place + 64]))
        if content != whole:  # zeros may have been there before
            path.write_bytes(content)
            return how
