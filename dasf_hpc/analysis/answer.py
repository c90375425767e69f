"""Analysis, what each one gives: tables with units, findings, and what it could not look at."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from html import escape
from typing import Any

import pandas as pd

#: Of equal findings that are told as one, so many are told with their figures, ...
WORST = 3
#: ... and so many are its evidence.
EVIDENCE = 100

#: Rows of a table that a notebook shows.
SHOWN = 20

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
    saves
        What mending it could save of the time from first task to last, ns, at most; -1: it cannot
        be told. What two save together is not their sum: they overlap, mostly, or neither helps
        much without the other.
    start, stop
        Where in the run to look, ns of trace time; -1: everywhere.
    process
        At which worker, a row of ``processes``; -1: no single one.
    task
        At which task, a row of ``tasks``; -1: no single one.
    cause
        What the time goes to, in a few words: ``w0-0 on node2 is slow at filter_trace``. Findings
        of one cause, of whatever analyses, have the same words; empty: it is no cause of its own.
    incomplete
        Whether results are missing for good: what the run gave is not whole.
    """

    severity: Severity
    analysis: str
    table: str
    rows: tuple[int, ...]
    sentence: str
    next_step: str
    saves: int = -1
    start: int = -1
    stop: int = -1
    process: int = -1
    task: int = -1
    cause: str = ""
    incomplete: bool = False


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
        What it found, the costliest first. None, and nothing in `unanswered`, is the answer
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

    def __repr__(self) -> str:
        found = f"{len(self.findings)} finding{'s' * (len(self.findings) != 1)}"
        tables = ", ".join(f"{name} ({len(table)} rows)" for name, table in self.tables.items())
        return f"<Answer {self.analysis}: {found if self.looked else 'could not look'}; {tables}>"

    def _repr_html_(self) -> str:
        parts = [finding_html(finding) for finding in self.findings]
        parts += [f"<p><i>could not look:</i> {escape(why)}</p>" for why in self.unanswered]
        if not self.findings and self.looked:
            parts.append("<p>Nothing found that should be changed.</p>")
        for name, table in self.tables.items():
            if len(table):
                parts.append(_table_html(name, table, self.columns[name]))
        return f"<div><b>{escape(self.analysis)}</b>{''.join(parts)}</div>"

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


def finding_html(finding: Finding) -> str:
    """Show a finding in a notebook."""
    sentence, step = (
        # what stands between backquotes is code
        re.sub("`([^`]*)`", r"<code>\1</code>", escape(text))
        for text in (finding.sentence, finding.next_step)
    )
    return f"<p><b>{escape(finding.severity.value)}</b> {sentence} <i>{step}</i></p>"


def _table_html(name: str, table: pd.DataFrame, columns: Columns) -> str:
    """Show the first rows of a table, with units and meanings."""
    known = [column for column in columns if column in table]
    heads = "".join(
        f'<th title="{escape(columns[c][1])}">{escape(c.replace("_", " "))}'
        + (f" ({escape(columns[c][0])})" if columns[c][0] else "")
        + "</th>"
        for c in known
    )
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(row[c]))}</td>" for c in known) + "</tr>"
        for row in _records(table.head(SHOWN))
    )
    more = f"<p>{len(table) - SHOWN:,} more rows</p>" if len(table) > SHOWN else ""
    return f"<p>{escape(name)}</p><table><tr>{heads}</tr>{rows}</table>{more}"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


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


def costliest_first(findings: list[Finding]) -> list[Finding]:
    """Sort findings by what they could save; those of which it cannot be told by severity.

    Results that are missing come before all that is slow. What is only good to know comes after
    what can be acted on.
    """

    def order(finding: Finding) -> tuple[bool, bool, int]:
        known = finding.severity == Severity.NOTICE and finding.saves <= 0
        return not finding.incomplete, known, -max(finding.saves, 0)

    return sorted(most_severe_first(findings), key=order)


def one_a_cause(findings: list[Finding]) -> list[Finding]:
    """Keep the first finding of each cause, and all that have none."""
    seen: set[str] = set()
    kept = []
    for finding in findings:
        if finding.cause not in seen:
            kept.append(finding)
        if finding.cause:
            seen.add(finding.cause)
    return kept


def most_severe_first(findings: list[Finding]) -> list[Finding]:
    """Sort findings by severity; equal ones keep their order."""
    order = [Severity.SERIOUS, Severity.WARNING, Severity.NOTICE]
    return sorted(findings, key=lambda finding: order.index(finding.severity))
