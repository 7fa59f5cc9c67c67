"""The benchmark of the transfer: which changes of the code make finished replays worthless, and which don't."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import finished_runs
from replays import code
from replays.methods import ENTRIES, FOLDERS, REPLAY
from replays.replay import replay
from replays.tables import step_law
from replays.tasks import Task, problem

SEARCH = "understudy/search/"
COLD, WARM, OURS, TREE = "optuna_tpe", "optuna_tpe_warm", "understudy_two_fidelity", "understudy_tpe"
FOUR = (COLD, WARM, OURS, TREE)


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the benchmark and of the package, without what holds no code."""
    folder = tmp_path_factory.mktemp("copies")
    for source in FOLDERS:
        for file in sorted(source.rglob("*.py")):
            copy = folder / source.name / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    return folder


@pytest.fixture
def folders(copies: Path, tmp_path: Path) -> tuple[Path, ...]:
    """A fresh copy: what has been read once isn't read again."""
    shutil.copytree(copies, tmp_path / "code")
    return tuple(tmp_path / "code" / folder.name for folder in FOLDERS)


def add_to(folders: tuple[Path, ...], file: str, name: str, line: str) -> None:
    """Put a line at the beginning of what a function or class does."""
    (path,) = (folder / file for folder in folders if (folder / file).exists())
    text = path.read_text(encoding="utf-8").splitlines()
    (node,) = (n for n in ast.walk(ast.parse("\n".join(text))) if getattr(n, "name", None) == name)
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    first = node.body[0]
    text.insert(
        first.lineno - 1 + (0 if line.startswith("#") else len(_docstring(first))), " " * first.col_offset + line
    )
    path.write_text("\n".join(text), encoding="utf-8")


def _docstring(statement: ast.stmt) -> range:
    told = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return range(statement.lineno, (statement.end_lineno or 0) + 1) if told else range(0)


@pytest.mark.parametrize(
    ("file", "name", "who"),
    [
        ("replays/replay.py", "replay", FOUR),
        ("replays/replay.py", "take", FOUR),
        ("replays/tasks.py", "configuration", FOUR),  # a method of a class that is only mentioned as a type
        (SEARCH + "clusters.py", "embed", FOUR),
        ("understudy/trial.py", "derive_seed", FOUR),
        ("understudy/space.py", "Range", FOUR),
        ("replays/optuna.py", "from_optuna", (COLD, WARM)),
        ("replays/simple.py", "rescaled", (COLD, WARM)),
        ("replays/replay.py", "proxy_stage", (WARM, OURS, TREE)),
        (SEARCH + "grid.py", "grid_points", (WARM, OURS, TREE)),
        (SEARCH + "sequences.py", "sobol", (WARM, OURS, TREE)),
        (SEARCH + "defaults.py", "known_good", (WARM, OURS, TREE)),
        (SEARCH + "values.py", "identity", (WARM, OURS, TREE)),
        ("understudy/hyperparameters.py", "complete", (WARM, OURS, TREE)),
        ("replays/ours.py", "_record", (OURS, TREE)),
        (SEARCH + "clusters.py", "group", (OURS, TREE)),
        (SEARCH + "two_fidelity.py", "TwoFidelity", (OURS, TREE)),  # imported within a function
        ("understudy/stages.py", "TransferSettings", (OURS, TREE)),
        ("understudy/sections.py", "TargetSection", (OURS, TREE)),
        ("understudy/artifacts.py", "Proposal", (OURS, TREE)),
        ("understudy/summary/tables.py", "trials_frame", (OURS, TREE)),
        ("replays/tasks.py", "task_sets", ()),  # what it makes is in the name of a job's file
        ("replays/tables.py", "step_law", ()),
        ("replays/units.py", "encode", ()),
        ("understudy/settings.py", "DataSettings", ()),
        (SEARCH + "finalists.py", "select_finalists", ()),
        (SEARCH + "planning.py", "plan_pack", ()),
    ],
)
def test_a_change_concerns_the_methods_that_run_it(
    folders: tuple[Path, ...], file: str, name: str, who: tuple[str, ...]
) -> None:
    add_to(folders, file, name, "print()")
    changed = {each for each in FOUR if ENTRIES[each].version(folders) != ENTRIES[each].version()}
    assert changed == set(who)


def test_comments_and_docstrings_change_nothing(folders: tuple[Path, ...]) -> None:
    add_to(folders, SEARCH + "clusters.py", "embed", "# why")
    path = folders[1] / SEARCH / "sequences.py"
    path.write_text(
        re.sub(r'^    """(?=\w)', '    """Once more: ', path.read_text(), flags=re.MULTILINE), encoding="utf-8"
    )
    assert "Once more: " in path.read_text()
    assert {ENTRIES[each].version(folders) == ENTRIES[each].version() for each in FOUR} == {True}


def test_a_constant_and_what_changes_it_count(tmp_path: Path) -> None:
    def digest(name: str, text: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "used.py").write_text("LIMIT = 3\n\nOTHER = 4\n" + text)
        (folder / "start.py").write_text("from used import LIMIT as MOST\n\n\ndef run():\n    return MOST\n")
        return code.digest((("start", "run"),), (folder,))

    plain = digest("plain", "")
    assert digest("other", "OTHER = 5\n") == plain
    assert digest("again", "LIMIT = 4\n") != plain
    assert digest("added", "LIMIT += 1\n") != plain
    assert digest("conditional", "if OTHER > 3:\n    LIMIT = 5\n") != plain


@pytest.mark.parametrize("name", [COLD, WARM, OURS, "understudy_gp"])
def test_every_function_that_a_replay_calls_counts(tmp_path: Path, name: str) -> None:
    """What the interpreter itself saw running is in the digest: nothing that is called is overlooked."""
    finished_runs.write_bowls(tmp_path / "bowls.csv")
    pair = problem(step_law(tmp_path / "bowls.csv"), Task("100M-2B", "400M-8B"))
    entry = ENTRIES[name]
    roots = REPLAY, (entry.module, entry.factory)
    counted = {(module, _lines(statement)) for module, statement in code.reached(roots, FOLDERS)}
    method = entry.make()
    replay(pair, method, 0, 8, 1, 24)  # so that no module is left to be loaded, all of which would count as called
    called = calls(lambda: replay(pair, method, 0, 8, 1, 24))
    assert ("replays.replay", "replay") in {(module, what) for module, _, what in called}
    missed = {
        (module, what)
        for module, line, what in called
        if not any(module == m and line in lines for m, lines in counted)
    }
    assert missed == set()


def _lines(statement: ast.stmt) -> range:
    first = min([statement.lineno, *(each.lineno for each in getattr(statement, "decorator_list", []))])
    return range(first, (statement.end_lineno or 0) + 1)


def calls(run: Callable[[], object]) -> set[tuple[str, int, str]]:
    """The functions of the benchmark and the package that are called: module, first line, name."""
    found: set[tuple[str, int, str]] = set()
    names = {
        str(file): ".".join(file.relative_to(f).with_suffix("").parts) for f in FOLDERS for file in f.rglob("*.py")
    }

    def watch(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename in names and code.co_name != "<module>":
            found.add((names[code.co_filename], code.co_firstlineno, code.co_name))

    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found
