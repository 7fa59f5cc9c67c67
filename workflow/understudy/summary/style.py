"""How every figure looks, and how it is written: colour-blind safe, and the same bytes for the same data.

Colours are those of Okabe & Ito (2008), which people with the common colour-vision deficiencies can tell apart; what
differs in colour differs in marker or line as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from understudy.files import written_whole

BLUE, ORANGE, GREEN, VERMILLION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
GREY = "#8a8f98"
INK = "#2b2f36"
PROXY, TARGET, DEFAULT, WINNER, REGION = ORANGE, BLUE, INK, VERMILLION, GREEN

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that text is set alike everywhere
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.color": "#e7e9ec",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "understudy",
}
FENCE = 1.5  # Tukey's: a loss this many interquartile ranges above the upper quartile is off the axis
MARGIN = 0.06  # of the axis, above and below the data


def styled() -> Any:
    """A context in which figures are made and written."""
    return rc_context(STYLE)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, with an SVG canvas and no global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write an SVG without date or version, whole or not at all."""
    with styled(), written_whole(path) as beside:
        figure.savefig(beside, format="svg", metadata={"Date": None, "Creator": None})


def robust_limits(values: Sequence[float], keep: Sequence[float] = ()) -> tuple[float, float]:
    """Axis limits that a few terrible losses don't flatten: up to Tukey's upper fence, and to everything in `keep`."""
    finite = np.array([value for value in values if np.isfinite(value)] + list(keep))
    if not len(finite):
        return 0.0, 1.0
    lower, upper = np.quantile(finite, [0.25, 0.75])
    top = max([finite[finite <= upper + FENCE * (upper - lower)].max(), *keep])
    bottom = finite.min()
    margin = MARGIN * (top - bottom) or max(abs(top) * 0.01, 1e-6)
    return float(bottom - margin), float(top + margin)


def clip_note(axes: Axes, above: int, missing: int = 0) -> None:
    """Say below the axes' top right corner what isn't at its place."""
    parts = [f"{above} above the axis (▲)"] * bool(above) + [f"{missing} without a loss (×)"] * bool(missing)
    if parts:
        axes.text(1, 1.035, ", ".join(parts), transform=axes.transAxes, ha="right", va="bottom", fontsize=7, color=GREY)


def nothing(axes: Axes, text: str) -> None:
    """An empty panel that says why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)


def single(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one panel."""
    figure = new_figure(width, height)
    return figure, figure.add_subplot()


def flop_unit(largest: float) -> tuple[float, str]:
    """A divisor and a unit in which a number of FLOPs reads well: (1e12, "TFLOP")."""
    prefixes = ("", "k", "M", "G", "T", "P", "E", "Z")
    power = 0 if largest < 1 else min(int(np.log10(largest) // 3), len(prefixes) - 1)
    return 1000.0**power, f"{prefixes[power]}FLOP"
