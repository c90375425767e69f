"""Analysis: how much memory of GPUs was allocated when, and for which functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dasf_hpc.analysis.answer import Columns
from dasf_hpc.analysis.executions import Executions, Ints, run_span
from dasf_hpc.trace.open import Trace

#: Intervals of the table over time, for each GPU at most.
INTERVALS = 500

MEMORY: Columns = {
    "gpu": ("", "the GPU"),
    "peak": ("bytes", "most memory that was allocated at once; of allocations in the recording"),
    "peak_time": ("ns", "when"),
    "sampled_peak": ("bytes", "largest sample of the memory in use, by all processes"),
    "allocations": ("", "allocations"),
    "allocated": ("bytes", "size of all of them"),
    "unreleased": ("", "allocations that were never released in the recording"),
    "unreleased_bytes": ("bytes", "size of these"),
    "unknown_releases": ("", "releases of memory that was allocated before the recording"),
}
HOLDERS: Columns = {
    "gpu": ("", "the GPU"),
    "function": ("", "the function whose tasks allocated it"),
    "at_peak": ("bytes", "of the memory that was allocated at the peak"),
    "share": ("%", "of that peak"),
    "allocations": ("", "its allocations"),
    "allocated": ("bytes", "size of all of them"),
    "unreleased_bytes": ("bytes", "of the memory that was never released in the recording"),
}
OVER_TIME: Columns = {
    "time": ("ns", "the interval begins"),
    "gpu": ("", "the GPU"),
    "allocated": ("bytes", "most memory that was allocated at once in it"),
    "sampled": ("bytes", "largest sample of the memory in use in it, by all processes"),
}


def allocated(
    trace: Trace, runs: Executions, gpus: list[str], no_task: str
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Say how much memory was allocated on each GPU.

    A release counts only with its allocation, so that no sum falls below 0.

    Parameters
    ----------
    trace, runs
        The trace and its executions with functions.
    gpus
        Names of the GPUs.
    no_task
        What stands for allocations of no known task.

    Returns
    -------
    tables
        With columns `MEMORY`, `HOLDERS` and `OVER_TIME`.
    """
    events = trace.table("gpu_allocations", ["gpu", "start", "other", "bytes", "task"])
    events = events[(events["gpu"] >= 0) & (events["gpu"] < len(gpus))]
    samples = trace.table("gpu_samples", ["time", "gpu", "memory_used"])
    samples = samples[samples["memory_used"] >= 0]
    names = [*runs.functions, no_task]
    span = run_span(trace, runs)
    length = max(1, -(-span.duration // INTERVALS))
    memory, holders, over_time = [], [], []
    for gpu in sorted(events["gpu"].unique().tolist()):
        own = {n: events[n].to_numpy(np.int64)[events["gpu"] == gpu] for n in events.columns}
        sampled = samples[samples["gpu"] == gpu]
        given = own["bytes"] > 0
        start, end, size = (own[name][given] for name in ("start", "other", "bytes"))
        times, level = levels(start, end, size)
        top = int(np.argmax(level))
        peak, moment = int(level[top]), int(times[top])
        left = end == -1
        memory.append(
            {
                "gpu": gpus[gpu],
                "peak": peak,
                "peak_time": moment,
                "sampled_peak": sampled["memory_used"].max() if len(sampled) else None,
                "allocations": len(size),
                "allocated": int(size.sum()),
                "unreleased": int(left.sum()),
                "unreleased_bytes": int(size[left].sum()),
                "unknown_releases": int(((own["bytes"] < 0) & (own["other"] == -1)).sum()),
            }
        )
        held = (start <= moment) & (left | (end > moment))
        task = own["task"][given]
        known = (task >= 0) & (task < len(runs))
        function = np.full(len(task), len(names) - 1)
        function[known] = runs.function[task[known]]
        table = pd.DataFrame(
            {
                "function": function,
                "at_peak": np.where(held, size, 0),
                "allocations": 1,
                "allocated": size,
                "unreleased_bytes": np.where(left, size, 0),
            }
        )
        table = table.groupby("function").sum().reset_index()
        table["function"] = [names[code] for code in table["function"]]
        table["share"] = 100.0 * table["at_peak"] / max(peak, 1)
        table["gpu"] = gpus[gpu]
        holders.append(table.sort_values("at_peak", ascending=False, kind="stable"))
        over_time.append(_over_time(gpus[gpu], times, level, sampled, length))
    empty = pd.DataFrame(columns=list(HOLDERS)), pd.DataFrame(columns=list(OVER_TIME))
    whole = (
        pd.concat(parts, ignore_index=True) if parts else none
        for parts, none in zip((holders, over_time), empty, strict=True)
    )
    of_functions, in_time = whole
    return (
        pd.DataFrame(memory, columns=list(MEMORY)),
        of_functions[list(HOLDERS)],
        in_time[list(OVER_TIME)],
    )


def levels(start: Ints, end: Ints, size: Ints) -> tuple[Ints, Ints]:
    """Give how much was allocated after each event.

    Parameters
    ----------
    start, end, size
        Of each allocation; an end of -1 is none.

    Returns
    -------
    time, level
        At least one; what ends when something else begins ends first.
    """
    ended = end != -1
    times = np.concatenate([start, end[ended]])
    change = np.concatenate([size, -size[ended]])
    # an allocation that ends when it began is no more than a moment, but begins before it ends
    when = np.concatenate([np.zeros(len(start)), np.where(end[ended] > start[ended], -1, 1)])
    order = np.lexsort((when, times))
    if not len(order):
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    return times[order], np.cumsum(change[order])


def _over_time(
    gpu: str, times: Ints, level: Ints, sampled: pd.DataFrame, length: int
) -> pd.DataFrame:
    """Give the most of each interval in which something changed or was sampled."""
    place: Any = times // length
    first = np.flatnonzero(np.append(True, place[1:] != place[:-1]))
    before = np.append(0, level)[first]
    most = np.maximum(np.maximum.reduceat(level, first), before)
    table = pd.DataFrame({"allocated": most}, index=place[first] * length)
    if len(sampled):
        of = sampled.groupby(sampled["time"] // length * length)["memory_used"].max()
        table = table.reindex(table.index.union(of.index))
        after = pd.Series(level[np.append(first[1:], len(level)) - 1], index=place[first] * length)
        filled = after.reindex(table.index).ffill().fillna(0)
        table["allocated"] = table["allocated"].fillna(filled).astype("int64")
        table["sampled"] = of.reindex(table.index)
    else:
        table["sampled"] = None
    table["gpu"] = gpu
    table.index.name = "time"
    return table.reset_index()
