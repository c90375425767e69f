"""Trace, extended: tables are added to a trace that exists, or one is made of them alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dasf_hpc.trace import store
from dasf_hpc.trace.blocks import no_tasks
from dasf_hpc.trace.schema import TABLES

Array = NDArray[Any]
Columns = dict[str, Array]

#: Tables that are small, and may get rows and columns.
GROWING = (
    "nodes",
    "clocks",
    "causality",
    "processes",
    "gpus",
    "gaps",
    "reports",
    "report_clocks",
    "diagnostics",
    "recorded",
    "metrics",
    "task_gpu",
    "stacks",
    "task_cpu",
    "os_runtime_sums",
)


def monotonic_of(hostname: str | None) -> str:
    """Give the identity of a host's clock of which no journal tells."""
    return f"CLOCK_MONOTONIC of {hostname}"


class StoredRows:
    """Rows of a table of a trace, sorted by start."""

    def __init__(self, file: h5py.File, table: str) -> None:
        self._file, self._table = file, table
        rows = slice(0, store.row_count(file, table))
        self.start = store.read_column(file, table, "start", rows)

    def read(self, names: Iterable[str], first: int, last: int) -> Columns:
        """Read some columns of rows `first` to `last`."""
        rows = slice(first, last)
        return {name: store.read_column(self._file, self._table, name, rows) for name in names}


class ExtendedTrace:
    """A trace to which tables are added; see `dasf_hpc.nsight.rows.RunTables`.

    Parameters
    ----------
    path
        A trace; None for one that is made of what is added.
    place
        Folder for files that are needed until the trace is written; they may be larger than it.
    attributes
        Root attributes of one that is made.

    Raises
    ------
    TraceError
        If `path` is no trace, or cannot be read.
    """

    def __init__(
        self, path: Path | None, place: Path, attributes: dict[str, Any] | None = None
    ) -> None:
        self._place = place
        self.tables: dict[str, Columns] = {}
        self.dictionaries: dict[str, list[str]] = {}
        self.attributes: dict[str, Any] = dict(attributes or {})
        self.streams: dict[str, Iterable[Columns]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._tasks: Columns | None = None
        self._file = None if path is None else store.open_file(path)
        if self._file is not None:
            self.attributes = store.attributes_of(self._file)
            self._read_small(self._file)

    def __enter__(self) -> ExtendedTrace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _read_small(self, file: h5py.File) -> None:
        present = store.table_names(file)
        for table in (name for name in GROWING if name in present):
            rows = slice(0, store.row_count(file, table))
            stored = store.column_names(file, table)
            self.tables[table] = {
                column.name: store.read_column(file, table, column.name, rows)
                if column.name in stored
                else np.full(rows.stop, np.nan if column.dtype[0] == "f" else -1, column.dtype)
                for column in TABLES[table].columns
            }
        for name in store.dictionary_names(file):
            if name != "keys":
                self.dictionaries[name] = store.read_dictionary(file, name)

    @property
    def scratch(self) -> Path:
        """A folder for files that are needed until the trace is written."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(
                prefix=".join-", dir=self._place, ignore_cleanup_errors=True
            )
        return Path(self._folder.name)

    def stored_rows(self, table: str) -> StoredRows | None:
        """Give the rows of a table that the trace holds already."""
        if self._file is None or table not in store.table_names(self._file):
            return None
        return StoredRows(self._file, table)

    def task_places(self) -> Columns:
        """Give ``id`` and ``process`` of every task, in the order of the rows of ``tasks``."""
        return {name: self._all_tasks()[name] for name in ("id", "process")}

    def tasks_of(self, process: int) -> Columns:
        """Give ``id``, ``row``, ``thread``, ``start`` and ``stop`` of a process's tasks."""
        tasks = self._all_tasks()
        rows = np.flatnonzero(tasks["process"] == process)
        found = {name: tasks[name][rows] for name in ("id", "thread", "start", "stop")}
        return found | {"row": rows}

    def anchors_of(self, process: int) -> Array:
        """Give a process's readings of UTC: a trace keeps none."""
        return np.empty((0, 3), np.int64)

    def _all_tasks(self) -> Columns:
        if self._tasks is None:
            self._tasks = no_tasks() | {"process": np.empty(0, np.int32)}
            if self._file is not None and "tasks" in store.table_names(self._file):
                rows = slice(0, store.row_count(self._file, "tasks"))
                self._tasks = {
                    name: store.read_column(self._file, "tasks", name, rows)
                    for name in ("id", "process", "thread", "start", "stop")
                }
        return self._tasks

    def add_clock(self, reading: int | None, hostname: str | None) -> None:
        """Begin a trace on the CLOCK_MONOTONIC of a host, if its reading at time 0 is known."""
        if reading is None or hostname is None:
            return
        for table, values in (
            ("nodes", {"hostname": hostname}),
            ("clocks", {"clock": monotonic_of(hostname), "source": "reference", "node": 0}),
        ):
            self.tables[table] = {}
            for column in TABLES[table].columns:
                value: Any = values.get(column.name, -1 if table == "nodes" else 0)
                if column.dictionary and isinstance(value, str):
                    self.dictionaries[column.dictionary] = [value]
                    value = 0
                self.tables[table][column.name] = np.array([value], column.dtype)

    def write(self, path: Path) -> None:
        """Write the trace with what was added; a trace at `path` is replaced in one step.

        Raises
        ------
        TraceError
            If it cannot be written, or the one that is extended is damaged.
        """
        with (
            ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
            store.writing(path, self.attributes, pool.submit) as trace,
        ):
            if self._file is not None:
                trace.copy(self._file, without={*self.tables, *self.streams})
            for name, parts in self.streams.items():
                trace.stream(name, parts)
            strings = {name: store.Strings(texts) for name, texts in self.dictionaries.items()}
            trace.whole(self.tables, strings)
