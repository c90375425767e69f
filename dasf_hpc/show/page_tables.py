"""Show, tables of the page: answers' tables as cells, in words, units and links of readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from dasf_hpc.analysis.answer import Answer
from dasf_hpc.show.column_names import column_name, table_name, value_name
from dasf_hpc.show.places import Places, place_of_row
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import (
    byte_time_text,
    bytes_text,
    count_text,
    duration_text,
    moment_text,
    rate_text,
    share_text,
    three_digits,
)

#: Rows of a table in the page, and those that are seen before one asks for the rest.
ROWS, SEEN = 300, 15

#: Tables of so many rows stand open: one sees them as fast as one sees that they are closed.
SMALL = 6

#: Characters of a name in a row; longer ones are cut in their middle.
NAME = 44

#: Characters of a sentence in a row.
SENTENCE = 240

#: Characters of a name that is shown whole when it is asked for.
WHOLE = 20_000

#: What stands for a value that is not there.
NONE = "–"

#: Columns of moments, which are told from time 0; others in ns are durations.
MOMENTS = ("start", "stop", "first_start", "last_stop", "peak_time", "process_peak_time")

#: Columns that tell of tasks, of an analysis or else of all: left out where there are none.
OF_TASKS = {"cuda": ("function", "task", "reason")}

#: Columns of sentences, which are read to their end and wrap.
PROSE = ("meaning", "formula", "reason", "documentation", "next_step", "how", "message", "example")


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes
    ----------
    text
        What is shown.
    order
        What it is sorted by; None: its text.
    href
        Where it leads; empty: nowhere.
    whole
        The whole of a text that is cut; empty: it is not.
    """

    text: str
    order: float | None = None
    href: str = ""
    whole: str = ""


@dataclass(frozen=True)
class Head:
    """A column: its name in the answer, its name here, what it means, whether it is numbers."""

    name: str
    title: str
    meaning: str
    number: bool
    prose: bool


@dataclass(frozen=True)
class View:
    """A table as the page shows it.

    Attributes
    ----------
    title
        What it holds.
    columns
        Its columns.
    rows
        Its cells.
    count
        Rows that the answer has.
    seen
        Rows that are seen at first.
    open
        Whether it stands open.
    """

    title: str
    columns: list[Head]
    rows: list[list[Cell]] = field(default_factory=list)
    count: int = 0
    seen: int = SEEN
    open: bool = False

    @property
    def size(self) -> str:
        """How many rows there are, and how many of them are here."""
        rows = f"{self.count:,} row{'' if self.count == 1 else 's'}"
        return rows if len(self.rows) == self.count else f"{len(self.rows):,} of {rows}"


def view(
    trace: Trace, answer: Answer, name: str, known: Places, rows: Sequence[int] | None = None
) -> View:
    """Give a table of an answer as the page shows it; columns that say nothing are left out.

    Parameters
    ----------
    trace
        The trace.
    answer
        The answer.
    name
        The table's name in it.
    known
        Of the trace: what rows link to.
    rows
        The rows that are shown, of the table's index; the first `ROWS` by default.
    """
    table, described = answer.tables[name], answer.columns[name]
    shown = table.head(ROWS) if rows is None else table.loc[table.index.intersection(list(rows))]
    records = [
        {str(column): value for column, value in row.items()} for row in shown.to_dict("records")
    ]
    names = [c for c in described if c in shown and not _says_nothing(shown[c])]
    if not len(known.executions):  # where there are no tasks, nothing is said of them
        names = [c for c in names if c not in OF_TASKS.get(answer.analysis, ("function", "task"))]
    keys = _keys(trace, shown, known)
    if keys is not None:
        # a task is called by its key, whatever number it has
        names = [c for c in names if c != "task" or "key" not in names]
    heads = [
        Head(
            column,
            column_name(answer.analysis, name, column),
            described[column][1],
            pd.api.types.is_numeric_dtype(shown[column])
            and not pd.api.types.is_bool_dtype(shown[column])
            and not (keys is not None and column in ("task", "key")),
            column in PROSE,
        )
        for column in names
    ]
    linked = _linked_column(names)
    cells = []
    for number, row in enumerate(records):
        place = place_of_row(row, known)
        line = []
        for head in heads:
            if keys is not None and head.name in ("task", "key"):
                line.append(name_cell(keys[number], place))
                continue
            value = row[head.name]
            if isinstance(value, str):
                value = value_name(answer.analysis, head.name, value)
            cell = _cell(value, _unit(described, head), known.span.start, head.prose)
            href = ""
            if head.name == linked:
                href = place
            elif head.name in ("worker", "function"):
                href = place_of_row({head.name: row[head.name]}, known)
            line.append(Cell(cell.text, cell.order, href, cell.whole))
        cells.append(line)
    return View(
        table_name(answer.analysis, name),
        heads,
        cells,
        len(table) if rows is None else len(cells),
        open=rows is None and len(table) <= SMALL,
    )


def name_cell(text: str, href: str = "") -> Cell:
    """Give the cell of a name: on one line, and cut in its middle where it is long."""
    return Cell(cut(text), None, href, whole_of(text))


def cut(text: str, longest: int = NAME) -> str:
    """Give a name on one line, cut in its middle where it is long."""
    line = "".join(c if c.isprintable() else "␤" if c == "\n" else "�" for c in text)
    if len(line) <= longest:
        return line
    back = longest // 2 - 1
    return f"{line[: longest - back - 1]}…{line[len(line) - back :]}"


def whole_of(text: str, longest: int = NAME) -> str:
    """Give the whole of a name that `cut` does not show whole, else nothing."""
    if cut(text, longest) == text:
        return ""
    if len(text) > WHOLE:
        return f"{text[:WHOLE]} … ({len(text):,} characters)"
    return text


def _linked_column(names: list[str]) -> str:
    """Give the column whose cells lead to the row's place: the first that names it."""
    return next((c for c in ("key", "task", "start", "worker", "function") if c in names), "")


def _keys(trace: Trace, shown: pd.DataFrame, known: Places) -> list[str] | None:
    """Give the keys of the rows' tasks; None where they are of none."""
    if "key" in shown and pd.api.types.is_integer_dtype(shown["key"]):
        codes = shown["key"].to_numpy()
    elif "key" in shown:
        return [text if isinstance(text, str) and text else NONE for text in shown["key"]]
    elif "task" in shown and pd.api.types.is_integer_dtype(shown["task"]):
        task = shown["task"].to_numpy()
        real = (task >= 0) & (task < len(known.executions))
        if not len(known.executions):
            return None
        codes = known.executions.key[task * real]
        codes = codes * real - ~real
    else:
        return None
    texts = trace.texts("keys", codes)
    return [text if isinstance(text, str) and text else NONE for text in texts]


def _says_nothing(column: pd.Series[Any]) -> bool:
    """Tell whether no row has a value: all are absent, or stand for that."""
    if not pd.api.types.is_numeric_dtype(column):
        return all(value == "" or pd.isna(value) for value in column)
    return bool((column.isna() | (column == -1)).all()) and len(column) > 0


def _unit(described: dict[str, tuple[str, str]], head: Head) -> str:
    unit = described[head.name][0]
    if unit == "ns" and (head.name in MOMENTS or head.meaning == "the interval begins"):
        return "moment"
    return unit


def _cell(value: Any, unit: str, origin: int, prose: bool) -> Cell:
    if value is None or value == "" or (not isinstance(value, str) and pd.isna(value)):
        return Cell(NONE, -1.0)
    if isinstance(value, str):
        return (
            Cell(cut(value, SENTENCE), None, "", whole_of(value, SENTENCE))
            if prose
            else name_cell(value)
        )
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    number = float(value)
    if number == -1 and unit in ("ns", "moment", "bytes", "%"):
        return Cell(NONE, -1.0)
    if unit == "moment":
        return Cell(moment_text(number, origin), number)
    text = {
        "ns": duration_text,
        "bytes": bytes_text,
        "bytes/s": rate_text,
        "GB s": byte_time_text,
        "%": share_text,
        "": count_text,
    }.get(unit)
    if text is not None:
        return Cell(text(number), number)
    return Cell(f"{three_digits(number)} {unit}", number)
