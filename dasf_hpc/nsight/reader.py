"""Nsight, second step: read an exported SQLite of any nsys since 2020 into plain columns.

Times are ns from the start of nsys's session, as in the report; nothing is corrected here. What
the profiled program's environment held is in the report too, and is never read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
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
from dasf_hpc.nsight.memory import packed_columns
from dasf_hpc.nsight.payloads import Numbers, read_payloads
from dasf_hpc.nsight.sqlite import (
    FAR,
    NONE,
    Export,
    Integers,
    Names,
    distinct_values,
    encode,
    quoted,
)

CLOCK_DOMAIN = "dasf_hpc.clock"
"""NVTX domain of the marks whose payload is the process's own CLOCK_MONOTONIC, ns."""

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

_CATEGORY, _MARK, _PUSH_POP, _START_END, _DOMAIN_CREATED = 33, 34, 59, 60, 75
"""``NVTX_EVENTS.eventType``: ENUM_NSYS_EVENT_TYPE calls them NvtxCategory, NvtxMark and so on."""


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
    the session's end there); `payload` is the integer one, -1 for none; `value` the one that is a
    floating-point number, NaN for none; `data` any other, as JSON. `stacked` says that it was
    pushed, so lies within what its thread pushed before; others may end on any thread at any time.
    """

    pid: Integers
    tid: Integers
    start: Integers
    stop: Integers
    domain: Names
    message: Names
    payload: Integers
    category: Names
    value: Numbers
    data: Names
    stacked: npt.NDArray[np.bool_]

    def __getitem__(self, rows: npt.NDArray[np.integer[Any] | np.bool_]) -> Ranges:
        """Give some of them."""
        return Ranges(**{name: values[rows] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Marks(_Table):
    """NVTX marks that are not ours, in order of `start`; `payload` and on as of `Ranges`."""

    pid: Integers
    tid: Integers
    start: Integers
    domain: Names
    message: Names
    payload: Integers
    category: Names
    value: Numbers
    data: Names


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
    """Copies to, from and on the GPUs; `kind` is one of `COPY_KINDS`.

    `memory` and `devices` hold what memory and which devices it was between and why, as
    `dasf_hpc.nsight.memory` packs them: there may be tens of millions of rows.
    """

    pid: Integers
    device: Integers
    context: Integers
    stream: Integers
    correlation: Integers
    start: Integers
    stop: Integers
    bytes: Integers
    kind: Integers
    memory: Integers
    devices: Integers


@dataclass(frozen=True)
class Memsets(_Table):
    """Fills of GPU memory; `memory` is one of `dasf_hpc.nsight.memory.MEMORY_KINDS`."""

    pid: Integers
    device: Integers
    context: Integers
    stream: Integers
    correlation: Integers
    start: Integers
    stop: Integers
    bytes: Integers
    memory: Integers


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
    marks: Marks
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
        with _Export.opened(self.sqlite) as export:
            return found | export.cuda_pids()

    def events_digest(self) -> str | None:
        """Give a digest of when everything was, the same from every exporter; None without any."""
        with _Export.opened(self.sqlite) as export:
            return export.events_digest(self.ranges)

    @property
    def kernels(self) -> Kernels:
        """Kernels, and CUDA graphs that were launched as a whole."""
        if "kernels" in self._ahead:
            found: Kernels = self._ahead.pop("kernels")
            return found
        with _Export.opened(self.sqlite) as export:
            return export.kernels()

    @property
    def memcpys(self) -> Memcpys:
        """Copies."""
        if "memcpys" in self._ahead:
            found: Memcpys = self._ahead.pop("memcpys")
            return found
        more = {"bytes": ("bytes", NONE), "kind": ("copyKind", NONE)}
        table = "CUPTI_ACTIVITY_KIND_MEMCPY"
        with _Export.opened(self.sqlite) as export:
            packed = packed_columns(export.columns.get(table, {}))
            return Memcpys(**export.numbers(table, _ON_DEVICE | more, packed))

    @property
    def memsets(self) -> Memsets:
        """Fills."""
        if "memsets" in self._ahead:
            found: Memsets = self._ahead.pop("memsets")
            return found
        more = {"bytes": ("bytes", NONE), "memory": ("memKind", NONE)}
        with _Export.opened(self.sqlite) as export:
            return Memsets(**export.numbers("CUPTI_ACTIVITY_KIND_MEMSET", _ON_DEVICE | more))

    @property
    def synchronizations(self) -> Synchronizations:
        """Waits for the GPUs."""
        if "synchronizations" in self._ahead:
            found: Synchronizations = self._ahead.pop("synchronizations")
            return found
        table, more = "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION", {"kind": ("syncType", NONE)}
        with _Export.opened(self.sqlite) as export:
            return Synchronizations(**export.numbers(table, _ON_DEVICE | more))

    @property
    def cuda_api(self) -> CudaApi:
        """Calls of CUDA."""
        if "cuda_api" in self._ahead:
            found: CudaApi = self._ahead.pop("cuda_api")
            return found
        more = {"correlation": ("correlationId", NONE)}
        with _Export.opened(self.sqlite) as export:
            call = export.numbers("CUPTI_ACTIVITY_KIND_RUNTIME", _CALL | more)
            return CudaApi(name=export.strings(call.pop("name")), **call)

    @property
    def diagnostics(self) -> list[Diagnostic] | None:
        """What nsys says of its own recording; None where its version says nothing (to 2023)."""
        with _Export.opened(self.sqlite) as export:
            return export.diagnostics()

    @property
    def tables(self) -> frozenset[str]:
        """Names of nsys's tables in the export, also of those without rows."""
        with _Export.opened(self.sqlite) as export:
            return frozenset(export.columns)

    def count(self, table: str) -> int | None:
        """Count the rows of one of nsys's tables; None where the export has no such table."""
        with _Export.opened(self.sqlite) as export:
            if table not in export.columns:
                return None
            count: int = export.connection.execute(
                f"SELECT count(*) FROM {quoted(table)}"
            ).fetchone()[0]
            return count

    @property
    def os_runtime(self) -> OsRuntime:
        """Calls of the operating system's libraries."""
        with _Export.opened(self.sqlite) as export:
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
    with _Export.opened(sqlite) as export:
        return export.report()


class _Export(Export):
    """An open export: the tables of what was recorded."""

    def report(self) -> Report:
        """Read everything but what ran on GPUs and what called it."""
        clock_marks, ranges, marks = self.nvtx()
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
            processes=self.processes(clock_marks.pid, ranges.pid, marks.pid),
            clock_marks=clock_marks,
            ranges=ranges,
            marks=marks,
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
            named = encode([f"CUDA graph {i}" if i >= 0 else "CUDA graph" for i in ids], index)
            name, short_name = _joined(name, named), _joined(short_name, named)
            graphs["graph_node"] = np.full(len(graph), NONE, np.int32)
            kernel = {n: np.concatenate([kernel[n], graphs[n]]) for n in kernel}
        return Kernels(name=name, short_name=short_name, **kernel)

    def nvtx(self) -> tuple[ClockMarks, Ranges, Marks]:
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
                "category": ("category", NONE),
            },
            extra={"payload": payloads},
            where=where,
        )
        message = self.strings(event["message"], self.inline_texts(table, where))
        domain = self.domains(event["pid"], event["domain"])
        more: dict[str, Any] = {
            "category": self.categories(event["pid"], event["domain"], event["category"]),
            **vars(read_payloads(self, len(event["pid"]), where)),
        }
        order = np.argsort(event["start"], kind="stable")
        is_range = event["type"][order] != _MARK
        payload = event["payload"][order]
        is_time = (payload >= 0) & (payload <= FAR) & (event["start"][order] != NONE)
        is_clock = ~is_range & domain.equal(CLOCK_DOMAIN)[order] & is_time
        ours, ranges = order[is_clock], order[is_range]
        marks = order[~is_range & ~domain.equal(CLOCK_DOMAIN)[order]]
        columns: dict[str, Any] = {n: event[n] for n in ("pid", "tid", "start", "payload")}
        columns |= {"domain": domain, "message": message, **more}
        return (
            ClockMarks(
                pid=event["pid"][ours],
                tid=event["tid"][ours],
                session_ns=event["start"][ours],
                clock_ns=event["payload"][ours],
            ),
            Ranges(
                stop=event["stop"][ranges],
                stacked=event["type"][ranges] == _PUSH_POP,
                **{name: values[ranges] for name, values in columns.items()},
            ),
            Marks(**{name: values[marks] for name, values in columns.items()}),
        )

    def categories(self, pid: Integers, domain: Integers, category: Integers) -> Names:
        """Name each event's category; ids are those of a domain in its process, 0 is none.

        One that the program gave no name has its number, as ``category 7``.
        """
        table = "NVTX_EVENTS"
        given = np.flatnonzero(category > 0)
        index = np.zeros(len(category), np.intp)
        if not len(given):
            return encode([""], index)
        where = f"eventType = {_CATEGORY}"
        named = self.numbers(
            table,
            {
                "pid": ("globalTid", NONE),
                "domain": ("domainId", 0),
                "id": ("category", NONE),
                "text": ("textId", NONE),
            },
            where=where,
        )
        texts_of = self.strings(named["text"], self.inline_texts(table, where)).values()
        keys = zip(*(named[n].tolist() for n in ("pid", "domain", "id")), strict=True)
        known = dict(zip(keys, texts_of.tolist(), strict=True))
        used = np.stack([pid[given], domain[given], category[given]], axis=1).astype(np.int64)
        distinct, inverse = np.unique(used, axis=0, return_inverse=True)
        names = [known.get(tuple(key)) or f"category {key[2]}" for key in distinct.tolist()]
        index[given] = inverse.reshape(-1) + 1
        return encode(["", *names], index)

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
        return encode(names, pair_index)

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
            placed = time is not None and clock in (None, TARGET_TIME) and abs(int(time)) <= FAR
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
                    query = f"SELECT DISTINCT ({column} >> 24) & 0xffffff FROM {quoted(table)}"
                    found = self.query(f"{query} WHERE {column} IS NOT NULL")
                    pids.update(int(pid) for (pid,) in found)
        return frozenset(pids)

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


def _joined(one: Names, other: Names) -> Names:
    """Give the rows of two columns of strings, which share none, one after the other."""
    shifted = np.where(other.codes >= 0, other.codes + len(one.categories), NONE)
    return Names(
        np.concatenate([one.codes, shifted.astype(np.int32)]),
        np.concatenate([one.categories, other.categories]),
    )
