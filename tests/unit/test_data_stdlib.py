"""The built-in task: examples of the standard library, splits that leak nothing, and the interpreter's pin."""

from __future__ import annotations

import ast
import hashlib
import inspect
import subprocess
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from understudy.data import docstrings, pin, stdlib
from understudy.data.corpus import training_corpus
from understudy.data.files import SCHEMA, read_split
from understudy.data.prepare import prepare_data
from understudy.data.splits import assign_groups
from understudy.errors import CorruptFileError, DataError
from understudy.files import read_json, read_model
from understudy.sections import DataSection
from understudy.settings import SPLITS, DataSettings, Split
from understudy.trial import DataManifest

SMALL = {
    "pack/__init__.py": '''
def plain(a, b: int = 1, *rest, c=None, **more) -> list[str]:
    """Return   a list
    of texts.

    More about it.
    """


async def waits(x):
    """Wait until x is there."""


class Box:
    @property
    def size(self):
        """Return the size of the box."""

    @size.setter
    def size(self, value):
        """Change the size of the box."""

    def undocumented(self):
        pass

    def brief(self):
        """Short."""

    def long(self):
        """'''
    + "word " * 40
    + '''"""

    class Inner:
        def deep(self):
            if True:
                def nested(y):
                    """Return y and nothing else."""
''',
    "other.py": '''
def again(z):
    """Wait until x is there."""

def nested(y):
    """Something else entirely."""

def fresh(z):
    """A text of its own."""
''',
    "third.py": "def lone(q):\n    '''Do one thing alone.'''\n\ndef second(q):\n    '''Do one more thing.'''\n",
    "broken.py": "def (:\n",
    "pack/test/test_pack.py": "def hidden(a):\n    '''Must not be found.'''\n",
    "site-packages/foreign.py": "def foreign(a):\n    '''Must not be found either.'''\n",
    "_sysconfigdata_x.py": "def built(a):\n    '''Nor must this be found.'''\n",
    "_pyother.py": "def twin(a):\n    '''The twin of another module.'''\n",
}


FEW = {"train_examples": 1, "validation_examples": 2, "validation_share": 0.3, "test_share": 0.3, "test_examples": 2}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "lib"
    for name, text in SMALL.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(stdlib, "root", lambda: root)
    return root


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    prepare(root)
    return root


def prepare(root: Path, seed: int = 1, **settings: object) -> DataManifest:
    section = DataSection(seed=seed, cache="", data=DataSettings.model_validate(settings))
    outputs: dict[Split, Path] = {split: root / "data" / f"{split}.parquet" for split in SPLITS}
    return prepare_data(section, outputs, root / "data" / "manifest.json")


def rows(root: Path) -> pl.DataFrame:
    return pl.concat(
        read_split(root / "data" / f"{split}.parquet", None).with_columns(split=pl.lit(split)) for split in SPLITS
    )


@pytest.mark.usefixtures("small")
def test_what_is_found_in_a_library() -> None:
    found = docstrings.find(DataSettings(validation_share=0.3, test_share=0.3), 1)
    everything = {example.id: example for examples in found.splits.values() for example in examples}
    assert everything["pack:plain"].prompt == "def plain(a, b: int=1, *rest, c=None, **more) -> list[str]:\n"
    assert everything["pack:plain"].completion == "Return a list of texts."
    assert everything["pack:Box.size"].prompt == "class Box:\n    def size(self):\n"
    assert everything["pack:Box.size#2"].completion == "Change the size of the box."
    assert everything["pack:Box.Inner.deep.nested"].prompt == "def nested(y):\n"
    assert {example.group for example in everything.values()} == {"pack", "other", "third"}
    assert found.counts == {
        "files": 5,
        "functions": 15,
        "dropped_files_unparsable": 1,
        "dropped_without_docstring": 2,
        "dropped_too_short": 1,
        "dropped_too_long": 1,
        "found": 11,
        "dropped_repeated": 11 - len(everything),
    }


@pytest.mark.usefixtures("small")
def test_a_text_in_two_splits_stays_in_the_earlier_one() -> None:
    for seed in range(8):
        found = docstrings.find(DataSettings(validation_share=0.3, test_share=0.3), seed)
        of = {example.id: split for split, examples in found.splits.items() for example in examples}
        assert len({id for id in ("pack:waits", "other:again") if id in of}) == 1
        assert len({id for id in ("pack:Box.Inner.deep.nested", "other:nested") if id in of}) == 1
        groups = {split: {example.group for example in examples} for split, examples in found.splits.items()}
        winner = of.get("pack:waits") or of["other:again"]
        rivals = [split for split in SPLITS if groups[split] & {"pack", "other"}]
        assert winner == rivals[0]


def test_the_real_library_gives_thousands_and_leaks_nothing(study: Path) -> None:
    everything = rows(study)
    sizes = dict(everything.group_by("split").len().iter_rows())
    total = len(everything)
    assert total > 3500
    assert sizes["validation"] == pytest.approx(0.1 * total, rel=0.1)
    assert sizes["test"] == pytest.approx(0.1 * total, rel=0.1)
    for column in ("id", "prompt", "completion"):
        assert everything[column].is_unique().all()
    assert everything.group_by("group").agg(pl.col("split").n_unique())["split"].max() == 1
    lengths = everything["completion"].str.len_chars()
    assert (lengths.min(), lengths.max()) >= (10, 10)
    assert lengths.max() <= 120
    assert not everything["chat"].any()


def test_the_examples_are_what_python_itself_says_of_its_functions(study: Path) -> None:
    import textwrap

    row = rows(study).filter(pl.col("id") == "textwrap:dedent").row(0, named=True)
    documentation = inspect.getdoc(textwrap.dedent)
    assert documentation is not None
    assert row["completion"] == documentation.split("\n\n")[0].replace("\n", " ")
    assert row["prompt"] == f"def dedent{inspect.signature(textwrap.dedent)}:\n"


@pytest.mark.long
def test_two_runs_write_the_same_bytes_and_another_seed_does_not(study: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from test_data_stdlib import prepare; prepare(Path(sys.argv[1]))"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "again"), str(Path(__file__).parent)]
    subprocess.run(arguments, check=True, env={"PYTHONHASHSEED": "7", "PATH": ""})
    for name in ("train.parquet", "validation.parquet", "test.parquet", "manifest.json"):
        assert (tmp_path / "again" / "data" / name).read_bytes() == (study / "data" / name).read_bytes()


@pytest.mark.usefixtures("small")
def test_another_seed_is_another_split(tmp_path: Path) -> None:
    for seed in (1, 1, 2, 3):
        prepare(tmp_path / str(seed), seed=seed, **FEW)
    orders = {seed: rows(tmp_path / str(seed)).select("id", "split").rows() for seed in (1, 2, 3)}
    assert orders[1] != orders[2] or orders[1] != orders[3]


def test_the_manifest_accounts_for_every_function_and_file(study: Path) -> None:
    manifest = read_model(study / "data" / "manifest.json", DataManifest)
    counts = Counter(manifest.counts)
    assert counts["kept"] == sum(split.examples for split in manifest.splits.values()) == len(rows(study))
    reasons = ("without_docstring", "too_short", "too_long", "unprintable")
    assert counts["functions"] == counts["found"] + sum(counts[f"dropped_{reason}"] for reason in reasons)
    assert counts["found"] == counts["kept"] + counts["dropped_repeated"]
    for split in SPLITS:
        content = (study / "data" / f"{split}.parquet").read_bytes()
        assert manifest.splits[split].sha256 == hashlib.sha256(content).hexdigest()


def test_rows_are_shuffled_so_that_the_first_ones_are_a_random_subset(study: Path) -> None:
    groups = read_split(study / "data" / "train.parquet", 256)["group"]
    assert groups.n_unique() > 40
    assert read_split(study / "data" / "train.parquet", 3)["id"].to_list() == rows(study)["id"].to_list()[:3]


def test_the_corpus_holds_the_train_modules_only(study: Path) -> None:
    manifest = read_model(study / "data" / "manifest.json", DataManifest)
    corpus = training_corpus(manifest, study / "data" / "train.parquet")
    seen = {
        " ".join(text.split("\n\n", 1)[0].split())
        for source in corpus
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node))
    }
    everything = rows(study)
    assert set(everything.filter(pl.col("split") == "train")["completion"]) <= seen
    assert not set(everything.filter(pl.col("split") != "train")["completion"]) & seen
    files = manifest.model_copy(update={"task": "files"})
    assert len(training_corpus(files, study / "data" / "train.parquet")) == len(stdlib.source_files())


def test_one_giant_group_stays_in_train_and_no_split_is_empty() -> None:
    settings = DataSettings()
    sizes = {"giant": 5000, **{f"small{i}": 20 for i in range(80)}}
    split_of = assign_groups(sizes, settings, 3)
    assert split_of["giant"] == "train"
    of = Counter(split_of.values())
    assert of["validation"] * 20 == pytest.approx(0.1 * 6600, abs=20)
    assert of["test"] * 20 == pytest.approx(0.1 * 6600, abs=20)
    assert set(assign_groups({"a": 50, "b": 40, "c": 30}, settings, 1).values()) == set(SPLITS)
    assert assign_groups(sizes, settings, 3) == assign_groups(dict(reversed(sizes.items())), settings, 3)
    assert assign_groups(sizes, settings, 4) != split_of


@pytest.mark.usefixtures("small")
def test_another_interpreter_is_refused_until_the_first_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path, **FEW)
    pin.check_interpreter(tmp_path)
    pin.check_interpreter(tmp_path / "nothing-here")
    for path in (tmp_path / "data").iterdir():
        path.unlink()  # as Snakemake does before it runs a rule again
    with monkeypatch.context() as patched:
        patched.setattr("platform.python_version", lambda: "3.99.1")
        with pytest.raises(DataError, match=r"CPython 3\.\d+\.\d+, but this is CPython 3\.99\.1.*another `results`"):
            pin.check_interpreter(tmp_path)
        with pytest.raises(DataError, match=r"3\.99\.1"):
            prepare(tmp_path, **FEW)
    assert not list((tmp_path / "data").iterdir())
    pin.check_interpreter(tmp_path)
    prepare(tmp_path, **FEW)


@pytest.mark.usefixtures("small")
def test_changed_sources_of_the_same_version_are_refused(tmp_path: Path, small: Path) -> None:
    identity = stdlib.identity(stdlib.source_files())
    pin.hold(tmp_path / "study", identity)
    pin.hold(tmp_path / "study", stdlib.identity(stdlib.source_files()))
    (small / "third.py").write_text("changed = 1\n", encoding="utf-8")
    with pytest.raises(DataError, match="other source files"):
        prepare(tmp_path / "study", **FEW)
    assert read_json(tmp_path / "study" / "pin.json") == identity


def test_the_pin_is_cheap_to_check() -> None:
    code = "import sys, understudy.data.pin; sys.exit(bool({'polars', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.usefixtures("small")
def test_too_few_examples_are_counted(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"(?s)for train there are \d+, and `data.train_examples` asks for 99999.*validation"
    ):
        prepare(tmp_path, train_examples=99999, validation_examples=99999)
    assert not (tmp_path / "data").exists()


def test_a_library_without_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdlib, "root", lambda: tmp_path)
    with pytest.raises(DataError, match="no source files"):
        prepare(tmp_path / "study")


def test_a_split_that_is_broken_or_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"train\.parquet"):
        read_split(tmp_path / "train.parquet", None)
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptFileError, match=r"train\.parquet"):
        read_split(tmp_path / "train.parquet", None)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "train.parquet")
    with pytest.raises(CorruptFileError, match=f"instead of {', '.join(SCHEMA)}"):
        read_split(tmp_path / "train.parquet", None)
