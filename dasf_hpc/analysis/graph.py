"""Analysis: the graph as it was executed, by which a run's length is explained and predicted.

An execution follows those of the tasks whose results it needs, and what its worker's threads did
before. Where for a moment no worker knew of any task, all later ones follow the last one before (a
barrier): the script waited for a result, or everything hung on one task.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heapreplace

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.analysis.executions import Executions, Ints, keep_arrivals, kept_arrivals
from dasf_hpc.trace.open import Trace

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Graph:
    """Executions in the order of their starts, and what each follows.

    Attributes
    ----------
    rows
        Row of each in table ``tasks``.
    process, function, thread, start, stop
        As of `Executions`, in this order.
    first_dependency, dependencies
        Those that execution i needs stand in ``dependencies`` from ``first_dependency[i]`` to
        ``first_dependency[i + 1]``, as positions in this order, each before i.
    same_thread
        The one before in the same thread, -1: none.
    known
        When a worker first knew of its task, or it began.
    barrier
        The one that ended last before the latest barrier before it, -1: none.
    """

    rows: Rows
    process: NDArray[np.int32]
    function: NDArray[np.int32]
    start: Ints
    stop: Ints
    first_dependency: Ints
    dependencies: Ints
    same_thread: Ints
    known: Ints
    barrier: Ints

    def __len__(self) -> int:
        return len(self.rows)


def executed_graph(trace: Trace, runs: Executions) -> Graph:
    """Make the executed graph of a trace.

    Of a task that was executed several times its dependents need the last execution that gave a
    result and began before them.
    """
    order = np.argsort(runs.start, kind="stable")
    start, stop = runs.start[order], runs.stop[order]
    first, needed = _dependencies(trace, runs, order)
    known = np.minimum(start, _arrivals(trace, runs)[order])
    return Graph(
        rows=order,
        process=runs.process[order],
        function=runs.function[order],
        start=start,
        stop=stop,
        first_dependency=first,
        dependencies=needed,
        same_thread=_same_thread(runs, order),
        known=known,
        barrier=_barriers(known, start, stop),
    )


def _dependencies(trace: Trace, runs: Executions, order: Rows) -> tuple[Ints, Ints]:
    count = len(order)
    key = runs.key[order].astype(np.int64)
    top = int(key.max()) + 1 if count else 0
    gave = runs.in_state("memory")[order] & (key >= 0)
    places = np.flatnonzero(gave)
    last = np.full(max(top, 1), -1, np.int64)
    last[key[places]] = places
    first = np.full(max(top, 1), -1, np.int64)
    first[key[places[::-1]]] = places[::-1]
    pairs_key: list[Ints] = []
    pairs_need: list[Ints] = []
    for piece in trace.pieces("dependencies", ["key", "dependency"]):
        if len(piece):
            one = piece["key"].to_numpy().astype(np.int64)
            other = piece["dependency"].to_numpy().astype(np.int64)
            known = (one >= 0) & (one < top) & (other >= 0) & (other < top)
            pairs_key.append(one[known])
            pairs_need.append(other[known])
    none = np.empty(0, np.int64)
    one = np.concatenate([none, *pairs_key])
    other = np.concatenate([none, *pairs_need])
    if (one[1:] < one[:-1]).any():
        sort = np.argsort(one, kind="stable")
        one, other = one[sort], other[sort]
    # for each execution the pairs of its key
    of_key = np.concatenate([[0], np.cumsum(np.bincount(one, minlength=max(top, 1)))])
    begin, end = of_key[np.maximum(key, 0)], of_key[np.maximum(key, 0) + 1]
    counts = np.where(key >= 0, end - begin, 0)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    dependent = np.repeat(np.arange(count), counts)
    pair = np.arange(int(offsets[-1])) - offsets[dependent] + begin[dependent]
    needed = last[other[pair]]
    # its result was computed anew later: the one before is what was needed
    needed = np.where(needed >= dependent, first[other[pair]], needed)
    kept = (needed >= 0) & (needed < dependent)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(dependent[kept], minlength=count))])
    return offsets.astype(np.int64), needed[kept].astype(np.int64)


def _same_thread(runs: Executions, order: Rows) -> Ints:
    lane = runs.process[order].astype(np.int64) << 40 | (runs.thread[order] & ((1 << 40) - 1))
    by_lane = np.argsort(lane, kind="stable")
    same = lane[by_lane][1:] == lane[by_lane][:-1]
    before = np.full(len(order), -1, np.int64)
    before[by_lane[1:][same]] = by_lane[:-1][same]
    return before


def _arrivals(trace: Trace, runs: Executions) -> Ints:
    """Give when the task of each execution was first known to a worker."""
    first = kept_arrivals(trace)
    if first is None:
        first = _first_arrivals(trace, int(runs.key.max()) + 1 if len(runs) else 0)
    result: Ints = np.where(runs.key >= 0, first[np.maximum(runs.key, 0)], runs.start)
    return result


def _first_arrivals(trace: Trace, top: int) -> Ints:
    """Give when each key was first known to a worker, as transitions say."""
    first = np.full(max(top, 1), np.iinfo(np.int64).max)
    for piece in trace.pieces("transitions", ["time", "key", "finish_state"]):
        if len(piece):
            states = list(piece["finish_state"].cat.categories)
            waiting = states.index("waiting") if "waiting" in states else -2
            key = piece["key"].to_numpy()
            came = (
                (piece["finish_state"].cat.codes.to_numpy() == waiting) & (key >= 0) & (key < top)
            )
            np.minimum.at(first, key[came], piece["time"].to_numpy()[came])
    keep_arrivals(trace, first)
    return first


def _barriers(known: Ints, start: Ints, stop: Ints) -> Ints:
    """Give, of executions in the order of starts, the last one before the latest empty moment."""
    count = len(start)
    if not count:
        return np.empty(0, np.int64)
    latest = np.maximum.accumulate(stop)
    # position of the one that ends last so far
    holder = np.maximum.accumulate(
        np.where(np.append(True, stop[1:] > latest[:-1]), np.arange(count), 0)
    )
    # from here on nothing was known before
    earliest = np.minimum.accumulate(known[::-1])[::-1]
    empty = np.append(False, earliest[1:] > latest[:-1])
    at = np.maximum.accumulate(np.where(empty, np.arange(count), -1))
    result: Ints = np.where(at >= 0, holder[np.maximum(at - 1, 0)], -1)
    return result


class Schedule:
    """The schedule of a run, to be played again with other durations.

    Every task stays on its worker, a worker begins its tasks in the recorded order, on whichever
    thread is free first, and keeps the delay each had after everything it follows had ended:
    scheduling, transfers, the script's own time. With the recorded durations it gives the recorded
    times exactly.
    """

    def __init__(self, graph: Graph, threads: dict[int, int]) -> None:
        self._graph = graph
        self._threads = _slots(graph, threads)
        self._dependencies = graph.dependencies.tolist()
        self._first = graph.first_dependency.tolist()
        self._process = graph.process.tolist()
        self._barrier = graph.barrier.tolist()
        self._start = graph.start.tolist()
        stops = graph.stop.tolist()
        self._delays = [
            start - ready for start, ready in zip(self._start, self._ready(stops), strict=True)
        ]

    def _ready(self, stops: list[int]) -> Iterator[int]:
        """Give when each could begin; `stops` is filled in, or known, up to there."""
        origin = self._start[0] if self._start else 0
        free = {process: [origin] * count for process, count in self._threads.items()}
        for heap in free.values():
            heapify(heap)
        needs, first = self._dependencies, self._first
        for i, (process, barrier) in enumerate(zip(self._process, self._barrier, strict=True)):
            heap = free[process]
            ready = heap[0]
            if barrier >= 0 and stops[barrier] > ready:
                ready = stops[barrier]
            for j in needs[first[i] : first[i + 1]]:
                if stops[j] > ready:
                    ready = stops[j]
            yield ready
            heapreplace(heap, stops[i])

    def played(self, durations: Ints) -> tuple[Ints, Ints]:
        """Play it with other durations, ns, and give starts and stops."""
        length = durations.tolist()
        delays = self._delays
        stops: list[int] = [0] * len(length)
        starts: list[int] = [0] * len(length)
        for i, ready in enumerate(self._ready(stops)):
            start = starts[i] = ready + delays[i]
            stops[i] = start + length[i]
        return np.array(starts, np.int64), np.array(stops, np.int64)


def _slots(graph: Graph, threads: dict[int, int]) -> dict[int, int]:
    """Give how many executions each worker may run at once: its threads, or what was seen."""
    slots = {}
    for process in np.unique(graph.process).tolist():
        mine = graph.process == process
        times = np.concatenate([graph.start[mine], graph.stop[mine]])
        ends = np.concatenate([np.ones(mine.sum(), np.int64), -np.ones(mine.sum(), np.int64)])
        order = np.lexsort((ends, times))  # at one time stops come first
        slots[process] = max(threads.get(process, 1), int(np.cumsum(ends[order]).max()))
    return slots
