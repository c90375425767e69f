"""Nsight, last step: put reports into a trace, their ranges and kernels linked to its tasks."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dasf_hpc.nsight import busy
from dasf_hpc.nsight.collectives import Collectives, ReportTie, read_collectives
from dasf_hpc.nsight.errors import NsightError
from dasf_hpc.nsight.export import (
    EXPORTED_SUFFIX,
    STREAM_SUFFIX,
    NsysProgram,
    export_sqlite,
    find_nsys,
    newer_beside,
    recorder_version,
    reports_of,
    sha256_file,
)
from dasf_hpc.nsight.further import FURTHER
from dasf_hpc.nsight.join import Link, report_corrections, same_host
from dasf_hpc.nsight.reader import COPY_KINDS, Report, read_report
from dasf_hpc.nsight.recording import Recording, Recordings, written_pids
from dasf_hpc.nsight.rows import Additions, PlacedReport, RunTables, place_report
from dasf_hpc.nsight.spool import ROWS_AT_ONCE, SortedRows, in_order
from dasf_hpc.nsight.sqlite import NONE
from dasf_hpc.trace.align import Correction
from dasf_hpc.trace.causality import COLLECTIVE
from dasf_hpc.trace.extend import monotonic_of
from dasf_hpc.trace.holdings import lacks
from dasf_hpc.trace.own_axis import OWN_AXIS, SENTENCE
from dasf_hpc.trace.schema import TABLES

REPORT_SUFFIX = ".nsys-rep"

#: Exports up to this size are read whole while the one before is joined; of a larger one the tables
#: are read when their turn comes, so that only one of them is in memory.
READ_AHEAD_BYTES = 64 << 20

Array = npt.NDArray[Any]
Progress = Callable[[int, int, str], None]

_NEVER = np.iinfo(np.int64).max

#: Tables whose rows come from reports, in the order in which they are written.
STREAMS = (
    "nvtx_ranges",
    "cuda_api",
    "kernels",
    "memcpys",
    "memsets",
    "synchronizations",
    "os_runtime",
    *(table for sort in FURTHER for table in sort.tables),
)

#: Tables of what ran on GPUs, in the order in which equal begins count, and what their rows are;
#: of copies the kind says it.
_ON_GPU = {
    "kernels": busy.KERNEL,
    "memcpys": busy.OTHER_COPY,
    "memsets": busy.FILL,
    "synchronizations": busy.WAIT,
}
_COPIES = {
    **dict.fromkeys(("host to device", "host to array", "unified host to device"), busy.TO_DEVICE),
    **dict.fromkeys(("device to host", "array to host", "unified device to host"), busy.TO_HOST),
    **dict.fromkeys(
        (
            "array to array",
            "array to device",
            "device to array",
            "device to device",
            "unified device to device",
        ),
        busy.ON_DEVICE,
    ),
}
assert set(_COPIES) <= set(COPY_KINDS.values())


@dataclass(frozen=True)
class ReportEntry:
    """A report that was expected or found, and what became of it.

    Attributes
    ----------
    file
        Relative to the run's directory, or as it was named.
    status
        joined, missing or unreadable.
    sentence
        Why it is not joined, or what is not whole; empty where nothing is to say.
    ranges, compute_ranges, linked
        NVTX ranges in it, those around tasks, and those that were linked to one.
    processes
        Processes of the trace that it covers.
    unmatched
        Pids of its processes that the trace did not know.
    """

    file: str
    status: str
    sentence: str = ""
    node: str | None = None
    sha256: str | None = None
    nsys_version: str | None = None
    exporter_version: str | None = None
    session_start_utc: int = -1
    ranges: int = 0
    compute_ranges: int = 0
    linked: int = 0
    processes: int = 0
    unmatched: tuple[int, ...] = ()
    correction: Correction | None = None


def add_reports(
    run: RunTables,
    directory: Path,
    expected: Sequence[str],
    nsys_path: str | None = None,
    progress: Progress = lambda done, total, label: None,
    os_runtime: bool = False,
) -> list[ReportEntry]:
    """Add every report of a run to its merged tables.

    Parameters
    ----------
    run
        The run's journals, merged.
    directory
        The run's directory; reports lie in its folder ``nsight``.
    expected
        Reports that the nodes said they would write; others that are found are joined too.
    nsys_path, progress, os_runtime
        As for `join_reports`.

    Returns
    -------
    list of ReportEntry
        Every report expected or found; what is missing or unreadable says why.
    """
    folder = directory / "nsight"
    # Names come from files that a node wrote: only their last part counts, so nothing lies outside.
    owed = {Path(name).name.removesuffix(REPORT_SUFFIX) for name in expected}
    # One that is missing may have been written as several.
    stems = {stem for name in owed for stem in reports_of(folder, name) or [name]}
    for suffix in (REPORT_SUFFIX, STREAM_SUFFIX):
        stems |= {path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}")}
    reports = []
    for stem in sorted(stems):
        report, stream = (folder / f"{stem}{suffix}" for suffix in (REPORT_SUFFIX, STREAM_SUFFIX))
        # a stream that was imported lies beside its report
        used = stream if stream.exists() and not report.exists() else report
        reports.append((f"nsight/{report.name}", used))
    return join_reports(run, reports, nsys_path, progress, os_runtime)


def join_reports(
    run: RunTables,
    reports: Sequence[tuple[str, Path]],
    nsys_path: str | None = None,
    progress: Progress = lambda done, total, label: None,
    os_runtime: bool = False,
    first: Correction | None = None,
) -> list[ReportEntry]:
    """Add reports to a trace that is being made or extended.

    Parameters
    ----------
    run
        The trace. Its small tables grow, and its streams are those of `STREAMS`.
    reports
        Each report's name in the trace, and its file.
    nsys_path
        The nsys to export with, None: from PATH.
    progress
        Called with (done, total, file).
    os_runtime
        Whether to store the calls of the operating system's libraries, of which a report may hold
        more than of all else.
    first
        For a trace that the first report begins: the correction of what of it no clock ties.

    Returns
    -------
    list of ReportEntry
        One for each report; what is missing or unreadable says why.
    """
    nsys = find_nsys(nsys_path)
    additions = Additions(run)
    sources: dict[str, list[SortedRows]] = {
        name: [rows] if (rows := run.stored_rows(name)) is not None else [] for name in STREAMS
    }
    entries = []
    held = Recordings(additions)
    told: set[int] = set()
    with ThreadPoolExecutor(os.cpu_count()) as pool, ThreadPoolExecutor(1) as reader:
        # nsys exports in processes of their own; one report is read while the last one is joined
        named = {path for _, path in reports}
        exports = [
            pool.submit(_export, name, path, nsys, _export_folder(path, named, run, number))
            for number, (name, path) in enumerate(reports)
        ]
        following = reader.submit(_read, exports[0]) if exports else None
        # what ties reports to each other has to be known before any is put on the trace's time
        exported: dict[int, Path] = {}
        for number, (name, _) in enumerate(reports):
            progress(number, len(reports), f"waiting for the export of {name}")
            sqlite = exports[number].result()[1]
            if sqlite is not None:
                exported[number] = sqlite
        collectives = read_collectives(exported, _next_collective(sources["messages"]))
        corrections: dict[int, Correction | None] = {}
        for number, (name, _) in enumerate(reports):
            progress(number, len(reports), name)
            assert following is not None
            entry, report = following.result()
            if number + 1 < len(exports):
                following = reader.submit(_read, exports[number + 1])
            row = len(run.tables["reports"]["file"])
            placed, untied = None, first if number == 0 else None
            recording = Recording.of(name, entry.sha256, report)
            if (sentence := held.known(recording)) is not None:
                entries.append(replace(entry, sentence=sentence))
                continue
            if report is not None:
                entry, placed = _place(
                    entry,
                    report,
                    row,
                    additions,
                    os_runtime,
                    untied,
                    number,
                    collectives,
                    corrections,
                )
            del report
            if placed is not None:
                corrections[number] = placed.correction
                if untied is not None and placed.correction is not None:
                    # the trace's time is what this one's session time is taken for
                    corrections[number] = replace(placed.correction, bound_ns=0)
                told |= placed.gpus
                for table, rows in placed.rows.items():
                    sources[table].append(rows)
            additions.add("reports", _report_row(entry, placed, additions, recording))
            if placed is not None and placed.gaps:
                additions.add_all("gaps", [{**gap, "journal": name} for gap in placed.gaps])
            if entry.status == "joined":
                held.add(recording)
            entries.append(entry)
    _check_collectives(collectives, corrections, additions)
    progress(len(reports), len(reports), "adding up GPU times")
    _add_up(run, additions, sources, told)
    for table, files in sources.items():
        if files:
            names = [column.name for column in TABLES[table].columns]
            run.streams[table] = in_order(files, names)
            additions.written(table)
    additions.finish()
    return entries


def _export_folder(report: Path, named: set[Path], run: RunTables, number: int) -> Path | None:
    """Give the folder for a report's export; None: it may lie beside it.

    An export that was named itself stays as it is.
    """
    if _writable(report) and report.with_suffix(EXPORTED_SUFFIX) not in named - {report}:
        return None
    return run.scratch / f"export-{number}"


def _export(
    name: str, report: Path, nsys: NsysProgram, into: Path | None
) -> tuple[ReportEntry, Path | None]:
    """Export one report; where that cannot be, give the entry that says why."""
    entry = ReportEntry(file=name, status="missing")
    if not report.exists():
        return replace(entry, sentence="the node job left no report: see its log"), None
    try:
        sqlite = export_sqlite(report, nsys, into)
        whole = report.with_suffix(REPORT_SUFFIX) if report.suffix == STREAM_SUFFIX else report
        digest = sha256_file(whole)
        entry = replace(entry, nsys_version=recorder_version(whole))
        if sqlite == report and (newer := newer_beside(report)) is not None:
            note = f"{newer.name} beside it is newer and was not read: name that one to read it"
            entry = replace(entry, sentence=note)
    except NsightError as error:
        return replace(entry, status="unreadable", sentence=str(error)), None
    return replace(entry, status="joined", sha256=digest), sqlite


def _writable(report: Path) -> bool:
    """Say whether an export may lie beside its report."""
    return os.access(report.parent, os.W_OK | os.X_OK)


def _read(
    export: Future[tuple[ReportEntry, Path | None]],
) -> tuple[ReportEntry, Report | None]:
    """Read an exported report, a small one whole; where that cannot be, say why in the entry."""
    entry, sqlite = export.result()
    if sqlite is None:
        return entry, None
    try:
        report = read_report(sqlite)
        if sqlite.stat().st_size <= READ_AHEAD_BYTES:
            report.read_ahead()
    except NsightError as error:
        return replace(entry, status="unreadable", sentence=str(error)), None
    return entry, report


def _place(
    entry: ReportEntry,
    report: Report,
    row: int,
    additions: Additions,
    os_runtime: bool,
    untied: Correction | None,
    number: int,
    collectives: Collectives,
    corrections: Mapping[int, Correction | None],
) -> tuple[ReportEntry, PlacedReport | None]:
    tie = collectives.of(number)
    tied = tie.correction(corrections)
    try:
        placed = place_report(report, row, additions, os_runtime, untied, tie, tied)
    except (NsightError, OverflowError, ValueError, TypeError) as error:
        additions.forget(row)
        sentence = str(error)
        if not isinstance(error, NsightError):
            sentence = f"{entry.file} holds what no nsys writes ({error}); export the report again"
        return replace(entry, status="unreadable", sentence=sentence), None
    start = report.session_start_utc_ns
    entry = replace(
        entry,
        node=report.hostname,
        nsys_version=entry.nsys_version or report.recorder_version,
        exporter_version=report.exporter_version,
        session_start_utc=NONE if start is None else start,
        ranges=len(report.ranges),
        compute_ranges=len(placed.joined.ranges),
        linked=placed.joined.counts[Link.LINKED],
        processes=len(placed.matched),
        unmatched=tuple(placed.unmatched),
        correction=placed.correction,
    )
    said = [entry.sentence, _what_lacks(entry, placed), _of_ties(tie, tied, placed)]
    return replace(entry, sentence="; ".join(filter(None, said))), placed


def _next_collective(stored: Sequence[SortedRows]) -> int:
    """Give the first number of a collective that a trace does not hold."""
    found = NONE
    for rows in stored:
        for first in range(0, len(rows.start), ROWS_AT_ONCE):
            last = min(len(rows.start), first + ROWS_AT_ONCE)
            numbers = rows.read(["collective"], first, last)["collective"]
            found = max(found, int(numbers.max(initial=NONE)))
    return found + 1


def _of_ties(tie: ReportTie, tied: Correction | None, placed: PlacedReport) -> str:
    """Say what is to say of a report's collectives: that they contradict UTC, or tie nothing."""
    if tie.said:
        return f"its collectives tie no clock: {tie.said}" if tie.matters else ""
    used = (
        tied is not None
        and placed.correction is not None
        and (placed.correction.source == tied.source)
    )
    if used and tie.tied is not None and tie.tied.contradicts:
        return (
            f"its collectives contradict what UTC tells of its clock by "
            f"{tie.tied.contradicts / 1e6:.3g} ms beyond UTC's bound: they were used"
        )
    return ""


def _check_collectives(
    collectives: Collectives, corrections: Mapping[int, Correction | None], additions: Additions
) -> None:
    """Say in table ``causality`` whether any rank left a collective before all had entered."""
    order = collectives.check(corrections)
    if order.checked or order.unchecked:
        additions.add_all("causality", [{"order": COLLECTIVE, **asdict(order)}])


def _what_lacks(entry: ReportEntry, placed: PlacedReport) -> str:
    """Say what of a report could not be joined, or what it does not hold."""
    if not placed.rows:
        return lacks(placed.holdings)
    if placed.correction is None:
        return SENTENCE
    if missing := lacks(placed.holdings):
        return missing
    if placed.unmatched:
        pids = ", ".join(str(pid) for pid in placed.unmatched[:8])
        more = f" and {len(placed.unmatched) - 8} more" if len(placed.unmatched) > 8 else ""
        return f"no journal tells of its processes {pids}{more}: what they did belongs to no task"
    return ""


@dataclass(frozen=True)
class FirstReport:
    """The report on whose clock a trace of reports alone is.

    Attributes
    ----------
    path
        The report.
    hostname
        Its host, None where it does not say.
    clock
        Reading of its host's CLOCK_MONOTONIC at time 0, None where it does not say.
    attributes
        Root attributes of the trace.
    paths
        All of them in the order in which they are to be joined: of two of one recording the first
        stays, and that is to be one that says when it began.
    """

    path: Path
    hostname: str | None
    clock: int | None
    attributes: dict[str, Any]
    paths: tuple[Path, ...]


def first_report(paths: Sequence[Path], nsys_path: str | None = None) -> FirstReport:
    """Find the report that began first, which is time 0 of a trace of reports alone."""
    nsys = find_nsys(nsys_path)
    found: list[tuple[int, Path, Report]] = []
    for path in paths:
        with contextlib.suppress(NsightError), tempfile.TemporaryDirectory() as scratch:
            kept = path.with_suffix(EXPORTED_SUFFIX) in {*paths} - {path}
            into = None if _writable(path) and not kept else Path(scratch)
            report = read_report(export_sqlite(path, nsys, into))
            start = report.session_start_utc_ns
            found.append((_NEVER if start is None else start, path, report))
    if not found:
        return FirstReport(paths[0], None, None, {"origin_utc_ns": NONE}, tuple(paths))
    timed = {path for begun, path, _ in found if begun != _NEVER}
    start, path, report = min(found, key=lambda f: f[0])
    ties = [c for c in report_corrections(report).values() if c.bound_ns >= 0]
    tie = min(ties, key=lambda c: c.bound_ns, default=None)
    clock = None if tie is None or report.hostname is None else tie.apply(0)
    return FirstReport(
        path,
        report.hostname,
        clock,
        {
            "reference_host": report.hostname or "",
            "reference_clock": "" if clock is None else monotonic_of(report.hostname),
            "origin_monotonic_ns": clock or 0,
            "origin_utc_ns": NONE if start == _NEVER else start,
        },
        tuple(sorted(paths, key=lambda p: (p != path, p not in timed))),
    )


def _report_row(
    entry: ReportEntry, placed: PlacedReport | None, additions: Additions, recording: Recording
) -> dict[str, Any]:
    correction = entry.correction
    row: dict[str, Any] = asdict(entry)
    del row["correction"], row["unmatched"]
    row["node"] = NONE if placed is None else placed.node
    if placed is None and entry.node:
        hosts = additions.hostnames()
        row["node"] = next((n for n, h in enumerate(hosts) if same_host(h, entry.node)), NONE)
    row["sentence"] = entry.sentence or None
    row["pids"] = written_pids(recording.pids)
    row["events"] = recording.events if placed is not None and recording.start == NONE else None
    if correction is not None:
        row["correction_source"] = correction.source
        row["correction_offset"] = correction.offset_ns
        row["correction_drift"] = correction.drift
        row["correction_bound"] = correction.bound_ns
    else:
        row |= {"correction_offset": 0, "correction_drift": 0.0}
        if placed is not None and placed.rows:
            row["correction_source"] = OWN_AXIS
    return row


# ------------------------------------------------------------------------------ GPU times


class _Activities:
    """Rows of one table as activities on a GPU."""

    def __init__(self, rows: SortedRows, what: int, copies: Array) -> None:
        self._rows, self._what, self._copies = rows, what, copies

    @property
    def start(self) -> Array:
        return self._rows.start

    def read(self, names: Iterable[str], first: int, last: int) -> dict[str, Array]:
        stored = set(names) - {"what", "bytes"}
        if self._what == busy.OTHER_COPY:
            stored.add("kind")
        if self._what in (busy.OTHER_COPY, busy.FILL):
            stored.add("bytes")
        found = self._rows.read(stored, first, last)
        count = last - first
        found["what"] = np.full(count, self._what, np.int8)
        if self._what == busy.OTHER_COPY:
            found["what"] = self._copies[found.pop("kind")]
        found.setdefault("bytes", np.zeros(count, np.int64))
        return found


def _add_up(
    run: RunTables,
    additions: Additions,
    sources: dict[str, list[SortedRows]],
    told: set[int],
) -> None:
    """Make table ``task_gpu`` and column ``gpus.busy`` of what ran on GPUs."""
    gpus = run.tables["gpus"]
    count = len(gpus["node"])
    kinds = additions.strings("copy_kinds").list()
    copies = np.array([*(_COPIES.get(k, busy.OTHER_COPY) for k in kinds), busy.OTHER_COPY], np.int8)
    activities = [
        _Activities(rows, what, copies)
        for table, what in _ON_GPU.items()
        for rows in sources[table]
    ]

    def in_time(names: Iterable[str]) -> Iterator[dict[str, Array]]:
        return in_order(activities, names)

    sums = busy.TaskGpu(count, len(additions.strings("reasons")))
    covered = np.isin(np.arange(count), list(told))
    for part in in_time(busy.COLUMNS):
        sums.add(part)
        covered[part["gpu"][part["gpu"] != NONE]] = True
    gpus["busy"] = np.where(covered, sums.busy, NONE)
    table = sums.table()
    if not table:
        return
    start, stop = _spans(run, table)
    # tasks are on the trace's time
    on_it = np.append(gpus["own_axis"] == NONE, False)[table["gpu"]]
    asked = np.flatnonzero(on_it & (start != NONE) & (stop != NONE))
    table["idle"] = np.full(len(start), NONE, np.int64)
    of_gpu = in_time(("stop", "gpu", "what"))
    for rows, idle in busy.idle_times(of_gpu, table["gpu"][asked], start[asked], stop[asked]):
        table["idle"][asked[rows]] = idle
    run.tables["task_gpu"] = table
    additions.written("task_gpu")


def _spans(run: RunTables, table: dict[str, Array]) -> tuple[Array, Array]:
    """Give from when to when the task of each row ran, -1 where there is none."""
    start = np.full(len(table["task"]), NONE, np.int64)
    stop = start.copy()
    rows = np.flatnonzero(table["task"] != NONE)
    for process in np.unique(table["process"][rows]).tolist():
        own = rows[table["process"][rows] == process]
        tasks = run.tasks_of(process)
        order = np.argsort(tasks["row"], kind="stable")
        place = order[np.searchsorted(tasks["row"], table["task"][own], sorter=order)]
        start[own], stop[own] = tasks["start"][place], tasks["stop"][place]
    return start, stop
