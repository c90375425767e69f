"""Trace, merged: every journal of a run is read, put on one clock and turned into tables.

The story, top to bottom, is `merge_journals`: read, choose the reference clock, correct every clock
to it, then build one table after the other. What could not be read, or was never written, becomes a
row of the table ``gaps``; nothing that a run left behind makes a merge fail.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from dask.utils import key_split
from numpy.lib.recfunctions import structured_to_unstructured
from numpy.typing import NDArray

from dasf_hpc.profile.journal import (
    DIRECTIONS,
    STATES,
    STATUSES,
    JournalContents,
    JournalError,
    Stream,
    read_journal,
)
from dasf_hpc.trace.align import Correction, fit_probes, fit_utc
from dasf_hpc.trace.schema import TABLES
from dasf_hpc.trace.store import Strings, write_trace

Array = NDArray[Any]
Columns = dict[str, Array]
Progress = Callable[[int, int, str], None]

_NONE = 0xFFFFFFFF
_MEMORY = STATES.index("memory")
_LOST = len(STATUSES)


@dataclass
class MergedTables:
    """A run's journals as the tables of one trace.

    Attributes
    ----------
    tables
        Columns by table; strings as codes.
    dictionaries
        The strings that codes stand for.
    attributes
        Root attributes of the trace.
    journals
        Number of journals merged.
    skipped
        File name and reason of every journal that was not.
    events
        Number of records merged.
    """

    tables: dict[str, Columns] = field(default_factory=dict)
    dictionaries: dict[str, list[str]] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    journals: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    events: int = 0

    def write(self, path: Path) -> None:
        """Write the trace.

        Raises
        ------
        TraceError
            If the file cannot be written.
        """
        write_trace(path, self.tables, self.dictionaries, self.attributes)


def merge_journals(journals_dir: Path, progress: Progress | None = None) -> MergedTables:
    """Merge every journal of a folder.

    Parameters
    ----------
    journals_dir
        The folder; its ``*.journal`` files are read. A journal that cannot be read is skipped and
        named in the result and in table ``gaps``.
    progress
        Called with (done, total, what is being done).

    Returns
    -------
    MergedTables
    """
    paths = sorted(journals_dir.glob("*.journal"))
    steps: tuple[tuple[str, Callable[[_Run], Columns]], ...] = (
        ("tasks", _tasks),
        ("dependencies", _dependencies),
        ("transitions", _transitions),
        ("memory", _memory),
        ("activities", _activities),
        ("transfers", _transfers),
        ("reschedules", _reschedules),
        ("node_samples", _node_samples),
        ("gpu_samples", _gpu_samples),
        ("process_samples", _process_samples),
    )
    total = len(paths) + len(steps) + 1
    report = progress or (lambda done, total, label: None)

    run = _Run()
    journals = []
    for done, path in enumerate(paths):
        report(done, total, f"reading {path.name}")
        try:
            journals.append(read_journal(path))
        except JournalError as error:
            run.skip(path.name, "journal unreadable", str(error))
    journals = list(_distinct(run, journals))

    report(len(paths), total, "correcting clocks")
    _place(run, journals)
    for done, (name, build) in enumerate(steps):
        report(len(paths) + 1 + done, total, f"building {name}")
        columns = build(run)
        order = TABLES[name].order
        run.merged.tables[name] = _sorted(columns, order) if order else columns
    _order_keys(run)
    _gaps(run)
    run.merged.journals = len(journals)
    run.merged.events = sum(len(r) for j in journals for r in j.records.values())
    run.merged.dictionaries = {name: strings.list() for name, strings in run.strings.items()}
    report(total, total, "merged")
    return run.merged


# ------------------------------------------------------------------------------ the run so far


@dataclass
class _Process:
    """A journal and where its process stands in the run."""

    journal: JournalContents
    hostname: str | None
    clock: str
    role: str | None
    pid: int
    worker: dict[str, Any]
    row: int = -1
    node: int = -1
    clock_row: int = -1
    correction: Correction | None = None
    keys: Array = field(default_factory=lambda: np.empty(0, np.int32))

    @property
    def address(self) -> str | None:
        return _string(self.worker.get("address"))

    @property
    def identities(self) -> set[str]:
        place = {"hostname": self.hostname, "pid": self.pid, "address": self.address}
        return _identities(place)


def _identities(document: dict[str, Any]) -> set[str]:
    """Give by what a worker is known: its address, and its process on its host."""
    found = set()
    if document.get("address") is not None:
        found.add(str(document["address"]))
    hostname, pid = document.get("hostname"), _number(document.get("pid"))
    if hostname is not None and pid >= 0:
        found.add(f"{hostname}/{pid}")
    return found


class _Run:
    """What the steps of a merge share."""

    def __init__(self) -> None:
        self.merged = MergedTables()
        self.processes: list[_Process] = []
        self.origin = 0
        self.gaps: list[dict[str, Any]] = []
        self.gpu_rows: dict[tuple[int, int], int] = {}
        #: Size of each key's latest result anywhere, by key code; -1: never seen.
        self.produced: Array = np.empty(0, np.int64)
        self.strings: dict[str, Strings] = {
            "keys": Strings(),
            "states": Strings(STATES),
            "task_states": Strings((*STATUSES, "lost")),
            "directions": Strings(DIRECTIONS),
        }

    def dictionary(self, name: str) -> Strings:
        return self.strings.setdefault(name, Strings())

    def gap(
        self,
        kind: str,
        process: _Process | None = None,
        *,
        journal: str | None = None,
        start: int = -1,
        stop: int = -1,
        count: int = -1,
        reason: str | None = None,
    ) -> None:
        if process is not None:
            journal = process.journal.path.name
        row = -1 if process is None else process.row
        self.gaps.append(
            {
                "kind": kind,
                "process": row,
                "journal": journal,
                "start": start,
                "stop": stop,
                "count": count,
                "reason": reason,
            }
        )

    def skip(self, name: str, kind: str, reason: str) -> None:
        self.merged.skipped.append((name, reason))
        self.gap(kind, journal=name, reason=reason)

    def time(self, process: _Process, times: Array) -> Array:
        """Give trace times of raw readings of a process's clock."""
        times = np.asarray(times, np.int64)
        if process.correction is not None and process.correction.source != "reference":
            times = process.correction.apply(times)
        corrected: Array = times - self.origin
        return corrected

    def stream(self, stream: Stream) -> Iterator[tuple[_Process, Array]]:
        """Give every process's records of a stream, where there are any."""
        for process in self.processes:
            records = process.journal.records[stream]
            if len(records):
                yield process, records


def _distinct(run: _Run, journals: list[JournalContents]) -> Iterable[JournalContents]:
    """Leave out copies of a journal; of several the one that holds most is kept."""
    best: dict[int, JournalContents] = {}
    for journal in journals:
        kept = best.get(journal.writer)
        if kept is None:
            best[journal.writer] = journal
            continue
        if _size(journal) > _size(kept):
            best[journal.writer], journal = journal, kept
        other = best[journal.writer].path.name
        run.skip(journal.path.name, "journal duplicated", f"it is a copy of {other}")
    return best.values()


def _size(journal: JournalContents) -> int:
    texts = len(journal.meta) + len(journal.strings) + len(journal.keys)
    return texts + sum(len(r) for r in journal.records.values())


# ------------------------------------------------------------------ processes, nodes and clocks


def _number(value: Any, default: int = -1) -> int:
    """Give an integer of a META document; what is none there gives the default."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return default
    if value != value or abs(value) >= 1 << 63:
        return default
    return int(value)


def _string(value: Any) -> str | None:
    return None if value is None else str(value)


def _describe(journal: JournalContents) -> _Process:
    first = (journal.documents("journal") or [{}])[0]
    worker: dict[str, Any] = {}
    for document in journal.documents("worker"):
        worker.update(document)
    # A journal that lost its first document has a clock of its own: nothing says whose it was.
    return _Process(
        journal,
        hostname=_string(first.get("hostname")),
        clock=str(first.get("clock") or f"unknown, of {journal.path.name}"),
        role=_string(first.get("role")),
        pid=_number(first.get("pid")),
        worker=worker,
    )


_TIME_FIELDS = ("time", "start", "stop")


def _first_and_last(journal: JournalContents) -> tuple[int, int] | None:
    """Give the first and last raw time in a journal, None where nothing in it carries one."""
    times = [
        _number(document.get(name))
        for document in journal.meta
        for name in _TIME_FIELDS
        if _number(document.get(name)) >= 0
    ]
    for stream, records in journal.records.items():
        if stream in (Stream.ACTIVITIES, Stream.TRANSFERS) or not len(records):
            continue  # Dask's own times: they may precede the journal
        for name in {"time", "before", "after", "t1", "t4"} & set(records.dtype.names or ()):
            times += [int(records[name].min()), int(records[name].max())]
    return (min(times), max(times)) if times else None


def _place(run: _Run, journals: list[JournalContents]) -> None:
    """Give every process its row, its node and its clock's correction; build their tables."""
    processes = [_describe(journal) for journal in journals]
    spans = {id(p): _first_and_last(p.journal) for p in processes}
    reference = next((p for p in processes if p.role == "scheduler"), None)
    if reference is None:
        reference = next((p for p in processes if p.role == "worker"), None)
    if reference is None and processes:
        reference = processes[0]

    corrections = _corrections(run, processes, reference, spans)
    begins: dict[int, int] = {}
    for process in processes:
        process.correction = corrections[process.clock]
        span = spans[id(process)]
        if span is not None:
            begins[id(process)] = int(run.time(process, np.array(span[:1]))[0])
    run.origin = min(begins.values(), default=0)
    processes.sort(key=lambda p: begins.get(id(p), 1 << 62))
    run.processes = processes

    hostnames: dict[str, int] = {}
    clocks: dict[str, int] = {}
    for row, process in enumerate(processes):
        process.row = row
        if process.hostname is not None:
            process.node = hostnames.setdefault(process.hostname, len(hostnames))
        process.clock_row = clocks.setdefault(process.clock, len(clocks))
        codes = run.strings["keys"].codes(process.journal.keys.values())
        process.keys = np.full(max(process.journal.keys, default=-1) + 1, -1, np.int32)
        process.keys[np.fromiter(process.journal.keys, np.int64, len(codes))] = codes

    times = {
        p.row: [int(t) for t in run.time(p, np.array(spans[id(p)]))]
        for p in processes
        if spans[id(p)] is not None
    }
    _process_table(run, times)
    _gpu_table(run)
    _node_table(run, list(hostnames), times)
    _clock_table(run, list(clocks), corrections)
    _name_missing_workers(run)

    run.merged.attributes = {
        "producer": f"dasf-hpc {_own_version()}",
        "reference_host": (reference.hostname if reference else None) or "",
        "reference_clock": reference.clock if reference else "",
        "origin_monotonic_ns": run.origin,
        "origin_utc_ns": _origin_utc(run, reference),
    }


def _own_version() -> str:
    try:
        return version("dasf-hpc")
    except PackageNotFoundError:
        return "unknown"


def _of_clock(processes: list[_Process], clock: str, stream: Stream) -> Array:
    """Give all records of a stream that were made on a clock, a row each, int64."""
    records = [p.journal.records[stream] for p in processes if p.clock == clock]
    return np.concatenate([structured_to_unstructured(r, np.int64) for r in records])


def _corrections(
    run: _Run,
    processes: list[_Process],
    reference: _Process | None,
    spans: dict[int, tuple[int, int] | None],
) -> dict[str, Correction]:
    """Fit every distinct clock to the reference's: by round trips where the scheduler answered."""
    if reference is None:
        return {}
    of_clock: dict[str, list[tuple[int, int]]] = {p.clock: [] for p in processes}
    for process in processes:
        span = spans[id(process)]
        if span is not None:
            of_clock[process.clock].append(span)
    used = {
        clock: (min(s[0] for s in own), max(s[1] for s in own)) if own else None
        for clock, own in of_clock.items()
    }

    def by_probes(clock: str) -> Correction:
        to_scheduler = fit_probes(_of_clock(processes, clock, Stream.PROBES), used[clock])
        if reference.role == "scheduler":
            return to_scheduler
        # The scheduler left no journal, but it answered both.
        probes = _of_clock(processes, reference.clock, Stream.PROBES)
        return to_scheduler.then(fit_probes(probes, used[reference.clock]).inverse())

    def by_utc(clock: str) -> Correction:
        own, other = (_of_clock(processes, c, Stream.ANCHORS) for c in (clock, reference.clock))
        return fit_utc(own, other)

    begin = (used[reference.clock] or (0, 0))[0]
    found = {reference.clock: Correction.reference()}
    for clock in of_clock:
        for fit in (by_probes, by_utc):
            if clock in found:
                break
            with contextlib.suppress(ValueError):  # too few records: the next one must do
                found[clock] = fit(clock)
        if clock not in found:
            first = (used[clock] or (begin, begin))[0]
            found[clock] = Correction("none", first, begin - first, 0.0, -1, 0, 0)
            run.gap(
                "clock not aligned",
                journal=next(p.journal.path.name for p in processes if p.clock == clock),
                reason="its journals hold no round trip to the scheduler and no reading of UTC: "
                "its first record is put at the reference clock's first",
            )
    return found


def _origin_utc(run: _Run, reference: _Process | None) -> int:
    """Give UTC at time 0: by the narrowest of the readings nearest to it."""
    if reference is None:
        return -1
    own = [p for p in run.processes if p.clock == reference.clock]
    for processes in (own, run.processes):
        with_anchors = [p for p in processes if len(p.journal.records[Stream.ANCHORS])]
        if not with_anchors:
            continue
        read = [(p, p.journal.records[Stream.ANCHORS]) for p in with_anchors]
        before = np.concatenate([run.time(p, a["before"]) for p, a in read])
        after = np.concatenate([run.time(p, a["after"]) for p, a in read])
        utc = np.concatenate([a["utc"] for _, a in read]).astype(np.int64)
        middle = before + (after - before) // 2
        near = np.argsort(np.abs(middle), kind="stable")[:8]
        best = near[np.argmin((after - before)[near])]
        return int(utc[best] - middle[best])
    return -1


def _rows(run: _Run, rows: list[dict[str, Any]], table: str) -> Columns:
    """Turn rows into columns; what a row does not say is "not available"."""
    columns: Columns = {}
    for column in TABLES[table].columns:
        values = [row.get(column.name) for row in rows]
        if column.dictionary:
            columns[column.name] = run.dictionary(column.dictionary).codes(values)
        else:
            missing = np.nan if column.dtype.startswith("float") else -1
            plain = [missing if v is None else v for v in values]
            columns[column.name] = np.array(plain, column.dtype)
    return columns


def _process_table(run: _Run, times: dict[int, list[int]]) -> None:
    removed = {
        identity
        for process in run.processes
        if process.role == "scheduler"
        for document in process.journal.documents("worker-removed")
        for identity in _identities(document)
    }
    rows = []
    for process in run.processes:
        journal, worker = process.journal, process.worker
        first = (journal.documents("journal") or [{}])[0]
        end = next(reversed(journal.documents("end")), None)
        if end is not None:
            ended = "closed"
        else:
            ended = "killed" if process.identities & removed else "unknown"
        dropped = sum(max(0, _number(g.get("count"), 0)) for g in journal.documents("gap"))
        if end is not None:
            dropped = max(dropped, _number(end.get("dropped"), 0))
        gpus = worker.get("gpus")
        uuids = [str(g.get("uuid")) for g in gpus if isinstance(g, dict)] if gpus else []
        start, stop = times.get(process.row, (-1, -1))
        rows.append(
            {
                "node": process.node,
                "clock": process.clock_row,
                "role": process.role,
                "pid": process.pid,
                "name": _string(worker.get("name")),
                "address": process.address,
                "start": start,
                "stop": stop,
                "ended": ended,
                "task_id_base": _number(first.get("task_id_base")),
                "nthreads": _number(worker.get("nthreads")),
                "memory_limit": _number(worker.get("memory_limit")),
                "gpus": ",".join(uuids) or None,
                "cuda_visible_devices": _string(worker.get("cuda_visible_devices")),
                "gpu_status": _string(worker.get("gpu_status")),
                "batch_job": _string(worker.get("batch_job")),
                **{n: _string(first.get(n)) for n in ("python", "dask", "distributed", "dasf_hpc")},
                "journal": journal.path.name,
                "damaged": journal.damaged,
                "dropped": dropped,
            }
        )
        _name_losses(run, process, end, dropped)
    run.merged.tables["processes"] = _rows(run, rows, "processes")


def _name_losses(run: _Run, process: _Process, end: dict[str, Any] | None, dropped: int) -> None:
    """Name what a process's journal says, or shows, that it does not hold."""
    journal = process.journal
    named = 0
    for document in journal.documents("gap"):
        span = [_number(document.get(n)) for n in ("start", "stop")]
        start, stop = (int(run.time(process, np.array([t]))[0]) if t >= 0 else -1 for t in span)
        count = _number(document.get("count"))
        named += max(0, count)
        reason = _string(document.get("reason"))
        run.gap("records dropped", process, start=start, stop=stop, count=count, reason=reason)
    if dropped > named:
        run.gap(
            "records dropped",
            process,
            count=dropped - named,
            reason="the journal says how many, not when",
        )
    failures = _number(end.get("failures"), 0) if end else 0
    if failures > 0:
        run.gap("records dropped", process, count=failures, reason="recording a task failed")
    if journal.damaged:
        run.gap(
            "blocks damaged",
            process,
            count=journal.damaged,
            reason="part of the journal failed its checks",
        )
    for document in journal.documents("unavailable"):
        reason = f"{document.get('what')}: {document.get('why')}"
        run.gap("not available", process, reason=reason)


def _name_missing_workers(run: _Run) -> None:
    """Name the workers that the scheduler knew and that left no journal."""
    known = {identity for p in run.processes for identity in p.identities}
    for scheduler in run.processes:
        if scheduler.role != "scheduler":
            continue
        for document in scheduler.journal.documents("worker-added"):
            identities = _identities(document)
            if identities & known:
                continue
            known |= identities
            when = _number(document.get("time"))
            run.gap(
                "worker without journal",
                start=int(run.time(scheduler, np.array([when]))[0]) if when >= 0 else -1,
                reason=f"worker {document.get('name')} at {document.get('address')} on host "
                f"{document.get('hostname')}",
            )


def _gpu_table(run: _Run) -> None:
    rows: list[dict[str, Any]] = []
    uuids: set[tuple[int, str]] = set()
    for kind in ("gpus", "worker"):  # samplers know a GPU's memory, workers' NVML may be hidden
        for process in run.processes:
            for document in process.journal.documents(kind):
                for gpu in document.get("gpus") or ():
                    if not isinstance(gpu, dict):
                        continue
                    uuid = _string(gpu.get("uuid"))
                    index = _number(gpu.get("index"))
                    if (process.node, uuid) in uuids:
                        continue
                    if uuid is not None:
                        uuids.add((process.node, uuid))
                    if index >= 0:
                        run.gpu_rows.setdefault((process.node, index), len(rows))
                    rows.append(
                        {
                            "node": process.node,
                            "index": index,
                            "uuid": uuid,
                            "name": _string(gpu.get("name")),
                            "memory": _number(gpu.get("memory")),
                        }
                    )
    for process, samples in run.stream(Stream.GPU_SAMPLES):
        for index in np.unique(samples["gpu"]).tolist():
            if run.gpu_rows.setdefault((process.node, index), len(rows)) == len(rows):
                rows.append({"node": process.node, "index": index})
    run.merged.tables["gpus"] = _rows(run, rows, "gpus")


def _node_table(run: _Run, hostnames: list[str], times: dict[int, list[int]]) -> None:
    gpus = run.merged.tables["gpus"]["node"]
    rows = []
    for node, hostname in enumerate(hostnames):
        here = [p for p in run.processes if p.node == node]
        spans = [times[p.row] for p in here if p.row in times]
        row: dict[str, Any] = {
            "hostname": hostname,
            "gpus": int(np.count_nonzero(gpus == node)),
            "start": min((s[0] for s in spans), default=-1),
            "stop": max((s[1] for s in spans), default=-1),
        }
        for process in here:
            for document in process.journal.documents("node"):
                row["cpus"] = _number(document.get("cpus"))
                row["memory"] = _number(document.get("memory"))
            for document in process.journal.documents("gpus"):
                row["gpu_status"] = _string(document.get("status"))
        rows.append(row)
    run.merged.tables["nodes"] = _rows(run, rows, "nodes")


def _clock_table(run: _Run, clocks: list[str], corrections: dict[str, Correction]) -> None:
    nodes = {p.clock: p.node for p in reversed(run.processes)}
    rows = []
    for clock in clocks:
        correction = corrections[clock]
        rows.append(
            {
                "clock": clock,
                "node": nodes[clock],
                "source": correction.source,
                "origin": correction.origin_ns,
                "offset": correction.offset_ns,
                "drift": correction.drift,
                "bound": correction.bound_ns,
                "residual": correction.residual_ns,
                "points": correction.points,
            }
        )
    run.merged.tables["clocks"] = _rows(run, rows, "clocks")


# ------------------------------------------------------------------------------ columns of events


def _join(parts: list[Columns], table: str) -> Columns:
    """Put the parts of a table, one a process, one after the other."""
    columns: Columns = {}
    for column in TABLES[table].columns:
        if not parts:
            columns[column.name] = np.empty(0, column.dtype)
        elif column.name in parts[0]:
            arrays = [part[column.name] for part in parts]
            columns[column.name] = np.concatenate(arrays).astype(column.dtype, copy=False)
    return columns


def _sorted(columns: Columns, by: str) -> Columns:
    # stable: what one process recorded at one time stays in its order
    order = np.argsort(columns[by], kind="stable")
    return {name: values[order] for name, values in columns.items()}


def _row(process: _Process, count: int) -> Array:
    return np.full(count, process.row, np.int32)


def _keys(process: _Process, ids: Array) -> Array:
    """Give the codes of key ids of a process's journal; -1 for one that was lost."""
    table = process.keys
    codes = np.full(len(ids), -1, np.int32)
    known = ids < len(table)
    codes[known] = table[ids[known]]
    return codes


def _translated(ids: Array, encode: Callable[[int], int]) -> Array:
    """Give the codes of string ids; `encode` is asked once for each distinct id."""
    distinct, inverse = np.unique(ids, return_inverse=True)
    codes = np.array([encode(i) for i in distinct.tolist()], np.int32)
    return codes[inverse] if len(codes) else np.empty(0, np.int32)


def _texts(process: _Process, ids: Array, dictionary: Strings) -> Array:
    """Give the codes, in a dictionary, of string ids of a process's journal."""
    strings = process.journal.strings
    return _translated(ids, lambda i: dictionary.code(None if i == _NONE else strings.get(i)))


def _signed(values: Array) -> Array:
    """Give unsigned values as int64, the largest unsigned number ("not available") as -1."""
    if values.dtype == np.uint32:
        return np.where(values == _NONE, -1, values.astype(np.int64))
    return values.astype(np.int64)


# ------------------------------------------------------------------------------ tasks


def _result_parts(text: str) -> tuple[str | None, str | None, str | None]:
    """Split ``type|dtype|shape``; a dtype may hold ``|`` itself (``|S5``, ``|b1``)."""
    kind, _, rest = text.partition("|")
    dtype, _, shape = rest.rpartition("|")
    return kind or None, dtype or None, shape or None


def _results(run: _Run, process: _Process, ids: Array, status: Array) -> dict[str, Array]:
    """Give type, dtype, shape and exception of executions from their STOPS' result strings."""
    strings = process.journal.strings
    columns = {
        name: np.full(len(ids), -1, np.int32) for name in ("type", "dtype", "shape", "exception")
    }
    done = status == STATUSES.index("memory")
    for position, name in enumerate(("type", "dtype", "shape")):
        dictionary = run.dictionary(f"{name}s")

        def encode(i: int, position: int = position, dictionary: Strings = dictionary) -> int:
            text = strings.get(i)
            return -1 if text is None else dictionary.code(_result_parts(text)[position])

        columns[name][done] = _translated(ids[done], encode)
    failed = status == STATUSES.index("error")
    columns["exception"][failed] = _texts(process, ids[failed], run.dictionary("exceptions"))
    return columns


def _executions(process: _Process) -> tuple[Array, Array, Array, int]:
    """Match starts and stops of a process.

    Returns
    -------
    starts, stops : array
        Records; starts in the order of their sequence numbers, stops that belong to one of them.
    at : array
        For each stop the position of its start.
    alone : int
        Number of stops whose start was not recorded.
    """
    starts, stops = (process.journal.records[s] for s in (Stream.STARTS, Stream.STOPS))
    starts = starts[np.argsort(starts["sequence"], kind="stable")]
    at = np.searchsorted(starts["sequence"], stops["sequence"])
    matched = at < len(starts)
    matched[matched] = starts["sequence"][at[matched]] == stops["sequence"][matched]
    return starts, stops[matched], at[matched], int(np.count_nonzero(~matched))


def _tasks(run: _Run) -> Columns:
    parts = []
    for process, _ in run.stream(Stream.STARTS):
        starts, stops, at, alone = _executions(process)
        if alone:
            run.gap("stops without start", process, count=alone)
        first = (process.journal.documents("journal") or [{}])[0]
        base = _number(first.get("task_id_base"), 0)
        count = len(starts)
        key = _keys(process, starts["key"])
        if (key < 0).any():
            run.gap("unknown keys", process, count=int(np.count_nonzero(key < 0)))
        part: Columns = {
            "id": base + starts["sequence"].astype(np.int64),
            "key": key,
            "process": _row(process, count),
            "thread": starts["thread"].astype(np.int64),
            "start": run.time(process, starts["time"]),
            "stop": np.full(count, -1, np.int64),
            "state": np.full(count, _LOST, np.int8),
            "nbytes": np.full(count, -1, np.int64),
        }
        status = stops["status"]
        part["stop"][at] = run.time(process, stops["time"])
        part["state"][at] = np.where(status < len(STATUSES), status, -1)
        in_memory = status == STATUSES.index("memory")
        part["nbytes"][at[in_memory]] = _signed(stops["nbytes"][in_memory])
        for name, codes in _results(run, process, stops["result"], status).items():
            part[name] = np.full(count, -1, np.int32)
            part[name][at] = codes
        parts.append(part)
    for process, stops in run.stream(Stream.STOPS):
        if not len(process.journal.records[Stream.STARTS]):
            run.gap("stops without start", process, count=len(stops))
    columns = _sorted(_join(parts, "tasks"), "start")
    columns["attempt"] = _attempts(columns["key"])
    prefixes = _prefixes(run)
    known = columns["key"] >= 0
    columns["prefix"] = np.full(len(known), -1, np.int32)
    columns["prefix"][known] = prefixes[columns["key"][known]]
    run.produced = np.full(len(run.strings["keys"]), -1, np.int64)
    made = known & (columns["nbytes"] >= 0)
    run.produced[columns["key"][made]] = columns["nbytes"][made]
    return columns


def _attempts(keys: Array) -> Array:
    """Number the executions of each key, in the order of rows, from 1."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    position = np.arange(len(keys))
    new = np.ones(len(keys), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first = np.maximum.accumulate(np.where(new, position, 0))
    attempts = np.empty(len(keys), np.int32)
    attempts[order] = position - first + 1
    attempts[keys < 0] = -1
    return attempts


def _head(text: str) -> str:
    """Give the part of a key's text on which its prefix depends, which many keys share."""
    quote = text[1:2]
    if text[:1] == "(" and quote and quote in "'\"":  # a tuple; its first element is the name
        name, end, _ = text[2:].partition(quote + ",")
        if end:
            return _literal(quote + name + quote)
    elif text[:2] in ("b'", 'b"') and text[-1:] == text[1]:
        with contextlib.suppress(ValueError, SyntaxError):
            text = ast.literal_eval(text).decode()
    rest, dash, word = text.rpartition("-")
    # key_split stops at the first word that is not a plain one, which tokens never are
    return rest if dash and not word.isalpha() else text


def _literal(quoted: str) -> str:
    if "\\" in quoted:
        with contextlib.suppress(ValueError, SyntaxError):
            return str(ast.literal_eval(quoted))
    return quoted[1:-1]


def _prefixes(run: _Run) -> Array:
    """Give the code of every key's prefix, by key code; key_split runs once for each head."""
    dictionary = run.dictionary("prefixes")
    heads: dict[str, int] = {}
    codes = np.empty(len(run.strings["keys"]), np.int32)
    for number, text in enumerate(run.strings["keys"].list()):
        head = _head(text)
        code = heads.get(head)
        if code is None:
            code = heads[head] = dictionary.code(str(key_split(head)))
        codes[number] = code
    return codes


def _order_keys(run: _Run) -> None:
    """Number keys by their first start: neighbours in time are neighbours in the dictionary.

    A window of time then needs a short stretch of the dictionary, and the codes compress well.
    """
    strings = run.strings["keys"].list()
    used = run.merged.tables["tasks"]["key"]
    used = used[used >= 0]
    distinct, first = np.unique(used, return_index=True)
    executed = distinct[np.argsort(first, kind="stable")]
    others = np.ones(len(strings), bool)
    others[executed] = False
    order = np.concatenate([executed, np.flatnonzero(others)])
    codes = np.empty(len(strings) + 1, np.int32)
    codes[order] = np.arange(len(strings), dtype=np.int32)
    codes[-1] = -1
    for name, columns in run.merged.tables.items():
        for column in TABLES[name].columns:
            if column.dictionary == "keys" and column.name in columns:
                columns[column.name] = codes[columns[column.name]]
    run.strings["keys"] = Strings(strings[i] for i in order.tolist())
    dependencies = run.merged.tables["dependencies"]
    by_key = np.lexsort((dependencies["dependency"], dependencies["key"]))
    run.merged.tables["dependencies"] = {n: v[by_key] for n, v in dependencies.items()}


def _dependencies(run: _Run) -> Columns:
    """Give each pair once, however often, and by however many workers, it was recorded."""
    count = len(run.strings["keys"])
    parts = []
    for process, edges in run.stream(Stream.EDGES):
        key = _keys(process, edges["key"]).astype(np.int64)
        dependency = _keys(process, edges["dependency"])
        known = (key >= 0) & (dependency >= 0)
        parts.append((key * count + dependency)[known])
    pairs = np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)
    return {
        "key": (pairs // max(count, 1)).astype(np.int32),
        "dependency": (pairs % max(count, 1)).astype(np.int32),
    }


# ------------------------------------------------------------------------------ the other tables


def _transitions(run: _Run) -> Columns:
    parts = []
    for process, records in run.stream(Stream.TRANSITIONS):
        parts.append(
            {
                "time": run.time(process, records["time"]),
                "process": _row(process, len(records)),
                "key": _keys(process, records["key"]),
                "start_state": records["start"].astype(np.int8),
                "finish_state": records["finish"].astype(np.int8),
            }
        )
    return _join(parts, "transitions")


def _last_before(group: Array, marked: Array) -> Array:
    """Give, for each position, the last marked one up to it in its group; -1: none.

    Positions of a group are neighbours.
    """
    position = np.arange(len(group))
    last = np.maximum.accumulate(np.where(marked, position, -1)) if len(group) else position
    good = last >= 0
    good[good] = group[last[good]] == group[good]
    return np.where(good, last, -1)


def _memory(run: _Run) -> Columns:
    """Add up what comes into and leaves each worker's memory, as Dask's WorkerState.nbytes does."""
    parts = []
    for process, records in run.stream(Stream.TRANSITIONS):
        entry = (records["finish"] == _MEMORY) & (records["start"] != _MEMORY)
        leave = (records["start"] == _MEMORY) & (records["finish"] != _MEMORY)
        records, entry = records[entry | leave], entry[entry | leave]
        key = _keys(process, records["key"])
        size = np.zeros(len(records), np.int64)
        size[entry] = _sizes_at_entry(run, process, key[entry], records["time"][entry])

        # What a key held before an event is what its last event left there.
        order = np.argsort(key, kind="stable")
        held = np.where(entry, size, 0)[order]
        inside = entry[order].astype(np.int32)
        same = np.zeros(len(order), bool)
        same[1:] = key[order][1:] == key[order][:-1]
        bytes_step, key_step = held.copy(), inside.copy()
        bytes_step[1:] -= np.where(same[1:], held[:-1], 0)
        key_step[1:] -= np.where(same[1:], inside[:-1], 0)
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        bytes_step, key_step = bytes_step[back], key_step[back]

        change = (bytes_step != 0) | (key_step != 0)
        parts.append(
            {
                "time": run.time(process, records["time"])[change],
                "process": _row(process, int(np.count_nonzero(change))),
                "managed": np.cumsum(bytes_step)[change],
                "tasks": np.cumsum(key_step)[change],
            }
        )
    return _join(parts, "memory")


def _sizes_at_entry(run: _Run, process: _Process, key: Array, time: Array) -> Array:
    """Give the size with which each key came into memory.

    It is the latest that this process recorded up to then, by executing or storing; else the next
    one; else the size of what any process produced; else 0.
    """
    records = process.journal.records
    stored = records[Stream.STORED]
    starts, stops, at, _ = _executions(process)
    in_memory = stops["status"] == STATUSES.index("memory")
    stops, at = stops[in_memory], at[in_memory]

    value_key = np.concatenate([_keys(process, starts["key"][at]), _keys(process, stored["key"])])
    value_time = np.concatenate([stops["time"], stored["time"]])
    value = np.concatenate([_signed(stops["nbytes"]), _signed(stored["nbytes"])])
    keys = np.concatenate([value_key, key])
    is_value = np.arange(len(keys)) < len(value_key)
    order = np.lexsort((~is_value, np.concatenate([value_time, time]), keys))
    ordered, marked = keys[order], is_value[order]
    values = np.concatenate([value, np.zeros(len(key), np.int64)])[order]
    before = _last_before(ordered, marked)
    after = _last_before(ordered[::-1], marked[::-1])[::-1]
    after = np.where(after >= 0, len(order) - 1 - after, -1)
    chosen = np.where(before >= 0, before, after)

    sizes = np.where(chosen >= 0, values[chosen], -1)
    unknown = (chosen < 0) & (ordered >= 0)
    sizes[unknown] = run.produced[ordered[unknown]]
    result = np.empty(len(order), np.int64)
    result[order] = np.maximum(sizes, 0)
    return result[len(value_key) :]


def _activities(run: _Run) -> Columns:
    parts = []
    for process, records in run.stream(Stream.ACTIVITIES):
        parts.append(
            {
                "start": run.time(process, records["start"]),
                "stop": run.time(process, records["stop"]),
                "process": _row(process, len(records)),
                "key": _keys(process, records["key"]),
                "action": _texts(process, records["action"], run.dictionary("actions")),
                "peer": _texts(process, records["peer"], run.dictionary("addresses")),
            }
        )
    return _join(parts, "activities")


def _transfers(run: _Run) -> Columns:
    by_address = {p.address: p.row for p in run.processes if p.address}
    parts = []
    for process, records in run.stream(Stream.TRANSFERS):
        strings = process.journal.strings

        def peer_row(i: int, strings: dict[int, str] = strings) -> int:
            return by_address.get(strings.get(i) or "", -1)

        direction = records["direction"].astype(np.int32)
        parts.append(
            {
                "start": run.time(process, records["start"]),
                "stop": run.time(process, records["stop"]),
                "process": _row(process, len(records)),
                "direction": np.where(direction < len(DIRECTIONS), direction, -1),
                "peer": _texts(process, records["peer"], run.dictionary("addresses")),
                "peer_process": _translated(records["peer"], peer_row),
                "nbytes": _signed(records["nbytes"]),
                "keys": records["keys"].astype(np.int32),
            }
        )
    return _join(parts, "transfers")


def _reschedules(run: _Run) -> Columns:
    parts = []
    for process, records in run.stream(Stream.RESCHEDULES):
        parts.append(
            {
                "time": run.time(process, records["time"]),
                "process": _row(process, len(records)),
                "key": _keys(process, records["key"]),
                "reason": _texts(process, records["reason"], run.dictionary("reasons")),
            }
        )
    return _join(parts, "reschedules")


def _measured(records: Array, names: Iterable[str]) -> Columns:
    """Give sampled columns; integers become signed, so that "not available" is -1."""
    return {
        name: records[name] if records.dtype[name].kind == "f" else _signed(records[name])
        for name in names
    }


def _own_fields(records: Array, *others: str) -> list[str]:
    return [n for n in records.dtype.names or () if n != "time" and n not in others]


def _node_samples(run: _Run) -> Columns:
    parts = []
    for process, records in run.stream(Stream.NODE_SAMPLES):
        parts.append(
            {
                "time": run.time(process, records["time"]),
                "node": np.full(len(records), process.node, np.int32),
                **_measured(records, _own_fields(records)),
            }
        )
    return _join(parts, "node_samples")


def _gpu_samples(run: _Run) -> Columns:
    parts = []
    for process, records in run.stream(Stream.GPU_SAMPLES):
        node = process.node

        def gpu_row(index: int, node: int = node) -> int:
            return run.gpu_rows.get((node, index), -1)

        parts.append(
            {
                "time": run.time(process, records["time"]),
                "gpu": _translated(records["gpu"], gpu_row),
                **_measured(records, _own_fields(records, "gpu")),
            }
        )
    return _join(parts, "gpu_samples")


def _process_samples(run: _Run) -> Columns:
    by_pid = {(p.node, p.pid): p.row for p in run.processes if p.pid >= 0}
    parts = []
    for process, records in run.stream(Stream.PROCESS_SAMPLES):
        node = process.node

        def process_row(pid: int, node: int = node) -> int:
            return by_pid.get((node, pid), -1)

        parts.append(
            {
                "time": run.time(process, records["time"]),
                "node": np.full(len(records), node, np.int32),
                "process": _translated(records["pid"], process_row),
                **_measured(records, _own_fields(records)),
            }
        )
    return _join(parts, "process_samples")


def _gaps(run: _Run) -> None:
    run.merged.tables["gaps"] = _rows(run, run.gaps, "gaps")
