"""Nsight, second step: read an exported SQLite of any nsys since 2020 into plain columns.

Times are ns from the start of nsys's session, as in the report; nothing is corrected here. What
the profiled program's environment held is in the report too, and is never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import sqlite3
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dasf_hpc.nsight.diagnostics import (
    SEVERITIES,
    SOURCES,
    TARGET_TIME,
    concerns,
    loss,
    redacted,
    traced,
)
from dasf_hpc.nsight.errors import ReportDamaged, ReportMissing
from dasf_hpc.nsight.export import open_journal

CLOCK_DOMAIN = "dasf_hpc.clock"
"""NVTX domain of the marks whose payload is the process's own CLOCK_MONOTONIC, ns."""

NONE = -1
"""What stands in an integer column where the report says nothing."""

COPY_KINDS: Mapping[int, str] = {
    0: "unknown",
    1: "host to device",
    2: "device to host",
    3: "host to array",
    4: "array to host",
    5: "array to array",
    6: "array to device",
    7: "device to array",
    8: "device to device",
    9: "host to host",
    10: "peer to peer",
    11: "unified host to device",
    12: "unified device to host",
    13: "unified device to device",
}
"""Values of `Memcpys.kind`: CUPTI's ``CUpti_ActivityMemcpyKind`` and nsys's own from 11 on."""

SYNCHRONIZATION_KINDS: Mapping[int, str] = {
    0: "unknown",
    1: "event",
    2: "stream wait event",
    3: "stream",
    4: "context",
}
"""Values of `Synchronizations.kind`: CUPTI's ``CUpti_ActivitySynchronizationType``."""

_MARK, _PUSH_POP, _START_END, _DOMAIN_CREATED = 34, 59, 60, 75
"""``NVTX_EVENTS.eventType``."""

_ROWS_AT_ONCE = 250_000
"""Rows fetched by one query: their digits take about 30 MB, far below SQLite's 1 GB a value."""

_FAR = 2**61
"""A number further from 0 is no time, ns: it is 73 years."""

_TIMES = frozenset({"start", "stop", "payload"})
"""Columns that stay 64 bits wide; others take 32 where their numbers fit."""

Integers = npt.NDArray[Any]
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Names:
    """A column of strings, each distinct one kept once.

    Attributes
    ----------
    codes
        Index into `categories` of each row, -1 for none.
    categories
        The distinct strings, an object array.
    """

    codes: Codes
    categories: npt.NDArray[np.object_]

    def __len__(self) -> int:
        """Give the number of rows."""
        return len(self.codes)

    def __getitem__(self, rows: npt.NDArray[np.integer[Any] | np.bool_] | slice) -> Names:
        """Give the column of some of the rows."""
        return Names(self.codes[rows], self.categories)

    def values(self) -> npt.NDArray[np.object_]:
        """Give the string of each row, "" for none."""
        return np.append(self.categories, "")[self.codes]

    def equal(self, name: str) -> npt.NDArray[np.bool_]:
        """Say of each row whether it holds this string."""
        return np.isin(self.codes, np.flatnonzero(self.categories == name))


class _Table:
    """What the tables share: their columns are all as long."""

    def __len__(self) -> int:
        """Give the number of rows."""
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Processes(_Table):
    """The profiled processes.

    PROCESSES of an export lists every process of the machine, other people's too, and misses some
    of the profiled ones: these are the processes something was recorded of, by pid; `name` is the
    program's path, "" where the report has none.
    """

    pid: Integers
    name: npt.NDArray[np.object_]


@dataclass(frozen=True)
class ClockMarks(_Table):
    """Marks in `CLOCK_DOMAIN`, in order of session time.

    `session_ns` is when nsys saw the mark, ns from session start; `clock_ns` is the payload, what
    the process had just read from its own clock.
    """

    pid: Integers
    tid: Integers
    session_ns: Integers
    clock_ns: Integers


@dataclass(frozen=True)
class Ranges(_Table):
    """NVTX push/pop and start/end ranges, in order of `start`.

    `tid` is the thread that opened it; `stop` is -1 where it was never closed (older nsys writes
    the session's end there); `payload` is the integer one, -1 for none.
    """

    pid: Integers
    tid: Integers
    start: Integers
    stop: Integers
    domain: Names
    message: Names
    payload: Integers


@dataclass(frozen=True)
class Kernels(_Table):
    """Kernels on the GPUs; `name` is demangled, `short_name` without arguments.

    `graph_node` is the node of a CUDA graph that ran it, -1 for none. Where nsys recorded whole
    launches of graphs instead of their kernels (its ``--cuda-graph-trace=graph``), a launch is one
    row here, named "CUDA graph" and its id.
    """

    pid: Integers
    device: Integers
    context: Integers
    stream: Integers
    correlation: Integers
    start: Integers
    stop: Integers
    name: Names
    short_name: Names
    graph_node: Integers


@dataclass(frozen=True)
class Memcpys(_Table):
    """Copies to, from and on the GPUs; `kind` is one of `COPY_KINDS`."""

    pid: Integers
    device: Integers
    context: Integers
    stream: Integers
    correlation: Integers
    start: Integers
    stop: Integers
    bytes: Integers
    kind: Integers


@dataclass(frozen=True)
class Memsets(_Table):
    """Fills of GPU memory."""

    pid: Integers
    device: Integers
    context: Integers
    stream: Integers
    correlation: Integers
    start: Integers
    stop: Integers
    bytes: Integers


@dataclass(frozen=True)
class Synchronizations(_Table):
    """Waits for the GPUs; `kind` is CUPTI's ``CUpti_ActivitySynchronizationType``."""

    pid: Integers
    device: Integers
    context: Integers
    stream: Integers
    correlation: Integers
    start: Integers
    stop: Integers
    kind: Integers


@dataclass(frozen=True)
class CudaApi(_Table):
    """Calls of CUDA's runtime and driver; `correlation` is that of what they launched."""

    pid: Integers
    tid: Integers
    correlation: Integers
    start: Integers
    stop: Integers
    name: Names


@dataclass(frozen=True)
class OsRuntime(_Table):
    """Calls of the operating system's libraries that took long enough to be recorded."""

    pid: Integers
    tid: Integers
    start: Integers
    stop: Integers
    name: Names


@dataclass(frozen=True)
class Gpus(_Table):
    """The node's GPUs; `memory_bytes` and `multiprocessors` are -1 where not told."""

    id: Integers
    name: npt.NDArray[np.object_]
    uuid: npt.NDArray[np.object_]
    bus: npt.NDArray[np.object_]
    memory_bytes: Integers
    multiprocessors: Integers


@dataclass(frozen=True)
class CudaDevices(_Table):
    """Which GPU a process's CUDA device is (from 2025; before, `device` is the GPU's id).

    `uuid` is the device's own, "" where not told: of a MIG instance another one than its GPU's, and
    so are its `multiprocessors`.
    """

    pid: Integers
    device: Integers
    gpu: Integers
    uuid: npt.NDArray[np.object_]
    multiprocessors: Integers


@dataclass(frozen=True)
class Diagnostic:
    """What nsys says of its own recording, its text as it may be stored.

    Attributes
    ----------
    pid
        The process it is of, -1: of none.
    time
        When, ns from session start; -1: by another clock, or not told.
    severity, source
        In nsys's words: ``info``, ``warning``, ``error``; ``injection``, ``daemon``, ``analysis``.
    text
        See `dasf_hpc.nsight.diagnostics.redacted`.
    lost
        How much it says is lost, -1: it does not say how much; None: it tells of no loss.
    concerns, traced
        What it is about, and what it proves was traced, of ``nvtx`` and ``cuda``.
    """

    pid: int
    time: int
    severity: str
    source: str
    text: str
    lost: int | None
    concerns: frozenset[str]
    traced: frozenset[str]


@dataclass(frozen=True)
class Report:
    """What an exported report holds of use here.

    What ran on the GPUs and what called it may be tens of millions of rows: those tables are read
    when they are asked for and not kept.

    Attributes
    ----------
    hostname
        The node's, ``None`` where the export has none (2020).
    session_start_utc_ns
        UTC of session time 0 by the node's clock, ns since 1970.
    system_clock_ns
        CLOCK_MONOTONIC of session time 0, ns; only newer nsys say.
    recorder_version
        Of the nsys that recorded, ``None`` where the folder that it ran from does not say.
    exporter_version
        Of the nsys that exported, ``None`` where not told.
    processes
        Those that NVTX, the operating system's calls or nsys's own overhead tell of.
    """

    hostname: str | None
    session_start_utc_ns: int | None
    system_clock_ns: int | None
    recorder_version: str | None
    exporter_version: str | None
    processes: Processes
    clock_marks: ClockMarks
    ranges: Ranges
    gpus: Gpus
    cuda_devices: CudaDevices
    sqlite: Path = field(repr=False)
    _ahead: dict[str, Any] = field(default_factory=dict, repr=False)

    def read_ahead(self) -> None:
        """Read what ran on the GPUs and what called it now; each table is kept until its use."""
        for name in ("cuda_api", "kernels", "memcpys", "memsets", "synchronizations"):
            self._ahead[name] = getattr(self, name)

    def recorded_pids(self) -> frozenset[int]:
        """Give the processes that anything was recorded of."""
        found = frozenset(self.processes.pid.tolist())
        with _opened(self.sqlite) as export:
            return found | export.cuda_pids()

    def events_digest(self) -> str | None:
        """Give a digest of when everything was, the same from every exporter; None without any."""
        with _opened(self.sqlite) as export:
            return export.events_digest(self.ranges)

    @property
    def kernels(self) -> Kernels:
        """Kernels, and CUDA graphs that were launched as a whole."""
        if "kernels" in self._ahead:
            found: Kernels = self._ahead.pop("kernels")
            return found
        with _opened(self.sqlite) as export:
            return export.kernels()

    @property
    def memcpys(self) -> Memcpys:
        """Copies."""
        if "memcpys" in self._ahead:
            found: Memcpys = self._ahead.pop("memcpys")
            return found
        more = {"bytes": ("bytes", NONE), "kind": ("copyKind", NONE)}
        with _opened(self.sqlite) as export:
            return Memcpys(**export.numbers("CUPTI_ACTIVITY_KIND_MEMCPY", _ON_DEVICE | more))

    @property
    def memsets(self) -> Memsets:
        """Fills."""
        if "memsets" in self._ahead:
            found: Memsets = self._ahead.pop("memsets")
            return found
        more = {"bytes": ("bytes", NONE)}
        with _opened(self.sqlite) as export:
            return Memsets(**export.numbers("CUPTI_ACTIVITY_KIND_MEMSET", _ON_DEVICE | more))

    @property
    def synchronizations(self) -> Synchronizations:
        """Waits for the GPUs."""
        if "synchronizations" in self._ahead:
            found: Synchronizations = self._ahead.pop("synchronizations")
            return found
        table, more = "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION", {"kind": ("syncType", NONE)}
        with _opened(self.sqlite) as export:
            return Synchronizations(**export.numbers(table, _ON_DEVICE | more))

    @property
    def cuda_api(self) -> CudaApi:
        """Calls of CUDA."""
        if "cuda_api" in self._ahead:
            found: CudaApi = self._ahead.pop("cuda_api")
            return found
        more = {"correlation": ("correlationId", NONE)}
        with _opened(self.sqlite) as export:
            call = export.numbers("CUPTI_ACTIVITY_KIND_RUNTIME", _CALL | more)
            return CudaApi(name=export.strings(call.pop("name")), **call)

    @property
    def diagnostics(self) -> list[Diagnostic] | None:
        """What nsys says of its own recording; None where its version says nothing (to 2023)."""
        with _opened(self.sqlite) as export:
            return export.diagnostics()

    @property
    def tables(self) -> frozenset[str]:
        """Names of nsys's tables in the export, also of those without rows."""
        with _opened(self.sqlite) as export:
            return frozenset(export.columns)

    def count(self, table: str) -> int | None:
        """Count the rows of one of nsys's tables; None where the export has no such table."""
        with _opened(self.sqlite) as export:
            if table not in export.columns:
                return None
            count: int = export.connection.execute(
                f"SELECT count(*) FROM {_quoted(table)}"
            ).fetchone()[0]
            return count

    @property
    def os_runtime(self) -> OsRuntime:
        """Calls of the operating system's libraries."""
        with _opened(self.sqlite) as export:
            call = export.numbers("OSRT_API", _CALL)
            return OsRuntime(name=export.strings(call.pop("name")), **call)


_ON_DEVICE: dict[str, tuple[str, int]] = {
    "pid": ("globalPid", NONE),
    "device": ("deviceId", NONE),
    "context": ("contextId", NONE),
    "stream": ("streamId", NONE),
    "correlation": ("correlationId", NONE),
    "start": ("start", NONE),
    "stop": ("end", NONE),
}
_CALL: dict[str, tuple[str, int]] = {
    "pid": ("globalTid", NONE),
    "tid": ("globalTid", NONE),
    "start": ("start", NONE),
    "stop": ("end", NONE),
    "name": ("nameId", NONE),
}


#: Small tables that name processes, and the columns that do.
_PROCESSES_OF_CUDA = (
    ("TARGET_INFO_CUDA_STREAM", "processId"),
    ("TARGET_INFO_CUDA_NULL_STREAM", "processId"),
    ("TARGET_INFO_CUDA_CONTEXT_INFO", "processId"),
    ("TARGET_INFO_CUDA_DEVICE", "pid"),
)


def read_report(sqlite: Path) -> Report:
    """Read an exported report.

    Parameters
    ----------
    sqlite
        What ``nsys export --type sqlite`` wrote, in any schema from 2020.3 to 2026.2: tables and
        columns that it lacks give empty tables and -1.

    Raises
    ------
    NsightError
        If the file is missing, no export, or damaged; nothing else is raised for a bad file, also
        when its tables are read later.
    """
    with _opened(sqlite) as export:
        return export.report()


@contextlib.contextmanager
def _opened(sqlite: Path) -> Iterator[_Export]:
    """Open an export; whatever is wrong with it becomes one error."""
    try:
        with sqlite.open("rb"):
            pass
    except OSError as error:
        raise ReportMissing(f"{sqlite} cannot be read ({error.strerror or error})") from error
    try:
        with contextlib.closing(_connect(sqlite)) as connection:
            yield _Export(connection, sqlite)
    except (sqlite3.Error, ValueError, TypeError, OverflowError, IndexError) as error:
        raise ReportDamaged(
            f"{sqlite} is no whole Nsight Systems export ({error}); export the report again"
        ) from error


def _connect(sqlite: Path) -> sqlite3.Connection:
    """Open an export, which nobody changes: so without locks, which some file systems lack.

    One that has a journal beside it is not whole without that, and is read with locks.
    """
    how = "mode=ro" if open_journal(sqlite) else "mode=ro&immutable=1"
    connection = sqlite3.connect(f"{sqlite.absolute().as_uri()}?{how}", uri=True)
    # one name that is no UTF-8 must not cost the report
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    return connection


class _Export:
    """An open export: which tables and columns it has, and how to read them."""

    def __init__(self, connection: sqlite3.Connection, sqlite: Path) -> None:
        self.connection, self.sqlite = connection, sqlite
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
        #: by table, its columns and whether each may be NULL
        self.columns: dict[str, dict[str, bool]] = {
            table: {
                row[1]: not row[3]
                for row in connection.execute(f"PRAGMA table_info({_quoted(table)})")
            }
            for table in tables
        }
        if "StringIds" not in self.columns:
            raise ValueError("it has no table StringIds")

    def report(self) -> Report:
        """Read everything but what ran on GPUs and what called it."""
        marks, ranges = self.nvtx()
        start_time = "TARGET_INFO_SESSION_START_TIME"
        return Report(
            hostname=self.named_value("TARGET_INFO_SYSTEM_ENV", "Hostname"),
            session_start_utc_ns=self.single_number(start_time, "utcEpochNs"),
            system_clock_ns=self.single_number(start_time, "systemClockNs"),
            recorder_version=self.recorder_version(),
            exporter_version=(
                self.named_value("META_DATA_EXPORT", "EXPORT_PRODUCT_VERSION")
                or self.named_value("EXPORT_META_DATA", "EXPORT_PRODUCT_VERSION")
            ),
            processes=self.processes(marks.pid, ranges.pid),
            clock_marks=marks,
            ranges=ranges,
            gpus=self.gpus(),
            cuda_devices=self.cuda_devices(),
            sqlite=self.sqlite,
        )

    def kernels(self) -> Kernels:
        """Read kernels, then graphs that were launched as a whole."""
        names = {"name": ("demangledName", NONE), "short_name": ("shortName", NONE)}
        kernel = self.numbers(
            "CUPTI_ACTIVITY_KIND_KERNEL",
            {**_ON_DEVICE, **names, "graph_node": ("graphNodeId", NONE)},
        )
        name = self.strings(kernel.pop("name"))
        short_name = self.strings(kernel.pop("short_name"))
        kernel["graph_node"][kernel["graph_node"] == 0] = NONE
        graphs = self.numbers(
            "CUPTI_ACTIVITY_KIND_GRAPH_TRACE", {**_ON_DEVICE, "graph": ("graphId", NONE)}
        )
        graph = graphs.pop("graph")
        if len(graph):
            ids, index = np.unique(graph, return_inverse=True)
            named = _encode([f"CUDA graph {i}" if i >= 0 else "CUDA graph" for i in ids], index)
            name, short_name = _joined(name, named), _joined(short_name, named)
            graphs["graph_node"] = np.full(len(graph), NONE, np.int32)
            kernel = {n: np.concatenate([kernel[n], graphs[n]]) for n in kernel}
        return Kernels(name=name, short_name=short_name, **kernel)

    def nvtx(self) -> tuple[ClockMarks, Ranges]:
        """Read NVTX's marks and ranges."""
        table = "NVTX_EVENTS"
        payloads = self.first_of(table, ["int64Value", "uint64Value", "int32Value", "uint32Value"])
        where = f"eventType IN ({_MARK}, {_PUSH_POP}, {_START_END})"
        event = self.numbers(
            table,
            {
                "type": ("eventType", NONE),
                "pid": ("globalTid", NONE),
                "tid": ("globalTid", NONE),
                "start": ("start", NONE),
                "stop": ("end", NONE),
                "domain": ("domainId", 0),
                "message": ("textId", NONE),
            },
            extra={"payload": payloads},
            where=where,
        )
        message = self.strings(event["message"], self.inline_texts(table, where))
        domain = self.domains(event["pid"], event["domain"])
        order = np.argsort(event["start"], kind="stable")
        is_range = event["type"][order] != _MARK
        payload = event["payload"][order]
        is_time = (payload >= 0) & (payload <= _FAR) & (event["start"][order] != NONE)
        is_clock = ~is_range & domain.equal(CLOCK_DOMAIN)[order] & is_time
        marks, ranges = order[is_clock], order[is_range]
        return (
            ClockMarks(
                pid=event["pid"][marks],
                tid=event["tid"][marks],
                session_ns=event["start"][marks],
                clock_ns=event["payload"][marks],
            ),
            Ranges(
                pid=event["pid"][ranges],
                tid=event["tid"][ranges],
                start=event["start"][ranges],
                stop=event["stop"][ranges],
                domain=domain[ranges],
                message=message[ranges],
                payload=event["payload"][ranges],
            ),
        )

    def domains(self, pid: Integers, domain: Integers) -> Names:
        """Name each event's domain; ids are a process's own, and 0 is the default without name.

        A domain whose creation was not recorded in its process takes the name its id has in the
        other processes, if they agree.
        """
        table = "NVTX_EVENTS"
        where = f"eventType = {_DOMAIN_CREATED}"
        created = self.numbers(
            table,
            {"pid": ("globalTid", NONE), "id": ("domainId", 0), "text": ("textId", NONE)},
            where=where,
        )
        named = self.strings(created["text"], self.inline_texts(table, where)).values()
        own: dict[tuple[int, int], str] = {}
        anywhere: dict[int, set[str]] = {}
        for process, identifier, name in zip(
            created["pid"].tolist(), created["id"].tolist(), named, strict=True
        ):
            own[process, identifier] = name
            anywhere.setdefault(identifier, set()).add(name)
        ids, id_index = distinct_values(domain)
        pids, pid_index = distinct_values(pid)
        pairs, pair_index = distinct_values(pid_index * len(ids) + id_index)
        names = []
        for pair in pairs.tolist():
            identifier = int(ids[pair % len(ids)])
            others = anywhere.get(identifier, set())
            name = own.get((int(pids[pair // len(ids)]), identifier))
            names.append(name if name is not None else others.pop() if len(others) == 1 else "")
        return _encode(names, pair_index)

    def processes(self, *seen: Integers) -> Processes:
        """List the processes that something was recorded of."""
        recorded = {int(pid) for pids in seen for pid in distinct_values(pids)[0]}
        for table in ("NVTX_EVENTS", "OSRT_API", "PROFILER_OVERHEAD"):
            if "globalTid" in self.columns.get(table, ()):
                query = f"SELECT DISTINCT (globalTid >> 24) & 0xffffff FROM {table}"
                found = self.connection.execute(f"{query} WHERE globalTid IS NOT NULL")
                recorded.update(int(pid) for (pid,) in found)
        names: dict[int, str] = {}
        if {"pid", "name"} <= self.columns.get("PROCESSES", {}).keys():
            for pid, name in self.connection.execute("SELECT pid, name FROM PROCESSES"):
                if pid in recorded and name:
                    names[pid] = name
        pids = np.array(sorted(recorded - {NONE}), dtype=np.int64)
        return Processes(pids, np.array([names.get(pid, "") for pid in pids.tolist()], object))

    def diagnostics(self) -> list[Diagnostic] | None:
        """Read what nsys says of its own recording, without what may not be stored."""
        table = "DIAGNOSTIC_EVENT"
        columns = self.columns.get(table, {})
        if "text" not in columns:
            return None
        wanted = ("text", "severity", "source", "timestamp", "timestampType", "globalPid")
        selected = ", ".join(name if name in columns else "NULL" for name in wanted)
        severities = {**SEVERITIES, **self.enum("ENUM_DIAGNOSTIC_SEVERITY_LEVEL")}
        sources = {**SOURCES, **self.enum("ENUM_DIAGNOSTIC_SOURCE_TYPE")}
        found = []
        for text, severity, source, time, clock, process in self.connection.execute(
            f"SELECT {selected} FROM {table} ORDER BY rowid"
        ):
            said = str(text or "")
            # a process's number stands in bits 24 to 47; what is of no process has none there
            pid = (int(process) >> 24) & 0xFFFFFF if process is not None else 0
            placed = time is not None and clock in (None, TARGET_TIME) and abs(int(time)) <= _FAR
            what = loss(said)
            found.append(
                Diagnostic(
                    pid=pid or NONE,
                    time=int(time) if placed else NONE,
                    severity=severities.get(severity, f"severity {severity}"),
                    source=sources.get(source, f"source {source}"),
                    text=redacted(said),
                    lost=None if what is None else what.count,
                    concerns=concerns(said),
                    traced=traced(said),
                )
            )
        return found

    def enum(self, table: str) -> dict[int, str]:
        """Read what the numbers of a column mean."""
        if not {"id", "name"} <= self.columns.get(table, {}).keys():
            return {}
        rows = self.connection.execute(f"SELECT id, name FROM {table}")
        return {int(number): redacted(str(name)).lower() for number, name in rows if name}

    def recorder_version(self) -> str | None:
        """Give the version in the name of the folder from which the recording nsys ran.

        No table states it (META_DATA_EXPORT is about the exporter, and META_DATA_CAPTURE of 2023.4
        holds settings alone), but NVIDIA's installations have it in their folders' names, as
        ``nsight-systems/2023.4.4/target-linux-x64`` or ``nsight-systems-2022.4.2``.
        """
        folder = self.named_value("TARGET_INFO_SYSTEM_ENV", "TargetInstallDir") or ""
        found = re.search(
            r"nsight[-_]?systems(?:-cli)?[-/](20\d\d(?:\.\d+)+)", folder, re.IGNORECASE
        )
        return found[1] if found else None

    def cuda_pids(self) -> frozenset[int]:
        """Give the processes that use CUDA, by small tables where the export has them."""
        queries = [
            f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL"
            for table, column in _PROCESSES_OF_CUDA
            if column in self.columns.get(table, ())
        ]
        pids = {int(pid) for query in queries for (pid,) in self.query(query)}
        if pids:
            return frozenset(pids)
        for table, columns in self.columns.items():
            for column in {"globalPid", "globalTid"} & columns.keys():
                if table.startswith("CUPTI_ACTIVITY_KIND_"):
                    query = f"SELECT DISTINCT ({column} >> 24) & 0xffffff FROM {_quoted(table)}"
                    found = self.query(f"{query} WHERE {column} IS NOT NULL")
                    pids.update(int(pid) for (pid,) in found)
        return frozenset(pids)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Give all that a query finds."""
        return self.connection.execute(sql).fetchall()

    def events_digest(self, ranges: Ranges) -> str | None:
        """Hash the times of ranges, calls and what ran on GPUs, in an order of their own.

        Only what every exporter writes alike: ends of ranges, names and devices are not.
        """
        digest, events = hashlib.sha256(), 0
        tables = [("NVTX", [ranges.start, ranges.pid, ranges.tid])]
        times = {name: _ON_DEVICE[name] for name in ("correlation", "start", "stop")}
        calls = {name: _CALL[name] for name in ("pid", "tid", "start", "stop")}
        for kind, columns in (
            ("KERNEL", times),
            ("MEMCPY", times),
            ("MEMSET", times),
            ("RUNTIME", calls),
        ):
            found = self.numbers(f"CUPTI_ACTIVITY_KIND_{kind}", columns)
            tables.append((kind, list(found.values())))
        for name, values in tables:
            events += len(values[0])
            digest.update(f"{name} {len(values[0])}".encode())
            order = np.lexsort(values)
            for column in values:
                digest.update(column[order].astype("<i8").tobytes())
        return digest.hexdigest() if events else None

    def cuda_devices(self) -> CudaDevices:
        """List the CUDA devices of processes; the first versions that do tell no UUID."""
        table = "TARGET_INFO_CUDA_DEVICE"
        columns = {
            "pid": ("pid", NONE),
            "device": ("cudaId", NONE),
            "gpu": ("gpuId", NONE),
            "multiprocessors": ("numMultiprocessors", NONE),
        }
        found = self.numbers(table, columns, global_ids=False)
        uuids: list[str] = [""] * len(found["pid"])
        if "uuid" in self.columns.get(table, ()):
            uuids = [
                str(u or "") for (u,) in self.query(f"SELECT uuid FROM {table} ORDER BY rowid")
            ]
        return CudaDevices(uuid=np.array(uuids, object), **found)

    def gpus(self) -> Gpus:
        """List the GPUs; 2020 calls the id ``deviceId`` and tells less."""
        table = "TARGET_INFO_GPU"
        columns = self.columns.get(table, {})
        identifier = "id" if "id" in columns else "deviceId"
        wanted = [identifier, "name", "uuid", "busLocation", "totalMemory", "smCount"]
        rows: list[tuple[Any, ...]] = []
        if identifier in columns:
            selected = ", ".join(name if name in columns else "NULL" for name in wanted)
            rows = self.connection.execute(f"SELECT {selected} FROM {table} ORDER BY 1").fetchall()

        def integers(place: int) -> Integers:
            return np.array([NONE if r[place] is None else r[place] for r in rows], np.int64)

        def texts(place: int) -> npt.NDArray[np.object_]:
            return np.array([r[place] or "" for r in rows], object)

        return Gpus(integers(0), texts(1), texts(2), texts(3), integers(4), integers(5))

    def numbers(
        self,
        table: str,
        columns: Mapping[str, tuple[str, int]],
        extra: Mapping[str, str] | None = None,
        where: str = "1",
        global_ids: bool = True,
    ) -> dict[str, Integers]:
        """Read integer columns in order of rowid, a few hundred thousand rows at a time.

        SQLite itself joins a column's digits into one text, which NumPy parses: measured at 0.7 s
        for 6 columns of 1 million rows, against 1.6 s for the quickest way over rows as tuples.
        Each core reads a stretch of a large table, since SQLite works without Python's lock.

        Parameters
        ----------
        table
            Its name; without such a table the columns are empty.
        columns
            Name here → its name in the table and what stands for NULL or a missing column.
        extra
            Name here → SQL expression that is never NULL.
        where
            Which rows, SQL.
        global_ids
            Whether ``pid`` and ``tid`` are to be unpacked from nsys's global ids.
        """
        present = self.columns.get(table, {})
        expressions = {
            name: _never_null(column, present.get(column), default)
            for name, (column, default) in columns.items()
        } | dict(extra or {})
        if not present:
            return {name: np.empty(0, np.int64) for name in expressions}
        # what two columns are made of is read once
        place = {sql: number for number, sql in enumerate(dict.fromkeys(expressions.values()))}
        inner = ", ".join(f"{sql} AS c{number}" for sql, number in place.items())
        joined = ", ".join(f"group_concat(c{number})" for number in range(len(place)))
        # keyset pages stay right whatever the rowids are
        query = (
            f"SELECT count(*), max(r), {joined} FROM (SELECT rowid AS r, {inner} FROM "
            f"{_quoted(table)} WHERE rowid > ? AND rowid <= ? AND ({where}) ORDER BY rowid LIMIT ?)"
        )

        bounds = self.stretches(table)
        # no row takes fewer than 4 bytes of the file
        most = self.sqlite.stat().st_size // 4 + 1
        rooms = [min(end - last, most) for last, end in bounds]
        filled = _Filled(expressions, sum(rooms))

        def stretch(number: int) -> int:
            last, end = bounds[number]
            begin = row = sum(rooms[:number])
            count = _ROWS_AT_ONCE
            with contextlib.closing(_connect(self.sqlite)) as connection:
                while count == _ROWS_AT_ONCE:
                    page = connection.execute(query, (last, end, _ROWS_AT_ONCE)).fetchone()
                    count, last, texts = page[0], page[1], page[2:]
                    values = [_parse(text, count, table) for text in texts]
                    for name, sql in expressions.items():
                        own = values[place[sql]]
                        if global_ids and name in ("pid", "tid"):
                            # pid in bits 24 to 47, tid in bits 0 to 23; above is the machine
                            shift = 24 if name == "pid" else 0
                            own = np.where(own == NONE, NONE, (own >> shift) & 0xFFFFFF)
                        if name in ("start", "stop"):
                            own[(own > _FAR) | (own < -_FAR)] = NONE
                        filled.put(name, row, own)
                    row += count
            return row - begin

        if len(bounds) == 1:
            counts = [stretch(0)]
        else:
            with ThreadPoolExecutor(len(bounds)) as pool:
                counts = list(pool.map(stretch, range(len(bounds))))
        return filled.columns(rooms, counts)

    def stretches(self, table: str) -> list[tuple[int, int]]:
        """Divide a table's rowids among the cores: after which and up to which each reads."""
        name = _quoted(table)
        first, last = self.connection.execute(
            f"SELECT (SELECT min(rowid) FROM {name}), (SELECT max(rowid) FROM {name})"
        ).fetchone()
        if first is None:
            return [(0, 0)]
        cores = len(os.sched_getaffinity(0)) if last - first >= _ROWS_AT_ONCE else 1
        cuts = [first - 1 + (last - first + 1) * n // cores for n in range(cores + 1)]
        cuts[0] = max(cuts[0], -(2**63))
        return list(itertools.pairwise(cuts))

    def first_of(self, table: str, columns: list[str]) -> str:
        """Give the SQL of the first of these columns that holds something, -1 for none."""
        present = [column for column in columns if column in self.columns.get(table, ())]
        return f"coalesce({', '.join([*present, str(NONE)])})" if present else str(NONE)

    def inline_texts(self, table: str, where: str) -> dict[int, str]:
        """Read the texts that stand in the rows themselves: place among the rows → text."""
        if "text" not in self.columns.get(table, ()):
            return {}
        has_text = f"SELECT 1 FROM {table} WHERE text IS NOT NULL AND ({where}) LIMIT 1"
        if self.connection.execute(has_text).fetchone() is None:
            return {}
        rows = self.connection.execute(f"SELECT text FROM {table} WHERE {where} ORDER BY rowid")
        return {place: text for place, (text,) in enumerate(rows) if text is not None}

    def strings(self, ids: Integers, inline: Mapping[int, str] | None = None) -> Names:
        """Look up the strings of these ids; only strings that an event names are kept."""
        distinct, index = distinct_values(ids)
        wanted = set(distinct.tolist()) - {NONE}
        found: dict[int, str] = {}
        if wanted:
            for identifier, value in self.connection.execute("SELECT id, value FROM StringIds"):
                if identifier in wanted:
                    found[identifier] = value
        names = [found.get(identifier, "") for identifier in distinct.tolist()]
        if inline:
            place_of: dict[str, int] = {}
            index = index.copy()
            for row, text in inline.items():
                place = place_of.setdefault(text, len(names) + len(place_of))
                index[row] = place
            names += place_of
        return _encode(names, index)

    def named_value(self, table: str, name: str) -> str | None:
        """Read the one row of this name: the others may hold the user's environment."""
        if not {"name", "value"} <= self.columns.get(table, {}).keys():
            return None
        query = f"SELECT value FROM {table} WHERE name = ? LIMIT 1"
        row = self.connection.execute(query, (name,)).fetchone()
        return str(row[0]) if row is not None and row[0] else None

    def single_number(self, table: str, column: str) -> int | None:
        """Read a number from a table of one row."""
        if column not in self.columns.get(table, ()):
            return None
        row = self.connection.execute(f"SELECT {column} FROM {table} LIMIT 1").fetchone()
        return int(row[0]) if row is not None and row[0] is not None else None


class _Filled:
    """Columns that several threads fill, each its stretch; room that is never used costs nothing.

    Parameters
    ----------
    names
        Of the columns. All but times take 32 bits a row where these hold the numbers: ten million
        rows are held by the column.
    room
        How many rows there may be.
    """

    def __init__(self, names: Iterable[str], room: int) -> None:
        self._columns = {n: np.empty(room, np.int64 if n in _TIMES else np.int32) for n in names}
        self._lock = threading.Lock()

    def put(self, name: str, first: int, values: Integers) -> None:
        """Fill rows from `first` on."""
        limits = np.iinfo(np.int32)
        with self._lock:
            column = self._columns[name]
            narrow = column.dtype != np.int64 and len(values) > 0
            if narrow and (values.min() < limits.min or values.max() > limits.max):
                column = self._columns[name] = column.astype(np.int64)
            column[first : first + len(values)] = values

    def columns(self, rooms: Sequence[int], counts: Sequence[int]) -> dict[str, Integers]:
        """Give the columns, stretches of `counts` rows that lie `rooms` apart put together."""
        starts = [sum(rooms[:number]) for number in range(len(rooms))]
        for column in self._columns.values():
            row = 0
            for start, count in zip(starts, counts, strict=True):
                if start != row:
                    column[row : row + count] = column[start : start + count]
                row += count
        return {name: column[: sum(counts)] for name, column in self._columns.items()}


def _never_null(column: str, nullable: bool | None, default: int) -> str:
    """Give the SQL of a column that has the default for NULL, or where there is none (None)."""
    if nullable is None:
        return str(default)
    return f"coalesce({_quoted(column)}, {default})" if nullable else _quoted(column)


def distinct_values(ids: Integers) -> tuple[Integers, npt.NDArray[np.intp]]:
    """Give the distinct ids, sorted, and the position of each row's among them."""
    low, high = (int(ids.min()), int(ids.max())) if len(ids) else (0, -1)
    if high - low > 4 * len(ids):
        return np.unique(ids, return_inverse=True)
    # ids of strings and processes are small: 8 times as fast as sorting them
    seen = np.zeros(high - low + 1, bool)
    seen[ids - low] = True
    return np.flatnonzero(seen) + low, (np.cumsum(seen, dtype=np.int32) - 1)[ids - low]


def _joined(one: Names, other: Names) -> Names:
    """Give the rows of two columns of strings, which share none, one after the other."""
    shifted = np.where(other.codes >= 0, other.codes + len(one.categories), NONE)
    return Names(
        np.concatenate([one.codes, shifted.astype(np.int32)]),
        np.concatenate([one.categories, other.categories]),
    )


def _parse(text: str | None, count: int, what: str) -> Integers:
    """Parse what ``group_concat`` joined; anything but integers is an error, never a wrong one."""
    if count == 0:
        return np.empty(0, np.int64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)
            values = np.fromstring(text or "", dtype=np.int64, sep=",")
    except (ValueError, DeprecationWarning):  # which of them depends on NumPy's version
        values = np.empty(0, np.int64)
    if len(values) != count:
        raise ValueError(f"{what} holds something else than integers")
    return values


def _encode(names: Iterable[str], index: npt.NDArray[np.intp]) -> Names:
    """Make a column from the strings that `index` points to; "" becomes none."""
    code_of: dict[str, int] = {}
    codes = [code_of.setdefault(name, len(code_of)) if name else NONE for name in names]
    categories = np.empty(len(code_of), object)
    categories[:] = list(code_of)
    return Names(np.array(codes, np.int32)[index], categories)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
