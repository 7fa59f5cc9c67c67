"""The best configuration as the study has it: what the report shows and every export is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from understudy.artifacts import DecodeResults, TestResult, Winner
from understudy.config import StudyConfig
from understudy.trial import DataManifest, ModelCard, ResolvedExecution


@dataclass(frozen=True)
class Best:
    """What the exports are made from."""

    config: StudyConfig
    winner: Winner
    test: TestResult
    decode: DecodeResults
    manifest: DataManifest
    card: ModelCard  # the target's
    execution: ResolvedExecution  # the target's

    @property
    def base_model(self) -> str:
        """What `from_pretrained` loads: the hub's name, or the folder."""
        return self.card.name if self.card.source == "hub" else self.card.path

    @property
    def data_format(self) -> str | None:
        """How the user's files are written; None of the built-in task."""
        return self.config.data.format if self.config.data.task == "files" else None

    @property
    def lora(self) -> bool:
        return "lora_r" in self.winner.hyperparameters


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as other programs want them: alpha as a whole number where it is one."""
    alpha = values.get("lora_alpha")
    whole = {"lora_alpha": int(alpha)} if isinstance(alpha, float) and alpha.is_integer() else {}
    return {**values, **whole}
