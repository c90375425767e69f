"""Trace, opened: its tables as pandas DataFrames, read when and as far as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.trace import store
from dasf_hpc.trace.align import bounds_between
from dasf_hpc.trace.schema import TABLES
from dasf_hpc.trace.store import TraceError

#: Strings between two that are wanted which are skipped, not read: about two chunks of them.
FAR = 10_000

#: Name of the trace in a run's directory.
TRACE_NAME = "trace.h5"
#: Name of the folder of journals in it.
JOURNALS = "journals"


def open_trace(path: str | Path) -> Trace:
    """Open a merged trace.

    Parameters
    ----------
    path
        A trace, or the directory of a run that holds one (``trace.h5``).

    Returns
    -------
    Trace

    Raises
    ------
    TraceError
        If there is no trace there, or it cannot be read.

    Examples
    --------
    >>> with open_trace("runs/2026-11-23T15-04-05-job-3f2a") as trace:  # doctest: +SKIP
    ...     trace.tasks.groupby("prefix", observed=True)["nbytes"].sum()
    """
    path = Path(path)
    if path.is_dir():
        journals = (path / JOURNALS).is_dir() or any(path.glob("*.journal"))
        if not journals and not (path / TRACE_NAME).exists():
            raise TraceError(
                f"{path} is not the directory of a run: it holds neither {TRACE_NAME} nor journals."
            )
        if not (path / TRACE_NAME).exists():
            raise TraceError(
                f"{path} holds no {TRACE_NAME}: merge its journals with `dasf-hpc merge {path}`."
            )
        path = path / TRACE_NAME
    return Trace(path)


class Trace:
    """A merged trace. Every table of the schema is an attribute: a DataFrame, read when first used.

    Columns of strings are categorical. Times are ns of trace time (int64). A table that the file
    does not hold is an empty DataFrame with the same columns.

    Attributes
    ----------
    path
        The file.
    attributes
        Root attributes of the file: origin, reference clock, versions.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = store.open_file(path)
        self.attributes = store.attributes_of(self._file)
        self._tables: dict[str, pd.DataFrame] = {}
        self._dictionaries: dict[str, pd.Index[str]] = {}

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if not self._file:
            return f"<Trace {self.path}, closed>"
        try:
            named = ("tasks", "transitions", "processes", "nodes")
            rows = {name: self.rows(name) for name in named}
        except TraceError as error:
            return f"<Trace {self.path}: {error}>"
        text = ", ".join(f"{count:,} {name}" for name, count in rows.items())
        return f"<Trace {self.path}: {text}>"

    def _repr_html_(self) -> str:
        if not self._file:
            return f"<p>{escape(repr(self))}</p>"
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{self.rows(name):,}</td>"
            f"<td style='text-align:left'>{escape(TABLES[name].meaning)}</td></tr>"
            for name in self.tables
            if name in TABLES
        )
        return (
            f"<div><b>Trace</b> <code>{escape(str(self.path))}</code>"
            f"<table><tr><th>table</th><th>rows</th><th>of</th></tr>{rows}</table></div>"
        )

    def close(self) -> None:
        """Close the file; tables that were read stay usable."""
        self._file.close()

    @property
    def tables(self) -> list[str]:
        """Names of the tables in the file."""
        return store.table_names(self._opened())

    def rows(self, name: str) -> int:
        """Give the number of rows of a table without reading it, 0 where it is absent."""
        if name not in self.tables:
            self._known(name)
            return 0
        return store.row_count(self._opened(), name)

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name.startswith("_"):
            raise AttributeError(name)
        cached = self._tables.get(name)
        if cached is None:
            try:
                cached = self._tables[name] = self.table(name)
            except KeyError:
                raise AttributeError(f"a trace has no table {name!r}") from None
        return cached

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *TABLES]

    def table(
        self,
        name: str,
        columns: list[str] | None = None,
        start: int | None = None,
        stop: int | None = None,
    ) -> pd.DataFrame:
        """Read a table, or only some columns of it, or only a window of time.

        Parameters
        ----------
        name
            The table.
        columns
            Columns to read, in this order; all by default.
        start, stop
            Trace time in ns: rows with ``start <= time < stop`` (of rows with a start and a stop,
            those that start in it). Only what the window needs is read from the file, and the
            categories of its strings are those that occur in it.

        Returns
        -------
        pandas.DataFrame
            Its index is the row number in the table. Rows are sorted by time where the table has
            an order, so that a row's place need not be its number: use ``loc`` for references.

        Raises
        ------
        KeyError
            If there is no such table or column.
        TraceError
            If the table has no order in time and a window was asked for, or the file is damaged.
        """
        file = self._opened()
        if name not in store.table_names(file):
            known = [column.name for column in self._known(name)]
            return self._empty(name, self._chosen(name, columns, known))
        stored = store.column_names(file, name)
        if name in TABLES:
            for described in TABLES[name].columns:
                if described.name not in stored:
                    if store.later_column(file, name, described.name) is None:
                        raise TraceError(
                            f"{self.path} is damaged: table {name} lacks column {described.name}."
                        )
                    stored.append(described.name)
        derived = [c.name for c in TABLES[name].derived] if name in TABLES else []
        derived = [column for column in derived if column not in stored]
        chosen = self._chosen(name, columns, [*derived, *stored])
        rows, taken = self._rows(name, start, stop)
        whole = start is None and stop is None
        data: dict[str, Any] = {}
        for column in chosen:
            values, dictionary = self._values(name, column, rows)
            if taken is not None:
                values = values[taken]
            if dictionary is None:
                data[column] = values
            elif whole:
                data[column] = pd.Categorical.from_codes(
                    self._checked(values, dictionary), categories=self._dictionary(dictionary)
                )
            else:
                data[column] = self._decoded(values, dictionary)
        index = pd.RangeIndex(rows.start, rows.stop)
        return pd.DataFrame(data, index=index if taken is None else index[taken], columns=chosen)

    def pieces(self, name: str, columns: list[str], rows: int = 1 << 20) -> Iterator[pd.DataFrame]:
        """Read some columns of a table in the order of its rows, so many rows at once.

        Memory does not grow with the table. Rows that lie in blocks of time are not sorted.

        Parameters
        ----------
        name, columns
            As for `table`; columns of keys are not decoded here: they come as codes.
        rows
            Rows at once.
        """
        file = self._opened()
        total = self.rows(name)
        for first in range(0, total, rows):
            part = slice(first, min(total, first + rows))
            data: dict[str, Any] = {}
            for column in columns:
                values, dictionary = self._values(name, column, part)
                data[column] = values
                if dictionary is not None and dictionary != "keys":
                    data[column] = pd.Categorical.from_codes(
                        self._checked(values, dictionary), categories=self._dictionary(dictionary)
                    )
            index = pd.RangeIndex(part.start, part.stop)
            yield pd.DataFrame(data, index=index, columns=columns, copy=False)
        if not total:
            yield (
                self.table(name, columns)
                if name in store.table_names(file)
                else self._empty(name, columns)
            )

    def texts(self, dictionary: str, codes: NDArray[Any]) -> list[str | None]:
        """Give the strings that some codes stand for, reading only these from the file.

        Parameters
        ----------
        dictionary
            Name of the dictionary, ``keys`` say.
        codes
            Positions in it; -1: none.

        Raises
        ------
        TraceError
            If a code is not in the dictionary, or the file is damaged.
        """
        decoded = self._decoded(np.asarray(codes), dictionary)
        return [text if isinstance(text, str) else None for text in decoded]

    def dependents(self) -> pd.DataFrame:
        """Give the inverse of ``dependencies``: key, and a dependent that needs its result.

        Returns
        -------
        pandas.DataFrame
            Columns ``key`` and ``dependent``, sorted by the order of keys in the trace.
        """
        pairs = self.dependencies
        inverse = pd.DataFrame({"key": pairs["dependency"], "dependent": pairs["key"]})
        order = np.lexsort((inverse["dependent"].cat.codes, inverse["key"].cat.codes))
        return inverse.iloc[order].reset_index(drop=True)

    @overload
    def bound_between(self, one: int, other: int) -> int: ...

    @overload
    def bound_between(self, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.int64]: ...

    def bound_between(
        self, one: int | NDArray[Any], other: int | NDArray[Any]
    ) -> int | NDArray[np.int64]:
        """Give how far the difference between times of two processes may be wrong, ns.

        What is finer than this, between times that these processes recorded, is not known: which
        of two things was first, or a duration from one process to the other.

        Parameters
        ----------
        one, other
            Rows of ``processes``, or arrays of them (of ``tasks.process``, say).

        Returns
        -------
        int or array of int64
            0 for processes that share a clock, -1 where it is unknown.
        """
        clocks = self.processes["clock"].to_numpy()
        bounds = self.clocks["bound"].to_numpy()
        found = bounds_between(clocks, bounds, np.atleast_1d(one), np.atleast_1d(other))
        return found if isinstance(one, np.ndarray) else int(found[0])

    # ------------------------------------------------------------------------------

    def _rows(
        self, name: str, start: int | None, stop: int | None
    ) -> tuple[slice, NDArray[np.intp] | None]:
        """Give the rows to read of a table, and which of those to take, in order of time."""
        file = self._opened()
        if not store.in_blocks(file, name):
            return store.time_window(file, name, start, stop), None
        order = TABLES[name].order if name in TABLES else None
        if order is None:
            raise TraceError(f"{self.path} is damaged: table {name} cannot lie in blocks of time.")
        rows = store.block_rows(file, name, start, stop)
        times, _ = self._values(name, order, rows)
        cuts = store.block_starts(file, name)
        inner = cuts[(cuts > rows.start) & (cuts < rows.stop)] - rows.start
        taken = []
        first = 0
        for last in [*inner.tolist(), len(times)]:
            block = times[first:last]
            sorted_by_time = np.argsort(block, kind="stable")
            begin = 0 if start is None else np.searchsorted(block[sorted_by_time], start)
            end = last if stop is None else np.searchsorted(block[sorted_by_time], stop)
            taken.append(sorted_by_time[begin:end] + first)
            first = last
        return rows, np.concatenate(taken)

    def _values(self, name: str, column: str, rows: slice) -> tuple[NDArray[Any], str | None]:
        """Read a column, stored or derived, and tell whose dictionary's codes it holds."""
        file = self._opened()
        if store.has_column(file, name, column):
            dictionary = store.dictionary_of(file, name, column)
            return store.read_column(file, name, column, rows), dictionary
        if (later := store.later_column(file, name, column)) is not None:
            return store.read_column(file, name, column, rows), later.dictionary or None
        if name == "transitions":
            change = store.read_column(file, name, "change", rows).astype(np.int16)
            state = change >> 4 if column == "start_state" else change & 15
            known = (change >= 0) & (change < 256) & (state < store.dictionary_size(file, "states"))
            return np.where(known, state, -1).astype(np.int8), "states"
        row = store.read_column(file, name, "transition", rows)
        count = self.rows("transitions")
        known = (row >= 0) & (row < count)
        found = np.full(len(row), -1, np.int64 if column == "time" else np.int32)
        if known.any():
            first, last = int(row[known].min()), int(row[known].max()) + 1
            read = store.read_column(file, "transitions", column, slice(first, last))
            found[known] = read[row[known] - first]
        return found, None

    def _opened(self) -> Any:
        if not self._file:
            raise TraceError(f"{self.path} was closed.")
        return self._file

    @staticmethod
    def _known(name: str) -> Any:
        if name not in TABLES:
            raise KeyError(f"a trace has no table {name!r}")
        return (*TABLES[name].derived, *TABLES[name].columns)

    @staticmethod
    def _chosen(name: str, wanted: list[str] | None, present: list[str]) -> list[str]:
        if wanted is None:
            return present
        absent = [column for column in wanted if column not in present]
        if absent:
            raise KeyError(f"table {name!r} has no column {absent[0]!r}")
        return list(wanted)

    @staticmethod
    def _empty(name: str, columns: list[str]) -> pd.DataFrame:
        data: dict[str, Any] = {}
        for column in columns:
            described = TABLES[name].column(column)
            data[column] = (
                pd.Categorical([], categories=pd.Index([], dtype="str"))
                if described.dictionary
                else np.empty(0, described.dtype)
            )
        return pd.DataFrame(data, columns=columns)

    def _dictionary(self, name: str) -> pd.Index[str]:
        found = self._dictionaries.get(name)
        if found is None:
            file = self._opened()
            known = name in store.dictionary_names(file)
            strings = store.read_dictionary(file, name) if known else []
            found = self._dictionaries[name] = self._index(strings, name)
        return found

    def _index(self, strings: list[str], dictionary: str) -> pd.Index[str]:
        """Make categories of a dictionary's strings, of which no two may be the same."""
        index = pd.Index(strings, dtype="str")
        if not index.is_unique:
            raise TraceError(f"{self.path} is damaged: dictionary {dictionary} repeats a string.")
        return index

    def _checked(self, codes: NDArray[Any], dictionary: str) -> NDArray[Any]:
        # a column of none may have a dictionary that the file lacks
        if not len(codes) or (int(codes.min()) == int(codes.max()) == -1):
            return codes
        size = store.dictionary_size(self._opened(), dictionary)
        if int(codes.min()) < -1 or int(codes.max()) >= size:
            raise TraceError(f"{self.path} is damaged: a code is not in dictionary {dictionary}.")
        return codes

    def _decoded(self, codes: NDArray[Any], dictionary: str) -> pd.Categorical[str]:
        """Decode with only the strings that occur, of which only their stretch is read."""
        self._checked(codes, dictionary)
        present, inverse = np.unique(codes, return_inverse=True)
        none = int(np.searchsorted(present, 0))  # 1 where -1 occurs
        present = present[none:]
        strings: list[str] = []
        if len(present):
            known = self._dictionaries.get(dictionary)
            if known is not None:
                strings = list(known[present])
            else:
                far = np.flatnonzero(np.diff(present) > FAR) + 1
                for near in np.split(present, far):
                    first = int(near[0])
                    stretch = store.read_dictionary(
                        self._opened(), dictionary, first, int(near[-1]) + 1
                    )
                    strings += [stretch[code - first] for code in near.tolist()]
        return pd.Categorical.from_codes(
            inverse - none, categories=self._index(strings, dictionary)
        )
