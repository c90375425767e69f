"""Show, what the report draws: a run of any length as numbers that fit into a page.

The timeline of a short run holds each execution. That of a long one holds the longest of them, and
for each worker the share of its threads that was busy, and with what most of the time, in thousands
of bins: a zoom shows more of it, down to a bin's width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.answer import Answer
from dasf_hpc.analysis.executions import (
    Executions,
    Span,
    in_lanes,
    run_span,
    workers,
)
from dasf_hpc.show.counters import COUNTERS, Counter, curves_of, level_means
from dasf_hpc.trace.gpus import gpu_names
from dasf_hpc.trace.names import natural, node_names
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.own_axis import gpus_apart
from dasf_hpc.trace.schema import TABLES

#: Executions drawn one by one.
EXACT = 20_000

#: Bins of all workers together, and of one; a bin takes two bytes before compression.
CELLS, MOST_BINS = 1 << 20, 1 << 14

#: Functions with a colour of their own: a palette that everybody can tell apart has no more.
COLOURED = 7

#: Points of a curve over time, and curves drawn singly; of more the mean and the extremes are.
POINTS, CURVES = 600, 6

#: Bins of a GPU's row.
GPU_BINS = 4096

#: Segments of the critical path that are drawn, the longest ones.
SEGMENTS = 2000

#: Digits of a share between 0 and 1 in strings of one character a bin; a space stands for none.
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

Floats = NDArray[np.float64]


def timeline(trace: Trace, executions: Executions, path: Answer | None = None) -> dict[str, Any]:
    """Give the timeline: rows of workers and GPUs, their bins, and single executions.

    Parameters
    ----------
    trace
        The trace.
    executions
        Its executions, with functions and threads.
    path
        What the analysis of the critical path gave, to be drawn as a row of its own.

    Returns
    -------
    dict
        For JSON. Times are us from the beginning of the run: ``length``; ``functions``: names, the
        first `COLOURED` of which have a colour; ``rows``; ``bins``: their number; ``exact``:
        columns of single executions; ``whole``: whether these are all; ``path``: segments.
    """
    span = run_span(trace, executions)
    table = in_order(workers(trace, executions))
    row_of = np.full(max(table.index.max() + 1, 1) if len(table) else 1, -1, np.int64)
    row_of[table.index.to_numpy()] = np.arange(len(table))
    order = by_time_spent(executions)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    whole = len(executions) <= EXACT
    bins = 0 if whole else min(MOST_BINS, CELLS // max(1, len(table)))
    rows: list[dict[str, Any]] = [
        {"name": f"{w['node']} {w['worker']}", "kind": "worker", "lanes": w["threads"]}
        for w in table.to_dict("records")
    ]
    lane = lanes(executions)
    used = np.zeros(len(row_of), np.int64)
    np.maximum.at(used, executions.process, lane + 1)
    for row, process in zip(rows, table.index, strict=True):
        row["lanes"] = max(row["lanes"], int(used[process]))
    if bins:
        colour = np.minimum(rank, COLOURED)[executions.function]
        threads = np.array([row["lanes"] for row in rows])
        width = max(1.0, span.duration / bins)
        begin, end = ((t - span.start) / width for t in (executions.start, executions.stop))
        texts = _binned(begin, end, row_of[executions.process], colour, threads, bins)
        for drawn, text in zip(rows, texts, strict=True):
            drawn |= text
    rows += _gpu_rows(trace, span)
    return {
        "length": _us(span.duration),
        "functions": [executions.functions[code] for code in order],
        "rows": rows,
        "bins": bins,
        "whole": whole,
        "exact": _exact(trace, executions, row_of, rank, lane, span, whole),
        "path": _path(path, span),
    }


def busy_workers(
    trace: Trace, executions: Executions, bins: int
) -> list[tuple[str, dict[str, str]]]:
    """Give each worker's name and its bins over the whole run, as `timeline` gives a long run's."""
    table = in_order(workers(trace, executions))
    if not len(table) or not len(executions):
        return []
    span = run_span(trace, executions)
    row_of = np.full(max(table.index.max(), executions.process.max()) + 1, -1, np.int64)
    row_of[table.index.to_numpy()] = np.arange(len(table))
    order = by_time_spent(executions)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    row = row_of[executions.process]
    known = row >= 0
    width = max(1.0, span.duration / bins)
    begin, end = (
        np.clip((times[known] - span.start) / width, 0, bins)
        for times in (executions.start, executions.stop)
    )
    colour = np.minimum(rank, COLOURED)[executions.function[known]]
    threads = np.maximum(table["threads"].to_numpy(), 1)
    names = [f"{w['node']} {w['worker']}" for w in table.to_dict("records")]
    texts = _binned(begin, end, row[known], colour, threads, bins)
    return list(zip(names, texts, strict=True))


def by_time_spent(executions: Executions) -> NDArray[np.intp]:
    """Give the codes of functions, the one that took most time first."""
    spent = np.bincount(
        executions.function, executions.duration, minlength=len(executions.functions)
    )
    return np.argsort(-spent, kind="stable")


def _us(ns: Any) -> Any:
    return ns // 1000


def lanes(executions: Executions) -> NDArray[np.int64]:
    """Give each execution its thread's number among those of its process, from 0."""
    order, firsts = in_lanes(executions)
    found = np.zeros(len(executions), np.int64)
    seen: dict[int, int] = {}
    for first, last in zip(firsts[:-1].tolist(), firsts[1:].tolist(), strict=True):
        process = int(executions.process[order[first]])
        found[order[first:last]] = seen[process] = seen.get(process, -1) + 1
    return found


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Sort workers by node and name, numbers in names by their value."""
    names = [
        (natural(node), natural(worker), row)
        for node, worker, row in zip(table["node"], table["worker"], table.index, strict=True)
    ]
    return table.loc[[row for _, _, row in sorted(names)]]


def _binned(
    begin: Floats,
    end: Floats,
    row: NDArray[np.integer[Any]],
    colour: NDArray[np.integer[Any]],
    threads: NDArray[np.integer[Any]],
    bins: int,
) -> list[dict[str, str]]:
    """Give for each row its bins: the share of busy threads, and what most of them were at.

    Parameters
    ----------
    begin, end
        When each execution began and ended, in widths of a bin.
    row, colour
        The row and the colour of each.
    threads
        How many threads each row has.
    bins
        Their number.
    """
    narrow = row.astype(np.uint16) if len(threads) < 1 << 16 else row
    order = np.argsort(narrow, kind="stable")
    firsts = np.searchsorted(narrow[order], np.arange(len(threads) + 1))
    texts = []
    for number, count in enumerate(threads.tolist()):  # one by one they stay in the caches
        mine = order[firsts[number] : firsts[number + 1]]
        filled = _filled(begin[mine], np.minimum(end[mine], bins), colour[mine], bins)
        most = filled.argmax(axis=0)
        letters = (most + ord("0")).astype(np.uint8).tobytes().decode()
        texts.append({"busy": _digits(filled.sum(axis=0) / count), "most": letters})
    return texts


def _filled(begin: Floats, end: Floats, colour: NDArray[np.integer[Any]], bins: int) -> Floats:
    """Give how much of each bin executions of each colour fill, in sum."""
    colours = COLOURED + 1
    first = np.clip(begin.astype(np.int64), 0, bins - 1)
    last = np.clip(end.astype(np.int64), 0, bins - 1)
    cell = colour * (bins + 1)
    size = colours * (bins + 1)
    # what an execution fills of its first and last bin, and 1 for each between: a sum of steps
    inside = first == last
    filled: Floats = np.zeros(size)
    filled += np.bincount(cell + first, np.where(inside, end - begin, first + 1 - begin), size)
    filled += np.bincount((cell + last)[~inside], (end - last)[~inside], size)
    steps = np.bincount((cell + first + 1)[~inside], minlength=size).astype(np.float64)
    steps -= np.bincount((cell + last)[~inside], minlength=size)
    filled = filled.reshape(colours, bins + 1)
    filled += np.cumsum(steps.reshape(filled.shape), axis=1)
    return filled[:, :bins]


def _digits(shares: Floats) -> str:
    """Write shares as a character each; what is more than nothing never becomes 0."""
    none = ~np.isfinite(shares)
    top = len(DIGITS) - 1
    digits = np.clip(np.ceil(np.where(none, 0, shares) * top - 0.01), 0, top).astype(np.int64)
    letters = np.frombuffer((DIGITS + " ").encode(), np.uint8)
    return letters[np.where(none, top + 1, digits)].tobytes().decode()


def _exact(
    trace: Trace,
    executions: Executions,
    row_of: NDArray[np.int64],
    rank: NDArray[np.int64],
    lane: NDArray[np.int64],
    span: Span,
    whole: bool,
) -> dict[str, Any]:
    """Give the longest executions, or all, column by column, in order of start."""
    chosen = np.arange(len(executions))
    if not whole:
        chosen = np.argpartition(-executions.duration, EXACT)[:EXACT]
    chosen = chosen[np.argsort(executions.start[chosen], kind="stable")]
    start = executions.start[chosen] - span.start
    columns: dict[str, Any] = {
        "task": chosen,
        "row": row_of[executions.process[chosen]],
        "lane": lane[chosen],
        "start": _us(start),
        "took": _us(executions.duration[chosen]),
        "function": rank[executions.function[chosen]],
        "state": executions.state[chosen],
        "nbytes": executions.nbytes[chosen],
    }
    found = {name: column.tolist() for name, column in columns.items()}
    if whole:
        keys = trace.table("tasks", ["key"])["key"].reindex(chosen)
        found["key"] = ["" if pd.isna(key) else str(key) for key in keys]
    return found | {"states": executions.states}


def _gpu_rows(trace: Trace, span: Span) -> list[dict[str, Any]]:
    """Give each GPU's share of time with a kernel: from the kernels, where there are any."""
    samples = trace.gpu_samples
    rows = []
    kernels = _kernels(trace, span)
    numbered = sorted(enumerate(gpu_names(trace)), key=lambda gpu: natural(gpu[1]))
    apart = gpus_apart(trace)
    for number, name in numbered:
        if number in apart:  # it has no place on the run's time
            continue
        if number in kernels:
            rows.append({"name": name, "kind": "gpu", "lanes": 1, "busy": kernels[number]})
            continue
        own = samples[samples["gpu"] == number]
        bins = int(np.clip(len(own), 1, 4 * POINTS))
        mean = _means(own["time"].to_numpy(), own["utilization"].to_numpy(), span, bins)
        rows.append({"name": name, "kind": "gpu", "lanes": 1, "busy": _digits(mean / 100)})
    return rows


def _kernels(trace: Trace, span: Span) -> dict[int, str]:
    """Give, for each GPU of which kernels were recorded, the share of each bin that they fill."""
    if "kernels" not in TABLES or not trace.rows("kernels"):
        return {}
    pieces = list(trace.pieces("kernels", ["gpu", "start", "stop"]))
    gpu, start, stop = (
        np.concatenate([piece[column].to_numpy() for piece in pieces]).astype(np.int64)
        for column in ("gpu", "start", "stop")
    )
    known = (gpu >= 0) & (gpu < trace.rows("gpus")) & (stop >= start) & (start != -1)
    gpu, start, stop = gpu[known], start[known], stop[known]
    width = max(1.0, span.duration / GPU_BINS)
    begin, end = (np.clip((t - span.start) / width, 0, GPU_BINS) for t in (start, stop))
    one = np.ones(trace.rows("gpus"), np.int64)
    texts = _binned(begin, end, gpu, np.zeros_like(gpu), one, GPU_BINS)
    return {int(number): texts[number]["busy"] for number in np.unique(gpu)}


def _means(times: NDArray[Any], values: NDArray[Any], span: Span, bins: int) -> Floats:
    """Give the mean of the values in each of so many parts of the run, NaN where there is none."""
    good = np.isfinite(values) & (values >= 0)
    place = (times[good] - span.start) * bins // max(1, span.duration)
    place = np.clip(place, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    total = np.bincount(place, values[good].astype(np.float64), bins)
    mean: Floats = np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)
    return mean


def _path(answer: Answer | None, span: Span) -> dict[str, Any]:
    """Give the critical path's longest segments in order of time."""
    if answer is None or not len(answer.tables.get("path", ())):
        return {}
    path = answer.tables["path"].nlargest(SEGMENTS, "duration").sort_values("start")
    return {
        "start": _us(path["start"] - span.start).tolist(),
        "took": _us(path["duration"]).tolist(),
        "kind": [str(kind) for kind in path["kind"]],
        "function": [str(f) if isinstance(f, str) else "" for f in path["function"]],
        "worker": [str(w) if isinstance(w, str) else "" for w in path["worker"]],
    }


# ---------------------------------------------------------------------------------- curves


def curves(trace: Trace, executions: Executions) -> list[dict[str, Any]]:
    """Give what is drawn over time, each a chart: title, unit, points, and one or more curves.

    Curves of which the run has no sample are left out.
    """
    span = run_span(trace, executions)
    table = workers(trace, executions)
    names = [f"{w['node']} {w['worker']}" for w in table.to_dict("records")]
    of_worker = dict(zip(table.index.tolist(), names, strict=True))
    gpus = dict(enumerate(gpu_names(trace)))
    nodes = dict(enumerate(node_names(trace)))
    charts = [_executing(executions, table, span)]
    for title, unit, source, owner, column, owners in (
        ("CPU of the nodes", "%", "node_samples", "node", "cpu", nodes),
        ("Memory in use on the nodes", "bytes", "node_samples", "node", "memory_used", nodes),
        ("Memory of the workers", "bytes", "process_samples", "process", "memory", of_worker),
        ("GPU utilisation", "%", "gpu_samples", "gpu", "utilization", gpus),
        ("GPU memory in use", "bytes", "gpu_samples", "gpu", "memory_used", gpus),
        ("GPU power", "W", "gpu_samples", "gpu", "power", gpus),
        ("From the network", "bytes/s", "node_samples", "node", "network_received", nodes),
        ("Read from disks", "bytes/s", "node_samples", "node", "disk_read", nodes),
        ("Written to disks", "bytes/s", "node_samples", "node", "disk_written", nodes),
    ):
        samples = trace.table(source, ["time", owner, column])
        charts.append(_chart(title, unit, samples, owner, column, owners, span))
    owners_of = {"gpu": gpus, "node": nodes, "process": of_worker}
    for counter in COUNTERS:
        charts += _counter_charts(trace, counter, owners_of[counter.owner], span)
    return [chart for chart in charts if chart["curves"]]


def _executing(executions: Executions, table: pd.DataFrame, span: Span) -> dict[str, Any]:
    """Draw how many threads execute: what of each part of the run executions fill."""
    width = max(1.0, span.duration / POINTS)
    edges = span.start + np.arange(POINTS + 1) * width
    starts, stops = np.sort(executions.start), np.sort(executions.stop)

    def filled(times: NDArray[Any]) -> Floats:
        """Give the time that lies, in sum, between each of `times` and each edge after it."""
        sums = np.concatenate([[0.0], np.cumsum((times - span.start).astype(np.float64))])
        count = np.searchsorted(times, edges, "right")
        before: Floats = count * (edges - span.start) - sums[count]
        return before

    busy = np.diff(filled(starts) - filled(stops)) / width
    chart = _drawn("Threads that execute tasks", "", {"executing": busy} if len(starts) else {})
    chart["top"] = int(table["threads"].sum()) if len(table) else 0
    return chart


def _counter_charts(
    trace: Trace, counter: Counter, owners: dict[int, str], span: Span
) -> list[dict[str, Any]]:
    """Draw curves of a table of samples, a chart each title that the report is to have."""
    drawn = []
    found = [c for c in curves_of(trace, counter) if c.apart < 0] if counter.charts else []
    for title in counter.charts:
        own: dict[str, Floats] = {}
        these = [curve for curve in found if curve.title == title and curve.owner in owners]
        lengths = [len(curve.times) for curve in these] or [0]
        bins = int(np.clip(np.median(lengths) // 2, 1, POINTS))
        for curve in these:
            if counter.cumulative:  # it is known in every part of the run
                whole = max(1, span.duration) / POINTS
                means = level_means(curve.times, curve.values, span.start, whole, POINTS)
            else:
                means = _means(curve.times, curve.values, span, bins)
            own[owners[curve.owner]] = means
        own = {name: own[name] for name in sorted(own, key=natural)}
        drawn.append(_drawn(title, these[0].unit if these else "", own))
    return drawn


def _chart(
    title: str,
    unit: str,
    samples: pd.DataFrame,
    owner: str,
    column: str,
    owners: dict[int, str],
    span: Span,
) -> dict[str, Any]:
    """Draw a column of samples by its owner; one that counts up is drawn as its rate."""
    rate, own = unit == "bytes/s", {}
    groups = list(samples.groupby(owner, sort=True))
    lengths = [len(rows) for _, rows in groups] or [0]
    bins = int(np.clip(np.median(lengths) // 2, 1, POINTS))
    for code, rows in groups:
        name = owners.get(int(str(code)))
        times, values = rows["time"].to_numpy(), rows[column].to_numpy().astype(np.float64)
        if rate and len(times) > 1:
            took = np.maximum(np.diff(times), 1) / 1e9
            grown = np.diff(values)
            known = (values[1:] >= 0) & (values[:-1] >= 0)
            times, values = times[1:], np.where(known, grown / took, np.nan)
        elif rate:
            continue
        means = _means(times, values, span, bins)
        if name is not None and np.isfinite(means).any():
            own[name] = means
    return _drawn(title, unit, {name: own[name] for name in sorted(own, key=natural)})


def _drawn(title: str, unit: str, own: dict[str, Floats]) -> dict[str, Any]:
    """Give a chart of each curve, or of the mean and the extremes of many."""
    chart: dict[str, Any] = {"title": title, "unit": unit, "curves": [], "band": None}
    if len(own) > CURVES:
        every = np.vstack(list(own.values()))
        known = np.asarray(np.isfinite(every).any(axis=0))
        every = every[:, known]
        band = {}
        for name, reduce in (("least", np.nanmin), ("most", np.nanmax), ("mean", np.nanmean)):
            whole = np.full(len(known), np.nan)
            whole[known] = reduce(every, axis=0)
            band[name] = whole
        chart["band"] = [_rounded(band["least"]), _rounded(band["most"])]
        own = {f"mean of {len(own)}": band["mean"]}
    chart["curves"] = [{"name": name, "values": _rounded(v)} for name, v in own.items()]
    return chart


def _rounded(values: Floats) -> list[float | None]:
    """Give four digits of each, None for what is not there: more cannot be seen."""
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in values.tolist()]
