"""Trace, merged: every journal of a run is read, put on one clock and turned into tables.

The story, top to bottom, is `merge_journals`, then `MergedTables.write`. Journals become parts
(`parts`), each for itself; what is small of them is put together here: the reference clock, every
clock's correction to it, processes, nodes. From that follows where every row goes (`layout`), and
block after block of time is built and written (`blocks`, `chunks`, `store`). No step holds more
than a journal or a block, so that memory does not grow with the run; all of them are functions of
files in one folder, so that the cores of this machine or a Dask cluster's workers run them alike.

What could not be read, or was never written, becomes a row of the table ``gaps``; nothing that a
run left behind makes a merge fail.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.profile.journal import DIRECTIONS, STATES, JournalError
from dasf_hpc.trace.align import Correction, fit_probes, fit_utc
from dasf_hpc.trace.blocks import (
    build_block,
    dependency_pieces,
    no_tasks,
    task_places,
    tasks_of,
    unexecuted_keys,
)
from dasf_hpc.trace.call_stacks import ROLES, Tree
from dasf_hpc.trace.causality import check_causality
from dasf_hpc.trace.layout import (
    REFERENCES,
    Findings,
    Layout,
    Source,
    corrected,
    count_attempts,
    finish_group,
    join_keys,
    lay_out,
    sizes_of_wanted,
    stretches,
)
from dasf_hpc.trace.parts import ROW_COUNTS, TASK_STATES, Part, make_part, whole_number
from dasf_hpc.trace.pool import ProcessPool
from dasf_hpc.trace.schema import TABLES
from dasf_hpc.trace.store import Strings, TableData, TraceError, writing

if TYPE_CHECKING:
    from distributed import Client

Array = NDArray[Any]
Columns = dict[str, Array]
Progress = Callable[[int, int, str], None]
Result = TypeVar("Result")

#: Journals of fewer bytes, all together, are merged in the caller's thread: processes take 0.7 s to
#: start (measured), which is what so many bytes take.
SMALL_RUN = 16 << 20


class _Answer(Generic[Result]):
    """What a call gives, also where those who do the work go away before it is done."""

    def __init__(self, future: Future[Result], client: Client | None) -> None:
        self._future, self._client = future, client

    def result(self) -> Result:
        """Wait for it.

        Raises
        ------
        CancelledError
            If the Dask cluster was left: its futures then stay as they are for ever.
        """
        while True:
            try:
                return self._future.result(None if self._client is None else 1.0)
            except TimeoutError:
                if self._future.done():
                    raise
                if self._client is not None and self._client.status != "running":
                    raise CancelledError from None


class _Hands:
    """Those who do the work: this thread, processes of this machine, or a Dask cluster."""

    def __init__(
        self, executor: Executor | ProcessPool | None, at_once: int, client: Client | None = None
    ) -> None:
        self._executor = executor
        self._at_once = at_once
        self._client = client

    def close(self) -> None:
        """Stop the processes."""
        if isinstance(self._executor, ProcessPool):
            self._executor.shutdown()

    def submit(self, function: Callable[..., Result], *arguments: Any) -> _Answer[Result]:
        """Have a function called."""
        if self._executor is not None:
            return _Answer(self._executor.submit(function, *arguments), self._client)
        done: Future[Result] = Future()
        try:
            done.set_result(function(*arguments))
        except Exception as error:
            done.set_exception(error)
        return _Answer(done, None)

    def each(
        self, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]]
    ) -> Iterator[_Answer[Result]]:
        """Have a function called often; gives the answers in order, a few ahead of their use."""
        ahead: deque[_Answer[Result]] = deque()
        for arguments in calls:
            ahead.append(self.submit(function, *arguments))
            if len(ahead) > self._at_once:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()


def _hands(client: Client | None, size: int) -> _Hands:
    if client is not None:
        threads = sum(client.nthreads().values())
        return _Hands(client.get_executor(pure=False), 2 * max(1, threads), client)
    cores = len(os.sched_getaffinity(0))
    if cores == 1 or size < SMALL_RUN:
        return _Hands(None, 0)
    return _Hands(ProcessPool(cores), cores)


class _Pace:
    """Says how far a step is, how fast it goes and how long it takes still."""

    def __init__(self, report: Progress, total: int, what: str, unit: str) -> None:
        self._report, self._total, self._what, self._unit = report, total, what, unit
        self._done = 0
        self._begun = time.monotonic()

    def advance(self, amount: int, label: str) -> None:
        """Report that so much more is done."""
        self._done += amount
        passed = time.monotonic() - self._begun
        text = f"{self._what} {label}"
        if passed > 1 and self._done:
            rate = self._done / passed
            left = (self._total - self._done) / rate
            text += f" ({rate / 1e6:.1f} {self._unit}/s, {left:.0f} s left)"
        self._report(self._done, self._total, text)


@dataclass
class MergedTables:
    """A run's journals, merged: what is small as tables, what is not ready to be written.

    Attributes
    ----------
    tables
        Columns by table, of the tables that do not grow with the number of records; strings as
        codes. More may be added before the trace is written.
    dictionaries
        The strings that codes stand for, but for those of keys.
    attributes
        Root attributes of the trace.
    journals
        Number of journals merged.
    skipped
        File name and reason of every journal that was not.
    events
        Number of records merged.
    streams
        Tables that are too large for memory, in parts whose rows are in the tables' order; they are
        taken when the trace is written.
    """

    tables: dict[str, Columns] = field(default_factory=dict)
    dictionaries: dict[str, list[str]] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    journals: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    events: int = 0
    streams: dict[str, Iterable[Columns]] = field(default_factory=dict)
    _size: int = 0
    _client: Client | None = None
    _hands: _Hands | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = None
    _layout: Layout | None = None

    def task_places(self) -> dict[str, Array]:
        """Give ``id`` and ``process`` of every task, in the order of the rows of ``tasks``."""
        if self._layout is None:
            return {"id": np.empty(0, np.int64), "process": np.empty(0, np.int32)}
        return task_places(self._layout)

    @property
    def scratch(self) -> Path:
        """A folder for files that are needed until the trace is written."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="merge-", ignore_cleanup_errors=True)
        return Path(self._folder.name)

    def stored_rows(self, table: str) -> None:
        """Say that a trace which is being made holds no rows of a stream yet."""

    def tasks_of(self, process: int) -> Columns:
        """Give ``id``, ``row``, ``thread``, ``start`` and ``stop`` of a process's tasks."""
        return tasks_of(self._layout, process) if self._layout else no_tasks()

    def anchors_of(self, process: int) -> Array:
        """Give a process's readings of UTC between two of its own clock, (n, 3), ns."""
        sources = self._layout.sources if self._layout else []
        own = [source.part.anchors for source in sources if source.row == process]
        return np.concatenate(own) if own else np.empty((0, 3), np.int64)

    def write(self, path: Path, progress: Progress | None = None) -> None:
        """Write the trace.

        Parameters
        ----------
        path
            The file.
        progress
            Called with (done, total, what is being done), in records.

        Raises
        ------
        TraceError
            If the file cannot be written.
        """
        report = progress or (lambda done, total, label: None)
        layout = self._layout
        if layout is None:
            raise TraceError(f"{path} could not be written: nothing was merged.")
        for source in layout.sources:
            source.part.file.unlink(missing_ok=True)  # all of it is in the groups' files
        file = layout.save("blocks")
        strings = {name: Strings(values) for name, values in self.dictionaries.items()}
        strings.setdefault("orders", Strings())
        # the processes that made the parts, unless they were stopped after an earlier trace
        hands, self._hands = self._hands or _hands(self._client, self._size), None
        with (
            contextlib.closing(hands),
            writing(path, self.attributes, hands.submit) as trace,
        ):
            tables = {name: trace.table(name, in_blocks=True) for name in ROW_COUNTS}
            tables["dependencies"] = trace.table("dependencies", in_blocks=False)
            keys = trace.strings("keys", layout.longest_key)
            rows = sum(layout.count(table) for table in ROW_COUNTS)
            pace = _Pace(report, rows, "writing", "million rows")
            calls = ((file, block) for block in range(layout.blocks))
            for block, future in enumerate(hands.each(build_block, calls)):
                pieces = future.result()
                for name, table in tables.items():
                    table.put(pieces[name])
                keys.put(pieces["keys"][""])  # type: ignore[arg-type]
                trace.check()
                done = sum(
                    layout.block_offset(name, block + 1) - layout.block_offset(name, block)
                    for name in ROW_COUNTS
                )
                pace.advance(done, f"block {block + 1} of {layout.blocks}")
            first = np.cumsum([layout.executed, *layout.unexecuted])
            calls_of_keys = (
                (file, stretch, int(first[stretch])) for stretch in range(len(layout.unexecuted))
            )
            for texts in hands.each(unexecuted_keys, calls_of_keys):
                keys.put(texts.result())
            ahead = layout.first_code(layout.blocks)
            others = layout.foreign[layout.foreign[:, 0] >= ahead]
            tables["dependencies"].put(dependency_pieces(*np.unique(others, axis=0).T))
            for table in tables.values():
                table.finish()
            count = keys.finish()
            causality = check_causality(
                trace,
                count,
                self.tables["processes"]["clock"],
                self.tables["clocks"]["bound"],
                layout.folder,
            )
            blocks = {"time": layout.starts}
            for name in ROW_COUNTS:
                firsts = [layout.block_offset(name, block) for block in range(layout.blocks)]
                blocks[name] = np.array(firsts, np.int64)
            for name, parts in self.streams.items():
                trace.stream(name, parts)
            # reports tell of collectives, too
            more = self.tables.pop("causality", {})
            for name, values in more.items():
                told = values.tolist()
                if name == "order":
                    told = [self.dictionaries["orders"][code] for code in told]
                causality[name] += told
            small: dict[str, TableData] = {**self.tables, "blocks": blocks, "causality": causality}
            trace.whole(small, strings, {"keys": count})


def merge_journals(
    journals_dir: Path,
    progress: Progress | None = None,
    client: Client | None = None,
    scratch: Path | None = None,
) -> MergedTables:
    """Merge every journal of a folder.

    Parameters
    ----------
    journals_dir
        The folder; its ``*.journal`` files are read. A journal that cannot be read is skipped and
        named in the result and in table ``gaps``.
    progress
        Called with (done, total, what is being done), in bytes of journals.
    client
        A Dask cluster that does the work: its workers read the journals and make the trace's
        chunks, this process puts them together. Without, the cores of this machine do it. Workers
        must see `journals_dir` and `scratch`.
    scratch
        A folder for the files of the merge, about four times as large as the journals, which go
        with the result. By default it is made beside the journals.

    Returns
    -------
    MergedTables
    """
    report = progress or (lambda done, total, label: None)
    paths = sorted(journals_dir.glob("*.journal"))
    run = _Run()
    folder = _scratch(journals_dir, scratch)
    place = Path(folder.name)
    sizes = [_file_size(path) for path in paths]
    run.merged._folder, run.merged._client, run.merged._size = folder, client, sum(sizes)
    # keys are joined and numbered in two further passes over what was made of the journals
    pace = _Pace(report, max(1, 2 * sum(sizes)), "reading", "MB")
    report(0, max(1, 2 * sum(sizes)), "reading " + (paths[0].name if paths else "nothing"))

    with contextlib.ExitStack() as at_failure:
        hands = at_failure.enter_context(contextlib.closing(_hands(client, sum(sizes))))
        parts = []
        known: dict[str, str] = {}
        calls = ((path, place, number) for number, path in enumerate(paths))
        for path, size, future in zip(paths, sizes, hands.each(make_part, calls), strict=True):
            try:
                parts.append(future.result())
                parts[-1].meta = _shared(parts[-1].meta, known)
                parts[-1].texts = _shared(parts[-1].texts, known)
            except JournalError as error:
                run.skip(path.name, "journal unreadable", str(error))
            pace.advance(size, path.name)
        parts = list(_distinct(run, parts))
        _place(run, parts)
        sources = _sources(run)
        for part in parts:  # what they told is in the tables
            part.forget()
        layout = lay_out(sources, place)
        _number_keys(run.merged, layout, hands, lambda share: pace.advance(share, "keys"))
        at_failure.pop_all()
        run.merged._hands = hands
    _gaps(run)
    run.merged._layout = layout
    run.merged.journals = len(parts)
    run.merged.events = sum(part.events for part in parts)
    run.merged.dictionaries = {name: strings.list() for name, strings in run.strings.items()}
    report(max(1, 2 * sum(sizes)), max(1, 2 * sum(sizes)), "read")
    return run.merged


def _shared(value: Any, known: dict[str, str]) -> Any:
    """Give a document in which each string is the one that was known before, if any was.

    Thousands of journals say the same, each in strings of its own.
    """
    if isinstance(value, str):
        return known.setdefault(value, value)
    if isinstance(value, list):
        return [_shared(one, known) for one in value]
    if isinstance(value, dict):
        return {_shared(name, known): _shared(one, known) for name, one in value.items()}
    return value


def _scratch(journals_dir: Path, scratch: Path | None) -> tempfile.TemporaryDirectory[str]:
    """Make the folder for the files of a merge, on the file system of the run where it may be."""
    if scratch is None and os.access(journals_dir, os.W_OK | os.X_OK):
        scratch = journals_dir
    return tempfile.TemporaryDirectory(prefix=".merge-", dir=scratch, ignore_cleanup_errors=True)


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _number_keys(
    merged: MergedTables, layout: Layout, hands: _Hands, advance: Callable[[int], None]
) -> None:
    """Find the keys that several parts hold, and give every key of every part its code."""
    count = stretches(layout)
    file = layout.save("keys")
    joined = []
    for future in hands.each(join_keys, ((file, stretch, count) for stretch in range(count))):
        joined.append(future.result())
        advance(merged._size // (2 * count))
    contested = count_attempts(layout, joined)
    sized = sizes_of_wanted(layout, joined)
    file = layout.save("codes")
    nothing = np.empty(0, np.int64)

    def findings(number: int) -> Findings:
        return Findings(
            contested.executions.get(number, nothing),
            contested.attempts.get(number, nothing),
            *sized.get(number, (nothing, nothing)),
        )

    ends = (
        (
            file,
            group,
            [source.codes for source in layout.sources[first:last]],
            [findings(number) for number in range(first, last)],
        )
        for group, (first, last) in enumerate(layout.groups)
    )
    foreign = []
    for finished in hands.each(finish_group, ends):
        foreign.append(finished.result())
        advance(merged._size // (2 * len(layout.groups)))
    if foreign:
        pairs = np.concatenate(foreign)
        layout.foreign = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    for source in layout.sources:  # all rows have the trace's codes now
        source.codes = {}


def _sources(run: _Run) -> list[Source]:
    """Give every part its place, and the trace's codes of what it calls by numbers of its own."""
    by_address = {p.address: p.row for p in run.processes if p.address}
    by_pid = {(p.node, p.pid): p.row for p in run.processes if p.pid >= 0}

    def codes(values: Iterable[int]) -> Array:
        return np.array([*values, -1], np.int32)  # the last one is what -1 points at

    texts_of = {c.dictionary for t in ROW_COUNTS for c in TABLES[t].columns} - {None, "keys"}
    for name in sorted(filter(None, texts_of)):
        run.dictionary(name)
    stacks = _stacks(run)
    sources = []
    for process in run.processes:
        part = process.journal
        found = {
            name: codes(run.dictionary(name).codes(texts).tolist())
            for name, texts in part.texts.items()
        }
        for name in filter(None, texts_of):
            found.setdefault(name, codes([]))
        for name in REFERENCES.values():
            numbers = part.numbers.get(name, [])
            if name == "peers":
                texts = part.texts.get("addresses", [])
                found[name] = codes(by_address.get(text, -1) for text in texts)
            elif name == "stacks":
                found[name] = stacks[process.row]
            elif name == "gpus":
                found[name] = codes(run.gpu_rows.get((process.node, i), -1) for i in numbers)
            else:
                found[name] = codes(by_pid.get((process.node, i), -1) for i in numbers)
        sources.append(
            Source(part, process.row, process.node, process.correction, run.origin, found)
        )
    return sources


def _stacks(run: _Run) -> list[Array]:
    """Make table ``stacks`` of all parts'; gives, for each process, the rows of its own."""
    tree = Tree()
    rows = [np.array([-1], np.int32)] * len(run.processes)
    for process in run.processes:
        if process.journal.stacks:
            with process.journal.opened() as columns:
                rows[process.row] = tree.add(columns)
    run.merged.tables["stacks"] = tree.table(run.dictionary)
    return rows


# ------------------------------------------------------------------------------ the run so far


@dataclass
class _Process:
    """A journal and where its process stands in the run."""

    journal: Part
    hostname: str | None
    clock: str
    role: str | None
    pid: int
    worker: dict[str, Any]
    row: int = -1
    node: int = -1
    clock_row: int = -1
    correction: Correction | None = None

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
    hostname, pid = document.get("hostname"), whole_number(document.get("pid"))
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
        self.strings: dict[str, Strings] = {
            "states": Strings(STATES),
            "task_states": Strings(TASK_STATES),
            "directions": Strings(DIRECTIONS),
            "thread_roles": Strings(ROLES),
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
            journal = process.journal.name
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
        return corrected(process.correction, self.origin, times)


def _distinct(run: _Run, journals: list[Part]) -> Iterable[Part]:
    """Leave out copies of a journal; of several the one that holds most is kept."""
    best: dict[int, Part] = {}
    for journal in journals:
        kept = best.get(journal.writer)
        if kept is None:
            best[journal.writer] = journal
            continue
        if journal.size > kept.size:
            best[journal.writer], journal = journal, kept
        other = best[journal.writer].name
        run.skip(journal.name, "journal duplicated", f"it is a copy of {other}")
    return best.values()


# ------------------------------------------------------------------ processes, nodes and clocks


def _string(value: Any) -> str | None:
    return None if value is None else str(value)


def _describe(journal: Part) -> _Process:
    first = (journal.documents("journal") or [{}])[0]
    worker: dict[str, Any] = {}
    for document in journal.documents("worker"):
        worker.update(document)
    # A journal that lost its first document has a clock of its own: nothing says whose it was.
    return _Process(
        journal,
        hostname=_string(first.get("hostname")),
        clock=str(first.get("clock") or f"unknown, of {journal.name}"),
        role=_string(first.get("role")),
        pid=whole_number(first.get("pid")),
        worker=worker,
    )


def _place(run: _Run, journals: list[Part]) -> None:
    """Give every process its row, its node and its clock's correction; build their tables."""
    processes = [_describe(journal) for journal in journals]
    spans = {id(p): p.journal.span for p in processes}
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


def _of_clock(processes: list[_Process], clock: str, what: str) -> Array:
    """Give all round trips or readings of UTC that were made on a clock, a row each."""
    return np.concatenate([getattr(p.journal, what) for p in processes if p.clock == clock])


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
        to_scheduler = fit_probes(_of_clock(processes, clock, "probes"), used[clock])
        if reference.role == "scheduler":
            return to_scheduler
        # The scheduler left no journal, but it answered both.
        probes = _of_clock(processes, reference.clock, "probes")
        return to_scheduler.then(fit_probes(probes, used[reference.clock]).inverse())

    def by_utc(clock: str) -> Correction:
        own, other = (_of_clock(processes, c, "anchors") for c in (clock, reference.clock))
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
                journal=next(p.journal.name for p in processes if p.clock == clock),
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
        read = [(p, p.journal.anchors) for p in processes if len(p.journal.anchors)]
        if not read:
            continue
        before = np.concatenate([run.time(p, a[:, 0]) for p, a in read])
        after = np.concatenate([run.time(p, a[:, 2]) for p, a in read])
        utc = np.concatenate([a[:, 1] for _, a in read])
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
        dropped = sum(max(0, whole_number(g.get("count"), 0)) for g in journal.documents("gap"))
        if end is not None:
            dropped = max(dropped, whole_number(end.get("dropped"), 0))
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
                "task_id_base": whole_number(first.get("task_id_base")),
                "nthreads": whole_number(worker.get("nthreads")),
                "memory_limit": whole_number(worker.get("memory_limit")),
                "gpus": ",".join(uuids) or None,
                "gpu_status": _string(worker.get("gpu_status")),
                "batch_job": _string(worker.get("batch_job")),
                **{n: _string(first.get(n)) for n in ("python", "dask", "distributed", "dasf_hpc")},
                "journal": journal.name,
                "damaged": journal.damaged,
                "dropped": dropped,
            }
        )
        _name_losses(run, process, end, dropped)
        if ended == "unknown" and process.role == "worker":
            run.gap(
                "journal without an end",
                process,
                reason="nobody saw its worker end: what was recorded last may be missing",
            )
    run.merged.tables["processes"] = _rows(run, rows, "processes")


#: What a journal counts of samples of calls that it could not hold whole.
_CALLS_CUT = {
    "cut": "stacks of calls that were too deep, or new when there was no more room for new ones",
    "unnamed": "functions that were new when there was no more room for new names",
    "failures": "looks at the threads' calls that failed",
}


def _name_losses(run: _Run, process: _Process, end: dict[str, Any] | None, dropped: int) -> None:
    """Name what a process's journal says, or shows, that it does not hold."""
    journal = process.journal
    named = 0
    for document in journal.documents("gap"):
        span = [whole_number(document.get(n)) for n in ("start", "stop")]
        start, stop = (int(run.time(process, np.array([t]))[0]) if t >= 0 else -1 for t in span)
        count = whole_number(document.get("count"))
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
    failures = whole_number(end.get("failures"), 0) if end else 0
    if failures > 0:
        run.gap("records dropped", process, count=failures, reason="recording a task failed")
    if journal.damaged:
        run.gap(
            "blocks damaged",
            process,
            count=journal.damaged,
            reason="part of the journal failed its checks",
        )
    for document in journal.documents("stacks-end"):
        for name, why in _CALLS_CUT.items():
            if (count := whole_number(document.get(name), 0)) > 0:
                run.gap("calls cut short", process, count=count, reason=why)
    for document in journal.documents("unavailable"):
        if document.get("what") == "executions":
            run.gap("executions from transitions", process, reason=str(document.get("why")))
            continue
        if document.get("what") == "nsys":
            run.gap("not heard by nsys", process, reason=str(document.get("why")))
            continue
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
            when = whole_number(document.get("time"))
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
                    index = whole_number(gpu.get("index"))
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
                            "memory": whole_number(gpu.get("memory")),
                        }
                    )
    for process in run.processes:
        for index in process.journal.numbers.get("gpus", []):
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
                row["cpus"] = whole_number(document.get("cpus"))
                row["memory"] = whole_number(document.get("memory"))
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


def _gaps(run: _Run) -> None:
    for process in run.processes:
        part = process.journal
        if part.lone_stops:
            run.gap("stops without start", process, count=part.lone_stops)
        if part.unknown_keys:
            run.gap("unknown keys", process, count=part.unknown_keys)
        if part.unknown_stacks:
            run.gap(
                "unknown calls",
                process,
                count=part.unknown_stacks,
                reason="samples of calls whose calls, or the outer ones of them, were lost",
            )
    run.merged.tables["gaps"] = _rows(run, run.gaps, "gaps")
