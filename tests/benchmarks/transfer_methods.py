"""Who takes part. A further method is one more line of `ENTRIES`."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from transfer_replay import Method

import understudy

HERE = Path(__file__).parent
PACKAGE = Path(understudy.__file__).parent
OPTUNA = "transfer_optuna", "Optuna"
SIMPLE = "transfer_simple"
LIBRARIES = ("numpy", "optuna", "scipy")
SYNE, SYNE_TUNE = "transfer_synetune", {"syne_tune": "syne-tune", "botorch": "botorch"}
SMAC, SMAC3 = ("transfer_smac", "Smac"), {"smac": "smac"}
OURS = "transfer_ours", "Understudy"


@dataclass(frozen=True)
class Entry:
    """A method: its class with its settings, and whether it looks at the proxy; one that doesn't pays nothing for it.

    `truncated` is how many shorter runs of the target it has first, where the table has such, and pays for.
    `needs` has the modules that must be installed, each with its package.
    """

    name: str
    module: str
    factory: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    proxy: bool = True
    truncated: int = 0
    needs: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False

    @property
    def packages(self) -> tuple[str, ...]:
        return tuple(self.needs.values())

    def missing(self) -> list[str]:
        """The packages that it needs and that aren't installed."""
        return [package for module, package in self.needs.items() if importlib.util.find_spec(module) is None]

    def make(self) -> Method:
        return cast(Method, getattr(importlib.import_module(self.module), self.factory)(**self.settings))

    def version(self) -> str:
        """A digest of everything that can change what it proposes: settings, code, installed versions."""
        files = [HERE / f"{module}.py" for module in dict.fromkeys(("transfer_replay", SIMPLE, self.module))]
        files += sorted((PACKAGE / "search").glob("*.py")) if self.ours else []
        versions = {name: importlib.metadata.version(name) for name in (*LIBRARIES, *self.packages)}
        parts = [json.dumps([self.factory, dict(self.settings), versions], sort_keys=True)]
        return hashlib.sha256("\n".join([*parts, *map(_code, files)]).encode()).hexdigest()[:12]


def _code(file: Path) -> str:
    """A module without comments, docstrings and layout: what of it can change a number."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value.value = None
    return ast.dump(tree)


_ALL = (
    Entry("random", SIMPLE, "Random", proxy=False),
    Entry("default", SIMPLE, "Fixed", {"which": "default"}, proxy=False),
    Entry("rule", SIMPLE, "Fixed", {"which": "rule"}, proxy=False),
    Entry("ranked", SIMPLE, "Ranked", {"scaled": False}),
    Entry("ranked_scaled", SIMPLE, "Ranked", {"scaled": True}),
    Entry("optuna_tpe", *OPTUNA, {"sampler": "tpe", "warm": False, "startup": 10}, proxy=False),
    Entry("optuna_gp", *OPTUNA, {"sampler": "gp", "warm": False, "startup": 2}, proxy=False),
    Entry("optuna_tpe_warm", *OPTUNA, {"sampler": "tpe", "warm": True, "startup": 10}),
    Entry("optuna_gp_warm", *OPTUNA, {"sampler": "gp", "warm": True, "startup": 4}),
    Entry("syne_tune_box", SYNE, "Box", {"best": 10}, needs=SYNE_TUNE),
    Entry("syne_tune_zero_shot", SYNE, "ZeroShot", needs=SYNE_TUNE),
    Entry("syne_tune_quantile", SYNE, "Quantile", needs=SYNE_TUNE),
    Entry("smac_gp", *SMAC, {"model": "gp", "warm": False}, proxy=False, needs=SMAC3),
    Entry("smac_gp_warm", *SMAC, {"model": "gp", "warm": True}, needs=SMAC3),
    Entry("smac_forest_warm", *SMAC, {"model": "forest", "warm": True}, needs=SMAC3),
    Entry("botorch_multitask", "transfer_botorch", "MultiTask", {"initial": 3}, needs={"botorch": "botorch"}),
    Entry("understudy_two_fidelity", *OURS, {"sampler": "two_fidelity"}, ours=True),
    Entry("understudy_truncated", *OURS, {"sampler": "two_fidelity", "truncated": 8}, truncated=8, ours=True),
    Entry("understudy_gp", *OURS, {"sampler": "gp"}, ours=True),
    Entry("understudy_tpe", *OURS, {"sampler": "tpe"}, ours=True),
)
ENTRIES: Mapping[str, Entry] = {entry.name: entry for entry in _ALL}
