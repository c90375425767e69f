"""Show: an analysis's answer on the terminal and as CSV."""

from __future__ import annotations

import math
from typing import TextIO

import numpy as np
import pandas as pd
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dasf_hpc.analysis import ANALYSES
from dasf_hpc.analysis.answer import Answer, Finding, Severity, costliest_first
from dasf_hpc.analysis.executions import read_executions, work_span
from dasf_hpc.analysis.headline import Headline
from dasf_hpc.show.column_names import column_name, table_name, value_name
from dasf_hpc.show.efficiencies import show_tree
from dasf_hpc.show.fit import Column, Kind, show_table
from dasf_hpc.show.progress import one_line
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import (
    byte_time_text,
    bytes_text,
    count_text,
    duration_text,
    moment_text,
    rate_text,
    share_text,
)

#: Rows of a table on a terminal, where nothing else is asked for.
ROWS = 20

#: Findings at a run's end.
FIRST = 3

#: Columns of moments, which are told from the start of the first task; others in ns are durations,
#: but for those that mean this.
MOMENTS = ("start", "stop", "first_start", "last_stop", "peak_time")
AN_INTERVAL = "the interval begins"

#: Tables that are for drawings: on a terminal their rows say nothing.
DRAWN = (("memory", "over_time"),)

#: Columns of sentences, which wrap.
PROSE = ("meaning", "reason", "documentation", "next_step", "source", "hint")

#: Columns of few words, which are never cut.
WHOLE = ("part", "source", "target", "holder")

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


def show_answer(
    console: Console, answer: Answer, rows: int = ROWS, trace: Trace | None = None
) -> None:
    """Print an answer: its findings, what could not be looked at, its tables.

    Parameters
    ----------
    console
        Where to.
    answer
        The answer.
    rows
        Rows of each table at most.
    trace
        What was asked: with it tasks are called by their keys, and moments are told from the
        start of the first task.
    """
    for finding in costliest_first(answer.findings):
        show_finding(console, finding)
    for sentence in answer.unanswered:
        console.print(_hanging(f"could not look: {sentence}", "dim"))
    if not answer.findings and answer.looked:
        console.print("[green]nothing found that should be changed[/]", highlight=False)
    origin = work_span(trace, read_executions(trace)).start if trace is not None else 0
    for name, table in answer.tables.items():
        if not len(table):
            continue
        if (answer.analysis, name) == ("efficiencies", "tree"):
            show_tree(console, answer)
            continue
        if (answer.analysis, name) in DRAWN:
            what = f"{table_name(answer.analysis, name)}: in the report, and as"
            console.print(Text(f"{what} --csv --table {name}\n", "dim"))
            continue
        more = len(table) - rows
        left = [f"{count_text(more)} row{'' if more == 1 else 's'} (--rows, --csv)"]
        columns = _columns(name, table.head(rows), answer, trace, origin)
        if columns:
            title = table_name(answer.analysis, name)
            show_table(console, title, columns, left if more > 0 else [])


def show_finding(console: Console, finding: Finding) -> None:
    """Print a finding: what mending it could save, what was found, and what to do next."""
    heading = Text(finding.severity.value, f"bold {_COLOURS[finding.severity]}")
    if finding.saves > 0:
        heading.append(f", could save up to {duration_text(finding.saves)}", "bold")
    console.print(heading)
    console.print(_hanging(finding.sentence))
    if finding.next_step:
        console.print(_hanging(finding.next_step, "dim"))


def show_headline(console: Console, headline: Headline) -> None:
    """Print the three findings that cost most, then how long the run was and what was avoidable."""
    for finding in headline.findings[:FIRST]:
        show_finding(console, finding)
    more = len(headline.findings) - FIRST
    if more > 0:
        console.print(
            Text(f"and {more} more in the report; dasf-hpc analyze lists all questions", "dim")
        )
    console.print(Text(one_line(headline.sentence), "bold"))


def _hanging(text: str, style: str = "") -> Padding:
    """Indent a paragraph; what stands between backquotes is code and stays so."""
    return Padding(Text(one_line(text), style), (0, 0, 0, 2))


def _columns(
    name: str, part: pd.DataFrame, answer: Answer, trace: Trace | None, origin: int
) -> list[Column]:
    """Give a table's columns in words, units and names of readers."""
    described = answer.columns[name]
    keys = _keys(part, trace)
    made = []
    for label in part.columns:
        column = str(label)
        if (part[label].isna() | part[label].eq("")).all():
            continue
        heading = column_name(answer.analysis, name, column)
        if keys is not None and column == "key":
            made.append(Column(heading, keys))
            continue
        if keys is not None and column == "task":
            if "key" not in part:
                made.append(Column(heading, keys))
            continue
        unit, meaning = described[column]
        if unit == "ns" and (column in MOMENTS or meaning == AN_INTERVAL):
            unit = "moment"
        cells = [
            value_name(answer.analysis, column, value)
            if isinstance(value, str)
            else value_text(value, unit, origin)
            for value in part[label]
        ]
        text = not pd.api.types.is_numeric_dtype(part[label].dtype)
        kind = Kind.PROSE if column in PROSE else Kind.NAME if text else Kind.NUMBER
        kind = Kind.EXACT if column in WHOLE else kind
        made.append(Column(heading, cells, kind))
    return made


def _keys(part: pd.DataFrame, trace: Trace | None) -> list[str] | None:
    """Give the keys of the rows' tasks; None where they are of none, or not known."""
    if trace is None:
        return None
    if "key" in part and pd.api.types.is_integer_dtype(part["key"]):
        codes = part["key"].to_numpy()
    elif "key" not in part and "task" in part and pd.api.types.is_integer_dtype(part["task"]):
        every, task = read_executions(trace).key, part["task"].to_numpy()
        if not len(every):
            return None
        known = (task >= 0) & (task < len(every))
        codes = np.where(known, every[np.where(known, task, 0)], -1)
    else:
        return None
    return [text if isinstance(text, str) else "" for text in trace.texts("keys", codes)]


def value_text(value: object, unit: str, origin: int = 0) -> str:
    """Write a value of a table with its unit; a moment as the time since `origin`, ns."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, str) or not hasattr(value, "__float__"):
        return str(value)
    number = float(value)
    if number == -1 and unit in ("ns", "moment", "bytes", "%"):  # it is not known
        return ""
    if unit == "moment":
        return moment_text(number, origin)
    known = {
        "ns": duration_text,
        "bytes": bytes_text,
        "bytes/s": rate_text,
        "GB s": byte_time_text,
        "%": share_text,
    }.get(unit)
    if known is not None:
        return known(number)
    return f"{count_text(number)} {unit}".rstrip()


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
