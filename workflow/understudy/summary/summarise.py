"""`results/summary/`: every table, every figure, and the headline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from understudy import checksums
from understudy.artifacts import DecodeResults, Proposal, Regions, Starts, TestResult, Winner
from understudy.files import write_text
from understudy.paths import StudyPaths
from understudy.sections import SummarySection
from understudy.settings import Role
from understudy.summary import derived, figures, panels, style
from understudy.summary.headline import headline
from understudy.summary.tables import (
    costs_frame,
    curves_frame,
    provenance_frame,
    trials_frame,
    write_csv,
    write_parquet,
)
from understudy.trial import Execution, ModelCard, TrialRecord


@dataclass(frozen=True)
class Evidence:
    """Everything that a study has found; records of all stages in any order."""

    records: Sequence[TrialRecord]
    proposals: Sequence[Proposal]
    regions: Regions
    starts: Starts
    winner: Winner
    test: TestResult
    decode: DecodeResults
    cards: Sequence[ModelCard]
    executions: Mapping[Role, Execution]
    pack_notes: Sequence[tuple[str, str]] = ()  # (pack, what went otherwise than planned)


def write_summary(
    evidence: Evidence, settings: SummarySection, importance: Mapping[str, pl.DataFrame], folder: Path
) -> None:
    """Write tables, figures and headline below `folder`, the headline last.

    `importance`: for the proxy and the target a table of parameter and importance, empty where there is none.
    """
    trials = trials_frame(evidence.records)
    costs, curves = costs_frame(evidence.records), curves_frame(evidence.records)
    pairs = derived.echo_pairs(trials)
    foreseen = derived.surface_pairs(trials, evidence.proposals)
    agreement = _agreement(trials, pairs, foreseen, evidence, settings)
    per_stage = derived.cost_per_stage(trials, costs)
    searched = list(settings.space)
    weights = derived.importance(importance)
    early = derived.early_stopping(evidence.records, evidence.proposals)
    paths = StudyPaths(folder.parent)
    parquet = {"trials": trials, "costs": costs, "curves": curves, "provenance": provenance_frame(evidence.records)}
    csv = {
        "trials": trials,
        "leaderboard": derived.leaderboard(trials, evidence.winner, searched),
        "importance": weights,
        "agreement": agreement,
        "cost_per_stage": per_stage,
        "early_stopping": early,
        "pack_notes": pl.DataFrame(sorted(evidence.pack_notes), {"pack": pl.String, "note": pl.String}, orient="row"),
    }
    checksums.forget(folder)
    for name, table in parquet.items():
        write_parquet(table, folder / f"{name}.parquet")
    for name, table in csv.items():
        write_csv(table, folder / f"{name}.csv")
    kinds = {proposal.spec.id: proposal.kind for proposal in evidence.proposals}
    guided = settings.sampler != "two_fidelity"
    regions = evidence.regions if guided else derived.unfixed(evidence.regions)
    with style.styled():
        made = {
            "progress": figures.progress(
                derived.progress_steps(trials, costs, kinds),
                derived.search_flops(trials, costs),
                derived.default_loss(trials, evidence.starts.default),
                guided,
            ),
            "importance": figures.importance(weights, searched),
            "agreement": figures.agreement(pairs, panels.by_name(agreement), foreseen),
            "slices": panels.slices(trials, regions, searched),
            "curves": panels.learning_curves(curves, evidence.winner.rank),
        }
        figures.write(made, folder / "figures")
    text = headline(
        evidence.winner,
        evidence.starts.default,
        {name: evidence.regions.space.get(name, parameter) for name, parameter in settings.space.items()},
        evidence.test,
        evidence.decode,
        {"trials": trials, "costs": per_stage, "agreement": agreement, "early_stopping": early},
        evidence.cards,
        evidence.executions,
        paths,
    )
    write_text(folder / "headline.txt", text)
    checksums.write_list(folder)


def _agreement(
    trials: pl.DataFrame,
    pairs: pl.DataFrame,
    foreseen: pl.DataFrame,
    evidence: Evidence,
    settings: SummarySection,
) -> pl.DataFrame:
    """The whole agreement table: runs on both models, the surface's predictions and fit, the sampler's trust."""
    table = derived.agreement(pairs, settings.confidence, settings.seed)
    table = derived.with_surface(table, foreseen, settings.confidence, settings.seed)
    table = derived.with_explained(table, evidence.regions.explained)
    return derived.with_trust(derived.with_spread(table, pairs, trials), evidence.proposals)
