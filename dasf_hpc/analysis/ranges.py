"""Analysis: what did the NVTX ranges of the code take, within which functions?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dasf_hpc.analysis.answer import Answer, Columns, Finding, Severity, told_as_one
from dasf_hpc.analysis.executions import Ints, group_sums, read_executions
from dasf_hpc.nsight.attribute import pieces
from dasf_hpc.nsight.join import COMPUTE_DOMAIN
from dasf_hpc.trace.holdings import Kind, held
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import duration_text, share_text

#: A range that takes this share of the executing time of its function in itself is named.
LARGE = 50.0
NO_TASK = "(no task)"
NO_NAME = "(no name)"

RANGES: Columns = {
    "function": ("", f"function of the task that ran on its thread; {NO_TASK}: none did"),
    "domain": ("", "NVTX domain; none: the default one"),
    "range": ("", f"its message; {NO_NAME}: it has none"),
    "category": ("", "NVTX category; none: it has none"),
    "count": ("", "how often it ended"),
    "total": ("ns", "time in sum, with the ranges that lie within it"),
    "mean": ("ns", "mean time"),
    "max": ("ns", "longest"),
    "self": (
        "ns",
        "time in sum without the ranges that lie within it: each instant of a thread is of the "
        "range that was pushed last. None: such ranges end anywhere, so lie in no other",
    ),
    "share": ("%", "of the executing time of its function: the time within itself, else all"),
    "kernels": ("", "kernels that its thread launched within it"),
    "kernel_time": ("ns", "times of these added up; also counted in the ranges around it"),
    "open": ("", "how often it never ended; these are in no other column"),
}
MARKS: Columns = {
    "function": ("", f"function of the task that ran on its thread; {NO_TASK}: none did"),
    "domain": ("", "NVTX domain; none: the default one"),
    "mark": ("", f"its message; {NO_NAME}: it has none"),
    "category": ("", "NVTX category; none: it has none"),
    "count": ("", "how often"),
}
_TABLES = {"ranges": RANGES, "marks": MARKS}
_NAMES = ("domain", "message", "category")


def ranges(trace: Trace) -> Answer:
    """Say what the ranges that the code itself makes with NVTX took, by function.

    The ranges around tasks are not among them.

    Returns
    -------
    Answer
        Tables ``ranges``, those that took longest within themselves first, and ``marks``.
    """
    tables = {name: pd.DataFrame(columns=list(columns)) for name, columns in _TABLES.items()}
    runs = read_executions(trace, ("thread", "prefix"))
    functions = [*runs.functions, NO_TASK]
    holds = held(trace)
    unanswered = []
    found = _user_ranges(trace)
    if len(found):
        tables["ranges"] = _ranges(trace, found, runs.function, runs.duration, functions)
    else:
        what = holds[Kind.RANGES]
        why = (
            "none but those around tasks were recorded"
            if what.there
            else (what.reason or str(what.state))
        )
        unanswered.append(f"Ranges of the code: {why}.")
    if trace.rows("nvtx_marks"):
        tables["marks"] = _marks(trace, runs.function, functions)
    elif not holds[Kind.RANGES].there:
        unanswered.append(f"Marks: {holds[Kind.MARKS].reason or holds[Kind.MARKS].state}.")
    return Answer("ranges", tables, _TABLES, _findings(tables["ranges"]), unanswered)


def _user_ranges(trace: Trace) -> pd.DataFrame:
    if not trace.rows("nvtx_ranges"):
        return pd.DataFrame()
    columns = ["report", "process", "thread", "start", "stop", "task", "stacked", *_NAMES]
    table = trace.table("nvtx_ranges", columns)
    return table[table["domain"] != COMPUTE_DOMAIN].reset_index(drop=True)


def self_times(start: Ints, stop: Ints) -> Ints:
    """Give the time of each range of one thread without those that lie within it, ns.

    Each instant is of the range that was pushed last; so they sum up to the time that all ranges
    cover together, also where ranges overlap that should not.
    """
    first, last, which = pieces(start, stop)
    return group_sums(which, last - first, len(start))


def _ranges(
    trace: Trace,
    table: pd.DataFrame,
    function_of_task: Any,
    duration_of_task: Ints,
    functions: list[str],
) -> pd.DataFrame:
    start, stop = (table[name].to_numpy(np.int64) for name in ("start", "stop"))
    ended = (stop != -1) & (stop >= start)
    length = np.where(ended, stop - start, 0)
    stacked = ended & (table["stacked"].to_numpy() == 1)
    own = np.zeros(len(table), np.int64)
    kernels, kernel_time = own.copy(), own.copy()
    launched = _launches(trace)
    for place, rows in table.groupby(["report", "process", "thread"], sort=False).indices.items():
        pushed = rows[stacked[rows]]
        own[pushed] = self_times(start[pushed], stop[pushed])
        if place in launched:
            time, sums = launched[place]
            rows = rows[ended[rows]]
            first, last = (np.searchsorted(time, at[rows], "left") for at in (start, stop))
            kernels[rows] = last - first
            kernel_time[rows] = sums[last] - sums[first]
    task = table["task"].to_numpy(np.int64)
    known = (task >= 0) & (task < len(function_of_task))
    function = np.full(len(table), len(functions) - 1, np.int64)
    function[known] = function_of_task[task[known]]
    codes = [function, *(table[name].cat.codes.to_numpy(np.int64) for name in _NAMES)]
    keys = np.stack([*codes, (table["stacked"].to_numpy() != 0).astype(np.int64)])
    distinct, group = np.unique(keys, axis=1, return_inverse=True)
    group, count = group.reshape(-1), distinct.shape[1]
    executing = group_sums(function_of_task, duration_of_task, len(functions))
    result = _named(table, distinct, functions, "range")
    result["count"] = np.bincount(group[ended], minlength=count)
    result["total"] = group_sums(group, length, count)
    result["mean"] = result["total"] / result["count"].where(result["count"] > 0)
    longest = np.zeros(count, np.int64)
    np.maximum.at(longest, group, length)
    result["max"] = longest
    nested = distinct[-1] == 1
    within = group_sums(group, own, count)
    result["self"] = pd.array(np.where(nested, within, 0), dtype="Int64")
    result.loc[~nested, "self"] = pd.NA
    of = executing[distinct[0]]
    time = np.where(nested, within, result["total"])
    # what belongs to no task has no share of any function
    result["share"] = np.where(of > 0, 100.0 * time / np.maximum(of, 1), np.nan)
    result["kernels"] = group_sums(group, kernels, count)
    result["kernel_time"] = group_sums(group, kernel_time, count)
    result["open"] = np.bincount(group[~ended], minlength=count)
    order = np.lexsort((-result["total"].to_numpy(), -time))
    return result.iloc[order].reset_index(drop=True)[list(RANGES)]


def _named(table: pd.DataFrame, distinct: Any, functions: list[str], message: str) -> pd.DataFrame:
    """Give the names that groups of codes stand for."""
    found = {"function": [functions[code] for code in distinct[0].tolist()]}
    for name, codes in zip(_NAMES, distinct[1:], strict=False):
        texts = [*table[name].cat.categories.tolist(), NO_NAME if name == "message" else None]
        found[message if name == "message" else name] = [texts[code] for code in codes.tolist()]
    return pd.DataFrame(found)


def _launches(trace: Trace) -> dict[Any, tuple[Ints, Ints]]:
    """Give, by report, process and thread, when kernels were launched and sums of their times."""
    if not trace.rows("kernels"):
        return {}
    table = trace.table("kernels", ["report", "process", "thread", "launched", "start", "stop"])
    table = table[(table["launched"] != -1) & (table["stop"] >= table["start"])]
    table = table.sort_values("launched", kind="stable")
    launched = table["launched"].to_numpy(np.int64)
    length = (table["stop"] - table["start"]).to_numpy(np.int64)
    return {
        place: (launched[rows], np.concatenate([[0], np.cumsum(length[rows])]))
        for place, rows in table.groupby(
            ["report", "process", "thread"], sort=False
        ).indices.items()
    }


def _marks(trace: Trace, function_of_task: Any, functions: list[str]) -> pd.DataFrame:
    table = trace.table("nvtx_marks", ["task", *_NAMES])
    task = table["task"].to_numpy(np.int64)
    known = (task >= 0) & (task < len(function_of_task))
    function = np.full(len(table), len(functions) - 1, np.int64)
    function[known] = function_of_task[task[known]]
    keys = np.stack([function, *(table[name].cat.codes.to_numpy(np.int64) for name in _NAMES)])
    distinct, group = np.unique(keys, axis=1, return_inverse=True)
    result = _named(table, distinct, functions, "mark")
    result["count"] = np.bincount(group.reshape(-1), minlength=distinct.shape[1])
    result = result.sort_values("count", ascending=False, kind="stable")
    return result.reset_index(drop=True)[list(MARKS)]


def _findings(table: pd.DataFrame) -> list[Finding]:
    large = table[(table["share"] >= LARGE) & (table["function"] != NO_TASK)]
    return told_as_one(
        Severity.NOTICE,
        "ranges",
        "ranges",
        large,
        "ranges are most of their functions",
        lambda row: (
            f"{share_text(row['share'])} of {row['function']} is within its range {row['range']} "
            f"({duration_text(row['total'])} in {row['count']:,})"
        ),
        "Look there first when you make the function faster.",
    )
