"""Analysis: the threads that run tasks, each of which does one thing at a time.

A worker has as many task threads as Dask gave it; one that never ran a task is one, too. An
execution is its native thread's where these are no more than the worker's threads. Where there are
more (a task that leaves its thread has Dask begin another one, an actor's calls have their own), or
several ran in one at once (coroutines), each execution takes the task thread that ran the last one
of its native thread, if that is free, else the one that is free the longest. A worker that ran more
at once than it has threads has as many task threads as it ran at once. A worker that was restarted
under its name goes on with its threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.executions import Ints, group_sums
from dasf_hpc.analysis.graph import Graph, Rows
from dasf_hpc.trace.open import Trace

_NEVER = int(np.iinfo(np.int64).min)


@dataclass(frozen=True)
class TaskThreads:
    """Task threads of a run's workers.

    Attributes
    ----------
    of
        The task thread of each execution, in the order of the graph.
    process
        Of each task thread: row of its worker in ``processes``, of a restarted one the first.
    useful
        Of each task thread: time in which it executed tasks, ns.
    """

    of: NDArray[np.int32]
    process: Ints
    useful: Ints

    def __len__(self) -> int:
        return len(self.process)


def task_threads(trace: Trace, graph: Graph, native: Ints, found: pd.DataFrame) -> TaskThreads:
    """Give the task threads of a run.

    Parameters
    ----------
    graph
        The executed graph.
    native
        Native id of the thread of each execution, in the order of the graph.
    found
        The workers, as `dasf_hpc.analysis.executions.workers` gives them for these executions.
    """
    first_row = _restarted(trace, found)
    rows = found.index.to_numpy(np.int64)
    order = np.argsort(graph.process, kind="stable")
    begins, ends = np.searchsorted(graph.process[order], np.stack([rows, rows + 1]))
    lane = np.zeros(len(graph), np.int32)
    counts: dict[int, int] = {}
    threads = found["threads"].tolist()
    for row, own, begin, end in zip(
        rows.tolist(), threads, begins.tolist(), ends.tolist(), strict=True
    ):
        mine = order[begin:end]
        lane[mine], used = _lanes(graph, native, mine, int(own))
        one = first_row[row]
        counts[one] = max(counts.get(one, 0), used)
    offset = dict(zip(counts, np.cumsum([0, *counts.values()]).tolist(), strict=False))
    offsets = np.zeros(int(rows.max(initial=-1)) + 1, np.int32)
    for row in rows.tolist():
        offsets[row] = offset[first_row[row]]
    lane += offsets[graph.process]
    return TaskThreads(
        of=lane,
        process=np.repeat(np.array(list(counts), np.int64), list(counts.values())),
        useful=group_sums(lane, graph.stop - graph.start, sum(counts.values())),
    )


def _restarted(trace: Trace, found: pd.DataFrame) -> dict[int, int]:
    """Give, for each worker, the row of the first one of those that it took over from."""
    names = trace.processes["name"].tolist()
    first = {int(row): int(row) for row in found.index}
    latest: dict[str, tuple[int, int]] = {}
    in_order = found.sort_values("start", kind="stable")
    for row, start, stop in zip(
        in_order.index.tolist(), in_order["start"].tolist(), in_order["stop"].tolist(), strict=True
    ):
        name = names[row] if row < len(names) else None
        if not isinstance(name, str) or not name:
            continue
        before = latest.get(name)
        if before is not None and before[1] > start:
            continue  # two of one name at once
        if before is not None:
            first[row] = before[0]
        latest[name] = first[row], stop
    return first


def _lanes(graph: Graph, native: Ints, mine: Rows, threads: int) -> tuple[NDArray[np.int32], int]:
    """Give the task thread of each of a worker's executions, and how many it has."""
    own, _ = pd.factorize(native[mine])
    start, stop = graph.start[mine], graph.stop[mine]
    if not len(mine) or int(own.max()) < threads:
        by = np.argsort(own, kind="stable")
        again = own[by][1:] == own[by][:-1]
        if not (again & (start[by][1:] < stop[by][:-1])).any():
            return own.astype(np.int32), threads
    lanes = np.empty(len(mine), np.int32)
    last: dict[int, int] = {}
    free = [_NEVER] * threads
    for i, (thread, begin, end) in enumerate(
        zip(own.tolist(), start.tolist(), stop.tolist(), strict=True)
    ):
        at = last.get(thread, 0)
        if free[at] > begin or thread not in last:
            at = min(range(len(free)), key=free.__getitem__)
            if free[at] > begin:
                at = len(free)
                free.append(_NEVER)
        lanes[i] = last[thread] = at
        free[at] = end
    return lanes, len(free)
