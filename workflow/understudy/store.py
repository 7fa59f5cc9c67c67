"""The store: one folder per trained trial, named by the digest of everything that can change its numbers.

    {root}/{digest}/record.json     spec and result as first written
    {root}/{digest}/adapter/        the adapter in PEFT's format, or weights/ after full fine-tuning
    {root}/{digest}/checkpoint/     where a trial stands that was interrupted; gone once its record is there
    {root}/{digest}/.lock           held while the trial is trained alone, or is saved
    {root}/packs/{digest}.pt        where a pack of trials stands that isn't through
    {root}/packs/{digest}.notes.json    what went otherwise than planned with it
    {root}/packs/{digest}.lock      held while it is trained
    *.holder                        who holds a lock, see `lease.py`

It is the reason why nothing that is finished is trained again. No rule declares a file in it as output, and nothing in
the workflow deletes from it, but for the adapter of a packed trial that a better one of its pack has followed.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from understudy import lease
from understudy.errors import CorruptFileError
from understudy.files import read_model, remove_folder, sweep, write_json
from understudy.trial import TrialRecord


class Store:
    """Finished trials below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entry(self, digest: str) -> Path:
        """The folder of a trial, whether it exists or not."""
        return self.root / digest

    def adapter(self, digest: str) -> Path:
        """The folder of a trial's adapter or weights: a checkpoint that peft or transformers loads."""
        return self.entry(digest) / "adapter"

    def checkpoint(self, digest: str) -> Path:
        """The folder of what an unfinished trial needs to go on, whether it exists or not."""
        return self.entry(digest) / "checkpoint"

    def drop_checkpoint(self, digest: str) -> None:
        """The trial is finished. Hold its entry."""
        shutil.rmtree(self.checkpoint(digest), ignore_errors=True)

    def drop_adapter(self, digest: str) -> None:
        """Nobody needs it any more; the record stays."""
        with self.locked(digest):
            remove_folder(self.adapter(digest))

    def find(self, digest: str) -> TrialRecord | None:
        """The finished trial with this digest, if there is one.

        Raises `CorruptFileError` where the record can't be read or belongs to another digest.
        """
        path = self.entry(digest) / "record.json"
        if not path.exists():
            return None
        record = read_model(path, TrialRecord)
        if record.result.digest != digest:
            raise CorruptFileError(
                f"{path} holds the result of {record.result.digest}; delete that folder and run the workflow again"
            )
        return record

    def save(self, record: TrialRecord) -> None:
        """Keep a finished trial. Its adapter, if any, must already be in place."""
        path = self.entry(record.result.digest) / "record.json"
        sweep(path)  # what a writer that was killed has left
        write_json(path, record)

    def keep(self, record: TrialRecord) -> TrialRecord:
        """Save a finished trial unless somebody else has in the meantime; return the record that is kept."""
        digest = record.result.digest
        with self.locked(digest):
            found = self.find(digest)
            if found is None:
                self.save(record)
            return found or record

    def locked(self, digest: str) -> AbstractContextManager[None]:
        """Hold an entry while its trial is trained or saved; a second process that wants it waits here."""
        return lease.held(self.entry(digest) / ".lock")

    def pack_file(self, digest: str, suffix: str) -> Path:
        """A file of a pack, whether it exists or not."""
        return self.root / "packs" / f"{digest}.{suffix}"

    def pack_locked(self, digest: str) -> AbstractContextManager[None]:
        """Hold a pack while it is trained; a second process that wants it waits here."""
        return lease.held(self.pack_file(digest, "lock"))
