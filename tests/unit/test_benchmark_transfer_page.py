"""What the page on the transfer benchmark says is what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parents[1] / "benchmarks"
MEASURED: Mapping[str, Any] = json.loads((HERE / "transfer_measured.json").read_text(encoding="utf-8"))
SETS = {
    "matched,": "matched of steplaw",
    "cheap,": "cheap of steplaw",
    "lies,": "lies of steplaw",
    "own,": "own of transfer_runs",
    "own_lies,": "own_lies of transfer_runs",
    "Qwen2: own,": "own of transfer_runs_qwen2",
    "Qwen2: own_lies,": "own_lies of transfer_runs_qwen2",
}
ALLOWED = 0.02  # percentage points, by which ours may be behind
EARLIER = "†"  # means of an earlier day, of which no replays were kept


def tables() -> Iterator[list[list[str]]]:
    """The page's tables as rows of cells, the header first."""
    rows: list[list[str]] = []
    for line in [*(HERE / "transfer.md").read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            yield [row for row in rows if not re.fullmatch("-+:?", row[-1])]
            rows = []


def of_set(start: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of mean regrets whose first cell begins so."""
    (found,) = (table for table in tables() if table[0][0].startswith(start) and table[0][1] == "1")
    return found[0], found[1:]


@pytest.mark.parametrize("start", SETS)
def test_every_mean_on_the_page_was_measured(start: str) -> None:
    header, rows = of_set(start)
    regret, seen = MEASURED[SETS[start]]["regret"], set()
    for name, *cells in rows:
        methods = regret.keys() & set(re.findall(r"\w+", name))
        assert methods or EARLIER in name, name
        for method in methods if EARLIER not in name else ():
            seen.add(method)
            for k, cell in zip(header[1:], cells, strict=True):
                told = cell.strip("*")
                decimals = len(told.partition(".")[2])
                assert decimals >= 1
                assert told == f"{regret[method][k]['mean']:.{decimals}f}", (method, k)
    assert seen == regret.keys()


@pytest.mark.parametrize("start", SETS)
def test_the_smallest_mean_of_each_column_is_bold(start: str) -> None:
    _, rows = of_set(start)
    for column in zip(*(cells for _, *cells in rows), strict=True):
        smallest = min(float(cell.strip("*")) for cell in column)
        assert all((float(cell.strip("*")) == smallest) == cell.startswith("**") for cell in column), column


def differences(row: str, counts: Sequence[str]) -> list[Mapping[str, float]]:
    """Of ours to the best peer after so many runs, on the set that a row is called after."""
    found = MEASURED[SETS[f"{row.split(',')[0]},"]]
    peers = [method for method in found["lead"]["differences"] if not method.startswith("understudy")]
    if row.endswith("no rule"):
        peers = [method for method in peers if method != "rule" and not method.endswith("_scaled")]
    best = [min(peers, key=lambda method: (found["regret"][method][k]["mean"], method)) for k in counts]
    return [found["lead"]["differences"][peer][k] for peer, k in zip(best, counts, strict=True)]


def test_the_differences_on_the_page_are_those_to_the_best_peer() -> None:
    seen = 0
    for header, *rows in (table for table in tables() if table[0][0] == "set" and table[0][1] == "1"):
        for name, *cells in rows:
            for wanted, k, cell in zip(differences(name, header[1:]), header[1:], cells, strict=True):
                told = re.match(r"([+−].*?) \((.*?) to (.*?)\), ", cell)
                assert told is not None, cell
                for text, key in zip(told.groups(), ("difference", "low", "high"), strict=True):
                    decimals = len(text.partition(".")[2])
                    assert float(text.replace("−", "-")) == round(wanted[key], decimals), (name, k, key)
            seen += 1
    assert seen >= 8


def test_each_place_where_ours_is_behind_is_named() -> None:
    ((header, *rows),) = (table for table in tables() if table[0][0] == "points behind")
    assert len(rows) == 10
    for name, *cells in rows:
        for wanted, cell in zip(differences(name, header[1:]), cells, strict=True):
            behind = wanted["difference"]
            assert cell == (f"{behind:+.{len(cell.partition('.')[2])}f}" if behind > ALLOWED else ""), (name, behind)


def test_the_tails_and_ranks_on_the_page_were_measured() -> None:
    ((header, *rows),) = (table for table in tables() if table[0][:2] == ["set", "figure"])
    assert len(rows) == 15
    for name, figure, *cells in rows:
        found = MEASURED[SETS[f"{name},"]]
        key = {"90th percentile": "p90", "worst": "worst"}.get(figure)
        for k, cell in zip(header[2:], cells, strict=True):
            values = {n: v[k][key] for n, v in found["regret"].items()} if key else dict(found["ranks"][k])
            peers = [value for method, value in values.items() if not method.startswith("understudy")]
            wanted = values["understudy_two_fidelity"], min(peers)
            for text, value in zip(cell.split(", "), wanted, strict=True):
                assert text == f"{value:.{len(text.partition('.')[2])}f}", (name, figure, k)


def test_the_table_of_a_window_of_4_was_measured() -> None:
    ((header, *rows),) = (table for table in tables() if table[0][:2] == ["window of 4", "method"])
    assert len(rows) == 30
    for name, method, *cells in rows:
        found = MEASURED[f"{SETS[f'{name},']}, window 4"]
        assert found["window"] == 4
        for k, cell in zip(header[2:], cells, strict=True):
            told = cell.strip("*")
            assert told == f"{found['regret'][method.strip('*')][k]['mean']:.{len(told.partition('.')[2])}f}", (
                method,
                k,
            )
