"""The shape of the workflow's graph: which packs and finalists a config asks for. Known before anything has run."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.config import StudyConfig
from understudy.progress import STAGES

BLOCK = 4  # packs whose trials are dealt out together, so that trials of similar length share a pack


@dataclass(frozen=True)
class PackRange:
    """A pack's place: the `index`-th of the packs of `size` that a block of its origin's trials is dealt to.

    The block has `block` trials from number `first`. Which of them are the pack's, `search/planning.py` decides.
    """

    origin: str
    first: int
    block: int
    index: int
    size: int

    @property
    def count(self) -> int:
        """Trials of the pack."""
        return min(self.size, self.block - self.index * self.size)

    @property
    def numbers(self) -> range:
        """Numbers of its trials, where the block's are dealt in order."""
        start = self.first + self.index * self.size
        return range(start, start + self.count)


def known_defaults(config: StudyConfig) -> int:
    """How many known-good configurations there are: the default, and where the rate is searched two fixed rates.

    What they are is in `search/defaults.py`.
    """
    return 3 if "learning_rate" in config.space else 1


def proxy_packs(config: StudyConfig) -> dict[str, PackRange]:
    """The packs of the proxy search by id, such as `sobol-001`. More trials of one origin leave the others alone."""
    proxy = config.proxy
    counts = {
        "default": known_defaults(config) if proxy.defaults else 0,
        "random": proxy.random,
        "sobol": proxy.sobol,
        "grid": proxy.grid_size,
    }
    packs: dict[str, PackRange] = {}
    for origin, count in counts.items():
        packs |= _split(origin, count, proxy.pack_size)
    return packs


def echo_packs(config: StudyConfig) -> dict[str, PackRange]:
    """The packs that run target configurations back on the proxy, by id, such as `echo-000`."""
    return _split("echo", config.target.trials, config.proxy.pack_size) if config.proxy.echo else {}


def truncated_runs(config: StudyConfig) -> int:
    """How many configurations the target tries in short runs first."""
    return config.target.truncated.trials if config.target.truncated else 0


def finalist_runs(config: StudyConfig) -> list[tuple[int, int]]:
    """Pairs of rank and seed index. Rank 0 is the default configuration."""
    finalists = config.finalists
    return [(rank, seed) for rank in range(finalists.configurations + 1) for seed in range(finalists.seeds)]


def totals(config: StudyConfig) -> dict[str, int]:
    """How many trials each stage has in all."""
    packs = [*proxy_packs(config).values(), *echo_packs(config).values()]
    proxy, finalists = sum(pack.count for pack in packs), len(finalist_runs(config))
    counts = (proxy, truncated_runs(config), config.target.trials, finalists)
    return dict(zip(STAGES, counts, strict=True))


def plan(config: StudyConfig, side_by_side: int) -> str:
    """The whole study in one line. `side_by_side`: target trials that can run at the same time."""
    count, echoes = totals(config), sum(pack.count for pack in echo_packs(config).values())
    packs = len(proxy_packs(config)) + len(echo_packs(config))
    parts = [
        f"{count['proxy']} proxy trials in {packs} packs" + (f" ({echoes} repeat target trials)" if echoes else ""),
        f"{count['truncated']} short runs of the target" if count["truncated"] else "",
        f"{count['target']} target trials (up to {side_by_side} side by side)",
        f"{count['finalist']} finalist trials",
        f"{config.decode.trials} decoding configurations" if config.decode.trials else "",
    ]
    return "the whole study: " + ", ".join(part for part in parts if part)


def _split(origin: str, count: int, size: int) -> dict[str, PackRange]:
    """Packs of `size` of an origin, the last one maybe smaller. More trials change none before the last block."""
    packs: dict[str, PackRange] = {}
    for i in range(-(-count // size)):
        first = i // BLOCK * BLOCK * size
        packs[f"{origin}-{i:03d}"] = PackRange(origin, first, min(BLOCK * size, count - first), i % BLOCK, size)
    return packs
