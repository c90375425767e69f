"""Nsight, fifth step: rows of many reports, each sorted by itself, become rows sorted by time.

A report's rows go into a file as soon as they are read, so that no more than one report is ever in
memory, and come back a stretch of time after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dasf_hpc.trace.parts import ColumnFile, ColumnFileWriter

Array = npt.NDArray[Any]

#: Rows of one source that are in memory at once.
ROWS_AT_ONCE = 1 << 18


class SortedRows(Protocol):
    """Rows of a table, sorted by ``start``, that are read when they are needed."""

    @property
    def start(self) -> Array:
        """All their starts."""

    def read(self, names: Iterable[str], first: int, last: int) -> dict[str, Array]:
        """Read some columns of rows `first` to `last`."""


class SpooledRows:
    """Rows of one table of one report, sorted by start, in a file.

    Parameters
    ----------
    path
        The file, which is made.
    columns
        By name, all as long; emptied, for they are large.
    """

    def __init__(self, path: Path, columns: dict[str, Array]) -> None:
        start = columns["start"]
        order = None
        if (start[1:] < start[:-1]).any():
            order = np.argsort(start, kind="stable")
        del start
        out = ColumnFileWriter(path)
        for name in list(columns):
            values = columns.pop(name)
            out.put(name, values, order)
        out.close()
        self._path, self._columns = path, out.columns

    @property
    def start(self) -> Array:
        """All their starts, of which only what is looked at is read."""
        offset, dtype, count = self._columns["start"]
        if not count:
            return np.empty(0, dtype)
        return np.memmap(self._path, dtype, "r", offset, (count,))

    def read(self, names: Iterable[str], first: int, last: int) -> dict[str, Array]:
        """Read some columns of rows `first` to `last`."""
        with ColumnFile(self._path, self._columns) as columns:
            return {name: columns.read(name, first, last) for name in names}


def in_order(
    sources: Sequence[SortedRows], names: Iterable[str], rows: int = ROWS_AT_ONCE
) -> Iterator[dict[str, Array]]:
    """Give the rows of several sources sorted by start, some of them at once.

    Rows that start at the same time stand in the order of their sources.

    Parameters
    ----------
    sources
        Each sorted by start.
    names
        Columns to read.
    rows
        Rows of a source at once.
    """
    names = list(dict.fromkeys([*names, "start"]))
    starts = [source.start for source in sources]
    places = [0] * len(sources)
    while left := [n for n, start in enumerate(starts) if places[n] < len(start)]:
        # up to here no source has an earlier row than the ones that are taken
        limit = min(int(starts[n][min(places[n] + rows, len(starts[n])) - 1]) for n in left)
        parts: list[Mapping[str, Array]] = []
        for n in left:
            first = places[n]
            ahead = starts[n][first : first + rows]
            places[n] = first + int(np.searchsorted(ahead, limit, side="right"))
            if places[n] > first:
                parts.append(sources[n].read(names, first, places[n]))
        if len(parts) == 1:
            yield dict(parts[0])
            continue
        together = {name: np.concatenate([part[name] for part in parts]) for name in names}
        order = np.argsort(together["start"], kind="stable")
        yield {name: values[order] for name, values in together.items()}
