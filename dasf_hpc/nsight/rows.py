"""Nsight, a report's events in the trace's terms: its processes, GPUs and tasks, on its time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dasf_hpc.nsight import memory
from dasf_hpc.nsight import os_runtime as os_runtime_calls
from dasf_hpc.nsight.attribute import (
    FOREVER,
    SENTENCES,
    Calls,
    Reason,
    RunningTasks,
    grouped,
    task_of_calls,
)
from dasf_hpc.nsight.collectives import UNTIED, ReportTie
from dasf_hpc.nsight.further import FURTHER
from dasf_hpc.nsight.join import (
    COMPUTE_DOMAIN,
    START_UNCERTAINTY_NS,
    JoinedReport,
    Link,
    find_rows,
    join_report,
    report_corrections,
    same_host,
)
from dasf_hpc.nsight.reader import (
    COPY_KINDS,
    SYNCHRONIZATION_KINDS,
    Kernels,
    Memcpys,
    Memsets,
    Report,
    Synchronizations,
)
from dasf_hpc.nsight.recorded import Known, add_recorded, calls_for
from dasf_hpc.nsight.spool import ROWS_AT_ONCE, SortedRows, SpooledRows
from dasf_hpc.nsight.sqlite import NONE, Names, distinct_values
from dasf_hpc.trace.align import UTC_DISAGREEMENT_NS, Correction
from dasf_hpc.trace.gpus import bus_address
from dasf_hpc.trace.holdings import Holding, Kind, lost_on_gpu
from dasf_hpc.trace.schema import TABLES
from dasf_hpc.trace.store import Strings

Array = npt.NDArray[Any]

#: Sentences of table ``nvtx_ranges`` for a range that was not linked.
_LINKS = {
    Link.NO_TASK_ID: "it carries no task id",
    Link.UNKNOWN_TASK: "no journal has a task of this id",
    Link.OTHER_HOST: "the task of this id ran on another host",
    Link.OTHER_PROCESS: "the task of this id ran in another process",
}

#: The correction of a report whose session time is the trace's.
NOT_TIED = Correction.reference()

#: Role of a process that only a report knows.
PROFILED = "profiled"


class RunTables(Protocol):
    """What a trace, while it is made or extended, tells the reports that are put into it.

    `dasf_hpc.trace.merge.MergedTables` and `dasf_hpc.trace.extend.ExtendedTrace` are such.
    """

    tables: dict[str, dict[str, Array]]
    dictionaries: dict[str, list[str]]
    attributes: dict[str, Any]
    streams: dict[str, Iterable[dict[str, Array]]]

    @property
    def scratch(self) -> Path:
        """A folder for files that are needed until the trace is written."""

    def stored_rows(self, table: str) -> SortedRows | None:
        """Give the rows of a table that the trace holds already, None where there is none."""

    def task_places(self) -> dict[str, Array]:
        """Give ``id`` and ``process`` of every task, in the order of the rows of ``tasks``."""

    def tasks_of(self, process: int) -> dict[str, Array]:
        """Give ``id``, ``row``, ``thread``, ``start`` and ``stop`` of a process's tasks."""

    def anchors_of(self, process: int) -> Array:
        """Give a process's readings of UTC between two of its own clock, (n, 3), ns."""


class Additions:
    """Rows and strings that are added to a trace's small tables.

    Parameters
    ----------
    run
        Whose tables; a table that it lacks is made, without rows.
    """

    def __init__(self, run: RunTables) -> None:
        self.run = run
        self._strings: dict[str, Strings] = {}
        for name in ("nodes", "clocks", "processes", "gpus", "reports", "report_clocks"):
            self.made(name)

    def made(self, name: str) -> None:
        """Have a table, without rows where the trace lacks it."""
        table = self.run.tables.setdefault(name, {})
        rows = len(next(iter(table.values()), ()))
        for column in TABLES[name].columns:
            missing = np.nan if column.dtype.startswith("float") else NONE
            table.setdefault(column.name, np.full(rows, missing, column.dtype))
        self.written(name)

    @functools.cached_property
    def task_places(self) -> dict[str, Array]:
        """Give ``id`` and ``process`` of every task, sorted by id."""
        places = self.run.task_places()
        order = np.argsort(places["id"], kind="stable")
        return {name: values[order] for name, values in places.items()}

    def strings(self, dictionary: str) -> Strings:
        """Give a dictionary of the trace, which may grow."""
        if dictionary not in self._strings:
            self._strings[dictionary] = Strings(self.run.dictionaries.get(dictionary, []))
        return self._strings[dictionary]

    def written(self, table: str) -> None:
        """Have the dictionaries of a table that is written, even if it holds no string."""
        for column in TABLES[table].columns:
            if column.dictionary and column.dictionary != "keys":
                self.strings(column.dictionary)

    def text(self, dictionary: str, code: int) -> str | None:
        """Give the string of a code."""
        return self.strings(dictionary).list()[code] if code >= 0 else None

    def names(self, dictionary: str, names: Names) -> Array:
        """Give the codes of a column of strings."""
        codes = self.strings(dictionary).codes(names.categories.tolist())
        found: Array = np.append(codes, NONE).astype(np.int32)[names.codes]
        return found

    def add(self, table: str, row: Mapping[str, Any]) -> int:
        """Add a row, "not available" in what it does not say; gives its number."""
        columns = self.run.tables[table]
        number = len(next(iter(columns.values())))
        for column in TABLES[table].columns:
            value = row.get(column.name)
            if column.dictionary:
                value = self.strings(column.dictionary).code(value)
            elif value is None:
                value = np.nan if column.dtype.startswith("float") else NONE
            dtype = columns[column.name].dtype
            columns[column.name] = np.append(columns[column.name], np.array([value], dtype))
        return number

    def add_all(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows, "not available" in what they do not say; the table is made where it lacks."""
        self.made(table)
        columns = self.run.tables[table]
        for column in TABLES[table].columns:
            values: list[Any] = [row.get(column.name) for row in rows]
            if column.dictionary:
                values = [self.strings(column.dictionary).code(value) for value in values]
            missing = np.nan if column.dtype.startswith("float") else NONE
            added = np.array([missing if v is None else v for v in values], column.dtype)
            columns[column.name] = np.concatenate([columns[column.name], added])

    def forget(self, report: int) -> None:
        """Take the rows of a report out of the small tables: it could not be put in whole."""
        for name, table in self.run.tables.items():
            if name != "reports" and "report" in table:
                kept = table["report"] != report
                self.run.tables[name] = {n: values[kept] for n, values in table.items()}

    def hostnames(self) -> list[str]:
        """Give the host of each row of ``nodes``."""
        names = self.strings("hostnames").list()
        return [names[code] if code >= 0 else "" for code in self.run.tables["nodes"]["hostname"]]

    def finish(self) -> None:
        """Give the dictionaries back."""
        for name, strings in self._strings.items():
            self.run.dictionaries[name] = strings.list()


@dataclass(frozen=True)
class PlacedReport:
    """What was put into files of a report, and how it fits the trace.

    Attributes
    ----------
    node
        Its row in ``nodes``, -1: the report does not say its host.
    joined
        Its ranges around tasks.
    rows
        By table, the files of its rows.
    matched
        Its processes that the trace knows, by pid; their corrections.
    unmatched
        Its processes of which no journal tells, by pid, where there are journals.
    gpus
        Rows of ``gpus`` of whose times it tells.
    holdings
        What it holds and what not.
    gaps
        What is missing from it, rows of table ``gaps``.
    correction
        The best correction of one of its processes, None where nothing ties its clock: then its
        times are on an axis of their own, as nsys noted them.
    """

    node: int
    joined: JoinedReport
    rows: dict[str, SpooledRows]
    matched: list[int]
    unmatched: list[int]
    gpus: set[int]
    holdings: list[Holding]
    gaps: list[dict[str, Any]]
    correction: Correction | None


def place_report(
    report: Report,
    number: int,
    additions: Additions,
    os_runtime: bool = False,
    untied: Correction | None = None,
    tie: ReportTie = UNTIED,
    tied: Correction | None = None,
) -> PlacedReport:
    """Put a report's events into files, in the trace's terms.

    Parameters
    ----------
    report
        The report.
    number
        Its row in ``reports``.
    additions
        The trace; nodes, processes and GPUs that it does not know are added.
    os_runtime
        Whether to store the calls of the operating system's libraries.
    untied
        Its correction where no clock of the trace can be told from it, before UTC is asked.
    tie
        Which of its calls are collectives with other reports' ranks.
    tied
        Its correction by those, None where they give none.
    """
    return Placing(report, number, additions, untied, tie, tied).place(os_runtime)


class Placing:
    """A report that is being put into files: its processes, GPUs and times in the trace's terms."""

    def __init__(
        self,
        report: Report,
        number: int,
        additions: Additions,
        untied: Correction | None,
        tie: ReportTie = UNTIED,
        tied: Correction | None = None,
    ) -> None:
        self.report, self.number, self.additions = report, number, additions
        self.untied, self.tie, self.tied = untied, tie, tied
        self.run = additions.run
        self.node = self._node()
        self.row_of_pid = self._known_processes()
        journals = self.run.tables["processes"]["journal"]
        self.known = {pid for pid, row in self.row_of_pid.items() if journals[row] != NONE}
        if self.node == NONE:
            self.node = self._node_of_processes()
        self.corrections: dict[int, Correction | None] = {}
        self.running: dict[int, RunningTasks] = {}
        self.gpu_rows: dict[tuple[int, int], int] = {}
        self.mig_of: set[int] = set()
        self.rows: dict[str, SpooledRows] = {}
        self.calls = _no_calls()
        self.asked: dict[Kind, int] = {}
        #: rows of the report of which the trace has sums alone, by kind
        self.summed: dict[Kind, int] = {}
        codes = additions.strings("reasons").codes(SENTENCES[reason] for reason in Reason)
        self.reason_codes = codes.astype(np.int32)

    def place(self, os_runtime: bool) -> PlacedReport:
        report = self.report
        processes = self.run.tables["processes"]
        hosts = np.array([*self.additions.hostnames(), ""], object)[processes["node"]]
        known = {"id": np.arange(len(hosts)), "hostname": hosts, "pid": processes["pid"]}
        joined = join_report(report, known, self.additions.task_places)
        self.meet(pid for pid in report.processes.pid.tolist() if pid in self.known)
        self._ranges(joined)
        self._cuda_api()
        self._on_gpu("kernels", report.kernels)
        self._on_gpu("memcpys", report.memcpys)
        self._on_gpu("memsets", report.memsets)
        self._on_gpu("synchronizations", report.synchronizations)
        os_runtime_calls.place(self, os_runtime)
        for sort in FURTHER:
            sort.place(self)
        for gpu in report.gpus.id.tolist():
            if gpu not in self.mig_of:  # what ran there ran on its instances
                self._gpu(NONE, gpu)
        told = [(pid, c) for pid, c in self.corrections.items() if c is not None]
        for pid, correction in told:
            self.additions.add(
                "report_clocks",
                {
                    "report": self.number,
                    "process": self.row_of_pid[pid],
                    "source": correction.source,
                    "origin": correction.origin_ns,
                    "offset": correction.offset_ns,
                    "drift": correction.drift,
                    "bound": correction.bound_ns,
                    "points": correction.points,
                },
            )
        best = min((c for _, c in told), key=_bound, default=self.of_report)
        seen = set(self.corrections)
        traced = self.rows.keys() & {"cuda_api", "kernels", "memcpys", "memsets"}
        holdings, gaps = add_recorded(
            self.report,
            self.number,
            self.additions,
            Known(self.row_of_pid, self.known, self.corrections, best),
            {table: len(rows.start) for table, rows in self.rows.items()},
            self.asked,
            self.summed,
        )
        # nothing is unknown to a trace that is made of reports alone
        journals = bool((processes["journal"] != NONE).any())
        return PlacedReport(
            node=self.node,
            joined=joined,
            rows=self.rows,
            matched=sorted(seen & self.known),
            unmatched=sorted(seen - self.known) if journals else [],
            # a report without a call of CUDA may have been made without tracing it
            gpus={row for row in self.gpu_rows.values() if row != NONE}
            if traced and not lost_on_gpu(holdings)
            else set(),
            holdings=holdings,
            gaps=gaps,
            correction=best,
        )

    # ------------------------------------------------------------------ who and when

    def _node(self) -> int:
        """Give the row of the report's host, which is added where the trace does not know it."""
        if self.report.hostname is None:
            return NONE
        for row, name in enumerate(self.additions.hostnames()):
            if same_host(name, self.report.hostname):
                return row
        return self.additions.add("nodes", {"hostname": self.report.hostname})

    def _node_of_processes(self) -> int:
        """Give the node of the processes that the report names, if they are of one."""
        named = {pid for pid in self.report.processes.pid.tolist() if pid in self.known}
        table = self.run.tables["processes"]
        nodes = {int(table["node"][self.row_of_pid[pid]]) for pid in named}
        return nodes.pop() if len(nodes) == 1 else NONE

    def _known_processes(self) -> dict[int, int]:
        """Give the row of each process of the host by pid, or of all where the host is not told."""
        table = self.run.tables["processes"]
        here = table["node"] == self.node
        if self.report.hostname is None:
            here[:] = True
        # a pid may come again within a run: rows are in the order of their start, the last stays
        here &= table["pid"] != NONE
        return {int(table["pid"][row]): int(row) for row in np.flatnonzero(here)}

    def meet(self, pids: Iterable[int]) -> None:
        """Give processes that come up for the first time a row and a correction."""
        new = [pid for pid in pids if pid != NONE and pid not in self.corrections]
        if not new:
            return
        anchors = {
            pid: self.run.anchors_of(self.row_of_pid[pid]) for pid in new if pid in self.row_of_pid
        }
        local = report_corrections(self.report, anchors, new)
        for pid in new:
            # all of one report read one clock
            self.corrections[pid] = self._to_trace(pid, local.get(pid)) or self._same_host()
            if pid not in self.row_of_pid:
                self.row_of_pid[pid] = self.additions.add(
                    "processes",
                    {
                        "node": self.node,
                        "clock": self._clock_row(),
                        "role": PROFILED,
                        "pid": pid,
                    },
                )

    def _same_host(self) -> Correction | None:
        """Give the correction of another process of the report, the best, None without any."""
        told = [c for c in self.corrections.values() if c is not None]
        best = min(told, key=_bound, default=None)
        if best is None:
            return None
        return replace(best, source=best.source.replace("marks", "same-host"))

    @functools.cached_property
    def of_report(self) -> Correction | None:
        """The correction of what the report names no process of, None where nothing ties it."""
        local = report_corrections(self.report, None, [NONE]).get(NONE)
        return self._to_trace(NONE, local) or self._same_host()

    @property
    def own_axis(self) -> bool:
        """Whether the report's times stay on an axis of their own."""
        return self.of_report is None

    def _clock_row(self) -> int:
        """Give the clock of the report's host, -1 where the trace knows none."""
        for node in [self.node, *sorted(self.same_hosts)]:
            here = np.flatnonzero(self.run.tables["clocks"]["node"] == node)
            if node != NONE and len(here):
                return int(here[0])
        return NONE

    @functools.cached_property
    def same_hosts(self) -> set[int]:
        """Rows of nodes that have a GPU of the report, so are its host under another name.

        A container has a name of its own, but its host's GPUs and clock.
        """
        own = {_plain_uuid(uuid) for uuid in self.report.gpus.uuid if _tells(uuid)}
        table = self.run.tables["gpus"]
        nodes: set[int] = set()
        for row in range(len(table["node"])):
            uuids = (self.additions.text("uuids", int(table[n][row])) for n in ("uuid", "mig_of"))
            if any(uuid and _plain_uuid(uuid) in own for uuid in uuids):
                nodes.add(int(table["node"][row]))
        return nodes - {NONE, self.node}

    def _to_trace(self, pid: int, local: Correction | None) -> Correction | None:
        """Give the correction from session time to the trace's.

        Collectives give it where they tell more than what the report states of its own start. Where
        journals tie the host's clock they are only checked: kernels would leave their tasks.
        """
        stated = self._as_stated(pid, local)
        if self.tied is None:
            return stated
        journals = bool((self.run.tables["processes"]["journal"] != NONE).any())
        if stated is None or stated.bound_ns < 0:
            return self.tied
        if (stated.source == "utc" or not journals) and self.tied.bound_ns < stated.bound_ns:
            return self.tied
        return stated

    def _as_stated(self, pid: int, local: Correction | None) -> Correction | None:
        """Give the correction from session time to the trace's, by the clock that the process read.

        Where that cannot be, by UTC.
        """
        clock = self._clock_row()
        if pid in self.known:
            clock = int(self.run.tables["processes"]["clock"][self.row_of_pid[pid]])
        if local is not None and clock != NONE:
            following = self._clock(clock)
            together = local.then(following)
            # that correction counts from the reference clock's zero
            zero = int(self.run.attributes["origin_monotonic_ns"])
            together = replace(together, offset_ns=together.offset_ns - zero)
            if min(local.bound_ns, following.bound_ns) < 0:
                together = replace(together, bound_ns=-1)
            return together
        if self.untied is not None:
            return self.untied
        start = self.report.session_start_utc_ns
        origin = int(self.run.attributes.get("origin_utc_ns", -1))
        if start is None or origin < 0:
            return None
        host = self.report.hostname
        reference = str(self.run.attributes.get("reference_host", ""))
        names = self.additions.hostnames()
        hosts = [host, *(names[node] for node in self.same_hosts)]
        same = any(name and same_host(name, reference) for name in hosts)
        return Correction(
            source="utc",
            origin_ns=0,
            offset_ns=start - origin,
            drift=0.0,
            bound_ns=START_UNCERTAINTY_NS + (0 if same else UTC_DISAGREEMENT_NS),
            residual_ns=0,
            points=1,
        )

    def _clock(self, row: int) -> Correction:
        """Give the correction of a clock to the reference clock."""
        clocks = self.run.tables["clocks"]
        return Correction(
            source=self.additions.text("sources", int(clocks["source"][row])) or "",
            origin_ns=int(clocks["origin"][row]),
            offset_ns=int(clocks["offset"][row]),
            drift=float(clocks["drift"][row]),
            bound_ns=int(clocks["bound"][row]),
            residual_ns=int(clocks["residual"][row]),
            points=int(clocks["points"][row]),
        )

    def own_pids(self) -> Array:
        """Give the processes of which things are kept that nsys may record of all on the host.

        Those that the trace knows; where it has no journals, also those that were profiled.
        """
        pids = set(self.row_of_pid)
        if not (self.run.tables["processes"]["journal"] != NONE).any():
            pids |= set(self.report.processes.pid.tolist())
        return np.array(sorted(pids - {NONE}), np.int64)

    def by_process(self, pid: Array, value: Callable[[int], int]) -> Array:
        """Give a number for each row that depends on its process."""
        found = np.full(len(pid), NONE, np.int32)
        for number, rows in grouped(pid):
            found[rows] = value(number)
        return found

    def process(self, pid: Array) -> Array:
        """Give the row of each process."""
        self.meet(distinct_values(pid)[0].tolist())
        return self.by_process(pid, lambda number: self.row_of_pid.get(number, NONE))

    def times(self, pid: Array, *times: Array) -> None:
        """Put times on the trace's clock, in place; what nothing ties stays, as -1 does."""
        for number, rows in grouped(pid):
            correction = self.corrections.get(number) or self.of_report
            if correction is None:
                continue
            for values in times:
                own = values[rows]
                values[rows] = np.where(own == NONE, NONE, correction.apply(own))

    # ------------------------------------------------------------------ what

    def spool(self, table: str, columns: dict[str, Array]) -> None:
        count = len(columns["start"])
        if not count:
            return
        columns["report"] = np.broadcast_to(np.int32(self.number), (count,))
        path = self.run.scratch / f"report-{self.number}-{table}"
        self.rows[table] = SpooledRows(path, columns)

    def _ranges(self, joined: JoinedReport) -> None:
        ranges = self.report.ranges
        process = self.process(ranges.pid)
        start, stop = ranges.start.copy(), ranges.stop.copy()
        self.times(ranges.pid, start, stop)
        task = np.full(len(ranges), NONE, np.int64)
        reason = np.full(len(ranges), NONE, np.int32)
        around = np.flatnonzero(ranges.domain.equal(COMPUTE_DOMAIN))
        codes = self.additions.strings("reasons").codes(_LINKS.get(link) for link in Link)
        reason[around] = codes[joined.link]
        linked = joined.link == Link.LINKED
        for pid, rows in grouped(ranges.pid[around[linked]]):
            places = around[linked][rows]
            tasks = self.run.tasks_of(self.row_of_pid[pid])
            found, there = find_rows(tasks["id"], ranges.payload[places])
            # a pid may come again: then the task may be of the process before
            places, found = places[there], found[there]
            task[places] = tasks["row"][found]
            # nsys stamped range and call by one clock, and a range lies within its task's times
            for name, values in (("start", start), ("stop", stop), ("thread", ranges.tid)):
                tasks[name] = tasks[name].astype(np.int64)
                tasks[name][found] = values[places]
            if self.own_axis:  # the others' times are the trace's
                tasks = {name: values[np.unique(found)] for name, values in tasks.items()}
            self.running[pid] = _running(tasks)
        # those of the user's code: of the task that ran then on their thread
        own = np.flatnonzero(~ranges.domain.equal(COMPUTE_DOMAIN))
        found, why = self.task_at(ranges.pid[own], ranges.tid[own], start[own])
        task[own], reason[own] = found, self.reason_codes[why]
        self.spool(
            "nvtx_ranges",
            {
                "process": process,
                "thread": ranges.tid,
                "start": start,
                "stop": stop,
                "domain": self.additions.names("nvtx_domains", ranges.domain),
                "message": self.additions.names("nvtx_messages", ranges.message),
                "payload": ranges.payload,
                "value": ranges.value,
                "data": self.additions.names("nvtx_data", ranges.data),
                "category": self.additions.names("nvtx_categories", ranges.category),
                "stacked": ranges.stacked.astype(np.int8),
                "task": task,
                "reason": reason,
            },
        )

    def task_at(self, pid: Array, thread: Array, time: Array) -> tuple[Array, Array]:
        """Find the task to which what a thread did at a time belongs.

        Parameters
        ----------
        pid, thread
            Who.
        time
            When, trace time.

        Returns
        -------
        task : int32
            Rows of tasks, -1 for none.
        reason : int8
            A `Reason` each.
        """
        task = np.full(len(pid), NONE, np.int32)
        reason = np.full(len(pid), Reason.NO_PROCESS, np.int8)
        for number, rows in grouped(pid):
            if number == NONE:
                continue
            task[rows], reason[rows] = self.tasks_of_threads(number, thread[rows], time[rows])
        return task, reason

    def tasks(self, pid: int) -> RunningTasks:
        """Give when the tasks of a process ran."""
        if pid not in self.running:
            row = self.row_of_pid.get(pid, NONE)
            tasks = self.run.tasks_of(row)
            if self.own_axis:
                tasks = {name: values[:0] for name, values in tasks.items()}
            self.running[pid] = _running(tasks)
        return self.running[pid]

    def tasks_of_threads(self, pid: int, thread: Array, time: Array) -> tuple[Array, Array]:
        """Find the task of what threads of a process did; see `attribute.task_of_calls`.

        Parameters
        ----------
        pid
            The process, which is met already.
        thread, time
            Who did it, -1: not told, and when by the trace's clock.
        """
        task, reason = task_of_calls(self.tasks(pid), thread, time)
        if self.own_axis and pid in self.known:
            other = reason != Reason.BY_THREAD
            task[other], reason[other] = NONE, Reason.NOT_TIED
        return task, reason

    def _cuda_api(self) -> None:
        call = self.report.cuda_api
        count = len(call)
        process, task = np.empty(count, np.int32), np.empty(count, np.int32)
        reason = np.empty(count, np.int8)
        for part in _parts(count):
            pid = call.pid[part]
            process[part] = self.process(pid)
            self.times(pid, call.start[part], call.stop[part])
            task[part], reason[part] = self.task_at(pid, call.tid[part], call.start[part])
        self.asked = calls_for(call.name)
        self.calls = Calls.of(call.pid, call.correlation, call.tid, call.start, task, reason)
        self.spool(
            "cuda_api",
            {
                "process": process,
                "thread": call.tid,
                "start": call.start,
                "stop": call.stop,
                "correlation": call.correlation,
                "name": self.additions.names("cuda_calls", call.name),
                "task": task,
                "reason": self.reason_codes[reason],
            },
        )

    def _on_gpu(self, table: str, rows: Kernels | Memcpys | Memsets | Synchronizations) -> None:
        # tens of millions of rows: what is not needed any more goes, and no step takes all at once
        columns: dict[str, Any] = dict(vars(rows))
        count = len(rows)
        del rows
        if not count:
            return
        pid, device = columns.pop("pid"), columns.pop("device")
        added = {n: np.empty(count, np.int32) for n in ("process", "thread", "gpu", "task")}
        added |= {"launched": np.empty(count, np.int64), "reason": np.empty(count, np.int32)}
        for part in _parts(count):
            added["process"][part] = self.process(pid[part])
            added["gpu"][part] = self.gpus(pid[part], device[part])
            self.times(pid[part], columns["start"][part], columns["stop"][part])
            launches = self.calls.launching(pid[part], columns["correlation"][part])
            added["thread"][part], added["launched"][part] = launches.thread, launches.start
            added["task"][part] = launches.task
            added["reason"][part] = self.reason_codes[launches.reason]
        if table == "memcpys":
            memory.unpack(self, columns, added, pid)
        if table == "memsets":
            columns["memory"] = self.kinds("memory_kinds", memory.MEMORY_KINDS, columns["memory"])
        del pid, device
        for name in ("name", "short_name"):
            if name in columns:
                columns[name] = self.additions.names("kernel_names", columns[name])
        if table == "memcpys":
            columns["kind"] = self.kinds("copy_kinds", COPY_KINDS, columns["kind"])
        if table == "synchronizations":
            kinds = SYNCHRONIZATION_KINDS
            columns["kind"] = self.kinds("synchronization_kinds", kinds, columns["kind"])
        columns.update(added)
        del added
        self.spool(table, columns)

    def kinds(self, dictionary: str, kinds: Mapping[int, str], values: Array) -> Array:
        strings = self.additions.strings(dictionary)
        distinct, index = distinct_values(values)
        codes = np.array(
            [
                NONE if kind == NONE else strings.code(kinds.get(kind, f"kind {kind}"))
                for kind in distinct.tolist()
            ],
            np.int64,
        )
        # no version has a tenth as many kinds: what more there are is no kind
        codes[codes > np.iinfo(np.int8).max] = NONE
        return codes.astype(np.int8)[index]

    # ------------------------------------------------------------------ GPUs

    def gpus(self, pid: Array, device: Array) -> Array:
        """Give the row of each GPU."""
        found = np.full(len(pid), NONE, np.int32)
        for process, rows in grouped(pid):
            own = device[rows]
            codes = np.full(len(rows), NONE, np.int32)
            for number, places in grouped(own):
                codes[places] = self._gpu(process, number)
            found[rows] = codes
        return found

    def _gpu(self, pid: int, device: int) -> int:
        """Give the row of a GPU, which is added where the trace does not know it.

        From 2025 a device is a process's own number, which a table turns into the report's number
        of a GPU; without that table it is that number. Where the report does not say which GPU
        that is, the worker's own list of its GPUs does.
        """
        if not 0 <= device <= np.iinfo(np.int32).max:
            return NONE
        known = self.gpu_rows.get((pid, device))
        if known is not None:
            return known
        devices = self.report.cuda_devices
        own = np.flatnonzero((devices.pid == pid) & (devices.device == device))
        number = int(devices.gpu[own[0]]) if len(own) else device
        told: dict[str, Any] = {}
        own_uuid = str(devices.uuid[own[0]]) if len(own) else ""
        own_uuid = own_uuid if _tells(own_uuid) else ""
        place = np.flatnonzero(self.report.gpus.id == number)
        if not len(place) and own_uuid:
            uuids = [_plain_uuid(uuid) for uuid in self.report.gpus.uuid]
            place = np.flatnonzero(np.array(uuids, object) == _plain_uuid(own_uuid))
        if len(place):
            gpus, row = self.report.gpus, place[0]
            told = {
                "uuid": gpus.uuid[row] if _tells(gpus.uuid[row]) else None,
                "name": gpus.name[row] or None,
                "memory": int(gpus.memory_bytes[row]),
                "multiprocessors": int(gpus.multiprocessors[row]),
                "bus": gpus.bus[row] or None,
                "nsys_id": int(gpus.id[row]),
            }
        if own_uuid and told.get("uuid") and _plain_uuid(own_uuid) != _plain_uuid(told["uuid"]):
            # the driver gives a MIG instance a UUID of its own; what memory it has is not told
            told |= {"mig_of": told["uuid"], "uuid": own_uuid, "memory": NONE}
            told["multiprocessors"] = int(devices.multiprocessors[own[0]])
            self.mig_of.add(number)
        elif own_uuid:
            told["uuid"] = own_uuid
        if len(own) and number != NONE:
            told.setdefault("nsys_id", number)
        if not told.get("uuid"):
            # without a list of GPUs the number can only be the process's own
            told["uuid"] = self._uuid_of_worker(pid, device if not len(place) else NONE)
        found = self._find_gpu(told, number)
        self.gpu_rows[pid, device] = found
        return found

    def _uuid_of_worker(self, pid: int, device: int) -> str | None:
        row = self.row_of_pid.get(pid, NONE)
        code = int(self.run.tables["processes"]["gpus"][row]) if row != NONE else NONE
        uuids = (self.additions.text("uuids", code) or "").split(",")
        if len(uuids) == 1:
            return uuids[0] or None
        return uuids[device] or None if 0 <= device < len(uuids) else None

    def _find_gpu(self, told: Mapping[str, Any], number: int) -> int:
        table = self.run.tables["gpus"]
        axis = self.number if self.own_axis else NONE
        for row in np.flatnonzero(table["own_axis"] == axis).tolist():
            uuid = self.additions.text("uuids", int(table["uuid"][row]))
            bus = self.additions.text("buses", int(table["bus"][row]))
            if told.get("uuid") and uuid:
                same = _plain_uuid(uuid) == _plain_uuid(told["uuid"])
            elif told.get("bus") and bus:
                same = bus_address(bus) == bus_address(told["bus"])
            else:
                same = int(table["index"][row]) == number
            # nothing but a UUID tells it from those of other hosts, and a host that is not told may
            # be another one in each report
            here = int(table["node"][row]) == self.node
            if not here or (self.node == NONE and row not in self.gpu_rows.values()):
                same = bool(told.get("uuid") and uuid) and same
            if same:
                for name in ("multiprocessors", "memory", "nsys_id"):
                    if table[name][row] == NONE and told.get(name) is not None:
                        table[name][row] = told[name]
                for name, dictionary in (("bus", "buses"), ("name", "gpu_names")):
                    if table[name][row] == NONE and told.get(name):
                        table[name][row] = self.additions.strings(dictionary).code(told[name])
                return row
        # NVML counts GPUs in the order of their buses, as nsys does, but only it says so
        index = NONE if told.get("uuid") or told.get("bus") else number
        return self.additions.add(
            "gpus", {"node": self.node, "index": index, "own_axis": axis, **told}
        )


def _parts(count: int) -> Iterator[slice]:
    """Divide rows into such as are worked on at once."""
    for first in range(0, count, ROWS_AT_ONCE):
        yield slice(first, min(count, first + ROWS_AT_ONCE))


def _running(tasks: Mapping[str, Array]) -> RunningTasks:
    stop = np.where(tasks["stop"] == NONE, FOREVER, tasks["stop"])
    return RunningTasks(tasks["row"], tasks["thread"], tasks["start"], stop)


def _bound(correction: Correction) -> int:
    return correction.bound_ns if correction.bound_ns >= 0 else FOREVER


def _no_calls() -> Calls:
    none = np.empty(0, np.int64)
    return Calls(none, none, none, none, none)


def _tells(uuid: str) -> bool:
    """Whether a UUID is one: some are zeros where the driver did not say."""
    return bool(_plain_uuid(uuid).strip("0"))


def _plain_uuid(uuid: str) -> str:
    """Give a UUID as every program writes it."""
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-").replace("-", "")
