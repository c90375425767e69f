"""Show, places in the page's timeline: what a finding or a row of a table links to.

A place is written as the page's fragment: ``#t=FROM,TO`` in seconds from the start of the first
task, then what is to be picked there: ``&w=`` a row of ``processes``, ``&task=`` a row of
``tasks``, ``&f=`` a function. ``&m=FROM,TO`` is the stretch of time that is marked there, and
``&i=`` the number of the finding that it is about.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote

import pandas as pd

from dasf_hpc.analysis.answer import Finding
from dasf_hpc.analysis.executions import Executions, Span, read_executions, work_span
from dasf_hpc.trace.names import process_names
from dasf_hpc.trace.open import Trace

#: Of what is linked to, this share is seen before it and after it; of a task more, ...
AROUND = 0.5
TASK_AROUND = 1.5
#: ... but no less than this, ns: it is to be seen as a part of the run, ...
LEAST_AROUND = 10_000
#: ... and where that leaves it a share of this at least of the width, some pixels, this much.
AROUND_SHORT, LEAST_SHARE = 500_000, 0.01

#: What findings tell of as ``6.1 s from 15.176 s``: a duration, and the moment of its begin.
_STRETCH = re.compile(r"(?<![\w.,])(\d[\d.,]*) (ns|us|ms|s) from (-?\d[\d,]*(?:\.\d+)?) s(?![\w/])")
_NS = {"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}


@dataclass(frozen=True)
class Places:
    """What is needed to find places.

    Attributes
    ----------
    span
        From first task to last: the timeline's time.
    executions
        Executions of tasks.
    processes
        Names of workers to rows of ``processes``.
    """

    span: Span
    executions: Executions
    processes: Mapping[str, int]

    @cached_property
    def functions(self) -> set[str]:
        """Names of the functions that were executed."""
        return set(self.executions.functions)


def places(trace: Trace) -> Places:
    """Read what is needed to find places in the page of a trace."""
    executions = read_executions(trace)
    roles = trace.processes["role"].tolist()
    of = {
        name: row
        for row, name in enumerate(process_names(trace))
        if roles[row] == "worker" or (executions.process == row).any()
    }
    return Places(work_span(trace, executions), executions, of)


def place_of_finding(
    finding: Finding, known: Places, row: Mapping[str, Any] | None = None, number: int = 0
) -> str:
    """Give the link to where a finding can be seen.

    Parameters
    ----------
    finding
        The finding; its task, worker and times say where.
    known
        Of the trace.
    row
        The first row of its evidence, whose place it is where the finding itself names none.
    number
        The finding's number in the page, which the place then tells; 0: none.

    Returns
    -------
    str
        As ``#t=1.2,3.4&w=2&m=1.6,3&i=1``; empty where it can be seen nowhere in particular.
    """
    start, stop, task = finding.start, finding.stop, finding.task
    if not 0 <= task < len(known.executions):
        task = -1
    elif start == -1:
        start, stop = _times_of(task, known)
    else:
        first, last = _times_of(task, known)
        if last <= start or first >= max(stop, start + 1):  # it is beside what this is about
            task = -1
    place = ""
    if start != -1 or finding.process >= 0:
        alone = task >= 0 and finding.start == -1
        place = _link(start, stop, known, finding.process, task, around=_around(alone))
    elif row is not None:
        place = place_of_row(row, known)
    if not place or not number:
        return place
    return f"{place}{_marked(start, stop, known)}&i={number}"


def stretches(sentence: str, known: Places, number: int) -> list[tuple[int, int, str]]:
    """Find where a finding's sentence tells of stretches of time, as ``6.1 s from 15.176 s``.

    Parameters
    ----------
    sentence
        The sentence.
    known
        Of the trace.
    number
        The finding's number in the page.

    Returns
    -------
    list of tuple
        Begin and end of each in the sentence, and the link to its place.
    """
    found = []
    for match in _STRETCH.finditer(sentence):
        took = float(match[1].replace(",", "")) * _NS[match[2]]
        start = known.span.start + round(float(match[3].replace(",", "")) * 1e9)
        if known.span.start <= start < known.span.stop:
            stop = start + round(took)
            place = f"{_link(start, stop, known)}{_marked(start, stop, known)}&i={number}"
            found.append((match.start(), match.end(), place))
    return found


def _marked(start: int, stop: int, known: Places) -> str:
    """Write what is to be marked at a place; a stretch without a begin is none."""
    first, last = max(start, known.span.start), min(max(start, stop), known.span.stop)
    if start == -1 or first > last:
        return ""
    return f"&m={_seconds(first - known.span.start)},{_seconds(last - known.span.start)}"


def _around(task: bool) -> float:
    return TASK_AROUND if task else AROUND


def place_of_row(row: Mapping[str, Any], known: Places) -> str:
    """Give the link to what a row of an analysis's table tells of.

    Parameters
    ----------
    row
        The row by column: ``task``, ``start`` and ``stop`` or ``duration``, ``worker`` and
        ``function`` say where.
    known
        Of the trace.

    Returns
    -------
    str
        As ``#t=1.2,3.4&task=17``; empty where the row has no place.
    """
    task, start = _whole(row.get("task")), _whole(row.get("start"))
    stop = _whole(row.get("stop"))
    if start != -1 and stop == -1 and _whole(row.get("duration")) >= 0:
        stop = start + _whole(row.get("duration"))
    task = task if 0 <= task < len(known.executions) else -1
    if task >= 0 and start == -1:
        start, stop = _times_of(task, known)
    worker = row.get("worker")
    process = known.processes.get(worker, -1) if isinstance(worker, str) else -1
    if task >= 0 and process < 0:
        process = int(known.executions.process[task])
    function = row.get("function")
    if not isinstance(function, str) or function not in known.functions or task >= 0:
        function = ""
    if start == -1 and process < 0 and not function:
        return ""
    return _link(start, stop, known, process, task, function, _around(task >= 0))


def _times_of(task: int, known: Places) -> tuple[int, int]:
    return int(known.executions.start[task]), int(known.executions.stop[task])


def _link(
    start: int,
    stop: int,
    known: Places,
    process: int = -1,
    task: int = -1,
    function: str = "",
    around: float = AROUND,
) -> str:
    """Write a place; without a start it is the whole of the time from first task to last."""
    span = known.span
    if start == -1:
        first, last = span.start, span.stop
    else:
        last = max(start, stop)
        took = last - start
        short = min(AROUND_SHORT, int(took / LEAST_SHARE / 2))
        beside = max(int(took * around), short, LEAST_AROUND)
        # where the run has no more before it, more is seen after it
        first, last = start - beside, last + beside
        early, late = max(0, span.start - first), max(0, last - span.stop)
        first, last = max(span.start, first - late), min(span.stop, last + early)
        if first >= last:  # it lies outside of the time that is drawn
            first, last = span.start, span.stop
    text = f"#t={_seconds(first - span.start)},{_seconds(last - span.start)}"
    if process >= 0:
        text += f"&w={process}"
    if task >= 0:
        text += f"&task={task}"
    if function:
        text += f"&f={quote(function, safe='')}"
    return text


def _seconds(ns: int) -> str:
    """Write seconds, to the microsecond, without zeros that say nothing."""
    text = f"{ns / 1e9:.6f}".rstrip("0").rstrip(".")
    return text or "0"


def _whole(value: Any) -> int:
    """Give a whole number of a cell, -1 for none."""
    if value is None or isinstance(value, str | bool) or pd.isna(value):
        return -1
    return int(value)
