"""What can go wrong, drawn from a seed: the kind of a fault, when it strikes, and what it strikes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

KINDS = (
    "kill main",  # SIGKILL to snakemake
    "kill rank",  # SIGKILL to one of a trial's two processes
    "damage store",  # a record of a trained trial is cut off or altered while nothing runs
    "terminate worker",  # SIGTERM to a command
    "damage copy",  # likewise a result that a rule declares, whose truth is in the store
    "kill worker",  # SIGKILL to a command
    "terminate main",  # SIGTERM to snakemake
    "full disk",  # no byte is left where the study lies; needs a file system of its own
    "damage plan",  # specs, proposals, regions, starts, selection, winner
    "clock",  # times of change are hours off, in the past and in the future
    "small files",  # RLIMIT_FSIZE of a command
    "read-only",  # the results folder, when the study is started again; needs a mount
    "damage table",  # a parquet file
    "second run",  # another snakemake on the same study
    "damage settings",  # a slice of the config, a model's card, the execution, the manifest
    "damage weights",  # a file of an adapter in the store
    "damage checkpoint",  # where a trial or a pack stands
    "damage notes",  # progress, pin, looks, lock
    "stop rank",  # SIGSTOP to one of a trial's two processes: the watchdog ends the trial
)
DAMAGES = {
    "damage store": ["store/*/record.json", "store/test/*.json"],
    "damage copy": [
        "proxy/packs/*/results.json",
        "target/trials/*/result.json",
        "finalists/*/*/result.json",
        "test.json",
    ],
    "damage plan": ["proxy/packs/*/specs.json", "target/trials/*/proposal.json", "transfer/*.json", "finalists/*.json"],
    "damage table": ["data/*.parquet", "proxy/trials.parquet", "proxy/sha256sums.txt", "summary/*.parquet"],
    "damage settings": ["settings/*.json", "models/*/model.json", "execution/*.json", "data/manifest.json"],
    "damage weights": ["store/*/adapter/*"],
    "damage checkpoint": ["store/packs/*.pt", "store/*/checkpoint/*"],
    "damage notes": ["progress.jsonl", "pin.json", ".lock", "store/test/looks.jsonl", "store/packs/*.notes.json"],
}
NEEDS_MOUNT = ("full disk", "read-only")
ALTERATIONS = ("cut off", "emptied", "one bit", "zeros")


@dataclass(frozen=True)
class Fault:
    """One fault. It strikes `delay` seconds after the `job`-th command of a start has begun."""

    seed: int
    kind: str
    job: int
    delay: float

    @property
    def random(self) -> random.Random:
        """For what else has to be drawn, such as the file."""
        return random.Random(f"{self.seed}/{self.kind}")


def drawn(seed: int) -> Fault:
    """The fault of a seed. Kinds take turns, so that any run of seeds has them all alike."""
    chosen = random.Random(seed)
    return Fault(seed, KINDS[seed % len(KINDS)], chosen.randint(1, 4), chosen.uniform(0.0, 6.0))


def alter(path: Path, chosen: random.Random) -> str:
    """Damage a file; return how."""
    content, how = bytearray(path.read_bytes()), chosen.choice(ALTERATIONS)
    if not content:
        return "was empty anyway"
    place = chosen.randrange(len(content))
    if how == "cut off":
        del content[place:]
    elif how == "emptied":
        content.clear()
    elif how == "one bit":
        content[place] ^= 1 << chosen.randrange(8)
    else:
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    path.write_bytes(content)
    return how
