"""Trace, checked: whether what must come first does, on the clock that all times were put on.

A task starts after the tasks that it depends on ended; data is received after it was sent, and sent
after it was asked for. Corrected times may say otherwise by as much as both clocks' bounds allow,
and processes that share a clock not at all. What goes beyond that is a violation: a clock was
corrected worse than its bound says, or a time was recorded wrong.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.profile.journal import DIRECTIONS
from dasf_hpc.trace.align import bounds_between
from dasf_hpc.trace.parts import TASK_STATES

Array = NDArray[Any]

#: Rows of a table that are looked at together, and transfers that are compared together.
ROWS = 1 << 17

#: What must come first, in the order of the rows of table ``causality``.
ONE_CLOCK = "task starts after its dependency ended, on one clock"
TWO_CLOCKS = "task starts after its dependency ended, on two clocks"
RECEIVED = "data is received after it was sent"
ASKED = "data is sent after it was asked for"
COLLECTIVE = "no rank leaves a collective before all have entered"

_NEVER = np.iinfo(np.int64).max
_MEMORY = TASK_STATES.index("memory")
_INCOMING = DIRECTIONS.index("incoming")
_TRANSFER = np.dtype(
    [
        ("receiver", "i4"),
        ("sender", "i4"),
        ("nbytes", "i8"),
        ("keys", "i4"),
        ("incoming", "?"),
        ("start", "i8"),
        ("stop", "i8"),
    ]
)


class Tables(Protocol):
    """A trace's tables, as numbers (codes of strings)."""

    def rows(self, name: str) -> int:
        """Give the number of rows of a table."""

    def read(self, table: str, column: str, rows: slice) -> Array:
        """Give some rows of a column."""


@dataclass
class Order:
    """How often something that must come first was compared, and what came of it.

    Attributes
    ----------
    checked, unchecked
        Pairs that were compared, and pairs of which a time or a bound is not known.
    inverted, violations
        Pairs whose times are the wrong way round, and those that the bounds do not explain.
    worst
        How far the worst violation is beyond the bounds, ns; -1: there is none.
    """

    checked: int = 0
    unchecked: int = 0
    inverted: int = 0
    violations: int = 0
    worst: int = -1

    def compare(self, first: Array, then: Array, bound: Array) -> None:
        """Compare times of which the first must not be the later ones; bounds of -1: unknown."""
        known = bound >= 0
        excess = (first - then)[known]
        self.checked += len(excess)
        self.unchecked += len(known) - len(excess)
        self.inverted += int(np.count_nonzero(excess > 0))
        excess = excess - bound[known]
        self.violations += int(np.count_nonzero(excess > 0))
        if len(excess) and excess.max() > 0:
            self.worst = max(self.worst, int(excess.max()))


def check_causality(
    tables: Tables, keys: int, clocks: Array, bounds: Array, scratch: Path | None = None
) -> dict[str, list[Any]]:
    """Count what contradicts causality.

    Time grows with the rows of ``tasks``, ``dependencies`` and ``transfers``; memory does not.

    Parameters
    ----------
    tables
        The trace's; ``tasks``, ``dependencies`` and ``transfers`` are read.
    keys
        Number of strings in dictionary ``keys``.
    clocks
        Row in ``clocks`` of each process.
    bounds
        Bound of each clock, ns; -1: unknown.
    scratch
        Folder for temporary files: 24 bytes a key and 37 a transfer.

    Returns
    -------
    dict
        The columns of table ``causality``.
    """

    def between(one: Array, other: Array) -> Array:
        return bounds_between(clocks, bounds, one, other)

    orders = {name: Order() for name in (ONE_CLOCK, TWO_CLOCKS, RECEIVED, ASKED)}
    with tempfile.TemporaryDirectory(prefix=".causality-", dir=scratch) as folder:
        _check_tasks(tables, _Executions(keys, Path(folder)), clocks, between, orders)
        for transfers in _by_pair(tables, Path(folder)):
            _check_transfers(transfers, between, orders)
    found: dict[str, list[Any]] = {"order": list(orders)}
    for name in ("checked", "unchecked", "inverted", "violations", "worst"):
        found[name] = [getattr(order, name) for order in orders.values()]
    return found


class _Executions:
    """For each key when it ended first and when it began last, and where; on disk.

    A key that was executed more than once, or names two tasks, one after the other, is given the
    benefit of the doubt.
    """

    def __init__(self, keys: int, folder: Path) -> None:
        self._maps: list[mmap.mmap] = []

        def column(name: str, dtype: type, empty: int) -> Array:
            size = max(1, keys) * np.dtype(dtype).itemsize
            with (folder / name).open("w+b") as file:
                file.truncate(size)
                self._maps.append(mmap.mmap(file.fileno(), size))
            values: Array = np.frombuffer(self._maps[-1], dtype)
            for rows in _pieces(len(values)):
                values[rows] = empty
                self.release()
            return values

        self.end, self.ended_in = column("end", np.int64, _NEVER), column("in", np.int32, -1)
        self.begin, self.began_in = column("begin", np.int64, -1), column("at", np.int32, -1)

    def release(self) -> None:
        """Take out of memory what the files hold."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    def add(self, key: Array, process: Array, start: Array, stop: Array) -> None:
        """Take executions of which each key has one; a time of -1 is none."""
        later = start > self.begin[key]
        self.begin[key[later]], self.began_in[key[later]] = start[later], process[later]
        earlier = (stop >= 0) & (stop < self.end[key])
        self.end[key[earlier]], self.ended_in[key[earlier]] = stop[earlier], process[earlier]


def _check_tasks(
    tables: Tables,
    executions: _Executions,
    clocks: Array,
    between: Callable[[Array, Array], Array],
    orders: dict[str, Order],
) -> None:
    for rows in _pieces(tables.rows("tasks")):
        names = ("key", "process", "start", "stop", "state", "thread")
        key, process, start, stop, state, thread = (
            tables.read("tasks", name, rows) for name in names
        )
        # Without a thread it was timed by Dask, on wall clocks.
        sure = (key >= 0) & (process >= 0) & (thread > 0)
        stop = np.where(state == _MEMORY, stop, -1)
        key, process, start, stop = (values[sure] for values in (key, process, start, stop))
        # keys are numbered by their first execution: most of a piece are new ones
        highest = np.maximum.accumulate(key)
        new = np.ones(len(key), bool)
        new[1:] = highest[1:] > highest[:-1]
        executions.add(key[new], process[new], start[new], stop[new])
        key, process, start, stop = (values[~new] for values in (key, process, start, stop))
        while len(key):
            _, first = np.unique(key, return_index=True)
            executions.add(key[first], process[first], start[first], stop[first])
            again = np.ones(len(key), bool)
            again[first] = False
            key, process, start, stop = (values[again] for values in (key, process, start, stop))
        executions.release()
    for rows in _pieces(tables.rows("dependencies")):
        key, dependency = (tables.read("dependencies", n, rows) for n in ("key", "dependency"))
        ended, began = executions.end[dependency], executions.begin[key]
        both = (ended != _NEVER) & (began >= 0) & (key != dependency)
        here, there = executions.began_in[key[both]], executions.ended_in[dependency[both]]
        bound = between(here, there)
        one = clocks[here] == clocks[there]
        for name, chosen in ((ONE_CLOCK, one), (TWO_CLOCKS, ~one)):
            orders[name].compare(ended[both][chosen], began[both][chosen], bound[chosen])
        executions.release()


def _by_pair(tables: Tables, folder: Path) -> Iterator[Array]:
    """Give the transfers between workers, those of any two of them together."""
    total = tables.rows("transfers")
    parts = -(-total // ROWS)
    for rows in _pieces(total):
        names = ("process", "peer_process", "direction", "nbytes", "keys", "start", "stop")
        process, peer, direction, nbytes, keys, start, stop = (
            tables.read("transfers", name, rows) for name in names
        )
        incoming = direction == _INCOMING
        found = np.empty(len(process), _TRANSFER)
        found["receiver"] = np.where(incoming, process, peer)
        found["sender"] = np.where(incoming, peer, process)
        found["nbytes"], found["keys"], found["incoming"] = nbytes, keys, incoming
        found["start"], found["stop"] = start, stop
        found = found[(process >= 0) & (peer >= 0)]
        if parts == 1:
            yield found
            return
        part = (found["receiver"].astype(np.int64) * 1_000_003 + found["sender"]) % parts
        for number in range(parts):
            with (folder / f"{number}.transfers").open("ab") as file:
                found[part == number].tofile(file)
    for number in range(parts):
        path = folder / f"{number}.transfers"
        yield np.fromfile(path, _TRANSFER)
        path.unlink()


def _check_transfers(
    transfers: Array, between: Callable[[Array, Array], Array], orders: dict[str, Order]
) -> None:
    """Compare both ends' records of transfers.

    Nothing says which record of one end belongs to which of the other. Where both have as many of
    the same size and number of keys, one end's in the order of time fit the other's: whatever
    belongs together, if each comes in order then so do the first of both, the second ….
    """
    alike = ["receiver", "sender", "nbytes", "keys"]
    order = np.lexsort([transfers[name] for name in reversed(alike)])
    transfers = transfers[order]
    differs = np.zeros(len(transfers), bool)
    for name in alike:
        differs[1:] |= transfers[name][1:] != transfers[name][:-1]
    kind = np.cumsum(differs)
    incoming = transfers["incoming"]
    count = int(kind[-1]) + 1 if len(kind) else 0
    received, sent = (np.bincount(kind[which], minlength=count) for which in (incoming, ~incoming))
    matched = (received == sent)[kind] if len(kind) else np.zeros(0, bool)
    unchecked = int(np.count_nonzero(incoming & ~matched))

    def sorted_times(which: Array, name: str) -> Array:
        chosen = transfers[which & matched]
        in_order: Array = chosen[np.lexsort((chosen[name], kind[which & matched]))]
        return in_order

    sends = sorted_times(~incoming, "start")
    bound = between(sends["sender"], sends["receiver"])
    orders[RECEIVED].compare(sends["start"], sorted_times(incoming, "stop")["stop"], bound)
    orders[ASKED].compare(sorted_times(incoming, "start")["start"], sends["start"], bound)
    for name in (RECEIVED, ASKED):
        orders[name].unchecked += unchecked


def _pieces(rows: int) -> Iterator[slice]:
    for first in range(0, rows, ROWS):
        yield slice(first, min(rows, first + ROWS))
