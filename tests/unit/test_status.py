"""The command `status`, and what counts as done."""

from __future__ import annotations

from pathlib import Path

import pytest

import synthetic_study
from understudy import lease, progress
from understudy.cli import main
from understudy.files import write_json
from understudy.paths import StudyPaths


@pytest.fixture(scope="module")
def study() -> synthetic_study.Study:
    return synthetic_study.make()


def test_status_shows_every_stage(
    study: synthetic_study.Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = StudyPaths(tmp_path)

    def status() -> list[str]:
        capsys.readouterr()
        assert main(["status", "--results", str(tmp_path)]) == 0
        return capsys.readouterr().out.splitlines()

    progress.start(paths.progress, {"proxy": 68, "target": 16, "finalist": 9}, workers=2)
    progress.finished(paths.progress, study.targets[3], reused=False)
    with lease.held(paths.lock):
        lines = status()
    assert [line.split()[0] for line in lines] == ["proxy", "target", "finalist"]
    assert "1 of 16 trials" in lines[1]
    assert "(t0003)" in lines[1]
    *killed, last = status()
    assert len(killed) == 3
    assert last == "No run is under way. Where something is left to do, the same command goes on."
    progress.end(paths.progress, through=False)
    assert "the last one ended before it was through, for an error or a signal" in status()[-1]
    progress.end(paths.progress, through=True)
    assert status()[-1] == "No run is under way: the last one did all that it was asked for."


def test_what_is_trained_anew_is_not_done_yet(study: synthetic_study.Study, tmp_path: Path) -> None:
    """Nor the best of what was before."""
    paths, totals = StudyPaths(tmp_path), {"proxy": 68, "target": 2}
    progress.start(paths.progress, totals, workers=2)
    best, other = sorted(study.targets[:2], key=lambda record: record.result.objective or 9)
    for number, record in enumerate((best, other)):
        write_json(paths.target_result(number), record)
        progress.finished(paths.progress, record, reused=False)
    assert f"({best.spec.id})" in progress.state(paths.progress).line("target")
    progress.start(paths.progress, totals, workers=2, renewed=[paths.target_result(0), paths.proposal(1), tmp_path])
    line = progress.state(paths.progress).line("target")
    assert "1 of 2 trials" in line
    assert f"({other.spec.id})" in line


def test_status_without_a_study_says_what_to_do(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--results", str(tmp_path / "none")]) == 2
    assert "snakemake" in capfd.readouterr().err
