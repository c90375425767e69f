"""Nsight, first step: find nsys and turn what it wrote (.nsys-rep, .qdstrm) into SQLite."""

from __future__ import annotations

import contextlib
import enum
import errno
import glob
import hashlib
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dasf_hpc.nsight.errors import (
    ExportFailed,
    NsightError,
    NsysUnavailable,
    ReportDamaged,
    ReportMissing,
    ReportTooNew,
)

VERSION_TIMEOUT_S = 60.0
"""How long ``nsys --version`` may take; a first start from a cold network disk takes seconds."""

EXPORT_TIMEOUT_S = 1800.0
"""How long one export or import may take. A guess: a small report takes 20 ms."""

EXPORTED_SUFFIX = ".sqlite"
REPORT_SUFFIXES = (".nsys-rep", ".qdrep")
"""Reports ready to be exported; nsys wrote ``.qdrep`` until 2021.3."""
STREAM_SUFFIX = ".qdstrm"
"""What nsys leaves where its importer did not run."""

EXPORT_GROWTH = 12
"""Room that an export is given, in sizes of its report; 3.5 and 4.5 of them were measured."""

NSYS_PLACES = (
    "/opt/nvidia/nsight-systems/*/bin/nsys",
    "/opt/nvidia/nsight-systems/*/target-linux-*/nsys",
    "/opt/nvidia/nsight-systems-cli/*/bin/nsys",
    "/opt/nvidia/nsight-systems-cli/*/target-linux-*/nsys",
    "/usr/local/cuda*/bin/nsys",
)
"""Where NVIDIA's packages put nsys, each version in a folder of its own."""

_SQLITE_MAGIC = b"SQLite format 3\0"
_LOG, _JOURNAL, _INDEX_OF_LOG = "-wal", "-journal", "-shm"
"""What SQLite keeps beside a file, by the ends of their names."""
_REPORT_MAGIC = b"NVIDIA Tegra Profiler Report "


class NsysState(enum.Enum):
    """Whether nsys can be used here; the value is the sentence for whoever misses it."""

    READY = "nsys {version} at {path} is ready"
    """It runs, and finds its importer."""

    ABSENT = (
        "nsys was not found ({path}); load the module that has Nsight Systems, put nsys on PATH, "
        "or name it with --nsys-path"
    )
    """No such program, neither on PATH nor where it was said to be."""

    NOT_EXECUTABLE = "{path} cannot be run ({detail}); check its permissions and its architecture"
    """The file is there, but the system refuses to start it."""

    VERSION_UNREADABLE = (
        "{path} does not tell its version ({detail}), so it is not taken for nsys; "
        "name the real one with --nsys-path"
    )
    """It starts, but does not answer ``--version`` as nsys does."""

    IMPORTER_UNLINKED = (
        "nsys {version} at {path} looks for its importer in {expected} and it is in {found}, so "
        "reports are left as .qdstrm and imported afterwards; a link mends it: "
        "ln -s {found} {expected}"
    )
    """It profiles; the importer is installed where nsys does not look (Debian 12's package)."""

    IMPORTER_MISSING = (
        "nsys {version} at {path} has no QdstrmImporter beside it, so reports are left as .qdstrm; "
        "install the host part of Nsight Systems {version}"
    )
    """It profiles, but nothing here turns its .qdstrm into a report (a target-only install)."""

    @property
    def profiles(self) -> bool:
        """Whether ``nsys profile`` and ``nsys export`` can be run."""
        return self in (
            NsysState.READY,
            NsysState.IMPORTER_UNLINKED,
            NsysState.IMPORTER_MISSING,
        )


@dataclass(frozen=True)
class NsysProgram:
    """An nsys, or why there is none.

    Attributes
    ----------
    state
        Whether it can be used, or what keeps it from it.
    path
        The program; where nothing was found, what was looked for (``None``: PATH).
    version
        For example ``(2023, 4, 4, 54)``; ``None`` where it did not tell.
    importer
        The ``QdstrmImporter`` that belongs to it, ``None`` where there is none.
    detail
        What the system or the program said, for the sentence.
    """

    state: NsysState
    path: Path | None
    version: tuple[int, ...] | None = None
    importer: Path | None = None
    detail: str = ""

    @property
    def profiles(self) -> bool:
        """Whether it can profile and export."""
        return self.state.profiles

    @property
    def version_text(self) -> str | None:
        """The version as people write it, ``2023.4.4.54``."""
        return None if self.version is None else _dotted(self.version)

    @property
    def sentence(self) -> str:
        """Say what the state means for this program."""
        expected, found = "", ""
        if self.path is not None and self.importer is not None:
            found = str(self.importer.parent)
            expected = str(_installation(self.path) / self.importer.parent.name)
        return self.state.value.format(
            path=self.path or "PATH",
            version=self.version_text,
            detail=self.detail,
            expected=expected,
            found=found,
        )


def find_nsys(path: str | None = None) -> NsysProgram:
    """Find nsys, ask its version and look for its importer; raises nothing.

    Parameters
    ----------
    path
        The program's path, or a name to look for on PATH; ``None`` looks for ``nsys``.
    """
    found = shutil.which(path or "nsys")
    if found is None:
        named = None if path is None else Path(path)
        if named is not None and named.is_file():
            return NsysProgram(NsysState.NOT_EXECUTABLE, named, detail="it is not executable")
        return NsysProgram(NsysState.ABSENT, named)
    program = Path(found).absolute()
    try:
        code, output = _run([str(program), "--version"], VERSION_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        detail = f"no answer in {VERSION_TIMEOUT_S:g} s"
        return NsysProgram(NsysState.VERSION_UNREADABLE, program, detail=detail)
    except OSError as error:
        detail = error.strerror or str(error)
        return NsysProgram(NsysState.NOT_EXECUTABLE, program, detail=detail)
    matched = re.search(r"version\s+(\d+(?:\.\d+)+)", output)
    if code != 0 or matched is None:
        detail = _last_line(output) or f"exit code {code} and no output"
        return NsysProgram(NsysState.VERSION_UNREADABLE, program, detail=detail)
    version = tuple(int(part) for part in matched[1].split("."))
    importer = _find_importer(program, version)
    if importer is None:
        state = NsysState.IMPORTER_MISSING
    elif importer.parent.parent == _installation(program) or _is_script(program):
        state = NsysState.READY
    else:
        state = NsysState.IMPORTER_UNLINKED
    return NsysProgram(state, program, version, importer)


def newer_nsys(nsys: NsysProgram, places: Sequence[str] | None = None) -> list[NsysProgram]:
    """Find other nsys of this machine that can export and are newer than one, the newest first.

    Parameters
    ----------
    nsys
        The one; where it has no version or does not work, any other will do.
    places
        Patterns of paths to look at; None: all of PATH and `NSYS_PLACES`.
    """
    if places is None:
        folders = [Path(folder or ".").absolute() for folder in os.get_exec_path()]
        places = (*(glob.escape(f"{folder}/nsys") for folder in folders), *NSYS_PLACES)
    root = Path("/")
    paths = [path for place in places for path in sorted(root.glob(place.lstrip("/")))]
    known = {os.path.realpath(nsys.path)} if nsys.path is not None else set[str]()
    found: list[NsysProgram] = []
    for path in paths:
        if (real := os.path.realpath(path)) not in known and os.access(path, os.X_OK):
            known.add(real)
            found.append(find_nsys(str(path)))
    oldest = nsys.version or () if nsys.profiles else ()
    usable = [n for n in found if n.profiles and n.version is not None and n.version > oldest]
    return sorted(usable, key=lambda n: n.version or (), reverse=True)


def reports_of(folder: Path, name: str) -> list[str]:
    """Give the reports that an nsys left, which was given a name; without suffix, in their order.

    It writes one of that name or, with ``--capture-range-end=repeat``, ``NAME.1``, ``NAME.2`` and
    so on.
    """

    def there(stem: str) -> bool:
        suffixes = (REPORT_SUFFIXES[0], STREAM_SUFFIX)
        return any((folder / f"{stem}{suffix}").exists() for suffix in suffixes)

    if there(name):
        return [name]
    found: list[str] = []
    # One that was claimed is another job's.
    while there(stem := f"{name}.{len(found) + 1}") and not (folder / f"{stem}.claim").exists():
        found.append(stem)
    return found


def sha256_file(path: Path) -> str:
    """Give the SHA-256 of a file's content, in hexadecimal.

    Raises
    ------
    ReportMissing
        If the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def report_version(report: Path) -> tuple[int, ...] | None:
    """Read which nsys wrote a ``.nsys-rep``; ``None`` where the report does not say.

    The file's first bytes are ``NVIDIA Tegra Profiler Report 2023@4@4@54-…`` (seen with 2023.4);
    2022.4 writes ``1`` there.
    """
    try:
        with report.open("rb") as file:
            head = file.read(len(_REPORT_MAGIC) + 64)
    except OSError as error:
        raise _unreadable(report, error) from error
    matched = re.match(rb"(\d+(?:@\d+)+)", head.removeprefix(_REPORT_MAGIC))
    if not head.startswith(_REPORT_MAGIC) or matched is None:
        return None
    return tuple(int(part) for part in matched[1].split(b"@"))


def export_sqlite(
    report: Path,
    nsys: NsysProgram,
    into: Path | None = None,
    timeout_s: float = EXPORT_TIMEOUT_S,
    places: Sequence[str] | None = None,
) -> Path:
    """Export a report to SQLite, unless that was done since the report was written.

    Parameters
    ----------
    report
        A ``.nsys-rep`` (or ``.qdrep``), a ``.qdstrm``, which is imported first, or an export, which
        is returned as it is, unless it is not whole and its report lies beside it.
    nsys
        What to export with; need not be usable where nothing has to be exported. Where it is too
        old for the report, or PATH has none, a newer one of this machine does it (`newer_nsys`).
    into
        Folder for what is written; ``None`` writes beside the report.
    timeout_s
        Time limit of each program that is run, s.
    places
        As for `newer_nsys`.

    Returns
    -------
    Path
        The SQLite file. It appears under that name only when it is complete.

    Raises
    ------
    NsightError
        With the sentence that says what is wrong; nothing else is raised for a bad file.
    """
    _check_readable(report)
    if report.suffix == EXPORTED_SUFFIX:
        if not _is_sqlite(report):
            raise ReportDamaged(f"{report} is not an SQLite file; export the report again")
        if is_whole(report):
            return report
        for source in (report.with_suffix(suffix) for suffix in REPORT_SUFFIXES):
            if source.is_file():
                return export_sqlite(source, nsys, into, timeout_s, places)
        raise ReportDamaged(
            f"{report} is being written, or was left half written; export the report again"
        )
    if report.suffix == STREAM_SUFFIX:
        fresh = _fresh_export(report, into)
        if fresh is not None:
            return fresh
        report = import_stream(report, nsys, into, timeout_s)
    elif report.suffix not in REPORT_SUFFIXES:
        known = ", ".join((*REPORT_SUFFIXES, STREAM_SUFFIX, EXPORTED_SUFFIX))
        raise ReportDamaged(f"{report} is not a report by its name, which should end in {known}")
    fresh = _fresh_export(report, into)
    if fresh is not None:
        return fresh
    target = _beside(report, into, EXPORTED_SUFFIX)
    try:
        return _export(report, nsys, target, timeout_s)
    except (ReportTooNew, NsysUnavailable) as error:
        # one that was named and does not work is to be known
        if isinstance(error, ReportTooNew) or nsys.path is None:
            for newer in newer_nsys(nsys, places):
                with contextlib.suppress(ReportTooNew):
                    return _export(report, newer, target, timeout_s)
        raise


def newer_beside(export: Path) -> Path | None:
    """Give the report beside an export that was written after it, so is not what it holds."""
    for source in (export.with_suffix(suffix) for suffix in REPORT_SUFFIXES):
        if source.is_file() and not _is_newer(export, source):
            return source
    return None


def recorder_version(report: Path) -> str | None:
    """Give the version of the nsys that recorded a report, None where its first bytes do not say.

    Parameters
    ----------
    report
        A report, or an export: that of the report beside it, if it is not newer.
    """
    beside = [report.with_suffix(suffix) for suffix in REPORT_SUFFIXES]
    if report.suffix == EXPORTED_SUFFIX and newer_beside(report) is not None:
        return None
    for source in [report] if report.suffix in REPORT_SUFFIXES else beside:
        with contextlib.suppress(ReportMissing):
            if (version := report_version(source)) is not None:
                return _dotted(version)
    return None


def import_stream(
    stream: Path,
    nsys: NsysProgram,
    into: Path | None = None,
    timeout_s: float = EXPORT_TIMEOUT_S,
) -> Path:
    """Turn a ``.qdstrm`` into the report nsys would have written; the stream stays.

    Returns
    -------
    Path
        The ``.nsys-rep``, beside the stream or in ``into``; one that is newer is reused.

    Raises
    ------
    NsightError
        With the sentence that says what is wrong.
    """
    _check_readable(stream)
    report = _beside(stream, into, REPORT_SUFFIXES[0])
    if _is_newer(report, stream):
        return report
    if nsys.importer is None:
        raise NsysUnavailable(f"{stream} has to be imported first, and {nsys.sentence}")
    with _written_beside(report) as unfinished:
        command = [str(nsys.importer), "-i", str(stream), "-o", str(unfinished)]
        code, output = _run_bounded(command, stream, timeout_s)
        if code != 0 or not unfinished.is_file():
            # the importer says "Qdstrm file is incomplete or invalid" or "File is corrupted"
            if re.search(r"corrupted|incomplete|invalid", output):
                raise ReportDamaged(
                    f"{stream} is truncated or damaged and cannot be imported "
                    f"({_last_line(output)}); nsys was probably killed while writing it"
                )
            raise _too_new_or_failed(stream, nsys, "imported", code, output)
    return report


def _export(report: Path, nsys: NsysProgram, target: Path, timeout_s: float) -> Path:
    """Export a report in a scratch folder, and move the export to where it belongs.

    nsys writes SQLite under POSIX locks, which many file systems of clusters do not have (Lustre
    without ``-o flock``): there it says "database is locked". Local disks have them.
    """
    if not nsys.profiles or nsys.path is None:
        raise NsysUnavailable(
            f"{report} has to be exported, and {nsys.sentence} (or run where there is an nsys: "
            f"{export_command(report)}, and put what it writes beside the report)"
        )
    error: NsightError = ExportFailed(f"{report} could not be exported: no folder takes it")
    with _written_beside(target) as unfinished:
        for place in _scratch_places(report, target.parent):
            try:
                folder = tempfile.TemporaryDirectory(
                    prefix=".dasf-hpc-export-", dir=place, ignore_cleanup_errors=True
                )
            except OSError:
                continue  # it became full, or may not be written by us
            with folder as scratch:
                made = Path(scratch) / unfinished.name
                command = [str(nsys.path), "export", "--type", "sqlite", "-f", "true"]
                command += ["-o", str(made), str(report)]
                code, output = _run_bounded(command, report, timeout_s)
                if code == 0 and is_whole(made):
                    _move(made, unfinished)
                    return target
            error = _too_new_or_failed(report, nsys, "exported", code, output)
            if not isinstance(error, ExportFailed):
                break  # no other place would help
        raise error
    return target


def _scratch_places(report: Path, last: Path) -> list[Path]:
    """Give folders in which a report may be exported, the best first, `last` where all fail."""
    with contextlib.suppress(OSError):
        needed = EXPORT_GROWTH * report.stat().st_size
        places = [Path(os.environ.get("TMPDIR") or "/tmp"), Path("/tmp"), Path("/var/tmp")]
        roomy = [place for place in dict.fromkeys(places) if _has_room(place, needed)]
        return [*roomy, last]
    return [last]


def _has_room(folder: Path, needed: int) -> bool:
    try:
        room = os.statvfs(folder)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK) and room.f_bavail * room.f_frsize >= needed


def _move(made: Path, unfinished: Path) -> None:
    """Move a file, also to another file system."""
    try:
        made.replace(unfinished)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copyfile(made, unfinished)


def _too_new_or_failed(
    report: Path, nsys: NsysProgram, done: str, code: int, output: str
) -> NsightError:
    """Tell a newer report from a damaged one and from anything else by what nsys said."""
    said = _last_line(output) or f"exit code {code} and no output"
    written_by = report_version(report)
    newer = written_by is not None and nsys.version is not None and written_by > nsys.version
    # 2022.4 says "Version number is invalid: 2023@4@4@54-…", others "newer than your current
    # version"
    if newer or re.search(r"newer than|Version number is invalid", output):
        needed = f"nsys {_dotted(written_by)}" if written_by else "a newer nsys"
        return ReportTooNew(
            f"{report} was written by {needed} and nsys {nsys.version_text} is too old for it; "
            "name that nsys or a newer one with --nsys-path, or run where there is one: "
            f"{export_command(report)}, and put what it writes beside the report"
        )
    if re.search(r"Cannot read from stream|magic number|Version tag|corrupt|incomplete", output):
        return ReportDamaged(
            f"{report} is truncated or damaged and cannot be {done} ({said}); nsys was probably "
            f"killed while writing it, look for a .qdstrm of that run"
        )
    if "database is locked" in output:
        return ExportFailed(
            f"{report} could not be {done} by {nsys.path} ({said}): it needs a folder whose file "
            f"system has locks; name one of a local disk in TMPDIR"
        )
    return ExportFailed(f"{report} could not be {done} by {nsys.path} ({said})")


def export_command(report: Path) -> str:
    """Give the command that exports a report, to be run beside it on any machine."""
    made = report.with_suffix(EXPORTED_SUFFIX).name
    return shlex.join(["nsys", "export", "--type", "sqlite", "--output", made, report.name])


def _fresh_export(report: Path, into: Path | None) -> Path | None:
    exported = _beside(report, into, EXPORTED_SUFFIX)
    return exported if _is_newer(exported, report) and is_whole(exported) else None


def _is_newer(derived: Path, source: Path) -> bool:
    """Whether a derived file was written since its source was.

    Equal counts: copying both may round the times to seconds, and a report is never exported
    before it is complete.
    """
    try:
        return derived.stat().st_mtime_ns >= source.stat().st_mtime_ns
    except OSError:
        return False


def _is_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
    except OSError:
        return False


def is_whole(sqlite: Path) -> bool:
    """Say whether an SQLite file holds, with a write-ahead log beside it, all that belongs in it.

    Told without its locks, which not every file system has. Where nsys writes one its first page is
    empty until all the others are there (seen with 2022.4); another writer has a journal beside the
    file until then, or the file has another size than its first page says.
    """
    try:
        with sqlite.open("rb") as file:
            head = file.read(100)
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return False
    if len(head) < 100 or not head.startswith(_SQLITE_MAGIC):
        return False
    if journal := open_journal(sqlite):
        return journal.name.endswith(_LOG)
    # https://www.sqlite.org/fileformat2.html#the_database_header
    page = int.from_bytes(head[16:18], "big")
    pages = int.from_bytes(head[28:32], "big")
    told = pages > 0 and head[24:28] == head[92:96]
    return not told or size == pages * (65536 if page == 1 else page)


def open_journal(sqlite: Path) -> Path | None:
    """Give the log or journal beside an SQLite file without which it is not whole, if any is."""
    for suffix in (_LOG, _JOURNAL):
        journal = sqlite.with_name(sqlite.name + suffix)
        # A journal that is emptied, or whose head is, is one that is done with.
        with contextlib.suppress(OSError), journal.open("rb") as file:
            if any(file.read(8)):
                return journal
    return None


def _check_readable(report: Path) -> None:
    try:
        with report.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise _unreadable(report, error) from error
    if empty:
        raise ReportDamaged(f"{report} is empty; nsys was probably killed before it wrote anything")


def _unreadable(path: Path, error: OSError) -> ReportMissing:
    return ReportMissing(f"{path} cannot be read ({error.strerror or error})")


def _beside(report: Path, into: Path | None, suffix: str) -> Path:
    return (into or report.parent) / (report.stem + suffix)


@contextlib.contextmanager
def _written_beside(target: Path) -> Iterator[Path]:
    """Give a name in the target's folder to write to, and rename it to the target at the end.

    Another process may read the target or write it too: it sees the old file or the whole new one.
    The suffix stays, because nsys appends its own where it misses it.
    """
    unfinished = target.with_name(f".{target.stem}.{secrets.token_hex(6)}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        if target.suffix == EXPORTED_SUFFIX:
            for suffix in (_LOG, _JOURNAL, _INDEX_OF_LOG):  # SQLite would put them into the new one
                target.with_name(target.name + suffix).unlink(missing_ok=True)
        unfinished.replace(target)
    except OSError as error:
        raise ExportFailed(
            f"{target} cannot be written ({error.strerror or error}); "
            f"give another folder or make room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _run_bounded(command: list[str], report: Path, timeout_s: float) -> tuple[int, str]:
    try:
        return _run(command, timeout_s)
    except subprocess.TimeoutExpired:
        raise ExportFailed(
            f"{report} took more than {timeout_s:g} s in {command[0]}, which was stopped; "
            f"try again on a less busy machine"
        ) from None
    except OSError as error:
        raise NsysUnavailable(
            f"{command[0]} cannot be run ({error.strerror or error}); check its permissions"
        ) from error


def _run(command: list[str], timeout_s: float) -> tuple[int, str]:
    """Run a program without input; gives its exit code and all it said.

    What the user has loaded into every program (LD_PRELOAD) is not loaded into it: that is meant
    for the programs that are profiled. At the time limit its children end too: a wrapper script's
    nsys would otherwise write on.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},
    ) as program:
        try:
            output, _ = program.communicate(timeout=timeout_s)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            raise
    return program.returncode, output.decode("utf-8", "replace")


def _last_line(output: str) -> str:
    """Give the last line that says something; progress bars are overwritten with returns."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", output)]
    said = [line for line in lines if line and not re.search(r"\[[=\d]*\d+%\s*\]", line)]
    return said[-1].rstrip(".") if said else ""


def _dotted(version: Sequence[int]) -> str:
    return ".".join(str(part) for part in version)


def _installation(program: Path) -> Path:
    """Give the folder in which nsys looks for its ``host-linux-*`` folder: that above its own."""
    return Path(os.path.realpath(program)).parent.parent


def _is_script(program: Path) -> bool:
    """Whether the program is a script that starts the real nsys elsewhere, as CUDA's is."""
    try:
        with program.open("rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False


def _find_importer(program: Path, version: tuple[int, ...]) -> Path | None:
    """Look for the importer of this nsys, where nsys looks first.

    Then beside each link on the way to the program (Debian 12 has it there), then where CUDA's
    toolkit and NVIDIA's own packages put an Nsight Systems of that version.
    """
    above = [_installation(program)]
    link = program
    for _ in range(16):  # more links in a row than any installation has, fewer than a cycle
        above.append(link.parent.parent.absolute())
        if not link.is_symlink():
            break
        link = Path(os.path.normpath(link.parent / link.readlink()))
    release = _dotted(version[:3])
    above += [above[-1] / f"nsight-systems-{release}"]
    above += [Path("/opt/nvidia/nsight-systems") / release]
    for folder in above:
        for importer in sorted(folder.glob("host-linux-*/QdstrmImporter")):
            if os.access(importer, os.X_OK):
                return importer
    return None
