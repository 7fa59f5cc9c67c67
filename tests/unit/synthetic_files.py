"""The made-up study's files, and the commands that read them."""

from __future__ import annotations

from pathlib import Path

from synthetic_study import Study
from understudy.cli import main
from understudy.files import write_json
from understudy.paths import StudyPaths
from understudy.sections import sections
from understudy.store import Store
from understudy.trial import (
    PackResults,
)


def write(study: Study, root: Path) -> None:
    """Write everything that `summarise` and `report` read below `root`, as the workflow would."""
    paths = StudyPaths(root)
    packs = {
        "search-000": [r for r in study.proxy if r.spec.origin != "echo"],
        "echo-000": [r for r in study.proxy if r.spec.origin == "echo"],
    }
    for name, records in packs.items():
        write_json(paths.pack_results(name), PackResults(id=name, records=tuple(records)))
    for number, (target, proposal) in enumerate(zip(study.targets, study.proposals, strict=True)):
        write_json(paths.target_result(number), target)
        write_json(paths.proposal(number), proposal)
    for finalist in study.finalists:
        rank, seed = finalist.spec.id[1:].split("s")
        write_json(paths.finalist_result(rank, seed), finalist)
        adapter = Store(paths.store).adapter(finalist.result.digest)
        write_json(adapter / "adapter_config.json", {"peft_type": "LORA", "made_for": finalist.spec.id})
    for path, value in (
        (paths.regions, study.regions),
        (paths.starts, study.starts),
        (paths.winner, study.winner),
        (paths.test, study.test),
        (paths.decode, study.decode),
        (paths.manifest, study.manifest),
        (paths.settings("summary"), sections(study.config)["summary"]),
        (paths.settings("study"), study.config),
    ):
        write_json(path, value)
    for card in study.cards:
        write_json(paths.model(card.role), card)
        write_json(paths.execution(card.role), study.executions[card.role])


def reported(study: Study, root: Path) -> StudyPaths:
    """The study below `root` with its summary and report."""
    write(study, root)
    assert main(summarise_arguments(root)) == 0
    assert main(report_arguments(root)) == 0
    return StudyPaths(root)


def summarise_arguments(root: Path) -> list[str]:
    """The command line of `summarise` for a written study."""
    paths = StudyPaths(root)
    files: dict[str, Path | list[Path]] = {
        "settings": paths.settings("summary"),
        "packs": sorted(root.glob("proxy/packs/*/results.json")),
        "targets": sorted(root.glob("target/trials/*/result.json")),
        "finalists": sorted(root.glob("finalists/*/*/result.json")),
        "proposals": sorted(root.glob("target/trials/*/proposal.json")),
        "regions": paths.regions,
        "starts": paths.starts,
        "winner": paths.winner,
        "test": paths.test,
        "decode": paths.decode,
        "models": [paths.model("proxy"), paths.model("target")],
        "execution": [paths.execution("proxy"), paths.execution("target")],
        "output": paths.headline.parent,
    }
    return ["summarise", *_words(files)]


def report_arguments(root: Path) -> list[str]:
    """The command line of `report` for a written study."""
    paths = StudyPaths(root)
    files: dict[str, Path | list[Path]] = {
        "settings": paths.settings("summary"),
        "summary": paths.headline.parent,
        "manifest": paths.manifest,
        "execution": [paths.execution("proxy"), paths.execution("target")],
        "models": [paths.model("proxy"), paths.model("target")],
        "regions": paths.regions,
        "winner": paths.winner,
        "test": paths.test,
        "decode": paths.decode,
        "store": paths.store,
        "config": paths.settings("study"),
        "report": paths.report,
        "best": paths.best_config.parent,
    }
    return ["report", *_words(files)]


def _words(files: dict[str, Path | list[Path]]) -> list[str]:
    words: list[str] = []
    for name, paths in files.items():
        words += [f"--{name}", *map(str, paths if isinstance(paths, list) else [paths])]
    return words
