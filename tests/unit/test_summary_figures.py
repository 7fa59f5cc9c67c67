"""Figures: the same bytes for the same data, and no data is no crash."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest
from matplotlib.figure import Figure

import synthetic_study
from understudy.space import Choices, Range
from understudy.summary import derived, figures, panels, style
from understudy.summary.tables import costs_frame, curves_frame, trials_frame
from understudy.trial import TrialRecord

IMPORTANCE = pl.DataFrame(schema=derived.IMPORTANCE_SCHEMA)


@pytest.fixture(scope="module")
def study() -> synthetic_study.Study:
    return synthetic_study.make()


def all_figures(study: synthetic_study.Study, records: list[TrialRecord], weights: pl.DataFrame) -> dict[str, Figure]:
    trials, costs = trials_frame(records), costs_frame(records)
    pairs = derived.echo_pairs(trials)
    searched = list(study.config.space)
    kinds = {proposal.spec.id: proposal.kind for proposal in study.proposals}
    steps = derived.progress_steps(trials, costs, kinds)
    with style.styled():
        return {
            "progress": figures.progress(steps, derived.search_flops(trials, costs), None),
            "importance": figures.importance(weights, searched),
            "agreement": figures.agreement(
                pairs,
                panels.by_name(
                    derived.with_surface(derived.agreement(pairs, 0.95, 1), foreseen(study, trials), 0.95, 1)
                ),
                foreseen(study, trials),
            ),
            "slices": panels.slices(trials, study.regions, searched),
            "curves": panels.learning_curves(curves_frame(records), study.winner.rank),
        }


def foreseen(study: synthetic_study.Study, trials: pl.DataFrame) -> pl.DataFrame:
    return derived.surface_pairs(trials, study.proposals)


def broken(record: TrialRecord) -> TrialRecord:
    lost = {"status": "diverged", "objective": None, "metrics": {}, "curve": ()}
    return record.model_copy(update={"result": record.result.model_copy(update=lost)})


def edge_cases(study: synthetic_study.Study) -> dict[str, list[TrialRecord]]:
    return {
        "nothing": [],
        "one trial": study.targets[:1],
        "one proxy trial": study.proxy[:1],
        "all diverged": [broken(record) for record in study.records],
        "no complete target": [*study.proxy, *map(broken, study.targets)],
        "no echoes": [r for r in study.records if r.spec.origin != "echo"],
        "two pairs": [*study.targets[:2], *study.proxy[-16:-14]],
        "equal losses": [
            r.model_copy(update={"result": r.result.model_copy(update={"status": "complete", "objective": 2.0})})
            for r in study.records
        ],
    }


@pytest.mark.parametrize("case", edge_cases(synthetic_study.make()))
def test_edge_cases_are_drawn(case: str, study: synthetic_study.Study, tmp_path: Path) -> None:
    figures.write(all_figures(study, edge_cases(study)[case], IMPORTANCE), tmp_path)
    for name in ("progress", "importance", "agreement", "slices", "curves"):
        assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")


@pytest.mark.long
def test_the_same_data_give_the_same_bytes(study: synthetic_study.Study, tmp_path: Path) -> None:
    names = list(study.config.space)
    rows = [{"stage": "proxy", "parameter": name, "importance": 0.1} for name in names]
    weights = pl.DataFrame(rows, schema=derived.IMPORTANCE_SCHEMA)
    figures.write(all_figures(study, study.records, weights), tmp_path / "one")
    figures.write(all_figures(study, study.records[::-1], weights), tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        text = path.read_bytes()
        assert text == (tmp_path / "two" / path.name).read_bytes(), path.name
        assert b"<dc:date>" not in text


def test_a_terrible_loss_does_not_flatten_the_axis() -> None:
    losses = [1.70, 1.72, 1.75, 1.80, 1.81, 9.0]
    low, high = style.robust_limits(losses)
    assert low < 1.70
    assert 1.81 < high < 2
    assert style.robust_limits(losses, keep=[3.0])[1] > 3.0
    assert style.robust_limits([]) == (0.0, 1.0)


def test_what_is_off_the_axis_is_said(study: synthetic_study.Study) -> None:
    made = all_figures(study, study.records, IMPORTANCE)["progress"]
    axes = made.axes[0]
    steps = [r.result.objective for r in study.targets]
    above = sum(1 for loss in steps if loss is not None and loss > axes.get_ylim()[1])
    assert above > 0
    assert [text.get_text() for text in axes.texts] == [f"{above} above the axis (▲), 1 without a loss (×)"]


def test_best_so_far_is_drawn_as_it_was(study: synthetic_study.Study) -> None:
    axes = all_figures(study, study.records, IMPORTANCE)["progress"].axes[0]
    line = next(line for line in axes.lines if line.get_label() == "best so far")
    drawn = list(line.get_ydata())
    assert drawn == sorted(drawn, reverse=True)
    assert drawn[-1] == min(r.result.objective for r in study.targets if r.result.objective is not None)


def test_regions_are_shaded_where_they_are(study: synthetic_study.Study) -> None:
    axes = next(
        a for a in all_figures(study, study.records, IMPORTANCE)["slices"].axes if a.get_title() == "learning_rate"
    )
    spans = sorted((patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches)
    boxes = sorted((r.boxes["learning_rate"].low, r.boxes["learning_rate"].high) for r in study.regions.regions)
    assert spans == [pytest.approx(box) for box in boxes]
    choices = next(a for a in all_figures(study, study.records, IMPORTANCE)["slices"].axes if a.get_title() == "lora_r")
    assert [patch.get_x() for patch in choices.patches] == [-0.5, 0.5, -0.5, 0.5, 1.5]


def test_what_the_surface_predicted_is_a_panel_of_its_own(study: synthetic_study.Study) -> None:
    drawn = all_figures(study, study.records, IMPORTANCE)["agreement"].axes
    assert [axes.get_title(loc="left")[:8] for axes in drawn] == ["", "Spearman", "Spearman"]
    pairs = foreseen(study, trials_frame(study.records))
    points = [tuple(point) for dots in drawn[2].collections for point in dots.get_offsets()]
    assert len(points) == len(pairs) == 15
    within = [row for row in pairs.select("predicted", "target").rows() if row[1] <= drawn[2].get_ylim()[1]]
    assert set(points) >= {row for row in within if row[0] <= drawn[2].get_xlim()[1]} != set()
    assert "15 trials" in drawn[2].get_title(loc="left")
    with style.styled():
        alone = figures.agreement(derived.echo_pairs(trials_frame(study.records)), {}, pairs.clear())
    assert len(alone.axes) == 2


def test_what_a_region_fixes_is_marked(study: synthetic_study.Study) -> None:
    panel = {axes.get_title(): axes for axes in all_figures(study, study.records, IMPORTANCE)["slices"].axes}
    drawn = {
        name: {float(line.get_xdata()[0]) for line in axes.lines if line.get_color() == style.REGION}
        for name, axes in panel.items()
    }
    places = {"weight_decay": {0.123}, "lora_alpha": {float(study.regions.space["lora_alpha"].choices.index(16))}}
    assert {name: found for name, found in drawn.items() if found} == places
    free = [
        region.model_copy(
            update={"boxes": {n: box.model_copy(update={"fixed": None}) for n, box in region.boxes.items()}}
        )
        for region in study.regions.regions
    ]
    for regions, said in ((study.regions.regions, True), (tuple(free), False)):
        shown = panels.slices(
            trials_frame(study.records),
            study.regions.model_copy(update={"regions": regions}),
            list(study.config.space),
        )
        assert ("fixed there" in [text.get_text() for text in shown.legends[0].get_texts()]) == said


def test_layers_stand_below_each_other_under_their_panel(study: synthetic_study.Study) -> None:
    names = ("all-linear", "down_proj,q_proj")
    records = [
        r.model_copy(
            update={
                "spec": r.spec.model_copy(
                    update={"hyperparameters": {**r.spec.hyperparameters, "lora_target_modules": names[i % 2]}}
                )
            }
        )
        for i, r in enumerate(study.records)
    ]
    space = {"lora_target_modules": Choices(choices=names)}
    drawn = panels.slices(
        trials_frame(records), study.regions.model_copy(update={"space": space, "regions": ()}), list(space)
    )
    axes = next(axes for axes in drawn.axes if axes.get_title() == "lora_target_modules")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["all-linear", "down_proj\nq_proj"]
    assert sum(len(points.get_offsets()) for points in axes.collections) > 20


def test_what_has_no_place_on_a_log_scale_lies_at_its_low_end(study: synthetic_study.Study) -> None:
    """Such as the default configuration's weight decay of 0."""
    space = {"weight_decay": Range(low=1e-4, high=1.0, log=True)}
    frame = trials_frame(study.records).with_columns(
        weight_decay=pl.when(pl.col("weight_decay") > 0.15).then(pl.col("weight_decay")).otherwise(0.0)
    )
    drawn = panels.slices(frame, study.regions.model_copy(update={"space": space, "regions": ()}), list(space))
    axes = next(axes for axes in drawn.axes if axes.get_title() == "weight_decay")
    shown = [x for points in axes.collections for x, _ in points.get_offsets().tolist()]
    assert shown.count(1e-4) > 3
    assert min(x for x in shown if x != 1e-4) > 0.15


def test_texts_that_the_target_does_not_have_are_choices_of_the_proxys(study: synthetic_study.Study) -> None:
    """As LoRA's layers, where the target is trained in full."""
    layers = ["all-linear", "q_proj,v_proj"] * len(study.records)
    frame = trials_frame(study.records).with_columns(
        lora_target_modules=pl.when(pl.col("stage") == "proxy").then(pl.Series(layers[: len(study.records)]))
    )
    drawn = panels.slices(frame, study.regions, ["lora_target_modules"])
    assert [label.get_text() for label in drawn.axes[0].get_xticklabels()] == ["all-linear", "q_proj\nv_proj"]


@pytest.mark.parametrize(("flops", "unit"), [(0, "FLOP"), (950, "FLOP"), (2.9e12, "TFLOP"), (1e21, "ZFLOP")])
def test_costs_get_a_readable_unit(flops: float, unit: str) -> None:
    assert style.flop_unit(flops)[1] == unit
