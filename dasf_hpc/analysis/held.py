"""Analysis, what it reads of memory: which worker held which result, from when to when.

A result comes into a worker's memory with a transition to ``memory`` and leaves with the next one
from there. How large it is says table ``memory``, of which the steps from row to row are of one
result each; where that table is not there, the task that made it does. What is put on disk stays
held: Dask counts it as managed memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from dask.utils import key_split
from numpy.typing import NDArray

from dasf_hpc.analysis.executions import (
    UNKNOWN,
    Executions,
    Ints,
    process_stops,
    read_executions,
    run_span,
)
from dasf_hpc.trace.open import Trace

#: How a result came to a worker: executed there, received from another one, or put there (as
#: `Client.scatter` does).
EXECUTED, RECEIVED, PUT = 0, 1, 2

#: Attributes of `Held` with a value for each stretch of time.
ARRAYS = (
    "process",
    "key",
    "function",
    "start",
    "stop",
    "nbytes",
    "how",
    "released",
    "sized",
)

_EXECUTING, _FLIGHT = ("executing", "long-running"), ("flight", "fetch", "resumed")


@dataclass(frozen=True)
class Held:
    """Stretches of time in which a worker held a result: arrays of equal length, in no order.

    Attributes
    ----------
    process
        Row of the worker in ``processes``.
    key
        Code of the key.
    function
        Position in `functions`.
    functions
        Names of functions: first those of `Executions.functions`, in their order.
    start, stop
        Trace time, ns. What was never released stops where its worker does.
    nbytes
        Size of the result; 0 where it is not known.
    how
        `EXECUTED`, `RECEIVED` or `PUT`.
    released
        Whether it was released; else its worker ended with it.
    sized
        Whether the size is known.
    disagreeing
        How many came with another size than the task that made them tells.
    transitions
        Whether anything is known of what workers held.
    """

    process: NDArray[np.int32]
    key: NDArray[np.int32]
    function: NDArray[np.int32]
    functions: list[str]
    start: Ints
    stop: Ints
    nbytes: Ints
    how: NDArray[np.int8]
    released: NDArray[np.bool_]
    sized: NDArray[np.bool_]
    disagreeing: int
    transitions: bool

    def __len__(self) -> int:
        return len(self.start)

    def at(self, time: int) -> NDArray[np.intp]:
        """Give what is held at a moment; what leaves then is not, what comes then is."""
        return np.flatnonzero((self.start <= time) & (self.stop > time))

    def steps(self, chosen: NDArray[Any] | None = None) -> Steps:
        """Give how what is held grows and shrinks, of all or of some."""
        start, stop, nbytes = self.start, self.stop, self.nbytes
        function = self.function
        if chosen is not None:
            start, stop, nbytes = start[chosen], stop[chosen], nbytes[chosen]
            function = function[chosen]
        return steps(start, stop, nbytes, function)


@dataclass(frozen=True)
class Steps:
    """Changes of a sum of sizes, in the order of time.

    Attributes
    ----------
    time
        When, ns; several may be at one moment.
    change
        By how much, bytes.
    group
        Of what: the function, say.
    """

    time: Ints
    change: Ints
    group: NDArray[np.integer[Any]]

    def moments(self) -> tuple[Ints, Ints]:
        """Give each moment of a change once, and the sum after all changes at it."""
        if not len(self.time):
            return self.time, self.change
        last = np.flatnonzero(np.append(self.time[1:] != self.time[:-1], True))
        return self.time[last], np.cumsum(self.change)[last]

    def peak(self) -> tuple[int, int]:
        """Give the largest sum and when it was first reached; 0 and -1 where there is none."""
        time, total = self.moments()
        if not len(total) or total.max() <= 0:
            return 0, -1
        first = int(np.argmax(total))
        return int(total[first]), int(time[first])

    def until(self, times: Ints, groups: int) -> Ints:
        """Give each group's sum at some moments, which rise: of shape (moments, groups)."""
        grid = np.zeros((len(times) + 1, groups), np.int64)
        np.add.at(grid, (np.searchsorted(times, self.time, "left"), self.group), self.change)
        result: Ints = np.cumsum(grid[:-1], axis=0)
        return result


def steps(start: Ints, stop: Ints, nbytes: Ints, group: NDArray[np.integer[Any]]) -> Steps:
    """Give the changes of a sum to which each stretch of time adds its bytes while it lasts."""
    time = np.concatenate([start, stop])
    order = np.argsort(time, kind="stable")
    change = np.concatenate([nbytes, -nbytes])
    return Steps(time[order], change[order], np.concatenate([group, group])[order])


_READ: WeakKeyDictionary[Trace, Held] = WeakKeyDictionary()


def held(trace: Trace) -> Held:
    """Read what workers held, once for all that ask.

    Columns are read in pieces, keys as codes: some 60 bytes a result that a worker held.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    if trace not in _READ:
        _READ[trace] = _held(trace)
    return _READ[trace]


@dataclass(frozen=True)
class _Changes:
    """What comes into memory and leaves it, in the order of each worker's own time."""

    row: Ints
    time: Ints
    process: NDArray[np.int32]
    key: NDArray[np.int32]
    how: NDArray[np.int8]  # -1: it leaves


def _held(trace: Trace) -> Held:
    runs = read_executions(trace)
    changes = _changes(trace)
    order = np.lexsort((changes.row, changes.key, changes.process))
    process, key = changes.process[order], changes.key[order]
    comes = changes.how[order] >= 0
    new = np.ones(len(order), bool)
    new[1:] = (process[1:] != process[:-1]) | (key[1:] != key[:-1])
    sizes, known = _sizes(trace, changes)
    sizes, known = sizes[order], known[order]
    begins = np.flatnonzero(comes)
    follows = np.append(~new[1:], False)  # the next row is of the same key on the same worker
    ends = process_stops(trace)
    time = changes.time[order]
    after = np.where(follows[begins], begins + 1, begins)
    worker_end = ends[np.clip(process[begins], 0, max(0, len(ends) - 1))] if len(ends) else 0
    worker_end = np.maximum(time[begins], worker_end)
    worker_end = np.where(worker_end < 0, run_span(trace, runs).stop, worker_end)
    stop = np.where(follows[begins], time[after], worker_end)
    # what came once more before it left moved the sum by the difference only
    for row in np.flatnonzero(comes & ~new & np.append(False, comes[:-1])).tolist():
        sizes[row] += sizes[row - 1]
        known[row] |= known[row - 1]
    nbytes, sized = sizes[begins], known[begins]
    begun = time[begins]
    codes, names = _functions(trace, runs, key[begins])
    told = _told_sizes(runs, key[begins], begun)
    use = ~sized & (told >= 0)
    differs = int((sized & (told >= 0) & (told != nbytes)).sum())
    nbytes = np.where(use, told, nbytes)
    return Held(
        process=process[begins],
        key=key[begins],
        function=codes,
        functions=names,
        start=begun,
        stop=np.maximum(begun, stop),
        nbytes=np.maximum(0, nbytes),
        how=changes.how[order][begins],
        released=follows[begins],
        sized=sized | use,
        disagreeing=differs,
        transitions=bool(trace.rows("transitions")),
    )


def _changes(trace: Trace) -> _Changes:
    """Read the transitions with which results come and leave."""
    rows: list[Ints] = []
    times: list[Ints] = []
    processes: list[NDArray[np.int32]] = []
    keys: list[NDArray[np.int32]] = []
    hows: list[NDArray[np.int8]] = []
    for piece in trace.pieces("transitions", ["time", "process", "key", "start_state", "change"]):
        if not len(piece):
            continue
        states = list(piece["start_state"].cat.categories)
        if "memory" not in states:
            break
        memory = states.index("memory")
        change = piece["change"].to_numpy().astype(np.int64)
        before, after = change >> 4, change & 15
        known = (change >= 0) & (before < len(states)) & (piece["key"].to_numpy() >= 0)
        known &= ((before == memory) != (after == memory)) & (piece["process"].to_numpy() >= 0)
        some = np.flatnonzero(known)
        how = np.full(len(states), PUT, np.int8)
        how[[i for i, state in enumerate(states) if state in _EXECUTING]] = EXECUTED
        how[[i for i, state in enumerate(states) if state in _FLIGHT]] = RECEIVED
        rows.append(piece.index.to_numpy()[some].astype(np.int64))
        times.append(piece["time"].to_numpy()[some].astype(np.int64))
        processes.append(piece["process"].to_numpy()[some].astype(np.int32))
        keys.append(piece["key"].to_numpy()[some].astype(np.int32))
        hows.append(np.where(after[some] == memory, how[before[some]], -1).astype(np.int8))
    none = np.empty(0, np.int64)
    return _Changes(
        np.concatenate([none, *rows]),
        np.concatenate([none, *times]),
        np.concatenate([none.astype(np.int32), *processes]),
        np.concatenate([none.astype(np.int32), *keys]),
        np.concatenate([none.astype(np.int8), *hows]),
    )


def _sizes(trace: Trace, changes: _Changes) -> tuple[Ints, NDArray[np.bool_]]:
    """Give by how much each change moved its worker's sum, as table ``memory`` says.

    Of a change that is not in that table the step is 0. One of 0 bytes with which a key came is of
    no known size: no object of Python's has none.
    """
    step = np.zeros(len(changes.row), np.int64)
    at_rows: list[Ints] = []
    sums: list[Ints] = []
    for piece in trace.pieces("memory", ["transition", "managed"]):
        at_rows.append(piece["transition"].to_numpy().astype(np.int64))
        sums.append(piece["managed"].to_numpy().astype(np.int64))
    row = np.concatenate([np.empty(0, np.int64), *at_rows])
    managed = np.concatenate([np.empty(0, np.int64), *sums])
    place = np.searchsorted(changes.row, row)  # rows rise as they are read
    inside = place < len(changes.row)
    inside[inside] = changes.row[place[inside]] == row[inside]
    place, managed = place[inside], managed[inside]
    order = np.lexsort((place, changes.process[place]))
    place, managed = place[order], managed[order]
    process = changes.process[place]
    before = np.zeros(len(place), np.int64)
    same = process[1:] == process[:-1]
    before[1:][same] = managed[:-1][same]
    step[place] = managed - before
    return step, step != 0


def _functions(
    trace: Trace, runs: Executions, keys: NDArray[np.int32]
) -> tuple[NDArray[np.int32], list[str]]:
    """Give the function of each key: of one that no worker executed what its text says."""
    top = int(max(keys.max(initial=-1), runs.key.max(initial=-1))) + 1
    of = np.full(max(1, top), -1, np.int32)
    executed = runs.key >= 0
    of[runs.key[executed]] = runs.function[executed]
    names = list(runs.functions)
    if len(keys):
        others = np.unique(keys[of[keys] < 0])
        codes = {name: code for code, name in enumerate(names)}
        for key, text in zip(others.tolist(), trace.texts("keys", others), strict=True):
            name = key_split(text) if text else UNKNOWN
            code = codes.get(name)
            if code is None:
                code = codes[name] = len(names)
                names.append(name)
            of[key] = code
    return of[keys] if len(keys) else keys, names


def _told_sizes(runs: Executions, keys: NDArray[np.int32], times: Ints) -> Ints:
    """Give the size of each key's result as the task that made it tells, -1: none does.

    It is that of the key's last execution that gave a result before the moment, else of its first.
    """
    top = int(max(keys.max(initial=-1), runs.key.max(initial=-1))) + 1
    gave = np.flatnonzero((runs.key >= 0) & (runs.nbytes >= 0))
    last = np.full(max(1, top), -1, np.int64)
    order = gave[np.argsort(runs.stop[gave], kind="stable")]
    last[runs.key[order]] = runs.nbytes[order]
    told = last[keys]
    several = np.bincount(runs.key[gave], minlength=max(1, top)) > 1
    again = np.flatnonzero(several[keys])
    if len(again):
        mine = order[several[runs.key[order]]]
        by_key: dict[int, list[tuple[int, int]]] = {}
        for row in mine.tolist():
            by_key.setdefault(int(runs.key[row]), []).append(
                (int(runs.stop[row]), int(runs.nbytes[row]))
            )
        for one in again.tolist():
            found = by_key[int(keys[one])]
            before = [size for stop, size in found if stop <= times[one] + _LATE]
            told[one] = before[-1] if before else found[0][1]
    result: Ints = told
    return result


#: A task may end so much after its result is in memory, ns: its times are its thread's, rounded.
_LATE = 2048
