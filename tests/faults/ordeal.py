"""A study that is run through one fault after the other, and what must hold whatever happens."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from understudy.errors import UnderstudyError
from understudy.files import read_json
from workflow.conftest import Study, wait_until

from .faults import DAMAGES, Fault, alter

STARTS = 6  # after which a study that still doesn't end has failed the test
END_SECONDS = 900.0  # for a run to end by itself, on a slow machine
ADVICE = re.compile(r"delete (\S+) and run the workflow again")


@dataclass
class Ordeal:
    """`story` says what happened, `struck` which faults did, `damaged` which files they altered."""

    study: Study
    story: list[str] = field(default_factory=list)
    struck: list[Fault] = field(default_factory=list)
    damaged: set[Path] = field(default_factory=set)
    _records: dict[str, int] = field(default_factory=dict)
    _excused: set[str] = field(default_factory=set)  # store entries that were damaged
    _deleted: Counter[str] = field(default_factory=Counter)

    def strike(self, fault: Fault) -> bool:
        """Start the study and let the fault strike; False where the study came to its end before."""
        for _ in range(STARTS):
            process = self.study.start()
            if self._reached(process, fault):
                getattr(self, "_" + fault.kind.split()[0].replace("-", "_"))(process, fault)
                self._settle(process)
                self.struck.append(fault)
                self.check()
                return True
            self._settle(process)
            if process.returncode == 0:
                return False
            self._obey()
        raise AssertionError(f"the study doesn't go on:\n{self.printed()}")

    def finish(self) -> None:
        """Start until the study is done, doing what its messages say in between."""
        for _ in range(STARTS):
            process = self.study.start()
            process.wait(END_SECONDS)
            if process.returncode == 0:
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
        assert max(times.values(), default=0) <= 1 + sum(self._deleted.values()), f"trained more than once: {times}"
        for path in self.study.results.rglob("*.json"):
            if path not in self.damaged:  # some of these nobody needs any more
                try:
                    read_json(path)
                except UnderstudyError as error:
                    raise AssertionError(f"a half file has a whole one's name: {error}") from error

    def printed(self) -> str:
        return "\n".join(self.story) + "\n" + (self.study.folder / "output.txt").read_text(errors="replace")

    # how faults of each kind strike
    def _kill(self, process: subprocess.Popen[str], fault: Fault) -> None:
        self._signal(process, fault, signal.SIGKILL)

    def _terminate(self, process: subprocess.Popen[str], fault: Fault) -> None:
        self._signal(process, fault, signal.SIGTERM)

    def _signal(self, process: subprocess.Popen[str], fault: Fault, number: signal.Signals) -> None:
        whom = fault.kind.split()[1]
        if whom == "main":
            os.kill(process.pid, number)
            self._tell(fault, str(process.pid))
            return
        find = self._ranks if whom == "rank" else self._workers
        if victim := self._wait_for(process, find):
            self._tell(fault, self._name(victim))
            os.kill(victim, number)

    def _stop(self, process: subprocess.Popen[str], fault: Fault) -> None:
        self._signal(process, fault, signal.SIGSTOP)

    def _damage(self, process: subprocess.Popen[str], fault: Fault) -> None:
        self._end(process)
        chosen = fault.random
        files = [path for name in DAMAGES[fault.kind] for path in self.study.results.glob(name) if path.is_file()]
        if not files:
            self._tell(fault, "no such file yet")
            return
        path = chosen.choice(sorted(files))
        if path.name == "record.json" or path.parent.name == "adapter":
            self._excused.add(path.relative_to(self.study.results / "store").parts[0])
        self.damaged.add(path)
        self._tell(fault, f"{path.relative_to(self.study.folder)}: {alter(path, chosen)}")

    def _clock(self, process: subprocess.Popen[str], fault: Fault) -> None:
        self._end(process)
        chosen = fault.random
        files = [path for path in sorted(self.study.results.rglob("*")) if path.is_file() and "store" not in path.parts]
        for path in chosen.sample(files, len(files) // 2):
            moment = time.time() + chosen.uniform(-7200, 7200)
            os.utime(path, (moment, moment))
        self._tell(fault, f"{len(files) // 2} files")

    def _full(self, process: subprocess.Popen[str], fault: Fault) -> None:
        filler = self.study.folder / "filler"
        try:
            with filler.open("wb", buffering=0) as handle:
                for size in (2**16, 1):
                    fill(handle.write, bytes(size))
            self._tell(fault, "")
            process.wait(END_SECONDS)
            self._refused(process, "No space left on device")
        finally:
            filler.unlink()

    def _small(self, process: subprocess.Popen[str], fault: Fault) -> None:
        if victim := self._wait_for(process, self._workers):
            self._tell(fault, self._name(victim))
            resource.prlimit(victim, resource.RLIMIT_FSIZE, (2048, 2048))

    def _read_only(self, process: subprocess.Popen[str], fault: Fault) -> None:
        self._end(process)
        self._tell(fault, "")
        results = str(self.study.results)
        mount("--bind", results, results)
        try:
            mount("-o", "remount,bind,ro", results)
            process = self.study.start()
            process.wait(END_SECONDS)
            self._refused(process, "Read-only file system")
        finally:
            subprocess.run(["umount", results], check=True)

    def _second(self, process: subprocess.Popen[str], fault: Fault) -> None:
        second = self.study.run()
        self._tell(fault, "")
        if process.poll() is None:
            assert second.returncode != 0
            assert "another run of this study is under way" in second.stdout, second.stdout
            assert "Traceback" not in second.stdout, second.stdout
        self._end(process)

    # the rest
    def _reached(self, process: subprocess.Popen[str], fault: Fault) -> bool:
        """Wait for the fault's moment; False where the run ended before."""
        seen: set[int] = set()
        while len(seen) < fault.job:
            seen.update(self._workers())
            if process.poll() is not None:
                return False
            time.sleep(0.02)
        strike = time.monotonic() + fault.delay
        while time.monotonic() < strike:
            if process.poll() is not None:
                return False
            time.sleep(0.02)
        return True

    def _wait_for(self, process: subprocess.Popen[str], find: Callable[[], list[int]]) -> int | None:
        while process.poll() is None:
            if found := find():
                return found[-1]
            time.sleep(0.02)
        return None

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        self._settle(process)

    def _settle(self, process: subprocess.Popen[str]) -> None:
        """Wait until nothing of the study is running."""
        process.wait(END_SECONDS)
        wait_until(lambda: not self.study.processes(), 120)

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
        self.story.append(f"    deleted {path}, as it said")
        self._deleted[path.name] += 1
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def _refused(self, process: subprocess.Popen[str], reason: str) -> None:
        text = (self.study.folder / "output.txt").read_text()
        self.story.append(text)
        if process.returncode != 0:
            assert reason in text, text
            assert "Traceback" not in text, text

    def _tell(self, fault: Fault, what: str) -> None:
        line = f"  seed {fault.seed}: {fault.kind} at job {fault.job} + {fault.delay:.1f} s ({what})"
        self.story.append(line)
        print(line, flush=True)

    def _lines(self) -> Iterator[dict[str, object]]:
        path = self.study.results / "progress.jsonl"
        for text in path.read_text(errors="replace").splitlines() if path.exists() else []:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line

    def _workers(self) -> list[int]:
        """The commands that are running, in the order in which they began."""
        return [pid for pid in sorted(self.study.processes()) if b"understudy\0" in _command(pid)]

    def _ranks(self) -> list[int]:
        return [pid for pid in sorted(self.study.processes()) if b"spawn_main" in _command(pid)]

    def _name(self, pid: int) -> str:
        words = _command(pid).split(b"\0")
        return words[3].decode() if b"understudy" in words else "a rank"


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


def fill(write: Callable[[bytes], int], piece: bytes) -> None:
    """Write until the disk takes no more."""
    try:
        while True:
            write(piece)
    except OSError:
        return


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
