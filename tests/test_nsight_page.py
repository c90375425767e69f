"""NSIGHT.md says what is read of a report: of each of nsys's tables, into which of ours."""

from __future__ import annotations

import re
from pathlib import Path

import dasf_hpc
from dasf_hpc.analysis import ANALYSES
from dasf_hpc.trace.schema import TABLES

PAGE = Path(__file__).parents[1] / "NSIGHT.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| nsys ")
]
OF_NSYS = re.compile(r"`([A-Z][A-Za-z]*_?[A-Z_]{2,}[A-Z_a-z]*|StringIds)`")


def test_each_table_of_nsys_that_the_page_names_is_read() -> None:
    code = "\n".join(path.read_text() for path in Path(dasf_hpc.__file__).parent.rglob("*.py"))
    named = [name for row in ROWS for name in OF_NSYS.findall(row[0])]
    assert len(named) > 40
    assert [name for name in named if name not in code] == []


def test_what_the_page_says_is_not_read_is_not() -> None:
    code = "\n".join(path.read_text() for path in Path(dasf_hpc.__file__).parent.rglob("*.py"))
    (unread,) = re.findall(r"Not read,.*", PAGE.read_text(), re.DOTALL)
    assert [name for name in OF_NSYS.findall(unread) if name in code] == []


def test_every_table_that_a_report_fills_is_on_the_page_and_no_other() -> None:
    on_page = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[1])}
    assert on_page <= TABLES.keys()
    filled = {
        name
        for name, table in TABLES.items()
        if any(column.name == "report" for column in table.columns)
    }
    # which report what is recorded is of is no matter of one of nsys's tables
    assert filled - {"recorded"} <= on_page


def test_the_page_names_questions_that_there_are() -> None:
    asked = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[2])}
    assert asked <= ANALYSES.keys()
    assert {"gpu", "cuda", "gpu_metrics", "ranges", "cpu", "collectives"} <= asked
