"""Show, tables of samples as curves over time: what they are of, their names, thinned where long.

`COUNTERS` lists the tables. One more is one line there: it then is a counter in Perfetto and
Chrome, and a chart of the report where the line names one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.own_axis import reports_apart

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Values of a curve that are drawn; of more samples the means of so many intervals of equal length.
MOST = 5000

#: Rows of a table that are in memory at once.
ROWS_AT_ONCE = 1 << 18

#: Names of measures in pictures; metrics that are none of them have nsys's own names.
MEASURES: Mapping[str, str] = {
    "sm_active": "SMs active",
    "sm_issue": "SM issue",
    "tensor_active": "tensor cores active",
    "compute_warps": "compute warps",
    "unused_warps": "free places for warps",
    "gpu_active": "GPU active",
    "gr_active": "compute engine active",
    "dram_read": "GPU memory read",
    "dram_write": "GPU memory written",
    "nvlink_rx": "NVLink received",
    "nvlink_tx": "NVLink sent",
    "pcie_rx": "PCIe received",
    "pcie_tx": "PCIe sent",
    "gpc_clock": "SM clock",
    "sys_clock": "system clock",
}


@dataclass(frozen=True)
class Counter:
    """A table of samples that can be drawn.

    Attributes
    ----------
    table
        Its name; it has columns ``report`` and those named here.
    owner
        Column that says whose samples they are: ``gpu``, ``node`` or ``process``.
    value
        Column of the values.
    title, unit
        Name and unit of the curves; where `metric` is set, the metric's.
    time, stop
        Columns of when a sample begins and, if it stands for a stretch, ends.
    series
        Columns that tell an owner's curves apart; their values come before the title.
    metric
        Column of rows of ``metrics``: a curve each measure.
    measures_only
        Whether metrics that are no measure are left out.
    charts
        Titles of curves that the report draws, too.
    """

    table: str
    owner: str
    value: str
    title: str = ""
    unit: str = ""
    time: str = "start"
    stop: str | None = None
    series: tuple[str, ...] = ()
    metric: str | None = None
    measures_only: bool = False
    charts: tuple[str, ...] = ()


COUNTERS: tuple[Counter, ...] = (
    Counter(
        "gpu_metrics",
        "gpu",
        "value",
        stop="stop",
        metric="metric",
        measures_only=True,
        charts=tuple(
            MEASURES[name]
            for name in ("sm_active", "tensor_active", "dram_read", "dram_write", "nvlink_rx")
        ),
    ),
    Counter("nic_metrics", "node", "value", stop="stop", series=("nic", "port"), metric="metric"),
)


@dataclass(frozen=True)
class Curve:
    """A curve of one owner.

    Attributes
    ----------
    owner
        Row of the owner's table.
    apart
        Row of the report on whose own axis its times are, -1: they are the trace's.
    title, unit
        What is drawn.
    times, values
        From when on which value holds; in order of time.
    """

    owner: int
    apart: int
    title: str
    unit: str
    times: Ints
    values: Floats


def curves_of(trace: Trace, counter: Counter, most: int = MOST) -> list[Curve]:
    """Give the curves of a table, none where the trace lacks it.

    Parameters
    ----------
    trace
        The trace.
    counter
        The table.
    most
        Values of a curve at most.
    """
    if not trace.rows(counter.table):
        return []
    lines: dict[tuple[Any, ...], _Line] = {}
    for key, rows in _parts(trace, counter):
        lines.setdefault(key, _Line()).look(rows)
    for key, rows in _parts(trace, counter):
        lines[key].add(rows, most)
    metrics = trace.table("metrics") if counter.metric else pd.DataFrame()
    together: dict[tuple[Any, ...], list[_Line]] = {}
    for (owner, apart, metric, *series), line in lines.items():
        title, unit = counter.title, counter.unit
        if counter.metric:
            if not 0 <= metric < len(metrics):
                continue
            told = metrics.iloc[metric]
            if counter.measures_only and told["measure"] not in MEASURES:
                continue
            title = MEASURES.get(told["measure"], str(told["name"]))
            unit = told["unit"] if isinstance(told["unit"], str) else ""
        before = " ".join(str(part) for part in series if part not in (None, -1))
        together.setdefault((owner, apart, f"{before} {title}".strip(), unit), []).append(line)
    found = []
    for (owner, apart, title, unit), parts in together.items():
        times, values = _summed([line.curve() for line in parts])
        placed = times >= 0  # pictures begin at 0
        if placed.any():
            found.append(Curve(owner, apart, title, unit, times[placed], values[placed]))
    return found


def _parts(trace: Trace, counter: Counter) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Give the rows of each curve, or of each metric of it, a piece of the table after another."""
    apart = list(reports_apart(trace))
    keys = [counter.owner, "report", *([counter.metric] if counter.metric else [])]
    times = [counter.time, *([counter.stop] if counter.stop else [])]
    columns = list(dict.fromkeys([*keys, *counter.series, *times, counter.value]))
    for piece in trace.pieces(counter.table, columns, ROWS_AT_ONCE):
        piece["report"] = piece["report"].where(piece["report"].isin(apart), -1)
        code = np.zeros(len(piece), np.int64)
        for name in (*keys, *counter.series):
            _, inverse = np.unique(_codes(piece[name]), return_inverse=True)
            code = code * (int(inverse.max(initial=0)) + 1) + inverse
        _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
        rows = pd.DataFrame(
            {
                "start": piece[counter.time].to_numpy(np.int64),
                "stop": piece[times[-1]].to_numpy(np.int64),
                "value": piece[counter.value].to_numpy(np.float64),
            }
        )
        order = np.argsort(inverse, kind="stable")
        cuts = np.searchsorted(inverse[order], np.arange(len(first) + 1))
        for number, row in enumerate(first.tolist()):
            one = piece.iloc[row]
            metric = int(one[counter.metric]) if counter.metric else -1
            series = [_plain(one[name]) for name in counter.series]
            key = (int(one[counter.owner]), int(one["report"]), metric, *series)
            yield key, rows.iloc[order[cuts[number] : cuts[number + 1]]]


def _codes(column: pd.Series[Any]) -> NDArray[Any]:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy()
    return column.to_numpy()


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    return value if isinstance(value, str) else int(value)


@dataclass
class _Line:
    """The samples of a curve, as means of intervals where there are too many."""

    count: int = 0
    first: int = 0
    last: int = 0
    _kept: list[tuple[Ints, Floats]] = field(default_factory=list)
    _weight: Floats | None = None
    _sum: Floats | None = None

    def look(self, rows: pd.DataFrame) -> None:
        """Take notice of samples, in order of time."""
        if not self.count:
            self.first = int(rows["start"].iloc[0])
        self.last = max(self.last, int(rows["stop"].max()))
        self.count += len(rows)

    def add(self, rows: pd.DataFrame, most: int) -> None:
        """Take samples of which all were looked at before."""
        start, stop, value = (rows[name].to_numpy() for name in ("start", "stop", "value"))
        if self.count <= most:
            self._kept.append((start, value))
            return
        if self._weight is None or self._sum is None:
            self._weight, self._sum = np.zeros(most), np.zeros(most)
        middle = start + (stop - start) // 2
        width = max(1, -(-(self.last - self.first + 1) // most))
        place = np.clip((middle - self.first) // width, 0, most - 1)
        # of moments and of empty stretches each counts alike
        weight = np.maximum(stop - start, 1).astype(np.float64)
        self._weight += np.bincount(place, weight, most)
        self._sum += np.bincount(place, weight * value, most)

    def curve(self) -> tuple[Ints, Floats]:
        """Give times and values."""
        if self._weight is not None and self._sum is not None:
            some = np.flatnonzero(self._weight)
            width = max(1, -(-(self.last - self.first + 1) // len(self._weight)))
            return self.first + some * width, self._sum[some] / self._weight[some]
        times = np.concatenate([start for start, _ in self._kept])
        values = np.concatenate([value for _, value in self._kept])
        # what two reports sampled at one moment is drawn once
        times, first = np.unique(times, return_index=True)
        return times, values[first]


def _summed(parts: list[tuple[Ints, Floats]]) -> tuple[Ints, Floats]:
    """Add up the parts of a measure, which were sampled at the same times."""
    if len(parts) == 1:
        return parts[0]
    times, place = np.unique(np.concatenate([times for times, _ in parts]), return_inverse=True)
    values = np.zeros(len(times))
    np.add.at(values, place, np.concatenate([own for _, own in parts]))
    return times, values
