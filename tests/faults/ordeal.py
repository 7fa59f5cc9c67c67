"""A study that is run through one fault after the other, and what must hold whatever happens."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from understudy.errors import UnderstudyError
from understudy.files import read_json
from workflow.conftest import Study

from .faults import Fault
from .running import POLL_SECONDS, Running
from .strikes import ADVICE, Blow, strike

STARTS = 8  # after which a study that still doesn't end has failed the test


@dataclass
class Ordeal:
    """`story` says what happened, `struck` which faults did, `damaged` which files they altered."""

    study: Study
    story: list[str] = field(default_factory=list)
    struck: list[Fault] = field(default_factory=list)
    damaged: dict[Path, bool] = field(default_factory=dict)  # and whether any command has named it since
    said: str = ""  # by the last start
    _records: dict[str, int] = field(default_factory=dict)
    _excused: set[str] = field(default_factory=set)  # store entries that were damaged
    _again: Counter[str] = field(default_factory=Counter)  # how often a trial was damaged there

    def strike(self, waiting: Sequence[Fault]) -> Fault | None:
        """Start the study and let one of the faults strike; None where the study came to its end before."""
        for _ in range(STARTS):
            with self._started() as run:
                fault, blow = _first(run, waiting)
                if fault is not None and blow is not None:
                    self._note(run, fault, blow)
                    return fault
                if run.wait() == 0:
                    return None
            self._obey()
        raise AssertionError(f"the study doesn't go on:\n{self.printed()}")

    def finish(self) -> None:
        """Start until the study is done, doing what its messages say in between."""
        for _ in range(STARTS):
            with self._started() as run:
                code = run.wait()
            if code == 0:
                self.check()
                return
            self._obey()
        raise AssertionError(f"the study doesn't come to its end:\n{self.printed()}")

    def check(self) -> None:
        """No finished trial is gone or trained again, and no half file has a whole one's name."""
        found = self.study.trained()
        for digest, written in self._records.items():
            assert digest in self._excused or found.get(digest) == written, f"{digest} was trained again or lost"
        self._records = found
        times = Counter(line["id"] for line in self._lines() if line.get("reused") is False)
        often = {trial: count for trial, count in times.items() if count > 1 + self._again[str(trial)]}
        assert not often, f"trained more than once: {often}\n{self.printed()}"
        for path in self.study.results.rglob("*.json"):
            if path not in self.damaged:  # some of these nobody needs any more
                try:
                    read_json(path)
                except UnderstudyError as error:
                    raise AssertionError(f"a half file has a whole one's name: {error}") from error

    def printed(self) -> str:
        """The story, and what the last start printed."""
        return "\n".join(self.story) + "\n" + self.said

    def tell(self, text: str) -> None:
        """Add to the story, and show it."""
        self.story.append(text)
        print(text, flush=True)

    @contextmanager
    def _started(self) -> Iterator[Running]:
        """A start of the study, of which nothing is left running afterwards."""
        run = Running(self.study)
        unnamed = [path for path, named in self.damaged.items() if not named]
        logs = run.logs()
        try:
            yield run
        except subprocess.TimeoutExpired as error:
            self.said = run.text
            raise AssertionError(f"it hangs:\n{self.printed()}") from error
        finally:
            run.cut_power()
            self.said = run.text
            fresh = [text for path, text in run.logs().items() if text != logs.get(path)]
            self._listen([line for text in (run.text, *fresh) for line in text.splitlines()], unnamed)

    def _note(self, run: Running, fault: Fault, blow: Blow) -> None:
        """A fault has struck: nothing runs any more."""
        self.struck.append(fault)
        done = len(self.study.trained())
        self.tell(f"  {fault} at job {fault.job} + {fault.delay:.1f} s, {done} trials in the store: {blow.what}")
        for line in run.complaints():
            self.tell(f"    said: {line}")
        assert "Traceback" not in run.text, f"{self.printed()}\n{run.text}"
        if blow.path is not None:
            self.damaged[blow.path] = False
            if "store" in blow.path.parts:
                self._excused.add(blow.path.relative_to(self.study.results / "store").parts[0])
            if blow.trial is not None:
                self._again[blow.trial] += 1
        self.check()

    def _listen(self, lines: Iterable[str], unnamed: Iterable[Path]) -> None:
        """Note which of the damaged files a start has named."""
        for path in unnamed:
            whole = path.parent if path.parent.name == "adapter" or path.parent.parent.name == "checkpoint" else path
            if said := next((line for line in lines if str(whole.relative_to(self.study.folder)) in line), None):
                self.damaged[path] = True
                self.tell(f"    named: {said.strip()}")

    def _obey(self) -> None:
        """There is one clear error: do what it says."""
        text = self.printed()
        assert "Traceback" not in text, text
        for line in text.splitlines():
            if match := ADVICE.search(line):
                words = [word.strip("(),;:") for word in line.split()]
                named = [word for word in words if "/" in word] if match[1] == "it" else [match[1]]
                for path in (self.study.folder / name for name in named[:1]):
                    if path.exists():
                        self._delete(path)

    def _delete(self, path: Path) -> None:
        self.tell(f"    deleted {path.relative_to(self.study.folder)}, as it said")
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def _lines(self) -> Iterator[dict[str, object]]:
        path = self.study.results / "progress.jsonl"
        for text in path.read_text(errors="replace").splitlines() if path.exists() else []:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


def _first(run: Running, waiting: Sequence[Fault]) -> tuple[Fault | None, Blow | None]:
    """Wait for the first of the faults to strike, or for the run's end."""
    while not run.ended:
        run.look()
        for fault in _armed(waiting):
            if run.has_reached(fault) and (blow := strike(run, fault)):
                return fault, blow
        time.sleep(POLL_SECONDS)
    return None, None


def _armed(waiting: Iterable[Fault]) -> Iterator[Fault]:
    """The next fault; where it may have to wait for its victim, the one after it may strike before, and so on."""
    for fault in waiting:
        yield fault
        if not fault.may_wait:
            return
