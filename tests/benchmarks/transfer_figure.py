"""Draw what `transfer.py --note` wrote: the regret after k target runs, a panel per set, a line per method.

    python tests/benchmarks/transfer_figure.py [--reports transfer_measured.json] [--figure transfer.svg]

Means over tasks and seeds, on a logarithmic axis that is linear below 0.01 %, where a regret of 0 has its place.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from replays import reports
from understudy.summary import style

HERE = Path(__file__).parent
PANELS = {
    "matched of steplaw": "Step Law, matched proxies",
    "own of transfer_runs": "our fine-tuning runs",
    "lies of steplaw": "Step Law, proxies that lie",
}
# Label, colour and marker. Of several methods the first that a set has; on our own table plain trials are the rescaled
# ones once they are moved to its configurations.
LINES: Mapping[tuple[str, ...], tuple[str, str, str]] = {
    ("understudy_two_fidelity",): ("understudy", style.BLUE, "o"),
    ("rule",): ("a published rule", style.INK, ""),
    ("ranked",): ("the proxy's ranked list", style.GREY, "."),
    ("botorch_multitask_scaled", "botorch_multitask"): ("BoTorch, multi-task GP", style.VERMILLION, "s"),
    ("optuna_tpe_warm_scaled",): ("Optuna TPE, warm, rescaled", style.GREEN, "^"),
    ("smac_forest_warm",): ("SMAC3, warm", style.PURPLE, "D"),
    ("smac_gp",): ("SMAC3's GP, cold", style.ORANGE, "v"),
    ("optuna_tpe",): ("Optuna TPE, cold", style.GREY, "x"),
    ("random",): ("random search", style.INK, "+"),
}
ELSEWHERE = {"own of transfer_runs": {"rule"}}  # moved so far away that its figures say nothing of it
LINEAR_BELOW = 0.01  # percent
TOP = 10.0  # percent; first runs above it are off the axes


def main() -> None:
    """Write the figure."""
    options = arguments()
    with style.styled():
        style.save(drawn(reports.read(options.reports)), options.figure)


def drawn(sets: Mapping[str, Mapping[str, Any]]) -> Figure:
    """The panels whose sets there are."""
    panels = {name: title for name, title in PANELS.items() if name in sets}
    figure = style.new_figure(9.6, 3.2)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for place, (name, title) in zip(axes, panels.items(), strict=True):
        regret, without = sets[name]["regret"], ELSEWHERE.get(name, ())
        _panel(place, {method: each for method, each in regret.items() if method not in without})
        place.set_title(title, loc="left")
    axes[0].set_ylabel("mean regret (% of the best loss)")
    handles = {label: handle for each in axes for handle, label in zip(*each.get_legend_handles_labels(), strict=True)}
    ordered = [label for label, _, _ in LINES.values() if label in handles]
    figure.legend([handles[label] for label in ordered], ordered, loc="outside right center")
    return figure


def _panel(axes: Axes, regret: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    for names, (label, colour, marker) in LINES.items():
        name = next((each for each in names if each in regret), None)
        if name is None:
            continue
        runs, values = [int(k) for k in regret[name]], [each["mean"] for each in regret[name].values()]
        ours = name.startswith("understudy")
        axes.plot(
            runs, values, color=colour, marker=marker, ms=5 if ours else 4, lw=2.4 if ours else 1.2, label=label,
            zorder=4 if ours else 3, ls="-" if marker else "--",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("symlog", linthresh=LINEAR_BELOW)
    axes.set(xlabel="full-size runs", ylim=(-LINEAR_BELOW / 4, TOP))
    axes.set_xticks(ticks := [1, 2, 4, 8, 16], [str(each) for each in ticks])
    axes.set_yticks([0, 0.01, 0.1, 1, 10], ["0", "0.01", "0.1", "1", "10"])
    axes.xaxis.set_minor_locator(NullLocator())


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, default=HERE / "transfer_measured.json")
    parser.add_argument("--figure", type=Path, default=HERE / "transfer.svg")
    return parser.parse_args()


if __name__ == "__main__":
    main()
