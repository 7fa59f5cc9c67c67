"""The commands `summarise` and `report` on a written study, and what they leave for people."""

from __future__ import annotations

import dataclasses
import html
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
import yaml

import synthetic_files
import synthetic_study
from understudy import checksums
from understudy.artifacts import DecodeResults, Interval, Outlook
from understudy.cli import main
from understudy.errors import StorageError
from understudy.paths import StudyPaths
from understudy.summary import derived
from understudy.summary.report import mixed_facts
from understudy.trial import EarlyStop, TrialRecord


@pytest.fixture(scope="module")
def study() -> synthetic_study.Study:
    return synthetic_study.make()


@pytest.fixture(scope="module")
def paths(study: synthetic_study.Study, tmp_path_factory: pytest.TempPathFactory) -> StudyPaths:
    """A study whose summary and report are written, below a folder with an awkward name."""
    root = tmp_path_factory.mktemp("it's a stüdy") / "results"
    return synthetic_files.reported(study, root)


def test_summarise_writes_every_declared_file(paths: StudyPaths) -> None:
    for name in ("trials", "costs", "provenance", "curves"):
        assert len(pl.read_parquet(paths.table(name))) >= 93
    for name in ("trials", "leaderboard", "importance", "agreement", "cost_per_stage"):
        assert len(pl.read_csv(paths.table(name, "csv"))) > 0
    for name in ("progress", "importance", "agreement", "slices", "curves"):
        assert paths.figure(name).stat().st_size > 5000
    weights = pl.read_csv(paths.table("importance", "csv"))
    assert weights["stage"].unique().sort().to_list() == ["proxy", "target"]


def test_tables_that_are_written_anew_are_in_no_list_meanwhile(
    study: synthetic_study.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends in the middle of it leaves tables that are half old, and none of them altered."""
    folder = StudyPaths(tmp_path).headline.parent
    synthetic_files.write(study, tmp_path)
    folder.mkdir()
    (folder / "trials.parquet").write_text("old")
    checksums.write_list(folder)

    def refused(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr("understudy.summary.summarise.write_csv", refused)
    assert main(synthetic_files.summarise_arguments(tmp_path)) == 1
    assert (folder / "trials.parquet").read_bytes() != b"old"
    assert checksums.altered(folder) == []


def test_the_headline_has_the_answer(study: synthetic_study.Study, paths: StudyPaths) -> None:
    text = paths.headline.read_text(encoding="utf-8")
    gain = study.test.gain
    assert f"{gain.value:.4f}, 95 % interval {gain.low:.4f} to {gain.high:.4f}" in text
    fewer = f"{(math.exp(-gain.value) - 1) * 100:.2f} %"
    assert f"perplexity {fewer}\n" in text
    assert fewer.startswith("-")
    assert "looked at the test split once" in text
    assert "2 diverged, 1 out of memory" in text
    assert str(paths.report) in text
    assert re.search(r"learning_rate +0\.002381 +\(default 0\.0012\)", text)
    assert "adam_beta1" not in text  # was not searched


def test_agreements_stand_apart_in_headline_and_report(study: synthetic_study.Study, tmp_path: Path) -> None:
    """The target's losses turned around: the echoes rank otherwise, and the sampler is said to trust the proxy."""
    losses = [r.result.objective for r in study.targets if r.result.objective is not None]
    turned = [
        r.model_copy(
            update={"result": r.result.model_copy(update={"objective": max(losses) + min(losses) - r.result.objective})}
        )
        if r.result.objective is not None
        else r
        for r in study.targets
    ]
    told = [p.model_copy(update={"outlook": Outlook(trust=0.96, chance=0.1, rate_shift=1.0)}) for p in study.proposals]
    written = synthetic_files.reported(dataclasses.replace(study, targets=turned, proposals=told), tmp_path)
    table = pl.read_csv(written.table("agreement", "csv"))
    rows = {row["statistic"]: row for row in table.iter_rows(named=True)}
    assert list(rows)[-2:] == ["pair_spread", "trust"]
    echoes, surface = rows["spearman"]["value"], rows["surface_spearman"]["value"]
    expected = [
        "The sampler followed the proxy",
        f"; the proxy doesn't rank configurations as the target does: Spearman {echoes:.2f}",
        "That trust ",
        f"fitted to the proxy's search doesn't rank the trials as they came out: Spearman {surface:.2f}",
    ]
    page = html.unescape(written.report.read_text(encoding="utf-8"))
    headline = written.headline.read_text(encoding="utf-8")
    for text in (page, headline):
        places = [text.index(sentence) for sentence in expected]
        assert places == sorted(places)
    assert "<td>surface spearman</td>" in page
    assert "pair spread</td>" not in page


class Page(HTMLParser):
    """Collects ids, loads and the nesting of a page."""

    void = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.void:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href", "data", "action") and not str(value).startswith("#"):
                self.loads.append(str(value))
        assert tag not in ("script", "link", "iframe", "object")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_stands_alone(paths: StudyPaths) -> None:
    text = paths.report.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.loads == []
    assert not re.search(r"url\((?!#)|@import", text)
    assert len(page.ids) == len(set(page.ids))
    for target in re.findall(r'(?:href="|url\()#([^")]+)', text):
        assert target in page.ids


def test_the_report_says_what_was_found(study: synthetic_study.Study, paths: StudyPaths) -> None:
    text = paths.report.read_text(encoding="utf-8")
    assert f"{study.test.gain.value:+.4f} nats per token" in text
    assert f"({(math.exp(-study.test.gain.value) - 1) * 100:.2f} %)" in text
    assert "cluster 1 of the best quarter &amp; its &lt;padding&gt;" in text
    assert "LoRA Without Regret" in text
    assert text.count("0.123, fixed; free to explore: ") == text.count("16, fixed; free to explore: ") == 2
    assert "Trials of one stage ran on different" not in text
    assert text.count("<svg") == 5
    assert "pack_size: 16" in text


def test_the_report_says_whether_regions_guided_anything(
    study: synthetic_study.Study, paths: StudyPaths, tmp_path: Path
) -> None:
    model = study.config.target.model_copy(update={"sampler": "two_fidelity"})
    other = dataclasses.replace(study, config=study.config.model_copy(update={"target": model}))
    texts = [
        written.report.read_text(encoding="utf-8") for written in (paths, synthetic_files.reported(other, tmp_path))
    ]
    guided, by_model = (html.unescape(text) for text in texts)
    assert "isn't guided by them" in by_model
    assert "isn't guided by them" not in guided
    for words in (
        "of the guided proposals",
        "fixed; free to explore",
        "what is negligible has that value",
        "fixed there",
        "guided into a region",
    ):
        assert words in guided
        assert words not in by_model


def test_mixed_machines_are_warned_about(study: synthetic_study.Study, tmp_path: Path) -> None:
    moved = list(study.targets)
    facts = {**synthetic_study.PROVENANCE, "torch": "2.14.0", "host": "node-b"}
    moved[2] = moved[2].model_copy(update={"result": moved[2].result.model_copy(update={"provenance": facts})})
    text = synthetic_files.reported(dataclasses.replace(study, targets=moved), tmp_path).report.read_text(
        encoding="utf-8"
    )
    assert "Trials of one stage ran on different torch." in text
    apart = pl.DataFrame({"id": ["a", "b"], "stage": ["proxy", "target"], "hardware": ["small", "large"]})
    assert mixed_facts(apart) == []


def test_a_study_that_found_nothing_better_says_so(study: synthetic_study.Study, tmp_path: Path) -> None:
    zero = Interval(value=0.0, low=0.0, high=0.0, confidence=0.95)
    best = dataclasses.replace(
        study,
        winner=study.winner.model_copy(update={"rank": 0, "hyperparameters": study.starts.default}),
        test=study.test.model_copy(update={"gain": zero, "validation_gain": zero}),
        decode=DecodeResults(examples=32, trials=()),
        proxy=[r for r in study.proxy if r.spec.origin != "echo"],
    )
    paths = synthetic_files.reported(best, tmp_path)
    headline, report = (path.read_text(encoding="utf-8") for path in (paths.headline, paths.report))
    assert "Best configuration: the default; no configuration of the search beat it on validation\n" in headline
    assert "Decoding" not in headline
    assert "  gain " not in headline.split("Test loss")[1]
    assert "isn't known" in headline
    assert "The default configuration was not beaten" in report
    assert "switched off" in report
    assert "generation" not in yaml.safe_load(paths.best_config.read_text(encoding="utf-8"))


def test_a_finalist_that_failed_with_a_seed_may_have_a_lower_mean(study: synthetic_study.Study, tmp_path: Path) -> None:
    default, *others = study.winner.scores
    failed = [score.model_copy(update={"objectives": (*score.objectives[:-1], None)}) for score in others]
    update = {"rank": 0, "hyperparameters": study.starts.default, "scores": (default, *failed)}
    winner = study.winner.model_copy(update=update)
    paths = synthetic_files.reported(dataclasses.replace(study, winner=winner), tmp_path)
    title = "the default; no configuration of the search with a loss for every seed beat it on validation\n"
    assert title in paths.headline.read_text(encoding="utf-8")


def test_a_default_that_failed_with_some_seeds_is_not_told_as_a_mean_of_all(
    study: synthetic_study.Study, tmp_path: Path
) -> None:
    first, *others = study.winner.scores
    poorer = first.model_copy(update={"objectives": (*first.objectives[:-1], None)})
    winner = study.winner.model_copy(update={"scores": (poorer, *others)})
    paths = synthetic_files.reported(dataclasses.replace(study, winner=winner), tmp_path)
    assert "   2 of 3 seeds, the others failed\n" in paths.headline.read_text(encoding="utf-8")


def test_a_target_stage_without_a_loss_is_reported(study: synthetic_study.Study, tmp_path: Path) -> None:
    lost = {"status": "diverged", "objective": None, "metrics": {}, "curve": ()}
    targets = [r.model_copy(update={"result": r.result.model_copy(update=lost)}) for r in study.targets]
    paths = synthetic_files.reported(dataclasses.replace(study, targets=targets), tmp_path)
    assert "18 diverged" in paths.headline.read_text(encoding="utf-8")


def test_stopped_proxy_trials_are_named_and_are_no_failures(study: synthetic_study.Study, tmp_path: Path) -> None:
    """Their losses aren't in the figures, their cost is in the table, and no number of the winner's changes."""
    lost = {"status": "stopped", "objective": None, "metrics": {}}
    halved = [r.spec.origin in ("random", "sobol") and r.result.status == "complete" for r in study.proxy]
    proxy = [
        r.model_copy(update={"result": r.result.model_copy(update=lost)}) if stop else r
        for r, stop in zip(study.proxy, halved, strict=True)
    ]
    regions = study.regions.model_copy(update={"stopped": sum(halved), "complete": 12})
    paths = synthetic_files.reported(dataclasses.replace(study, proxy=proxy, regions=regions), tmp_path)
    headline, report = (path.read_text(encoding="utf-8") for path in (paths.headline, paths.report))
    assert sum(halved) > 30
    assert f"trials complete, {sum(halved)} stopped early" in headline
    assert f"{sum(halved)} were stopped early by halving, 12 have a final loss" in report
    assert "of those that ran in full" in report
    costs = pl.read_csv(paths.table("cost_per_stage", "csv"))
    assert costs.filter(pl.col("stage") == "proxy")["trials"].item() == sum(r.spec.origin != "echo" for r in proxy)
    assert pl.read_csv(paths.table("importance", "csv"))["stage"].unique().sort().to_list() == ["proxy", "target"]


def stopped_early(record: TrialRecord, evaluations: int) -> TrialRecord:
    """The made-up trial, stopped after so many of its four evaluations."""
    whole, kept = record.result, record.result.curve[:evaluations]
    stop = EarlyStop(
        number=evaluations,
        evaluations=4,
        step=kept[-1].step,
        steps=whole.steps,
        best_loss=kept[-1].eval_loss,
        limit=1.0,
    )
    fields = {"status": "stopped", "objective": None, "metrics": {}, "curve": kept, "steps": stop.step}
    return record.model_copy(update={"result": whole.model_copy(update={**fields, "early_stop": stop})})


def test_stopped_target_trials_are_told(study: synthetic_study.Study, tmp_path: Path) -> None:
    """In the headline, the report, the tables; figures are drawn. t0009 ran out of memory after all of its steps."""
    places = {2: 1, 7: 3, 12: 2}
    targets = [stopped_early(r, places[n]) if n in places else r for n, r in enumerate(study.targets)]
    limited = [each.model_copy(update={"stop_above": (3.0, None, 2.0)}) for each in study.proposals]
    paths = synthetic_files.reported(dataclasses.replace(study, targets=targets, proposals=limited), tmp_path)
    work = [int(r.spec.hyperparameters["batch_size"]) * r.result.steps for r in study.targets]
    saved = sum(work[n] * (1 - targets[n].result.steps / study.targets[n].result.steps) for n in places) / sum(work)
    (row,) = pl.read_csv(paths.table("early_stopping", "csv")).to_dicts()
    assert row == {"stopped": 3, "trials": 16, "saved": pytest.approx(saved)}
    sentence = (
        f"The limits in the proposals stopped 3 of 16 target trials, which saved {saved * 100:.0f} % of the target "
        "search's steps (each counted by its batch size)."
    )
    headline = paths.headline.read_text(encoding="utf-8")
    assert sentence in headline
    assert "3 stopped early" in headline
    assert sentence in html.unescape(paths.report.read_text(encoding="utf-8"))
    board = pl.read_csv(paths.table("leaderboard", "csv")).filter(pl.col("status") == "stopped")
    assert board["name"].to_list() == ["t0002", "t0007", "t0012"]
    assert board["mean"].null_count() == 3
    curves = pl.read_parquet(paths.table("curves")).filter(stage="target", id="t0002")
    assert curves.height == 1
    assert paths.figure("progress").stat().st_size > 5000
    assert "4 without a loss" in paths.figure("progress").read_text(encoding="utf-8")


def test_skipped_target_trials_are_none_of_those_that_early_stopping_is_about(study: synthetic_study.Study) -> None:
    limited = [each.model_copy(update={"stop_above": (3.0, None, 2.0)}) for each in study.proposals]
    targets = [stopped_early(record, 2) if number == 2 else record for number, record in enumerate(study.targets)]
    lost = {"status": "skipped", "objective": None, "metrics": {}, "curve": ()}
    skipped = targets[7].model_copy(update={"result": targets[7].result.model_copy(update=lost)})
    told = derived.early_stopping([*targets[:7], skipped, *targets[8:]], limited)
    assert told.rows() == derived.early_stopping([*targets[:7], *targets[8:]], limited).rows()
    assert told.row(0, named=True)["trials"] == 15


def test_early_stopping_that_stopped_nothing_is_told_and_none_is_not(
    study: synthetic_study.Study, paths: StudyPaths, tmp_path: Path
) -> None:
    limited = [each.model_copy(update={"stop_above": (None, None, None)}) for each in study.proposals]
    nothing = synthetic_files.reported(dataclasses.replace(study, proposals=limited), tmp_path)
    assert "stopped none of 16 target trials" in nothing.headline.read_text(encoding="utf-8")
    assert "limits in the proposals" not in paths.headline.read_text(encoding="utf-8")
    assert "limits in the proposals" not in paths.report.read_text(encoding="utf-8")
    assert pl.read_csv(paths.table("early_stopping", "csv")).height == 0


def test_what_was_cut_off_the_data_stands_beside_the_models(study: synthetic_study.Study, tmp_path: Path) -> None:
    note = "3 of 512 training examples are longer than data.max_length (128) and lose the beginning of their prompt"
    cards = [study.cards[0].model_copy(update={"notes": (note,)}), study.cards[1]]
    paths = synthetic_files.reported(dataclasses.replace(study, cards=cards), tmp_path)
    assert f"<li>proxy: {note}</li>" in paths.report.read_text(encoding="utf-8")
