"""Show, elsewhere: a trace as a file of another program's format."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from dasf_hpc.errors import RunDirectoryError
from dasf_hpc.show.formats import DEFAULT_NAMES, OF_STACKS, Format
from dasf_hpc.steps import Told
from dasf_hpc.trace.open import Trace, open_trace

#: The default, 9, takes several times as long for some percent.
_GZIP_LEVEL = 6


def export(
    path: Path,
    to: Format,
    output: Path | None = None,
    told: Told = lambda step: None,
    **wanted: Any,
) -> Path:
    """Write a trace in another format.

    Parameters
    ----------
    path
        A trace, or the directory of a run.
    to
        The format.
    output
        File to write (folder, where the format is a file a table); beside the trace by default.
        A file whose name ends in ``.gz`` is compressed with gzip.
    told
        Called with the progress.
    wanted
        Of formats of call stacks: ``function``, ``worker`` and ``between``, as for
        `dasf_hpc.analysis.stacks.chosen_of`; others take none.

    Returns
    -------
    Path
        What was written. It is complete when it has its name: until then it is called ``.part``.

    Raises
    ------
    TraceFileError
        If there is no trace, or it cannot be read.
    ProgramMissingError
        If a package that the format needs is not installed.
    RunDirectoryError
        If the output cannot be written.
    ValueError
        If there is no such function or worker.
    """
    try:
        with open_trace(path) as trace:
            target = output or trace.path.parent / DEFAULT_NAMES[to]
            if to in OF_STACKS:
                _stacks(trace, to, target, told, wanted)
            else:
                _WRITERS[to](trace, target, told)
    except OSError as error:
        raise RunDirectoryError(
            f"The export cannot be written: {error.filename or target}: "
            f"{error.strerror or error}; give another place with -o."
        ) from None
    return target


@contextlib.contextmanager
def written(target: Path) -> Iterator[IO[bytes]]:
    """Give a file that gets its name when it is complete, and goes when it fails.

    A file of that name is replaced in one step, so that nobody reads half of one. One whose name
    ends in ``.gz`` is compressed with gzip.
    """
    part = target.with_name(target.name + ".part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            if target.suffix == ".gz":
                with gzip.GzipFile("", "wb", _GZIP_LEVEL, file) as packed:
                    yield cast("IO[bytes]", packed)
            else:
                yield file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def written_folder(target: Path) -> Iterator[Path]:
    """Give a folder that gets its name when it is complete, and goes when it fails.

    Raises
    ------
    FileExistsError
        If something is there already: a folder is not replaced, for it may hold what is not ours.
    """
    if target.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(mode=0o700)
        yield part
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _perfetto(trace: Trace, target: Path, told: Told) -> None:
    from dasf_hpc.show.perfetto import PerfettoDrawing
    from dasf_hpc.show.timeline import draw

    with written(target) as file:
        draw(trace, PerfettoDrawing(file), told)


def _chrome(trace: Trace, target: Path, told: Told) -> None:
    from dasf_hpc.show.chrome import ChromeDrawing
    from dasf_hpc.show.timeline import draw

    with written(target) as file:
        draw(trace, ChromeDrawing(file), told)


def _dasf(trace: Trace, target: Path, told: Told) -> None:
    from dasf_hpc.show.dasf import write_dasf

    with written(target) as file:
        write_dasf(trace, file, told)


def _otlp(trace: Trace, target: Path, told: Told) -> None:
    from dasf_hpc.show.otlp import write_otlp

    with written(target) as file:
        write_otlp(trace, file, told)


def _csv(trace: Trace, target: Path, told: Told) -> None:
    from dasf_hpc.show.tables import write_csv

    with written_folder(target) as folder:
        write_csv(trace, folder, told)


def _parquet(trace: Trace, target: Path, told: Told) -> None:
    from dasf_hpc.show.tables import write_parquet

    with written_folder(target) as folder:
        write_parquet(trace, folder, told)


def _stacks(trace: Trace, to: Format, target: Path, told: Told, wanted: dict[str, Any]) -> None:
    from dasf_hpc.show import stack_files

    writers = {
        Format.SPEEDSCOPE: stack_files.write_speedscope,
        Format.COLLAPSED: stack_files.write_collapsed,
        Format.PPROF: stack_files.write_pprof,
    }
    with written(target) as file:
        writers[to](trace, file, told, wanted)


_WRITERS: dict[Format, Callable[[Trace, Path, Told], None]] = {
    Format.PERFETTO: _perfetto,
    Format.CHROME: _chrome,
    Format.DASF: _dasf,
    Format.PARQUET: _parquet,
    Format.CSV: _csv,
    Format.OTLP_JSON: _otlp,
}
