"""Nsight, last step: put every report of a run into the trace, its ranges linked to tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dasf_hpc.nsight.errors import NsightError
from dasf_hpc.nsight.export import STREAM_SUFFIX, NsysProgram, export_sqlite, find_nsys, sha256_file
from dasf_hpc.nsight.join import (
    COMPUTE_DOMAIN,
    JoinedReport,
    Link,
    join_report,
    report_corrections,
    same_host,
)
from dasf_hpc.nsight.reader import NONE, Report, read_report
from dasf_hpc.trace.align import Correction
from dasf_hpc.trace.merge import MergedTables
from dasf_hpc.trace.store import Strings

REPORT_SUFFIX = ".nsys-rep"

Array = npt.NDArray[Any]
Progress = Callable[[int, int, str], None]

#: Sentences of table ``nvtx_ranges`` for a range that was not linked.
_REASONS = {
    Link.NO_TASK_ID: "it carries no task id",
    Link.UNKNOWN_TASK: "no journal has a task of this id",
    Link.OTHER_HOST: "the task of this id ran on another host",
    Link.OTHER_PROCESS: "the task of this id ran in another process",
}


@dataclass(frozen=True)
class ReportEntry:
    """A report that was expected or found, and what became of it.

    Attributes
    ----------
    file
        Relative to the run's directory.
    status
        joined, missing or unreadable.
    sentence
        Why it is not joined; empty where it is.
    """

    file: str
    status: str
    sentence: str = ""
    node: str | None = None
    sha256: str | None = None
    nsys_version: str | None = None
    session_start_utc: int = -1
    ranges: int = 0
    compute_ranges: int = 0
    linked: int = 0
    processes: int = 0
    correction: Correction | None = None


def add_reports(
    merged: MergedTables,
    directory: Path,
    expected: Sequence[str],
    nsys_path: str | None = None,
    progress: Progress = lambda done, total, label: None,
) -> list[ReportEntry]:
    """Add tables ``reports`` and ``nvtx_ranges`` to a run's merged tables.

    Parameters
    ----------
    merged
        The run's journals, merged.
    directory
        The run's directory; reports lie in its folder ``nsight``.
    expected
        Reports that the nodes said they would write; others that are found are joined too.
    nsys_path
        The nsys to export with, None: from PATH.
    progress
        Called with (done, total, file).

    Returns
    -------
    list of ReportEntry
        Every report expected or found; what is missing or unreadable says why.
    """
    folder = directory / "nsight"
    # Names come from files that a node wrote: only their last part counts, so nothing lies outside.
    stems = {Path(name).name.removesuffix(REPORT_SUFFIX) for name in expected}
    for suffix in (REPORT_SUFFIX, STREAM_SUFFIX):
        stems |= {path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}")}
    names = sorted(stems)
    nsys = find_nsys(nsys_path)
    ranges: list[dict[str, Array]] = []
    entries = []
    tasks = merged.task_places() if names else {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # nsys exports in processes of their own; reading and joining follow one by one.
        exports = [pool.submit(_export, folder / name, nsys) for name in names]
        for number, (name, export) in enumerate(zip(names, exports, strict=True)):
            progress(number, len(names), name)
            entry, sqlite = export.result()
            if sqlite is not None:
                entry, columns = _join(merged, tasks, entry, sqlite, number)
                ranges.append(columns)
            entries.append(entry)
    _write_tables(merged, entries, ranges)
    return entries


def _export(stem: Path, nsys: NsysProgram) -> tuple[ReportEntry, Path | None]:
    """Export one report; where that cannot be, give the entry that says why."""
    report = stem.with_name(stem.name + REPORT_SUFFIX)
    stream = stem.with_name(stem.name + STREAM_SUFFIX)
    entry = ReportEntry(file=f"nsight/{report.name}", status="missing")
    if not report.exists() and not stream.exists():
        return replace(entry, sentence="the node job left no report: see its log"), None
    try:
        sqlite = export_sqlite(report if report.exists() else stream, nsys)
        digest = sha256_file(report)
    except NsightError as error:
        return replace(entry, status="unreadable", sentence=str(error)), None
    return replace(entry, status="joined", sha256=digest), sqlite


def _join(
    merged: MergedTables,
    tasks: dict[str, Array],
    entry: ReportEntry,
    sqlite: Path,
    number: int,
) -> tuple[ReportEntry, dict[str, Array]]:
    try:
        report = read_report(sqlite)
    except NsightError as error:
        return replace(entry, status="unreadable", sentence=str(error)), {}
    table = merged.tables["processes"]
    hostnames = merged.dictionaries["hostnames"]
    node_names = [hostnames[code] for code in merged.tables["nodes"]["hostname"]]
    host = np.array([node_names[node] for node in table["node"]], object)
    processes = {"id": np.arange(len(host)), "hostname": host, "pid": table["pid"]}
    joined = join_report(report, processes, tasks)
    here = [
        row
        for row in range(len(host))
        if report.hostname is None or same_host(host[row], report.hostname)
    ]
    # A pid may come again within a run: the rows are in the order of their start, the last stays.
    row_of_pid = {int(table["pid"][row]): row for row in here}
    corrections = {
        pid: local.then(_clock(merged, row_of_pid[pid]))
        for pid, local in report_corrections(report).items()
        if pid in row_of_pid
    }
    columns = _range_columns(report, joined, corrections, row_of_pid, tasks, number)
    best = min(corrections.values(), key=lambda c: c.bound_ns, default=None)
    sentence = entry.sentence
    if len(report.ranges) == 0:
        sentence = "it holds no NVTX range: was this nsys able to record this nvtx?"
    return (
        replace(
            entry,
            sentence=sentence,
            node=report.hostname,
            nsys_version=report.nsys_version,
            session_start_utc=-1
            if report.session_start_utc_ns is None
            else report.session_start_utc_ns,
            ranges=len(report.ranges),
            compute_ranges=len(joined.ranges),
            linked=joined.counts[Link.LINKED],
            processes=len(corrections),
            correction=best,
        ),
        columns,
    )


def _clock(merged: MergedTables, process: int) -> Correction:
    """Give the correction of a process's clock to the trace's time."""
    clocks = merged.tables["clocks"]
    row = int(merged.tables["processes"]["clock"][process])
    source = merged.dictionaries["sources"][int(clocks["source"][row])]
    to_reference = Correction(
        source=source,
        origin_ns=int(clocks["origin"][row]),
        offset_ns=int(clocks["offset"][row]),
        drift=float(clocks["drift"][row]),
        bound_ns=int(clocks["bound"][row]),
        residual_ns=int(clocks["residual"][row]),
        points=int(clocks["points"][row]),
    )
    origin = int(merged.attributes["origin_monotonic_ns"])
    return replace(to_reference, offset_ns=to_reference.offset_ns - origin)


def _range_columns(
    report: Report,
    joined: JoinedReport,
    corrections: dict[int, Correction],
    row_of_pid: dict[int, int],
    tasks: dict[str, Array],
    number: int,
) -> dict[str, Array]:
    """Give the rows of ``nvtx_ranges`` for a report: its ranges on the trace's time."""
    ranges = report.ranges
    count = len(ranges)
    start, stop = np.full(count, NONE, np.int64), np.full(count, NONE, np.int64)
    process = np.full(count, NONE, np.int64)
    for pid in np.unique(ranges.pid).tolist():
        rows = ranges.pid == pid
        process[rows] = row_of_pid.get(pid, NONE)
        if pid in corrections:
            start[rows] = corrections[pid].apply(ranges.start[rows])
            ended = rows & (ranges.stop != NONE)
            stop[ended] = corrections[pid].apply(ranges.stop[ended])
    task = np.full(count, NONE, np.int64)
    reason = np.full(count, None, object)
    around_tasks = ranges.domain.equal(COMPUTE_DOMAIN)
    ids = tasks["id"]
    order = np.argsort(ids, kind="stable")
    linked = joined.link == Link.LINKED
    task_rows = np.full(len(joined.task), NONE, np.int64)
    task_rows[linked] = order[np.searchsorted(ids, joined.task[linked], sorter=order)]
    task[around_tasks] = task_rows
    reason[around_tasks] = np.array([_REASONS.get(Link(code)) for code in joined.link], object)
    return {
        "report": np.full(count, number),
        "process": process,
        "thread": ranges.tid,
        "start": start,
        "stop": stop,
        "domain": ranges.domain.values(),
        "message": ranges.message.values(),
        "payload": ranges.payload,
        "task": task,
        "reason": reason,
    }


def _write_tables(
    merged: MergedTables, entries: list[ReportEntry], ranges: list[dict[str, Array]]
) -> None:
    hostnames = merged.dictionaries.get("hostnames", [])
    nodes = [hostnames[code] for code in merged.tables["nodes"]["hostname"]]

    def node_row(name: str | None) -> int:
        matching = [i for i, node in enumerate(nodes) if name and same_host(node, name)]
        return matching[0] if matching else NONE

    def strings(dictionary: str, values: list[str | None]) -> Array:
        return _codes(merged, dictionary, np.array(values, object))

    corrections = [entry.correction for entry in entries]
    merged.tables["reports"] = {
        "node": np.array([node_row(e.node) for e in entries], np.int64),
        "file": strings("files", [e.file for e in entries]),
        "sha256": strings("sha256", [e.sha256 for e in entries]),
        "nsys_version": strings("versions", [e.nsys_version for e in entries]),
        "session_start_utc": np.array([e.session_start_utc for e in entries], np.int64),
        "status": strings("report_states", [e.status for e in entries]),
        "sentence": strings("sentences", [e.sentence or None for e in entries]),
        "ranges": np.array([e.ranges for e in entries], np.int64),
        "compute_ranges": np.array([e.compute_ranges for e in entries], np.int64),
        "linked": np.array([e.linked for e in entries], np.int64),
        "processes": np.array([e.processes for e in entries], np.int64),
        "correction_source": strings("sources", [c.source if c else None for c in corrections]),
        "correction_offset": np.array([c.offset_ns if c else 0 for c in corrections], np.int64),
        "correction_drift": np.array([c.drift if c else 0.0 for c in corrections]),
        "correction_bound": np.array([c.bound_ns if c else NONE for c in corrections], np.int64),
    }
    filled = [columns for columns in ranges if columns and len(columns["start"])]
    if not filled:
        return
    table = {name: np.concatenate([c[name] for c in filled]) for name in filled[0]}
    order = np.argsort(table["start"], kind="stable")
    table = {name: values[order] for name, values in table.items()}
    for name, dictionary in (
        ("domain", "nvtx_domains"),
        ("message", "nvtx_messages"),
        ("reason", "reasons"),
    ):
        table[name] = _codes(merged, dictionary, table[name])
    merged.tables["nvtx_ranges"] = table


def _codes(merged: MergedTables, dictionary: str, values: Array) -> Array:
    """Encode strings with one of the trace's dictionaries, which grows where it must."""
    known = Strings(merged.dictionaries.get(dictionary, []))
    codes = known.codes(values.tolist())
    merged.dictionaries[dictionary] = known.list()
    return codes
