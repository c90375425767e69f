"""Trace, on disk: tables go into one HDF5 file, whole or not at all, and come back by column.

The layout is `schema`'s: a group a table, a dataset a column, strings once under ``/dictionaries``.
Only what every HDF5 reader has is used (chunks, shuffle, gzip, fixed-length strings, the oldest
file layout).
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dasf_hpc.trace.schema import DICTIONARIES, FORMAT, NUL, TABLES, VERSION, Column

#: Rows a chunk. Measured on 5.6 million transitions: 2**14 to 2**18 rows differ by 1 % in size and
#: not in time to read a whole column, while reading one row takes 0.5 ms to 3.3 ms.
CHUNK = 1 << 15

#: Columns smaller than this are stored plain: the index of a compressed one takes 2 kB (measured).
SMALL = 2048

#: Bytes a chunk of strings.
STRING_CHUNK = 1 << 18

#: Strings are stored with fixed length up to this many bytes of UTF-8.
LONGEST_FIXED = 512

_GROUP = "dictionaries"

#: A column on its way into a trace: numbers, or the strings themselves (None: no string).
ColumnData = NDArray[Any] | Sequence[Any]
TableData = Mapping[str, ColumnData]


class TraceError(Exception):
    """A trace that cannot be read or written; the message is one sentence."""


def _storable(string: str) -> str:
    """Replace what HDF5 cannot hold, before codes are given, so that strings stay distinct."""
    if string.isascii() and "\0" not in string:
        return string
    return string.replace("\0", NUL).encode("utf-8", "replace").decode()


class Strings:
    """A dictionary of strings under construction: gives each distinct string a code, from 0."""

    def __init__(self, strings: Iterable[str] = ()) -> None:
        """Begin with some strings, which must be distinct: their positions are their codes."""
        first = [_storable(s) for s in strings]
        self._codes: dict[str, int] = {s: code for code, s in enumerate(first)}
        if len(self._codes) != len(first):
            raise ValueError("the strings of a dictionary must be distinct")

    def __len__(self) -> int:
        return len(self._codes)

    def code(self, string: str | None) -> int:
        """Give a string's code, -1 for None."""
        if string is None:
            return -1
        found = self._codes.get(string)
        if found is None:
            found = self._codes.setdefault(_storable(string), len(self._codes))
        return found

    def codes(self, strings: Iterable[str | None]) -> NDArray[np.int32]:
        """Give the codes of many strings."""
        code = self.code
        return np.fromiter((code(s) for s in strings), np.int32)

    def list(self) -> list[str]:
        """Give the strings; the position is the code."""
        return list(self._codes)


# ------------------------------------------------------------------------------------- writing


def _string_dataset(group: h5py.Group, name: str, strings: Sequence[str], meaning: str) -> None:
    encoded = [s.encode() for s in strings]
    longest = max((len(e) for e in encoded), default=1) or 1
    dtype = h5py.string_dtype("utf-8", None if longest > LONGEST_FIXED else longest)
    data = np.array(encoded, dtype)
    options: dict[str, Any] = {}
    if longest <= LONGEST_FIXED and len(strings) * longest >= SMALL:
        rows = max(1, min(len(strings), STRING_CHUNK // longest))
        options = {
            "chunks": (rows,),
            "compression": "gzip",
            "compression_opts": 1,
            "fletcher32": True,
        }
    dataset = group.create_dataset(name, shape=(len(strings),), dtype=dtype, **options)
    if len(strings):
        dataset[:] = data
    dataset.attrs["meaning"] = meaning


def _number_dataset(group: h5py.Group, column: Column, data: NDArray[Any]) -> None:
    options: dict[str, Any] = {}
    if data.nbytes >= SMALL:
        options = {
            "chunks": (min(len(data), CHUNK),),
            "compression": "gzip",
            "compression_opts": 1,
            "shuffle": True,
            "fletcher32": True,
        }
    dataset = group.create_dataset(column.name, data=data, **options)
    dataset.attrs["unit"] = column.unit
    dataset.attrs["meaning"] = column.meaning
    if column.dictionary:
        dataset.attrs["dictionary"] = column.dictionary
    if column.refers:
        dataset.attrs["refers"] = column.refers


def _missing(column: Column) -> Any:
    return np.nan if column.dtype.startswith("float") else -1


def _numbers(
    table: str, column: Column, data: ColumnData, dictionaries: dict[str, Strings]
) -> NDArray[Any]:
    """Give a column as the numbers to store; strings are put into their dictionary."""
    array = np.asarray(data)
    strings = dictionaries.setdefault(column.dictionary, Strings()) if column.dictionary else None
    if strings is not None and array.dtype.kind in "OUS":
        array = strings.codes(None if s is None or s != s else str(s) for s in array.tolist())
    elif array.dtype.kind == "O":
        array = np.array([_missing(column) if v is None else v for v in array.tolist()])
    wanted = np.dtype(column.dtype)
    if array.dtype != wanted:
        if len(array) and wanted.kind == "i" and array.dtype.kind in "iu":
            limits = np.iinfo(wanted)
            if int(array.max()) > limits.max or int(array.min()) < limits.min:
                raise TraceError(
                    f"column {table}.{column.name} holds a number that does not fit {wanted}."
                )
        array = array.astype(wanted)
    if strings is not None and len(array) and int(array.max()) >= len(strings):
        raise TraceError(f"column {table}.{column.name} holds a code without a string.")
    return np.ascontiguousarray(array)


def _write_table(
    file: h5py.File,
    name: str,
    data: TableData,
    dictionaries: dict[str, Strings],
    check: Callable[[], None],
) -> None:
    table = TABLES[name]
    unknown = set(data) - {c.name for c in table.columns}
    if unknown:
        raise TraceError(f"table {name} has no column {', '.join(sorted(unknown))}.")
    rows = {len(values) for values in data.values()}
    if len(rows) > 1:
        raise TraceError(f"columns of table {name} differ in length: {sorted(rows)}.")
    length = rows.pop() if rows else 0
    group = file.create_group(name)
    group.attrs["meaning"] = table.meaning
    group.attrs["rows"] = length
    group.attrs["columns"] = ",".join(c.name for c in table.columns)
    if table.order:
        group.attrs["order"] = table.order
    for column in table.columns:
        missing = np.full(length, _missing(column), column.dtype)
        values = _numbers(name, column, data.get(column.name, missing), dictionaries)
        _number_dataset(group, column, values)
        check()


class _Sink(io.RawIOBase):
    """The file that HDF5 writes to; to HDF5 it never fails.

    Where a disk is full, HDF5 (2.0) keeps what it could not write in the process for good, and
    crashes it later. So what the disk refuses is kept in memory, read back from there, and the
    error told to us: `check` raises it after every column.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._position = 0
        self._size = 0
        self._refused: list[tuple[int, bytes]] = []
        self.error: OSError | None = None

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self._size = self._position if size is None else size
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError as error:
            self.error = self.error or error
        return self._size

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and self.error is None:
                done += os.pwrite(self._descriptor, view[done:], self._position + done)
        except OSError as error:
            self.error = error
        if done < len(view):
            self._refused.append((self._position + done, bytes(view[done:])))
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start = self._position
        count = max(0, min(len(view), self._size - start))
        data = os.pread(self._descriptor, count, start)
        view[:count] = data + bytes(count - len(data))
        for offset, refused in self._refused:
            first, last = max(offset, start), min(offset + len(refused), start + count)
            if first < last:
                view[first - start : last - start] = refused[first - offset : last - offset]
        self._position += count
        return count


@contextlib.contextmanager
def _written(path: Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Give a new HDF5 file that takes `path`'s place at the end, in one step, and its check.

    A crash at any moment leaves `path` as it was, or whole; at worst a ``.part`` file is left.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(part, flags, 0o600)
        try:
            sink = _Sink(descriptor)
            with h5py.File(sink, "w") as file:
                yield file, sink.check
            sink.check()
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Some network file systems refuse this for folders; the rename is done all the same.
            with contextlib.suppress(OSError):
                os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        reason = os.strerror(number) if number else _first_line(error)
        raise TraceError(f"{path} could not be written: {reason}.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_trace(
    path: Path,
    tables: Mapping[str, TableData],
    dictionaries: Mapping[str, Sequence[str]] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write a trace, replacing the one that stands at `path`.

    Parameters
    ----------
    path
        The file; it gets mode 0600.
    tables
        By name, the columns of each table. A column of strings is given as codes (integers) into
        its dictionary or as the strings themselves; a column that is left out is stored as "not
        available" in every row.
    dictionaries
        The strings that codes stand for, by dictionary name.
    attributes
        Root attributes besides ``format`` and ``version``.

    Raises
    ------
    TraceError
        If the file cannot be written or a table does not fit the schema.
    """
    strings = {name: Strings(values) for name, values in (dictionaries or {}).items()}
    with _written(path) as (file, check):
        file.attrs.update({**(attributes or {}), "format": FORMAT, "version": VERSION})
        for name, data in tables.items():
            _write_table(file, name, data, strings, check)
        _write_dictionaries(file, strings, strings, check)


def _write_dictionaries(
    file: h5py.File,
    dictionaries: Mapping[str, Strings],
    names: Iterable[str],
    check: Callable[[], None],
) -> None:
    group = file.require_group(_GROUP)
    for name in names:
        _string_dataset(group, name, dictionaries[name].list(), DICTIONARIES[name])
        check()


def replace_tables(path: Path, tables: Mapping[str, TableData]) -> None:
    """Add tables to a trace, or replace them; everything else stays as it is.

    Parameters
    ----------
    path
        A trace.
    tables
        As for `write_trace`. Strings are given as strings: codes are the trace's own.

    Raises
    ------
    TraceError
        If there is no readable trace at `path`, it cannot be written, or a table does not fit.
    """
    with open_file(path) as old, _written(path) as (file, check):
        touched = {
            column.dictionary
            for name in tables
            for column in TABLES[name].columns
            if column.dictionary
        }
        strings = {
            name: Strings(read_dictionary(old, name) if name in old[_GROUP] else ())
            for name in touched
        }
        before = {name: len(values) for name, values in strings.items()}
        file.attrs.update(dict(old.attrs))
        for name in old:
            if name not in tables and name != _GROUP:
                old.copy(name, file)
                check()
        for name, data in tables.items():
            _write_table(file, name, data, strings, check)
        group = file.create_group(_GROUP)
        grown = {
            name
            for name, values in strings.items()
            if len(values) != before[name] or name not in old[_GROUP]
        }
        for name in old[_GROUP]:
            if name not in grown:
                old.copy(f"{_GROUP}/{name}", group)
                check()
        _write_dictionaries(file, strings, sorted(grown), check)


# ------------------------------------------------------------------------------------- reading


def open_file(path: Path) -> h5py.File:
    """Open a trace for reading.

    Raises
    ------
    TraceError
        If there is no file, it is not HDF5, truncated, of another format or of a newer version.
    """
    try:
        size = path.stat().st_size
        if size and not h5py.is_hdf5(path):
            with path.open("rb") as probe:
                probe.read(1)
            raise TraceError(f"{path} is not an HDF5 file, so it is no trace of dasf-hpc.")
        if not size:
            raise TraceError(f"{path} is empty, so it is no trace of dasf-hpc.")
        # A trace is never changed in place: locks would only fail on file systems without them.
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        if error.errno:
            raise TraceError(f"{path} cannot be read: {os.strerror(error.errno)}.") from error
        if "truncated" in str(error):
            raise TraceError(f"{path} is truncated: its end is missing; merge again.") from error
        raise TraceError(f"{path} is damaged HDF5: {_first_line(error)}.") from error
    try:
        try:
            kind = file.attrs.get("format")
            version = file.attrs.get("version")
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise TraceError(f"{path} is damaged HDF5: {_first_line(error)}.") from error
        if kind != FORMAT:
            raise TraceError(f"{path} is HDF5 but no trace of dasf-hpc (its format is {kind!r}).")
        if not isinstance(version, (int, np.integer)) or version > VERSION:
            raise TraceError(
                f"{path} is a trace of format version {version}; this dasf-hpc reads up to "
                f"{VERSION}: open it with a newer dasf-hpc."
            )
    except TraceError:
        file.close()
        raise
    return file


def _first_line(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else str(error)
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


@contextlib.contextmanager
def _reading(file: h5py.File, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise TraceError(
            f"{file.filename} is damaged: {what} cannot be read ({_first_line(error)})."
        ) from error


def table_names(file: h5py.File) -> list[str]:
    """Give the names of the tables in a trace, those of the schema first and in its order."""
    with _reading(file, "the list of tables"):
        present = [n for n in file if n != _GROUP and isinstance(file[n], h5py.Group)]
    return [n for n in TABLES if n in present] + [n for n in present if n not in TABLES]


def column_names(file: h5py.File, table: str) -> list[str]:
    """Give the names of a table's columns, in the schema's order."""
    with _reading(file, f"table {table}"):
        present = list(file[table])
        order = str(file[table].attrs.get("columns", "")).split(",")
    return [c for c in order if c in present] + [c for c in present if c not in order]


def row_count(file: h5py.File, table: str) -> int:
    """Give the number of rows of a table."""
    with _reading(file, f"table {table}"):
        return int(file[table].attrs["rows"])


def read_column(file: h5py.File, table: str, column: str, rows: slice) -> NDArray[Any]:
    """Read some rows of a column as the numbers that are stored (for strings: codes).

    Raises
    ------
    TraceError
        If the file is damaged there.
    """
    with _reading(file, f"column {table}.{column}"):
        values: NDArray[Any] = file[table][column][rows]
        return values


def dictionary_of(file: h5py.File, table: str, column: str) -> str | None:
    """Give the name of the dictionary that a column's codes stand for, None for numbers."""
    with _reading(file, f"column {table}.{column}"):
        name = file[table][column].attrs.get("dictionary")
        return None if name is None else str(name)


def dictionary_size(file: h5py.File, name: str) -> int:
    """Give the number of strings in a dictionary."""
    with _reading(file, f"dictionary {name}"):
        return len(file[_GROUP][name])


def read_dictionary(
    file: h5py.File, name: str, start: int = 0, stop: int | None = None
) -> list[str]:
    """Read the strings of a dictionary at positions `start` to `stop`.

    Raises
    ------
    TraceError
        If the file is damaged there.
    """
    with _reading(file, f"dictionary {name}"):
        return [raw.decode() for raw in file[_GROUP][name][start:stop].tolist()]


def time_window(file: h5py.File, table: str, start: int | None, stop: int | None) -> slice:
    """Give the rows whose time lies in a window, reading only a few rows of the time column.

    Parameters
    ----------
    start, stop
        Trace time, ns; the window is ``start <= time < stop``, None means no limit. The time of a
        row with a start and a stop is its start.

    Raises
    ------
    TraceError
        If the table is not sorted by a time, or the file is damaged.
    """
    length = row_count(file, table)
    if start is None and stop is None:
        return slice(0, length)
    with _reading(file, f"table {table}"):
        order = file[table].attrs.get("order")
        if order is None:
            raise TraceError(f"table {table} is not sorted by time: it cannot be cut to a window.")
        times = file[table][order]
        first = 0 if start is None else _position(times, start, 0, length)
        last = length if stop is None else _position(times, stop, first, length)
    return slice(first, last)


def _position(times: h5py.Dataset, time: int, low: int, high: int) -> int:
    """Give the first row in [low, high] whose time is not below `time`, by halving."""
    while high - low > CHUNK:
        middle = (low + high) // 2
        if times[middle] < time:
            low = middle + 1
        else:
            high = middle
    return low + int(np.searchsorted(times[low:high], time))
