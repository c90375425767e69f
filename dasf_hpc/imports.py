"""What no run of ours recorded: files of other programs go into a trace, or become one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from dasf_hpc.errors import TraceFileError
from dasf_hpc.manifest import TRACE
from dasf_hpc.nsight.collect import ReportEntry, first_report, join_reports
from dasf_hpc.nsight.export import EXPORTED_SUFFIX, REPORT_SUFFIXES, STREAM_SUFFIX
from dasf_hpc.nsight.rows import NOT_TIED
from dasf_hpc.profile.identity import installed_version
from dasf_hpc.steps import Step, Told
from dasf_hpc.trace.extend import ExtendedTrace
from dasf_hpc.trace.foreign import import_dasf


@dataclass(frozen=True)
class Imported:
    """What became of files that were joined or imported.

    Attributes
    ----------
    trace
        The trace that was written.
    reports
        Each Nsight report and what became of it.
    skipped
        What of other files a trace has no place for, a sentence each.
    """

    trace: Path
    reports: list[ReportEntry]
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wishes:
    """How files are to be read.

    Attributes
    ----------
    nsys_path
        The nsys that exports reports, None: from PATH.
    os_runtime
        Whether to store the calls of the operating system's libraries.
    """

    nsys_path: str | None = None
    os_runtime: bool = False


@dataclass(frozen=True)
class FileKind:
    """Files of one program, of which a trace can be made.

    Attributes
    ----------
    name
        What they are called, for sentences.
    suffixes
        How their names end.
    make
        Makes a trace: files, the trace to write, wishes, and who is told of every step.
    """

    name: str
    suffixes: tuple[str, ...]
    make: Callable[[Sequence[Path], Path, Wishes, Told], Imported]


def import_files(
    paths: Sequence[Path], into: Path, wishes: Wishes, told: Told = lambda step: None
) -> Imported:
    """Make a trace of files that another program wrote.

    Parameters
    ----------
    paths
        Files of one kind (`KINDS`), which their names tell.
    into
        The trace to write; there must be none.
    wishes
        How to read them.
    told
        Called with every step.

    Raises
    ------
    TraceFileError
        If there is a trace already, a file cannot be read, or the trace cannot be written.
    """
    if into.exists():
        raise TraceFileError(
            f"{into} exists: give another name, or add reports to it with dasf-hpc join."
        )
    _check_there(paths)
    kinds = {_kind(path).name: _kind(path) for path in paths}
    if len(kinds) != 1:
        raise TraceFileError(f"One trace is made of one kind of files, not of {_listed(kinds)}.")
    return next(iter(kinds.values())).make(paths, into, wishes, told)


def join_into(
    paths: Sequence[Path], into: Path, wishes: Wishes, told: Told = lambda step: None
) -> Imported:
    """Add Nsight reports to a trace: their ranges and kernels are linked to its tasks.

    Parameters
    ----------
    paths
        Reports, or their SQLite exports.
    into
        A trace, or the directory of a run that holds one. It is replaced in one step.
    wishes
        How to read them.
    told
        Called with every step.

    Raises
    ------
    TraceFileError
        If there is no trace, no report could be joined, or the trace cannot be written.
    """
    trace = into / TRACE if into.is_dir() else into
    _check_there(paths)
    for path in paths:
        if _kind(path) is not REPORTS:
            raise TraceFileError(f"{path} is no Nsight report: only reports can be joined.")
    with _writing(trace), ExtendedTrace(trace, trace.absolute().parent) as extended:
        entries = _join(extended, paths, wishes, told)
        told(Step("Writing the trace"))
        extended.write(trace)
    return Imported(trace, entries)


def _import_reports(paths: Sequence[Path], into: Path, wishes: Wishes, told: Told) -> Imported:
    """Make a trace of Nsight reports alone, on the clock of the one that began first."""
    told(Step("Exporting Nsight reports"))
    with _writing(into):
        begun = first_report(paths, wishes.nsys_path)
        attributes = {"producer": f"dasf-hpc {installed_version('dasf-hpc')}", **begun.attributes}
        with ExtendedTrace(None, into.absolute().parent, attributes) as made:
            made.add_clock(begun.clock, begun.hostname)
            entries = _join(made, begun.paths, wishes, told, begins=True)
            told(Step("Writing the trace"))
            made.write(into)
    return Imported(into, entries)


def _import_dasf(paths: Sequence[Path], into: Path, wishes: Wishes, told: Told) -> Imported:
    """Make a trace of the traces that dasf-core's profiling wrote of one run."""
    told(Step("Reading traces of dasf-core"))
    with _writing(into):
        found = import_dasf(paths, into)
    return Imported(into, [], found.skipped)


def _join(
    trace: ExtendedTrace,
    paths: Sequence[Path],
    wishes: Wishes,
    told: Told,
    begins: bool = False,
) -> list[ReportEntry]:
    entries = join_reports(
        trace,
        [(path.name, path) for path in paths],
        wishes.nsys_path,
        lambda done, total, label: told(Step(f"Joining Nsight reports: {label}", done, total)),
        wishes.os_runtime,
        NOT_TIED if begins else None,
    )
    if not any(entry.status == "joined" for entry in entries):
        raise TraceFileError(f"No report could be joined: {entries[0].sentence}.")
    return entries


REPORTS = FileKind(
    "Nsight reports", (*REPORT_SUFFIXES, STREAM_SUFFIX, EXPORTED_SUFFIX), _import_reports
)

DASF = FileKind("traces of dasf-core", (".msgpack",), _import_dasf)

#: Every kind of file that can be imported.
KINDS = (REPORTS, DASF)


def _kind(path: Path) -> FileKind:
    with suppress(StopIteration):
        return next(kind for kind in KINDS if path.name.endswith(kind.suffixes))
    endings = ", ".join(suffix for kind in KINDS for suffix in kind.suffixes)
    raise TraceFileError(
        f"{path} is nothing that can be read by its name, which should end in one of {endings}."
    )


@contextmanager
def _writing(trace: Path) -> Iterator[None]:
    """Say in a sentence why a trace could not be written."""
    try:
        yield
    except OSError as error:
        raise TraceFileError(f"{trace} could not be written: {error.strerror or error}.") from None


def _check_there(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.is_file():
            raise TraceFileError(f"There is no file {path}.")


def _listed(kinds: dict[str, FileKind]) -> str:
    return " and ".join(kinds) or "none"
