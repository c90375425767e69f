"""Show: the tree of a run's efficiencies, for the page and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from rich.console import Console

from dasf_hpc.analysis import analyse
from dasf_hpc.analysis.answer import Answer
from dasf_hpc.analysis.efficiencies import ACCEPTABLE, VERY_LOW
from dasf_hpc.show.column_names import factor_name
from dasf_hpc.show.fit import Column, Kind, show_table
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import count_text, duration_text, share_text

#: Of more executions than this a run's summary has no tree: it takes some 4 s for each million.
QUICK = 250_000

#: Steps of the scale: the class of the drawing, in words, and from which share on, %.
SCALE = (
    ("good", "acceptable", ACCEPTABLE),
    ("low", "low", VERY_LOW),
    ("very-low", "very low", -math.inf),
)


@dataclass
class Box:
    """A factor as it is drawn, with its parts.

    Attributes
    ----------
    name
        What it is called.
    value
        Written with its unit.
    width
        Of its bar, %.
    step, words
        Of `SCALE`.
    lost
        What it loses of the run; empty: nothing.
    formula, meaning
        As the table has them.
    worst
        Whether it is pointed at.
    parts
        Its parts.
    """

    name: str
    value: str
    width: float
    step: str
    words: str
    lost: str
    formula: str
    meaning: str
    worst: bool
    parts: list[Box] = field(default_factory=list)

    @property
    def leaves(self) -> int:
        """How many boxes stand beside each other under it."""
        return sum(part.leaves for part in self.parts) or 1


def boxes(answer: Answer | None) -> list[Box]:
    """Give the tree as boxes within boxes: those that are no part of another."""
    roots: list[Box] = []
    by_name: dict[str, Box] = {}
    for row in _rows(answer) if answer is not None else ():
        step, words = scale(row["value"])
        box = by_name[row["factor"]] = Box(
            name=factor_name(row["factor"]),
            value=share_text(row["value"]),
            width=min(100.0, max(0.0, row["value"])),
            step=step,
            words=words,
            lost=duration_text(row["run"]) if row["run"] > 0 else "",
            formula=row["formula"],
            meaning=row["meaning"],
            worst=bool(row["worst"]),
        )
        (by_name[row["parent"]].parts if row["parent"] else roots).append(box)
    return roots


def scale(value: float) -> tuple[str, str]:
    """Say how good a factor is, %: the class of its drawing, and a word."""
    return next((step, words) for step, words, least in SCALE if value >= least)


def _rows(answer: Answer) -> Iterator[dict[str, Any]]:
    table: pd.DataFrame = answer.tables["tree"]
    for row in table.to_dict("records"):
        yield {str(column): value for column, value in row.items()}


def show_tree(console: Console, answer: Answer) -> None:
    """Print the tree: each factor under the one that it is a part of."""
    rows = list(_rows(answer))
    reference = any(not math.isnan(row["reference"]) for row in rows)
    columns = [
        Column(
            "Factor",
            [f"{'  ' * row['level']}{factor_name(row['factor'])}" for row in rows],
            Kind.EXACT,
        ),
        Column("Value", [share_text(row["value"]) for row in rows], Kind.NUMBER),
        Column("", [_remark(row) for row in rows], Kind.EXACT, [_style(row) for row in rows]),
        Column(
            "Loses",
            [duration_text(row["run"]) if row["run"] > 0 else "" for row in rows],
            Kind.NUMBER,
        ),
    ]
    if reference:
        before = ["" if math.isnan(v) else share_text(v) for v in (r["reference"] for r in rows)]
        columns.insert(2, Column("Reference", before, Kind.NUMBER))
    show_table(console, "Efficiencies", columns)


def _remark(row: dict[str, Any]) -> str:
    return scale(row["value"])[1] + (", the worst" if row["worst"] else "")


def _style(row: dict[str, Any]) -> str:
    return {"good": "green", "low": "yellow", "very-low": "red"}[scale(row["value"])[0]]


def quick(trace: Trace) -> Answer | None:
    """Give the tree of a run for its summary; None where there is none, or it takes long."""
    if not 0 < trace.rows("tasks") <= QUICK:
        return None
    answer = analyse("efficiencies", trace)
    return answer if len(answer.table) else None


def show_efficiencies(console: Console, trace: Trace, run: str) -> None:
    """Print the tree of a run in its summary; of a large one say how to get it."""
    answer = quick(trace)
    if answer is not None:
        show_tree(console, answer)
    elif trace.rows("tasks") > QUICK:
        console.print(
            f"Efficiencies of {count_text(trace.rows('tasks'))} executions: "
            f"dasf-hpc analyze efficiencies {run}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
