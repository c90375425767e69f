"""Show: an analysis's answer on the terminal and as CSV."""

from __future__ import annotations

import math
from typing import TextIO

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dasf_hpc.analysis import ANALYSES
from dasf_hpc.analysis.answer import Answer, Severity
from dasf_hpc.show.terminal import visible
from dasf_hpc.units import bytes_text, duration_text

#: Rows of a table on a terminal, where nothing else is asked for.
ROWS = 20

_COLOURS = {Severity.SERIOUS: "red", Severity.WARNING: "yellow", Severity.NOTICE: "cyan"}


def questions() -> dict[str, str]:
    """Give the analyses and their questions."""
    return {name: question.text for name, question in ANALYSES.items()}


def show_analyses(console: Console) -> None:
    """List the analyses by their questions."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    for name, text in questions().items():
        table.add_row(name, text)
    console.print(table)
    console.print("dasf-hpc analyze NAME RUN", highlight=False)


def show_answer(console: Console, answer: Answer, rows: int = ROWS) -> None:
    """Print an answer: its findings, what could not be looked at, its tables."""
    for finding in answer.findings:
        colour = _COLOURS[finding.severity]
        console.print(
            f"[{colour}]{finding.severity.value}[/] {escape(finding.sentence)} "
            f"[dim]{escape(finding.next_step)}[/]",
            highlight=False,
        )
    for sentence in answer.unanswered:
        console.print(f"[dim]could not look:[/] {escape(sentence)}", highlight=False)
    if not answer.findings and answer.looked:
        console.print("[green]nothing found that should be changed[/]", highlight=False)
    for name, table in answer.tables.items():
        if len(table):
            console.print(_table(name, table, answer, rows, console.width))


def _table(name: str, table: pd.DataFrame, answer: Answer, rows: int, width: int) -> Table:
    described = answer.columns[name]
    part = table.head(rows)
    cells = {
        str(column): [value_text(value, described[str(column)][0]) for value in part[column]]
        for column in table.columns
        if not part[column].isna().all()
    }
    shown = _fitting(cells, width)
    left = [f"{len(table) - rows} rows"] if len(table) > rows else []
    if len(shown) < len(cells):
        left.append(f"columns {', '.join(c for c in cells if c not in shown)}")
    drawn = Table(
        title=name.replace("_", " "),
        title_justify="left",
        box=SIMPLE_HEAD,
        caption=f"and {' and '.join(left)} (--rows, --csv)" if left else None,
        caption_justify="left",
    )
    for column in shown:
        text = not pd.api.types.is_numeric_dtype(table[column].dtype)
        # a name of one long word goes on in the next line, so that no number is cut for it
        drawn.add_column(
            column.replace("_", " "),
            justify="left" if text else "right",
            overflow="fold",
            no_wrap=not text,
        )
    for row in zip(*(cells[column] for column in shown), strict=True):
        drawn.add_row(*(escape(visible(cell)) for cell in row))
    return drawn


def _fitting(cells: dict[str, list[str]], width: int) -> list[str]:
    """Choose the columns, from the left, that fit; text may be wrapped to 24 characters."""
    fitting: list[str] = []
    used = 2
    for column, values in cells.items():
        used += 3 + max(len(column), *(min(24, len(value)) for value in values))
        if used > width and len(fitting) > 1:
            break
        fitting.append(column)
    return fitting


def value_text(value: object, unit: str) -> str:
    """Write a value of a table with its unit."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str | bool) or not hasattr(value, "__float__"):
        return str(value)
    number = float(value)
    if unit == "ns":
        return duration_text(number)
    if unit == "bytes":
        return bytes_text(number)
    if unit == "bytes/s":
        return f"{bytes_text(number)}/s"
    if unit == "%":
        return f"{number:.1f} %"
    text = f"{number:.0f}" if number == int(number) else f"{number:.3g}"
    return f"{text} {unit}".rstrip()


def write_csv(answer: Answer, table: str | None, rows: int | None, to: TextIO) -> None:
    """Write a table of an answer as CSV, units in the header: ``total [ns]``.

    Raises
    ------
    KeyError
        If the answer has no such table.
    """
    name = table or next(iter(answer.tables))
    described = answer.columns[name]
    units = {column: unit for column, (unit, _) in described.items() if unit}
    named = {c: f"{c} [{units[str(c)]}]" for c in answer.tables[name] if str(c) in units}
    chosen = answer.tables[name] if rows is None else answer.tables[name].head(rows)
    chosen.rename(columns=named).to_csv(to, index=False)
