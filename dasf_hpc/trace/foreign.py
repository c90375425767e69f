"""Trace, from elsewhere: dasf-core's own msgpack traces become a trace that we read like ours.

Format, as `dasf/profile/profiler.py` of discovery-unicamp/dasf-core has it: each event is eight
bytes of length, most significant first, and a msgpack map; times are seconds of its host's
``time.monotonic``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from dask.utils import key_split
from numpy.typing import NDArray

from dasf_hpc.profile.identity import installed_version
from dasf_hpc.trace.store import TraceError, write_trace

#: Bytes of the length before each event.
LENGTH_BYTES = 8

#: An event is a few kB; a length above this is not a length.
LONGEST_EVENT = 1 << 30

#: Stands in the ``args`` of a ``Compute`` event whose time stamp is the task's start, which our own
#: export writes; dasf-core's plugin records the time after the task.
STARTS = "timestamp_is_start"


@dataclass
class Imported:
    """What was found in dasf-core's traces.

    Attributes
    ----------
    events, tasks, samples
        How many: of all kinds, executions, samples of resources.
    skipped
        Events of kinds that a trace has no place for, and damaged ends of files, a sentence each.
    """

    events: int = 0
    tasks: int = 0
    samples: int = 0
    skipped: list[str] = field(default_factory=list)


def import_dasf(files: Sequence[Path], target: Path) -> Imported:
    """Write a trace of dasf-core's msgpack traces of one run.

    dasf-core does not record what clock its times are of nor any way to compare clocks: each host's
    first event becomes time 0, and the bound of every clock is unknown. A task's time stamp is
    when its result was in memory: its start is that less the duration, so both are late by up to
    the time that Dask took to note it. dasf-core's ``ResourceMonitor`` samples the process it runs
    in, which it does not name: its samples stand under no process.

    Parameters
    ----------
    files
        ``TracePlugin-HOST.msgpack``, ``ResourceMonitor-HOST.msgpack``, …, in any order.
    target
        The trace to write.

    Returns
    -------
    Imported

    Raises
    ------
    TraceError
        If a file cannot be read or holds no event, or the trace cannot be written.
    """
    found = Imported()
    events: list[dict[str, Any]] = []
    torn: list[tuple[str, str]] = []
    for path in files:
        before = len(events)
        try:
            for event in _events(path):
                events.append(event)
        except ValueError as error:
            torn.append((path.name, str(error)))
            found.skipped.append(f"{path.name}: {error}")
        if len(events) == before:
            raise TraceError(f"{path} is no trace of dasf-core: it holds no event.")
    found.events = len(events)
    tables = _Tables(events, torn)
    found.tasks, found.samples = len(tables.tasks), len(tables.samples)
    found.skipped += [f"{count} events {name!r}" for name, count in tables.unknown.items()]
    write_trace(
        target,
        tables.all(),
        attributes={
            "producer": f"dasf-hpc {installed_version('dasf-hpc') or '?'}, from dasf-core",
            "reference_host": tables.hosts[0],
            "reference_clock": tables.hosts[0],
            "origin_monotonic_ns": np.int64(tables.origins[tables.hosts[0]]),
            "origin_utc_ns": np.int64(-1),
            "imported": "\n".join(path.name for path in files),
        },
    )
    return found


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Read events up to the end of the file or the first that is not whole.

    Raises
    ------
    ValueError
        With what is wrong, at the first event that is not whole.
    """
    try:
        with path.open("rb") as file:
            while head := file.read(LENGTH_BYTES):
                length = int.from_bytes(head, "big")
                data = file.read(length) if length <= LONGEST_EVENT else b""
                if len(head) < LENGTH_BYTES or len(data) < length:
                    raise ValueError(f"damaged from byte {file.tell() - len(head) - len(data)} on")
                try:
                    event = msgpack.unpackb(data, strict_map_key=False)
                except (ValueError, msgpack.UnpackException):
                    event = None
                if not _sound(event):
                    raise ValueError(f"damaged from byte {file.tell() - len(head) - length} on")
                yield event
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}.") from None


def _sound(event: Any) -> bool:
    """Tell whether the fields that we use are there and of the kind that they should be."""
    return (
        isinstance(event, dict)
        and isinstance(event.get("name"), str)
        and _number(event.get("timestamp"))
        and isinstance(event.get("args"), dict)
        and (event["name"] != "Compute" or _number(event.get("duration")))
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e9


def _text(value: Any) -> str:
    """Give a key or name as text; dasf-core's files hold tuples as lists."""
    if isinstance(value, list):
        value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    return value if isinstance(value, str) else str(value)


class _Tables:
    """The trace's tables, made of events."""

    def __init__(self, events: list[dict[str, Any]], torn: list[tuple[str, str]]) -> None:
        self.unknown: dict[str, int] = {}
        self._torn = torn
        self.tasks: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self._edges: set[tuple[str, str]] = set()
        self.origins: dict[str, int] = {}
        for event in events:
            self._take_origin(event)
        self.hosts = sorted(self.origins)
        self._node = {host: row for row, host in enumerate(self.hosts)}
        self._workers: dict[tuple[str, str], int] = {}
        self._spans: dict[str, list[int]] = {host: [0, 0] for host in self.hosts}
        for event in events:
            self._take(event)

    @staticmethod
    def _times(event: dict[str, Any]) -> tuple[int, int]:
        """Give when an event began and ended, ns of its host's clock."""
        time = round(event["timestamp"] * 1e9)
        took = round(event["duration"] * 1e9) if event["name"] == "Compute" else 0
        if event["args"].get(STARTS):
            return time, time + took
        return time - took, time

    def _take_origin(self, event: dict[str, Any]) -> None:
        host = _text(event.get("process_id"))
        start, _ = self._times(event)
        self.origins[host] = min(start, self.origins.get(host, start))

    def _take(self, event: dict[str, Any]) -> None:
        host, args = _text(event.get("process_id")), event["args"]
        origin = self.origins[host]
        start, stop = (time - origin for time in self._times(event))
        self._spans[host][1] = max(self._spans[host][1], stop)
        if event["name"] == "Compute":
            key = _text(args.get("key"))
            worker = (host, _text(event.get("thread_id")))
            shape, dtype = args.get("shape"), args.get("dtype")
            size = args.get("size")
            self.tasks.append(
                {
                    "key": key,
                    "prefix": str(key_split(key)),
                    "process": self._workers.setdefault(worker, len(self._workers)),
                    "start": start,
                    "stop": stop,
                    "state": "memory",
                    "nbytes": size if isinstance(size, int) else -1,
                    "type": _type(args.get("type")),
                    "dtype": dtype if isinstance(dtype, str) and dtype != "unknown" else None,
                    "shape": str(tuple(shape)) if isinstance(shape, list) and shape else None,
                }
            )
            self._edges.update((key, _text(needed)) for needed in args.get("dependencies") or ())
            self._edges.update((_text(needs), key) for needs in args.get("dependents") or ())
        elif event["name"] == "Resource Usage":
            self.samples.append({"time": start, "node": self._node[host], **args})
        else:
            self.unknown[event["name"]] = self.unknown.get(event["name"], 0) + 1

    def all(self) -> dict[str, dict[str, Any]]:
        """Give every table as columns."""
        hosts = self.hosts
        spans = [self._spans[host] for host in hosts]
        origins = np.array([self.origins[host] for host in hosts], np.int64)
        tables: dict[str, dict[str, Any]] = {
            "nodes": {
                "hostname": hosts,
                "gpus": np.zeros(len(hosts), np.int32),
                "start": np.array([span[0] for span in spans], np.int64),
                "stop": np.array([span[1] for span in spans], np.int64),
            },
            "clocks": {
                "clock": hosts,
                "node": np.arange(len(hosts), dtype=np.int32),
                "source": ["none"] * len(hosts),
                "origin": origins,
                "offset": -origins,
                "drift": np.zeros(len(hosts)),
                "bound": np.full(len(hosts), -1, np.int64),
            },
            "tasks": self._task_columns(),
            "dependencies": self._dependency_columns(),
        }
        tables["processes"] = self._process_columns()
        self._add_samples(tables)
        gaps: list[tuple[str, str | None, str]] = [
            ("clock not aligned", None, "dasf-core does not record how clocks compare")
        ]
        gaps += [("blocks damaged", name, why) for name, why in self._torn]
        gaps += [
            ("not available", None, f"{count} events {name!r} have no place in a trace")
            for name, count in self.unknown.items()
        ]
        tables["gaps"] = {
            "kind": [kind for kind, _, _ in gaps],
            "journal": [name for _, name, _ in gaps],
            "reason": [why for _, _, why in gaps],
        }
        return tables

    def _task_columns(self) -> dict[str, Any]:
        tasks = sorted(self.tasks, key=lambda task: task["start"])
        attempts: dict[str, int] = {}
        for number, task in enumerate(tasks):
            task["id"] = number + 1
            task["attempt"] = attempts[task["key"]] = attempts.get(task["key"], 0) + 1
        numbers = ("id", "process", "attempt", "start", "stop", "nbytes")
        texts = ("key", "prefix", "state", "type", "dtype", "shape")
        columns: dict[str, Any] = {name: _integers(tasks, name) for name in numbers}
        return columns | {name: [task[name] for task in tasks] for name in texts}

    def _dependency_columns(self) -> dict[str, Any]:
        edges = sorted(self._edges)
        return {"key": [key for key, _ in edges], "dependency": [needed for _, needed in edges]}

    def _process_columns(self) -> dict[str, Any]:
        workers = list(self._workers)
        nodes = np.array([self._node[host] for host, _ in workers], np.int32)
        return {
            "node": nodes,
            "clock": nodes,
            "role": ["worker"] * len(workers),
            "name": [name.removeprefix(f"worker-{host}-") for host, name in workers],
            "start": np.zeros(len(workers), np.int64),
            "stop": np.array([self._spans[host][1] for host, _ in workers], np.int64),
            "ended": ["unknown"] * len(workers),
        }

    def _add_samples(self, tables: dict[str, dict[str, Any]]) -> None:
        samples = sorted(self.samples, key=lambda sample: sample["time"])
        own = [sample for sample in samples if "cpu" in sample or "memory" in sample]
        if own:
            tables["process_samples"] = {
                "time": _integers(own, "time"),
                "node": _integers(own, "node"),
                "process": np.full(len(own), -1, np.int32),
                "pid": np.full(len(own), -1, np.int64),
                "cpu": _floats(own, "cpu"),
                "memory": _integers(own, "memory"),
                "fds": _integers(own, "num_fds"),
            }
        on_gpu = [sample for sample in samples if _number(sample.get("gpu_utilization"))]
        nodes = sorted({sample["node"] for sample in on_gpu})
        if nodes:
            gpu = {node: row for row, node in enumerate(nodes)}
            tables["gpus"] = {"node": np.array(nodes, np.int32), "uuid": [None] * len(nodes)}
            tables["nodes"]["gpus"][nodes] = 1
            tables["gpu_samples"] = {
                "time": _integers(on_gpu, "time"),
                "gpu": np.array([gpu[sample["node"]] for sample in on_gpu], np.int32),
                "utilization": _floats(on_gpu, "gpu_utilization"),
                "memory_used": _integers(on_gpu, "gpu_memory_used"),
            }


def _type(value: Any) -> str | None:
    """Give a type's name out of ``<class 'NAME'>``."""
    if not isinstance(value, str) or value == "unknown":
        return None
    return value.removeprefix("<class '").removesuffix("'>")


def _integers(rows: list[dict[str, Any]], name: str) -> NDArray[np.int64]:
    values = (row.get(name, -1) for row in rows)
    return np.array([int(v) if _fits(v) else -1 for v in values], np.int64)


def _fits(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 2**62


def _floats(rows: list[dict[str, Any]], name: str) -> NDArray[np.float32]:
    values = (row.get(name) for row in rows)
    return np.array([v if _fits(v) else np.nan for v in values], np.float32)
