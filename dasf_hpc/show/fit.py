"""Show: tables as wide as the terminal. Names give way and are cut in their middle; numbers never.

Every row is one line, but for columns of prose, which wrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dasf_hpc.show.progress import cut, one_line

#: A name keeps so many cells, as long as columns can be left out instead.
LEAST = 12
#: With so many cells it is well told from others: more come after the room that prose needs.
WELL = 28
#: So many cells of prose in a line can be read.
PROSE_LEAST = 24

#: Dask gives functions that it fuses names of up to 120 characters; a kernel's name may have
#: thousands.
NAME_MOST = 128

#: Cells that the lines and blanks of a table take: for each column, and at its ends.
_EACH, _ENDS = 3, 2


class Kind(Enum):
    """How a column is written where there is little room."""

    NUMBER = "whole, to the right"
    EXACT = "whole, to the left"
    NAME = "cut in its middle"
    PROSE = "wrapped"


@dataclass(frozen=True)
class Column:
    """A column: its heading, and a text for each row, with a style for each where it has one."""

    heading: str
    cells: Sequence[str]
    kind: Kind = Kind.NAME
    styles: Sequence[str] = ()
    #: Whether it is shown however little room there is.
    kept: bool = False


def show_table(
    console: Console,
    title: str,
    columns: Sequence[Column],
    left: Sequence[str] = (),
    plain: bool = False,
) -> None:
    """Print a table; see `fitted`."""
    console.print(fitted(title, columns, console.width, left, plain))


def fitted(
    title: str,
    columns: Sequence[Column],
    width: int,
    left: Sequence[str] = (),
    plain: bool = False,
) -> RenderableType:
    """Make a table of the columns from the left that have room, and under it what is left out.

    Parameters
    ----------
    title
        What it holds; may be empty.
    columns
        All with the same number of cells.
    width
        Of the terminal.
    left
        What else is left out, such as ``12 rows``.
    plain
        Whether it is a line for the headings and one for each row, with nothing between.
    """
    shown = _chosen(columns, width)
    widths = _widths([columns[i] for i in shown], width)
    table = Table(
        box=None if plain else SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        title_style="bold",
    )
    tall = max(
        (len(_lines(columns[i].heading, w)) for i, w in zip(shown, widths, strict=True)), default=1
    )
    for i, room in zip(shown, widths, strict=True):
        number = columns[i].kind is Kind.NUMBER
        table.add_column(
            _heading(columns[i], room, tall),
            justify="right" if number else "left",
            width=room,
            overflow="fold",
        )
    for row in range(len(columns[0].cells)):
        table.add_row(
            *(_cell(columns[i], row, room) for i, room in zip(shown, widths, strict=True))
        )
    missing = [c.heading for i, c in enumerate(columns) if i not in shown]
    left = [*left, *([f"columns: {', '.join(missing)}"] if missing else [])]
    if not left:
        return table
    return Group(table, Padding(Text(f"and {'; '.join(left)}", "dim"), (0, 0, 1, 2)))


def _heading(column: Column, room: int, tall: int) -> Text:
    """Write a heading of a few lines, the last of which stands above the cells."""
    lines = _lines(column.heading, room)
    return Text("\n".join([*[""] * (tall - len(lines)), *lines]), "bold")


def _lines(heading: str, room: int) -> list[str]:
    """Divide a heading between words."""
    lines: list[str] = []
    for word in heading.split() or [""]:
        if lines and cell_len(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(cut(word, room))
    return lines


def _cell(column: Column, row: int, room: int) -> Text:
    text = column.cells[row]
    if column.kind is Kind.PROSE:
        text = one_line(text)
    elif column.kind is Kind.NAME:
        text = cut(text, room)
    style = column.styles[row] if column.styles else ""
    return Text(text, style, no_wrap=column.kind is not Kind.PROSE)


def _longest(column: Column) -> int:
    """Give the cells of a column's longest text; of what is cut anyway no more is counted."""
    return max((cell_len(one_line(text[:NAME_MOST])) for text in column.cells), default=0)


def _word(column: Column) -> int:
    """Give the longest word of a heading: it is wrapped between words."""
    return max(map(cell_len, column.heading.split()), default=0)


def _least(column: Column) -> int:
    if column.kind in (Kind.NUMBER, Kind.EXACT):
        return max(_word(column), _longest(column))
    least = PROSE_LEAST if column.kind is Kind.PROSE else LEAST
    return max(_word(column), min(least, _longest(column)))


def _chosen(columns: Sequence[Column], width: int) -> list[int]:
    """Choose the columns that fit with what they need at least, from the left."""
    need = [_EACH + _least(column) for column in columns]
    used = _ENDS + sum(n for n, column in zip(need, columns, strict=True) if column.kept)
    chosen = []
    full = False
    for i, column in enumerate(columns):
        if column.kept:
            chosen.append(i)
        elif not full:
            full = bool(chosen) and used + need[i] > width
            if not full:
                used += need[i]
                chosen.append(i)
    return chosen


def _widths(columns: Sequence[Column], width: int) -> list[int]:
    """Share the room out: names grow alike until they are well told apart, then headings."""
    widths = [_least(column) for column in columns]
    spare = width - _ENDS - sum(room + _EACH for room in widths)
    if spare < 0:  # a terminal for one or two columns: the names give way further
        for i, column in enumerate(columns):
            if column.kind not in (Kind.NUMBER, Kind.EXACT):
                taken = min(-spare, max(0, widths[i] - 1))
                widths[i] -= taken
                spare += taken
    texts = [_longest(column) for column in columns]
    names = [
        0 if c.kind is Kind.PROSE else min(t, WELL) for c, t in zip(columns, texts, strict=True)
    ]
    headings = [cell_len(column.heading) for column in columns]
    for wanted in (names, headings, texts):
        growing = [i for i in range(len(columns)) if widths[i] < wanted[i]]
        while growing and spare > 0:
            narrowest = min(growing, key=lambda i: widths[i])
            widths[narrowest] += 1
            spare -= 1
            growing = [i for i in growing if widths[i] < wanted[i]]
    return widths
