"""Exports of Nsight Systems reports in the schema of each version, made with known answers.

The columns are those of the real exports as far as anything here tells them apart.
"""

from __future__ import annotations

import sqlite3
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
SYSTEM_ENV = "devStateName TEXT NOT NULL, name TEXT NOT NULL, nameEnum INTEGER, value TEXT NOT NULL"
GPU_2020 = "vmId INTEGER NOT NULL, deviceId INTEGER NOT NULL, name TEXT, busLocation TEXT"
GPU = """vmId INTEGER NOT NULL, id INTEGER NOT NULL, name TEXT, busLocation TEXT,
    totalMemory INTEGER, smCount INTEGER, uuid TEXT, cuDevice INTEGER"""
START = "utcEpochNs INTEGER, utcTime TEXT, localTime TEXT"

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
        self._table("NVTX_EVENTS", NVTX_2020)
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

    def metric(self, at: int, metric: int, value: int) -> None:
        """Add a sample of a GPU's metrics."""
        self._table("GPU_METRICS", METRICS)
        self._row("GPU_METRICS", timestamp=at, typeId=1, metricId=metric, value=value)

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
