"""Which of Snakemake's lines are shown: its own logger's records, filter and words."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from snakemake.logging import DefaultFilter
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

from understudy import chatter

QUIET = {Quietness.RULES, Quietness.PROGRESS, Quietness.HOST, Quietness.REASON}  # as in the profiles
CALL = """RuleException:
CalledProcessError in file "rules/prepare.smk", line 79:
Command 'set -euo pipefail; exec python -m understudy train-pack' """


class Shown(logging.Handler):
    """What comes through to the terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.addFilter(DefaultFilter(QUIET, False, False, True, False))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def logger() -> Iterator[tuple[logging.Logger, list[str]]]:
    made, shown, on_interrupt = logging.Logger("snakemake"), Shown(), signal.getsignal(signal.SIGINT)
    made.addHandler(shown)
    yield made, shown.lines
    chatter._state.interrupted = False
    signal.signal(signal.SIGINT, on_interrupt)


def test_what_a_command_has_explained_is_dropped(logger: tuple[logging.Logger, list[str]]) -> None:
    made, lines = logger
    chatter.hush(made)
    for end in (
        "returned non-zero exit status 1.",
        "returned non-zero exit status 130.",
        "died with <Signals.SIGINT: 2>.",
    ):
        made.error(CALL + end)
    made.info("Execute 2 jobs...")
    made.error(CALL + "died with <Signals.SIGKILL: 9>.")
    made.error("WorkflowError: At least one job did not complete successfully.")
    assert lines == [
        CALL + "died with <Signals.SIGKILL: 9>.",
        "WorkflowError: At least one job did not complete successfully.",
    ]
    assert not chatter.interrupted()


def test_an_interruption_is_noted_and_shown(logger: tuple[logging.Logger, list[str]]) -> None:
    made, lines = logger
    chatter.hush(made)
    made.info("Terminating processes on user request, this might take some time.")
    assert chatter.interrupted()
    assert len(lines) == 1


def test_a_second_ctrl_c_is_survived_where_nobody_reads(
    logger: tuple[logging.Logger, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who piped the output somewhere has ended the reader by the first one."""

    def closed(*_: object) -> None:
        raise BrokenPipeError

    chatter.hush(logger[0])
    logger[0].info(chatter.STOPPED)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", closed)
        signal.raise_signal(signal.SIGINT)


def test_what_a_scheduler_said_of_a_job_is_shown_in_a_line(
    logger: tuple[logging.Logger, list[str]], tmp_path: Path
) -> None:
    """As Snakemake's SLURM plugin has it reported: words, the call behind them, and logs that may not be there."""
    made, lines = logger
    log = tmp_path / "1.log"
    log.touch()
    job = {"event": LogEvent.JOB_ERROR, "rule_name": "train_target", "output": ["0003/result.json"], "jobid": 7}
    refused = "SLURM sbatch failed. The error message was 'Invalid qos'.\n    sbatch call:\n        sbatch --parsable\n"
    made.error("Error in rule", extra={**job, "rule_msg": refused, "log": ["nowhere"]})
    assert lines == []
    chatter.tell_failures(made)
    made.error("Error in rule", extra={**job, "rule_msg": refused, "log": ["nowhere"]})
    made.error("Error in rule", extra={**job, "rule_msg": "SLURM status is: 'TIMEOUT'.", "log": [str(log)]})
    made.error("Error in rule", extra={**job, "rule_msg": None, "log": []})  # of a step beside Snakemake
    start = "The job of rule train_target for 0003/result.json failed: "
    assert lines == [
        start + "SLURM sbatch failed. The error message was 'Invalid qos'.",
        start + f"SLURM status is: 'TIMEOUT'. See {log}.",
    ]


def test_a_dry_runs_table_is_shown_once(logger: tuple[logging.Logger, list[str]]) -> None:
    made, lines = logger
    made.info("Job stats: before", extra={"event": LogEvent.RUN_INFO})
    assert lines == []
    chatter.show_table(made)
    for _ in range(2):
        made.info("Job stats: 44", extra={"event": LogEvent.RUN_INFO})
        made.info("rule", extra={"event": LogEvent.JOB_INFO})
    made.info("This was a dry-run")
    assert lines == ["Job stats: 44", "This was a dry-run"]
