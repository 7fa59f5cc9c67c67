"""The built-in task: write a function's docstring from its signature, on the standard library's own functions.

Whole top-level packages go to one split, so that a model is never judged on a sibling of what it was trained on. A
text that stands in several splits stays in the first of train, validation and test only: the training modules are
also what built-in models are pretrained on, and no text of theirs may be asked for later.
"""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from understudy.data import stdlib
from understudy.data.examples import Example, Found, without_repeats
from understudy.data.splits import assign_groups
from understudy.errors import DataError
from understudy.settings import SPLITS, DataSettings

SHORTEST, LONGEST = 10, 120  # characters of a completion

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def find(settings: DataSettings, seed: int) -> Found:
    """All examples of the running interpreter's library, split by top-level package.

    Raises `DataError` where the library has no source files, as in some packed interpreters.
    """
    files = stdlib.source_files()
    if not files:
        raise DataError(
            f"the standard library in {stdlib.root()} has no source files, which `data.task: docstrings` is made of; "
            "run with an ordinary Python, or use your own data with `data.task: files`"
        )
    counts: Counter[str] = Counter(files=len(files))
    examples = [example for path in files for example in _examples(path, counts)]
    counts["found"] = len(examples)
    split_of = assign_groups(Counter(example.group for example in examples), settings, seed)
    found = Found({}, stdlib.identity(files), counts)
    seen: set[str] = set()
    for split in SPLITS:
        mine = [example for example in examples if split_of[example.group] == split]
        found.splits[split], dropped = without_repeats(mine, seen, by_part=True)
        counts["dropped_repeated"] += dropped
    return found


def _examples(path: Path, counts: Counter[str]) -> Iterator[Example]:
    """The examples of one file in the order of its text; notes in `counts` what was dropped."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes and the like are the library's own business
            tree = ast.parse((stdlib.root() / path).read_bytes())
    except (SyntaxError, ValueError):
        counts["dropped_files_unparsable"] += 1
        return
    module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    uses: Counter[str] = Counter()
    for function, owner, name in _functions(tree, None, ""):
        counts["functions"] += 1
        completion = _summary(function)
        if reason := _reason_to_drop(completion):
            counts[f"dropped_{reason}"] += 1
            continue
        uses[name] += 1
        suffix = f"#{uses[name]}" if uses[name] > 1 else ""  # a property's setter has its getter's name
        yield Example(f"{module}:{name}{suffix}", stdlib.group(path), _signature(function, owner), completion)


def _reason_to_drop(completion: str) -> str | None:
    if not completion:
        return "without_docstring"
    if not completion.isprintable():  # also what UTF-8 can't write
        return "unprintable"
    if not SHORTEST <= len(completion) <= LONGEST:
        return "too_short" if len(completion) < SHORTEST else "too_long"
    return None


def _functions(node: ast.AST, owner: str | None, prefix: str) -> Iterator[tuple[_Function, str | None, str]]:
    """Every function below a node with the class it is a method of, if any, and its qualified name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child, owner, prefix + child.name
            yield from _functions(child, None, f"{prefix}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, child.name, f"{prefix}{child.name}.")
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _functions(child, owner, prefix)


def _summary(function: _Function) -> str:
    """The docstring's first paragraph on one line; empty where there is none."""
    text = ast.get_docstring(function) or ""
    return " ".join(text.split("\n\n", 1)[0].split())


def _signature(function: _Function, owner: str | None) -> str:
    """The function's first line on one line, below its class's name where it is a method."""
    keyword = "async def" if isinstance(function, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    line = f"{keyword} {function.name}({ast.unparse(function.args)}){returns}:\n"
    return f"class {owner}:\n    {line}" if owner else line
