"""Which trials a proposal knows.

With window W, proposal n sees the results of trials 0 to n - W and the proposals, not the results, of n - W + 1 to
n - 1, which count as running. So whichever of those finished first, the proposal is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from understudy.artifacts import Proposal
from understudy.errors import CorruptFileError
from understudy.files import read_model
from understudy.trial import TrialRecord


@dataclass(frozen=True)
class History:
    """What a proposal is made from, in trial order."""

    visible: tuple[TrialRecord, ...] = ()
    pending: tuple[Proposal, ...] = ()
    truncated: tuple[TrialRecord, ...] = ()  # of whole trials alone: all truncated runs come before them


def visible(number: int, window: int) -> range:
    """Numbers of the trials whose results proposal `number` sees."""
    return range(max(0, number - window + 1))


def pending(number: int, window: int) -> range:
    """Numbers of the trials that count as running for proposal `number`."""
    return range(len(visible(number, window)), number)


def read_history(trials: Path, number: int, window: int, truncated: Sequence[Path] = ()) -> History:
    """Read what proposal `number` may see below `trials`, with the results of all `truncated` runs, and nothing else.

    Raises `CorruptFileError` for a file that is missing, broken, or whose result isn't of its proposal.
    """
    return History(
        visible=tuple(_result(trials / f"{n:04d}") for n in visible(number, window)),
        pending=tuple(_proposal(trials / f"{n:04d}") for n in pending(number, window)),
        truncated=tuple(read_model(path, TrialRecord) for path in truncated),
    )


def _proposal(folder: Path) -> Proposal:
    return read_model(folder / "proposal.json", Proposal)


def _result(folder: Path) -> TrialRecord:
    record = read_model(folder / "result.json", TrialRecord)
    if record.spec != _proposal(folder).spec:
        raise CorruptFileError(
            f"{folder / 'result.json'} is the result of another trial than {folder / 'proposal.json'} proposes; "
            "delete it and run the workflow again"
        )
    return record
