"""The figures that show single trials: slices through the space, learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from understudy.artifacts import Box, Regions
from understudy.space import Choices, Range
from understudy.summary import style
from understudy.summary.style import nothing, robust_limits, single
from understudy.summary.wording import value_text

COLUMNS = 4
ROOM = 28  # letters of 7 points that fit below a panel
FLATTEST = 0.01  # nats per token that the axis of a slice spans at least
GOLDEN = 0.6180339887498949  # multiples of it spread evenly over the unit interval: jitter without a random number
MODEL_ROWS = ("trust", "pair_spread", "proxy_explained")  # of the agreement table, that are no rank statistics
FIXED: Mapping[str, Any] = {"lw": 1.2, "ls": (0, (4, 2))}  # the line at a value that a region fixes
STAGES = (("proxy", style.PROXY, "o", -0.2), ("target", style.TARGET, "s", 0.2))


def slices(trials: pl.DataFrame, regions: Regions, searched: Sequence[str]) -> Figure:
    """One panel per hyperparameter: each trial's loss above its stage's best, against the value; regions shaded.

    A dashed line marks the value that a region fixes.

    `trials`: the trial table. Losses of the two models differ in level, so each is shown as the distance from the
    best trial of its own stage. Values and regions are as used: the proxy's at proxy scale, the rest at target scale.
    """
    complete = trials.filter(pl.col("stage").is_in([name for name, *_ in STAGES]), pl.col("objective").is_not_null())
    excess = complete.with_columns((pl.col("objective") - pl.col("objective").min().over("stage")).alias("excess"))
    names = [name for name in searched if name in excess.columns]
    if not len(excess) or not names:
        figure, axes = single(6.6, 2.0)
        nothing(axes, "no trial has a loss")
        return figure
    columns = min(COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = style.new_figure(max(2.05 * columns, 4.2), 1.75 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    groups = excess.partition_by("stage")
    high = max(FLATTEST, *(robust_limits(group["excess"].to_list())[1] for group in groups))
    for axes, name in zip(grid.flat, names, strict=False):
        _slice(axes, excess, name, regions, high)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_axis_off()
    above = int((excess["excess"] > high).sum())
    figure.supylabel("loss above the stage's best (nats per token)", fontsize=9)
    handles: list[Artist] = [
        Line2D([], [], ls="", marker=m, color=c, ms=4, label=f"{s} trials") for s, c, m, _ in STAGES
    ]
    handles.append(Patch(color=style.REGION, alpha=0.2, lw=0, label="region (target scale)"))
    if any(box.fixed is not None for region in regions.regions for box in region.boxes.values()):
        handles.append(Line2D([], [], color=style.REGION, **FIXED, label="fixed there"))
    if above:
        handles.append(Line2D([], [], ls="", marker="^", color=style.GREY, ms=4, label=f"{above} above the axis"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _slice(axes: Axes, excess: pl.DataFrame, name: str, regions: Regions, high: float) -> None:
    parameter = regions.space.get(name) or _texts(excess[name])
    boxes = [region.boxes[name] for region in regions.regions if name in region.boxes]
    for stage, colour, marker, shift in STAGES:
        part = excess.filter(pl.col("stage") == stage).drop_nulls(name)
        if isinstance(parameter, Choices):
            part = part.filter(pl.col(name).is_in(list(parameter.choices)))
        x, y = _positions(part[name], parameter, shift), part["excess"].to_numpy()
        inside = y <= high
        axes.scatter(x[inside], y[inside], s=11, marker=marker, color=colour, alpha=0.75, lw=0)
        axes.scatter(x[~inside], np.full((~inside).sum(), high), s=13, marker="^", color=colour, clip_on=False, lw=0)
    for box in boxes:
        _shade(axes, box, parameter)
    axes.set_ylim(-0.03 * high, high)
    axes.set_title(name, fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    if isinstance(parameter, Choices):
        labels = [_broken(value_text(choice)) for choice in parameter.choices]
        widest = max(len(line) for label in labels for line in label.splitlines())
        axes.set_xticks(range(len(labels)), labels, fontsize=max(4.5, min(7, 7 * ROOM / (widest * len(labels)))))
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.grid(axis="x", visible=False)
    elif parameter is not None:
        _ruled(axes, parameter)


def _texts(values: pl.Series) -> Choices | None:
    """The texts of a hyperparameter that the target doesn't have, as LoRA's where it is trained in full."""
    seen = values.drop_nulls().unique().sort().to_list() if values.dtype == pl.String else []
    return Choices(choices=tuple(seen)) if seen else None


def _broken(text: str) -> str:
    """A choice's label in narrow lines: names below each other, else word by word."""
    return text.replace(",", "\n") if "," in text else text.replace("_", "\n")


def _ruled(axes: Axes, parameter: Range) -> None:
    """The axis of a range: all of it, and whatever lies outside (the proxy's rescaled echoes may)."""
    if parameter.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.plot([parameter.low, parameter.high], [0, 0], alpha=0)


def _positions(values: pl.Series, parameter: Range | Choices | None, shift: float) -> NDArray[np.float64]:
    """Where values lie on a panel's axis: choices side by side, the proxy's left of the target's, spread a little.

    What has no place on a log scale, such as a default of 0, lies at its low end.
    """
    if not isinstance(parameter, Choices):
        numbers = values.cast(pl.Float64).to_numpy()
        return np.where(numbers > 0, numbers, parameter.low) if parameter is not None and parameter.log else numbers
    places = np.array([parameter.choices.index(value) for value in values], dtype=float)
    return places + shift + 0.28 * (np.arange(len(places)) * GOLDEN % 1 - 0.5)


def _shade(axes: Axes, box: Box, parameter: Range | Choices | None) -> None:
    spans: list[tuple[float, float]] = []
    if isinstance(parameter, Choices) and box.choices is not None:
        places = [parameter.choices.index(choice) for choice in box.choices if choice in parameter.choices]
        spans = [(place - 0.5, place + 0.5) for place in places]
    elif box.low is not None and box.high is not None:
        spans = [(box.low, box.high)]
    for low, high in spans:
        axes.axvspan(low, high, color=style.REGION, alpha=0.13, lw=0, zorder=0)
    if box.fixed is not None:
        place = parameter.choices.index(box.fixed) if isinstance(parameter, Choices) else float(box.fixed)
        axes.axvline(place, color=style.REGION, **FIXED, zorder=1)


def learning_curves(curves: pl.DataFrame, winner: int) -> Figure:
    """Validation loss of every target trial while it was trained, finalists on top.

    `curves`: the curve table; `winner`: the winner's rank.
    """
    shown = curves.filter(pl.col("stage").is_in(["target", "finalist"]), pl.col("eval_loss").is_finite())
    figure, axes = single(6.6, 3.6)
    if not len(shown):
        nothing(axes, "no target trial has a learning curve")
        return figure
    low, high = robust_limits(shown["eval_loss"].to_list())
    kinds: dict[str, int] = {}
    for (stage, trial), points in shown.sort("stage", "id", "step", descending=[True, False, False]).group_by(
        "stage", "id", maintain_order=True
    ):
        look = _look(str(stage), str(trial), winner)
        label = str(look.pop("label"))
        kinds[label] = kinds.get(label, 0) + 1
        dot = "." if len(points) == 1 else None
        axes.plot(points["tokens"], points["eval_loss"], marker=dot, label=label if kinds[label] == 1 else None, **look)
    axes.set(xlabel="completion tokens trained on", ylabel="validation loss (nats per token)", ylim=(low, high))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    above = shown.filter(pl.col("eval_loss") > high).select("stage", "id").n_unique()
    if above:
        clip = f"{above} curves begin or stay above the axis" if above > 1 else "1 curve begins or stays above the axis"
        axes.set_title(clip, loc="right", fontsize=7, color=style.GREY)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _look(stage: str, trial: str, winner: int) -> dict[str, Any]:
    if stage == "target":
        return {"color": style.GREY, "lw": 0.8, "alpha": 0.6, "label": "target trials", "zorder": 2}
    rank = int(trial[1:].split("s")[0])
    if rank == winner:
        return {"color": style.WINNER, "lw": 1.6, "label": "winner, each seed", "zorder": 5}
    if rank == 0:
        return {"color": style.DEFAULT, "lw": 1.3, "ls": (0, (4, 2)), "label": "default, each seed", "zorder": 4}
    return {"color": style.TARGET, "lw": 1.2, "ls": (0, (1, 1)), "label": "other finalists", "zorder": 3}


def pairs_of(table: pl.DataFrame, statistic: str = "spearman") -> int:
    """How many configurations a statistic of the agreement table is about; 0 where it isn't there."""
    return int(table.filter(pl.col("statistic") == statistic)["pairs"].max() or 0)  # type: ignore[arg-type]


def by_name(table: pl.DataFrame) -> Mapping[str, tuple[float, float, float]]:
    """The agreement table's defined statistics: value, low and high by name."""
    known = table.drop_nulls("value")
    return {row["statistic"]: (row["value"], row["low"], row["high"]) for row in known.iter_rows(named=True)}
