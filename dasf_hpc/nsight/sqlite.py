"""Nsight, an exported SQLite as columns of numbers and strings, whichever tables it has."""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import adbc_driver_sqlite
import numpy as np
import numpy.typing as npt
import pyarrow
from adbc_driver_manager import AdbcConnection, AdbcStatement
from adbc_driver_manager import Error as AdbcError
from adbc_driver_sqlite import StatementOptions

from dasf_hpc.nsight.diagnostics import redacted
from dasf_hpc.nsight.errors import ReportDamaged, ReportMissing
from dasf_hpc.nsight.export import open_journal

NONE = -1
"""What stands in an integer column where the report says nothing."""

_BUSY_MS = 10_000
"""How long a part of an export is waited for that another reader has locked."""

_ROWS_AT_ONCE = 1 << 16
"""Rows that are read at once: their columns fit the cache of most machines."""

FAR = 2**61
"""A number further from 0 is no time, ns: it is 73 years."""

_TIMES = frozenset({"start", "stop", "payload"})
"""Columns that stay 64 bits wide; others take 32 where their numbers fit."""

Integers = npt.NDArray[Any]
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Names:
    """A column of strings, each distinct one kept once.

    Attributes
    ----------
    codes
        Index into `categories` of each row, -1 for none.
    categories
        The distinct strings, an object array.
    """

    codes: Codes
    categories: npt.NDArray[np.object_]

    def __len__(self) -> int:
        """Give the number of rows."""
        return len(self.codes)

    def __getitem__(self, rows: npt.NDArray[np.integer[Any] | np.bool_] | slice) -> Names:
        """Give the column of some of the rows."""
        return Names(self.codes[rows], self.categories)

    def values(self) -> npt.NDArray[np.object_]:
        """Give the string of each row, "" for none."""
        return np.append(self.categories, "")[self.codes]

    def equal(self, name: str) -> npt.NDArray[np.bool_]:
        """Say of each row whether it holds this string."""
        return np.isin(self.codes, np.flatnonzero(self.categories == name))


def _uri(sqlite: Path) -> str:
    """Name an export, which nobody changes: read without locks, which some file systems lack.

    One that has a journal beside it is not whole without that, and is read with locks.
    """
    how = "mode=ro" if open_journal(sqlite) else "mode=ro&immutable=1"
    return f"{sqlite.absolute().as_uri()}?{how}"


def _connect(sqlite: Path) -> sqlite3.Connection:
    """Open an export."""
    connection = sqlite3.connect(_uri(sqlite), uri=True)
    # one name that is no UTF-8 must not cost the report
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    return connection


class Export:
    """An open export: which tables and columns it has, and how to read them."""

    def __init__(self, connection: sqlite3.Connection, sqlite: Path) -> None:
        self.connection, self.sqlite = connection, sqlite
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
        #: by table, its columns and whether each may be NULL
        self.columns: dict[str, dict[str, bool]] = {
            table: {
                row[1]: not row[3]
                for row in connection.execute(f"PRAGMA table_info({quoted(table)})")
            }
            for table in tables
        }
        if "StringIds" not in self.columns:
            raise ValueError("it has no table StringIds")

    @classmethod
    @contextlib.contextmanager
    def opened(cls, sqlite: Path) -> Iterator[Self]:
        """Open an export; whatever is wrong with it becomes one error.

        Raises
        ------
        NsightError
            If the file is missing, no export, or damaged, also where that shows while it is read.
        """
        try:
            with sqlite.open("rb"):
                pass
        except OSError as error:
            raise ReportMissing(f"{sqlite} cannot be read ({error.strerror or error})") from error
        try:
            with contextlib.closing(_connect(sqlite)) as connection:
                yield cls(connection, sqlite)
        except (sqlite3.Error, ValueError, TypeError, OverflowError, IndexError) as error:
            raise ReportDamaged(
                f"{sqlite} is no whole Nsight Systems export ({error}); export the report again"
            ) from error

    def enum(self, table: str) -> dict[int, str]:
        """Read what the numbers of a column mean."""
        if not {"id", "name"} <= self.columns.get(table, {}).keys():
            return {}
        rows = self.connection.execute(f"SELECT id, name FROM {table}")
        return {int(number): redacted(str(name)).lower() for number, name in rows if name}

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Give all that a query finds."""
        return self.connection.execute(sql).fetchall()

    def numbers(
        self,
        table: str,
        columns: Mapping[str, tuple[str, int]],
        extra: Mapping[str, str] | None = None,
        where: str = "1",
        global_ids: bool = True,
    ) -> dict[str, Integers]:
        """Read integer columns in order of rowid, a stretch of rows at a time.

        Arrow's driver of SQLite fills the columns in C: measured at 0.45 s of CPU for 9 columns of
        1 million rows, where ``group_concat`` and parsing its digits took 0.90 s and rows as
        tuples 1.46 s. Each core reads a part of a large table, since the driver works without
        Python's lock.

        Parameters
        ----------
        table
            Its name; without such a table the columns are empty.
        columns
            Name here → its name in the table and what stands for NULL or a missing column.
        extra
            Name here → SQL expression that is never NULL.
        where
            Which rows, SQL.
        global_ids
            Whether ``pid`` and ``tid`` are to be unpacked from nsys's global ids.
        """
        present = self.columns.get(table, {})
        expressions = {
            name: _never_null(column, present.get(column), default)
            for name, (column, default) in columns.items()
        } | dict(extra or {})
        if not present:
            return {name: np.empty(0, np.int64) for name in expressions}
        # what two columns are made of is read once
        place = {sql: number for number, sql in enumerate(dict.fromkeys(expressions.values()))}
        chosen = ", ".join(f"{sql} AS c{number}" for sql, number in place.items())
        query = (
            f"SELECT {chosen} FROM {quoted(table)} "
            "WHERE rowid > {} AND rowid <= {} AND "
            f"({where}) ORDER BY rowid"
        )
        bounds = self.stretches(table)
        # no row takes fewer than 4 bytes of the file
        files = [self.sqlite, *filter(None, [open_journal(self.sqlite)])]
        most = sum(file.stat().st_size for file in files) // 4 + 1
        rooms = [min(end - last, most) for last, end in bounds]
        filled = _Filled(expressions, sum(rooms))

        def stretch(number: int) -> int:
            begin = row = sum(rooms[:number])
            for values in _integers(self.sqlite, query.format(*bounds[number]), table):
                for name, sql in expressions.items():
                    own = values[place[sql]]
                    if global_ids and name in ("pid", "tid"):
                        # pid in bits 24 to 47, tid in bits 0 to 23; above is the machine
                        shift = 24 if name == "pid" else 0
                        own = np.where(own == NONE, NONE, (own >> shift) & 0xFFFFFF)
                    elif name in ("start", "stop"):
                        own = np.where((own > FAR) | (own < -FAR), NONE, own)
                    filled.put(name, row, own)
                row += len(values[0])
            return row - begin

        if len(bounds) == 1:
            counts = [stretch(0)]
        else:
            with ThreadPoolExecutor(len(bounds)) as pool:
                counts = list(pool.map(stretch, range(len(bounds))))
        return filled.columns(rooms, counts)

    def page(self, sql: str, what: str) -> list[Integers]:
        """Read what a query gives, integers all, which must fit into memory.

        Parameters
        ----------
        sql
            A query of which nothing is NULL.
        what
            What it reads, for a sentence.
        """
        parts = list(_integers(self.sqlite, sql, what))
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def stretches(self, table: str) -> list[tuple[int, int]]:
        """Divide a table's rowids among the cores: after which and up to which each reads."""
        name = quoted(table)
        first, last = self.connection.execute(
            f"SELECT (SELECT min(rowid) FROM {name}), (SELECT max(rowid) FROM {name})"
        ).fetchone()
        if first is None:
            return [(0, 0)]
        cores = len(os.sched_getaffinity(0)) if last - first >= _ROWS_AT_ONCE else 1
        cuts = [first - 1 + (last - first + 1) * n // cores for n in range(cores + 1)]
        cuts[0] = max(cuts[0], -(2**63))
        return list(itertools.pairwise(cuts))

    def first_of(self, table: str, columns: list[str]) -> str:
        """Give the SQL of the first of these columns that holds something, -1 for none."""
        present = [column for column in columns if column in self.columns.get(table, ())]
        return f"coalesce({', '.join([*present, str(NONE)])})" if present else str(NONE)

    def inline_texts(self, table: str, where: str) -> dict[int, str]:
        """Read the texts that stand in the rows themselves: place among the rows → text."""
        if "text" not in self.columns.get(table, ()):
            return {}
        has_text = f"SELECT 1 FROM {table} WHERE text IS NOT NULL AND ({where}) LIMIT 1"
        if self.connection.execute(has_text).fetchone() is None:
            return {}
        rows = self.connection.execute(f"SELECT text FROM {table} WHERE {where} ORDER BY rowid")
        return {place: _text(text) for place, (text,) in enumerate(rows) if text is not None}

    def strings(self, ids: Integers, inline: Mapping[int, str] | None = None) -> Names:
        """Look up the strings of these ids; only strings that an event names are kept."""
        distinct, index = distinct_values(ids)
        wanted = set(distinct.tolist()) - {NONE}
        found: dict[int, str] = {}
        if wanted:
            for identifier, value in self.connection.execute("SELECT id, value FROM StringIds"):
                if identifier in wanted:
                    found[identifier] = _text(value)
        names = [found.get(identifier, "") for identifier in distinct.tolist()]
        if inline:
            place_of: dict[str, int] = {}
            index = index.copy()
            for row, text in inline.items():
                place = place_of.setdefault(text, len(names) + len(place_of))
                index[row] = place
            names += place_of
        return encode(names, index)

    def named_value(self, table: str, name: str) -> str | None:
        """Read the one row of this name: the others may hold the user's environment."""
        if not {"name", "value"} <= self.columns.get(table, {}).keys():
            return None
        query = f"SELECT value FROM {table} WHERE name = ? LIMIT 1"
        row = self.connection.execute(query, (name,)).fetchone()
        return str(row[0]) if row is not None and row[0] else None

    def single_number(self, table: str, column: str) -> int | None:
        """Read a number from a table of one row."""
        if column not in self.columns.get(table, ()):
            return None
        row = self.connection.execute(f"SELECT {column} FROM {table} LIMIT 1").fetchone()
        return int(row[0]) if row is not None and row[0] is not None else None


def _text(value: object) -> str:
    """Give what stands where a text should, as one."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class _Filled:
    """Columns that several threads fill, each its stretch; room that is never used costs nothing.

    Parameters
    ----------
    names
        Of the columns. All but times take 32 bits a row where these hold the numbers: ten million
        rows are held by the column.
    room
        How many rows there may be.
    """

    def __init__(self, names: Iterable[str], room: int) -> None:
        self._columns = {n: np.empty(room, np.int64 if n in _TIMES else np.int32) for n in names}
        self._lock = threading.Lock()

    def put(self, name: str, first: int, values: Integers) -> None:
        """Fill rows from `first` on."""
        limits = np.iinfo(np.int32)
        with self._lock:
            column = self._columns[name]
            narrow = column.dtype != np.int64 and len(values) > 0
            if narrow and (values.min() < limits.min or values.max() > limits.max):
                column = self._columns[name] = column.astype(np.int64)
            column[first : first + len(values)] = values

    def columns(self, rooms: Sequence[int], counts: Sequence[int]) -> dict[str, Integers]:
        """Give the columns, stretches of `counts` rows that lie `rooms` apart put together."""
        starts = [sum(rooms[:number]) for number in range(len(rooms))]
        for column in self._columns.values():
            row = 0
            for start, count in zip(starts, counts, strict=True):
                if start != row:
                    column[row : row + count] = column[start : start + count]
                row += count
        return {name: column[: sum(counts)] for name, column in self._columns.items()}


def _never_null(column: str, nullable: bool | None, default: int) -> str:
    """Give the SQL of a column that has the default for NULL, or where there is none (None)."""
    if nullable is None:
        return str(default)
    return f"coalesce({quoted(column)}, {default})" if nullable else quoted(column)


def distinct_values(ids: Integers) -> tuple[Integers, npt.NDArray[np.intp]]:
    """Give the distinct ids, sorted, and the position of each row's among them."""
    low, high = (int(ids.min()), int(ids.max())) if len(ids) else (0, -1)
    if high - low > 4 * len(ids):
        return np.unique(ids, return_inverse=True)
    # ids of strings and processes are small: 8 times as fast as sorting them
    seen = np.zeros(high - low + 1, bool)
    seen[ids - low] = True
    return np.flatnonzero(seen) + low, (np.cumsum(seen, dtype=np.int32) - 1)[ids - low]


def _integers(sqlite: Path, query: str, what: str) -> Iterator[list[Integers]]:
    """Read what a query gives, so many rows at once; anything but integers is an error."""
    try:
        with (
            adbc_driver_sqlite.connect(_uri(sqlite)) as database,
            AdbcConnection(database) as connection,
            AdbcStatement(connection) as statement,
        ):
            # of several that find a log beside the export, one makes its index and the others wait
            statement.set_sql_query(f"PRAGMA busy_timeout = {_BUSY_MS}")
            statement.execute_update()
            statement.set_options(**{StatementOptions.BATCH_ROWS.value: str(_ROWS_AT_ONCE)})
            statement.set_sql_query(query)
            stream, _ = statement.execute_query()
            for batch in pyarrow.RecordBatchReader._import_from_c(stream.address):
                columns = batch.columns
                if any(c.type != pyarrow.int64() or c.null_count for c in columns):
                    raise ValueError(f"{what} holds something else than integers")
                yield [column.to_numpy() for column in columns]
    except (AdbcError, pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{what} cannot be read: {error}") from error


def encode(names: Iterable[str], index: npt.NDArray[np.intp]) -> Names:
    """Make a column from the strings that `index` points to; "" becomes none."""
    code_of: dict[str, int] = {}
    codes = [code_of.setdefault(name, len(code_of)) if name else NONE for name in names]
    categories = np.empty(len(code_of), object)
    categories[:] = list(code_of)
    return Names(np.array(codes, np.int32)[index], categories)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
