"""Analysis: the graph as it was executed, by which a run's length is explained and predicted.

An execution follows those of the tasks whose results it needs, and what its worker's threads did
before. Where for a moment no worker knew of any task, all later ones follow the last one before (a
barrier): the script waited for a result, or everything hung on one task.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapreplace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.executions import (
    Executions,
    Ints,
    keep_ability,
    keep_arrivals,
    kept_ability,
    kept_arrivals,
    layer_of,
)
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
    result, or the first one where that began after them.
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


def could_run(trace: Trace, runs: Executions, arrival: Ints) -> Ints:
    """Give when each task could run, by code of its key.

    When the last result that it needs is there. When one that needs none was submitted the trace
    does not know: tasks of one array or collection (one name in their keys) could run when the
    first of them arrived at a worker, any other when it arrived itself.

    Parameters
    ----------
    arrival
        When each key was first known to a worker, or began there; the largest int64: never.
    """
    kept = kept_ability(trace)
    if kept is not None:
        return kept
    done = np.full(len(arrival), -1, np.int64)
    ended = runs.in_state("memory") & (runs.key >= 0)
    done[runs.key[ended]] = runs.stop[ended]
    able = np.full(len(arrival), -1, np.int64)
    needs = np.zeros(len(arrival), bool)
    for piece in trace.pieces("dependencies", ["key", "dependency"]):
        if not len(piece):
            continue
        key, dependency = piece["key"].to_numpy(), piece["dependency"].to_numpy()
        known = (key >= 0) & (key < len(arrival))
        needs[key[known]] = True
        known &= (dependency >= 0) & (dependency < len(arrival))
        np.maximum.at(able, key[known], done[dependency[known]])
    executed = np.zeros(len(arrival), bool)
    executed[runs.key[runs.key >= 0]] = True
    roots = np.flatnonzero(executed & ~needs)
    able[roots] = _layer_arrivals(trace, roots, arrival)
    # a task whose dependencies' end is not known could run when it arrived
    able = np.where(able < 0, arrival, able)
    keep_ability(trace, able)
    return able


def _layer_arrivals(trace: Trace, roots: NDArray[np.intp], arrival: Ints) -> Ints:
    """Give, for tasks that need none, when the first task of the same collection arrived."""
    if not len(roots):
        return np.empty(0, np.int64)
    texts = trace.texts("keys", roots)
    layers = [layer_of(str(text)) for text in texts]
    codes, names = pd.factorize(pd.Series(layers, dtype=object))
    first = np.full(len(names), np.iinfo(np.int64).max)
    np.minimum.at(first, codes, arrival[roots])
    result: Ints = first[codes]
    return result


def first_known(trace: Trace, runs: Executions) -> Ints:
    """Give when each key was first known to a worker, or began there, by its code."""
    first = kept_arrivals(trace)
    if first is None:
        first = _first_arrivals(trace, int(runs.key.max()) + 1 if len(runs) else 0)
    first = first.copy()
    keyed = runs.key >= 0
    np.minimum.at(first, runs.key[keyed], runs.start[keyed])
    return first


class Schedule:
    """The schedule of a run, to be played again with other durations and delays.

    Every task stays on its worker, a worker begins its tasks in the recorded order, on whichever
    thread is free first, and keeps the delay each had after everything it follows had ended:
    scheduling, transfers, the script's own time. With the recorded durations it gives the recorded
    times exactly. Where all durations and delays are as recorded or shorter, no task ends later
    than recorded, and none earlier by more than the sum of all that is shorter.

    A task that secedes leaves its thread before it ends, and the next one may begin there.

    Parameters
    ----------
    threads
        Threads of each worker, by its row in ``processes``.
    left
        When each execution left its thread, ns, in the order of the graph; None: when it ended.

    Attributes
    ----------
    ready
        When each execution could begin: what it follows had ended, and a thread was free.
    delays
        From there to its start, ns; below 0 where clocks disagree.
    threads
        How many tasks the worker with most threads runs at once.
    seceded
        Whether a task left its thread before it ended.
    """

    def __init__(self, graph: Graph, threads: dict[int, int], left: Ints | None = None) -> None:
        left = graph.stop if left is None else left
        slots = _slots(graph, threads, left)
        self._origin = int(graph.start[0]) if len(graph) else 0
        self._slots = [slots.get(process, 1) for process in range(max(slots, default=0) + 1)]
        self.ready = np.maximum(_needs_there(graph), _thread_free(graph, self._slots, left))
        self.delays: Ints = graph.start - self.ready
        self._graph = graph
        self._away: Ints = graph.stop - left
        self.seceded = bool(self._away.any())
        self.threads = max(self._slots, default=1)
        self._process: list[int] = []
        self._needs: list[list[int] | None] = []

    def played(self, durations: Ints) -> tuple[Ints, Ints]:
        """Play it with other durations, ns, and give starts and stops."""
        stops = np.array(self._stops(durations + self.delays), np.int64)
        return stops - durations, stops

    def length(self, work: Ints) -> int:
        """Play it and give the time from the first start to the last stop, ns.

        Parameters
        ----------
        work
            Delay and duration of each execution, in sum.
        """
        return max(self._stops(work)) - self._origin if len(work) else 0

    def _stops(self, work: Ints) -> list[int]:
        if not self._process:
            self._process = self._graph.process.tolist()
            self._needs = _needs(self._graph, self.threads == 1 and not self.seceded, self.delays)
        if self.seceded:
            return self._stops_seceded(work)
        origin = self._origin
        stops: list[int] = []
        append = stops.append
        if self.threads == 1:
            free = [origin] * len(self._slots)
            for process, own, needs in zip(self._process, work.tolist(), self._needs, strict=True):
                ready = free[process]
                if needs:
                    for j in needs:
                        if stops[j] > ready:
                            ready = stops[j]
                ready += own
                free[process] = ready
                append(ready)
            return stops
        heaps = [[origin] * count for count in self._slots]
        for process, own, needs in zip(self._process, work.tolist(), self._needs, strict=True):
            heap = heaps[process]
            ready = heap[0]
            if needs:
                for j in needs:
                    if stops[j] > ready:
                        ready = stops[j]
            ready += own
            heapreplace(heap, ready)
            append(ready)
        return stops

    def _stops_seceded(self, work: Ints) -> list[int]:
        """Play it where threads are free before tasks end, but not before they begin."""
        stops: list[int] = []
        heaps = [[self._origin] * count for count in self._slots]
        before = np.minimum(0, self.delays)  # clocks disagree: it began before it could
        for process, own, needs, away, early in zip(
            self._process,
            work.tolist(),
            self._needs,
            self._away.tolist(),
            before.tolist(),
            strict=True,
        ):
            heap = heaps[process]
            ready = max([heap[0], *(stops[j] for j in needs or ())])
            stops.append(ready + own)
            heapreplace(heap, max(ready + early, ready + own - away))
        return stops


def _needs_there(graph: Graph) -> Ints:
    """Give when all that each follows on whatever worker had ended, as recorded."""
    there = np.full(len(graph), np.iinfo(np.int64).min)
    first = graph.first_dependency
    some = np.flatnonzero(first[1:] > first[:-1])
    if len(some):
        there[some] = np.maximum.reduceat(graph.stop[graph.dependencies], first[some])
    behind = graph.barrier >= 0
    there[behind] = np.maximum(there[behind], graph.stop[graph.barrier[behind]])
    return there


def _thread_free(graph: Graph, slots: list[int], left: Ints) -> Ints:
    """Give when a thread of its worker was free for each, as recorded."""
    free = np.empty(len(graph), np.int64)
    order = np.argsort(graph.process, kind="stable")
    origin = int(graph.start[0]) if len(graph) else 0
    firsts = np.searchsorted(graph.process[order], np.arange(len(slots) + 1))
    for count, first, last in zip(slots, firsts[:-1].tolist(), firsts[1:].tolist(), strict=True):
        mine = order[first:last]
        if count == 1:
            free[mine] = np.append(origin, left[mine][:-1])[: len(mine)]
            continue
        heap = [origin] * count
        # the moment at which it was free stands in the heap that its stop takes the place in
        free[mine] = [heapreplace(heap, stop) for stop in left[mine].tolist()]
    return free


def _needs(graph: Graph, prune: bool, delays: Ints) -> list[list[int] | None]:
    """Give what each follows besides its worker's threads: dependencies, and its barrier.

    Where each worker has one thread, and no clock disagrees, what ends on a worker ends in its
    order: what the one before on the worker has followed already need not be looked at again.
    """
    count = len(graph)
    first = graph.first_dependency
    task = np.repeat(np.arange(count), np.diff(first))
    need = graph.dependencies
    behind = graph.barrier >= 0
    if prune and (not count or int(delays.min()) >= 0):
        other = graph.process[task] != graph.process[need]
        task, need = task[other], need[other]
        order = np.argsort(graph.process, kind="stable")
        before = np.full(count, -1, np.int64)
        same = graph.process[order][1:] == graph.process[order][:-1]
        before[order[1:][same]] = order[:-1][same]
        behind &= (before < 0) | (graph.barrier != graph.barrier[before])
        behind &= graph.process[graph.barrier] != graph.process
    task = np.concatenate([task, np.flatnonzero(behind)])
    need = np.concatenate([need, graph.barrier[behind]])
    order = np.argsort(task, kind="stable")
    task, need = task[order], need[order]
    found: list[list[int] | None] = [None] * count
    cuts = np.flatnonzero(np.append(True, task[1:] != task[:-1])[: len(task)])
    all_needs = need.tolist()
    ends = [*cuts[1:].tolist(), len(all_needs)][: len(cuts)]
    for i, begin, end in zip(task[cuts].tolist(), cuts.tolist(), ends, strict=True):
        found[i] = all_needs[begin:end]
    return found


def _slots(graph: Graph, threads: dict[int, int], left: Ints) -> dict[int, int]:
    """Give how many executions each worker may run at once: its threads, or what was seen."""
    slots: dict[int, int] = {}
    if not len(graph):
        return slots
    order = np.argsort(graph.process, kind="stable")
    processes, firsts = np.unique(graph.process[order], return_index=True)
    for process, mine in zip(processes.tolist(), np.split(order, firsts[1:]), strict=True):
        times = np.concatenate([graph.start[mine], left[mine]])
        ends = np.concatenate([np.ones(len(mine), np.int64), -np.ones(len(mine), np.int64)])
        sort = np.lexsort((ends, times))  # at one time stops come first
        slots[process] = max(threads.get(process, 1), int(np.cumsum(ends[sort]).max()))
    return slots


def chain(graph: Graph) -> list[tuple[int, int]]:
    """Follow the run backwards from the one that ended last: the critical path.

    Returns
    -------
    list
        Each execution on it, the last first, and the one that it had to wait for: whatever ended
        last of its dependencies, the one before in its thread and its barrier; -1: none.
    """
    found = []
    current = int(np.argmax(graph.stop))
    while current >= 0:
        needs = graph.dependencies[
            graph.first_dependency[current] : graph.first_dependency[current + 1]
        ].tolist()
        before = [*needs, int(graph.same_thread[current]), int(graph.barrier[current])]
        previous = max((i for i in before if i >= 0), key=lambda i: int(graph.stop[i]), default=-1)
        found.append((current, previous))
        current = previous
    return found
