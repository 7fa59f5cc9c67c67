"""The structure that the documents promise: who imports whom, one set of pins, commands that start fast."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "workflow" / "understudy"
DOCUMENTS = sorted(
    path for pattern in ("*.md", "*/README.md", "workflow/*/*.md", "tests/*/*.md") for path in ROOT.glob(pattern)
)

MAY_IMPORT = {
    "core": {"core"},
    "data": {"core", "data"},
    "models": {"core", "models"},
    "search": {"core", "search"},
    "summary": {"core", "summary"},
    "train": {"core", "data", "models", "train"},
    "cli": {"core", "data", "models", "search", "summary", "train", "cli"},
}
ENTRY_POINTS = {"__main__"}  # stand above every part


def part_of(module: str) -> str:
    """The part of the package that a dotted module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "core"


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.stem not in ENTRY_POINTS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward_only(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else "core"
    for imported in imports_of(path):
        assert not imported.startswith("snakemake"), f"{path} imports {imported}"
        if imported.startswith("understudy."):
            assert part_of(imported) in MAY_IMPORT[part], f"{part} may not import {imported}"


def test_the_list_of_packed_modules_is_whole_and_in_order() -> None:
    folder = PACKAGE / "train" / "packed"
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    listed = re.findall(r"^ {4}(\w+) {2,}", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    for number, name in enumerate(listed):
        for imported in imports_of(folder / f"{name}.py"):
            if imported.startswith("understudy.train.packed."):
                assert imported.split(".")[3] in listed[:number], f"{name} imports {imported}"


@pytest.mark.parametrize(
    "command", ["plan_pack", "propose", "write_settings", "collect_proxy", "choose_winner", "status"]
)
def test_light_commands_start_without_torch(command: str) -> None:
    code = f"import understudy.cli.{command}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def pins(lines: list[str]) -> dict[str, str]:
    found = (line.split("==") for line in lines if "==" in line)
    return {re.sub(r"[-_.]+", "-", name).lower(): version.strip() for name, version in found}


def test_commands_compute_with_one_thread_and_the_model_proposes_without_torch() -> None:
    """`two_fidelity` needs numpy and scipy alone; libraries read the number of threads when they are loaded."""
    script = """
import runpy, sys
sys.argv = ["understudy", "status", "--results", "nowhere"]
try:
    runpy.run_module("understudy", run_name="__main__")
except SystemExit:
    pass
import scipy.linalg, understudy.search.refinement, understudy.search.propose, understudy.search.transfer
from threadpoolctl import threadpool_info
assert "torch" not in sys.modules, "torch"
assert {each["num_threads"] for each in threadpool_info()} == {1}, threadpool_info()
"""
    shell = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "2")}
    done = subprocess.run([sys.executable, "-c", script], env=shell, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_proposal_by_the_proxys_surface_starts_without_optuna() -> None:
    """Proposals come one after the other, so what each imports is what a study waits for."""
    script = "import sys, understudy.cli.propose, understudy.search.acquisition; assert 'optuna' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_dependency_is_pinned_and_the_conda_environment_has_the_same_pins() -> None:
    constraints = pins((ROOT / "constraints.txt").read_text().splitlines())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [re.split(r"[<>=\[ ]", text)[0] for text in project["dependencies"]]
    named = {re.sub(r"[-_.]+", "-", name).lower() for name in needed}
    assert named <= constraints.keys()

    environment = yaml.safe_load((ROOT / "envs" / "understudy.yaml").read_text())
    conda = pins(next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict)))
    assert conda == {name: constraints[name] for name in conda}, "envs/understudy.yaml must repeat constraints.txt"
    assert named - conda.keys() == {"snakemake"}, "Snakemake itself stands outside of its environments"


def declared() -> dict[str, str]:
    """The project's dependencies: what each is called in lower case, and the version that it wants."""
    texts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    parts = (re.fullmatch(r"([\w-]+)(.*)", text) for text in texts)
    return {re.sub(r"[-_.]+", "-", part[1]).lower(): part[2] for part in parts if part}


def test_what_is_imported_is_declared() -> None:
    imported = {name.split(".")[0] for path in MODULES for name in imports_of(path)} - sys.stdlib_module_names
    owners = packages_distributions()
    for name in imported - {"understudy"}:
        known = {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners.get(name, [])}
        assert known & declared().keys(), f"{name} is imported, but pyproject.toml doesn't name its package {known}"


def test_the_least_snakemake_is_the_snakefile_s() -> None:
    least = re.search(r'min_version\("([\d.]+)"\)', (ROOT / "workflow" / "Snakefile").read_text())
    assert least
    assert f">={least[1]}" in declared()["snakemake"].split(",")


def test_every_command_has_a_module() -> None:
    from understudy.cli import COMMANDS

    modules = {path.stem.replace("_", "-") for path in (PACKAGE / "cli").glob("*.py")}
    assert set(COMMANDS) <= modules


def test_every_command_that_a_rule_calls_exists() -> None:
    from understudy.cli import COMMANDS

    called = {
        name
        for path in (ROOT / "rules").glob("*.smk")
        for name in re.findall(r"-m understudy ([a-z-]+)", path.read_text())
    }
    assert called <= set(COMMANDS)
    assert set(COMMANDS) - called == {"status", "schema"}, "for people"


def test_no_rule_has_an_ancient_input() -> None:
    """When the job that makes such an input runs, Snakemake passes over all that is missing behind it."""
    rules = sorted((ROOT / "rules").glob("*.smk"))
    assert rules
    for path in rules:
        assert not re.search(r"\bancient\(", path.read_text()), path


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_are_finished_and_their_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"@[A-Z]+@", text), "a placeholder was left"
    for file, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if "://" in file:
            continue
        target = path.parent / file if file else path
        assert target.exists(), f"{path} links to {file}"
        assert not heading or heading in anchors(target), f"{path} links to {heading} in {target}"


def anchors(document: Path) -> set[str]:
    """What a link to a heading may say: its text in lower case, with hyphens for spaces and without punctuation."""
    prose = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
