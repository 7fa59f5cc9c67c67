"""The text that the workflow prints when a study has finished."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import polars as pl

from understudy.artifacts import DecodeResults, Interval, Score, TestResult, Winner
from understudy.hyperparameters import Value
from understudy.paths import StudyPaths
from understudy.settings import Role
from understudy.space import Space
from understudy.summary.panels import MODEL_ROWS, by_name, pairs_of
from understudy.summary.wording import (
    apart_text,
    count_text,
    counted,
    early_stopping_text,
    edges_text,
    explained_text,
    few_seeds_text,
    flops_text,
    interval_text,
    loss_text,
    parameters_text,
    percent_text,
    quantization_text,
    seconds_text,
    statuses_text,
    surface_text,
    trust_check_text,
    value_text,
    verdict,
)
from understudy.trial import Execution, ModelCard

STAGE_NAMES = {
    "proxy": "proxy search",
    "echo": "proxy echoes",
    "truncated": "truncated runs",
    "target": "target search",
    "finalist": "finalists",
    "total": "in all",
}


def headline(
    winner: Winner,
    default: Mapping[str, Value],
    space: Space,
    test: TestResult,
    decode: DecodeResults,
    tables: Mapping[str, pl.DataFrame],
    cards: Sequence[ModelCard],
    executions: Mapping[Role, Execution],
    paths: StudyPaths,
) -> str:
    """The answer, what it rests on and what it cost, as lines of plain text.

    `space` is what was searched, at the target's scale. `tables` holds `trials`, `costs` (per stage), `agreement` and
    `early_stopping`.
    """
    statuses = tables["trials"].group_by("status").len().sort("status").iter_rows()
    early = early_stopping_text(tables["early_stopping"].to_dicts())
    sections = [
        [*(_model(card, executions[card.role]) for card in sorted(cards, key=lambda card: card.role))],
        _configuration(winner, default, space),
        _validation(winner, test.validation_gain),
        _test(test, winner.rank == 0),
        ["Agreement", *(f"  {line}" for line in agreement_lines(tables["agreement"]))],
        [*_cost(tables["costs"]), f"  {statuses_text(statuses)}.", *([f"  {early}"] if early else [])],
        _decoding(decode),
        ["Files", f"  report               {paths.report}", f"  best configuration   {paths.best_config}"],
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def agreement_lines(table: pl.DataFrame) -> list[str]:
    """What the agreement table says: the trust check in one sentence, then what explains it, a sentence each."""
    agreed, pairs = by_name(table), pairs_of(table)
    trust, spread, explained = (agreed[name][0] if name in agreed else None for name in MODEL_ROWS)
    lines = [
        trust_check_text(trust, agreed.get("spearman"), pairs),
        apart_text(agreed.get("spearman"), pairs, trust, spread),
        explained_text(explained, pairs_of(table, "proxy_explained")),
        surface_text(agreed.get("surface_spearman"), pairs_of(table, "surface_spearman")),
    ]
    return [line for line in lines if line]


def _model(card: ModelCard, execution: Execution) -> str:
    how = execution.resolved
    processes = f", {how.processes} processes" if how.processes > 1 else ""
    processes += f" on each of {how.nodes} nodes" if how.nodes > 1 else ""
    processes += ", sharded" if how.strategy == "fsdp" else ""
    active = f" ({parameters_text(card.active_parameters)} active)" if card.active_parameters else ""
    return (
        f"{card.role:<8} {card.name}, {parameters_text(card.parameters)} parameters{active}, "
        f"{quantization_text(card.quantization)}, on {how.device}{processes}"
    )


def _configuration(winner: Winner, default: Mapping[str, Value], space: Space) -> list[str]:
    names = [name for name in winner.hyperparameters if name in space]
    width = max([len(name) for name in names], default=0) + 2
    values = {name: value_text(winner.hyperparameters[name]) for name in names}
    column = max([len(text) for text in values.values()], default=0) + 3
    if winner.rank == 0:
        others = "configuration of the search" + (" with a loss for every seed" if _failed_seeds(winner) else "")
        title = f"Best configuration: the default; no {others} beat it on validation"
        return [title, *(f"  {name:<{width}}{values[name]}" for name in names)]
    lines = [f"  {name:<{width}}{values[name]:<{column}}(default {value_text(default.get(name))})" for name in names]
    edges = edges_text(winner.hyperparameters, space)
    return ["Best configuration", *lines, *([f"  {edges}"] if edges else [])]


def _failed_seeds(winner: Winner) -> bool:
    """Whether a finalist failed with a seed, which can't win then, whatever its mean of the others."""
    return any(None in score.objectives for score in winner.scores if score.rank)


def _validation(winner: Winner, gain: Interval | None) -> list[str]:
    scores = {score.rank: score for score in winner.scores}
    seeds = len(scores[winner.rank].objectives) if winner.rank in scores else 0
    lines = [f"Validation loss, mean of {counted(seeds, 'seed')}, in nats per token"]
    for name, rank in (("default", 0), ("winner", winner.rank)):
        score = scores.get(rank)
        deviation = "" if score is None or score.standard_deviation is None else f" ± {score.standard_deviation:.4f}"
        lines.append(f"  {name:<9}{loss_text(score.mean if score else None)}{deviation}{_survivors(score)}")
    chosen = "   the winner was chosen on these examples"
    return [*lines, f"  gain     {interval_text(gain)}{chosen}"] if gain and winner.rank else lines


def _survivors(score: Score | None) -> str:
    """How many seeds the mean is of, where some failed: only the default can have such a mean."""
    objectives = score.objectives if score else ()
    complete = sum(objective is not None for objective in objectives)
    return f"   {complete} of {len(objectives)} seeds, the others failed" if 0 < complete < len(objectives) else ""


def _test(test: TestResult, winner_is_default: bool) -> list[str]:
    lines = [f"Test loss, {test.examples} held-out examples, {counted(test.seeds, 'seed')}, in nats per token"]
    for name, loss in (("default", test.default_loss), ("winner", test.winner_loss)):
        if loss:
            lines.append(f"  {name:<9}{loss_text(loss.value)}   perplexity {math.exp(loss.value):.3f}")
    if test.gain and not winner_is_default:
        change = math.expm1(-test.gain.value)
        lines.append(f"  gain     {interval_text(test.gain)}   perplexity {change * 100:+.2f} %")
    caution = few_seeds_text(test.seeds)
    return [
        *lines,
        f"  {verdict(test.gain, winner_is_default)}",
        *([f"  {caution}"] if caution else []),
        f"  This study has looked at the test split {count_text(test.looks)}.",
    ]


def _cost(costs: pl.DataFrame) -> list[str]:
    lines = ["Cost, summed over trials"]
    for row in costs.iter_rows(named=True):
        gpu = f"   {row['gpu_hours']:.2f} GPU hours" if row["gpu_hours"] > 0 else ""
        gpu += f"   MFU {percent_text(row['mfu'])}" if row["mfu"] is not None else ""
        trials = "trial " if row["trials"] == 1 else "trials"
        lines.append(
            f"  {STAGE_NAMES[row['stage']]:<14}{row['trials']:>5} {trials}   {seconds_text(row['wall_seconds']):>9}   "
            f"{flops_text(row['flops']):>11}   {percent_text(row['share']):>5} of FLOPs{gpu}"
        )
    return lines


def _decoding(decode: DecodeResults) -> list[str]:
    if not decode.trials:
        return []
    best = decode.trials[0]
    settings = ", ".join(f"{name} {value_text(value)}" for name, value in best.generation.items())
    return ["Decoding", f"  {settings}: chrF {best.chrf:.1f} on {decode.examples} validation prompts"]
