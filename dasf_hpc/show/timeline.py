"""Show, what every picture of time draws: a trace as tracks, slices, counters and arrows.

`draw` walks the trace once, a window of time after the other, so that memory does not grow with
the number of tasks but for three numbers a key and two a dependency.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.show.counters import COUNTERS, Counter, curves_of
from dasf_hpc.steps import Step, Told
from dasf_hpc.trace.gpus import gpu_labels
from dasf_hpc.trace.names import natural, node_names, process_names
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.own_axis import SENTENCE, reports_apart
from dasf_hpc.trace.schema import TABLES
from dasf_hpc.trace.summary import gap_kinds
from dasf_hpc.units import duration_text

#: Arrows from tasks to kernels: more are no help to the eye, and Perfetto's page has to load them.
MOST_LAUNCHES = 200_000

#: Ranks begin here: of GPUs below threads and below processes, and of counters below them.
FIRST_GPU, FIRST_COUNTER = 1_000_000_000, 2_000_000_000

#: Rows that a thread or a stream has at most, each with a rank: of what it does, and of what
#: overlaps.
ROWS_OF_EACH = 1000

#: Of those rows: for what overlaps of one sort.
LANES = 100

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
class Group:
    """What holds rows: a node, a worker process of it, a GPU that the worker uses.

    Attributes
    ----------
    number
        Its number; groups and rows are counted apart.
    parent
        The group it is in, None: the outermost are in none.
    name
        What it is called among those of its parent.
    rank
        Its place among the groups and rows of its parent; the smallest is on top.
    path
        Its name everywhere: the names of those it is in, and its own.
    pid
        Id that the operating system gave the process, -1: it is none.
    about
        What else is known: whole names, ids, bounds of clocks.
    inner
        Whether it is a GPU: where there are only processes and their rows, its rows are those of
        the group it is in.
    """

    number: int
    parent: int | None
    name: str
    rank: int
    path: str
    pid: int = -1
    about: str = ""
    inner: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a group: of slices, or a counter.

    Attributes
    ----------
    number, group, name, rank
        As of a group.
    thread
        Native id of the thread whose tasks the row shows, -1: it shows something else.
    about
        What else is known.
    """

    number: int
    group: int
    name: str
    rank: int
    thread: int = -1
    about: str = ""


@dataclass(frozen=True)
class Slice:
    """A span on a track; times are ns of trace time.

    Arrows have numbers: one leaves the slice that has it in `arrows_out` (a task's result) or
    `launches` (a kernel) for the one that has it in `arrows_in`; `launched` says of which kind
    those are.
    """

    track: int
    start: int
    stop: int
    name: str
    details: dict[str, str | int]
    arrows_out: Sequence[int] = ()
    arrows_in: Sequence[int] = ()
    launches: Sequence[int] = ()
    launched: bool = False


@dataclass(frozen=True)
class Mark:
    """A moment on a track, ns of trace time."""

    track: int
    time: int
    name: str
    details: dict[str, str | int]


class Drawing(Protocol):
    """What a format must be able to draw. Groups and tracks are declared before they are used."""

    def about(self, facts: dict[str, str], roots: Sequence[str]) -> None:
        """Say what holds for the whole trace: its clock, its origin, bounds; and its nodes."""

    def group(self, group: Group) -> None:
        """Declare a group of rows; the group it is in was declared before."""

    def track(self, row: Row) -> None:
        """Declare a row of slices, which never overlap but by nesting."""

    def counter(self, row: Row, unit: str) -> None:
        """Declare a counter."""

    def slices(self, slices: list[Slice]) -> None:
        """Draw slices, in order of their start within a track."""

    def marks(self, marks: list[Mark]) -> None:
        """Draw moments, in order of time."""

    def values(self, track: int, times: list[int], values: list[float]) -> None:
        """Draw a counter's values, in order of time."""

    def close(self) -> None:
        """Write what ends the file."""


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
    drawing.about(facts(trace), node_names(trace))
    tracks = _Tracks(trace, drawing)
    arrows = Arrows(trace)
    launches = Launches(trace, trace.rows("dependencies") + 1)
    windows = list(time_windows(trace))
    end = int(trace.processes["stop"].max()) if len(trace.processes) else 0
    for number, (start, stop) in enumerate(windows):
        told(Step("Exporting", number, len(windows)))
        _draw_tasks(trace, drawing, tracks, arrows, launches, start, stop, end)
        for tables in (*((table,) for table in _RANGES if table not in GPU_TABLES), GPU_TABLES):
            _draw_ranges(trace, drawing, tracks, launches, tables, start, stop)
        _draw_marks(trace, drawing, tracks, start, stop)
        for table in GAUGES:
            _draw_samples(trace, drawing, tracks, table, start, stop)
    for counter in COUNTERS:
        _draw_counters(trace, drawing, tracks, counter)
    drawing.close()
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
        Text by name, such as ``clock node1/…``: ``within 45 us (probes)``.
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
    within = f"within {duration_text(bound)}" if bound >= 0 else "error not known"
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


class Launches:
    """The arrows from tasks to the kernels that they launched.

    Parameters
    ----------
    trace
        The trace.
    first
        Number of the first arrow.
    most
        Arrows at most: of a trace with more kernels the first so many of each task have one, the
        same number of each.
    """

    def __init__(self, trace: Trace, first: int, most: int = MOST_LAUNCHES) -> None:
        self._drawn = self._first = self._seen = np.zeros(0, np.int64)
        if not trace.rows("kernels"):
            return
        counts = np.zeros(trace.rows("tasks"), np.int64)
        for piece in trace.pieces("kernels", ["task", "start", "stop"]):
            tasks = piece["task"].to_numpy()[_placed(piece)]
            counts += np.bincount(tasks[tasks >= 0], minlength=len(counts))[: len(counts)]
        self._drawn = np.minimum(counts, _most_of_each(counts, most))
        self._first = first + np.cumsum(self._drawn) - self._drawn
        self._seen = np.zeros(len(counts), np.int64)

    def of_task(self, task: int) -> Sequence[int]:
        """Give the numbers of arrows that leave a row of ``tasks``."""
        if not len(self._drawn):
            return ()
        first = int(self._first[task])
        return range(first, first + int(self._drawn[task]))

    def into_kernel(self, task: int) -> Sequence[int]:
        """Give the number of the arrow that enters the task's next kernel, if it has one."""
        if not 0 <= task < len(self._seen):
            return ()
        number = int(self._seen[task])
        self._seen[task] += 1
        return (int(self._first[task]) + number,) if number < self._drawn[task] else ()


def _placed(ranges: pd.DataFrame) -> NDArray[np.bool_]:
    """Say which ranges are drawn: those that ended, and began at 0 or later, as -1 is none."""
    start, stop = ranges["start"].to_numpy(), ranges["stop"].to_numpy()
    placed: NDArray[np.bool_] = (stop >= start) & (start >= 0)
    return placed


def _most_of_each(counts: NDArray[Any], most: int) -> int:
    """Give the largest number of which, taken of each, at most so many are taken in all."""
    low, high = 0, int(counts.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(counts, middle).sum()) <= most:
            low = middle
        else:
            high = middle - 1
    return low


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


class _Tracks:
    """Which groups and rows were declared, in what order, and which ranges are open on each."""

    def __init__(self, trace: Trace, drawing: Drawing) -> None:
        self.drawing = drawing
        self.hosts = node_names(trace)
        self.names = process_names(trace)
        self.processes = trace.processes.to_dict("records")
        self.bounds = trace.clocks.to_dict("records")
        self.gpus = trace.gpus.to_dict("records")
        self.gpu_labels = [label for _, label in gpu_labels(trace)]
        self.apart = reports_apart(trace)
        self.last: dict[int, tuple[int, float]] = {}
        self._threads = _numbered_threads(trace)
        self._streams = _ranked_streams(trace)
        self._rank_of_node = _ranks(self.hosts)
        self._rank_of_process = _ranks(self.names)
        self._groups: dict[Any, Group] = {}
        self._known: dict[Any, int] = {}
        self._open: dict[int, list[int]] = {}

    def report(self, row: int) -> Group:
        """Give the group of a report whose times are on an axis of its own."""
        name = f"{self.apart[row]}, on an axis of its own"
        return self._group(("report", row), None, name, 2 * len(self.hosts) + row, about=SENTENCE)

    def node(self, node: int) -> Group:
        """Give the group of a node."""
        known = 0 <= node < len(self.hosts)
        bounds = [clock for clock in self.bounds if clock["node"] == node]
        return self._group(
            ("node", node if known else -1),
            None,
            self.hosts[node] if known else "unknown node",
            self._rank_of_node[node] if known else len(self.hosts),
            about=_bounds(bounds),
        )

    def process(self, row: int) -> Group:
        """Give the group of a process."""
        if not 0 <= row < len(self.processes):
            return self._group(("process", -1), None, "unknown process", len(self.hosts) + 1)
        found = self._groups.get(("process", row))
        if found is not None:
            return found
        process = self.processes[row]
        bounds = [self.bounds[process["clock"]]] if 0 <= process["clock"] < len(self.bounds) else []
        about = [f"pid {process['pid']}"] if process["pid"] >= 0 else []
        whole = process["name"]
        about += [whole] if isinstance(whole, str) and whole != self.names[row] else []
        about += [_bounds(bounds)] if bounds else []
        return self._group(
            ("process", row),
            self.node(process["node"]),
            self.names[row],
            self._rank_of_process[row],
            process["pid"],
            "; ".join(about),
        )

    def gpu(self, row: int, process: int = -1) -> Group:
        """Give the group of a GPU: within the process that uses it, or within its node."""
        known = 0 <= row < len(self.gpus)
        label = self.gpu_labels[row] if known else "GPU ?"
        within = (
            self.process(process)
            if 0 <= process < len(self.processes)
            else self.node(self.gpus[row]["node"] if known else -1)
        )
        return self._group(
            ("gpu", row, within.number), within, label, FIRST_GPU + max(row, 0), inner=True
        )

    def thread(self, process: int, thread: int, what: str = "") -> tuple[str, int, str]:
        """Give the name, the rank and what else is known of a thread's row."""
        number = self._threads.get((process, thread))
        if number is None:
            return what or "thread ?", FIRST_GPU - ROWS_OF_EACH, ""
        rank = number * ROWS_OF_EACH
        return f"thread {number} {what}".strip(), rank, f"native thread id {thread}"

    def stream(self, place: tuple[Any, ...]) -> int:
        """Give the rank of a stream of a GPU, a process and a context."""
        return ROWS_OF_EACH * self._streams.get(place, 0)

    def track(
        self, identity: Any, group: Group, name: str, rank: int, thread: int = -1, about: str = ""
    ) -> int:
        """Give the number of a row of slices."""
        found = self._known.get(identity)
        if found is None:
            found = self._known[identity] = len(self._known) + 1
            self.drawing.track(Row(found, group.number, name, rank, thread, about))
        return found

    def counter(self, identity: Any, group: Group, name: str, unit: str) -> int:
        """Give the number of a counter; they stand in the order in which they come."""
        found = self._known.get(identity)
        if found is None:
            found = self._known[identity] = len(self._known) + 1
            self.drawing.counter(Row(found, group.number, name, FIRST_COUNTER + found), unit)
        return found

    def lane(
        self,
        identity: tuple[Any, ...],
        place: tuple[Group, str, int, int, str],
        start: int,
        stop: int,
    ) -> int:
        """Give a row of that identity on which the range overlaps none that it is not within.

        Ranges come in the order in which they began. `place` is what `track` takes.
        """
        group, name, rank, thread, about = place
        number = 0
        while True:
            track = self._known.get((*identity, number)) or self.track(
                (*identity, number),
                group,
                name + f" ({number + 1})" * (number > 0),
                rank + min(number, LANES - 1),
                thread if number == 0 else -1,
                about,
            )
            stops = self._open.setdefault(track, [])
            while stops and stops[-1] <= start:
                stops.pop()
            if not stops or stop <= stops[-1]:
                stops.append(stop)
                return track
            number += 1

    def _group(
        self,
        identity: tuple[Any, ...],
        parent: Group | None,
        name: str,
        rank: int,
        pid: int = -1,
        about: str = "",
        inner: bool = False,
    ) -> Group:
        found = self._groups.get(identity)
        if found is None:
            path = f"{parent.path} {name}" if parent else name
            number = parent.number if parent else None
            found = Group(len(self._groups) + 1, number, name, rank, path, pid, about, inner)
            self._groups[identity] = found
            self.drawing.group(found)
        return found


def _bounds(clocks: list[dict[Any, Any]]) -> str:
    return "; ".join(f"times {bound_text(b['bound'], b['source'])}" for b in clocks)


def _ranks(names: Sequence[str]) -> list[int]:
    """Give the place of each among all, numbers in them by their value."""
    order = sorted(range(len(names)), key=lambda row: (natural(names[row]), row))
    place = {row: rank for rank, row in enumerate(order)}
    return [place[row] for row in range(len(names))]


def _different(trace: Trace, table: str, columns: list[str]) -> set[tuple[int, ...]]:
    """Give what different values columns of numbers have together."""
    found: set[tuple[int, ...]] = set()
    if trace.rows(table):
        for piece in trace.pieces(table, columns):
            found.update(piece.drop_duplicates().itertuples(index=False, name=None))
    return found


def _numbered_threads(trace: Trace) -> dict[tuple[int, int], int]:
    """Number each process's threads from 1: those that run tasks first, by their native ids."""
    of_tasks = _different(trace, "tasks", [*_OF_THREAD])
    others = {
        place
        for table in (*_RANGES, "nvtx_marks")
        if table not in GPU_TABLES
        for place in _different(trace, table, [*_OF_THREAD])
    }
    found: dict[tuple[int, int], int] = {}
    numbers: dict[int, int] = {}
    for process, thread in (*sorted(of_tasks), *sorted(others - of_tasks)):
        if thread > 0:  # 0 and -1: not known
            numbers[process] = found[process, thread] = numbers.get(process, 0) + 1
    return found


def _ranked_streams(trace: Trace) -> dict[tuple[int, ...], int]:
    """Give each GPU's streams in order, by process, context and number."""
    places = {place for table in GPU_TABLES for place in _different(trace, table, [*_OF_STREAM])}
    return {place: rank for rank, place in enumerate(sorted(places))}


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
    launches: Launches,
    start: int | None,
    stop: int | None,
    end: int,
) -> None:
    tasks = trace.table("tasks", _TASK_COLUMNS, start, stop)
    leaving, entering = arrows.of_rows(tasks.index.to_numpy())
    slices = []
    places: dict[tuple[int, int], tuple[Group, str, int, int, str]] = {}
    for place, row, out, into in zip(
        tasks.index.tolist(), plain_rows(tasks), leaving, entering, strict=True
    ):
        number, key, prefix, process, thread, attempt, begun, ended, state, size, kind, error = row
        ended = ended if ended >= 0 else max(end, begun)
        where = places.get((process, thread))
        if where is None:
            name, rank, about = tracks.thread(process, thread)
            where = places[process, thread] = (tracks.process(process), name, rank, thread, about)
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
                tracks.lane((process, thread), where, begun, ended),
                begun,
                ended,
                prefix or "?",
                details,
                out,
                into,
                launches.of_task(place),
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
_OF_STREAM = ("gpu", "process", "context", "stream")
_STREAM = "stream"
_ROWS = ("NVTX", "messages", "off the CPU")
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
            _STREAM,
            _OF_STREAM,
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
    launches: Launches,
    tables: Sequence[str],
    start: int | None,
    stop: int | None,
) -> None:
    """Draw NVTX ranges, messages and time off the CPU a thread, and the GPU's work a stream.

    Tables that share rows are drawn together, in order of time.
    """
    found = []
    for table in tables:
        if trace.rows(table):
            found += list(_ranges(trace, launches, table, start, stop))
    if len(tables) > 1:
        found.sort(key=lambda one: (one[1], -one[2]))
    places: dict[tuple[Any, ...], tuple[tuple[Any, ...], Any]] = {}
    slices = []
    for where, begun, ended, name, told, arrows in found:
        if where not in places:
            places[where] = _place(tracks, *where)
        identity, place = places[where]
        track = tracks.lane(identity, place, begun, ended)
        slices.append(Slice(track, begun, ended, name, told, (), arrows, (), bool(arrows)))
    drawing.slices(slices)


_Range = tuple[tuple[Any, ...], int, int, str, dict[str, str | int], Sequence[int]]


def _ranges(
    trace: Trace, launches: Launches, table: str, start: int | None, stop: int | None
) -> Iterator[_Range]:
    """Give of each range where it is, its times, its name, details and the arrow into it."""
    how = _RANGES[table]
    ranges = trace.table(table, None, start, stop)
    ranges = ranges[_placed(ranges)]
    if table == "nvtx_ranges":
        ranges = ranges[ranges["domain"] != TASK_DOMAIN]
    named = next((name for name in how.named if name in ranges), None)
    details = [name for name in how.details if name in ranges]
    told_as = [how.details[name] for name in details]
    tasks = ranges["task"].tolist() if table == "kernels" else itertools.repeat(-1)
    for report, place, (begun, ended), names, more, task in zip(
        ranges["report"].tolist(),
        plain_rows(ranges[list(how.place)]),
        plain_rows(ranges[["start", "stop"]]),
        plain_rows(ranges[[named]]) if named else itertools.repeat((None,)),
        plain_rows(ranges[details]),
        tasks,
        strict=False,
    ):
        told = _told(told_as, more)
        arrows = launches.into_kernel(task)
        yield (how.row, report, *place), begun, ended, names[0] or how.without, told, arrows


def _place(
    tracks: _Tracks, row: str, report: int, *place: Any
) -> tuple[tuple[Any, ...], tuple[Group, str, int, int, str]]:
    """Give the identity of a row of slices, and where it is."""
    about = ""
    if row == _STREAM:
        group = tracks.gpu(place[0], place[1])
        name, rank = f"stream {place[3]}", tracks.stream(place)
    else:
        group = tracks.process(place[0])
        name, rank, about = tracks.thread(place[0], place[1], row)
        rank += LANES * (1 + _ROWS.index(row))
    # what cannot be placed on the trace's time is in a group that says so, never beside tasks
    apart = report if report in tracks.apart else -1
    if apart >= 0:
        name, group = f"{group.path} {name}", tracks.report(apart)
    return (row, apart, *place), (group, name, rank, -1, about)


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
        identity, where = _place(tracks, how.row, report, *place)
        track = tracks.track((*identity, 0), *where)  # the first lane of the ranges
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
        group = _owner(tracks, owner, row)
        if group is None:
            continue
        times = rows["time"].to_numpy()
        for column, name, unit, factor in GAUGES[table]:
            values = rows[column].to_numpy().astype(np.float64)
            good = np.isfinite(values) & (values >= 0)
            if good.any():
                track = tracks.counter((table, row, column), group, name, unit)
                drawing.values(track, times[good].tolist(), (values[good] * factor).tolist())
        for column, name, size in RATES[table]:
            values = rows[column].to_numpy()
            good = values >= 0
            if good.any():
                track = tracks.counter((table, row, column), group, name, "bytes/s")
                drawing.values(track, *_rates(tracks, track, times[good], values[good] * size))


def _draw_counters(trace: Trace, drawing: Drawing, tracks: _Tracks, counter: Counter) -> None:
    for curve in curves_of(trace, counter):
        group = _owner(tracks, counter.owner, curve.owner)
        name = curve.title
        if group is not None and curve.apart >= 0:
            name, group = f"{group.path} {name}", tracks.report(curve.apart)
        if group is not None:
            identity = (counter.table, curve.owner, curve.apart, curve.title)
            track = tracks.counter(identity, group, name, curve.unit)
            drawing.values(track, curve.times.tolist(), curve.values.tolist())


def _owner(tracks: _Tracks, owner: str, row: int) -> Group | None:
    """Give the group whose counter it is, None for that of no process."""
    if owner == "node":
        return tracks.node(row)
    if owner == "process":
        return tracks.process(row) if row >= 0 else None
    return tracks.gpu(row)


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
