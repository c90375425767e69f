"""Analysis: what do CUDA's calls, copies and waits cost, by function?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from dasf_hpc.analysis.answer import (
    Answer,
    Columns,
    Finding,
    Severity,
    costliest_first,
    told_as_one,
)
from dasf_hpc.analysis.causes import causes
from dasf_hpc.analysis.cuda_rules import ABOUT, Rule, costs
from dasf_hpc.analysis.executions import Executions, Ints, group_sums, read_executions, run_span
from dasf_hpc.analysis.gpu_allocations import HOLDERS, MEMORY, OVER_TIME, allocated
from dasf_hpc.trace.gpus import gpu_names
from dasf_hpc.trace.holdings import Kind, State, gpu_activity, held, no_gpu_activity
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.own_axis import gpus_apart
from dasf_hpc.trace.sums import Sums
from dasf_hpc.units import bytes_text, duration_text, share_text

NO_TASK = "(no task)"
#: Shares of the tasks' time, %, from which a cost is a finding, and from which it is a warning.
SOME, MUCH = 0.1, 3.0

_FUNCTION = {"function": ("", f"the function whose tasks did it; {NO_TASK}: none that is known")}
_WHY = {"reason": ("", "why it belongs to no task, or, of threads that run none, how it was found")}
_CALLS: Columns = {
    "count": ("", "calls"),
    "total": ("ns", "time in them, in sum"),
    "mean": ("ns", "mean time"),
    "max": ("ns", "longest"),
    "share": ("%", "of the time of all calls in this table"),
}
CALLS: Columns = {**_FUNCTION, "call": ("", "CUDA's function"), **_CALLS, **_WHY}
OS_CALLS: Columns = {**_FUNCTION, "call": ("", "the system's function"), **_CALLS, **_WHY}
RULES: Columns = {
    "rule": ("", "what costs time; table about says what its time is"),
    **_FUNCTION,
    "count": ("", "calls, or tasks, that it holds up"),
    "time": ("ns", "what it costs: every moment of a thread counts for one rule only"),
    "share": ("%", "of the time of the function's tasks"),
    "bytes": ("bytes", "what these calls copied or filled"),
}
ABOUT_COLUMNS: Columns = {
    "rule": ("", "the rule"),
    "time": ("", "what its time is"),
    "documentation": ("", "where the behaviour is documented"),
    "next_step": ("", "what to do"),
}
_MOVED: Columns = {
    "count": ("", "how many"),
    "bytes": ("bytes", "size in sum"),
    "total": ("ns", "time on the GPU, in sum"),
    "throughput": ("bytes/s", "size by time"),
}
COPIES: Columns = {
    **_FUNCTION,
    "kind": ("", "from where to where"),
    "source": ("", "kind of the memory it was copied from; none: not told"),
    "target": ("", "kind of the memory it was copied to; none: not told"),
    **_MOVED,
}
FILLS: Columns = {**_FUNCTION, "memory": ("", "kind of the memory; none: not told"), **_MOVED}
MIGRATIONS: Columns = {
    **_FUNCTION,
    "kind": ("", "from where to where"),
    "cause": ("", "why unified memory was migrated; none: not told"),
    **_MOVED,
}
FAULTS: Columns = {
    **_FUNCTION,
    "where": ("", "GPU or CPU: what accessed a page that was not there"),
    "access": ("", "how; none: not told"),
    "count": ("", "pages that were not there, again for each time"),
    "faults": ("", "faults of these pages"),
    "total": ("ns", "time until they were served, in sum; 0 of CPUs, where it is not told"),
}
_TABLES = {
    "calls": CALLS,
    "rules": RULES,
    "copies": COPIES,
    "fills": FILLS,
    "os_calls": OS_CALLS,
    "migrations": MIGRATIONS,
    "page_faults": FAULTS,
    "memory": MEMORY,
    "memory_holders": HOLDERS,
    "memory_over_time": OVER_TIME,
    "about": ABOUT_COLUMNS,
}


def cuda(trace: Trace) -> Answer:
    """Say what CUDA's calls, copies, waits and memory cost each function.

    Returns
    -------
    Answer
        Tables ``calls`` and ``os_calls`` (sums by function and call), ``rules`` (what holds
        threads up, and what leaves GPUs without work), ``copies``, ``fills``, ``migrations``,
        ``page_faults``, ``memory``, ``memory_holders``, ``memory_over_time``, and ``about``: what
        the time of each rule is.
    """
    runs = read_executions(trace, ("thread", "prefix"))
    tables = {name: pd.DataFrame(columns=list(columns)) for name, columns in _TABLES.items()}
    unanswered = _unanswered(trace)
    executing = group_sums(runs.function, runs.duration, len(runs.functions))
    tables["calls"] = _calls(trace, runs)
    tables["os_calls"] = _os_calls(trace, runs)
    names = [*runs.functions, NO_TASK]
    tables["rules"] = costs(trace, runs).table(names, executing)
    told = set(tables["rules"]["rule"])
    tables["about"] = pd.DataFrame(
        [(str(rule), *ABOUT[rule]) for rule in Rule if rule in told], columns=list(ABOUT_COLUMNS)
    )
    tables["copies"], tables["migrations"] = _copies(trace, runs)
    tables["fills"] = _fills(trace, runs)
    tables["page_faults"] = _faults(trace, runs)
    if trace.rows("gpu_allocations"):
        tables["memory"], tables["memory_holders"], tables["memory_over_time"] = allocated(
            trace, runs, gpu_names(trace), NO_TASK
        )
    whole = int(executing.sum()) or run_span(trace, runs).duration
    found = costliest_first(_findings(trace, tables, whole))
    return Answer("cuda", tables, _TABLES, found, unanswered)


def _unanswered(trace: Trace) -> list[str]:
    """Say what could not be looked at: not recorded, or lost; what is only not there is no such."""
    found = held(trace)
    said = []
    missing: dict[tuple[State, str], list[str]] = {}
    for kind in (
        Kind.CALLS,
        Kind.COPIES,
        Kind.FILLS,
        Kind.OS_CALLS,
        Kind.ALLOCATIONS,
        Kind.FAULTS,
    ):
        holding = found[kind]
        if holding.state in (State.MISSING, State.LOST, State.PARTLY):
            missing.setdefault((holding.state, holding.reason), []).append(str(kind))
    for (state, reason), kinds in missing.items():
        said.append(f"What {', '.join(kinds)} cost: {state}{f' ({reason})' if reason else ''}.")
    if not gpu_activity(trace):
        said.append(f"When GPUs had no work: {no_gpu_activity(trace)}.")
    elif found[Kind.KERNELS].state in (State.LOST, State.PARTLY):
        said.append(f"When GPUs had no work: {found[Kind.KERNELS].sentence}.")
    elif gpus_apart(trace):
        said.append(
            "When some GPUs had no work: nothing ties the clock of their report to the trace's."
        )
    for table, column, what in (("memcpys", "source", "copies"), ("memsets", "memory", "fills")):
        untold = count = 0
        for piece in trace.pieces(table, [column] if table == "memsets" else [column, "kind"]):
            launched = np.ones(len(piece), bool)
            if table == "memcpys":  # no call waits for a migration
                names = piece["kind"].cat.categories
                unified = [*(str(name).startswith("unified") for name in names), False]
                launched = ~np.array(unified, bool)[piece["kind"].cat.codes.to_numpy()]
            untold += int((piece[column].isna().to_numpy() & launched).sum())
            count += int(launched.sum())
        if untold:
            said.append(
                f"Whether {untold:,} of {count:,} {what} were of memory that holds the thread up: "
                "the reports do not tell the kind of their memory."
            )
    return said


def _function(task: Any, runs: Executions) -> Ints:
    """Give the function of each task; their number: none."""
    task, width = task.to_numpy(np.int64), len(runs.functions)
    known = (task >= 0) & (task < len(runs)) & (width > 0)
    found = np.full(len(task), width, np.int64)
    found[known] = runs.function[task[known]]
    return found


def _named(values: Ints, names: Any) -> list[str | None]:
    """Give the string of each code; -1: none."""
    texts = [*(str(name) for name in names), None]
    return [texts[code] for code in values.tolist()]


def _finish_calls(table: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    table["mean"] = table["total"] // table["count"].clip(lower=1)
    whole = int(table["total"].sum())
    table["share"] = 100.0 * table["total"] / whole if whole else 0.0
    table = table.sort_values("total", ascending=False, kind="stable")
    return table[list(columns)].reset_index(drop=True)


def _calls(trace: Trace, runs: Executions) -> pd.DataFrame:
    sums = Sums(("function", "reason", "call"), ("total",), largest="total")
    names: Any = []
    reasons: Any = []
    for piece in trace.pieces("cuda_api", ["start", "stop", "name", "task", "reason"]):
        names, reasons = piece["name"].cat.categories, piece["reason"].cat.categories
        took = np.where(piece["stop"] == -1, 0, piece["stop"] - piece["start"])
        codes = (piece[name].cat.codes.to_numpy() for name in ("reason", "name"))
        sums.add(_function(piece["task"], runs), *codes, took)
    table = pd.DataFrame(sums.columns()).rename(columns={"largest": "max"})
    table["function"] = _named(table["function"].to_numpy(), [*runs.functions, NO_TASK])
    table["call"] = _named(table["call"].to_numpy(), names)
    table["reason"] = _named(table["reason"].to_numpy(), reasons)
    return _finish_calls(table, CALLS)


def _os_calls(trace: Trace, runs: Executions) -> pd.DataFrame:
    used = trace.table("os_runtime_sums", ["task", "reason", "name", "count", "time", "longest"])
    table = pd.DataFrame(
        {
            "function": _function(used["task"], runs),
            "call": used["name"].cat.codes.to_numpy(),
            "reason": used["reason"].cat.codes.to_numpy(),
            "count": used["count"].to_numpy(np.int64),
            "total": used["time"].to_numpy(np.int64),
            "max": used["longest"].to_numpy(np.int64),
        }
    )
    table = (
        table.groupby(["function", "call", "reason"])
        .agg(count=("count", "sum"), total=("total", "sum"), max=("max", "max"))
        .reset_index()
    )
    table["function"] = _named(table["function"].to_numpy(), [*runs.functions, NO_TASK])
    table["call"] = _named(table["call"].to_numpy(), used["name"].cat.categories)
    table["reason"] = _named(table["reason"].to_numpy(), used["reason"].cat.categories)
    return _finish_calls(table, OS_CALLS)


def _finish_moved(table: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    seconds = table["total"] / 1e9
    table["throughput"] = (table["bytes"] / seconds).where(seconds > 0)
    table = table.sort_values("total", ascending=False, kind="stable")
    return table[list(columns)].reset_index(drop=True)


def _moved(trace: Trace, runs: Executions, name: str, strings: tuple[str, ...]) -> pd.DataFrame:
    """Sum copies or fills by function and some columns of strings."""
    sums = Sums(("function", *strings), ("bytes", "total"))
    categories: dict[str, Any] = dict.fromkeys(strings, ())
    for piece in trace.pieces(name, ["task", "bytes", "start", "stop", *strings]):
        categories = {string: piece[string].cat.categories for string in strings}
        codes = (piece[string].cat.codes.to_numpy() for string in strings)
        took = np.where(piece["stop"] == -1, 0, piece["stop"] - piece["start"])
        sums.add(_function(piece["task"], runs), *codes, piece["bytes"].to_numpy(np.int64), took)
    table = pd.DataFrame(sums.columns())
    table["function"] = _named(table["function"].to_numpy(), [*runs.functions, NO_TASK])
    for string in strings:
        table[string] = _named(table[string].to_numpy(), categories[string])
    return table


def _copies(trace: Trace, runs: Executions) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sum copies that calls launched, and migrations of unified memory."""
    table = _moved(trace, runs, "memcpys", ("kind", "source", "target", "cause"))
    unified = table["kind"].astype(str).str.startswith("unified")
    return (
        _finish_moved(_again(table[~unified], ["function", "kind", "source", "target"]), COPIES),
        _finish_moved(_again(table[unified], ["function", "kind", "cause"]), MIGRATIONS),
    )


def _again(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Sum sums by fewer columns."""
    grouped = table.groupby(by, dropna=False, sort=False)[["count", "bytes", "total"]]
    return grouped.sum().reset_index()


def _fills(trace: Trace, runs: Executions) -> pd.DataFrame:
    return _finish_moved(_moved(trace, runs, "memsets", ("memory",)), FILLS)


def _faults(trace: Trace, runs: Executions) -> pd.DataFrame:
    sums = Sums(("function", "where", "access"), ("faults", "total"))
    names: Any = []
    for piece in trace.pieces(
        "page_faults", ["on_gpu", "start", "stop", "count", "access", "task"]
    ):
        names = piece["access"].cat.categories
        took = np.where(piece["stop"] == -1, 0, piece["stop"] - piece["start"])
        codes = piece["on_gpu"].to_numpy(), piece["access"].cat.codes.to_numpy()
        sums.add(_function(piece["task"], runs), *codes, piece["count"].to_numpy(np.int64), took)
    table = pd.DataFrame(sums.columns())
    table["function"] = _named(table["function"].to_numpy(), [*runs.functions, NO_TASK])
    table["where"] = _named(table["where"].to_numpy(), ["CPU", "GPU"])
    table["access"] = _named(table["access"].to_numpy(), names)
    table = table.sort_values(["total", "faults"], ascending=False, kind="stable")
    return table[list(FAULTS)].reset_index(drop=True)


# --------------------------------------------------------------------------------- findings


def _severity(time: float, whole: int) -> Severity:
    return Severity.WARNING if 100.0 * time >= MUCH * whole else Severity.NOTICE


def _findings(trace: Trace, tables: dict[str, pd.DataFrame], whole: int) -> list[Finding]:
    """Find what costs time, the costliest first, and what holds memory.

    Parameters
    ----------
    tables
        Of the answer.
    whole
        Time of all tasks, ns, of the run where there is none.
    """
    rules = tables["rules"]
    ranked = []
    for rule in Rule:
        rows = rules[(rules["rule"] == str(rule)) & (rules["time"] > 0)]
        time = int(rows["time"].sum())
        if 100.0 * time < SOME * whole or not time:
            continue
        found = told_as_one(
            _severity(time, whole),
            "cuda",
            "rules",
            rows,
            f"functions lose {duration_text(time)} to: {rule}",
            lambda row, rule=rule: _clause(row, rule),  # type: ignore[misc]
            ABOUT[rule][2],
        )
        if rule not in (Rule.GAP, Rule.LOW):  # of those the tasks would not be shorter
            times = rows.groupby("function")["time"].sum().to_dict()
            told = causes(trace).less(f"waiting in calls: {rule}", times)
            found = [replace(one, **told) for one in found]
        ranked.append((time, found))
    moved = tables["migrations"]
    time = int(moved["total"].sum())
    if time and 100.0 * time >= SOME * whole:
        found = told_as_one(
            _severity(time, whole),
            "cuda",
            "migrations",
            moved,
            f"sorts of migrations of unified memory take {duration_text(time)}",
            lambda row: (
                f"Unified memory of {row['function']} was migrated {row['count']:,} time(s) "
                f"({row['kind']}, cause: {row['cause'] or 'not told'}), "
                f"{bytes_text(row['bytes'])} in {duration_text(row['total'])}"
            ),
            "Prefetch it with cudaMemPrefetchAsync, or allocate memory of the device (RMM without "
            "managed memory).",
        )
        ranked.append((time, found))
    ranked.sort(key=lambda one: -one[0])
    return [finding for _, some in ranked for finding in some] + _memory_findings(tables)


def _clause(row: dict[str, Any], rule: Rule) -> str:
    share = row["share"]
    of = f" ({share:.3g} % of its tasks' time)" if share is not None else ""
    cost = f"{duration_text(row['time'])}{of}"
    if rule in (Rule.GAP, Rule.LOW):
        use = "are" if rule is Rule.GAP else "are used little, and"
        whose = f"while {row['function']} runs, in {row['count']:,} task(s)"
        return f"GPUs {use} without work for {cost} {whose}"
    size = f" of {bytes_text(row['bytes'])}" if row["bytes"] else ""
    who = "what belongs to no task" if row["function"] == NO_TASK else row["function"]
    return f"{who} waits {cost} in {row['count']:,} call(s){size}: {rule}"


def _memory_findings(tables: dict[str, pd.DataFrame]) -> list[Finding]:
    memory, holders = tables["memory"], tables["memory_holders"]
    if not len(memory):
        return []

    def clause(row: dict[str, Any]) -> str:
        text = f"At its peak {bytes_text(row['peak'])} of {row['gpu']} were allocated"
        of_gpu = holders[holders["gpu"] == row["gpu"]]
        if len(of_gpu):  # none where all that was released is from before the recording
            first = of_gpu.iloc[0]
            text += f", {share_text(first['share'])} by {first['function']}"
        if row["unreleased"]:
            text += (
                f"; {row['unreleased']:,} allocation(s) of {bytes_text(row['unreleased_bytes'])} "
                "were not released within the recording"
            )
        if row["unknown_releases"]:
            text += (
                f"; {row['unknown_releases']:,} release(s) were of memory from before the "
                "recording, so that more was in use"
            )
        return text

    return told_as_one(
        Severity.NOTICE,
        "cuda",
        "memory",
        memory.sort_values("peak", ascending=False, kind="stable"),
        "GPUs with allocations",
        clause,
        "Table memory_holders says whose it was; a pool (RMM, CuPy) is one allocation whatever is "
        "in it.",
    )
