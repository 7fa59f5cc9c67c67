"""Tables of finished runs: one cell per model, the loss of every configuration that was run on it.

    Step Law      pre-training runs, learning rate × batch size; a cell is (parameters, tokens)
    fine-tuning   our own, or any like it: a cell is a model, and the space is a study's

A cell's loss is infinite where the run failed. Configurations are tuples of values in the order of the space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import yaml

from understudy.config import StudyConfig, parse
from understudy.errors import UserError
from understudy.hyperparameters import HYPERPARAMETERS, Value
from understudy.search.defaults import learning_rate_rule
from understudy.search.grid import Grid
from understudy.search.scaling import scale_rules
from understudy.search.values import rounded
from understudy.space import Choices, Range, Space, with_kinds
from understudy.trial import ModelCard

Key = tuple[Value, ...]
Configuration = dict[str, Value]

# GPT-3 Medium's setting, the size nearest to the table's (Brown et al. 2020, Table 2.1): 3.0e-4, half a million tokens
# in a batch, which is 256 sequences of 2,048.
STEPLAW_DEFAULT: Configuration = {"learning_rate": 3e-4, "batch_size": 256}
SEQUENCE = 2048  # tokens, of Step Law's runs: tokens / (steps · batch size)


@dataclass(frozen=True)
class Cell:
    """The finished runs of one model. `cost` is a run's, in any unit that the table's cells share."""

    name: str
    card: ModelCard
    tokens: float
    cost: float
    losses: Mapping[Key, float] = field(repr=False)


@dataclass(frozen=True)
class Table:
    """Cells by name, and the study that they are runs of.

    `defaults` are the config's; `grid` the proxy's, where the space is the same for every task; otherwise both are None
    and follow from the configurations that the two cells share.
    """

    name: str
    cells: Mapping[str, Cell]
    names: tuple[str, ...]
    defaults: Configuration
    space: Space | None = None
    grid: Grid | None = None


def step_law(path: Path) -> Table:
    """The Step Law table. Learning rates that differ only in how they were rounded (half octaves) become one."""
    frame = pl.read_csv(path)
    cells: dict[str, Cell] = {}
    for (parameters, tokens), runs in sorted(frame.group_by("parameters", "tokens"), key=lambda item: item[0]):
        name = f"{parameters / 1e6:.0f}M-{tokens / 1e9:g}B"
        rates = [float(rounded(2 ** (round(2 * math.log2(rate)) / 2))) for rate in runs["learning_rate"]]
        keys: list[Key] = list(zip(rates, runs["batch_size"], strict=True))
        losses = dict(zip(keys, runs["smoothed_loss"], strict=True))
        if len(losses) < runs.height:
            raise UserError(f"{path} has the same configuration twice for {name}; each may be there once")
        card = model_card("proxy", name, runs["hidden_size"][0], parameters)
        cells[name] = Cell(name, card, tokens, float(parameters) * tokens, losses)
    return Table("steplaw", cells, ("learning_rate", "batch_size"), STEPLAW_DEFAULT)


def step_law_optimum(parameters: float, tokens: float) -> Configuration:
    """Step Law's rule: η = 1.79 N^-0.713 D^0.307, B = 0.58 D^0.571 tokens (arXiv 2503.04715).

    It was fitted to the runs of this very table, so on it the rule is no forecast.
    """
    batch = 0.58 * tokens**0.571 / SEQUENCE
    return {"learning_rate": 1.79 * parameters**-0.713 * tokens**0.307, "batch_size": max(1, round(batch))}


def fine_tuning(path: Path, config: Path, price: float) -> Table:
    """A table with a row per (configuration id, model, seed), columns per hyperparameter, `eval_loss` and `status`.

    Models are called proxy…, target… or truncated…, which are shorter runs of target…; a model's losses are those of
    its lowest seed. The space is the config's. Further columns, where there are any, say what else is known of a model:
    `hidden_size`, `parameters` and `model_type` (else they are those of the config's `pretrain`), `tokens` that a run
    trains on (else as many for all), `flops` of a run (else a proxy's costs `price` of a target's) and the `fidelity`
    of truncated runs.
    """
    frame = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)
    study = parse(yaml.safe_load(config.read_text(encoding="utf-8")))
    space = {name: parameter for name, parameter in study.space.items() if name in frame.columns}
    further = sorted((HYPERPARAMETERS.keys() & set(frame.columns)) - study.space.keys())
    if further:
        raise UserError(
            f"{path} has the hyperparameters {', '.join(further)}, which {config} doesn't search; give its own --config"
        )
    missing = sorted({"model", "seed", "eval_loss", "status"} - set(frame.columns))
    if missing or not space:
        raise UserError(
            f"{path} needs the columns model, seed, eval_loss, status and one per hyperparameter of {config}, but has "
            f"{', '.join(frame.columns)}"
        )
    cells = {model: _own_cell(frame, model, tuple(space), study, price) for model in sorted(frame["model"].unique())}
    lowest = min(min(cell.losses.values()) for cell in cells.values())
    if lowest <= 0:
        raise UserError(f"{path} has a loss of {lowest:g}, but regrets relative to the best loss need positive ones")
    grid = {name: values for name, values in study.proxy.grid.items() if name in space}
    defaults = {name: HYPERPARAMETERS[name].default for name in space if name != "learning_rate"} | study.defaults
    return Table(path.stem, cells, tuple(space), defaults, _holding(space, cells), grid)


def _own_cell(frame: pl.DataFrame, model: str, names: tuple[str, ...], study: StudyConfig, price: float) -> Cell:
    rows = frame.filter(pl.col("model") == model)
    rows = rows.filter(pl.col("seed") == rows["seed"].min())
    ok = (pl.col("status") == "complete") & pl.col("eval_loss").is_finite()
    rows = rows.with_columns(loss=pl.when(ok).then(pl.col("eval_loss")).otherwise(math.inf).fill_null(math.inf))
    losses = {
        tuple(HYPERPARAMETERS[name].coerce(row[name]) for name in names): float(row["loss"]) for row in rows.to_dicts()
    }
    role = "proxy" if model.startswith("proxy") else "target"
    share = _mean(rows, "fidelity", 1.0)
    cost = _mean(rows, "flops", share * (price if role == "proxy" else 1.0))
    tokens = _mean(rows, "tokens", float(study.data.train_examples * study.data.max_length))
    return Cell(model, _own_card(rows, role, model, study), tokens, cost, losses)


def _mean(rows: pl.DataFrame, column: str, otherwise: float) -> float:
    return float(rows.select(pl.col(column).mean()).item()) if column in rows.columns else otherwise


def _own_card(rows: pl.DataFrame, role: str, model: str, study: StudyConfig) -> ModelCard:
    """The model by the table's columns, and by the config where it has none."""
    shape = study.models.proxy.pretrain if role == "proxy" else study.models.target.pretrain
    told = {name: rows[name][0] for name in ("hidden_size", "parameters", "model_type") if name in rows.columns}
    if shape is not None:
        told = {"hidden_size": shape.hidden_size, "parameters": _parameters(shape.vocab_size, shape)} | told
    if not {"hidden_size", "parameters"} <= told.keys():
        raise UserError(
            f"the table needs the columns hidden_size and parameters, since the config's {role} has no `pretrain`, "
            f"which would say how large {model} is"
        )
    return model_card(role, model, **told)


def _parameters(vocabulary: int, shape: object) -> int:
    """Roughly a Llama's: embeddings, four square products and three of the feed-forward part per layer."""
    hidden, layers, inner = (getattr(shape, n) for n in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    return int(vocabulary * hidden + layers * (4 * hidden**2 + 3 * hidden * inner))


def _holding(space: Space, cells: Mapping[str, Cell]) -> Space:
    """The space, stretched to hold every configuration of the table."""
    wide = dict(space)
    for cell in cells.values():
        for key in cell.losses:
            for name, value in zip(space, key, strict=True):
                wide[name] = wide[name].widened(value)
    return with_kinds(wide)


def model_card(role: str, name: str, hidden_size: int, parameters: int, model_type: str = "llama") -> ModelCard:
    """How deep a model is nobody asks."""
    return ModelCard(
        role="proxy" if role == "proxy" else "target",
        source="pretrained",
        name=name,
        path="nowhere",
        sha256="0" * 64,
        model_type=model_type,
        hidden_size=hidden_size,
        num_hidden_layers=1,
        vocab_size=2048,
        parameters=parameters,
        quantization="none",
    )


def box(names: Sequence[str], keys: Sequence[Key]) -> Space:
    """The space that just holds some configurations: logarithmic ranges, for tables without a study's space."""
    columns = zip(*keys, strict=True)
    sides: dict[str, Range | Choices] = {
        name: Range(low=float(min(values)), high=float(max(values)), log=True)
        for name, values in zip(names, columns, strict=True)
    }
    return with_kinds(sides)


def published_scale(table: Table, source: Cell, target: Cell) -> dict[str, float]:
    """What published rules multiply a source's values by: Step Law on its own table, else LoRA's rate by width."""
    if table.name == "steplaw":
        ends = (step_law_optimum(cell.card.parameters, cell.tokens)["learning_rate"] for cell in (source, target))
        low, high = (float(end) for end in ends)
        return {"learning_rate": high / low, "batch_size": (target.tokens / source.tokens) ** 0.571}
    rules = scale_rules(source.card, target.card, "lora", "auto")
    return {name: rule.factor for name, rule in rules.items()}


def published_rule(table: Table, target: Cell) -> Configuration:
    """The published rule's configuration: Step Law's, else the defaults with LoRA Without Regret's rate."""
    if table.name == "steplaw":
        return step_law_optimum(target.card.parameters, target.tokens)
    return {
        **table.defaults,
        "learning_rate": learning_rate_rule(target.card.hidden_size, target.card.model_type, "lora"),
    }
