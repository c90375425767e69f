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
    cumulative
        Whether the values above 0 are what an owner has from `time` to `stop` (-1: to the end), and
        the curve is the sum of what it has. Other values count for nothing, nor do rows of no
        owner.
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
    cumulative: bool = False
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
    # a release counts with its allocation: one of before the recording has nothing to take back
    Counter(
        "gpu_allocations",
        "gpu",
        "bytes",
        title="CUDA memory allocated",
        unit="bytes",
        stop="other",
        cumulative=True,
        charts=("CUDA memory allocated",),
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
    lines: dict[tuple[Any, ...], _Line | _Level] = {}
    for key, rows in _parts(trace, counter):
        lines.setdefault(key, _Level() if counter.cumulative else _Line()).look(rows)
    for key, rows in _parts(trace, counter):
        lines[key].add(rows, most)
    if counter.cumulative:
        lines = {key: line for key, line in lines.items() if key[0] >= 0}
    metrics = trace.table("metrics") if counter.metric else pd.DataFrame()
    together: dict[tuple[Any, ...], list[_Line | _Level]] = {}
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


@dataclass
class _Level:
    """The sum of what is there at each moment, as means of intervals where it changes too often.

    Rows may come in any order. What begins before 0, where pictures begin, is there at 0.
    """

    count: int = 0
    first: int = 0
    last: int = 0
    _kept: list[tuple[Ints, Floats]] = field(default_factory=list)
    _steps: Floats | None = None

    def look(self, rows: pd.DataFrame) -> None:
        """Take notice of rows."""
        times, _ = _changes(rows)
        if len(times):
            first, last = int(times.min()), int(times.max())
            self.first = min(self.first, first) if self.count else first
            self.last = max(self.last, last)
            self.count += len(times)

    def add(self, rows: pd.DataFrame, most: int) -> None:
        """Take rows of which all were looked at before."""
        times, changes = _changes(rows)
        if self.count < most:
            self._kept.append((times, changes))
            return
        bins = max(1, most - 2)  # the 0 before and the level at the end are values, too
        if self._steps is None:
            self._steps = np.zeros((2, bins))
        self._steps += _steps(times, changes, self.first, self._width(bins), bins)

    def curve(self) -> tuple[Ints, Floats]:
        """Give times and values, whole numbers; 0 before the first."""
        if self._steps is not None:
            bins = self._steps.shape[1]
            times = self.first + np.arange(bins) * self._width(bins)
            before = times < self.last
            # all steps lie before the last moment, or at it
            total = float(self._steps[0].sum())
            values = np.append(_heights(self._steps)[before], total)
            times = np.append(times[before], self.last)
        elif self._kept:
            every = np.concatenate([times for times, _ in self._kept])
            times, place = np.unique(every, return_inverse=True)
            changes = np.concatenate([changes for _, changes in self._kept])
            values = np.cumsum(np.bincount(place, changes, len(times)))
        else:
            times, values = np.zeros(0, np.int64), np.zeros(0)
        if len(times) and times[0] > 0:
            times, values = np.append(0, times), np.append(0.0, values)
        return times, np.rint(values)

    def _width(self, bins: int) -> int:
        return (self.last - self.first) // bins + 1  # so that the last moment is within


def _changes(rows: pd.DataFrame) -> tuple[Ints, Floats]:
    """Give when a sum grows or falls, and by how much, of what is there from start to stop."""
    start, stop, value = (rows[name].to_numpy() for name in ("start", "stop", "value"))
    there = (value > 0) & (start != -1)
    ends = there & (stop != -1)
    times = np.concatenate([start[there], stop[ends]])
    return np.maximum(times, 0), np.concatenate([value[there], -value[ends]])


def level_means(
    times: Ints, values: Floats, first: float, width: float, bins: int
) -> NDArray[np.float64]:
    """Give the mean, in each of so many intervals, of what is 0 and then holds from time to time.

    Parameters
    ----------
    times, values
        From when on which value holds; in order of time.
    first, width, bins
        When the first interval begins, how long each is and how many there are.
    """
    return _heights(_steps(times, np.diff(values, prepend=0.0), first, width, bins))


def _steps(times: Ints, changes: Floats, first: float, width: float, bins: int) -> Floats:
    """Give each interval's sum of changes, and of these times the share of it that comes after."""
    at = (times - first) / width
    place = np.clip(np.floor(at).astype(np.int64), 0, bins)
    after = np.clip(place + 1 - at, 0, 1)
    whole = np.bincount(place, changes, bins + 1)
    part = np.bincount(place, changes * after, bins + 1)
    both: Floats = np.vstack([whole, part]).astype(np.float64)
    return both[:, :bins]


def _heights(steps: Floats) -> Floats:
    whole, part = steps
    means: Floats = np.cumsum(whole) - whole + part
    return means


def _summed(parts: list[tuple[Ints, Floats]]) -> tuple[Ints, Floats]:
    """Add up the parts of a measure, which were sampled at the same times."""
    if len(parts) == 1:
        return parts[0]
    times, place = np.unique(np.concatenate([times for times, _ in parts]), return_inverse=True)
    values = np.zeros(len(times))
    np.add.at(values, place, np.concatenate([own for _, own in parts]))
    return times, values
