"""Analysis, what it reads: the run's span, its workers, and executions of tasks as arrays.

Columns are read as they are stored, keys as codes: ten million executions are ten million numbers a
column, not ten million strings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.trace.names import natural, node_names, process_names
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.own_axis import gpus_apart
from dasf_hpc.trace.summary import reports_times

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: What stands for a function, worker or node whose name the trace does not know.
UNKNOWN = "?"


@dataclass(frozen=True)
class Span:
    """A stretch of trace time, ns."""

    start: int
    stop: int

    @property
    def duration(self) -> int:
        """Its length, ns."""
        return self.stop - self.start


@dataclass(frozen=True)
class Executions:
    """Executions of tasks, in the order of the rows of ``tasks``: arrays of equal length.

    Attributes
    ----------
    process
        Row of the worker in ``processes``.
    thread
        Native id of the thread.
    function
        Position in `functions`.
    functions
        Names of functions.
    key
        Code of the key.
    start, stop
        Trace time, ns. One that was lost stops where its worker does.
    state
        Position in `states`.
    states
        Names of states.
    nbytes
        Size of the result, -1: none.
    """

    process: NDArray[np.int32]
    thread: Ints
    function: NDArray[np.int32]
    functions: list[str]
    key: NDArray[np.int32]
    start: Ints
    stop: Ints
    state: NDArray[np.int8]
    states: list[str]
    nbytes: Ints

    def __len__(self) -> int:
        return len(self.start)

    @property
    def duration(self) -> Ints:
        """How long each took, ns."""
        result: Ints = self.stop - self.start
        return result

    def in_state(self, *names: str) -> NDArray[np.bool_]:
        """Say which executions ended in one of some states."""
        codes = [code for code, name in enumerate(self.states) if name in names]
        result: NDArray[np.bool_] = np.isin(self.state, codes)
        return result


_COLUMNS = ("process", "thread", "prefix", "key", "start", "stop", "state", "nbytes")


def read_executions(trace: Trace, columns: Sequence[str] = _COLUMNS) -> Executions:
    """Read executions.

    Parameters
    ----------
    trace
        The trace.
    columns
        Columns of ``tasks`` that are wanted; the others come as zeros. ``process``, ``start`` and
        ``stop`` are always read.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    wanted = [c for c in _COLUMNS if c in columns or c in ("process", "start", "stop")]
    kept = _READ.setdefault(trace, {})
    for column in wanted:
        if column not in kept:
            kept[column] = _read_column(trace, column)
    arrays = {column: kept[column][0] for column in wanted}
    names = {column: kept[column][1] for column in ("prefix", "state") if column in wanted}
    count = len(arrays["start"])
    none = np.zeros(count, np.int8)
    start, stop = arrays["start"], arrays["stop"]
    if (stop < 0).any():
        ends = process_stops(trace)
        known = (arrays["process"] >= 0) & (arrays["process"] < len(ends))
        end = ends[np.where(known, arrays["process"], 0)] if len(ends) else start
        stop = np.where(stop < 0, np.maximum(start, np.where(known, end, start)), stop)
    process = arrays["process"].astype(np.int32, copy=False)
    if count and process.min() < 0:  # of no process that is known: of one of their own
        process = np.where(process < 0, len(trace.processes), process).astype(np.int32)
    function = arrays.get("prefix", none).astype(np.int32)
    functions = names.get("prefix", [])
    if len(function) and function.min() < 0:
        function = np.where(function < 0, len(functions), function).astype(np.int32)
        functions = [*functions, UNKNOWN]
    return Executions(
        process=process,
        thread=arrays.get("thread", none).astype(np.int64, copy=False),
        function=function,
        functions=functions,
        key=arrays.get("key", none).astype(np.int32, copy=False),
        start=start.astype(np.int64, copy=False),
        # clocks of two readings in one thread do not run back, damaged values may
        stop=np.maximum(stop, start).astype(np.int64, copy=False),
        state=arrays.get("state", none).astype(np.int8, copy=False),
        states=names.get("state", []),
        nbytes=arrays.get("nbytes", none).astype(np.int64, copy=False),
    )


#: Columns of ``tasks`` that were read of a trace: a report asks for them ten times.
_READ: WeakKeyDictionary[Trace, dict[str, tuple[NDArray[Any], list[str]]]] = WeakKeyDictionary()


def _read_column(trace: Trace, column: str) -> tuple[NDArray[Any], list[str]]:
    """Read a column of ``tasks``, and the names that its codes stand for."""
    names: list[str] = []
    parts: list[NDArray[Any]] = []
    for piece in trace.pieces("tasks", [column]):
        values = piece[column]
        if column in ("prefix", "state"):
            names = [str(name) for name in values.cat.categories]
            parts.append(values.cat.codes.to_numpy())
        elif column == "key" and not len(piece):
            parts.append(np.empty(0, np.int32))
        else:
            parts.append(values.to_numpy())
    whole = np.concatenate(parts)
    whole.flags.writeable = False  # it is shared
    return whole, names


#: As `distributed.Client.map` names tasks of functions that are not pure.
_MAPPED = re.compile(r"(.*-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-[0-9]+")


def key_texts(trace: Trace, codes: NDArray[Any]) -> list[str]:
    """Give the keys that some codes stand for; of -1 `UNKNOWN`. Only those are read."""
    return [UNKNOWN if text is None else text for text in trace.texts("keys", codes)]


def layer_of(key: str) -> str:
    """Give what the keys of one array, collection or call of map have in common; others whole."""
    if key.startswith("('") and "'," in key:
        return key[: key.find("',", 2)]
    mapped = _MAPPED.fullmatch(key)
    return mapped.group(1) if mapped else key


def keep_arrivals(trace: Trace, arrivals: Ints) -> None:
    """Keep when each key was first known to a worker, for who asks for it later."""
    _READ.setdefault(trace, {})["arrival"] = arrivals, []


def kept_arrivals(trace: Trace) -> Ints | None:
    """Give what was kept: by code of the key, the largest int64 where no transition says."""
    kept = _READ.get(trace, {}).get("arrival")
    return None if kept is None else kept[0]


def keep_ability(trace: Trace, able: Ints) -> None:
    """Keep when each task could run, for who asks for it later."""
    _READ.setdefault(trace, {})["able"] = able, []


def kept_ability(trace: Trace) -> Ints | None:
    """Give what was kept: by code of the key."""
    kept = _READ.get(trace, {}).get("able")
    return None if kept is None else kept[0]


def process_stops(trace: Trace) -> Ints:
    """Give when each process ended, in the order of ``processes``; -1: not known."""
    return trace.processes["stop"].to_numpy(np.int64)


def workers(trace: Trace, executions: Executions | None = None) -> pd.DataFrame:
    """Give the workers of a run.

    Parameters
    ----------
    trace
        The trace.
    executions
        Where given, a process that executed tasks is a worker whatever else is known of it, and a
        worker whose threads are not known has as many as executed tasks.

    Returns
    -------
    pandas.DataFrame
        By row of ``processes``, in the natural order of nodes and workers: ``worker`` and
        ``node`` (named as by `dasf_hpc.trace.names`), ``node_row``, ``threads`` (at least 1),
        ``start`` and ``stop`` (ns), ``gpus`` (rows of ``gpus``), ``memory_limit``.
    """
    processes = trace.processes
    nodes, names = node_names(trace), process_names(trace)
    is_worker = (processes["role"] == "worker").to_numpy()
    used: list[int] = []
    if executions is not None and len(executions):
        used = np.flatnonzero(np.bincount(executions.process)).tolist()
    rows = sorted({int(r) for r in np.flatnonzero(is_worker)} | set(used))
    known = processes.to_dict("index")
    apart = gpus_apart(trace)
    gpu_rows = {str(u): row for row, u in enumerate(trace.gpus["uuid"]) if row not in apart}
    span = run_span(trace, executions)
    made: list[dict[str, Any]] = []
    for row in rows:
        process = known.get(row, {})
        node = process.get("node", -1)
        threads = int(process.get("nthreads", -1))
        if threads < 1:
            seen = 0
            if executions is not None:
                seen = len(np.unique(executions.thread[executions.process == row]))
            threads = max(1, seen)
        start, stop = int(process.get("start", -1)), int(process.get("stop", -1))
        uuids = process.get("gpus")
        made.append(
            {
                "worker": names[row] if row < len(names) else f"worker {row}",
                "node": nodes[node] if 0 <= node < len(nodes) else UNKNOWN,
                "node_row": int(node),
                "threads": threads,
                "start": start if start >= 0 else span.start,
                "stop": stop if stop >= 0 else span.stop,
                "gpus": tuple(
                    gpu_rows[uuid]
                    for uuid in (uuids.split(",") if isinstance(uuids, str) else [])
                    if uuid in gpu_rows
                ),
                "memory_limit": int(process.get("memory_limit", -1)),
            }
        )
    columns = ["worker", "node", "node_row", "threads", "start", "stop", "gpus", "memory_limit"]
    order = sorted(
        range(len(made)), key=lambda i: (natural(made[i]["node"]), natural(made[i]["worker"]))
    )
    index = pd.Index([rows[i] for i in order], dtype="int64")
    return pd.DataFrame([made[i] for i in order], index=index, columns=columns)


def run_span(trace: Trace, executions: Executions | None = None) -> Span:
    """Give the run from its first to its last known moment."""
    processes = trace.processes
    times = [int(t) for column in ("start", "stop") for t in processes[column] if t >= 0]
    if executions is not None and len(executions):
        times += [int(executions.start.min()), int(executions.stop.max())]
    if not times:  # only Nsight reports
        times = reports_times(trace)
    if not times:  # only samples
        for table in ("node_samples", "process_samples", "gpu_samples"):
            for piece in trace.pieces(table, ["time"]) if trace.rows(table) else ():
                times += [int(piece["time"].min()), int(piece["time"].max())]
    return Span(min(times), max(times)) if times else Span(0, 0)


def work_span(trace: Trace, executions: Executions) -> Span:
    """Give the run from the start of its first task to the end of its last one.

    That is the time that headlines, findings and pictures are about, and its start is time 0 of
    every moment that is shown. Of a trace without tasks it is the whole time that was recorded.
    """
    if not len(executions):
        return run_span(trace, executions)
    return Span(int(executions.start.min()), int(executions.stop.max()))


def in_lanes(executions: Executions) -> tuple[NDArray[np.intp], Ints]:
    """Sort executions by thread and start.

    Returns
    -------
    order
        Rows of executions, thread after thread, each by start.
    firsts
        Where each thread's begin in `order`, and the length of it.
    """
    pair = executions.process.astype(np.int64) << 40 | (executions.thread & ((1 << 40) - 1))
    lane, _ = pd.factorize(pair)
    order = np.argsort(
        lane.astype(np.uint16) if len(lane) == 0 or lane.max() < 65536 else lane, kind="stable"
    )
    sorted_lane, start = lane[order], executions.start[order]
    same = sorted_lane[1:] == sorted_lane[:-1]
    # rows of one process stand in the order of time, but in a trace that was put together otherwise
    if (same & (start[1:] < start[:-1])).any():
        order = np.lexsort((executions.start, lane))
        sorted_lane = lane[order]
        same = sorted_lane[1:] == sorted_lane[:-1]
    firsts = np.concatenate([[0], np.flatnonzero(~same) + 1, [len(order)]]) if len(order) else [0]
    return order, np.asarray(firsts, np.int64)


def input_bytes(trace: Trace, executions: Executions) -> Ints:
    """Give, for each execution, the size of all results that its task needs.

    The sizes are those of the last execution of each dependency that gave a result.
    """
    top = int(executions.key.max()) + 1 if len(executions) else 0
    size = np.zeros(max(top, 1), np.int64)
    given = (executions.nbytes >= 0) & (executions.key >= 0)
    size[executions.key[given]] = executions.nbytes[given]
    total = np.zeros(max(top, 1), np.int64)
    for piece in trace.pieces("dependencies", ["key", "dependency"]):
        if not len(piece):
            continue
        key, dependency = piece["key"].to_numpy(), piece["dependency"].to_numpy()
        known = (key >= 0) & (key < top) & (dependency >= 0) & (dependency < top)
        if not known.all():
            key, dependency = key[known], dependency[known]
        np.add.at(total, key, size[dependency])
    known_key = np.maximum(executions.key, 0)
    result: Ints = np.where(executions.key >= 0, total[known_key], 0)
    return result


def group_quantiles(
    group: NDArray[np.integer], values: Ints, groups: int, at: Sequence[float]
) -> Floats:
    """Give quantiles of the values of each group, by linear interpolation.

    Returns
    -------
    numpy.ndarray
        Of shape (groups, len(at)); NaN for a group without values.
    """
    small = group.astype(np.uint16) if groups <= 65536 else group
    order = np.argsort(small, kind="stable")
    sorted_values = values[order]
    ends = np.cumsum(np.bincount(group, minlength=groups))
    found = np.full((groups, len(at)), np.nan)
    first = 0
    for number, last in enumerate(ends.tolist()):
        if last > first:
            found[number] = np.quantile(sorted_values[first:last], at)
        first = last
    return found


def group_sums(group: NDArray[np.integer[Any]], values: Ints, groups: int) -> Ints:
    """Sum the values of each group, exactly."""
    sums = np.zeros(groups, np.int64)
    np.add.at(sums, group, values)
    return sums


def bounds(trace: Trace) -> Ints:
    """Give how far a time of each process may be wrong, ns, in the order of ``processes``.

    -1: not known. Of two processes on one clock the errors are the same.
    """
    of_clock = trace.clocks["bound"].to_numpy(np.int64)
    clock = trace.processes["clock"].to_numpy(np.int64)
    known = (clock >= 0) & (clock < len(of_clock))
    if not len(of_clock):
        return np.full(len(clock), -1, np.int64)
    result: Ints = np.where(known, of_clock[np.where(known, clock, 0)], -1)
    return result
