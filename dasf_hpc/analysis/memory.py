"""Analysis: what held the workers' memory, and what of it was in the way?

What workers hold is read from their transitions (module ``held``), what their processes take from
the samples of their nodes. Which results were put on disk Dask does not record, but

- how long a worker wrote while it took a result in, and how long it read what a task needs, where
  that took 5 ms and more; what its memory monitor writes, and reads for other workers, is in no
  record;
- that what a worker holds beyond what its process uses is not in memory. On a worker that is known
  to have used its disk, so much at least was there; of one with GPUs nothing is told, as what it
  holds may lie in theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.answer import Answer, Columns, Finding, Severity, costliest_first
from dasf_hpc.analysis.causes import SPILL, causes
from dasf_hpc.analysis.disk import without_false_reads
from dasf_hpc.analysis.executions import (
    UNKNOWN,
    Executions,
    Ints,
    Span,
    key_texts,
    read_executions,
    work_span,
    workers,
)
from dasf_hpc.analysis.held import ARRAYS, RECEIVED, Held, Steps, held, steps
from dasf_hpc.trace.open import Trace
from dasf_hpc.units import bytes_text, duration_text, moment_text, share_text

#: Moments at which table ``over_time`` tells what is held.
STEPS = 500
#: Copies are told of where they are this share of the most that the run held, and so many bytes.
COPIED_SHARE, COPIED = 0.1, 10_000_000
#: What outlives its last use is told of where it is this share of the most that was held, and kept
#: for this share of the time from first to last task in the mean, and that is this share of all of
#: its bytes and time, %.
KEPT_SHARE, KEPT_LONG, KEPT_MOST = 0.3, 0.05, 30.0
#: Memory that is no result is told of where it is this share of a worker's limit.
UNMANAGED = 0.4
#: It stays where at the end, in this last share of the samples, there is still so much of it.
ENDING, STAYS = 0.1, 0.75
#: How a worker's memory is short, where its next step is told.
MORE = "or give each worker more memory"

#: Who keeps a result.
SCRIPT, TASK = "the script", "a task that had not run yet"

PREFIXES: Columns = {
    "function": ("", "the function whose results they are"),
    "results": ("", "results that workers held, copies among them"),
    "peak": ("bytes", "the most that all workers held at once"),
    "peak_time": ("ns", "when that was"),
    "byte_seconds": ("GB s", "size times the time for which it was held, in sum"),
    "mean": ("ns", "for how long a result was held, mean"),
    "longest": ("ns", "the longest time for which one was held"),
    "copies": ("", "those that a worker received from another one"),
    "copied": ("bytes", "size of these"),
    "unsized": ("", "those of which the size is not known: they count as nothing"),
}
WORKERS: Columns = {
    "worker": ("", "the worker"),
    "node": ("", "its node"),
    "limit": ("bytes", "its memory limit; -1: none, or not known"),
    "peak": ("bytes", "the most it held in results (managed memory), on disk or not"),
    "peak_time": ("ns", "when that was"),
    "function": ("", "whose results were most of that"),
    "function_bytes": ("bytes", "size of these"),
    "process_peak": ("bytes", "the most memory its process used, as sampled; -1: not sampled"),
    "process_peak_time": ("ns", "when that was"),
    "share": ("%", "of its limit: the most its process used, or else held"),
    "unmanaged": (
        "bytes",
        "of what its process used then: what is no result of a task, at least; -1: not known",
    ),
    "on_disk": ("bytes", "the most that was on disk at once, at least; 0: nothing tells of any"),
}
PEAK: Columns = {
    "worker": ("", "the worker"),
    "node": ("", "its node"),
    "function": ("", "the function whose results it held"),
    "bytes": ("bytes", "size of these when all workers together held most"),
    "keys": ("", "how many they were"),
    "share": ("%", "of all that was held then"),
}
OVER_TIME: Columns = {
    "time": ("ns", "the moment in its interval at which all that is asked about held most"),
    "function": ("", "the function whose results they are"),
    "bytes": ("bytes", "size of what was held then"),
}
SPILLS: Columns = {
    "worker": ("", "the worker"),
    "node": ("", "its node"),
    "function": (
        "",
        "of what was written: whose results came into memory as others had to leave it; of what "
        "was read: whose results are most of what the tasks that had it read need",
    ),
    "writes": ("", "how often it wrote as such a result came"),
    "write_time": ("ns", "for how long, in sum"),
    "reads": ("", "tasks that had it read"),
    "read_time": ("ns", "for how long, in sum"),
    "read_bytes": ("bytes", "size of what these tasks needed and it held: at most that was read"),
    "again": ("", "results that several of these tasks needed"),
    "longest": ("ns", "the longest time from when such a result came to when it was read"),
}
DUPLICATES: Columns = {
    "function": ("", "the function whose results they are"),
    "keys": ("", "results that several workers held at once"),
    "most": ("", "workers that held one of them at once, at most"),
    "extra": ("bytes", "the most that all copies but the first took at once"),
    "start": ("ns", "when that was"),
    "byte_seconds": ("GB s", "size of these copies times the time for which they were held"),
    "largest": ("bytes", "size of the largest of them"),
    "example": ("", "key of the one whose copies took most"),
}
KEPT: Columns = {
    "function": ("", "the function whose results they are"),
    "holder": (
        "",
        f"for whom they were kept: {TASK}, or {SCRIPT} (a future, or a collection that it keeps), "
        "since all tasks that used them had ended",
    ),
    "results": ("", "results that were kept so"),
    "bytes": ("bytes", "the most of it at once"),
    "start": ("ns", "when that was"),
    "byte_seconds": ("GB s", "size times the time for which it was kept so"),
    "share": ("%", "of all of the function's"),
    "mean": ("ns", "how long a result was kept so, mean"),
    "longest": ("ns", "the longest time"),
}
_COLUMNS = {
    "prefixes": PREFIXES,
    "workers": WORKERS,
    "peak": PEAK,
    "over_time": OVER_TIME,
    "spills": SPILLS,
    "duplicates": DUPLICATES,
    "kept": KEPT,
}
_GB_S = 1e-18  # bytes times ns


def memory(trace: Trace, worker: str | None = None) -> Answer:
    """Say what workers held in memory, and what of it need not have been there.

    Parameters
    ----------
    trace
        The trace.
    worker
        A worker's name, with its node's before it or not, of which alone is to be told; all of
        them by default. Copies are told of all in any case.

    Returns
    -------
    Answer
        Tables ``prefixes``, the one with the most byte-seconds first, ``workers``, ``peak``,
        ``over_time``, ``spills``, ``duplicates`` and ``kept``.

    Raises
    ------
    ValueError
        If there is no such worker.

    Notes
    -----
    Sizes are as Dask sees them. Of what is told of one worker, times are of one clock; sums over
    workers of several hosts are exact but for their clocks' errors.
    """
    runs = read_executions(trace)
    found = workers(trace, runs)
    whole = held(trace)
    span = work_span(trace, runs)
    chosen = _chosen(found, worker)
    mine = whole
    if worker is not None:
        mine = _of_processes(whole, chosen)
        found = found.loc[chosen]
    all_steps = mine.steps()
    uses = last_uses(trace, runs, whole)
    samples = _samples(trace, found, mine)
    disk = _disk(trace, found)
    kept, states = _kept(mine, uses)
    spills = _spills(trace, runs, mine, found, disk)
    tables = {
        "prefixes": _prefixes(mine, all_steps),
        "workers": _workers(mine, found, samples, disk),
        "peak": _peak(mine, found, all_steps),
        "over_time": _over_time(mine, all_steps, span),
        "spills": spills,
        "duplicates": _duplicates(trace, whole),
        "kept": kept,
    }
    unanswered = _unanswered(trace, mine, samples)
    seen = _Seen(trace, mine, found, span, tables, samples, disk, states)
    return Answer("memory", tables, _COLUMNS, costliest_first(_findings(seen)), unanswered)


def worker_names(found: pd.DataFrame) -> dict[int, str]:
    """Give what workers are called where they are shown: node and name, by row of processes."""
    return {
        int(str(row)): f"{node} {name}"
        for row, node, name in zip(found.index, found["node"], found["worker"], strict=True)
    }


def _chosen(found: pd.DataFrame, worker: str | None) -> list[int]:
    if worker is None:
        return [int(row) for row in found.index]
    names = worker_names(found)
    rows = [
        row
        for row, name in names.items()
        if worker in (name, found.loc[row, "worker"], name.replace(" ", "/"))
    ]
    if not rows:
        known = ", ".join(list(names.values())[:8])
        raise ValueError(f"there is no worker {worker}; the workers are {known or 'none'}")
    return rows


def _of_processes(whole: Held, chosen: list[int]) -> Held:
    rows = np.isin(whole.process, chosen)
    return replace(whole, **{name: getattr(whole, name)[rows] for name in ARRAYS})


# ------------------------------------------------------------------------------- what is held


def _byte_time(nbytes: Ints, took: Ints, group: NDArray[Any], groups: int) -> NDArray[Any]:
    """Add up size times time of each group, GB s."""
    weight = nbytes.astype(np.float64) * took * _GB_S
    return np.bincount(group, weights=weight, minlength=groups)


def _by_group(group: NDArray[Any], groups: int) -> list[NDArray[Any]]:
    """Give the positions of each group, in their order."""
    sort = np.argsort(group, kind="stable")
    return np.split(sort, np.cumsum(np.bincount(group, minlength=groups))[:-1])


def _prefixes(mine: Held, all_steps: Steps) -> pd.DataFrame:
    width = len(mine.functions)
    took = mine.stop - mine.start
    count = np.bincount(mine.function, minlength=width)
    received = mine.how == RECEIVED
    longest = np.zeros(width, np.int64)
    np.maximum.at(longest, mine.function, took)
    spent = _byte_time(mine.nbytes, took, mine.function, width)
    copied = np.bincount(
        mine.function[received], weights=mine.nbytes[received], minlength=width
    ).astype(np.int64)
    peaks = [
        Steps(all_steps.time[rows], all_steps.change[rows], all_steps.group[rows]).peak()
        for rows in _by_group(all_steps.group, max(1, width))
    ]
    total = np.bincount(mine.function, weights=took, minlength=width)
    rows = [
        {
            "function": mine.functions[f],
            "results": int(count[f]),
            "peak": peaks[f][0],
            "peak_time": peaks[f][1],
            "byte_seconds": float(spent[f]),
            "mean": int(total[f] / count[f]),
            "longest": int(longest[f]),
            "copies": int(np.count_nonzero(received & (mine.function == f))),
            "copied": int(copied[f]),
            "unsized": int(np.count_nonzero(~mine.sized & (mine.function == f))),
        }
        for f in np.flatnonzero(count).tolist()
    ]
    return _sorted(rows, PREFIXES, "byte_seconds")


def _sorted(rows: list[dict[str, Any]], columns: Columns, by: str) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(columns))
    return table.sort_values(by, ascending=False, kind="stable").reset_index(drop=True)


@dataclass(frozen=True)
class Samples:
    """A worker's process as it was sampled.

    Attributes
    ----------
    time, used
        When, and how much memory it used, bytes.
    managed
        What the worker held then, bytes, on disk or not.
    """

    time: Ints
    used: Ints
    managed: Ints

    @property
    def on_disk(self) -> Ints:
        """How much of what the worker held was not in its memory, at least, bytes."""
        beyond: Ints = np.maximum(0, self.managed - self.used)
        return beyond


def _samples(trace: Trace, found: pd.DataFrame, mine: Held) -> dict[int, Samples]:
    """Give each worker's samples, with what it held at each."""
    parts = []
    for piece in trace.pieces("process_samples", ["time", "process", "memory"]):
        good = piece["process"].isin(found.index) & (piece["memory"] >= 0)
        parts.append(piece[good])
    table = pd.concat(parts) if parts else pd.DataFrame(columns=["time", "process", "memory"])
    result = {}
    groups = _by_process(mine)
    for row, own in table.groupby("process", sort=True):
        process = int(str(row))
        own = own.sort_values("time", kind="stable")
        time, used = own["time"].to_numpy(np.int64), own["memory"].to_numpy(np.int64)
        managed = np.zeros(len(time), np.int64)
        if process in groups:
            moments, total = mine.steps(groups[process]).moments()
            managed = np.concatenate([[0], total])[np.searchsorted(moments, time, "right")]
        result[process] = Samples(time, used, managed)
    return result


def worker_samples(
    trace: Trace, found: pd.DataFrame, whole: Held
) -> tuple[dict[int, Samples], set[int]]:
    """Give the samples of workers that have any, and the workers that used their disks.

    Parameters
    ----------
    trace
        The trace.
    found
        The workers, as `dasf_hpc.analysis.executions.workers` gives them.
    whole
        What they held.
    """
    disk = _disk(trace, found)
    return _samples(trace, found, whole), _on_disk(found, disk)


def _on_disk(found: pd.DataFrame, disk: pd.DataFrame) -> set[int]:
    """Give the workers that used their disks, and hold nothing in the memory of GPUs."""
    without = {int(str(row)) for row, gpus in found["gpus"].items() if not len(gpus)}
    return {int(row) for row in disk["process"].unique()} & without


def _by_process(mine: Held) -> dict[int, NDArray[np.intp]]:
    if not len(mine):
        return {}
    order = np.argsort(mine.process, kind="stable")
    processes, firsts = np.unique(mine.process[order], return_index=True)
    return dict(zip(processes.tolist(), np.split(order, firsts[1:]), strict=True))


def _workers(
    mine: Held, found: pd.DataFrame, samples: dict[int, Samples], disk: pd.DataFrame
) -> pd.DataFrame:
    groups = _by_process(mine)
    used_disk = _on_disk(found, disk)
    rows = []
    for row in found.to_dict("index").items():
        process, worker = int(str(row[0])), row[1]
        limit = int(worker["memory_limit"])
        own = groups.get(process, np.empty(0, np.intp))
        peak, peak_time = mine.steps(own).peak()
        function, function_bytes = "", -1
        if peak_time != -1:
            there = own[(mine.start[own] <= peak_time) & (mine.stop[own] > peak_time)]
            size = np.bincount(mine.function[there], weights=mine.nbytes[there])
            function, function_bytes = mine.functions[int(np.argmax(size))], int(size.max())
        process_peak, process_peak_time, unmanaged, on_disk = -1, -1, -1, 0
        if process in samples:
            taken = samples[process]
            at = int(np.argmax(taken.used))
            process_peak, process_peak_time = int(taken.used[at]), int(taken.time[at])
            unmanaged = max(0, int(taken.used[at] - taken.managed[at]))
            if process in used_disk:
                on_disk = int(taken.on_disk.max())
        if peak_time == -1 and process_peak < 0:
            continue
        most = process_peak if process_peak >= 0 else peak
        rows.append(
            {
                "worker": worker["worker"],
                "node": worker["node"],
                "limit": limit,
                "peak": peak,
                "peak_time": peak_time,
                "function": function,
                "function_bytes": function_bytes,
                "process_peak": process_peak,
                "process_peak_time": process_peak_time,
                "share": 100.0 * most / limit if limit > 0 else np.nan,
                "unmanaged": unmanaged,
                "on_disk": on_disk,
                "process": process,
            }
        )
    table = pd.DataFrame(rows, columns=[*WORKERS, "process"])
    order = table.assign(most=table["share"].fillna(-1.0)).sort_values(
        ["most", "peak"], ascending=False, kind="stable"
    )
    return order.drop(columns="most").reset_index(drop=True)


def _peak(mine: Held, found: pd.DataFrame, all_steps: Steps) -> pd.DataFrame:
    total, time = all_steps.peak()
    if time == -1:
        return pd.DataFrame(columns=list(PEAK))
    there = mine.at(time)
    width = max(1, len(mine.functions))
    group = mine.process[there].astype(np.int64) * width + mine.function[there]
    codes, pairs = pd.factorize(group)
    size = np.bincount(codes, weights=mine.nbytes[there]).astype(np.int64)
    keys = np.bincount(codes)
    rows = []
    for pair, nbytes, count in zip(pairs.tolist(), size.tolist(), keys.tolist(), strict=True):
        process, function = divmod(pair, width)
        known = process in found.index
        rows.append(
            {
                "worker": found.loc[process, "worker"] if known else UNKNOWN,
                "node": found.loc[process, "node"] if known else UNKNOWN,
                "function": mine.functions[function],
                "bytes": nbytes,
                "keys": count,
                "share": 100.0 * nbytes / total,
            }
        )
    return _sorted(rows, PEAK, "bytes")


def fullest(all_steps: Steps, start: int, stop: int, intervals: int) -> Ints:
    """Give the moment of each interval at which most is held, in their order.

    Parameters
    ----------
    all_steps
        What is held.
    start, stop
        The time that is cut into intervals, ns.
    intervals
        Into how many.

    Returns
    -------
    numpy.ndarray
        Moments; where nothing changes in an interval its begin.
    """
    edges = start + (stop - start) * np.arange(intervals) // intervals
    time, total = all_steps.moments()
    inside = (time > start) & (time < stop)
    # what is held at the begin of each is one of its moments
    before = np.concatenate([[0], total])[np.searchsorted(time, edges, "right")]
    moments = np.concatenate([edges, time[inside]])
    sums = np.concatenate([before, total[inside]])
    interval = np.searchsorted(edges, moments, "right") - 1
    order = np.lexsort((moments, -sums, interval))
    first = np.append(True, interval[order][1:] != interval[order][:-1])
    chosen: Ints = moments[order][first]
    return chosen


def shown_span(mine: Held, span: Span) -> Span:
    """Give the time over which memory is told of: from first task to last, and all that is held."""
    if not len(mine):
        return span
    return Span(
        min(span.start, int(mine.start.min())), max(span.stop, int(mine.stop.max()), span.start + 1)
    )


def _over_time(mine: Held, all_steps: Steps, span: Span) -> pd.DataFrame:
    if not len(mine):
        return pd.DataFrame(columns=list(OVER_TIME))
    shown = shown_span(mine, span)
    times = fullest(all_steps, shown.start, shown.stop, min(STEPS, max(1, shown.duration)))
    sums = all_steps.until(times, len(mine.functions))
    row, function = np.nonzero(sums)
    return pd.DataFrame(
        {
            "time": times[row],
            "function": np.array(mine.functions, object)[function],
            "bytes": sums[row, function],
        }
    )


# ------------------------------------------------------------------------------------ disk


def _disk(trace: Trace, found: pd.DataFrame) -> pd.DataFrame:
    """Give the recorded spans in which workers wrote to disk and read from there."""
    columns = ["start", "stop", "process", "key", "action"]
    parts = []
    for piece in trace.pieces("activities", columns):
        mine = piece["action"].isin(["disk-read", "disk-write"])
        part = without_false_reads(trace, piece[mine & piece["process"].isin(found.index)])
        took = (part["stop"] - part["start"]).clip(lower=0)
        parts.append(part.assign(read=part["action"] == "disk-read", took=took))
    return pd.concat(parts).drop(columns="action")


def _spills(
    trace: Trace, runs: Executions, mine: Held, found: pd.DataFrame, disk: pd.DataFrame
) -> pd.DataFrame:
    if not len(disk):
        return pd.DataFrame(columns=list(SPILLS))
    rows: dict[tuple[int, str], dict[str, Any]] = {}

    def of(process: int, function: str) -> dict[str, Any]:
        none: dict[str, Any] = dict.fromkeys(
            ("writes", "write_time", "reads", "read_time", "read_bytes", "again"), 0
        )
        return rows.setdefault((process, function), none | {"longest": -1, "_read": []})

    function_of = dict(zip(mine.key.tolist(), mine.function.tolist(), strict=True))
    writes = disk[~disk["read"]]
    names = [
        mine.functions[function_of[k]] if k in function_of else UNKNOWN
        for k in writes["key"].tolist()
    ]
    for (process, name), own in writes.assign(name=names).groupby(["process", "name"]):
        row = of(int(str(process)), str(name))
        row["writes"], row["write_time"] = len(own), int(own["took"].sum())
    reads = disk[disk["read"]]
    needs = _needs(trace, reads["key"].to_numpy(np.int64))
    places: dict[tuple[int, int], list[int]] = {}
    wanted = np.unique(np.concatenate([np.empty(0, np.int64), *map(np.asarray, needs.values())]))
    for i in np.flatnonzero(np.isin(mine.key, wanted)).tolist():
        places.setdefault((int(mine.process[i]), int(mine.key[i])), []).append(i)
    for one in reads.to_dict("records"):
        process, start = int(one["process"]), int(one["start"])
        there = [
            i
            for key in needs.get(int(one["key"]), ())
            for i in places.get((process, key), ())
            if mine.start[i] <= start < mine.stop[i]
        ]
        size: dict[int, int] = {}
        for i in there:
            size[int(mine.function[i])] = size.get(int(mine.function[i]), 0) + int(mine.nbytes[i])
        name = mine.functions[max(size, key=lambda f: size[f])] if size else UNKNOWN
        row = of(process, name)
        row["reads"] += 1
        row["read_time"] += int(one["took"])
        row["read_bytes"] += sum(size.values())
        row["_read"] += there
        row["longest"] = max([row["longest"], *(start - int(mine.start[i]) for i in there)])
    told = []
    for (process, name), row in rows.items():
        read = row.pop("_read")
        row["again"] = int((np.unique(read, return_counts=True)[1] > 1).sum()) if read else 0
        worker = found.loc[process]
        told.append({"worker": worker["worker"], "node": worker["node"], "function": name} | row)
    table = pd.DataFrame(told, columns=list(SPILLS))
    order = (table["write_time"] + table["read_time"]).sort_values(ascending=False, kind="stable")
    return table.loc[order.index].reset_index(drop=True)


def _needs(trace: Trace, keys: Ints) -> dict[int, list[int]]:
    """Give the keys whose results some tasks need."""
    found: dict[int, list[int]] = {}
    if len(keys):
        for piece in trace.pieces("dependencies", ["key", "dependency"]):
            some = piece[piece["key"].isin(keys)]
            for key, need in zip(some["key"].tolist(), some["dependency"].tolist(), strict=True):
                found.setdefault(int(key), []).append(int(need))
    return found


# ------------------------------------------------------------------------------- what is too much


def _duplicates(trace: Trace, whole: Held) -> pd.DataFrame:
    """Find results that several workers held at once."""
    count = np.bincount(whole.key) if len(whole) else np.empty(0, np.int64)
    some = np.flatnonzero(count[whole.key] > 1) if len(whole) else np.empty(0, np.intp)
    if not len(some):
        return pd.DataFrame(columns=list(DUPLICATES))
    key = whole.key[some].astype(np.int64)
    size = np.zeros(len(count), np.int64)
    np.maximum.at(size, key, whole.nbytes[some])
    time = np.concatenate([whole.start[some], whole.stop[some]])
    step = np.repeat(np.array([1, -1]), len(some))
    both = np.concatenate([key, key])
    # at one moment what leaves goes before what comes
    order = np.lexsort((step, time, both))
    time, step, both = time[order], step[order], both[order]
    new = np.append(True, both[1:] != both[:-1])
    held_by = np.cumsum(step)  # each key's steps add up to 0
    extra = np.maximum(0, held_by - 1)
    grown = np.diff(extra, prepend=0)
    grown[new] = extra[new]
    lasts = np.append(np.diff(time), 0)
    lasts[np.append(new[1:], True)] = 0
    function_of = np.zeros(len(count), np.int64)
    function_of[key] = whole.function[some]
    function = function_of[both]
    change, spent = grown * size[both], extra * size[both].astype(np.float64) * lasts * _GB_S
    by_key = np.bincount(both, weights=spent, minlength=len(count))
    copied = np.unique(both[extra > 0])
    rows = []
    for f in np.unique(function_of[copied]).tolist():
        own = np.flatnonzero(function == f)
        own = own[np.argsort(time[own], kind="stable")]
        most, when = Steps(time[own], change[own], function[own]).peak()
        keys = copied[function_of[copied] == f]
        worst = keys[np.argmax(by_key[keys])]
        rows.append(
            {
                "function": whole.functions[f],
                "keys": len(keys),
                "most": int(held_by[own].max()),
                "extra": most,
                "start": when,
                "byte_seconds": float(spent[own].sum()),
                "largest": int(size[keys].max()),
                "example": key_texts(trace, np.array([worst]))[0],
            }
        )
    return _sorted(rows, DUPLICATES, "byte_seconds")


@dataclass(frozen=True)
class Uses:
    """When tasks used results, by code of the key.

    Attributes
    ----------
    start, stop
        When the last task that needs it began, and when the last one ended; -1: none did.
    """

    start: Ints
    stop: Ints


def last_uses(trace: Trace, runs: Executions, whole: Held) -> Uses:
    """Find when each result was last used by a task."""
    top = int(max(whole.key.max(initial=-1), runs.key.max(initial=-1))) + 1
    begun, ended = np.full(max(1, top), -1, np.int64), np.full(max(1, top), -1, np.int64)
    keyed = runs.key >= 0
    np.maximum.at(begun, runs.key[keyed], runs.start[keyed])
    np.maximum.at(ended, runs.key[keyed], runs.stop[keyed])
    start, stop = np.full(max(1, top), -1, np.int64), np.full(max(1, top), -1, np.int64)
    for piece in trace.pieces("dependencies", ["key", "dependency"]):
        key, need = piece["key"].to_numpy(np.int64), piece["dependency"].to_numpy(np.int64)
        known = (key >= 0) & (key < top) & (need >= 0) & (need < top)
        np.maximum.at(start, need[known], begun[key[known]])
        np.maximum.at(stop, need[known], ended[key[known]])
    return Uses(start, stop)


@dataclass(frozen=True)
class _States:
    """When each hold waited for its last use to begin, and when that had ended.

    Attributes
    ----------
    waited_until, kept_from
        Trace time, ns, within the hold: it waits from its start, is kept to its stop.
    """

    waited_until: Ints
    kept_from: Ints


def _kept(mine: Held, uses: Uses) -> tuple[pd.DataFrame, _States]:
    """Tell for whom results were kept, and how long."""
    none = _States(mine.start, mine.stop)
    if not len(mine):
        return pd.DataFrame(columns=list(KEPT)), none
    waited = np.clip(uses.start[mine.key], mine.start, mine.stop)
    ended = np.clip(np.maximum(uses.stop[mine.key], waited), mine.start, mine.stop)
    states = _States(waited, ended)
    width = len(mine.functions)
    all_of = _byte_time(mine.nbytes, mine.stop - mine.start, mine.function, width)
    rows = []
    for holder, start, stop in ((TASK, mine.start, waited), (SCRIPT, ended, mine.stop)):
        took = stop - start
        some = np.flatnonzero(took > 0)
        spent = _byte_time(mine.nbytes[some], took[some], mine.function[some], width)
        for f, own in enumerate(_by_group(mine.function[some], width)):
            own = some[own]
            if not len(own) or not spent[f]:
                continue
            size, when = steps(start[own], stop[own], mine.nbytes[own], mine.function[own]).peak()
            rows.append(
                {
                    "function": mine.functions[f],
                    "holder": holder,
                    "results": len(own),
                    "bytes": size,
                    "start": when,
                    "byte_seconds": float(spent[f]),
                    "share": 100.0 * spent[f] / all_of[f],
                    "mean": int(took[own].mean()),
                    "longest": int(took[own].max()),
                }
            )
    return _sorted(rows, KEPT, "byte_seconds"), states


# -------------------------------------------------------------------------------------- findings


@dataclass(frozen=True)
class _Seen:
    """What findings are made of."""

    trace: Trace
    mine: Held
    found: pd.DataFrame
    span: Span
    tables: dict[str, pd.DataFrame]
    samples: dict[int, Samples]
    disk: pd.DataFrame
    states: _States

    def moment(self, time: int) -> str:
        return moment_text(time, self.span.start)

    @property
    def short(self) -> bool:
        """Whether a worker's memory was nearly full, or it used its disk."""
        share = self.tables["workers"]["share"]
        return bool(len(self.disk) or (share >= 100 * SPILL).any())


def _findings(seen: _Seen) -> list[Finding]:
    workers_table = seen.tables["workers"]
    found = [*_full(seen), *_copies(seen), *_outlived(seen), *_not_managed(seen)]
    seen.tables["workers"] = workers_table.drop(columns="process")
    return found


def _full(seen: _Seen) -> list[Finding]:
    """Tell of workers whose memory was nearly full, and with what."""
    table = seen.tables["workers"]
    spilled = table["process"].isin(seen.disk["process"])
    near = table[(table["peak"] > 0) & ((table["share"] >= 100 * SPILL) | spilled)]
    # one whose memory was full of something else is told of as that
    near = near[near["function_bytes"] * 2 >= near["unmanaged"]]
    if not len(near):
        return []
    near = near.sort_values("peak", ascending=False, kind="stable")
    worst = near.iloc[0]
    process = int(worst["process"])
    of_function = seen.mine.functions.index(str(worst["function"]))
    size, time = seen.mine.steps(
        (seen.mine.process == process) & (seen.mine.function == of_function)
    ).peak()
    limit = f" of {worst['node']} {worst['worker']}'s {bytes_text(worst['limit'])}"
    if worst["limit"] <= 0:
        limit = f" on {worst['node']} {worst['worker']}"
    why, step, stretch = _why_held(seen, process, str(worst["function"]), time)
    sentence = f"{worst['function']} holds {bytes_text(size)}{limit} at {seen.moment(time)}: {why}"
    if worst["on_disk"] > 0:
        sentence += f"; {bytes_text(worst['on_disk'])} and more of what it held was on disk"
    if len(near) > 1:
        sentence += f". {len(near)} workers are as full, or use their disks"
    place: dict[str, Any] = {"start": stretch.start, "stop": stretch.stop, "process": process}
    if len(seen.disk):
        told = causes(seen.trace).told("disk")
        place |= {"saves": told["saves"], "cause": told["cause"]}
    return [
        Finding(
            Severity.WARNING,
            "memory",
            "workers",
            tuple(int(row) for row in near.index[:100]),
            f"{sentence}.",
            step,
            **place,
        )
    ]


def _why_held(seen: _Seen, process: int, function: str, time: int) -> tuple[str, str, Span]:
    """Say why a worker holds a function's results at a moment, what to do, and for how long."""
    mine, states = seen.mine, seen.states
    there = mine.at(time)
    code = mine.functions.index(function)
    there = there[(mine.process[there] == process) & (mine.function[there] == code)]
    if not len(there):
        return "nothing tells why", f"Make {function}'s chunks smaller, {MORE}.", Span(time, time)
    what = f"its {len(there):,} results" if len(there) > 1 else "its result"
    start, stop, size = mine.start[there], mine.stop[there], mine.nbytes[there].astype(np.float64)
    waits, keeps = states.waited_until[there] - start, stop - states.kept_from[there]
    uses = stop - start - waits - keeps
    waited, kept, used = (float((size * took).sum()) for took in (waits, keeps, uses))
    if kept > max(waited, used):
        took = int(np.median(keeps))
        stretch = Span(int(states.kept_from[there].min()), int(stop.max()))
        return (
            f"the script keeps {what} for {duration_text(took)} after the last use",
            f"Let go of {function}'s futures (`del` them, or `release()`) or collections as soon "
            f"as what uses them is submitted, {MORE}.",
            stretch,
        )
    if waited > used:
        took = int(np.median(waits))
        stretch = Span(int(start.min()), int(states.waited_until[there].max()))
        return (
            f"{what} wait{'s' * (len(there) == 1)} {duration_text(took)} for the last use",
            f"Submit {function} in smaller batches, or have what reduces its results run as they "
            f"come; make its chunks smaller, {MORE}.",
            stretch,
        )
    return (
        f"tasks use {what} for most of the time from when it came to when it left"
        if len(there) == 1
        else f"tasks use {what} for most of the time from when they came to when they left",
        f"Make {function}'s chunks smaller, {MORE}.",
        Span(int(start.min()), int(stop.max())),
    )


def _copies(seen: _Seen) -> list[Finding]:
    """Tell of results that several workers hold at once."""
    table = seen.tables["duplicates"]
    most, _ = seen.mine.steps().peak()
    some = table[(table["extra"] >= COPIED) & (table["extra"] >= COPIED_SHARE * most)]
    some = some.sort_values("extra", ascending=False, kind="stable")
    found = []
    for row, one in list(some.iterrows())[:1]:
        keys = int(one["keys"])
        what = f"A result of {one['function']} ({bytes_text(one['largest'])})"
        if keys > 1:
            what = (
                f"{keys:,} results of {one['function']} (of {bytes_text(one['largest'])} and less)"
            )
        others = f" So are results of {len(some) - 1} more functions." if len(some) > 1 else ""
        found.append(
            Finding(
                Severity.WARNING if seen.short else Severity.NOTICE,
                "memory",
                "duplicates",
                (int(str(row)),),
                f"{what} {'are' if keys > 1 else 'is'} on up to {int(one['most'])} workers at "
                f"once: the copies take {bytes_text(one['extra'])} at "
                f"{seen.moment(int(one['start']))}.{others}",
                f"Have each task take only the part of {one['function']}'s result that it needs, "
                "run fewer workers with more threads each, or have tasks read it from storage.",
                start=int(one["start"]),
                stop=int(one["start"]) + 1,
                saves=-1 if seen.short else 0,
            )
        )
    return found


def _outlived(seen: _Seen) -> list[Finding]:
    """Tell of results that the script keeps long after their last use."""
    table = seen.tables["kept"]
    most, _ = seen.mine.steps().peak()
    table = table[
        (table["holder"] == SCRIPT)
        & (table["bytes"] >= KEPT_SHARE * most)
        & (table["bytes"] >= COPIED)
        & (table["mean"] >= KEPT_LONG * seen.span.duration)
        & (table["share"] >= KEPT_MOST)
    ]
    found = []
    for row, one in list(table.iterrows())[:1]:
        found.append(
            Finding(
                Severity.WARNING if seen.short else Severity.NOTICE,
                "memory",
                "kept",
                (int(str(row)),),
                f"{int(one['results']):,} results of {one['function']} stay in memory for "
                f"{duration_text(one['mean'])} in the mean after the last task that uses them: "
                f"{bytes_text(one['bytes'])} at {seen.moment(int(one['start']))}, held by the "
                "script.",
                f"Let go of {one['function']}'s futures (`del` them, or `release()`) or persisted "
                "collections once nothing will use them.",
                start=int(one["start"]),
                stop=int(one["start"]) + int(one["mean"]),
                saves=-1 if seen.short else 0,
            )
        )
    return found


def _not_managed(seen: _Seen) -> list[Finding]:
    """Tell of memory that is no result."""
    table = seen.tables["workers"]
    much = table[(table["limit"] > 0) & (table["unmanaged"] >= UNMANAGED * table["limit"])]
    if not len(much):
        return []
    much = much.sort_values("unmanaged", ascending=False, kind="stable")
    one = much.iloc[0]
    taken = seen.samples[int(one["process"])]
    time, size = int(one["process_peak_time"]), int(one["unmanaged"])
    unmanaged = np.maximum(0, taken.used - taken.managed)
    ending = unmanaged[-max(1, int(ENDING * len(unmanaged))) :]
    stays = len(unmanaged) * ENDING >= 1 and int(ending.min()) >= STAYS * size
    names = _ran_at(seen, int(one["process"]), time)
    if stays:
        why = "it stays to the end: fragmentation, or a leak in what ran there"
        step = (
            "Set `MALLOC_TRIM_THRESHOLD_=0` for the workers (--env), and look for what tasks keep: "
            "module-level caches, open files, references in globals."
        )
    else:
        why = f"what tasks use while they run{f', as {names} then' if names else ''}"
        step = (
            f"Make the chunks that {names or 'these tasks'} work on smaller, run fewer threads a "
            f"worker, {MORE}."
        )
    others = f" So it is on {len(much)} workers." if len(much) > 1 else ""
    return [
        Finding(
            Severity.WARNING,
            "memory",
            "workers",
            tuple(int(row) for row in much.index[:100]),
            f"Memory of {bytes_text(size)} ({share_text(100 * size / one['limit'])} of the limit) "
            f"on {one['node']} {one['worker']} at {seen.moment(time)} is no result of a task: "
            f"{why}.{others}",
            step,
            start=time,
            stop=time + 1,
            process=int(one["process"]),
        )
    ]


def _ran_at(seen: _Seen, process: int, time: int) -> str:
    """Name the functions that a worker executed at a moment."""
    runs = read_executions(seen.trace)
    ran = (runs.process == process) & (runs.start <= time) & (runs.stop > time)
    return ", ".join(sorted({runs.functions[f] for f in runs.function[ran].tolist()})[:3])


def _unanswered(trace: Trace, mine: Held, samples: dict[int, Samples]) -> list[str]:
    if not mine.transitions:
        return ["What workers did with their tasks was not recorded in this run."]
    told = []
    unsized = int((~mine.sized).sum())
    if unsized:
        told.append(f"Sizes of results: of {unsized:,} of {len(mine):,} they were not recorded.")
    if not trace.rows("dependencies") and len(mine):
        told.append("Last uses of results: no dependency was recorded.")
    if not samples:
        told.append("Memory of the workers' processes: it was not sampled in this run.")
    return told
