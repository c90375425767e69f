"""Analysis: did the workers share the work evenly?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.answer import (
    EVIDENCE,
    WORST,
    Answer,
    Columns,
    Finding,
    Severity,
    costliest_first,
)
from dasf_hpc.analysis.cause import Cause
from dasf_hpc.analysis.causes import Causes, causes
from dasf_hpc.analysis.executions import (
    Executions,
    Span,
    group_sums,
    read_executions,
    work_span,
    workers,
)
from dasf_hpc.analysis.slow_workers import STRAGGLER, slowdowns, stragglers
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import duration_text, share_text

#: Intervals of the table over time, at most.
INTERVALS = 200
#: An imbalance is named from this factor, ...
UNEVEN = 1.2
#: ... where it costs this share of the run.
LOST_SHARE = 0.05
#: What costs this share of it is serious.
SERIOUS_SHARE = 0.2
#: Stragglers in the table, at most.
STRAGGLERS = 100
WORKERS: Columns = {
    "worker": ("", "the worker"),
    "node": ("", "the host"),
    "threads": ("", "threads that run tasks"),
    "count": ("", "executions"),
    "failed": ("", "executions that ended in an error, or never"),
    "busy": ("ns", "time in executions, in sum over its threads"),
    "busy_share": ("%", "of its threads' time from the run's first task to its last"),
    "first_start": ("ns", "its first execution begins; -1: none"),
    "last_stop": ("ns", "its last execution ends; -1: none"),
    "bytes_out": ("bytes", "size of its results"),
    "slowdown": (
        "",
        "over all functions: executing time over what its tasks take in the median of all",
    ),
}
OVER_TIME: Columns = {
    "time": ("ns", "the interval begins"),
    "worker": ("", "the worker"),
    "started": ("", "executions that began in it"),
    "finished": ("", "executions that ended in it"),
    "busy": ("ns", "time in executions, in sum over the worker's threads"),
    "held": ("", "results the worker has in memory at its end; -1: not recorded"),
}
TASKS: Columns = {
    "task": ("", "row of table tasks"),
    "key": ("", "code of the task's key: a row of dictionary keys; -1: not known"),
    "function": ("", "name of the function"),
    "worker": ("", "the worker"),
    "node": ("", "the host"),
    "start": ("ns", "when it began"),
    "duration": ("ns", "time of the execution"),
    "median": ("ns", "median of its function"),
    "ratio": ("", "duration over median"),
    "excess": ("ns", "duration minus median"),
}
SUMMARY: Columns = {
    "workers": ("", "workers"),
    "busiest": ("ns", "executing time a thread of the busiest worker"),
    "mean": ("ns", "mean executing time a thread"),
    "factor": ("", "busiest over mean: 1 is even"),
    "lost": ("ns", "busiest minus mean: what an even share would save at most"),
}


def balance(trace: Trace, interval: int | None = None) -> Answer:
    """Say how evenly the workers shared the work, and who held the others up.

    Parameters
    ----------
    trace
        The trace.
    interval
        Length of an interval of table ``over_time``, ns; by default so that there are 200 at most.

    Returns
    -------
    Answer
        Tables ``workers``, ``over_time`` (dasf-core's task_balance), ``stragglers``, ``summary``.

    Notes
    -----
    The factor is the load imbalance of L. DeRose, B. Homer, D. Johnson, "Detecting application
    load imbalance on high end massively parallel systems", Euro-Par 2007: the longest over the
    mean; longest minus mean is the time it costs.
    """
    runs = read_executions(trace, ("prefix", "key", "state", "nbytes"))
    found = workers(trace, runs)
    columns = {"workers": WORKERS, "over_time": OVER_TIME, "stragglers": TASKS, "summary": SUMMARY}
    if not len(runs):
        empty = {name: pd.DataFrame(columns=list(c)) for name, c in columns.items()}
        return Answer("balance", empty, columns, [], ["No task was executed in this run."])
    table = _workers(runs, found)
    work = Span(int(runs.start.min()), int(runs.stop.max()))
    table["busy_share"] = (
        100.0 * table["busy"] / (table["threads"] * work.duration) if work.duration else 0.0
    )
    table = table[list(WORKERS)]
    long = _stragglers(runs, found, work)
    mean_per_thread = table["busy"].sum() / max(1, table["threads"].sum())
    busiest = (table["busy"] / table["threads"]).max() if len(table) else 0
    summary = pd.DataFrame(
        [
            {
                "workers": len(table),
                "busiest": round(busiest),
                "mean": round(mean_per_thread),
                "factor": busiest / mean_per_thread if mean_per_thread else float("nan"),
                "lost": round(busiest - mean_per_thread),
            }
        ]
    )
    unanswered = []
    if not trace.rows("memory"):
        unanswered.append("Results held in memory: no change of a worker's memory was recorded.")
    return Answer(
        "balance",
        {
            "workers": table,
            "over_time": _over_time(trace, runs, found, interval),
            "stragglers": long,
            "summary": summary,
        },
        columns,
        _findings(causes(trace), table, long, summary, work),
        unanswered,
    )


def _workers(runs: Executions, found: pd.DataFrame) -> pd.DataFrame:
    slots = int(found.index.max()) + 1 if len(found) else 1
    process = runs.process
    busy = group_sums(process, runs.duration, slots)
    first = np.full(slots, np.iinfo(np.int64).max)
    last = np.full(slots, -1, np.int64)
    np.minimum.at(first, process, runs.start)
    np.maximum.at(last, process, runs.stop)
    rows = found.index.to_numpy()
    figures = pd.DataFrame(
        {
            "count": np.bincount(process, minlength=slots),
            "failed": np.bincount(process[runs.in_state("error", "lost")], minlength=slots),
            "busy": busy,
            "first_start": np.where(last >= 0, first, -1),
            "last_stop": last,
            "bytes_out": group_sums(process, np.maximum(runs.nbytes, 0), slots),
            "slowdown": slowdowns(runs, slots),
        }
    ).iloc[rows]
    table = pd.concat([found[["worker", "node", "threads"]], figures], axis=1)
    return table.reset_index(drop=True)


def interval_of(span: Span) -> int:
    """Give the length of an interval, ns: 1, 2 or 5 times a power of ten, at least 1 ms."""
    for exponent in range(6, 18):
        for step in (1, 2, 5):
            length: int = step * 10**exponent
            if span.duration <= length * INTERVALS:
                return length
    return max(1, span.duration)


def _over_time(
    trace: Trace, runs: Executions, found: pd.DataFrame, interval: int | None
) -> pd.DataFrame:
    span = work_span(trace, runs)
    length = interval or interval_of(span)
    bins = span.duration // length + 1
    place = np.full(int(found.index.max()) + 1 if len(found) else 1, -1, np.int64)
    place[found.index.to_numpy()] = np.arange(len(found))
    count = len(found)
    lane = place[runs.process] * bins
    begin_bin = (runs.start - span.start) // length
    end_bin = (runs.stop - span.start) // length
    begin, end = lane + begin_bin, lane + end_bin
    cells = max(1, count * bins)
    started = np.bincount(begin, minlength=cells)[: count * bins].reshape(count, bins)
    finished = np.bincount(end, minlength=cells)[: count * bins].reshape(count, bins)
    # what an execution leaves of its first interval, less what is left of its last one
    begun = (begin_bin + 1) * length + span.start - runs.start
    ended = (end_bin + 1) * length + span.start - runs.stop
    part = group_sums(begin, begun, cells) - group_sums(end, ended, cells)
    open_before = np.cumsum(started - finished, axis=1) - (started - finished)
    busy = part[: count * bins].reshape(count, bins) + open_before * length
    return pd.DataFrame(
        {
            "time": np.tile(span.start + np.arange(bins) * length, count),
            "worker": pd.Categorical.from_codes(
                np.repeat(np.arange(count), bins), pd.RangeIndex(count)
            ).rename_categories(dict(enumerate(_unique(found["worker"].tolist())))),
            "started": started.ravel(),
            "finished": finished.ravel(),
            "busy": busy.ravel(),
            "held": _held(trace, place, span, length, count, bins).ravel(),
        }
    )


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def _held(
    trace: Trace, place: NDArray[np.int64], span: Span, length: int, count: int, bins: int
) -> NDArray[np.int64]:
    """Give the keys that each worker has in memory at the end of each interval."""
    held = np.full(count * bins, -1, np.int64)
    if not trace.rows("memory"):
        return held.reshape(count, bins)
    for piece in trace.pieces("memory", ["time", "process", "tasks"]):
        time, process = piece["time"].to_numpy(), piece["process"].to_numpy()
        known = (process >= 0) & (process < len(place)) & (time >= span.start)
        time, process = time[known], process[known]
        cell = np.minimum((time - span.start) // length, bins - 1)
        lane = place[process]
        inside = lane >= 0
        # the rows of a process stand in the order of time, so that its last one in a cell stays
        held[(lane * bins + cell)[inside]] = piece["tasks"].to_numpy()[known][inside]
    table = held.reshape(count, bins)
    at = np.maximum.accumulate(np.where(table >= 0, np.arange(bins), -1), axis=1)
    filled: NDArray[np.int64] = np.where(
        at >= 0, np.take_along_axis(table, np.maximum(at, 0), axis=1), 0
    )
    return filled


def _stragglers(runs: Executions, found: pd.DataFrame, work: Span) -> pd.DataFrame:
    rows, usual = stragglers(runs, work.duration)
    rows, usual = rows[:STRAGGLERS], usual[:STRAGGLERS]
    duration = runs.duration
    names, nodes = found["worker"].to_dict(), found["node"].to_dict()
    return pd.DataFrame(
        {
            "task": rows,
            "key": runs.key[rows],
            "function": pd.Series([runs.functions[f] for f in runs.function[rows]], dtype=str),
            "worker": pd.Series([names[p] for p in runs.process[rows].tolist()], dtype=str),
            "node": pd.Series([nodes[p] for p in runs.process[rows].tolist()], dtype=str),
            "start": runs.start[rows],
            "duration": duration[rows],
            "median": usual,
            "ratio": duration[rows] / np.maximum(usual, 1),
            "excess": duration[rows] - usual,
        }
    )


def _findings(
    known: Causes,
    table: pd.DataFrame,
    stragglers: pd.DataFrame,
    summary: pd.DataFrame,
    work: Span,
) -> list[Finding]:
    places = {int(str(row)): place for place, row in enumerate(known.savings.found.index)}
    slow = known.of("slow")
    found = [
        Finding(
            Severity.SERIOUS if cause.saves >= SERIOUS_SHARE * work.duration else Severity.WARNING,
            "balance",
            "workers",
            tuple(places[worker] for worker in _slow_workers(cause)[:EVIDENCE]),
            _slow_sentence(cause),
            _slow_step(cause),
            **cause.told,
        )
        for cause in slow
    ]
    factor, lost = float(summary["factor"].iloc[0]), int(summary["lost"].iloc[0])
    if factor >= UNEVEN and lost >= LOST_SHARE * work.duration:
        busiest = int((table["busy"] / table["threads"]).to_numpy().argmax())
        # where nothing is left to share once slow workers are mended, that is why
        explained = bool(slow) and not known.of("uneven")
        serious = lost >= SERIOUS_SHARE * work.duration and not explained
        found.append(
            Finding(
                Severity.SERIOUS if serious else Severity.WARNING,
                "balance",
                "workers",
                (busiest,),
                f"The work is uneven: {table['worker'].iloc[busiest]} on "
                f"{table['node'].iloc[busiest]} is busy {factor:.2f} times as long as the mean; an "
                f"even share would save up to {duration_text(lost)} "
                f"({share_text(100 * lost / work.duration)} of the time from first task to last).",
                "Make more and smaller tasks (chunks), or tasks of equal size.",
                **(slow[0].told if explained else known.told("uneven")),
            )
        )
    if len(stragglers):
        worst = stragglers.iloc[0]
        found.append(
            Finding(
                Severity.WARNING if known.of("stragglers") else Severity.NOTICE,
                "balance",
                "stragglers",
                tuple(range(len(stragglers))),
                f"{len(stragglers)} task{'s take' if len(stragglers) > 1 else ' takes'} "
                f"{STRAGGLER:.0f} times the median of the function or more; the worst, of "
                f"{worst['function']} on {worst['worker']} ({worst['node']}), takes "
                f"{duration_text(worst['duration'])} instead of {duration_text(worst['median'])}.",
                "See what differs in their inputs or on their nodes.",
                **known.told("stragglers"),
            )
        )
    return costliest_first(found)


def _slow_workers(cause: Cause) -> list[int]:
    figures = cause.figures
    return [figures["worker"]] if "worker" in figures else list(figures["workers"])


def _slow_sentence(cause: Cause) -> str:
    figures = cause.figures
    if "workers" in figures:
        *most, last = figures["worst"]
        return f"{cause.words}, most of all {', '.join(most)} and {last}."
    if "slowdown" in figures:
        return (
            f"{cause.words}: its tasks take {figures['slowdown']:.2f} times what the same "
            "functions take elsewhere."
        )
    sentence = (
        f"{cause.words}: {'tasks' if figures['function'] else 'tasks of ' + figures['example']} "
        f"take {duration_text(figures['median'])} there, {duration_text(figures['others'])} "
        f"elsewhere (medians, {figures['median'] / max(1, figures['others']):.2f} times)"
    )
    if more := figures["functions"][1:]:
        named = more[:WORST]
        if len(more) > WORST:
            named.append(f"{len(more) - WORST} more")
        sentence += f"; likewise {', '.join(named)}"
    return sentence + "."


def _slow_step(cause: Cause) -> str:
    figures = cause.figures
    if "workers" in figures:
        return "See whether their nodes are of another kind, or shared with other jobs."
    if figures["same_node"]:
        return (
            f"{figures['same_node']} on the same node is not: look at what runs beside this worker,"
            " or what the function does there."
        )
    return "Look at the node's CPU, memory and GPU clocks, or exclude it."
