"""Show, as OpenTelemetry spans: a line of OTLP/JSON for each batch of them.

Format: "OpenTelemetry Protocol File Exporter", of the OpenTelemetry specification: each line is a
``TracesData`` in the JSON encoding of OTLP, in which ids are hexadecimal, 64-bit integers decimal
strings, enumerations numbers and names lower camel case.
"""

from __future__ import annotations

import hashlib
import json
from itertools import groupby
from typing import IO, Any

import numpy as np

from dasf_hpc.show.timeline import (
    bound_text,
    facts,
    grouped_codes,
    plain_rows,
    time_windows,
    whole_column,
)
from dasf_hpc.steps import Step, Told
from dasf_hpc.trace.open import Trace

#: ``SPAN_KIND_INTERNAL``, ``STATUS_CODE_OK`` and ``STATUS_CODE_ERROR`` of OTLP's protobuf.
_INTERNAL, _OK, _ERROR = 1, 1, 2

#: Spans a line: a collector takes lines of some MB.
_SPANS = 1000


def write_otlp(trace: Trace, file: IO[bytes], told: Told) -> None:
    """Write a span for the run and, below it, one for each execution, linked to what it needs.

    A link leads to the execution that first brought the needed key into memory. Times are wall
    clock times of the reference host; a trace that does not know it has them from 1970 on.
    """
    about = facts(trace)
    identity = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).digest()
    run = {"traceId": identity[:16].hex(), "spanId": identity[16:24].hex()}
    origin = max(0, int(trace.attributes.get("origin_utc_ns", 0)))
    end = int(trace.processes["stop"].max()) if len(trace.processes) else 0
    resources = _resources(trace)
    root = {
        **run,
        **_span("dask run", origin, origin + end),
        "attributes": _attributes(about),
        "status": {"code": _OK},
    }
    _line(file, _resource({"service.name": "dasf-hpc"}), [root])

    span_ids, needs, key_of_row = _span_ids(trace)
    columns = [
        *("id", "key", "prefix", "process", "thread", "attempt", "start", "stop"),
        *("state", "nbytes", "type", "exception"),
    ]
    windows = list(time_windows(trace))
    for number, (start, stop) in enumerate(windows):
        told(Step("Exporting", number, len(windows)))
        tasks = trace.table("tasks", columns, start, stop)
        needed = needs.of(key_of_row[tasks.index.to_numpy()])
        batch = []
        for row, links in zip(plain_rows(tasks), needed, strict=True):
            name, process, thread, attempt, begun, ended = row[2:8]
            state, size, kind, error = row[8:]
            found = {"dask.key": row[1] or "?", "dask.state": state or "?", "thread.id": thread}
            found |= {"dask.attempt": attempt} if attempt > 1 else {}
            found |= {"dask.result.bytes": size} if size >= 0 else {}
            found |= {"dask.result.type": kind} if kind else {}
            found |= {"exception.type": error} if error else {}
            sources = [int(span_ids[code]) for code in links]
            span = {
                "traceId": run["traceId"],
                "spanId": _span_id(row[0]),
                "parentSpanId": run["spanId"],
                **_span(name or "?", origin + begun, origin + (ended if ended >= 0 else end)),
                "attributes": _attributes(found),
                "links": [
                    {"traceId": run["traceId"], "spanId": _span_id(source)}
                    for source in sources
                    if source
                ],
                "status": {"code": _OK if state == "memory" else _ERROR},
            }
            batch.append((process, span))
        batch.sort(key=lambda item: item[0])
        for process, spans in groupby(batch, key=lambda item: item[0]):
            listed = [span for _, span in spans]
            resource = resources.get(process, _resource({"service.name": "dasf-hpc"}))
            for first in range(0, len(listed), _SPANS):
                _line(file, resource, listed[first : first + _SPANS])
    told(Step("Exporting", len(windows), len(windows)))


def _span(name: str, start: int, stop: int) -> dict[str, Any]:
    return {
        "name": name,
        "kind": _INTERNAL,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(max(start, stop)),
    }


def _span_id(task: int) -> str:
    return f"{task & 0xFFFFFFFFFFFFFFFF:016x}"


def _span_ids(trace: Trace) -> tuple[Any, Any, Any]:
    """Give the task's id by key (0: none), the keys that each key needs, and each row's key."""
    needs, _ = grouped_codes(trace)
    codes, numbers = (whole_column(trace, "tasks", name) for name in ("key", "id"))
    pieces = trace.pieces("tasks", ["state"])
    done = np.concatenate([(piece["state"] == "memory").to_numpy() for piece in pieces])
    done &= codes >= 0
    span_ids = np.zeros(1 + max(int(codes.max(initial=-1)), needs.largest), np.int64)
    span_ids[codes[done][::-1]] = numbers[done][::-1]
    return span_ids, needs, codes


def _resources(trace: Trace) -> dict[int, dict[str, Any]]:
    hosts = trace.nodes["hostname"].tolist()
    clocks = trace.clocks.to_dict("records")
    found = {}
    for row, process in enumerate(trace.processes.to_dict("records")):
        about = {"service.name": "dasf-hpc", "process.pid": process["pid"]}
        if 0 <= process["node"] < len(hosts):
            about["host.name"] = str(hosts[process["node"]])
        if isinstance(process["name"], str):
            about["service.instance.id"] = process["name"]
        if 0 <= process["clock"] < len(clocks):
            clock = clocks[process["clock"]]
            about["dasf_hpc.times"] = bound_text(clock["bound"], clock["source"])
            about["dasf_hpc.times.bound_ns"] = clock["bound"]
        found[row] = _resource(about)
    return found


def _resource(about: dict[str, Any]) -> dict[str, Any]:
    return {"attributes": _attributes(about)}


def _attributes(about: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "key": name,
            "value": {"intValue": str(value)}
            if isinstance(value, int)
            else {"stringValue": str(value)},
        }
        for name, value in about.items()
    ]


def _line(file: IO[bytes], resource: dict[str, Any], spans: list[dict[str, Any]]) -> None:
    line = {
        "resourceSpans": [
            {"resource": resource, "scopeSpans": [{"scope": {"name": "dasf-hpc"}, "spans": spans}]}
        ]
    }
    file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
