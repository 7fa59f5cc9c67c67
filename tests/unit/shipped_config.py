"""The shipped config as a test changes it, and what is wrong with it then."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from understudy import config
from understudy.errors import ConfigError

ROOT = Path(__file__).parents[2]


def shipped() -> dict[str, Any]:
    """The default config as its file has it, one for each test."""
    return yaml.safe_load((ROOT / "config" / "config.yaml").read_text())


def problems(raw: dict[str, Any]) -> dict[str, str]:
    """What a config is refused for: each problem's place in it, and the words."""
    with pytest.raises(ConfigError) as caught:
        config.parse(raw, "config.yaml")
    return dict(problem.split(": ", 1) for problem in caught.value.problems)


def schema_for_yaml() -> dict[str, Any]:
    """The config's schema, where YAML reads `1e-4` as a text: the config accepts it, editors read it as a number."""
    schema = copy.deepcopy(config.schema())
    for name in ("low", "high"):
        schema["$defs"]["Range"]["properties"][name]["type"] = ["number", "string"]
    return schema
