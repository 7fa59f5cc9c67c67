"""Examples from the user's own files."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

from understudy.data.examples import Example, Found, Kinship, without_repeats
from understudy.data.formats import parse
from understudy.data.notices import EARLIER_ANSWERS, IGNORED_KEY, IGNORED_TURNS
from understudy.data.readers import Failure, read_rows, require_file, where
from understudy.data.splits import HELD_OUT, cut_off
from understudy.errors import DataError
from understudy.files import file_sha256
from understudy.settings import DataFiles, DataFormat, DataSettings, Split

SHOWN = 10  # problems of bad rows that an error lists
VALUE = re.compile(r"\b(turn|character|byte) \d+|\b(but (has|is)|is 0x).*")  # what rows with the same problem differ in


def find(settings: DataSettings, seed: int) -> Found:
    """The examples of every split; held-out splits that aren't given are cut from the training file.

    An example that stands twice counts once. One that stands in a held-out file, or is kin to one that does, is left
    out of the files that come after it in test, validation, train. Raises `DataError` where a file is missing or any
    row in it is bad.
    """
    given = _given(settings.files)
    found = Found({}, {"format": settings.format})
    single: dict[Split, list[Example]] = {}
    seen: set[str] = set()
    for split in reversed(given):  # test, validation, train
        path = given[split]
        found.source[split], found.source[f"{split}_sha256"] = str(path), _sha256(path)
        examples = _read(path, split, settings.format, found.counts)
        single[split], dropped = without_repeats(examples, seen, by_part=False)
        found.counts["dropped_repeated"] += dropped
    kinship = Kinship(itertools.chain.from_iterable(single.values()))
    held_out: set[str] = set()
    for split, examples in single.items():
        found.splits[split] = [example for example in examples if kinship.of(example) not in held_out]
        found.counts["dropped_prompt_held_out"] += len(examples) - len(found.splits[split])
        held_out |= {kinship.of(example) for example in found.splits[split]}
    wanted = [split for split in HELD_OUT if split not in given]
    found.splits |= cut_off(found.splits["train"], wanted, settings, seed)
    return found


def require(files: DataFiles | None) -> None:
    """Raise the `DataError` that `find` would raise for the first of the files that is missing or of another kind."""
    for path in reversed(_given(files).values()):
        require_file(path)


def _given(files: DataFiles | None) -> dict[Split, Path]:
    if files is None:
        raise DataError("`data.task: files` needs `data.files` with at least `train`")
    paths: dict[Split, str | None] = {"train": files.train, "validation": files.validation, "test": files.test}
    return {split: Path(path).expanduser() for split, path in paths.items() if path is not None}


def _sha256(path: Path) -> str:
    return file_sha256(path) if path.is_file() else ""


def _read(path: Path, split: Split, data_format: DataFormat, counts: Counter[str]) -> list[Example]:
    rows, failures = read_rows(path)
    total = len(rows) + len(failures)
    examples = []
    for number, row in rows:
        try:
            parsed = parse(row, data_format)
        except ValueError as error:
            failures.append(Failure(number, str(error)))
            continue
        counts[IGNORED_TURNS] += parsed.ignored_turns
        if parsed.earlier_answers:
            counts[EARLIER_ANSWERS] += parsed.earlier_answers
        counts.update(f"{IGNORED_KEY}{key}" for key in parsed.ignored_keys)
        examples.append(Example(f"{split}:{number}", path.name, parsed.prompt, parsed.completion, parsed.chat))
    if not total:
        raise DataError(f"{path} has no rows; give another file for `data.files.{split}`")
    if failures:
        raise _bad_rows(path, sorted(failures, key=lambda failure: failure.number), total, data_format)
    counts["found"] += len(examples)
    return examples


def _bad_rows(path: Path, failures: list[Failure], total: int, data_format: DataFormat) -> DataError:
    rows = "its only row" if total == 1 else f"{len(failures):,} of its {total:,} rows"
    lines = [f"{path}: {rows} can't be used as `data.format: {data_format}`:"]
    kinds: dict[str, list[Failure]] = {}  # in the order of the file
    for failure in failures:
        kinds.setdefault(VALUE.sub("", failure.problem), []).append(failure)
    for alike in list(kinds.values())[:SHOWN]:
        one = "" if len({failure.problem for failure in alike}) == 1 else " (the first of them)"
        lines.append(f"{_places(path, [failure.number for failure in alike])}: {alike[0].problem}{one}")
    if others := sum(map(len, list(kinds.values())[SHOWN:])):
        lines.append(f"and {others:,} more, with other problems")
    lines.append("mend or remove them, or set another `data.format`")
    return DataError("\n  ".join(lines))


def _places(path: Path, numbers: list[int]) -> str:
    """Where one problem is: `line 3`, `lines 3, 5`, or the first three and how many more."""
    first, more = numbers[:3], len(numbers) - 3
    listed = ", ".join(map(str, first)) + (f" and {more:,} more" if more > 0 else "")
    return f"{where(path)}{'' if len(numbers) == 1 else 's'} {listed}"
