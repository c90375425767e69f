"""Analysis, what each one gives: tables with units, findings, and what it could not look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import pandas as pd

#: Of equal findings that are told as one, so many are told with their figures, ...
WORST = 3
#: ... and so many are its evidence.
EVIDENCE = 100

#: Columns of a table: name to unit (as in the trace's schema, empty for counts and text) and
#: meaning.
Columns = dict[str, tuple[str, str]]


class Severity(StrEnum):
    """How much a finding matters for the time a run takes."""

    #: Good to know; nothing need be done.
    NOTICE = "notice"
    #: Costs the run more than a few percent.
    WARNING = "warning"
    #: What most of the run's time, or its result, depends on.
    SERIOUS = "serious"


@dataclass(frozen=True)
class Finding:
    """One thing that an analysis found.

    Attributes
    ----------
    severity
        How much it matters.
    analysis
        The analysis that found it.
    table, rows
        The evidence: a table of the same answer and row numbers (of its index) in it.
    sentence
        What was found, with its figures.
    next_step
        What to do about it.
    """

    severity: Severity
    analysis: str
    table: str
    rows: tuple[int, ...]
    sentence: str
    next_step: str


@dataclass(frozen=True)
class Answer:
    """What an analysis gives.

    Attributes
    ----------
    analysis
        Its name.
    tables
        By name; the first is the one that the question is about. Times are ns of trace time or
        durations in ns, both int64; an index counts the rows from 0.
    columns
        By table, each column's unit and meaning.
    findings
        What it found, the most severe first. None, and nothing in `unanswered`, is the answer
        "looked, found nothing".
    unanswered
        What it could not look at, and why: a sentence each.
    """

    analysis: str
    tables: dict[str, pd.DataFrame]
    columns: dict[str, Columns]
    findings: list[Finding] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)

    @property
    def table(self) -> pd.DataFrame:
        """The table that the question is about."""
        return next(iter(self.tables.values()))

    @property
    def looked(self) -> bool:
        """Whether there was anything to look at."""
        return bool(len(self.table)) or not self.unanswered

    def document(self, rows: int | None = None) -> dict[str, Any]:
        """Give the answer as what JSON can hold.

        Parameters
        ----------
        rows
            Rows of each table at most.
        """
        return {
            "analysis": self.analysis,
            "looked": self.looked,
            "findings": [asdict(finding) for finding in self.findings],
            "unanswered": self.unanswered,
            "tables": {
                name: {
                    "columns": {
                        column: {"unit": unit, "meaning": meaning}
                        for column, (unit, meaning) in self.columns[name].items()
                        if column in table
                    },
                    "row_count": len(table),
                    "rows": _records(table if rows is None else table.head(rows)),
                }
                for name, table in self.tables.items()
            },
        }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Give rows as dictionaries of plain values; what is not there is None."""
    plain = table.astype(object).where(table.notna(), None)
    return [{str(k): _plain(v) for k, v in row.items()} for row in plain.to_dict("records")]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def told_as_one(
    severity: Severity,
    analysis: str,
    table: str,
    rows: pd.DataFrame,
    heading: str,
    clause: Callable[[dict[str, Any]], str],
    next_step: str,
) -> list[Finding]:
    """Make one finding of all rows of which the same is to say, none of no row.

    Parameters
    ----------
    severity, analysis, table, next_step
        As of a `Finding`.
    rows
        Rows of the table, the worst first.
    heading
        What they are, in the plural: ``workers are slow``.
    clause
        Gives what is to say of one row, a sentence without its full stop.
    """
    if not len(rows):
        return []
    told = [clause(row) for row in _records(rows.head(WORST))]
    sentence = told[0]
    if len(rows) > 1:
        sentence = f"{len(rows)} {heading}: {'; '.join(told)}"
    if len(rows) > WORST:
        sentence += f"; and {len(rows) - WORST} more"
    evidence = tuple(int(row) for row in rows.index[:EVIDENCE])
    return [Finding(severity, analysis, table, evidence, sentence + ".", next_step)]


def most_severe_first(findings: list[Finding]) -> list[Finding]:
    """Sort findings by severity; equal ones keep their order."""
    order = [Severity.SERIOUS, Severity.WARNING, Severity.NOTICE]
    return sorted(findings, key=lambda finding: order.index(finding.severity))
