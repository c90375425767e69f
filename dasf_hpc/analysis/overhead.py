"""Analysis: what did the recording itself cost?

How often something was recorded is counted in the trace. What one record costs is not in it: it is
timed when this is asked, on the machine that asks, with the functions that a worker calls (module
``recording_cost``), and given as a range, from caches that are warm, as in no worker, to cold ones.
Measured in the run is how long a task's thread was between the task's times and the NVTX range in
them. What could not be looked at has no number but a reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dasf_hpc.analysis.answer import Answer, Columns, Finding, Severity
from dasf_hpc.analysis.executions import Ints, read_executions
from dasf_hpc.analysis.recording_cost import Cost, time_recording
from dasf_hpc.nsight.join import COMPUTE_DOMAIN
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import duration_text, share_text

#: The cost is named from this share of the executing time, %.
NAMED_SHARE = 1.0

#: What the last row is called.
ALL = "all, for each task"
#: What ranges around tasks are called.
RANGES = "NVTX ranges around tasks"
#: Samples of Python's calls.
STACKS = "call stacks"
#: And CUDA's calls.
CALLS = "CUDA calls under nsys"

COSTS: Columns = {
    "what": ("", "what was recorded"),
    "count": ("", "how often; absent where it is not known"),
    "each_low": ("ns", "cost of one at least: with the processor's caches warm"),
    "each_high": ("ns", "cost of one, about, with cold caches, as between a worker's tasks"),
    "time_low": ("ns", "in sum over all threads and event loops, at least"),
    "time_high": ("ns", "the same with cold caches"),
    "share_low": ("%", "of the executing time of all tasks, at least"),
    "share_high": ("%", "the same with cold caches"),
    "how": ("", "how it is known, or why it is not"),
}

_TIMED = "counted in this run; timed on this machine, not on the run's nodes, warm to cold"
_RANGES = (
    "at least: tasks' time outside their range, measured in this run (median); in addition, at "
    "most: the call without nsys, timed on this machine with cold caches"
)

_SAMPLES = (
    "counted in this run; timed on this machine, not on the run's nodes, with one thread to look "
    "at: warm, to cold with the wake-up; a thread of its own does it, which needs the GIL meanwhile"
)

#: What is recorded of some tasks: how it is called, its table, and what it is timed as.
_RECORDED = (
    ("transitions", "transitions", "transition"),
    ("dependencies", "dependencies", "dependency"),
    ("activities", "activities", "activity"),
    ("transfers", "transfers", "transfer"),
    ("reschedules", "reschedules", "reschedule"),
)


@dataclass(frozen=True)
class _Row:
    """What was recorded: how often and what one costs, None where it is not known."""

    what: str
    count: int | None
    cost: Cost | None
    how: str

    def time(self, end: str) -> int | None:
        """Give what all cost, ns: the ``low`` end, or the ``high`` one."""
        if self.count is None or self.cost is None:
            return None
        return round(self.count * (self.cost.low if end == "low" else self.cost.high))


def overhead(trace: Trace) -> Answer:
    """Say what recording the run cost its workers, from the least to about the most.

    Returns
    -------
    Answer
        Table ``costs``; its last row is the sum, its costs of one those of one execution. Rows of
        what is not known have no numbers.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    runs = read_executions(trace)
    if not len(runs):
        empty = {"costs": pd.DataFrame(columns=list(COSTS))}
        return Answer(
            "overhead", empty, {"costs": COSTS}, [], ["No task was executed in this run."]
        )
    timed: dict[str, Cost] = {}
    how = _TIMED
    try:
        timed = time_recording()
    except OSError as error:
        how = f"counted in this run; its cost cannot be timed on this machine: {error}"
    rows = [_Row("starts and stops of tasks", len(runs), timed.get("execution"), how)]
    for what, table, kind in _RECORDED:
        if count := trace.rows(table):
            rows.append(_Row(what, count, timed.get(kind), how))
    lags = _range_lags(trace, runs.start, runs.stop)
    if isinstance(lags, str):
        rows.append(_Row(RANGES, None, None, f"not known: {lags}"))
    else:
        count, lag = lags
        more = timed["range"].high if "range" in timed else 0.0
        how = _RANGES if more else f"{_RANGES.partition(';')[0]}; nvtx cannot be timed here"
        rows.append(_Row(RANGES, count, Cost(lag, lag + more), how))
    calls = "a report does not tell; compare with a run of --no-nsys (`dasf-hpc compare`)"
    if count := trace.rows("call_samples"):
        rows.append(_Row(STACKS, count, timed.get("sample"), _SAMPLES if timed else how))
    if count := trace.rows("cuda_api"):
        rows.append(_Row(CALLS, count, None, f"not told: {calls}"))
    costs = _table(rows, len(runs), int(runs.duration.sum()))
    unanswered = [] if not isinstance(lags, str) else [f"{RANGES}: {lags}."]
    unanswered += [
        f"What nsys costs inside CUDA calls: {calls}.",
        "What the recording costs the node besides: its recorder is a process of its own, which "
        "samples the node and writes the journals; a worker looks every 0.1 s for what it sent.",
    ]
    return Answer(
        "overhead", {"costs": costs}, {"costs": COSTS}, _findings(costs, len(runs)), unanswered
    )


def _table(rows: list[_Row], executions: int, executing: int) -> pd.DataFrame:
    """Make a table of what was recorded, and of the sum."""
    times = {end: [row.time(end) for row in rows] for end in ("low", "high")}
    whole = {
        end: sum(time for time in of if time is not None) if any(of) else None
        for end, of in times.items()
    }
    table = pd.DataFrame(
        {
            "what": [*(row.what for row in rows), ALL],
            "count": pd.array([*(row.count for row in rows), executions], dtype="Int64"),
            "how": [*(row.how for row in rows), "the sum of what is known"],
        }
    )
    for end, time in times.items():
        each = [getattr(row.cost, end) if row.cost else np.nan for row in rows]
        total = whole[end]
        table[f"each_{end}"] = [*each, np.nan if total is None else total / executions]
        column = pd.array([*time, total], dtype="Int64")
        table[f"time_{end}"] = column
        shares = 100.0 * column.to_numpy(np.float64, na_value=np.nan)
        table[f"share_{end}"] = shares / executing if executing else np.nan
    return table[list(COSTS)]


def _findings(table: pd.DataFrame, executions: int) -> list[Finding]:
    whole = table.iloc[-1]
    if not whole["share_high"] >= NAMED_SHARE:
        return []
    return [
        Finding(
            Severity.WARNING if whole["share_low"] >= NAMED_SHARE else Severity.NOTICE,
            "overhead",
            "costs",
            (len(table) - 1,),
            f"Recording cost {duration_text(whole['each_low'])} to "
            f"{duration_text(whole['each_high'])} a task (timed on this machine, caches warm to "
            f"cold), {share_text(whole['share_low'])} to {share_text(whole['share_high'])} of the "
            f"executing time of {executions:,} short task{'s' * (executions != 1)}.",
            "Make larger tasks; Dask itself costs more than this for each of them.",
        )
    ]


def _range_lags(trace: Trace, start: Ints, stop: Ints) -> tuple[int, float] | str:
    """Give how many ranges are around tasks, and how long a task is outside its range, ns.

    That is the median: a thread may wait for the GIL there. A range lies in its task's times, which
    are read before it begins and after it ends. Where there are none, the reason is given.
    """
    if not trace.rows("reports") and not trace.rows("nvtx_ranges"):
        return "no Nsight report was joined to this run"
    columns = ["task", "start", "stop", "domain"]
    found: list[Ints] = []
    for piece in trace.pieces("nvtx_ranges", columns):
        task = piece["task"].to_numpy(np.int64)
        begun, ended = (piece[name].to_numpy(np.int64) for name in ("start", "stop"))
        own = (task >= 0) & (task < len(start)) & (ended >= 0)
        own &= (piece["domain"] == COMPUTE_DOMAIN).to_numpy()
        longer = (stop[task[own]] - start[task[own]]) - (ended - begun)[own]
        found.append(longer[longer >= 0])
    lags = np.concatenate(found)
    if not len(lags):
        return "no range in the joined reports is around a task of this run"
    return len(lags), float(np.median(lags))
