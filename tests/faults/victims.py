"""What a fault of each kind can strike at a moment: files of the study that are in use, and its living processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from understudy.errors import UnderstudyError
from understudy.files import read_json
from workflow.conftest import Study

DAMAGES = {
    "damage store": ["store/*/record.json", "store/test/*.json"],
    "damage copy": [
        "proxy/packs/*/results.json",
        "target/trials/*/result.json",
        "finalists/*/*/result.json",
        "test.json",
    ],
    "damage plan": ["proxy/packs/*/specs.json", "target/trials/*/proposal.json", "transfer/*.json", "finalists/*.json"],
    "damage table": ["data/*.parquet", "proxy/trials.parquet", "proxy/sha256sums.txt", "summary/*.parquet"],
    "damage settings": ["settings/*.json", "models/*/model.json", "execution/*.json", "data/manifest.json"],
    "damage notes": [
        "progress.jsonl",
        "pin.json",
        ".lock.holder",
        "store/test/looks.jsonl",
        "store/packs/*.notes.json",
    ],
}


def files(results: Path, kind: str) -> list[Path]:
    """The files that a damage of this kind may strike now."""
    if kind == "damage weights":
        found = list(_weights(results))
    elif kind == "damage checkpoint":
        found = list(_checkpoints(results / "store"))
    else:
        found = [path for name in DAMAGES[kind] for path in results.glob(name)]
    return sorted(path for path in found if path.is_file() and path.suffix != ".part" and path.stat().st_size)


def _weights(results: Path) -> Iterator[Path]:
    """Those of finalists that are done, as long as the test hasn't measured them."""
    if any(results.glob("store/test/*.json")):
        return
    for result in results.glob("finalists/*/*/result.json"):
        with suppress(UnderstudyError):  # damaged before, and not mended yet
            yield from (results / "store" / read_json(result)["result"]["digest"] / "adapter").glob("*")


def _checkpoints(store: Path) -> Iterator[Path]:
    """Those of packs, and those of trials that are whole, for no other counts."""
    yield from store.glob("packs/*.pt")
    for marker in store.glob("*/checkpoint/*/whole.json"):
        yield from marker.parent.glob("*")


def commands(study: Study) -> list[int]:
    """The commands that are running, in the order in which they began."""
    return [pid for pid in sorted(study.processes()) if b"understudy\0" in _words(pid)]


def ranks(study: Study) -> list[int]:
    """The processes of trials that have several."""
    return [pid for pid in sorted(study.processes()) if b"spawn_main" in _words(pid)]


def parent(pid: int) -> int:
    """Who started a process; 0 where it is gone."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0


def name(pid: int) -> str:
    """What a process does."""
    words = _words(pid).split(b"\0")
    if b"understudy" in words:
        return words[words.index(b"understudy") + 1].decode()
    return "a rank" if any(b"spawn_main" in word for word in words) else "snakemake"


def hit(study: Study, pid: int, number: signal.Signals) -> bool:
    """Send a signal; False where the process was gone already, or dead and not reaped."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        alive = pid in study.processes()  # and not another one of the same number
        if alive:
            signal.pidfd_send_signal(handle, number)
        return alive
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
