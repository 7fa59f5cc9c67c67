"""From the settings to the three splits' files and their manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from understudy.data import docstrings, pin, user_files
from understudy.data.examples import Example, Found, content
from understudy.data.files import SCHEMA
from understudy.data.splits import shuffled
from understudy.errors import DataError
from understudy.files import file_sha256, write_json, written_whole
from understudy.sections import DataSection
from understudy.settings import SPLITS, DataSettings, Split
from understudy.trial import DataManifest, SplitFile, derive_seed

LEAST_TESTED = 2  # examples, for an interval over them


def prepare_data(section: DataSection, outputs: dict[Split, Path], manifest_path: Path) -> DataManifest:
    """Write each split's parquet file and the manifest, the same bytes for the same settings and sources.

    Pins a study on built-in data, whose root is two folders above the manifest, to the running interpreter. Raises
    `DataError` where the data can't be used, hold too few examples, or come from another interpreter than before.
    """
    settings = section.data
    seed = derive_seed(section.seed, "data")
    if settings.task == "docstrings":
        found = docstrings.find(settings, seed)
        pin.hold(
            manifest_path.parent.parent, {key: found.source[key] for key in ("python", "implementation", "sha256")}
        )
    else:
        found = user_files.find(settings, seed)
    _check_sizes(found, settings)
    written = {split: shuffled(found.splits[split], seed) for split in SPLITS}
    for split, examples in written.items():
        _write(examples, outputs[split])
    manifest = _manifest(found, written, settings, outputs)
    write_json(manifest_path, manifest)
    return manifest


def _check_sizes(found: Found, settings: DataSettings) -> None:
    needed = {
        "train": settings.train_examples,
        "validation": settings.validation_examples,
        "test": settings.test_examples or LEAST_TESTED,
    }
    problems = [
        f"for {split} there are {len(found.splits[split])}, and {_wanted(split, settings)}"
        for split in SPLITS
        if len(found.splits[split]) < needed[split]
    ]
    if not problems:
        return
    left_out = {
        "stand twice, in one file or in two": found.counts.get("dropped_repeated", 0),
        "are kin to an example of a held-out split": found.counts.get("dropped_prompt_held_out", 0),
    }
    problems += [f"{count:,} were left out because they {why}" for why, count in left_out.items() if count]
    files = settings.files
    cut = files is None or files.validation is None or files.test is None
    ways = "ask for fewer, give more data" + (", or change the shares that are cut off" if cut else "")
    kept = " (examples with the same prompt are kept in one split)" if files is not None else ""
    raise DataError("\n  ".join(["there are too few examples:", *problems, ways + kept]))


def _wanted(split: Split, settings: DataSettings) -> str:
    asked = getattr(settings, f"{split}_examples")
    return f"`data.{split}_examples` asks for {asked}" if asked is not None else f"it takes at least {LEAST_TESTED}"


def _write(examples: Sequence[Example], path: Path) -> None:
    frame = pl.DataFrame({name: [getattr(example, name) for example in examples] for name in SCHEMA}, schema=SCHEMA)
    with written_whole(path) as beside:
        frame.write_parquet(beside)


def _manifest(
    found: Found, written: dict[Split, list[Example]], settings: DataSettings, outputs: dict[Split, Path]
) -> DataManifest:
    sizes = {split: len(written[split]) for split in SPLITS}
    used = {split: getattr(settings, f"{split}_examples") for split in SPLITS}
    return DataManifest(
        task=settings.task,
        source=found.source,
        counts={**dict(sorted(found.counts.items())), "kept": sum(sizes.values())},
        splits={
            split: SplitFile(
                examples=sizes[split],
                sha256=file_sha256(outputs[split]),
                content=content(written[split][: used[split]]),
            )
            for split in SPLITS
        },
        max_length=settings.max_length,
        train_examples=settings.train_examples,
        validation_examples=settings.validation_examples,
        test_examples=settings.test_examples,
    )
