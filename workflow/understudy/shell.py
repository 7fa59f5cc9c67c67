"""Many files as few words of a shell's command, which as a whole may have 128 KiB (Linux's MAX_ARG_STRLEN)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from shlex import quote


def braced(paths: Sequence[Path]) -> str:
    """Words that bash expands to the paths, in their order.

    Those that follow each other and differ in their folder's name alone become one word with braces.
    """
    groups = itertools.groupby(paths, key=lambda path: (path.parents[1], path.name))
    return " ".join(
        f"{quote(str(above))}/{_any_of([path.parent.name for path in members])}/{quote(name)}"
        for (above, name), members in groups
    )


def _any_of(names: Sequence[str]) -> str:
    """A brace expression; numbers in a row, as a span."""
    if len(names) == 1:
        return quote(names[0])
    digits = len(names[0])
    if all(name.isdecimal() and len(name) == digits for name in names):
        first = int(names[0])
        if [int(name) for name in names] == list(range(first, first + len(names))):
            return f"{{{names[0]}..{names[-1]}}}"
    return f"{{{','.join(map(quote, names))}}}"
