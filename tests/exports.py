"""Exports of Nsight Systems reports in the schema of each version, made with known answers.

The columns are those of the real exports as far as anything here tells them apart.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

GLOBAL = 0x1000000000000


def global_id(pid: int, tid: int = 0) -> int:
    return GLOBAL | pid << 24 | tid


NVTX_2020 = """start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, rangeId INTEGER,
    category INTEGER, color INTEGER, text TEXT, globalTid INTEGER, endGlobalTid INTEGER,
    textId INTEGER, domainId INTEGER, uint64Value INTEGER, int64Value INTEGER, doubleValue REAL,
    uint32Value INTEGER, int32Value INTEGER, floatValue REAL, jsonTextId INTEGER, jsonText TEXT"""
COMPOSITE = """id INTEGER NOT NULL PRIMARY KEY, start INTEGER NOT NULL, cpu INTEGER,
    threadState INTEGER, globalTid INTEGER, cpuCycles INTEGER NOT NULL"""
CALLCHAIN = """id INTEGER NOT NULL, symbol INTEGER NOT NULL, module INTEGER NOT NULL,
    kernelMode INTEGER, thumbCode INTEGER, unresolved INTEGER, specialEntry INTEGER,
    originalIP INTEGER, unwindMethod INTEGER, stackDepth INTEGER NOT NULL,
    PRIMARY KEY (id, stackDepth)"""
SCHED = """start INTEGER NOT NULL, cpu INTEGER NOT NULL, isSchedIn INTEGER NOT NULL,
    globalTid INTEGER"""
ON_DEVICE = """start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
    contextId INTEGER NOT NULL, {green} streamId INTEGER NOT NULL, correlationId INTEGER,
    globalPid INTEGER"""
KERNEL = "demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, gridX INTEGER NOT NULL"
MEMCPY = """bytes INTEGER NOT NULL, copyKind INTEGER NOT NULL, srcKind INTEGER, dstKind INTEGER,
    srcDeviceId INTEGER, dstDeviceId INTEGER, migrationCause INTEGER"""
MEMSET = "value INTEGER NOT NULL, bytes INTEGER NOT NULL, memKind INTEGER"
OSRT = """start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL,
    globalTid INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL,
    nestingLevel INTEGER, callchainId INTEGER NOT NULL"""
ALLOCATION = """start INTEGER NOT NULL, globalPid INTEGER NOT NULL, deviceId INTEGER NOT NULL,
    contextId INTEGER NOT NULL, address INTEGER NOT NULL, pc INTEGER NOT NULL,
    bytes INTEGER NOT NULL, memKind INTEGER NOT NULL, memoryOperationType INTEGER NOT NULL,
    name TEXT, correlationId INTEGER, localMemoryPoolAddress INTEGER"""
CPU_FAULT = """start INTEGER NOT NULL, globalPid INTEGER NOT NULL, address INTEGER NOT NULL,
    originalFaultPc INTEGER, CpuInstruction INTEGER NOT NULL, module INTEGER NOT NULL"""
GPU_FAULT = """start INTEGER NOT NULL, end INTEGER NOT NULL, globalPid INTEGER NOT NULL,
    deviceId INTEGER NOT NULL, address INTEGER NOT NULL, numberOfPageFaults INTEGER NOT NULL,
    faultAccessType INTEGER NOT NULL"""
SYNC = "syncType INTEGER NOT NULL, eventId INTEGER NOT NULL"
RUNTIME = """start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL,
    globalTid INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER"""
DIAGNOSTIC = """timestamp INTEGER NOT NULL, timestampType INTEGER NOT NULL,
    source INTEGER NOT NULL, severity INTEGER NOT NULL, text TEXT NOT NULL, globalPid INTEGER"""
METRICS = "timestamp INTEGER, typeId INTEGER NOT NULL, metricId INTEGER NOT NULL, value INTEGER"
TYPE = 0x1000000000000 | 9 << 8
"""Of the ids of GPU metrics' types, the last byte is the GPU's number."""
METRIC_NAMES_OLD = """typeId INTEGER NOT NULL, typeName TEXT NOT NULL, metricId INTEGER NOT NULL,
    metricName TEXT NOT NULL"""
METRIC_NAMES = f"sourceId INTEGER NOT NULL, {METRIC_NAMES_OLD}"
NIC = "nicId INTEGER NOT NULL, name TEXT NOT NULL"
NIC_METRICS = """start INTEGER NOT NULL, end INTEGER NOT NULL, globalId INTEGER NOT NULL,
    portId INTEGER NOT NULL, metricsListId INTEGER NOT NULL, metricsIdx INTEGER NOT NULL,
    value INTEGER NOT NULL"""
NIC_METRIC_NAMES = """metricsListId INTEGER NOT NULL, metricsIdx INTEGER NOT NULL,
    name TEXT NOT NULL, description TEXT NOT NULL, unit TEXT NOT NULL"""
SYSTEM_ENV = "devStateName TEXT NOT NULL, name TEXT NOT NULL, nameEnum INTEGER, value TEXT NOT NULL"
GPU_2020 = "vmId INTEGER NOT NULL, deviceId INTEGER NOT NULL, name TEXT, busLocation TEXT"
GPU = """vmId INTEGER NOT NULL, id INTEGER NOT NULL, name TEXT, busLocation TEXT,
    totalMemory INTEGER, smCount INTEGER, uuid TEXT, cuDevice INTEGER"""
START = "utcEpochNs INTEGER, utcTime TEXT, localTime TEXT"

EVENT = "start INTEGER NOT NULL, end INTEGER, globalTid INTEGER, textId INTEGER"
MPI_TABLES = {
    "COLLECTIVES": f"{EVENT}, commHandle INTEGER, rootRank INTEGER, size INTEGER, "
    "recvSize INTEGER, requestHandle INTEGER",
    "P2P": f"{EVENT}, commHandle INTEGER, tag INTEGER, remoteRank INTEGER, size INTEGER, "
    "requestHandle INTEGER",
    "START_WAIT": f"{EVENT}, requestHandle INTEGER",
    "OTHER": EVENT,
}
MPI_COMMUNICATORS = """rank INTEGER, timestamp INTEGER, commHandle INTEGER, parentHandle INTEGER,
    localRank INTEGER, size INTEGER, groupRoot INTEGER, groupRootUid INTEGER, members TEXT,
    commUid INTEGER"""
UCP = f"{EVENT}, bufferAddr INTEGER, packedSize INTEGER, peerWorkerUid INTEGER, tag INTEGER"
PAYLOAD_ENTRIES = """domainId INTEGER NOT NULL, schemaId INTEGER NOT NULL, idx INTEGER NOT NULL,
    flags INTEGER, type INTEGER, name TEXT, description TEXT, arrayOrUnionDetail INTEGER,
    offset INTEGER"""

SCHEMAS: dict[str, dict[str, Any]] = {
    "2020.3": {"gpu": GPU_2020, "cuda": True, "meta": None, "start": None, "tables": "KMSRY"},
    "2022.4": {
        "gpu": None,
        "cuda": False,
        "meta": "EXPORT_META_DATA",
        "start": START,
        "tables": "",
    },
    "2023.1": {
        "gpu": GPU,
        "cuda": True,
        "meta": "EXPORT_META_DATA",
        "start": START,
        "tables": "KMR",
    },
    "2023.4": {
        "gpu": GPU,
        "cuda": True,
        "meta": "META_DATA_EXPORT",
        "start": START,
        "tables": "KMSRY",
    },
    "2025.1": {
        "gpu": GPU,
        "cuda": True,
        "meta": "META_DATA_EXPORT",
        "start": START,
        "tables": "KMRY",
    },
    "2026.2": {
        "gpu": None,
        "cuda": True,
        "meta": "META_DATA_EXPORT",
        "start": START + ", systemClockNs INTEGER",
        "tables": "KMSRY",
    },
}
"""What the export of each version has, as far as the reader can tell them apart."""


class Export:
    """An export that is being made; leave the context to have it written.

    Parameters
    ----------
    path
        The file.
    version
        One of `SCHEMAS`.
    hostname
        Of the node; exports of 2020 do not hold it.
    """

    def __init__(self, path: Path, version: str, hostname: str = "node7") -> None:
        self.version, self.schema = version, SCHEMAS[version]
        self.database = sqlite3.connect(path)
        self._strings: dict[str, int] = {}
        self._tables: set[str] = set()
        self._domains: dict[tuple[int, str], int] = {}
        self._table("StringIds", "id INTEGER NOT NULL, value TEXT NOT NULL")
        if self.schema["meta"]:
            self._table(self.schema["meta"], "name TEXT NOT NULL, value TEXT")
            self._row(self.schema["meta"], name="EXPORT_PRODUCT_VERSION", value=version)
        if self.schema["start"]:
            self._table("TARGET_INFO_SYSTEM_ENV", SYSTEM_ENV)
            for name, value in (("Hostname", hostname), ("DeviceEnvironment", "TOKEN=hunter2")):
                self._row("TARGET_INFO_SYSTEM_ENV", devStateName="", name=name, value=value)

    def __enter__(self) -> Export:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.database.executemany(
            "INSERT INTO StringIds VALUES (?, ?)", [(i, text) for text, i in self._strings.items()]
        )
        self.database.commit()
        self.database.close()

    def _table(self, name: str, columns: str) -> None:
        if name not in self._tables:
            self._tables.add(name)
            self.database.execute(f"CREATE TABLE {name} ({columns})")

    def _row(self, table: str, **values: Any) -> None:
        names = ", ".join(f'"{name}"' for name in values)
        holes = ", ".join("?" * len(values))
        self.database.execute(
            f"INSERT INTO {table} ({names}) VALUES ({holes})", list(values.values())
        )

    def env(self, name: str, value: str) -> None:
        """Say something of the target's environment."""
        self._row("TARGET_INFO_SYSTEM_ENV", devStateName="", name=name, value=value)

    def string(self, text: str) -> int:
        """Give a string's id."""
        return self._strings.setdefault(text, 100 + len(self._strings))

    def begun(self, utc: int, system_clock: int | None = None) -> None:
        """Say when the session began; only newer versions know the system's clock."""
        if not self.schema["start"]:
            return
        self._table("TARGET_INFO_SESSION_START_TIME", self.schema["start"])
        more = {"systemClockNs": system_clock} if "systemClockNs" in self.schema["start"] else {}
        self._row("TARGET_INFO_SESSION_START_TIME", utcEpochNs=utc, **more)

    def _event(self, kind: int, start: int, end: int | None, text: str, **more: Any) -> None:
        binary = ", binaryData TEXT" if self.version >= "2025.1" else ""
        self._table("NVTX_EVENTS", NVTX_2020 + binary)
        named = {"text": text} if self.version == "2022.4" else {"textId": self.string(text)}
        self._row("NVTX_EVENTS", start=start, end=end, eventType=kind, **named, **more)

    def _domain(self, pid: int, name: str) -> int:
        known = self._domains.get((pid, name))
        if known is None:
            known = self._domains[pid, name] = 1 + len(self._domains)
            self._event(75, 0, None, name, globalTid=global_id(pid, pid), domainId=known)
        return known

    def mark(self, pid: int, at: int, clock: int) -> None:
        """Add a clock mark."""
        domain = self._domain(pid, "dasf_hpc.clock")
        tid = global_id(pid, pid)
        self._event(34, at, None, "clock", globalTid=tid, domainId=domain, int64Value=clock)

    def range(self, pid: int, tid: int, start: int, stop: int | None, task: int) -> None:
        """Add the range around a task."""
        domain = self._domain(pid, "compute")
        thread = global_id(pid, tid)
        self._event(59, start, stop, "f", globalTid=thread, domainId=domain, int64Value=task)

    def user_range(
        self,
        pid: int,
        tid: int,
        start: int,
        stop: int | None,
        text: str,
        domain: str = "",
        stacked: bool = True,
        **more: Any,
    ) -> None:
        """Add a range of the code; "" is the default domain, ``more`` are columns."""
        number = self._domain(pid, domain) if domain else 0
        given = {"globalTid": global_id(pid, tid), "domainId": number, **more}
        self._event(59 if stacked else 60, start, stop, text, **given)

    def user_mark(
        self, pid: int, tid: int, at: int, text: str, domain: str = "", **more: Any
    ) -> None:
        """Add a mark of the code; "" is the default domain, ``more`` are columns."""
        number = self._domain(pid, domain) if domain else 0
        given = {"globalTid": global_id(pid, tid), "domainId": number, **more}
        self._event(34, at, None, text, **given)

    def category(self, pid: int, number: int, name: str, domain: str = "") -> None:
        """Name a category of a domain."""
        of = self._domain(pid, domain) if domain else 0
        self._event(33, 0, None, name, globalTid=global_id(pid, pid), domainId=of, category=number)

    def payload_field(
        self, pid: int, domain: str, schema: int, name: str, kind: int, offset: int
    ) -> int:
        """Describe a field of a binary payload, as newer exports do; gives the domain's number."""
        columns = """domainId INTEGER NOT NULL, schemaId INTEGER NOT NULL, idx INTEGER NOT NULL,
            flags INTEGER, type INTEGER, name TEXT, description TEXT, arrayOrUnionDetail INTEGER,
            offset INTEGER"""
        table, of = "NVTX_PAYLOAD_SCHEMA_ENTRIES", self._domain(pid, domain)
        self._table(table, columns)
        place = {"domainId": of, "schemaId": schema, "idx": offset, "offset": offset or None}
        self._row(table, name=name, type=kind, **place)
        return of

    def sample(
        self,
        pid: int,
        tid: int,
        at: int,
        calls: Sequence[tuple[str, str]] = (),
        cycles: int = 1,
        unresolved: Container[str] = (),
    ) -> None:
        """Add a sample of a CPU; calls are symbol and module, the outermost first."""
        self._table("COMPOSITE_EVENTS", COMPOSITE)
        self._table("SAMPLING_CALLCHAINS", CALLCHAIN)
        (number,) = self.database.execute("SELECT 1 + count(*) FROM COMPOSITE_EVENTS").fetchone()
        place = {"start": at, "cpu": 3, "threadState": 1, "globalTid": global_id(pid, tid)}
        self._row("COMPOSITE_EVENTS", id=number, cpuCycles=cycles, **place)
        for depth, (symbol, module) in enumerate(reversed(calls)):
            self._row(
                "SAMPLING_CALLCHAINS",
                id=number,
                symbol=self.string(symbol),
                module=self.string(module),
                unresolved=1 if symbol in unresolved else None,
                stackDepth=depth,
            )

    def samples_nothing(self) -> None:
        """Have the tables of samples and of switches, without rows."""
        self._table("COMPOSITE_EVENTS", COMPOSITE)
        self._table("SCHED_EVENTS", SCHED)

    def switch(self, pid: int, tid: int, at: int, on: bool, state: int | None = None) -> None:
        """Say that a thread got a CPU or left one; newer versions say in which state."""
        newer = self.version >= "2023.4"
        self._table("SCHED_EVENTS", SCHED + (", threadState INTEGER" if newer else ""))
        more = {"threadState": state} if newer else {}
        place = {"start": at, "cpu": 0, "globalTid": global_id(pid, tid)}
        self._row("SCHED_EVENTS", isSchedIn=int(on), **place, **more)

    def call(
        self, pid: int, tid: int, start: int, stop: int, correlation: int, name: str = "launch"
    ) -> None:
        """Add a call of CUDA."""
        self._table("CUPTI_ACTIVITY_KIND_RUNTIME", RUNTIME)
        self._row(
            "CUPTI_ACTIVITY_KIND_RUNTIME",
            start=start,
            end=stop,
            eventClass=0,
            globalTid=global_id(pid, tid),
            correlationId=correlation,
            nameId=self.string(name),
            returnValue=0,
        )

    def _on_device(
        self, kind: str, columns: str, pid: int, start: int, stop: int, **more: Any
    ) -> None:
        green = "greenContextId INTEGER," if self.version >= "2023.4" else ""
        table = f"CUPTI_ACTIVITY_KIND_{kind}"
        self._table(table, f"{ON_DEVICE.format(green=green)}, {columns}")
        place = {"deviceId": 0, "contextId": 1, "streamId": 7, "correlationId": None}
        given = {"start": start, "end": stop, "globalPid": global_id(pid), **place, **more}
        self._row(table, **given)

    def kernel(self, pid: int, start: int, stop: int, name: str = "add", **more: Any) -> None:
        """Add a kernel; ``more`` are columns (``correlationId``, ``deviceId``, ``streamId`` …)."""
        names = {"demangledName": self.string(f"void {name}(float*)")}
        names |= {"shortName": self.string(name), "gridX": 1}
        columns = f"{KERNEL}, graphNodeId INTEGER"
        self._on_device("KERNEL", columns, pid, start, stop, **names, **more)

    def graph(self, pid: int, start: int, stop: int, graph: int, **more: Any) -> None:
        """Add a CUDA graph whose launch was recorded as a whole."""
        columns = "graphId INTEGER NOT NULL"
        self._on_device("GRAPH_TRACE", columns, pid, start, stop, graphId=graph, **more)

    def memcpy(self, pid: int, start: int, stop: int, kind: int, size: int, **more: Any) -> None:
        """Add a copy."""
        what = {"bytes": size, "copyKind": kind}
        self._on_device("MEMCPY", MEMCPY, pid, start, stop, **what, **more)

    def memset(self, pid: int, start: int, stop: int, size: int, **more: Any) -> None:
        """Add a fill."""
        self._on_device("MEMSET", MEMSET, pid, start, stop, value=0, bytes=size, **more)

    def wait(self, pid: int, start: int, stop: int, kind: int = 3, **more: Any) -> None:
        """Add a wait for the GPU."""
        what = {"syncType": kind, "eventId": 0}
        self._on_device("SYNCHRONIZATION", SYNC, pid, start, stop, **what, **more)

    def os_call(self, pid: int, tid: int, start: int, stop: int, name: str = "poll") -> None:
        """Add a call of the operating system's libraries."""
        self._table("OSRT_API", OSRT)
        self._row(
            "OSRT_API",
            start=start,
            end=stop,
            eventClass=27,
            globalTid=global_id(pid, tid),
            nameId=self.string(name),
            returnValue=0,
            callchainId=0,
        )

    def allocation(
        self, pid: int, at: int, address: int, size: int, kind: int = 2, **more: Any
    ) -> None:
        """Add an allocation, or, of less than 0 bytes, a release of memory."""
        self._table("CUDA_GPU_MEMORY_USAGE_EVENTS", ALLOCATION)
        place = {"deviceId": 0, "contextId": 1, "pc": 0, "address": address}
        self._row(
            "CUDA_GPU_MEMORY_USAGE_EVENTS",
            start=at,
            globalPid=global_id(pid),
            bytes=abs(size),
            memKind=kind,
            memoryOperationType=int(size < 0),
            **(place | more),
        )

    def gpu_fault(self, pid: int, start: int, stop: int, count: int, access: int = 1) -> None:
        """Add faults of a page of unified memory on the first GPU."""
        self._table("CUDA_UM_GPU_PAGE_FAULT_EVENTS", GPU_FAULT)
        self._row(
            "CUDA_UM_GPU_PAGE_FAULT_EVENTS",
            start=start,
            end=stop,
            globalPid=global_id(pid),
            deviceId=0,
            address=4096,
            numberOfPageFaults=count,
            faultAccessType=access,
        )

    def cpu_fault(self, pid: int, at: int) -> None:
        """Add a fault of a page of unified memory on a CPU."""
        self._table("CUDA_UM_CPU_PAGE_FAULT_EVENTS", CPU_FAULT)
        self._row(
            "CUDA_UM_CPU_PAGE_FAULT_EVENTS",
            start=at,
            globalPid=global_id(pid),
            address=4096,
            CpuInstruction=self.string("0x1"),
            module=self.string("a.out"),
        )

    def say(
        self,
        text: str,
        pid: int | None = None,
        at: int = 0,
        severity: int = 2,
        source: int = 3,
        clock: int = 1,
    ) -> None:
        """Add what nsys says of its own recording, as exports do from 2025 on."""
        self._table("DIAGNOSTIC_EVENT", DIAGNOSTIC)
        self._row(
            "DIAGNOSTIC_EVENT",
            timestamp=at,
            timestampType=clock,
            source=source,
            severity=severity,
            text=text,
            # of no process: what real exports hold
            globalPid=-0x200000000000000 if pid is None else global_id(pid),
        )

    def says_nothing(self) -> None:
        """Have the table of what nsys says, without rows."""
        self._table("DIAGNOSTIC_EVENT", DIAGNOSTIC)

    def enum(self, name: str, values: dict[int, str]) -> None:
        """Say what the numbers of a column mean."""
        self._table(name, "id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT")
        for number, text in values.items():
            self._row(name, id=number, name=text, label=text)

    def mpi_rank(self, pid: int, rank: int) -> None:
        """Say which rank a process is; 2022 does in the name of a thread."""
        if self.version == "2022.4":
            self._event(39, 0, None, f"MPI Rank {rank}", globalTid=global_id(pid, pid))
            return
        self._table("MPI_RANKS", "globalTid INTEGER NOT NULL, rank INTEGER NOT NULL")
        self._row("MPI_RANKS", globalTid=global_id(pid, pid), rank=rank)

    def mpi(
        self, kind: str, pid: int, start: int, stop: int | None, name: str, **more: Any
    ) -> None:
        """Add a call of MPI, of one of the kinds of `MPI_TABLES`; 2022 has ranges instead."""
        thread = global_id(pid, pid)
        if self.version == "2022.4":
            domain = self._domain(pid, "MPI")
            self._event(59, start, stop, name, globalTid=thread, domainId=domain)
            return
        table = f"MPI_{kind}_EVENTS"
        self._table(table, MPI_TABLES[kind])
        given = {"start": start, "end": stop, "globalTid": thread, "textId": self.string(name)}
        self._row(table, **given, **more)

    def mpi_communicator(self, rank: int, handle: int, uid: int, local: int, at: int = 0) -> None:
        """Say what a handle of a rank stands for, as the newest versions do."""
        self._table("MPI_COMMUNICATORS", MPI_COMMUNICATORS)
        told = {"rank": rank, "timestamp": at, "commHandle": handle, "localRank": local}
        self._row("MPI_COMMUNICATORS", **told, commUid=uid)

    def ucp(self, kind: str, pid: int, start: int, stop: int, name: str, **more: Any) -> None:
        """Add a call of UCX: SUBMIT or PROGRESS."""
        self._table(f"UCP_{kind}_EVENTS", UCP)
        given = {"start": start, "end": stop, "globalTid": global_id(pid, pid)}
        self._row(f"UCP_{kind}_EVENTS", **given, textId=self.string(name), **more)

    def nccl(
        self, pid: int, start: int, stop: int, name: str, payload: dict[str, tuple[int, int]]
    ) -> None:
        """Add a range of NCCL; the payload's parts have a value and a width in bytes."""
        domain = self._domain(pid, "NCCL")
        if self.version < "2025.1" and "NVTX_BINARY" not in self._tables:
            self._tables.add("NVTX_BINARY")
            self.database.execute("ALTER TABLE NVTX_EVENTS ADD COLUMN binaryData TEXT")
        self._table("NVTX_PAYLOAD_SCHEMA_ENTRIES", PAYLOAD_ENTRIES)
        schema = self.string(f"{domain} {name}")
        offset, data = 0, b""
        for place, (part, (value, width)) in enumerate(payload.items()):
            entry = {"domainId": domain, "schemaId": schema, "idx": place}
            self._row("NVTX_PAYLOAD_SCHEMA_ENTRIES", **entry, name=part, offset=offset)
            data += value.to_bytes(width, "little")
            offset += width
        header = b"".join(n.to_bytes(8, "little") for n in (domain, schema, len(data), 32))
        thread = global_id(pid, pid)
        self._event(
            59, start, stop, name, globalTid=thread, domainId=domain, binaryData=header + data
        )

    def metric(self, at: int | None, metric: int, value: Any, gpu: int = 1) -> None:
        """Add a sample of a GPU's metrics."""
        self._table("GPU_METRICS", METRICS)
        self._row("GPU_METRICS", timestamp=at, typeId=TYPE | gpu, metricId=metric, value=value)

    def metric_name(self, metric: int, name: str, gpu: int = 1) -> None:
        """Say what a number of a metric means."""
        columns = METRIC_NAMES if self.version >= "2023.4" else METRIC_NAMES_OLD
        self._table("TARGET_INFO_GPU_METRICS", columns)
        more = {"sourceId": 5} if columns is METRIC_NAMES else {}
        told = {"typeId": TYPE | gpu, "typeName": "GPU Metrics [gh100]", "metricId": metric}
        self._row("TARGET_INFO_GPU_METRICS", **told, metricName=name, **more)

    def no_metrics(self) -> None:
        """Have the table of GPU metrics, without rows."""
        self._table("GPU_METRICS", METRICS)

    def nic(self, number: int, name: str) -> None:
        """Add a network adapter; to 2023 its own table holds what counters name it by."""
        if self.version < "2024":
            self._table("TARGET_INFO_NIC_INFO", f"globalId INTEGER, {NIC}")
            self._row("TARGET_INFO_NIC_INFO", globalId=9000 + number, nicId=number, name=name)
            return
        self._table("TARGET_INFO_NIC_INFO", f"GUID INTEGER NOT NULL, {NIC}")
        self._table("NIC_ID_MAP", "nicId INTEGER NOT NULL, globalId INTEGER NOT NULL")
        self._row("TARGET_INFO_NIC_INFO", GUID=77, nicId=number, name=name)
        self._row("NIC_ID_MAP", nicId=number, globalId=9000 + number)

    def nic_metric(
        self, start: int, stop: int, nic: int, metric: tuple[str, str], value: int
    ) -> None:
        """Add what an adapter counted of a metric, its name and unit, in an interval."""
        self._table("TARGET_INFO_NETWORK_METRICS", NIC_METRIC_NAMES)
        self._table("NET_NIC_METRIC", NIC_METRICS)
        number = self.string(metric[0])
        told = {"metricsListId": 3, "metricsIdx": number}
        self._row(
            "TARGET_INFO_NETWORK_METRICS", **told, name=metric[0], description="", unit=metric[1]
        )
        row = {"start": start, "end": stop, "globalId": 9000 + nic, "portId": 1}
        self._row("NET_NIC_METRIC", **row, **told, value=value)

    def context(self, pid: int) -> None:
        """Say that a process had a CUDA context, which nsys does where CUDA was traced."""
        columns = (
            "processId INTEGER NOT NULL, deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL"
        )
        self._table("TARGET_INFO_CUDA_CONTEXT_INFO", columns)
        self._row("TARGET_INFO_CUDA_CONTEXT_INFO", processId=pid, deviceId=0, contextId=1)

    def gpu(self, number: int, uuid: str, name: str = "NVIDIA H100") -> None:
        """Add a GPU, of which older versions say less and the newest may say nothing."""
        if not self.schema["gpu"]:
            return
        self._table("TARGET_INFO_GPU", self.schema["gpu"])
        told: dict[str, Any] = {"vmId": 0, "name": name, "busLocation": f"0000:0{number + 1}:00.0"}
        if self.version == "2020.3":
            told["deviceId"] = number
        else:
            told |= {"id": number, "uuid": uuid, "totalMemory": 2**36, "smCount": 132}
        self._row("TARGET_INFO_GPU", **told)

    def device(self, pid: int, device: int, gpu: int, uuid: str | None = None) -> None:
        """Say which GPU a process's device is, as exports do from 2025 on; later with its UUID."""
        columns = "gpuId INTEGER, cudaId INTEGER NOT NULL, pid INTEGER NOT NULL"
        if uuid is not None:
            columns += ", uuid TEXT, numMultiprocessors INTEGER"
            self._table("TARGET_INFO_CUDA_DEVICE", columns)
            told = {"gpuId": gpu, "cudaId": device, "pid": pid, "uuid": uuid}
            self._row("TARGET_INFO_CUDA_DEVICE", numMultiprocessors=16, **told)
        elif self.version == "2025.1":
            self._table("TARGET_INFO_CUDA_DEVICE", columns)
            self._row("TARGET_INFO_CUDA_DEVICE", gpuId=gpu, cudaId=device, pid=pid)
