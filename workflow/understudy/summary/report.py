"""The report: one HTML file that opens without a network."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from understudy import __version__
from understudy.artifacts import Box, Regions
from understudy.hyperparameters import Value
from understudy.settings import Role
from understudy.summary import wording
from understudy.summary.best import Best
from understudy.summary.captions import captions
from understudy.summary.derived import unfixed
from understudy.summary.export import wanted_yaml
from understudy.summary.headline import STAGE_NAMES, agreement_lines
from understudy.summary.panels import MODEL_ROWS
from understudy.trial import Execution, ModelCard

TABLES = ("leaderboard", "agreement", "cost_per_stage", "early_stopping", "pack_notes")
CHANGES_NOTHING = ("host", "slurm_job")  # provenance that may differ without a number being different


@dataclass(frozen=True)
class Findings:
    """What the report is made from."""

    best: Best
    regions: Regions
    proxy: ModelCard
    executions: Mapping[Role, Execution]
    searched: tuple[str, ...]
    summary: Path  # the folder that `summarise` wrote


def render(findings: Findings) -> str:
    """The report as HTML."""
    environment = Environment(
        loader=PackageLoader("understudy", "summary"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        value=wording.value_text,
        loss=wording.loss_text,
        interval=wording.interval_text,
        flops=wording.flops_text,
        seconds=wording.seconds_text,
        percent=wording.percent_text,
        times=wording.count_text,
        parameters=wording.parameters_text,
        quantization=wording.quantization_text,
        exp=math.exp,
    )
    return environment.get_template("report.html").render(_context(findings))


def _context(findings: Findings) -> dict[str, Any]:
    """Everything that the template names."""
    best, folder = findings.best, findings.summary
    guided = best.config.target.sampler != "two_fidelity"
    texts = captions(guided)
    tables = {name: pl.read_csv(folder / f"{name}.csv") for name in TABLES}
    provenance = pl.read_parquet(folder / "provenance.parquet", glob=False)
    statuses = (
        pl.read_parquet(folder / "trials.parquet", glob=False).group_by("status").len().sort("status").iter_rows()
    )
    return {
        "best": best,
        "best_yaml": wanted_yaml(best),
        "values": _beside_default(best, tables["leaderboard"], findings.searched),
        "winner_is_default": best.winner.rank == 0,
        "verdict": wording.verdict(best.test.gain, best.winner.rank == 0),
        "caution": wording.few_seeds_text(best.test.seeds),
        "perplexity_change": math.expm1(-best.test.gain.value) if best.test.gain else 0.0,
        "seeds": _seed_table(best),
        "leaderboard": tables["leaderboard"].to_dicts(),
        "searched": [name for name in findings.searched if name in tables["leaderboard"].columns],
        "agreement": tables["agreement"].filter(~pl.col("statistic").is_in(MODEL_ROWS)).to_dicts(),
        "foreseen": tables["agreement"]["statistic"].str.starts_with("surface_").any(),
        "agreement_lines": agreement_lines(tables["agreement"]),
        "regions": findings.regions if guided else unfixed(findings.regions),
        "guided": guided,
        "box": box_text,
        "costs": tables["cost_per_stage"].to_dicts(),
        "stage_names": STAGE_NAMES,
        "statuses": wording.statuses_text(statuses),
        "early_stopping": wording.early_stopping_text(tables["early_stopping"].to_dicts()),
        "figures": {name: _inline(folder / "figures" / f"{name}.svg", name) for name in texts},
        "captions": texts,
        "models": [findings.proxy, best.card],
        "executions": findings.executions,
        "pack_notes": tables["pack_notes"].to_dicts(),
        "facts": provenance_facts(provenance),
        "mixed": mixed_facts(provenance),
        "config": _plain_yaml(best.config.model_dump(mode="json", exclude_none=True)),
        "version": __version__,
    }


def _beside_default(best: Best, leaderboard: pl.DataFrame, searched: tuple[str, ...]) -> list[tuple[str, Any, Any]]:
    """Each searched hyperparameter with the winner's value and the default configuration's."""
    row = leaderboard.filter(pl.col("name") == "default").to_dicts()
    default = row[0] if row else {}
    return [(name, value, default.get(name)) for name, value in best.winner.hyperparameters.items() if name in searched]


def _seed_table(best: Best) -> list[dict[str, Any]]:
    names = {0: "default", best.winner.rank: "winner"}
    if best.winner.rank == 0:
        names = {0: "default, the winner"}
    scores = sorted(best.winner.scores, key=lambda score: (score.mean is None, score.mean or 0.0, score.rank))
    return [{"name": names.get(s.rank, f"finalist {s.rank}"), **s.model_dump()} for s in scores]


def box_text(box: Box) -> str:
    """A region's extent along one hyperparameter."""
    if box.choices is not None:
        extent = ", ".join(wording.value_text(choice) for choice in box.choices)
    else:
        extent = f"{wording.value_text(box.low)} to {wording.value_text(box.high)}"
    return extent if box.fixed is None else f"{wording.value_text(box.fixed)}, fixed; free to explore: {extent}"


def provenance_facts(provenance: pl.DataFrame) -> list[dict[str, Any]]:
    """Every fact with its values and how many trials ran on each."""
    return [
        {
            "fact": name,
            "values": [
                (value if value is not None else "not recorded", count)
                for value, count in provenance[name].value_counts().sort("count", name, descending=[True, False]).rows()
            ],
        }
        for name in provenance.columns
        if name not in ("id", "stage")
    ]


def mixed_facts(provenance: pl.DataFrame) -> list[str]:
    """Facts on which the trials of one stage differ although a number may depend on them."""
    facts = [name for name in provenance.columns if name not in ("id", "stage", *CHANGES_NOTHING)]
    if not facts:
        return []
    counts = provenance.group_by("stage").agg(pl.col(name).n_unique() for name in facts)
    return [name for name in facts if (counts[name] > 1).any()]


def _inline(path: Path, name: str) -> Markup:
    """An SVG as part of the page: without XML head and metadata, and with ids that are its own."""
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", text))

    def own(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    text = re.sub(r' id="([^"]+)"', own, text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{name}"', 1))


def _plain_yaml(document: Mapping[str, Value | Any]) -> str:
    return yaml.safe_dump(json.loads(json.dumps(document)), sort_keys=False, allow_unicode=True, width=100)
