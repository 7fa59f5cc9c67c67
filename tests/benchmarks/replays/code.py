"""Which code a replay runs: the definitions that can be reached from where it starts, and a digest of them.

A module is cut into its top-level statements. A statement needs every definition whose name it mentions, in its own
module or imported from another; annotations count, since they say whose methods are called. Modules outside the given
folders (libraries) end the search. So a new set of tasks changes no digest, and another embedding does.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Name = tuple[str, str]  # module, top-level name
MODULE = ""  # in place of a name: all that a module has


@dataclass(frozen=True)
class _Module:
    """A module's top-level statements, those that each name is bound or changed by, and where imports come from."""

    statements: tuple[ast.stmt, ...]
    places: dict[str, list[int]]
    imports: dict[str, list[Name]]


@cache
def digest(roots: tuple[Name, ...], folders: tuple[Path, ...], without: tuple[Name, ...] = ()) -> str:
    """A digest of the code that is reached from `roots`, comments, docstrings and layout left out.

    Modules are looked for in `folders`, in this order. What only the names in `without` lead to isn't counted. A file
    that changes while this process runs keeps its digest: what has been imported doesn't change either.
    """
    parts = [f"{module}\n{ast.dump(statement)}" for module, statement in reached(roots, folders, without)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def reached(
    roots: Sequence[Name], folders: tuple[Path, ...], without: Sequence[Name] = ()
) -> Iterator[tuple[str, ast.stmt]]:
    """The statements with their modules: modules by name, statements in their order."""
    waiting, seen = list(roots), {*roots, *without}
    found: dict[str, set[int]] = {}
    while waiting:
        name, attribute = waiting.pop()
        module = _parsed(name, folders)
        if module is None:
            continue
        places = range(len(module.statements)) if attribute == MODULE else module.places.get(attribute, [])
        needed = list(module.imports.get(attribute, []))  # where it is only handed on
        for place in set(places) - found.setdefault(name, set()):
            found[name].add(place)
            for mentioned in _mentioned(module.statements[place]):
                needed += [(name, mentioned)] if mentioned in module.places else module.imports.get(mentioned, [])
        for each in needed:
            if each not in seen:
                seen.add(each)
                waiting.append(each)
    for name, chosen in sorted(found.items()):
        module = _parsed(name, folders)
        assert module is not None
        yield from ((name, module.statements[place]) for place in sorted(chosen))


@cache
def _parsed(name: str, folders: tuple[Path, ...]) -> _Module | None:
    """None for a module that isn't in the folders."""
    file = _file(name, folders)
    if file is None:
        return None
    tree = ast.parse(file.read_text(encoding="utf-8"))
    _without_docstrings(tree)
    imports: dict[str, list[Name]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for bound, source in _imported(node, folders):
                imports.setdefault(bound, []).append(source)
    statements = tuple(each for each in tree.body if not isinstance(each, ast.Import | ast.ImportFrom))
    places: dict[str, list[int]] = {}
    for place, statement in enumerate(statements):
        for bound in _bound(statement):
            places.setdefault(bound, []).append(place)
    return _Module(statements, places, imports)


def _file(name: str, folders: tuple[Path, ...]) -> Path | None:
    for folder in folders:
        path = folder.joinpath(*name.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return file
    return None


def _imported(node: ast.Import | ast.ImportFrom, folders: tuple[Path, ...]) -> Iterator[tuple[str, Name]]:
    """The names that an import binds, each with what it stands for."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.asname or alias.name.split(".")[0], (alias.name, MODULE)
        return
    for alias in node.names:
        inside = f"{node.module}.{alias.name}"
        source = (inside, MODULE) if _file(inside, folders) else (str(node.module), alias.name)
        yield alias.asname or alias.name, source


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement defines; of one that is neither a definition nor an assignment all that it mentions.

    Those are calls, conditions and assignments to parts, which change what they mention.
    """
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    targets: list[ast.expr] = statement.targets if isinstance(statement, ast.Assign) else []
    targets = [statement.target] if isinstance(statement, ast.AnnAssign | ast.AugAssign) else targets
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    return names if targets and len(names) == len(targets) else _mentioned(statement)


def _mentioned(statement: ast.stmt) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
    return names


def _without_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                first.value.value = None
