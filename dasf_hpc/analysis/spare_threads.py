"""Analysis: threads without a task over time, and what they could take over.

While executions run and threads have no task, what runs could be spread over more threads: over
those that are free while tasks queue elsewhere (``uneven``), or over all (``no_parallelism``), in
the time in which none queues. Both are at most: as if tasks could be split and moved at no cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.analysis.executions import Floats, Ints
from dasf_hpc.analysis.graph import Graph
from dasf_hpc.analysis.savings import Change, Savings

Counts = NDArray[np.int32]

#: When something changes, by how much threads without a task do, tasks that queue at a worker, and
#: tasks that no worker knows yet.
_Changes = tuple[Ints, NDArray[np.int8], NDArray[np.int8], NDArray[np.int8]]


@dataclass(frozen=True)
class Threads:
    """Threads over time: what they have to do from each moment on.

    Attributes
    ----------
    time
        When something changes, ns.
    working
        Threads that have a task, at least 1.
    idle
        Threads that have none, without those that the scheduler has tasks for.
    queue
        Tasks that a worker knows and has no thread for.
    """

    time: Ints
    working: Counts
    idle: Counts
    queue: Counts

    def spent(self, graph: Graph, share: Floats) -> Ints:
        """Give a share of the time that executions take, which changes over time, ns."""
        return _integral(self.time, share, graph.start, graph.stop)


def _integral(time: Ints, values: Floats, start: Ints, stop: Ints) -> Ints:
    """Integrate values, each from its time to the next one, from each start to each stop."""
    until = np.append(0.0, np.cumsum(values * np.diff(time, append=time[-1:])))

    def before(moment: Ints) -> Floats:
        at = np.maximum(np.searchsorted(time, moment, "right") - 1, 0)
        result: Floats = until[at] + values[at] * np.maximum(0, moment - time[at])
        return result

    result: Ints = (before(stop) - before(start)).astype(np.int64)
    return result


def threads_over_time(run: Savings, able: Ints, known: Ints, new: NDArray[np.bool_]) -> Threads:
    changes = list(_of_workers(run, known))
    came = new & (able < known)
    for times, step in ((able[came], 1), (known[came], -1)):
        zero = np.zeros(len(times), np.int8)
        changes.append((times, zero, zero, np.full(len(times), step, np.int8)))
    time, free, queued, coming = (np.concatenate(column) for column in zip(*changes, strict=True))
    del changes
    order = np.argsort(time, kind="stable")
    threads = int(run.found["threads"].sum())
    idle = threads + np.cumsum(free[order], dtype=np.int32)
    return Threads(
        time[order],
        np.maximum(1, threads - idle),
        np.maximum(0, idle - np.cumsum(coming[order], dtype=np.int32)),
        np.cumsum(queued[order], dtype=np.int32),
    )


def spread(run: Savings, threads: Threads) -> dict[str, Ints]:
    """Say by how much executions were shorter if threads without a task took part of them, ns."""
    moved = np.minimum(threads.idle, threads.queue)
    return {
        kind: threads.spent(run.graph, more / (threads.working + more))
        for kind, more in (("uneven", moved), ("no_parallelism", threads.idle - moved))
    }


def shared(run: Savings, threads: Threads, change: Change) -> Change:
    """Share what some workers' executions get shorter by among all that have tasks meanwhile.

    Dask moves tasks to workers that become free: what one worker gains all gain.
    """
    graph = run.graph
    assert change.duration is not None
    rows = np.flatnonzero(change.duration > 0)
    gain = change.duration[rows] / np.maximum(1, run.duration[rows])
    time = np.concatenate([graph.start[rows], graph.stop[rows], threads.time])
    step = np.concatenate([gain, -gain, np.zeros(len(threads.time))])
    order = np.argsort(time, kind="stable")
    time = time[order]
    at = np.maximum(np.searchsorted(threads.time, time, "right") - 1, 0)
    share = np.maximum(0.0, np.cumsum(step[order])) / threads.working[at]
    return run.limited(Change(duration=_integral(time, share, graph.start, graph.stop)))


def _of_workers(run: Savings, known: Ints) -> Iterator[_Changes]:
    """Give when threads without a task, and tasks that queue at a worker, become more or fewer."""
    graph = run.graph
    order = np.argsort(graph.process, kind="stable")
    processes, firsts = np.unique(graph.process[order], return_index=True)
    threads = run.found["threads"].to_dict()
    for process, mine in zip(processes.tolist(), np.split(order, firsts[1:]), strict=True):
        time = np.concatenate([known[mine], run.left[mine]])
        step = np.repeat(np.array([1, -1], np.int32), len(mine))
        sort = np.lexsort((step, time))  # at one time what ends ends first
        time, has = time[sort], np.cumsum(step[sort], dtype=np.int32)
        own = np.int32(threads.get(process, 1))
        free, queue = np.maximum(0, own - has), np.maximum(0, has - own)
        more_free, more_queue = np.diff(free, prepend=own), np.diff(queue, prepend=np.int32(0))
        some = np.flatnonzero((more_free != 0) | (more_queue != 0))
        yield (
            time[some],
            more_free[some].astype(np.int8),
            more_queue[some].astype(np.int8),
            np.zeros(len(some), np.int8),
        )
