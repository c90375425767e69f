"""Analysis: how long a run would be on ideal ground, where nothing but work and order takes time.

The recorded schedule is played again (`dasf_hpc.analysis.graph.Schedule`) without delays. Every
task stays in its task thread and in its order, and follows the tasks whose results it needs and the
barriers of the script: what is left of the run's length is work that had to be done one after the
other. A task that seceded is then, for what it does from that moment on, in a thread of its own,
and waits there until the last task has ended that ended before it: what it does after that is work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.analysis.causes import split_delays
from dasf_hpc.analysis.executions import Ints
from dasf_hpc.analysis.graph import Graph, Schedule, chain
from dasf_hpc.analysis.savings import savings
from dasf_hpc.analysis.task_threads import TaskThreads
from dasf_hpc.trace.open import Trace

#: Parts of delays (`dasf_hpc.analysis.causes.DELAYS`) whose reason is data, and Dask's own.
DATA = ("transferring", "deserialising", "disk", "paused")
DASK = ("scheduling",)


@dataclass(frozen=True)
class Lengths:
    """Lengths of a run, from the first task's start to the last one's end, ns.

    Attributes
    ----------
    recorded
        As it was.
    without_data
        Without delays whose reason is data: transfers, deserialising, spilled results, and workers
        that were paused with full memory.
    without_scheduling
        Without Dask's own, too: from when a task could run to its start.
    ideal
        Without any, as where the script had not submitted a task yet.
    exact
        Whether it was played. Of more than
        `dasf_hpc.analysis.savings.PLAYED` executions these are what is left of the
        critical path, so no more than what playing it would give.
    """

    recorded: int
    without_data: int
    without_scheduling: int
    ideal: int
    exact: bool


def ideal_lengths(trace: Trace, threads: TaskThreads) -> Lengths:
    """Play a run without more and more of its delays.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    run = savings(trace)
    if not len(run.graph):
        return Lengths(0, 0, 0, 0, exact=True)
    graph, place = _in_task_threads(run.graph, threads)
    schedule = Schedule(graph, {})
    delays = np.maximum(schedule.delays, 0)
    parts = split_delays(trace, run, schedule.ready[place])
    none = np.zeros(len(run.graph), np.int64)
    data, dask = (np.zeros(len(graph), np.int64) for _ in range(2))
    data[place] = sum((parts[name] for name in DATA), none)
    dask[place] = sum((parts[name] for name in DASK), none)
    data = np.minimum(data, delays)
    dask = np.minimum(dask, delays - data)
    exact = run.played
    path = np.empty(0, np.int64) if exact else np.array([one for one, _ in chain(graph)])
    busiest = int(threads.useful.max(initial=0))
    lengths = [run.recorded]
    for removed in (data, data + dask, delays):
        if exact:
            length = schedule.length(graph.stop - graph.start + schedule.delays - removed)
        else:
            length = run.recorded - int(removed[path].sum())
        # where clocks disagree, delays below 0 would have a thread do two things at a time
        lengths.append(max(busiest, min(lengths[-1], length)))
    recorded, without_data, without_scheduling, ideal = lengths
    return Lengths(recorded, without_data, without_scheduling, ideal, exact)


def _in_task_threads(graph: Graph, threads: TaskThreads) -> tuple[Graph, Ints]:
    """Give the graph with task threads for workers, and where executions are in it.

    One that seceded is two: what it did in its task thread, and after.
    """
    count = len(graph)
    away = np.flatnonzero(threads.left < graph.stop)
    if not len(away):
        before = _before(threads.of)
        return replace(graph, process=threads.of, same_thread=before), np.arange(count)
    # what it waited for: the last that ended before it did
    by_stop = np.argsort(graph.stop, kind="stable")
    at = np.searchsorted(graph.stop[by_stop], graph.stop[away]) - 1
    last = np.where(at >= 0, by_stop[np.maximum(at, 0)], -1)
    waited = (last >= 0) & (graph.stop[last] > threads.left[away])
    begin = np.where(waited, graph.stop[last], threads.left[away])
    own = len(threads) + np.arange(len(away))
    start = np.concatenate([graph.start, begin])
    order = np.lexsort((np.arange(len(start)), start))
    place = np.empty(len(start), np.int64)
    place[order] = np.arange(len(start))
    ends = np.arange(count)
    ends[away] = count + np.arange(len(away))  # who needs it follows its second part
    task = np.concatenate(
        [
            np.repeat(np.arange(count), np.diff(graph.first_dependency)),
            ends[away],
            ends[away][waited],
        ]
    )
    need = np.concatenate([ends[graph.dependencies], away, ends[last[waited]]])
    task, need = place[task], place[need]
    known = need < task
    task, need = task[known], need[known]
    sort = np.argsort(task, kind="stable")
    barrier = np.concatenate([graph.barrier, np.full(len(away), -1)])
    barrier = np.where(barrier >= 0, place[ends[np.maximum(barrier, 0)]], -1)[order]
    of = np.concatenate([threads.of, own]).astype(np.int32)[order]
    made = Graph(
        rows=np.concatenate([graph.rows, graph.rows[away]])[order],
        process=of,
        function=np.concatenate([graph.function, graph.function[away]])[order],
        start=start[order],
        stop=np.concatenate([threads.left, graph.stop[away]])[order],
        first_dependency=np.append(0, np.cumsum(np.bincount(task, minlength=len(start)))),
        dependencies=need[sort],
        same_thread=_before(of),
        known=np.concatenate([graph.known, begin])[order],
        barrier=np.where(barrier < np.arange(len(start)), barrier, -1),
    )
    return made, place[:count]


def _before(of: NDArray[np.int32]) -> Ints:
    """Give, for each execution, the one before in its task thread; -1: none."""
    order = np.argsort(of, kind="stable")
    same = of[order][1:] == of[order][:-1]
    before = np.full(len(of), -1, np.int64)
    before[order[1:][same]] = order[:-1][same]
    return before
