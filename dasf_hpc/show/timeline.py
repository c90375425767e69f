"""Show, what every picture of time draws: a trace as tracks, slices, counters and arrows.

`draw` walks the trace once, a window of time after the other, so that memory does not grow with
the number of tasks but for three numbers a key and two a dependency.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.show.counters import COUNTERS, Counter, curves_of
from dasf_hpc.steps import Step, Told
from dasf_hpc.trace.gpus import gpu_labels
from dasf_hpc.trace.names import node_names, process_names
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.own_axis import SENTENCE, reports_apart
from dasf_hpc.trace.schema import TABLES
from dasf_hpc.trace.summary import gap_kinds

#: Numbers of groups for nodes begin here; below it are processes.
FIRST_NODE = 1_000_000

#: Number of the group of processes that the trace does not know.
UNKNOWN_PROCESS = FIRST_NODE - 2

#: Numbers of groups for reports on axes of their own begin here.
FIRST_APART = 2 * FIRST_NODE

#: NVTX domain of the ranges around tasks, which the tasks' own slices show already.
TASK_DOMAIN = "compute"

#: Counters drawn of each table of samples: column, name, unit, factor.
GAUGES = {
    "node_samples": (
        ("cpu", "CPU", "%", 1.0),
        ("memory_used", "memory used", "bytes", 1.0),
        ("swap_used", "swap used", "bytes", 1.0),
    ),
    "gpu_samples": (
        ("utilization", "utilisation", "%", 1.0),
        ("memory_used", "memory used", "bytes", 1.0),
        ("power", "power", "W", 1.0),
        ("temperature", "temperature", "°C", 1.0),
        ("sm_clock", "SM clock", "MHz", 1.0),
        ("pcie_sent", "PCIe sent", "bytes/s", 1000.0),
        ("pcie_received", "PCIe received", "bytes/s", 1000.0),
    ),
    "process_samples": (
        ("cpu", "CPU", "%", 1.0),
        ("memory", "resident memory", "bytes", 1.0),
    ),
}

#: Columns that count up and are drawn as rates, bytes/s: column, name, factor to bytes.
RATES = {
    "node_samples": (
        ("network_received", "network received", 1),
        ("network_sent", "network sent", 1),
        ("disk_read", "disk read", 1),
        ("disk_written", "disk written", 1),
    ),
    "gpu_samples": (
        ("nvlink_sent", "NVLink sent", 1024),
        ("nvlink_received", "NVLink received", 1024),
    ),
    "process_samples": (),
}


@dataclass(frozen=True)
class Slice:
    """A span on a track; times are ns of trace time."""

    track: int
    start: int
    stop: int
    name: str
    details: dict[str, str | int]
    arrows_out: Sequence[int] = ()
    arrows_in: Sequence[int] = ()


@dataclass(frozen=True)
class Mark:
    """A moment on a track, ns of trace time."""

    track: int
    time: int
    name: str
    details: dict[str, str | int]


class Drawing(Protocol):
    """What a format must be able to draw. Groups and tracks are declared before they are used."""

    def about(self, facts: dict[str, str]) -> None:
        """Say what holds for the whole trace: its clock, its origin, bounds."""

    def group(self, group: int, name: str, label: str) -> None:
        """Declare a group of tracks: a worker process or a node."""

    def track(self, track: int, group: int, name: str) -> None:
        """Declare a row of slices, which never overlap but by nesting."""

    def counter(self, track: int, group: int, name: str, unit: str) -> None:
        """Declare a counter."""

    def slices(self, slices: list[Slice]) -> None:
        """Draw slices, in order of their start within a track."""

    def marks(self, marks: list[Mark]) -> None:
        """Draw moments, in order of time."""

    def values(self, track: int, times: list[int], values: list[float]) -> None:
        """Draw a counter's values, in order of time."""


def draw(trace: Trace, drawing: Drawing, told: Told = lambda step: None) -> None:
    """Draw a trace.

    Parameters
    ----------
    trace
        An open trace.
    drawing
        Where to.
    told
        Called with the progress.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    drawing.about(facts(trace))
    tracks = _Tracks(trace, drawing)
    arrows = Arrows(trace)
    windows = list(time_windows(trace))
    end = int(trace.processes["stop"].max()) if len(trace.processes) else 0
    for number, (start, stop) in enumerate(windows):
        told(Step("Exporting", number, len(windows)))
        _draw_tasks(trace, drawing, tracks, arrows, start, stop, end)
        for table in _RANGES:
            _draw_ranges(trace, drawing, tracks, table, start, stop)
        _draw_marks(trace, drawing, tracks, start, stop)
        for table in GAUGES:
            _draw_samples(trace, drawing, tracks, table, start, stop)
    for counter in COUNTERS:
        _draw_counters(trace, drawing, tracks, counter)
    told(Step("Exporting", len(windows), len(windows)))


def time_windows(trace: Trace) -> Iterator[tuple[int | None, int | None]]:
    """Give the windows of time, None at the ends, whose rows a merge laid down together."""
    times = trace.blocks["time"].tolist()
    edges = [None, *times[1:], None]
    yield from itertools.pairwise(edges)


def facts(trace: Trace) -> dict[str, str]:
    """Say what times of a trace rest on, clock by clock.

    Returns
    -------
    dict
        Text by name, such as ``clock node1/…``: ``within 45000 ns (probes)``.
    """
    found = {name: str(value) for name, value in trace.attributes.items()}
    found["time_unit"] = "ns on the reference clock since the trace's first record"
    for row in trace.clocks.to_dict("records"):
        found[f"clock {row['clock']}"] = bound_text(row["bound"], row["source"])
    for file in reports_apart(trace).values():
        found[f"report {file}"] = SENTENCE
    for table, count in _without_place(trace).items():
        found[f"left out: {table}"] = (
            f"{count} that have no time, or begin before the trace's time 0"
        )
    for gap in gap_kinds(trace.gaps):
        found[f"missing: {gap.kind}"] = gap.sentence.removeprefix(gap.kind).lstrip(": ")
    return found


def _without_place(trace: Trace) -> dict[str, int]:
    """Count the rows of reports that have no place on a time that begins at 0, by table."""
    found = {}
    for table in (*_RANGES, "nvtx_marks"):
        if count := sum(int((p["start"] < 0).sum()) for p in trace.pieces(table, ["start"])):
            found[table] = count
    return found


def bound_text(bound: int, source: Any) -> str:
    """Say how far a corrected time may be wrong."""
    within = f"within {bound} ns" if bound >= 0 else "error not known"
    return f"{within} ({source if isinstance(source, str) else 'no source'})"


class Arrows:
    """The dependencies between executions, each with a number: the row of ``dependencies`` + 1.

    An arrow goes from the first execution of the needed key that ended in memory to the last one
    of the key that needs it.
    """

    def __init__(self, trace: Trace) -> None:
        self.key_of_row = whole_column(trace, "tasks", "key")
        key, dependency = (
            whole_column(trace, "dependencies", name) for name in ("key", "dependency")
        )
        keys = 1 + max(
            (int(codes.max()) for codes in (self.key_of_row, key, dependency) if len(codes)),
            default=0,
        )
        rows = np.arange(len(self.key_of_row))
        known = self.key_of_row >= 0
        in_memory = known & _in_memory(trace)
        self._source = np.full(keys, -1, np.int64)
        self._source[self.key_of_row[in_memory][::-1]] = rows[in_memory][::-1]
        self._target = np.full(keys, -1, np.int64)
        self._target[self.key_of_row[known]] = rows[known]
        drawn = np.flatnonzero((self._source[dependency] >= 0) & (self._target[key] >= 0))
        self._in = Grouped(key[drawn], drawn + 1)
        self._out = Grouped(dependency[drawn], drawn + 1)

    def of_rows(self, rows: NDArray[Any]) -> tuple[list[list[int]], list[list[int]]]:
        """Give, for each row of ``tasks``, the numbers of arrows that leave and that enter it."""
        keys = self.key_of_row[rows]
        return (
            self._out.of(np.where(self._source[keys] == rows, keys, -1)),
            self._in.of(np.where(self._target[keys] == rows, keys, -1)),
        )


def grouped_codes(trace: Trace) -> tuple[Grouped, Grouped]:
    """Give the codes of keys that each key needs, and of those that need it."""
    key, dependency = (whole_column(trace, "dependencies", name) for name in ("key", "dependency"))
    return Grouped(key, dependency), Grouped(dependency, key)


class Grouped:
    """Numbers by a code."""

    def __init__(self, codes: NDArray[Any], numbers: NDArray[Any]) -> None:
        order = np.argsort(codes, kind="stable")
        self._codes, self._numbers = codes[order], numbers[order]
        self.largest = max(codes.max(initial=-1), numbers.max(initial=-1))

    def of(self, codes: NDArray[Any]) -> list[list[int]]:
        """Give the numbers of each code, none for -1."""
        first = np.searchsorted(self._codes, codes, "left").tolist()
        last = np.searchsorted(self._codes, codes, "right").tolist()
        return [
            self._numbers[a:b].tolist() if b > a else [] for a, b in zip(first, last, strict=True)
        ]


def whole_column(trace: Trace, table: str, column: str) -> NDArray[Any]:
    """Give a column of numbers or codes, of a table that may be empty, too."""
    return np.concatenate([p[column].to_numpy() for p in trace.pieces(table, [column])]).astype(
        np.int64 if table == "tasks" and column != "key" else np.int32
    )


def _in_memory(trace: Trace) -> NDArray[Any]:
    pieces = trace.pieces("tasks", ["state"])
    return np.concatenate([(piece["state"] == "memory").to_numpy() for piece in pieces])


#: Tables of the GPU's work, where a trace has them: each stream is a row of slices.
GPU_TABLES = tuple(name for name in ("kernels", "memcpys", "memsets") if name in TABLES)


@dataclass
class _Tracks:
    """Which tracks were declared, and which ranges are open on each."""

    trace: Trace
    drawing: Drawing
    known: dict[Any, int] = field(default_factory=dict)
    open: dict[int, list[int]] = field(default_factory=dict)
    last: dict[int, tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.hosts = node_names(self.trace)
        self.names = process_names(self.trace)
        self.processes = self.trace.processes.to_dict("records")
        self.bounds = self.trace.clocks.to_dict("records")
        self.gpus = self.trace.gpus.to_dict("records")
        self.gpu_labels = [label for _, label in gpu_labels(self.trace)]
        self._groups: set[int] = set()
        self.apart = reports_apart(self.trace)

    def report(self, row: int) -> int:
        """Give the group of a report whose times are on an axis of its own."""
        group = FIRST_APART + row
        if group not in self._groups:
            self._groups.add(group)
            self.drawing.group(group, f"{self.apart[row]}, on an axis of its own", SENTENCE)
        return group

    def host(self, node: int) -> str:
        return self.hosts[node] if 0 <= node < len(self.hosts) else "?"

    def node(self, node: int) -> int:
        group = FIRST_NODE + max(node, -1)
        if group not in self._groups:
            self._groups.add(group)
            bounds = [clock for clock in self.bounds if clock["node"] == node]
            self.drawing.group(group, f"node {self.host(node)}", self._label(bounds))
        return group

    def gpu(self, row: int) -> tuple[int, str]:
        """Give the group of a GPU's node, and the GPU's name there."""
        if not 0 <= row < len(self.gpus):
            return self.node(-1), "GPU ?"
        return self.node(self.gpus[row]["node"]), self.gpu_labels[row]

    def process(self, row: int) -> int:
        group = row + 1 if row >= 0 else UNKNOWN_PROCESS
        if group not in self._groups:
            self._groups.add(group)
            name, bounds = "unknown process", []
            if 0 <= row < len(self.processes):
                process = self.processes[row]
                name = f"{self.host(process['node'])} {self.names[row]} (pid {process['pid']})"
                if 0 <= process["clock"] < len(self.bounds):
                    bounds = [self.bounds[process["clock"]]]
            self.drawing.group(group, name, self._label(bounds))
        return group

    @staticmethod
    def _label(bounds: list[dict[Any, Any]]) -> str:
        return "; ".join(f"times {bound_text(b['bound'], b['source'])}" for b in bounds)

    def track(self, identity: Any, group: int, name: str) -> int:
        found = self.known.get(identity)
        if found is None:
            found = self.known[identity] = len(self.known) + 1
            self.drawing.track(found, group, name)
        return found

    def counter(self, identity: Any, group: int, name: str, unit: str) -> int:
        found = self.known.get(identity)
        if found is None:
            found = self.known[identity] = len(self.known) + 1
            self.drawing.counter(found, group, name, unit)
        return found

    def lane(self, identity: Any, group: int, name: str, start: int, stop: int) -> int:
        """Give a track of that identity on which the range overlaps none that it is not within."""
        number = 0
        while True:
            track = self.track((*identity, number), group, name + f" ({number + 1})" * (number > 0))
            stops = self.open.setdefault(track, [])
            while stops and stops[-1] <= start:
                stops.pop()
            if not stops or stop <= stops[-1]:
                stops.append(stop)
                return track
            number += 1


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


_TASK_COLUMNS = [
    *("id", "key", "prefix", "process", "thread", "attempt", "start", "stop"),
    *("state", "nbytes", "type", "exception"),
]


def _draw_tasks(
    trace: Trace,
    drawing: Drawing,
    tracks: _Tracks,
    arrows: Arrows,
    start: int | None,
    stop: int | None,
    end: int,
) -> None:
    tasks = trace.table("tasks", _TASK_COLUMNS, start, stop)
    leaving, entering = arrows.of_rows(tasks.index.to_numpy())
    slices = []
    for row, out, into in zip(plain_rows(tasks), leaving, entering, strict=True):
        number, key, prefix, process, thread, attempt, begun, ended, state, size, kind, error = row
        group = tracks.process(process)
        details: dict[str, str | int] = {"key": key or "?", "id": number}
        if state != "memory":
            details["state"] = state or "?"
        if attempt > 1:
            details["attempt"] = attempt
        if size >= 0:
            details["result bytes"] = size
        for name, text in (("result type", kind), ("exception", error)):
            if text:
                details[name] = text
        slices.append(
            Slice(
                tracks.track((process, thread), group, f"thread {thread}"),
                begun,
                ended if ended >= 0 else max(end, begun),
                prefix or "?",
                details,
                out,
                into,
            )
        )
    drawing.slices(slices)


def plain_rows(frame: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """Give a table's rows as tuples of Python's own numbers and strings, None for no string."""
    columns = []
    for name in frame:
        column = frame[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            texts = [*column.cat.categories.tolist(), None]
            columns.append([texts[code] for code in column.cat.codes.tolist()])
        else:
            columns.append(column.tolist())
    return zip(*columns, strict=True)


@dataclass(frozen=True)
class _Ranges:
    """How a table of ranges is drawn.

    Attributes
    ----------
    row
        What the rows of slices are called; tables of one name share rows.
    place
        Columns that say on which row a range stands.
    named
        Columns of its name, of which the first that the table has counts.
    without
        Its name where there is none.
    details
        Columns that are told of it, and as what.
    """

    row: str
    place: tuple[str, ...]
    named: tuple[str, ...]
    without: str
    details: dict[str, str]


_OF_THREAD = ("process", "thread")
_NAMED = ("short_name", "kind", "message")
_DETAILS = {name: name for name in ("name", "task", "bytes", "payload", "correlation")}
_SENT = {
    **{name: name for name in ("library", "task")},
    "sent": "bytes sent",
    "received": "bytes received",
    **{name: name for name in ("communicator", "root", "peer", "rank", "collective")},
}

_RANGES: dict[str, _Ranges] = {
    "nvtx_ranges": _Ranges("NVTX", _OF_THREAD, _NAMED, "nvtx_range", _DETAILS),
    "messages": _Ranges("messages", _OF_THREAD, ("operation",), "message", _SENT),
    "off_cpu": _Ranges("off the CPU", _OF_THREAD, ("state",), "off the CPU", {"task": "task"}),
    **{
        table: _Ranges(
            "stream",
            ("gpu", "process", "context", "stream"),
            _NAMED,
            table.rstrip("s"),
            _DETAILS,
        )
        for table in GPU_TABLES
    },
}
#: What is told of an NVTX mark.
_OF_MARK = ("domain", "category", "payload", "value", "data", "task")


def _draw_ranges(
    trace: Trace,
    drawing: Drawing,
    tracks: _Tracks,
    table: str,
    start: int | None,
    stop: int | None,
) -> None:
    """Draw NVTX ranges, messages and time off the CPU a thread, and the GPU's work a stream."""
    if not trace.rows(table):
        return
    how = _RANGES[table]
    ranges = trace.table(table, None, start, stop)
    # those that ended; no picture has times before 0, and -1 is none
    ranges = ranges[(ranges["stop"] >= ranges["start"]) & (ranges["start"] >= 0)]
    if table == "nvtx_ranges":
        ranges = ranges[ranges["domain"] != TASK_DOMAIN]
    named = next((name for name in how.named if name in ranges), None)
    details = [name for name in how.details if name in ranges]
    told_as = [how.details[name] for name in details]
    slices = []
    for report, place, (begun, ended), names, more in zip(
        ranges["report"].tolist(),
        plain_rows(ranges[list(how.place)]),
        plain_rows(ranges[["start", "stop"]]),
        plain_rows(ranges[[named]]) if named else itertools.repeat((None,)),
        plain_rows(ranges[details]),
        strict=False,
    ):
        identity, group, where = _row(tracks, how, report, place)
        track = tracks.lane(identity, group, where, begun, ended)
        told = _told(told_as, more)
        slices.append(Slice(track, begun, ended, names[0] or how.without, told))
    drawing.slices(slices)


def _row(
    tracks: _Tracks, how: _Ranges, report: int, place: tuple[Any, ...]
) -> tuple[tuple[Any, ...], int, str]:
    """Give the identity, the group and the name of a row of slices."""
    if how.place == _OF_THREAD:
        group, thread = tracks.process(place[0]), place[1]
        where = f"{how.row} of thread {thread}" if thread >= 0 else how.row
    else:
        group, where = tracks.gpu(place[0])
        where += f" stream {place[3]}"
    # what cannot be placed on the trace's time is in a group that says so, never beside tasks
    apart = report if report in tracks.apart else -1
    group = tracks.report(apart) if apart >= 0 else group
    return (how.row, apart, *place), group, where


def _told(names: Sequence[str], values: Sequence[Any]) -> dict[str, str | int]:
    """Give what is told of a range or a mark: what there is."""
    told: dict[str, str | int] = {}
    for name, value in zip(names, values, strict=True):
        none = np.isnan(value) if isinstance(value, float) else value in (None, "", -1)
        if none:
            continue
        # floating-point numbers may be infinite, which JSON has not; a communicator is a name,
        # of more digits than JavaScript's numbers have
        told[name] = str(value) if isinstance(value, float) or name == "communicator" else value
    return told


def _draw_marks(
    trace: Trace, drawing: Drawing, tracks: _Tracks, start: int | None, stop: int | None
) -> None:
    """Draw NVTX marks beside the NVTX ranges of their thread."""
    if not trace.rows("nvtx_marks"):
        return
    how = _RANGES["nvtx_ranges"]
    columns = [*how.place, "report", "start", "message", *_OF_MARK]
    table = trace.table("nvtx_marks", columns, start, stop)
    table = table[table["start"] >= 0]  # no picture has times before 0, and -1 is none
    marks = []
    for report, place, (time,), (name,), more in zip(
        table["report"].tolist(),
        plain_rows(table[list(how.place)]),
        plain_rows(table[["start"]]),
        plain_rows(table[["message"]]),
        plain_rows(table[list(_OF_MARK)]),
        strict=True,
    ):
        identity, group, where = _row(tracks, how, report, place)
        track = tracks.track((*identity, 0), group, where)  # the first lane of the ranges
        marks.append(Mark(track, time, name or "mark", _told(_OF_MARK, more)))
    drawing.marks(marks)


def _draw_samples(
    trace: Trace,
    drawing: Drawing,
    tracks: _Tracks,
    table: str,
    start: int | None,
    stop: int | None,
) -> None:
    if not trace.rows(table):
        return
    samples = trace.table(table, None, start, stop)
    owner = {"node_samples": "node", "gpu_samples": "gpu", "process_samples": "process"}[table]
    for code, rows in samples.groupby(owner, sort=False):
        row = int(str(code))
        group, prefix = _owner(tracks, owner, row)
        if group is None:
            continue
        times = rows["time"].to_numpy()
        for column, name, unit, factor in GAUGES[table]:
            values = rows[column].to_numpy().astype(np.float64)
            good = np.isfinite(values) & (values >= 0)
            if good.any():
                track = tracks.counter((table, row, column), group, prefix + name, unit)
                drawing.values(track, times[good].tolist(), (values[good] * factor).tolist())
        for column, name, size in RATES[table]:
            values = rows[column].to_numpy()
            good = values >= 0
            if good.any():
                track = tracks.counter((table, row, column), group, prefix + name, "bytes/s")
                drawing.values(track, *_rates(tracks, track, times[good], values[good] * size))


def _draw_counters(trace: Trace, drawing: Drawing, tracks: _Tracks, counter: Counter) -> None:
    for curve in curves_of(trace, counter):
        group, prefix = _owner(tracks, counter.owner, curve.owner)
        if curve.apart >= 0:
            group = tracks.report(curve.apart)
        if group is not None:
            identity = (counter.table, curve.owner, curve.apart, curve.title)
            track = tracks.counter(identity, group, prefix + curve.title, curve.unit)
            drawing.values(track, curve.times.tolist(), curve.values.tolist())


def _owner(tracks: _Tracks, owner: str, row: int) -> tuple[int | None, str]:
    """Give the group whose counter it is, and what its name begins with."""
    if owner == "node":
        return tracks.node(row), ""
    if owner == "process":
        return (tracks.process(row), "") if row >= 0 else (None, "")
    group, name = tracks.gpu(row)
    return group, f"{name} "


def _rates(
    tracks: _Tracks, track: int, times: NDArray[Any], counts: NDArray[Any]
) -> tuple[list[int], list[float]]:
    """Give what a count grew by per second, each at the end of its interval."""
    before = tracks.last.get(track)
    tracks.last[track] = int(times[-1]), float(counts[-1])
    if before is not None:
        times = np.concatenate([[before[0]], times])
        counts = np.concatenate([[before[1]], counts])
    took = np.diff(times) / 1e9
    grown = np.diff(counts.astype(np.float64))
    good = (took > 0) & (grown >= 0)  # a count that fell began anew
    return times[1:][good].tolist(), (grown[good] / took[good]).tolist()
