"""Trace, in short: the few figures that a run's end shows, from whatever tables a trace holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from dasf_hpc.trace.gpus import gpu_names, known_gpus
from dasf_hpc.trace.holdings import held
from dasf_hpc.trace.names import UNKNOWN, natural, node_names
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.own_axis import reports_apart
from dasf_hpc.trace.schema import TABLES

#: Of a run whose script did not use it.
UNUSED = (
    "no task reached the run's workers: the script did not use them, and nothing here tells of it "
    "(what Dask computes with scheduler='threads' or 'processes' runs in the script's own process)"
)

#: Functions in a summary.
LONGEST = 10

#: Reasons of a kind of gap.
REASONS = 3

#: Tables that reports fill, without the operating system's calls.
OF_REPORTS = (
    "kernels",
    "memcpys",
    "memsets",
    "synchronizations",
    "cuda_api",
    "nvtx_ranges",
    "nvtx_marks",
    "cpu_samples",
    "gpu_metrics",
    "nic_metrics",
    "messages",
)

#: Rows that are looked at together.
ROWS = 1 << 18


#: Kind of gap for what a node does not have, such as the package nvtx: told, but no loss.
NOT_AVAILABLE = "not available"


@dataclass(frozen=True)
class FunctionTime:
    """Compute time of one function (prefix of keys) over the whole run; times in ns."""

    prefix: str
    count: int
    total: int
    mean: int
    max: int


@dataclass(frozen=True)
class ReportLinks:
    """An Nsight report and how many of its ranges around tasks were linked to a task."""

    node: str | None
    file: str | None
    status: str | None
    ranges: int
    compute_ranges: int
    linked: int


@dataclass(frozen=True)
class KernelTime:
    """Time of one kernel over the whole run, times in ns."""

    name: str
    count: int
    total: int
    mean: int
    max: int


@dataclass(frozen=True)
class GpuTimes:
    """How long the run's GPUs were busy, and for what; times in ns.

    Attributes
    ----------
    gpus
        Number of GPUs on which anything ran.
    kernels
        Number of kernels.
    busy
        Time in which anything ran on a GPU, over all GPUs.
    attributed
        What of it is a task's.
    unattributed
        What of it is no task's, by reason, longest first; with `attributed` it adds up to `busy`.
    longest
        The kernels with the longest time in total, longest first.
    """

    gpus: int
    kernels: int
    busy: int
    attributed: int
    unattributed: dict[str, int]
    longest: list[KernelTime]


@dataclass(frozen=True)
class Gap:
    """Things of one kind that are missing.

    Attributes
    ----------
    kind
        What is missing, as in the table ``gaps``.
    places
        Rows of that table.
    count
        What is known of their number.
    reasons
        Why: the most frequent reasons, at most `REASONS` of them.
    """

    kind: str
    places: int
    count: int
    reasons: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What is missing, where and why."""
        count = f": {self.count}" if self.count else ""
        places = f"in {self.places} place{'' if self.places == 1 else 's'}"
        why = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        return f"{self.kind}{count} {places}{why}"


@dataclass(frozen=True)
class Recorded:
    """What of one kind the reports hold (`dasf_hpc.trace.holdings.Holding`), also in words."""

    what: str
    state: str
    count: int
    reason: str
    short: str
    sentence: str


@dataclass(frozen=True)
class Order:
    """Something that must come before something else; `worst` in ns beyond the bounds, -1: none."""

    order: str
    checked: int
    unchecked: int
    inverted: int
    violations: int
    worst: int


@dataclass(frozen=True)
class Summary:
    """What a trace holds, in figures that can go into JSON (`dataclasses.asdict`).

    Attributes
    ----------
    nodes
        Names of the hosts that ran workers, sorted.
    workers
        Number of worker processes.
    tasks
        Number of executions by state (memory, error, rescheduled, lost, abandoned).
    keys
        Number of distinct keys that were executed.
    duration
        From the first to the last record of the run, ns.
    work
        From the start of the first task to the end of the last one, ns; -1: there was no task.
    first_task_utc
        When the first task started, ns since 1970 (UTC); -1: there was none, or it is not known.
    before, after
        From the first record to the first task, and from the last task to the last record, ns.
    reports
        Each Nsight report.
    bound
        Largest error that a corrected time may have, over all clocks, ns; -1: unknown for at least
        one clock; None: no clock was recorded.
    bound_source
        Where the correction of the clock with that bound comes from.
    causality
        What must come before what, and how often times say otherwise.
    gaps
        What is missing, by kind.
    functions
        The functions with the longest compute time in total, longest first.
    gpu
        What ran on GPUs; None where no report tells of it.
    unused
        That the script never used the workers; empty where it did.
    recorded
        What the reports hold and what not; empty where there is no report.
    gpus
        Names of the GPUs, none twice.
    own_axis
        Reports whose times are not the trace's, for nothing ties their clocks.
    call_samples
        Samples of what Python calls ran in tasks and event loops.
    """

    nodes: list[str] = field(default_factory=list)
    workers: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    keys: int = 0
    duration: int = 0
    reports: list[ReportLinks] = field(default_factory=list)
    bound: int | None = None
    bound_source: str | None = None
    causality: list[Order] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    functions: list[FunctionTime] = field(default_factory=list)
    gpu: GpuTimes | None = None
    unused: str = ""
    recorded: list[Recorded] = field(default_factory=list)
    gpus: list[str] = field(default_factory=list)
    own_axis: list[str] = field(default_factory=list)
    work: int = -1
    before: int = 0
    after: int = 0
    call_samples: int = 0
    first_task_utc: int = -1


def unused(trace: Trace) -> str:
    """Say that workers were recorded and no task reached them; empty where one did."""
    if trace.rows("tasks") or not (trace.processes["role"] == "worker").any():
        return ""
    return UNUSED


def summarise(trace: Trace) -> Summary:
    """Summarise a trace.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    processes = trace.processes
    bound, source = _worst_bound(trace.clocks)
    tasks = _Tasks(processes["stop"].to_numpy())
    columns = ["prefix", "state", "start", "stop", "attempt", "process"]
    for piece in trace.pieces("tasks", columns, ROWS):
        tasks.add(piece)
    first, last = _recorded_span(trace, tasks.times)
    gpus = gpu_names(trace)
    origin = int(trace.attributes.get("origin_utc_ns", -1))
    begun, ended = (min(tasks.times), max(tasks.times)) if tasks.times else (first, last)
    return Summary(
        nodes=_worker_nodes(trace),
        workers=int((processes["role"] == "worker").sum()),
        tasks=dict(tasks.states),
        keys=tasks.keys,
        duration=last - first,
        reports=_reports(trace),
        bound=bound,
        bound_source=source,
        causality=_orders(trace.causality),
        gaps=gap_kinds(trace.gaps),
        functions=tasks.functions(),
        gpu=_gpu_times(trace),
        unused=unused(trace),
        recorded=[
            Recorded(str(one.kind), str(one.state), one.count, one.reason, one.short, one.sentence)
            for one in (held(trace).values() if (trace.reports["status"] == "joined").any() else ())
        ],
        gpus=[gpus[row] for row in known_gpus(trace)],
        own_axis=list(reports_apart(trace).values()),
        work=ended - begun if tasks.times else -1,
        before=begun - first,
        after=last - ended,
        call_samples=trace.rows("call_samples"),
        first_task_utc=origin + begun if tasks.times and origin > 0 else -1,
    )


class _Tasks:
    """What is summed up of the executions of tasks, piece after piece."""

    def __init__(self, ends: np.ndarray[Any, Any]) -> None:
        self._ends = ends  # of the processes: what was lost ended with its worker
        self.states: Counter[str] = Counter()
        self.keys = 0
        self.times: list[int] = []
        self._functions: list[pd.DataFrame] = []

    def add(self, tasks: pd.DataFrame) -> None:
        self.states.update({str(s): int(n) for s, n in tasks["state"].value_counts().items() if n})
        # a key's first execution
        self.keys += int((tasks["attempt"] == 1).sum())
        starts, stops = tasks["start"], tasks["stop"][tasks["stop"] >= 0]
        rows = tasks["process"][tasks["stop"] < 0].unique().tolist()
        self.times += [int(self._ends[row]) for row in rows if 0 <= row < len(self._ends)]
        self.times += [int(t) for c in (starts, stops) if len(c) for t in (c.min(), c.max())]
        self.times = [t for t in self.times if t >= 0]
        ended = tasks[(tasks["stop"] >= 0) & tasks["prefix"].notna()]
        times = (ended["stop"] - ended["start"]).groupby(ended["prefix"], observed=True)
        self._functions.append(times.agg(["count", "sum", "max"]))

    def functions(self) -> list[FunctionTime]:
        pieces = [p.set_axis(p.index.astype(str)) for p in self._functions if len(p)]
        if not pieces:
            return []
        every = pd.concat(pieces).groupby(level=0, sort=False)
        figures = every.agg({"count": "sum", "sum": "sum", "max": "max"})
        figures = figures.sort_values("sum", ascending=False, kind="stable").head(LONGEST)
        return [
            FunctionTime(
                prefix=str(prefix),
                count=int(row["count"]),
                total=int(row["sum"]),
                mean=int(row["sum"] // row["count"]),
                max=int(row["max"]),
            )
            for prefix, row in figures.iterrows()
        ]


def _worker_nodes(trace: Trace) -> list[str]:
    processes, names = trace.processes, node_names(trace)
    if not processes["role"].isin(["worker", "scheduler"]).any():  # of reports alone
        return sorted({name for name in names if name != UNKNOWN}, key=natural)
    rows = processes["node"][processes["role"] == "worker"].unique().tolist()
    return sorted({names[row] for row in rows if 0 <= row < len(names)}, key=natural)


def _recorded_span(trace: Trace, times: list[int]) -> tuple[int, int]:
    processes = trace.processes
    starts = processes["start"][processes["start"] >= 0].tolist()
    stops = processes["stop"][processes["stop"] >= 0].tolist()
    every = [*starts, *stops, *times] or reports_times(trace)
    return (int(min(every)), int(max(every))) if every else (0, 0)


def reports_times(trace: Trace) -> list[int]:
    """Give the first and the last moment of each table that reports fill, in ns of trace time.

    Reports on an axis of their own have no part in it.
    """
    times, apart = [], list(reports_apart(trace))
    for name in OF_REPORTS:
        if name not in trace.tables:
            continue
        # a mark and a sample are moments
        columns = [c.name for c in TABLES[name].columns if c.name in ("start", "stop")]
        for piece in trace.pieces(name, ["report", *columns], ROWS):
            placed = piece[~piece["report"].isin(apart)]
            for column in columns:
                known = placed[column][placed[column] != -1]
                times += [int(known.min()), int(known.max())] if len(known) else []
    return times


def _worst_bound(clocks: pd.DataFrame) -> tuple[int | None, str | None]:
    if not len(clocks):
        return None, None
    bounds = clocks["bound"].to_numpy()
    # an unknown bound is worse than any
    worst = int(np.argmax(np.where(bounds < 0, np.iinfo(np.int64).max, bounds)))
    return int(bounds[worst]), _text(clocks["source"].iloc[worst])


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _reports(trace: Trace) -> list[ReportLinks]:
    reports = trace.reports
    hostnames = trace.nodes["hostname"].tolist()
    return [
        ReportLinks(
            node=_text(hostnames[row["node"]]) if 0 <= row["node"] < len(hostnames) else None,
            file=_text(row["file"]),
            status=_text(row["status"]),
            ranges=int(row["ranges"]),
            compute_ranges=int(row["compute_ranges"]),
            linked=int(row["linked"]),
        )
        for row in reports.to_dict("records")
    ]


def _orders(causality: pd.DataFrame) -> list[Order]:
    names = ("checked", "unchecked", "inverted", "violations", "worst")
    return [
        Order(str(row["order"]), **{name: int(row[name]) for name in names})
        for row in causality.to_dict("records")
    ]


def _gpu_times(trace: Trace) -> GpuTimes | None:
    table = trace.task_gpu
    table = table[table["gpu"] >= 0]
    if not len(table):
        return None
    known = table["task"] >= 0
    reasons = table[~known].groupby("reason", observed=True)["share"].sum()
    reasons = reasons[reasons > 0].sort_values(ascending=False, kind="stable")
    return GpuTimes(
        gpus=int(table["gpu"][table["share"] > 0].nunique()),
        kernels=trace.rows("kernels"),
        busy=int(table["share"].sum()),
        attributed=int(table["share"][known].sum()),
        unattributed={str(reason): int(share) for reason, share in reasons.items()},
        longest=_longest_kernels(trace),
    )


def _longest_kernels(trace: Trace) -> list[KernelTime]:
    pieces = []
    for kernels in trace.pieces("kernels", ["name", "start", "stop"], ROWS):
        times = (kernels["stop"] - kernels["start"]).groupby(kernels["name"], observed=True)
        figures = times.agg(["count", "sum", "max"])
        pieces.append(figures.set_axis(figures.index.astype(str)))
    if not pieces:  # copies alone keep a GPU busy, too
        return []
    every = pd.concat(pieces).groupby(level=0, sort=False)
    figures = every.agg({"count": "sum", "sum": "sum", "max": "max"})
    figures = figures.sort_values("sum", ascending=False, kind="stable").head(LONGEST)
    return [
        KernelTime(
            name=str(name),
            count=int(row["count"]),
            total=int(row["sum"]),
            mean=int(row["sum"] // row["count"]),
            max=int(row["max"]),
        )
        for name, row in figures.iterrows()
    ]


def gap_kinds(gaps: pd.DataFrame) -> list[Gap]:
    """Give what is missing from a trace, a kind each, of its table ``gaps``."""
    kinds = []
    for kind, rows in gaps.groupby("kind", observed=True, sort=False):
        count = rows["count"]
        reasons = rows["reason"].astype(object).value_counts().index[:REASONS]
        known = int(count[count > 0].sum())
        kinds.append(Gap(str(kind), len(rows), known, tuple(map(str, reasons))))
    return kinds
