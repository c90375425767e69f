"""Show, what a page draws over time: samples and counters as curves of a few hundred points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.executions import Executions, Span, run_span, workers
from dasf_hpc.show.counters import COUNTERS, Counter, curves_of, level_means
from dasf_hpc.trace.gpus import gpu_names
from dasf_hpc.trace.names import natural, node_names
from dasf_hpc.trace.open import Trace

#: Points of a curve, and curves drawn singly; of more the mean and the extremes are.
POINTS, CURVES = 600, 6

Floats = NDArray[np.float64]


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
                means = sampled_means(curve.times, curve.values, span, bins)
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
        means = sampled_means(times, values, span, bins)
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


def sampled_means(times: NDArray[Any], values: NDArray[Any], span: Span, bins: int) -> Floats:
    """Give the mean of the values in each of so many parts of the run, NaN where there is none."""
    good = np.isfinite(values) & (values >= 0)
    place = (times[good] - span.start) * bins // max(1, span.duration)
    place = np.clip(place, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    total = np.bincount(place, values[good].astype(np.float64), bins)
    mean: Floats = np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)
    return mean
