"""Who takes part. A further method is one more line of `ENTRIES`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import understudy
from replays import code
from replays.replay import Method

FOLDERS = Path(__file__).parents[1], Path(understudy.__file__).parents[1]  # where a replay's own code lies
REPLAY, PROXY_STAGE = ("replays.replay", "replay"), ("replays.replay", "proxy_stage")
OPTUNA = "replays.optuna", "Optuna"
SIMPLE = "replays.simple"
LIBRARIES = ("numpy", "optuna", "scipy")
SYNE, SYNE_TUNE = "replays.synetune", {"syne_tune": "syne-tune", "botorch": "botorch"}
SMAC, SMAC3 = ("replays.smac", "Smac"), {"smac": "smac"}
OURS = "replays.ours", "Understudy"
TORCH, SKLEARN = "torch", "scikit-learn"


@dataclass(frozen=True)
class Entry:
    """A method: its class with its settings, and whether it looks at the proxy; one that doesn't pays nothing for it.

    `truncated` is how many shorter runs of the target it has first, where the table has such, and pays for.
    `needs` has the modules that must be installed, each with its package; `libraries` what else it computes with.
    """

    name: str
    module: str
    factory: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    proxy: bool = True
    truncated: int = 0
    needs: Mapping[str, str] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()
    ours: bool = False

    def missing(self) -> list[str]:
        """The packages that it needs and that aren't installed."""
        return [package for module, package in self.needs.items() if importlib.util.find_spec(module) is None]

    def make(self) -> Method:
        return cast(Method, getattr(importlib.import_module(self.module), self.factory)(**self.settings))

    def version(self, folders: tuple[Path, ...] = FOLDERS) -> str:
        """A digest of everything that can change what it proposes: settings, the code it runs, installed versions.

        A task's numbers aren't in it: a job's file has them in its name. The proxy stage is, where it is looked at.
        """
        computed = code.digest((REPLAY, (self.module, self.factory)), folders, () if self.proxy else (PROXY_STAGE,))
        versions = {name: _installed(name) for name in (*LIBRARIES, *self.libraries, *self.needs.values())}
        text = json.dumps([self.factory, dict(self.settings), versions, computed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


_installed = cache(importlib.metadata.version)


def _ours(sampler: str, *libraries: str) -> Entry:
    name = f"understudy_{sampler}"
    return Entry(name, *OURS, {"sampler": sampler}, libraries=(SKLEARN, *libraries), ours=True)


def _botorch(name: str, factory: str) -> Entry:
    needs, libraries = {"botorch": "botorch"}, (TORCH, "gpytorch")
    return Entry(name, "replays.botorch", factory, {"initial": 3}, needs=needs, libraries=libraries)


_ALL = (
    Entry("random", SIMPLE, "Random", proxy=False),
    Entry("default", SIMPLE, "Fixed", {"which": "default"}, proxy=False),
    Entry("rule", SIMPLE, "Fixed", {"which": "rule"}, proxy=False),
    Entry("ranked", SIMPLE, "Ranked", {"scaled": False}),
    Entry("ranked_scaled", SIMPLE, "Ranked", {"scaled": True}),
    Entry("optuna_tpe", *OPTUNA, {"sampler": "tpe", "warm": False, "startup": 10}, proxy=False),
    Entry("optuna_gp", *OPTUNA, {"sampler": "gp", "warm": False, "startup": 2}, proxy=False, libraries=(TORCH,)),
    Entry("optuna_tpe_warm", *OPTUNA, {"sampler": "tpe", "warm": True, "startup": 10}),
    Entry("optuna_gp_warm", *OPTUNA, {"sampler": "gp", "warm": True, "startup": 4}, libraries=(TORCH,)),
    Entry("optuna_tpe_warm_scaled", *OPTUNA, {"sampler": "tpe", "warm": True, "startup": 10, "scaled": True}),
    Entry(
        "optuna_gp_warm_scaled",
        *OPTUNA,
        {"sampler": "gp", "warm": True, "startup": 4, "scaled": True},
        libraries=(TORCH,),
    ),
    Entry("syne_tune_box", SYNE, "Box", {"best": 10}, needs=SYNE_TUNE, libraries=(TORCH,)),
    Entry("syne_tune_box_scaled", SYNE, "Box", {"best": 10, "scaled": True}, needs=SYNE_TUNE, libraries=(TORCH,)),
    Entry("syne_tune_zero_shot", SYNE, "ZeroShot", needs=SYNE_TUNE),
    Entry("syne_tune_quantile", SYNE, "Quantile", needs=SYNE_TUNE),
    Entry("smac_gp", *SMAC, {"model": "gp", "warm": False}, proxy=False, needs=SMAC3, libraries=(SKLEARN,)),
    Entry("smac_gp_warm", *SMAC, {"model": "gp", "warm": True}, needs=SMAC3, libraries=(SKLEARN,)),
    Entry("smac_forest_warm", *SMAC, {"model": "forest", "warm": True}, needs=SMAC3, libraries=(SKLEARN,)),
    Entry("smac_forest_told", "replays.smac", "Told", {"model": "forest"}, needs=SMAC3, libraries=(SKLEARN,)),
    Entry(
        "smac_forest_told_scaled",
        "replays.smac",
        "Told",
        {"model": "forest", "scaled": True},
        needs=SMAC3,
        libraries=(SKLEARN,),
    ),
    _botorch("botorch_multitask", "MultiTask"),
    _botorch("botorch_multitask_scaled", "ScaledMultiTask"),
    Entry("optuna_gp_10", *OPTUNA, {"sampler": "gp", "warm": False, "startup": 10}, proxy=False, libraries=(TORCH,)),
    _ours("two_fidelity"),
    Entry(
        "understudy_truncated",
        *OURS,
        {"sampler": "two_fidelity", "truncated": 8},
        truncated=8,
        libraries=(SKLEARN,),
        ours=True,
    ),
    _ours("gp", TORCH),
    _ours("tpe"),
)
ENTRIES: Mapping[str, Entry] = {entry.name: entry for entry in _ALL}
