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
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dasf_hpc.errors import TraceFileError
from dasf_hpc.trace import chunks
from dasf_hpc.trace.schema import (
    CHUNK,
    DICTIONARIES,
    FORMAT,
    NUL,
    TABLES,
    VERSION,
    Column,
    Table,
)

#: Columns smaller than this are stored plain: the index of a compressed one takes 2 kB (measured).
SMALL = 2048

#: Strings are stored with fixed length up to this many bytes of UTF-8.
LONGEST_FIXED = 512

#: Bytes of chunks that HDF5 keeps of each column while a file is open; 8 MiB by itself (2.0), which
#: of all columns is more than a merge needs for all else. Columns are read in order, each row once.
CACHE = 1 << 20

_GROUP = "dictionaries"

#: A column on its way into a trace: numbers, or the strings themselves (None: no string).
ColumnData = NDArray[Any] | Sequence[Any]
TableData = Mapping[str, ColumnData]


class TraceError(TraceFileError):
    """A trace that cannot be read or written; the message is one sentence."""


def storable(string: str) -> str:
    """Replace what HDF5 cannot hold, before codes are given, so that strings stay distinct."""
    if string.isascii() and "\0" not in string:
        return string
    return string.replace("\0", NUL).encode("utf-8", "replace").decode()


class Strings:
    """A dictionary of strings under construction: gives each distinct string a code, from 0."""

    def __init__(self, strings: Iterable[str] = ()) -> None:
        """Begin with some strings, which must be distinct: their positions are their codes."""
        first = [storable(s) for s in strings]
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
            found = self._codes.setdefault(storable(string), len(self._codes))
        return found

    def codes(self, strings: Iterable[str | None]) -> NDArray[np.int32]:
        """Give the codes of many strings."""
        code = self.code
        return np.fromiter((code(s) for s in strings), np.int32)

    def list(self) -> list[str]:
        """Give the strings; the position is the code."""
        return list(self._codes)


def _attribute(place: h5py.Group | h5py.Dataset, name: str, value: Any) -> None:
    """Set an attribute; text has a fixed length.

    HDF5 (2.0) keeps text of variable length in a heap, and reads a damaged one for ever.
    """
    if isinstance(value, str):
        encoded = value.encode("utf-8", "replace").replace(b"\0", NUL.encode())
        value = np.array(encoded, h5py.string_dtype("utf-8", max(1, len(encoded))))
    place.attrs[name] = value


def _root_attributes(file: h5py.File, attributes: Mapping[str, Any]) -> None:
    for name, value in {**attributes, "format": FORMAT, "version": VERSION}.items():
        _attribute(file, name, value)


def _text(value: Any) -> Any:
    """Give an attribute's text as text, other values as they are."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def attributes_of(file: h5py.File) -> dict[str, Any]:
    """Give the attributes of a trace's root."""
    with _reading(file, "an attribute"):
        return {
            name: _text(value.item() if isinstance(value, np.generic) else value)
            for name, value in file.attrs.items()
        }


# ------------------------------------------------------------------------------------- writing


def _string_dataset(group: h5py.Group, name: str, strings: Sequence[str], meaning: str) -> None:
    encoded = [s.encode() for s in strings]
    longest = max((len(e) for e in encoded), default=1) or 1
    dtype = h5py.string_dtype("utf-8", None if longest > LONGEST_FIXED else longest)
    data = np.array(encoded, dtype)
    options: dict[str, Any] = {}
    if longest <= LONGEST_FIXED and len(strings) * longest >= SMALL:
        rows = max(1, min(len(strings), chunks.string_rows(longest)))
        options = {
            "chunks": (rows,),
            "compression": "gzip",
            "compression_opts": chunks.STRING_LEVEL,
            "fletcher32": True,
        }
    dataset = group.create_dataset(name, shape=(len(strings),), dtype=dtype, **options)
    if len(strings):
        dataset[:] = data
    _attribute(dataset, "meaning", meaning)


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
    _describe(dataset, column)


def _describe(dataset: h5py.Dataset, column: Column) -> None:
    _attribute(dataset, "unit", column.unit)
    _attribute(dataset, "meaning", column.meaning)
    if column.dictionary:
        _attribute(dataset, "dictionary", column.dictionary)
    if column.refers:
        _attribute(dataset, "refers", column.refers)


def _missing(column: Column) -> Any:
    return np.nan if column.dtype.startswith("float") else -1


def _numbers(
    table: str, column: Column, data: ColumnData, dictionaries: dict[str, Strings]
) -> NDArray[Any]:
    """Give a column as the numbers to store; strings are put into their dictionary."""
    strings = dictionaries.setdefault(column.dictionary, Strings()) if column.dictionary else None
    if not isinstance(data, np.ndarray) and any(isinstance(value, str) for value in data):
        data = np.array(data, object)  # an array of text loses a NUL at a string's end
    array = np.asarray(data)
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


def _table_group(file: h5py.File, table: Table, rows: int) -> h5py.Group:
    group = file.create_group(table.name)
    _attribute(group, "meaning", table.meaning)
    group.attrs["rows"] = rows
    _attribute(group, "columns", ",".join(c.name for c in table.columns))
    if table.order:
        _attribute(group, "order", table.order)
    return group


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
    group = _table_group(file, table, length)
    for column in table.derived:
        if column.dictionary:
            dictionaries.setdefault(column.dictionary, Strings())
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
            with h5py.File(sink, "w", rdcc_nbytes=CACHE) as file:
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


class ColumnWriter:
    """Takes the pieces of a column in the order of their rows.

    Parameters
    ----------
    group, name
        Where the column goes.
    column
        Its description, None for a dictionary's strings.
    dtype
        Type of the stored values.
    submit
        Has a chunk compressed, by a function and its arguments, and gives the future of it.
    """

    def __init__(
        self,
        group: h5py.Group,
        name: str,
        column: Column | None,
        dtype: Any,
        submit: Callable[..., Any],
    ) -> None:
        self._group, self._name, self._column = group, name, column
        self._dtype = dtype
        self._submit = submit
        self._length = h5py.check_string_dtype(dtype).length if column is None else 0
        self._rows = CHUNK if column else chunks.string_rows(self._length)
        self._loose: list[NDArray[Any]] = []
        self._loose_rows = 0
        self._position = 0
        self._glued: list[tuple[int, Any]] = []
        self._dataset: h5py.Dataset | None = None

    def put(self, piece: chunks.Piece) -> None:
        """Append a piece."""
        self._append(piece.head)
        for chunk in piece.chunks:
            self._write(chunk)
        if piece.tail is not None:
            self._append(piece.tail)

    def _append(self, rows: NDArray[Any]) -> None:
        while len(rows):
            room = self._rows - self._loose_rows
            part, rows = rows[:room], rows[room:]
            # a copy: the piece's whole block would stay in memory for the sake of these rows
            self._loose.append(part.copy())
            self._loose_rows += len(part)
            if self._loose_rows == self._rows:
                self._glued.append((self._position, self._compress(self._together())))
                self._position += self._rows
                self._settle(2)

    def _together(self) -> NDArray[Any]:
        rows = np.concatenate(self._loose)
        self._loose, self._loose_rows = [], 0
        return rows

    def _compress(self, rows: NDArray[Any]) -> Any:
        if self._column is None:
            return self._submit(chunks.compress_strings, rows)
        return self._submit(chunks.compress, rows, self._column.differences)

    def _settle(self, keep: int) -> None:
        while len(self._glued) > keep:
            position, chunk = self._glued.pop(0)
            self._place(position, chunk.result())

    def _write(self, chunk: bytes) -> None:
        assert not self._loose
        self._place(self._position, chunk)
        self._position += self._rows

    def _place(self, position: int, chunk: bytes) -> None:
        dataset = self._opened()
        if dataset.shape[0] < position + self._rows:
            dataset.resize((position + self._rows,))
        dataset.id.write_direct_chunk((position,), chunk)

    def _opened(self) -> h5py.Dataset:
        if self._dataset is None:
            self._dataset = self._group.create_dataset(
                self._name,
                (0,),
                self._dtype,
                maxshape=(None,),
                chunks=(self._rows,),
                shuffle=self._column is not None,
                compression="gzip",
                compression_opts=chunks.LEVEL if self._column else chunks.STRING_LEVEL,
                fletcher32=True,
            )
        return self._dataset

    def finish(self) -> int:
        """Write what is left and give the number of rows."""
        left = self._loose_rows
        total = self._position + left
        rows = self._together() if left else np.empty(0, self._plain())
        if self._dataset is None and not self._glued and rows.nbytes < SMALL:
            if self._column is not None and self._column.differences:
                rows = chunks.differences_of(rows)
            self._dataset = self._group.create_dataset(self._name, (total,), self._dtype)
            if total:
                self._dataset[:] = rows.astype(self._dtype) if self._column is None else rows
        elif left:
            padded = np.zeros(self._rows, rows.dtype)
            padded[:left] = rows
            self._glued.append((self._position, self._compress(padded)))
        self._settle(0)
        dataset = self._opened()
        if dataset.shape[0] != total:
            dataset.resize((total,))
        if self._column is not None:
            _describe(dataset, self._column)
            if self._column.differences:
                dataset.attrs["differences"] = CHUNK
            if self._column.after:
                _attribute(dataset, "after", self._column.after)
            if self._column.resolution > 1:
                dataset.attrs["resolution"] = self._column.resolution
        return total

    def _plain(self) -> Any:
        return f"S{self._length}" if self._column is None else self._dtype


class LongStringsWriter:
    """Takes strings of any length, for a dictionary that holds one longer than `LONGEST_FIXED`."""

    def __init__(self, group: h5py.Group, name: str) -> None:
        self._dataset = group.create_dataset(
            name, (0,), h5py.string_dtype("utf-8"), maxshape=(None,), chunks=(1 << 12,)
        )

    def put(self, strings: Sequence[bytes]) -> None:
        """Append strings."""
        if strings:
            before = self._dataset.shape[0]
            self._dataset.resize((before + len(strings),))
            self._dataset[before:] = np.array(strings, object)

    def finish(self) -> int:
        """Give the number of strings."""
        count: int = self._dataset.shape[0]
        return count


class TableWriter:
    """Takes a table by pieces, a column each, in the order of their rows."""

    def __init__(
        self, file: h5py.File, name: str, submit: Callable[..., Any], in_blocks: bool
    ) -> None:
        table = TABLES[name]
        self._group = _table_group(file, table, 0)
        if in_blocks:
            self._group.attrs["blocks"] = 1
        self._columns = {
            column.name: ColumnWriter(self._group, column.name, column, column.dtype, submit)
            for column in table.columns
        }

    def put(self, pieces: Mapping[str, chunks.Piece]) -> None:
        """Append rows."""
        for name, writer in self._columns.items():
            writer.put(pieces[name])

    def finish(self) -> int:
        """Write what is left and give the number of rows."""
        (rows,) = {writer.finish() for writer in self._columns.values()}
        self._group.attrs["rows"] = rows
        return rows


class TraceWriter:
    """A trace that is being written, piece by piece; see `writing`."""

    def __init__(
        self, file: h5py.File, check: Callable[[], None], submit: Callable[..., Any]
    ) -> None:
        self._file, self.check, self._submit = file, check, submit

    def table(self, name: str, *, in_blocks: bool) -> TableWriter:
        """Begin a table that is given by pieces."""
        return TableWriter(self._file, name, self._submit, in_blocks)

    def copy(self, old: h5py.File, without: Container[str]) -> None:
        """Take over a trace's other tables, and the strings of its keys."""
        with _reading(old, "a table"):
            for name in old:
                if name not in without and name != _GROUP:
                    old.copy(name, self._file)
                    self.check()
            if _GROUP in old and "keys" in old[_GROUP]:
                old.copy(f"{_GROUP}/keys", self._file.require_group(_GROUP))
                self.check()

    def stream(self, name: str, parts: Iterable[Mapping[str, NDArray[Any]]]) -> int:
        """Write a table that comes in parts, in the order of its rows; gives their number.

        Strings come as codes. Columns that no part has are stored as "not available".
        """
        columns, table = TABLES[name].columns, self.table(name, in_blocks=False)
        for part in parts:
            length = len(next(iter(part.values())))
            plain = {
                c.name: part.get(c.name, np.full(length, _missing(c), c.dtype)) for c in columns
            }
            table.put(
                {
                    c.name: chunks.Piece(
                        chunks.encode(plain[c.name], c, plain[c.after] if c.after else None)
                    )
                    for c in columns
                }
            )
            self.check()
        return table.finish()

    def strings(self, name: str, longest: int) -> ColumnWriter | LongStringsWriter:
        """Begin a dictionary that is given by pieces; its longest string has so many bytes."""
        group = self._file.require_group(_GROUP)
        if longest > LONGEST_FIXED:
            return LongStringsWriter(group, name)
        dtype = h5py.string_dtype("utf-8", max(1, longest))
        return ColumnWriter(group, name, None, dtype, self._submit)

    def rows(self, name: str) -> int:
        """Give the number of rows of a table that is finished."""
        return row_count(self._file, name)

    def read(self, table: str, column: str, rows: slice) -> NDArray[Any]:
        """Read back some rows of a table that is finished, as numbers."""
        return read_column(self._file, table, column, rows)

    def whole(
        self,
        tables: Mapping[str, TableData],
        dictionaries: dict[str, Strings],
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        """Write whole tables, and the dictionaries but those of which only the size is given."""
        known = {name: _Sized(size) for name, size in (sizes or {}).items()}
        for name, data in tables.items():
            _write_table(self._file, name, data, {**dictionaries, **known}, self.check)
        _write_dictionaries(self._file, dictionaries, dictionaries, self.check)
        for name in known:
            _attribute(self._file[_GROUP][name], "meaning", DICTIONARIES[name])


class _Sized(Strings):
    """A dictionary of which only the size is known: the columns hold codes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def __len__(self) -> int:
        return self._size


@contextlib.contextmanager
def writing(
    path: Path, attributes: Mapping[str, Any], submit: Callable[..., Any]
) -> Iterator[TraceWriter]:
    """Give the writer of a trace that replaces the one at `path`, at the end and in one step.

    Raises
    ------
    TraceError
        If the file cannot be written.
    """
    with _written(path) as (file, check):
        _root_attributes(file, attributes)
        yield TraceWriter(file, check, submit)


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
        _root_attributes(file, attributes or {})
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
            for column in (*TABLES[name].columns, *TABLES[name].derived)
            if column.dictionary
        }
        strings = {
            name: Strings(read_dictionary(old, name) if name in old[_GROUP] else ())
            for name in touched
        }
        before = {name: len(values) for name, values in strings.items()}
        _root_attributes(file, attributes_of(old))
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


#: Variable of the environment that HDF5 follows rather than its caller.
_LOCKING = "HDF5_USE_FILE_LOCKING"


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
        file = _open(path)
    except OSError as error:
        if error.errno:
            asked = os.environ.get(_LOCKING)
            if asked and "unable to lock file" in str(error):
                raise TraceError(
                    f"{path} cannot be read: HDF5 gets no lock on it ({os.strerror(error.errno)}), "
                    f"which {_LOCKING}={asked} insists on; without that variable it needs none."
                ) from error
            raise TraceError(f"{path} cannot be read: {os.strerror(error.errno)}.") from error
        if "truncated" in str(error):
            raise TraceError(f"{path} is truncated: its end is missing; merge again.") from error
        raise TraceError(f"{path} is damaged HDF5: {_first_line(error)}.") from error
    try:
        try:
            kind = _text(file.attrs.get("format"))
            version = file.attrs.get("version")
        except _DAMAGE as error:
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


def _open(path: Path) -> h5py.File:
    # A trace is never changed in place: locks would only fail on file systems without them.
    # Where this process has it open already, its way of locking holds for both.
    ways: tuple[bool | None, ...] = (False, None, True)
    for locking in ways:
        try:
            return h5py.File(path, "r", locking=locking, rdcc_nbytes=CACHE)
        except OSError as error:
            if "locking" not in str(error) or locking is ways[-1]:
                raise
    raise AssertionError("the last way opens it or raises")


def _first_line(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else str(error)
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


#: What h5py raises over a damaged file, seen with thousands of them.
_DAMAGE = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
    IndexError,
    OverflowError,
    MemoryError,
)


@contextlib.contextmanager
def _reading(file: h5py.File, what: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
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
        order = str(_text(file[table].attrs.get("columns", ""))).split(",")
    return [c for c in order if c in present] + [c for c in present if c not in order]


def later_column(file: h5py.File, table: str, column: str) -> Column | None:
    """Give a column of the format that a table was written without, by an earlier dasf-hpc.

    Reading one gives what stands for "not available". One that the table was written with and does
    not hold is no such column: then the file is damaged.
    """
    known = {one.name: one for one in TABLES[table].columns} if table in TABLES else {}
    if column not in known:
        return None
    with _reading(file, f"table {table}"):
        written = str(_text(file[table].attrs.get("columns", ""))).split(",")
        return None if column in written or column in file[table] else known[column]


def row_count(file: h5py.File, table: str) -> int:
    """Give the number of rows of a table."""
    with _reading(file, f"table {table}"):
        return int(file[table].attrs["rows"])


def read_column(file: h5py.File, table: str, column: str, rows: slice) -> NDArray[Any]:
    """Read some rows of a column, as numbers (for strings: codes).

    Raises
    ------
    TraceError
        If the file is damaged there.
    """
    if (later := later_column(file, table, column)) is not None:
        start, stop, _ = rows.indices(row_count(file, table))
        none = np.nan if later.dtype.startswith("float") else -1
        return np.full(max(0, stop - start), none, later.dtype)
    with _reading(file, f"column {table}.{column}"):
        dataset = file[table][column]
        if rows.stop is not None and rows.stop > len(dataset):
            raise ValueError(f"it has {len(dataset)} rows and should have {rows.stop}")
        if "differences" not in dataset.attrs and "after" not in dataset.attrs:
            values: NDArray[Any] = dataset[rows]
            return values
        start, stop, _ = rows.indices(len(dataset))
        stop = max(start, stop)
        differences = _whole(dataset.attrs.get("differences", 0))
        first = start // differences * differences if differences else start
        values = chunks.decode(dataset[first:stop], first, differences, None)[start - first :]
        after = _text(dataset.attrs.get("after"))
        if after is not None:
            other = file[table][str(after)]
            if "after" in other.attrs or len(other) != len(dataset):
                raise ValueError(f"it cannot be relative to {after}")
            reference = read_column(file, table, str(after), slice(start, stop))
            values = chunks.decode(values, 0, 0, reference)
        return values


def _whole(value: Any) -> int:
    """Give a number of rows that an attribute names."""
    if not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{value!r} is not a number of rows")
    return int(value)


def dictionary_of(file: h5py.File, table: str, column: str) -> str | None:
    """Give the name of the dictionary that a column's codes stand for, None for numbers."""
    with _reading(file, f"column {table}.{column}"):
        name = _text(file[table][column].attrs.get("dictionary"))
        return None if name is None else str(name)


def dictionary_names(file: h5py.File) -> list[str]:
    """Give the names of a trace's dictionaries."""
    with _reading(file, "the list of dictionaries"):
        return list(file[_GROUP]) if _GROUP in file else []


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


def has_column(file: h5py.File, table: str, column: str) -> bool:
    """Say whether a trace holds a column."""
    with _reading(file, f"table {table}"):
        return table in file and column in file[table]


def in_blocks(file: h5py.File, table: str) -> bool:
    """Say whether the rows of a table lie in blocks of time, and are not sorted by it."""
    with _reading(file, f"table {table}"):
        return bool(file[table].attrs.get("blocks", 0))


def block_rows(
    file: h5py.File, table: str, start: int | None = None, stop: int | None = None
) -> slice:
    """Give the rows of the blocks that a window of time needs.

    Raises
    ------
    TraceError
        If the file is damaged.
    """
    length = row_count(file, table)
    with _reading(file, "table blocks"):
        times = file["blocks"]["time"][:]
        firsts = block_starts(file, table)
        if len(times) != len(firsts) or not len(times):
            raise ValueError("its columns differ in length")
        # the first block holds what is earlier than it says, too
        begin = 0 if start is None else int(np.searchsorted(times[1:], start, "right"))
        end = len(times) if stop is None else max(1, int(np.searchsorted(times, stop, "left")))
        first = int(firsts[begin]) if begin < len(times) else length
        last = int(firsts[end]) if end < len(times) else length
    return slice(first, max(first, last))


def block_starts(file: h5py.File, table: str) -> NDArray[Any]:
    """Give the first row of each block of a table."""
    with _reading(file, "table blocks"):
        starts: NDArray[Any] = file["blocks"][table][:]
        rows = row_count(file, table)
        if starts.dtype.kind != "i" or (np.diff(starts) < 0).any():
            raise ValueError("its rows are not in order")
        if len(starts) and (starts[0] != 0 or starts[-1] > rows):
            raise ValueError("it names rows that are not there")
        return starts


def time_window(file: h5py.File, table: str, start: int | None, stop: int | None) -> slice:
    """Give the rows whose time lies in a window, reading only a few rows of the time column.

    Parameters
    ----------
    file, table
        A table whose rows are sorted by time.
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
        order = _text(file[table].attrs.get("order"))
        if order is None or order not in file[table]:
            raise TraceError(f"table {table} is not sorted by time: it cannot be cut to a window.")
        times = file[table][order]
        first = 0 if start is None else _position(times, start, 0, length)
        last = length if stop is None else _position(times, stop, first, length)
    return slice(first, last)


def _position(times: h5py.Dataset, time: int, low: int, high: int) -> int:
    """Give the first row in [low, high] whose time is not below `time`, by halving.

    Where the times are stored as differences only the first of each chunk is one: those are halved.
    """
    step = _whole(times.attrs.get("differences", 0)) or 1
    first, last = low // step, -(-high // step)
    while (last - first) * step > CHUNK:
        middle = (first + last) // 2
        if times[middle * step] < time:
            first = middle + (step == 1)
        else:
            last = middle
    start = first * step
    values = times[start : min(high, last * step)]
    if step > 1:
        values = chunks.decode(values, start, step, None)
    return max(low, start + int(np.searchsorted(values, time)))
