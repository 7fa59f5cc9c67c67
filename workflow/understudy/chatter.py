"""Which of Snakemake's own lines are shown, and what they tell of a run: its logger's records pass through here."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from understudy import interruption

TWO_PER_JOB = ("Select jobs to execute", "Execute ")
EXPLAINED = ("returned non-zero exit status", "died with <Signals.SIGINT")
STOPPED = "Terminating processes on user request"
FAILED = "job_error"  # Snakemake's event for a job that failed
CALLED = "\n    sbatch call:"  # behind what SLURM said, in the words of Snakemake's plugin
TABLE = "run_info"  # Snakemake's event for how many jobs each rule has


@dataclass
class _State:
    interrupted: bool = False


_state = _State()


def interrupted() -> bool:
    """Whether Snakemake was asked to end by Ctrl-C since `hush`."""
    return _state.interrupted


def hush(logger: logging.Logger) -> None:
    """Drop Snakemake's lines that would bury the commands' own.

    These are two lines per job, and the call of a command that failed or was interrupted with a message of its own. A
    command that was killed has said nothing, so there Snakemake's words stay.
    """

    def is_news(record: logging.LogRecord) -> bool:
        text = str(record.msg)
        if text.startswith(STOPPED):
            _state.interrupted = True
            interruption.end_once()
        explained = "RuleException" in text and any(words in text for words in EXPLAINED)
        return not (text.startswith(TWO_PER_JOB) or explained)

    logger.addFilter(is_news)


def show_table(logger: logging.Logger) -> None:
    """Let a dry run's table of jobs through, once, though the profiles are quiet about progress, which it counts as."""
    shown = False

    def is_first(record: logging.LogRecord) -> bool:
        nonlocal shown
        if getattr(record, "event", None) != TABLE:
            return True
        record.event = None  # a line like any other
        first, shown = not shown, True
        return first

    logger.addFilter(is_first)


def tell_failures(logger: logging.Logger) -> None:
    """Let through what a scheduler said of jobs that it refused or ended, though the profiles are quiet about rules.

    One line and the job's log, in place of all that Snakemake knows of the job. Commands that failed beside Snakemake
    have told it themselves.
    """

    def shortened(record: logging.LogRecord) -> bool:
        told = vars(record)
        if told.get("event") == FAILED and told.get("rule_msg"):
            made = ", ".join(map(str, told["output"]))
            said = str(told["rule_msg"]).partition(CALLED)[0].strip()
            logs = [str(path) for path in told["log"] if Path(path).exists()]
            record.event = None  # a line like any other
            record.msg = f"The job of rule {told['rule_name']} for {made} failed: {said}"
            record.msg += f" See {', '.join(logs)}." if logs else ""
        return True

    logger.addFilter(shortened)
