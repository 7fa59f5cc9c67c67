"""The study's figures on whole stages: progress, importance, agreement. Losses are mean nats per completion token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from understudy.summary import style
from understudy.summary.style import clip_note, flop_unit, nothing, robust_limits, single

LOSS = "validation loss (nats per token)"
TITLE: Mapping[str, Any] = {"loc": "left", "fontsize": 8}  # of a panel that has a correlation
KINDS = {"start": ("o", style.BLUE), "guided": ("s", style.GREEN), "explore": ("D", style.PURPLE)}
LABELS = {"start": "first configurations, transferred", "guided": "guided into a region", "explore": "free to explore"}
BY_MODEL = {**LABELS, "guided": "by the model, in a region", "explore": "by the model, outside"}


def progress(steps: pl.DataFrame, proxy_flops: float, default_loss: float | None, guided: bool = True) -> Figure:
    """Best loss so far against cumulative cost, the proxy stage's search included.

    `steps`: one row per target trial in order: id, kind, objective, best (so far), flops (cumulative). `guided` says
    whether the regions guided those that are so named.
    """
    figure, axes = single(6.6, 3.6)
    losses = steps["objective"].drop_nulls().to_list()
    if not losses:
        nothing(axes, "no target trial has a loss")
        return figure
    keep = [] if default_loss is None else [default_loss]
    low, high = robust_limits(losses, keep)
    scale, unit = flop_unit(steps["flops"].max())  # type: ignore[arg-type]
    axes.axvspan(0, proxy_flops / scale, color=style.PROXY, alpha=0.12, lw=0, label="cost of the proxy's search")
    labels = LABELS if guided else BY_MODEL
    above = missing = 0
    for kind, (marker, colour) in KINDS.items():
        part = steps.filter(pl.col("kind") == kind)
        if not len(part):
            continue
        x, y = part["flops"].to_numpy() / scale, part["objective"].to_numpy()
        inside = y <= high
        axes.scatter(x[inside], y[inside], marker=marker, s=24, color=colour, label=labels[kind], zorder=3)
        for mark, chosen in (("^", y > high), ("x", np.isnan(y))):
            axes.scatter(
                x[chosen], np.full(chosen.sum(), high), marker=mark, s=26, color=colour, zorder=4, clip_on=False
            )
        above, missing = above + int((y > high).sum()), missing + int(np.isnan(y).sum())
    known = steps.drop_nulls("best")
    axes.step(known["flops"] / scale, known["best"], where="post", color=style.INK, label="best so far")
    if default_loss is not None:
        axes.axhline(default_loss, color=style.DEFAULT, lw=1, ls=(0, (4, 3)), label="default configuration")
    axes.set(xlabel=f"cumulative cost ({unit})", ylabel=LOSS, ylim=(low, high), xlim=(0, None))
    clip_note(axes, above, missing)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def importance(table: pl.DataFrame, order: Sequence[str]) -> Figure:
    """Bars of every hyperparameter's share of the loss's variance, proxy beside target.

    `table`: stage, parameter, importance; `order`: the parameters in the space's order.
    """
    known = table.drop_nulls("importance")
    figure, axes = single(6.6, max(2.0, 0.36 * len(order) + 0.9))
    if not len(known):
        nothing(axes, "too few complete trials to tell which hyperparameters matter")
        return figure
    weights = known.group_by("parameter").agg(pl.col("importance").max())
    by_weight = dict(weights.sort("parameter").iter_rows())
    names = sorted(order, key=lambda name: (-by_weight.get(name, 0.0), list(order).index(name)))
    rows = np.arange(len(names), dtype=float)
    for stage, shift, colour, hatch in (("proxy", -0.19, style.PROXY, ""), ("target", 0.19, style.TARGET, "///")):
        values = dict(known.filter(pl.col("stage") == stage).select("parameter", "importance").iter_rows())
        if not values:
            nothing_of = f"{stage} (too few complete trials)"
            axes.barh(rows + shift, 0, color=colour, label=nothing_of)
            continue
        widths = [values.get(name, 0.0) for name in names]
        axes.barh(rows + shift, widths, height=0.36, color=colour, hatch=hatch, edgecolor="white", lw=0, label=stage)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="importance (share of the loss ranks' variance that it explains)", xlim=(0, None))
    axes.legend(loc="lower right")
    return figure


def agreement(
    pairs: pl.DataFrame,
    statistics: Mapping[str, tuple[float, float, float]],
    foreseen: pl.DataFrame | None = None,
) -> Figure:
    """The same configurations on both models: the proxy's loss against the target's, and their ranks.

    `pairs`: id, target, proxy. `statistics`: value, low and high by name, without those that aren't defined. Where
    there are trials in `foreseen` (id, target, predicted), a third panel has what the proxy's surface predicted.
    """
    told = foreseen is not None and len(foreseen) > 0
    figure = style.new_figure(9.6 if told else 6.6, 3.3)
    panels = figure.subplots(1, 3 if told else 2)
    if foreseen is not None and told:
        _losses(panels[2], foreseen["predicted"], foreseen["target"], "loss that the proxy's surface predicted")
        panels[2].set_title(_correlation(statistics, "surface_spearman", f"{len(foreseen)} trials"), pad=18, **TITLE)
    if not len(pairs):
        nothing(panels[0], "no configuration was run\nto the end on both models")
        nothing(panels[1], "")
        return figure
    _losses(panels[0], pairs["proxy"], pairs["target"], "loss on the proxy (nats per token)")
    _ranks(panels[1], pairs, statistics)
    return figure


def _losses(axes: Axes, other: pl.Series, target: pl.Series, label: str) -> None:
    """Losses against the target's; what is off the axes lies on their edge, as a triangle."""
    x, y = other.to_numpy(), target.to_numpy()
    (left, right), (low, high) = robust_limits(x.tolist()), robust_limits(y.tolist())
    outside = (x > right) | (y > high)
    x, y = np.minimum(x, right), np.minimum(y, high)
    axes.scatter(x[~outside], y[~outside], s=24, color=style.TARGET)
    axes.scatter(x[outside], y[outside], s=26, marker="^", color=style.TARGET, clip_on=False, zorder=4)
    axes.set(xlabel=label, ylabel="loss on the target (nats per token)", xlim=(left, right), ylim=(low, high))
    clip_note(axes, int(outside.sum()))


def _correlation(statistics: Mapping[str, tuple[float, float, float]], name: str, about: str) -> str:
    if name not in statistics:
        return f"{about}: too few for a correlation"
    value, low, high = statistics[name]
    return f"Spearman {value:.2f} ({low:.2f} to {high:.2f}), {about}"


def _ranks(axes: Axes, pairs: pl.DataFrame, statistics: Mapping[str, tuple[float, float, float]]) -> None:
    placed = pairs.select(pl.col("proxy").rank(), pl.col("target").rank())
    ends = (0.5, len(pairs) + 0.5)
    axes.plot(ends, ends, color=style.GREY, lw=1, ls=(0, (4, 3)))
    axes.scatter(placed["proxy"], placed["target"], s=24, color=style.TARGET)
    axes.set(xlabel="rank on the proxy (1 is best)", ylabel="rank on the target", xlim=ends, ylim=ends)
    axes.set_aspect("equal")
    axes.locator_params(integer=True)
    axes.set_title(_correlation(statistics, "spearman", f"{len(pairs)} pairs"), **TITLE)


def write(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write each figure as `{name}.svg`."""
    for name, figure in figures.items():
        style.save(figure, folder / f"{name}.svg")
