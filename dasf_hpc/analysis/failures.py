"""Analysis: what failed, and what of it in the end?

An execution failed that ended in an exception, or was lost with its worker. Dask executes a task
again that may be retried or whose worker died: a task whose last execution failed has no result.
Failures are told together that are of one function, one type of exception and, numbers apart, one
message.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.answer import Answer, Columns, Finding, Severity, told_as_one
from dasf_hpc.analysis.causes import LOST_WORK, RETRIED, causes
from dasf_hpc.analysis.executions import UNKNOWN, Executions, Ints, key_texts, read_executions
from dasf_hpc.trace.names import node_names, process_names
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import count_text, duration_text

#: Rows of the table of tasks without a result.
MOST_TASKS = 100
#: What stands for the exception of an execution that was lost, ...
LOST = "(lost)"
#: ... and for its message.
LOST_MESSAGE = "its worker ended before it did"

FAILURES: Columns = {
    "function": ("", "name of the function"),
    "exception": ("", "type of the exception; (lost): the worker ended before the execution did"),
    "message": ("", "first line of what it says; # stands for numbers that differ"),
    "tasks": ("", "tasks of which an execution failed so"),
    "final": ("", "those of them whose last execution it was: they have no result"),
    "recovered": ("", "those of them that gave a result later, and did not fail in the end"),
    "executions": ("", "executions that failed so"),
    "lost": ("", "those of them that were lost, since their worker ended before they did"),
    "time": ("ns", "time in these executions, in sum"),
    "workers": ("", "workers on which they failed"),
    "worker": ("", "the worker, where it is only one"),
    "first_start": ("ns", "the first one began"),
    "task": ("", "row of table tasks: the first one"),
    "example": ("", "what the first one says"),
}

TASKS: Columns = {
    "task": ("", "row of table tasks: its last execution"),
    "key": ("", "the task's key"),
    "function": ("", "name of the function"),
    "worker": ("", "the worker"),
    "node": ("", "the host"),
    "start": ("ns", "its last execution began"),
    "exception": ("", "type of the exception; (lost): the worker ended before the execution did"),
    "message": ("", "first line of what it says"),
}

#: What differs between messages of one cause: numbers, addresses, long identifiers.
_NUMBERS = re.compile(
    r"\b0x[0-9a-fA-F]+\b|\b(?=[0-9a-f-]*[0-9])[0-9a-f]{8,}(?:-[0-9a-f]{4,})*\b|\d+(?:[.,]\d+)*"
)


@dataclass(frozen=True)
class _Failed:
    """Executions that failed, in the order of the rows of ``tasks``: arrays of equal length."""

    row: NDArray[np.int64]
    function: NDArray[np.int64]
    process: NDArray[np.int64]
    lost: NDArray[np.bool_]
    start: Ints
    duration: Ints
    #: Codes of keys; of one whose key is not known a negative number of its own.
    key: NDArray[np.int64]
    #: Positions in `exceptions` and `messages`.
    exception: NDArray[np.int64]
    message: NDArray[np.int64]
    exceptions: list[str]
    messages: list[str]
    #: Whether it is the last execution of its key, and whether a later one gave a result with which
    #: it was left: a result that was lost may be computed again, and fail.
    final: NDArray[np.bool_]
    recovered: NDArray[np.bool_]


def failures(trace: Trace) -> Answer:
    """Say what failed, what was made good by another execution, and what has no result.

    Parameters
    ----------
    trace
        The trace.

    Returns
    -------
    Answer
        Table ``failures``: executions that failed, by function, type of the exception and message,
        those with tasks without a result first. Table ``tasks``: tasks whose last execution
        failed, by the start of that, `MOST_TASKS` at most.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    runs = read_executions(trace, ("prefix", "state"))
    bad = np.flatnonzero(runs.in_state("error", "lost"))
    described = {"failures": FAILURES, "tasks": TASKS}
    if not len(bad):
        tables = {
            "failures": pd.DataFrame(columns=list(FAILURES)),
            "tasks": pd.DataFrame(columns=list(TASKS)),
        }
        unanswered = [] if len(runs) else ["No task was executed in this run."]
        return Answer("failures", tables, described, [], unanswered)
    failed = _read(trace, bad)
    unanswered = []
    raised = ~failed.lost
    if raised.any() and not any(failed.messages[m] for m in np.unique(failed.message[raised])):
        unanswered.append(
            "Messages of exceptions: none is in this trace, as an earlier dasf-hpc did not record "
            "them; `dasf-hpc logs RUN` shows what was said."
        )
    table, group = _groups(trace, runs, failed)
    tasks = _final_tasks(trace, runs, failed)
    if len(tasks) and not tasks["message"].any():
        tasks = tasks.drop(columns=["message"])
    tables = {"failures": table, "tasks": tasks}
    return Answer("failures", tables, described, _findings(trace, failed, table, group), unanswered)


def _read(trace: Trace, bad: NDArray[np.intp]) -> _Failed:
    """Read what there is of failed executions, and what became of their tasks."""
    runs = read_executions(trace, ("prefix", "state", "key"))
    exception, exceptions = _texts(trace, "exception", bad)
    message, messages = _texts(trace, "message", bad)
    lost = runs.in_state("lost")[bad]
    exception[lost], message[lost] = len(exceptions), len(messages)
    key = runs.key.astype(np.int64)
    # all executions of the tasks that failed, each task's in the order of their starts
    failing = np.zeros(max(int(key.max()), 0) + 1, np.bool_)
    failing[key[bad[key[bad] >= 0]]] = True
    of = np.flatnonzero((key >= 0) & failing[np.maximum(key, 0)])
    of = of[np.lexsort((runs.start[of], key[of]))]
    is_last = np.ones(len(of), np.bool_)
    is_last[:-1] = key[of][1:] != key[of][:-1]
    last = np.ones(len(key), np.bool_)  # of an unknown key each one is
    last[of] = is_last
    given = np.full(len(failing), np.iinfo(np.int64).min)  # the last start that gave a result
    good = of[runs.in_state("memory")[of]]
    np.maximum.at(given, key[good], runs.start[good])
    known = key[bad] >= 0
    code = np.where(known, key[bad], 0)
    final = np.zeros(len(failing), np.bool_)
    final[code[last[bad] & known]] = True
    return _Failed(
        row=bad.astype(np.int64),
        function=runs.function[bad].astype(np.int64),
        process=runs.process[bad].astype(np.int64),
        lost=lost,
        start=runs.start[bad],
        duration=runs.duration[bad],
        key=np.where(known, key[bad], -1 - np.arange(len(bad))),
        exception=exception,
        message=message,
        exceptions=[*exceptions, LOST],
        messages=[*messages, LOST_MESSAGE],
        final=last[bad],
        recovered=known & (given[code] > runs.start[bad]) & ~final[code],
    )


def _texts(
    trace: Trace, column: str, rows: NDArray[np.intp]
) -> tuple[NDArray[np.int64], list[str]]:
    """Read a column of texts at some rows: positions in a list of what stands there."""
    names: list[str] = []
    codes = []
    for piece in trace.pieces("tasks", [column]):
        values = piece[column].cat
        names = [str(name) for name in values.categories]
        first = int(piece.index[0])
        here = rows[(rows >= first) & (rows < first + len(piece))] - first
        codes.append(values.codes.to_numpy()[here].astype(np.int64))
    whole = np.concatenate(codes)
    present, position = np.unique(whole, return_inverse=True)
    return position.astype(np.int64), [names[code] if code >= 0 else "" for code in present]


def _groups(
    trace: Trace, runs: Executions, failed: _Failed
) -> tuple[pd.DataFrame, NDArray[np.intp]]:
    """Count failures of one function, one exception and messages that differ in numbers only.

    Returns
    -------
    table
        A row for each.
    group
        Row of the table that each failure is counted in.
    """
    patterns, pattern = np.unique(
        [_NUMBERS.sub("#", text) for text in failed.messages], return_inverse=True
    )
    of = np.stack([failed.function, failed.exception, pattern[failed.message]], axis=1)
    distinct, group = np.unique(of, axis=0, return_inverse=True)
    group = group.reshape(-1)
    count = len(distinct)
    names = process_names(trace)

    def different(values: NDArray[np.int64], chosen: NDArray[np.bool_] | None = None) -> Ints:
        """Count the different values in each group."""
        pairs = np.stack([group, values], axis=1)
        pairs = np.unique(pairs if chosen is None else pairs[chosen], axis=0)
        return np.bincount(pairs[:, 0], minlength=count).astype(np.int64)

    order = np.lexsort((failed.start, group))
    firsts = order[np.searchsorted(group[order], np.arange(count))]
    time = np.zeros(count, np.int64)
    np.add.at(time, group, failed.duration)
    workers = different(failed.process)
    messages = different(failed.message)
    where = failed.process[firsts]
    table = pd.DataFrame(
        {
            "function": [runs.functions[code] for code in distinct[:, 0]],
            "exception": [failed.exceptions[code] or UNKNOWN for code in distinct[:, 1]],
            "message": [
                str(patterns[code]) if several > 1 else failed.messages[failed.message[first]]
                for code, several, first in zip(distinct[:, 2], messages, firsts, strict=True)
            ],
            "example": [failed.messages[code] for code in failed.message[firsts]],
            "executions": np.bincount(group, minlength=count),
            "tasks": different(failed.key),
            "recovered": different(failed.key, failed.recovered),
            "final": different(failed.key, failed.final),
            "lost": np.bincount(group[failed.lost], minlength=count),
            "workers": workers,
            "worker": [
                _name(names, row) if number == 1 else ""
                for row, number in zip(where.tolist(), workers, strict=True)
            ],
            "time": time,
            "first_start": failed.start[firsts],
            "task": failed.row[firsts],
        }
    )
    for column in ("exception", "message", "example"):
        table[column] = [printable(text) for text in table[column]]
    by = ["final", "time"]
    table = table.sort_values(by, ascending=False, kind="stable")
    row = np.argsort(table.index.to_numpy())
    table = table.reset_index(drop=True)[list(FAILURES)]
    if not table["example"].any():
        table = table.drop(columns=["message", "example"])
    return table, row[group]


def _final_tasks(trace: Trace, runs: Executions, failed: _Failed) -> pd.DataFrame:
    """List the tasks without a result."""
    chosen = np.flatnonzero(failed.final)
    chosen = chosen[np.argsort(failed.start[chosen], kind="stable")][:MOST_TASKS]
    names, nodes = process_names(trace), node_names(trace)
    node_of = trace.processes["node"].tolist()
    rows = []
    keys = key_texts(trace, np.where(failed.key[chosen] >= 0, failed.key[chosen], -1))
    for at, key in zip(chosen.tolist(), keys, strict=True):
        process = int(failed.process[at])
        node = int(node_of[process]) if process < len(node_of) else -1
        rows.append(
            {
                "task": int(failed.row[at]),
                "key": key,
                "function": runs.functions[failed.function[at]],
                "worker": _name(names, process),
                "node": nodes[node] if 0 <= node < len(nodes) else UNKNOWN,
                "start": int(failed.start[at]),
                "exception": printable(failed.exceptions[failed.exception[at]] or UNKNOWN),
                "message": printable(failed.messages[failed.message[at]]),
            }
        )
    return pd.DataFrame(rows, columns=list(TASKS))


def printable(text: str) -> str:
    """Write a text so that all of it is seen: control characters as in a Python string."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def _name(names: list[str], process: int) -> str:
    return names[process] if 0 <= process < len(names) else f"worker {process}"


def _findings(
    trace: Trace, failed: _Failed, table: pd.DataFrame, group: NDArray[np.intp]
) -> list[Finding]:
    found: list[Finding] = []
    said = any(failed.messages[m] for m in np.unique(failed.message[~failed.lost]))
    mend = "Mend what the message names." if said else "`dasf-hpc logs RUN` shows the messages."

    def tell(
        severity: Severity,
        rows: pd.DataFrame,
        heading: str,
        clause: Callable[[dict[str, Any]], str],
        step: str,
        **more: Any,
    ) -> None:
        if not len(rows):
            return
        mine = np.isin(group, rows.index)
        first = failed.row[mine][int(np.argmin(failed.start[mine]))]
        process = np.unique(failed.process[mine])
        one = len(process) == 1 and process[0] < len(trace.processes)
        place = {
            "start": int(failed.start[mine].min()),
            "stop": int((failed.start[mine] + failed.duration[mine]).max()),
            "process": int(process[0]) if one else -1,
            "task": int(first),
        }
        for finding in told_as_one(severity, "failures", "failures", rows, heading, clause, step):
            found.append(replace(finding, **{**more, **place}))

    def shorter(words: str, rows: pd.DataFrame) -> dict[str, Any]:
        """Say what it saves if no execution had failed of tasks that gave a result later."""
        removed = np.zeros(trace.rows("tasks"), np.int64)
        mine = np.isin(group, rows.index) & failed.recovered
        removed[failed.row[mine]] = failed.duration[mine]
        return causes(trace).shorter(words, removed).told

    raised = table[table["lost"] == 0]
    died = table[table["lost"] > 0]
    final = raised[raised["final"] > 0]
    needed = _needed(trace, failed)
    tell(
        Severity.SERIOUS,
        final.sort_values("final", ascending=False, kind="stable"),
        f"kinds of failure were final, {count_text(final['final'].sum())} tasks have no result",
        lambda row: (
            f"{_counted(row['final'], 'task')} of {row['function']}"
            f"{' failed for good' * (len(final) == 1)}: {_said(row)}"
        ),
        (
            "Tasks that need their results did not run from then on. "
            if needed
            else "Tasks that need them, if there are any, never ran. "
        )
        + mend,
        incomplete=True,
    )
    again = raised[raised["recovered"] > 0]
    tell(
        Severity.WARNING,
        again.sort_values("time", ascending=False, kind="stable"),
        f"kinds of failure were retried with success, {duration_text(again['time'].sum())} went to "
        "them",
        lambda row: (
            f"{_counted(row['recovered'], 'task')} of {row['function']} gave a result only when "
            f"retried: {_said(row)}; {_counted(row['executions'], 'failed execution')} took "
            f"{duration_text(row['time'])}"
            if len(again) == 1
            else f"{_counted(row['recovered'], 'task')} of {row['function']}: {_said(row)}"
        ),
        f"Retries hide the cause and cost their time again. {mend}",
        **shorter(RETRIED, again),
    )
    tell(
        Severity.SERIOUS if died["final"].any() else Severity.WARNING,
        died.sort_values(["final", "lost"], ascending=False, kind="stable"),
        "functions lost executions with their workers",
        lambda row: (
            f"{_counted(row['lost'], 'execution')} of {row['function']} "
            f"{'was' if row['lost'] == 1 else 'were'} lost with {_where(row)}, "
            f"{duration_text(row['time'])} of work; "
            + (
                f"{count_text(row['final'])} of {_counted(row['tasks'], 'task')} "
                f"{'was' if row['final'] == 1 else 'were'} not executed again"
                if row["final"]
                else "all were executed again"
                if row["recovered"] == row["tasks"]
                else f"{count_text(row['recovered'])} of {_counted(row['tasks'], 'task')} gave a "
                "result later"
            )
        ),
        "`dasf-hpc logs RUN` shows why workers ended; often their memory limit was too small.",
        **shorter(LOST_WORK, died),
        incomplete=bool(died["final"].any()),
    )
    return found


def _needed(trace: Trace, failed: _Failed) -> bool:
    """Say whether a task that was executed needed one that failed for good.

    What a task needs is recorded when it begins: of those that never began it is not known.
    """
    keys = failed.key[failed.final & (failed.key >= 0)]
    return any(
        bool(np.isin(piece["dependency"].to_numpy(), keys).any())
        for piece in trace.pieces("dependencies", ["dependency"])
    )


def _counted(number: int, noun: str) -> str:
    return f"{count_text(number)} {noun}{'s' * (number != 1)}"


def _said(row: dict[str, Any]) -> str:
    """Give what the exception of a group says, the first one's words, without their full stop."""
    example = row.get("example", "")
    if row["exception"] == UNKNOWN and not example:
        return "its exception was not recorded"
    text = f"{row['exception']}: {example}" if example else str(row["exception"])
    text = text.removesuffix(".")
    return f"{text} (and others alike)" if row.get("message", "") != example else text


def _where(row: dict[str, Any]) -> str:
    return f"worker {row['worker']}" if row["worker"] else _counted(row["workers"], "worker")
