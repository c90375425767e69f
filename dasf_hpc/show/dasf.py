"""Show, as dasf-core's own trace: msgpack events, which its ``TraceAnalyser`` reads.

Format, as `dasf/profile/profiler.py` of discovery-unicamp/dasf-core has it: each event is eight
bytes of length, most significant first, and a msgpack map with the fields of one of its classes of
events. Times and durations are seconds.
"""

from __future__ import annotations

import ast
import heapq
import re
from collections.abc import Iterator
from typing import IO, Any

import msgpack

from dasf_hpc.show.timeline import grouped_codes, plain_rows, time_windows, whole_column
from dasf_hpc.steps import Step, Told
from dasf_hpc.trace.foreign import LENGTH_BYTES, STARTS
from dasf_hpc.trace.open import Trace

_SHAPE = re.compile(r"\([\d, ]*\)")


def write_dasf(trace: Trace, file: IO[bytes], told: Told) -> None:
    """Write all events, those of a window of time after the other.

    Times are on the trace's one clock, not on each host's own. The analyser wants a GPU's
    utilisation in every sample of resources: where a node has no GPU they are 0, as it then would
    report for a run without samples.
    """
    writer = _Writer(trace, file)
    windows = list(time_windows(trace))
    for number, (start, stop) in enumerate(windows):
        told(Step("Exporting", number, len(windows)))
        events = heapq.merge(
            writer.tasks(start, stop),
            writer.memory(start, stop),
            writer.resources(start, stop),
            key=lambda event: event["timestamp"],
        )
        for event in events:
            packed = msgpack.packb(event)
            file.write(len(packed).to_bytes(LENGTH_BYTES, "big") + packed)
    told(Step("Exporting", len(windows), len(windows)))


class _Writer:
    def __init__(self, trace: Trace, file: IO[bytes]) -> None:
        self._trace = trace
        self._file = file
        hosts = trace.nodes["hostname"].tolist()
        self._hosts = [name if isinstance(name, str) else "?" for name in hosts]
        self._places = [
            self._place(row["node"], row["name"]) for row in trace.processes.to_dict("records")
        ]
        pairs = trace.dependencies
        self._keys = pairs["key"].cat.categories
        self._needs, self._needed_by = grouped_codes(trace)
        #: Which row of the dictionary a row of ``tasks`` has.
        self._key_of_row = whole_column(trace, "tasks", "key")

    def _place(self, node: int, worker: Any) -> tuple[str, str]:
        host = self._hosts[node] if 0 <= node < len(self._hosts) else "?"
        return host, f"worker-{host}-{worker if isinstance(worker, str) else '?'}"

    def _event(self, name: str, time: int, row: int, **fields: Any) -> dict[str, Any]:
        known = 0 <= row < len(self._places)
        host, worker = self._places[row] if known else ("?", "worker-?-?")
        return {
            "name": name,
            "timestamp": time / 1e9,
            "process_id": host,
            "thread_id": worker,
            **fields,
        }

    def _texts(self, codes: list[int]) -> list[str]:
        return [str(self._keys[code]) for code in codes]

    def tasks(self, start: int | None, stop: int | None) -> Iterator[dict[str, Any]]:
        """Give a ``Compute`` event for every execution whose result went to memory."""
        columns = [
            *("key", "prefix", "process", "start", "stop", "state"),
            *("nbytes", "shape", "dtype", "type"),
        ]
        tasks = self._trace.table("tasks", columns, start, stop)
        codes = self._key_of_row[tasks.index.to_numpy()]
        needs, needed_by = self._needs.of(codes), self._needed_by.of(codes)
        for row, into, out in zip(plain_rows(tasks), needs, needed_by, strict=True):
            key, prefix, process, begun, ended, state, size, shape, dtype, kind = row
            if state != "memory":
                continue  # dasf-core knows no others
            yield self._event(
                "Compute",
                begun,
                process,
                duration=max(1, ended - begun) / 1e9,  # the analyser divides by it
                phase="X",
                args={
                    "key": key or "?",
                    "name": prefix or "?",
                    "state": state,
                    "size": max(0, size),
                    "shape": ast.literal_eval(shape) if shape and _SHAPE.fullmatch(shape) else (),
                    "dtype": dtype or "unknown",
                    "type": f"<class '{kind}'>" if kind else "unknown",
                    "dependencies": self._texts(into),
                    "dependents": self._texts(out),
                    STARTS: True,
                },
            )

    def memory(self, start: int | None, stop: int | None) -> Iterator[dict[str, Any]]:
        """Give a ``Managed Memory`` event for every change of a worker's memory."""
        columns = ["time", "process", "managed", "tasks", "transition"]
        memory = self._trace.table("memory", columns, start, stop)
        # a change of memory has the time of its transition: both lie in the window
        changed = self._trace.table("transitions", ["key", "finish_state"], start, stop)
        changed = changed.reindex(memory.pop("transition"))
        for row, cause in zip(plain_rows(memory), plain_rows(changed), strict=True):
            time, process, managed, tasks = row
            key, state = cause
            args = {"key": key or "?", "state": state or "?", "size": managed, "tasks": tasks}
            yield self._instant("Managed Memory", time, process, args)

    def _instant(self, name: str, time: int, process: int, args: dict[str, Any]) -> dict[str, Any]:
        return self._event(name, time, process, phase="I", scope="g", args=args)

    def resources(self, start: int | None, stop: int | None) -> Iterator[dict[str, Any]]:
        """Give a ``Resource Usage`` event for every sample of a GPU, else of a node."""
        trace = self._trace
        gpus = trace.gpus["node"].tolist()
        if trace.rows("gpu_samples"):  # nodes may be given GPUs where there are none
            columns = ["time", "gpu", "utilization", "memory_used"]
            rows = plain_rows(trace.table("gpu_samples", columns, start, stop))
            samples = ((time, gpus[gpu], used, memory) for time, gpu, used, memory in rows)
        else:
            rows = plain_rows(trace.table("node_samples", ["time", "node"], start, stop))
            samples = ((time, node, 0.0, 0) for time, node in rows)
        for time, node, utilization, memory in samples:
            event = self._instant(
                "Resource Usage",
                time,
                -1,
                {
                    "gpu_utilization": utilization if utilization >= 0 else 0.0,
                    "gpu_memory_used": max(0, memory),
                },
            )
            yield {**event, "process_id": self._hosts[node], "thread_id": None}
