"""Trace, opened: its tables as pandas DataFrames, read when and as far as they are asked for."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.trace import store
from dasf_hpc.trace.schema import TABLES
from dasf_hpc.trace.store import TraceError

#: Name of the trace in a run's directory.
TRACE_NAME = "trace.h5"


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
        self.attributes: dict[str, Any] = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self._file.attrs.items()
        }
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
        state = "" if self._file else ", closed"
        return f"<Trace {self.path}{state}>"

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
            Its index is the row number in the table.

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
        chosen = self._chosen(name, columns, store.column_names(file, name))
        rows = store.time_window(file, name, start, stop)
        whole = start is None and stop is None
        data: dict[str, Any] = {}
        for column in chosen:
            values = store.read_column(file, name, column, rows)
            dictionary = store.dictionary_of(file, name, column)
            if dictionary is None:
                data[column] = values
            elif whole:
                data[column] = pd.Categorical.from_codes(
                    self._checked(values, dictionary), categories=self._dictionary(dictionary)
                )
            else:
                data[column] = self._decoded(values, dictionary)
        return pd.DataFrame(data, index=pd.RangeIndex(rows.start, rows.stop), columns=chosen)

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

    # ------------------------------------------------------------------------------

    def _opened(self) -> Any:
        if not self._file:
            raise TraceError(f"{self.path} was closed.")
        return self._file

    @staticmethod
    def _known(name: str) -> Any:
        if name not in TABLES:
            raise KeyError(f"a trace has no table {name!r}")
        return TABLES[name].columns

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
            strings = store.read_dictionary(self._opened(), name)
            found = self._dictionaries[name] = pd.Index(strings, dtype="str")
        return found

    def _checked(self, codes: NDArray[Any], dictionary: str) -> NDArray[Any]:
        size = store.dictionary_size(self._opened(), dictionary)
        if len(codes) and (int(codes.min()) < -1 or int(codes.max()) >= size):
            raise TraceError(f"{self.path} is damaged: a code is not in dictionary {dictionary}.")
        return codes

    def _decoded(self, codes: NDArray[Any], dictionary: str) -> pd.Categorical:
        """Decode with only the strings that occur, of which only their stretch is read."""
        self._checked(codes, dictionary)
        present, inverse = np.unique(codes, return_inverse=True)
        none = int(np.searchsorted(present, 0))  # 1 where -1 occurs
        present = present[none:]
        strings: list[str] = []
        if len(present):
            first = int(present[0])
            known = self._dictionaries.get(dictionary)
            if known is not None:
                strings = list(known[present])
            else:
                stretch = store.read_dictionary(
                    self._opened(), dictionary, first, int(present[-1]) + 1
                )
                strings = [stretch[code - first] for code in present.tolist()]
        return pd.Categorical.from_codes(inverse - none, categories=pd.Index(strings, dtype="str"))
