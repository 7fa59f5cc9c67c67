"""The commands. Each lives in a module of its own that is imported only when it is called.

A command module has two functions: `add_arguments(parser)`, and `run(arguments)` which parses, reads, calls
and writes, and leaves the work to the package.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from understudy import disk, interruption, process
from understudy.errors import UnderstudyError
from understudy.interruption import InterruptionError

FOR_WHOM = "`status` and `schema` are for you; all other commands are called by the workflow (`snakemake`)."
COMMANDS = {
    "status": "show how far a study is",
    "schema": "print the JSON schema of config.yaml",
    "write-settings": "write one slice of the config",
    "prepare-data": "make the data set's three splits and its manifest",
    "prepare-model": "fetch, check or pretrain a base model",
    "prepare-execution": "decide once how trials run",
    "plan-pack": "write the specs of one pack of proxy trials",
    "plan-echo": "write the specs of a pack that runs target configurations back on the proxy",
    "train-pack": "train a pack of proxy trials on one base",
    "collect-proxy": "gather the proxy's trials into one table",
    "transfer": "find regions and first configurations for the target",
    "propose": "propose one target trial",
    "train-target": "train one target trial",
    "select-finalists": "choose who is trained again over several seeds",
    "train-finalist": "train a finalist with one seed",
    "choose-winner": "choose the finalist with the best mean on validation",
    "decode-search": "search the winner's decoding hyperparameters",
    "test": "evaluate the winner and the default once on the test split",
    "summarise": "write tables and figures",
    "report": "write the report and the best configuration",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with interruption.remembering_ctrl_c():
            return _run(words)
    except KeyboardInterrupt:  # of a command that doesn't listen for signals, or not yet
        from understudy import progress

        stopped = InterruptionError(signal.SIGINT, "while nothing was in training; what has finished is kept")
        return _told(" ".join(words[:1]), stopped, progress.terminal())


def _run(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="understudy", description=FOR_WHOM)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if words[:1] == [name]:
            module = importlib.import_module(f"understudy.cli.{name.replace('-', '_')}")
            command.add_argument("--log", type=Path, help="file that gets everything the command prints")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    parsed = parser.parse_args(words)
    terminal = sys.stderr
    try:
        if parsed.log:
            with disk.reported(parsed.log):
                terminal = _redirect(parsed.log)
        if process.STARTED_BY in os.environ:  # the workflow calls: nothing it began goes on without it
            process.end_with_parent()
        if interruption.ctrl_c_came():  # and was swallowed while the command was imported
            raise KeyboardInterrupt
        with interruption.prevailing():
            parsed.run(parsed)
        sys.stdout.flush()
    except InterruptionError as error:
        if error.__cause__ is not None and parsed.log:
            traceback.print_exc()
        return _told(parsed.command, error, terminal)
    except Exception as error:
        if interruption.ctrl_c_came():
            if parsed.log:
                traceback.print_exc()
            raise
        if isinstance(error, UnderstudyError):
            return _failed(parsed, error, terminal)
        if isinstance(error, OSError) and (refused := disk.refusal(error, otherwise=parsed.log)):  # of the open log
            return _failed(parsed, refused, terminal)
        with suppress(OSError):
            traceback.print_exc()  # into the log, where there is one
        return _failed(parsed, _unexpected(error, parsed.log), terminal)
    return 0


def _failed(parsed: argparse.Namespace, error: UnderstudyError, terminal: TextIO) -> int:
    """Tell an error, and keep the log under a second name: the first goes when Snakemake tries the job again."""
    exit_code = _told(parsed.command, error, terminal)
    if parsed.log:
        names = (parsed.log.with_suffix(f".failed-{number}.log") for number in itertools.count(1))
        with suppress(OSError):  # a full disk, or one without hard links
            if parsed.log.stat().st_size:
                os.link(parsed.log, next(name for name in names if not name.exists()))
    return exit_code


def _unexpected(error: Exception, log: Path | None) -> UnderstudyError:
    """What to say of an exception that nobody foresaw: its first line, and where the rest is."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "it says nothing more")
    place = f"in {log}" if log is not None else "above"
    return UnderstudyError(f"unexpected {type(error).__name__}: {said}; the traceback is {place}")


def _told(command: str, error: UnderstudyError, terminal: TextIO) -> int:
    """Show an error on the terminal and in the log, as far as a full disk takes it; return the exit code."""
    for stream in {terminal, sys.stderr}:
        with suppress(OSError):
            print(f"understudy {command}: {error}", file=stream, flush=True)
    try:
        sys.stdout.flush()
    except OSError:  # what is buffered is lost; at the end of the process it must not cover the message
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return error.exit_code


def _redirect(log: Path) -> TextIO:
    """Send this process's output to `log`; return the terminal, for errors and progress."""
    from understudy import progress

    log.parent.mkdir(parents=True, exist_ok=True)
    terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", buffering=1)
    progress.set_terminal(terminal)
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("ab") as handle:
        handle.truncate(0)
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
    return terminal
