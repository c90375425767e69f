"""Analysis: the threads that run tasks, each of which does one thing at a time.

A worker has as many task threads as Dask gave it; one that never ran a task is one, too. A worker
that was restarted under its name goes on with its threads.

- An execution is in the task thread that is its native thread, where these are no more than the
  worker's threads. Where there are more, or several executions are in one at once (coroutines are
  all in the event loop's), it takes the task thread that ran the last one of its native thread, if
  that is free, else the one that is free the longest.
- A task that secedes (as one does that waits for tasks of its own) leaves its task thread then, for
  which Dask begins another native one. What it does from then on is in no task thread.
- Calls of actors' methods have a native thread of their own beside the worker's threads. A worker
  that ran more at once than it has threads has as many task threads as it ran at once, so that none
  executed for longer than the run took.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.executions import Executions, Ints, group_sums
from dasf_hpc.analysis.graph import Graph, Rows
from dasf_hpc.trace.open import Trace

#: The state of a task that seceded.
SECEDED = "long-running"

_NEVER = int(np.iinfo(np.int64).min)


@dataclass(frozen=True)
class TaskThreads:
    """Task threads of a run's workers.

    Attributes
    ----------
    of
        The task thread of each execution, in the order of the graph.
    left
        When each execution left it, ns: when it ended, or seceded.
    process
        Of each task thread: row of its worker in ``processes``, of a restarted one the first.
    useful
        Of each task thread: time in which it executed tasks, ns.
    worker
        By row of each worker: that of the first one of its name whose threads it went on with.
    """

    of: NDArray[np.int32]
    left: Ints
    process: Ints
    useful: Ints
    worker: dict[int, int]

    def __len__(self) -> int:
        return len(self.process)


def task_threads(
    trace: Trace, runs: Executions, graph: Graph, found: pd.DataFrame, left: Ints | None = None
) -> TaskThreads:
    """Give the task threads of a run.

    Parameters
    ----------
    runs, graph
        The executions, and their graph.
    found
        The workers, as `dasf_hpc.analysis.executions.workers` gives them for these executions.
    left
        What `left_threads` gives, where that is known already.
    """
    left = left_threads(trace, runs, graph) if left is None else left
    native = runs.thread[graph.rows]
    first_row = _taken_over(trace, found)
    rows = found.index.to_numpy(np.int64)
    order = np.argsort(graph.process, kind="stable")
    begins, ends = np.searchsorted(graph.process[order], np.stack([rows, rows + 1]))
    of = np.zeros(len(graph), np.int32)
    counts: dict[int, int] = {}
    for row, threads, begin, end in zip(
        rows.tolist(), found["threads"].tolist(), begins.tolist(), ends.tolist(), strict=True
    ):
        mine = order[begin:end]
        of[mine], used = _placed(native[mine], graph.start[mine], left[mine], int(threads))
        one = first_row[row]
        counts[one] = max(counts.get(one, 0), used)
    offset = dict(zip(counts, np.cumsum([0, *counts.values()]).tolist(), strict=False))
    offsets = np.zeros(int(rows.max(initial=0)) + 1, np.int32)
    for row in rows.tolist():
        offsets[row] = offset[first_row[row]]
    of += offsets[graph.process]
    return TaskThreads(
        of=of,
        left=left,
        process=np.repeat(np.array(list(counts), np.int64), list(counts.values())),
        useful=group_sums(of, left - graph.start, sum(counts.values())),
        worker=first_row,
    )


def left_threads(trace: Trace, runs: Executions, graph: Graph) -> Ints:
    """Give when each execution ended or, where that was before, seceded."""
    moments = [
        piece[(piece["finish_state"] == SECEDED).to_numpy()]
        for piece in trace.pieces("transitions", ["time", "process", "key", "finish_state"])
        if len(piece) and (piece["finish_state"] == SECEDED).any()
    ]
    if not moments:
        return graph.stop
    seceded = pd.concat(moments)[["time", "process", "key"]]
    executed = pd.DataFrame(
        {"process": graph.process, "key": runs.key[graph.rows], "place": np.arange(len(graph))}
    )
    both = executed[executed["key"].isin(seceded["key"])].merge(seceded, on=["process", "key"])
    place, time = both["place"].to_numpy(), both["time"].to_numpy(np.int64)
    inside = (graph.start[place] <= time) & (time < graph.stop[place])
    left = graph.stop.copy()
    np.minimum.at(left, place[inside], time[inside])
    return left


def _taken_over(trace: Trace, found: pd.DataFrame) -> dict[int, int]:
    """Give, for each worker, the row of the first one of its name whose threads it goes on with."""
    names = trace.processes["name"].tolist()
    first = {int(row): int(row) for row in found.index}
    latest: dict[str, tuple[int, int]] = {}
    for row, worker in found.sort_values("start", kind="stable").iterrows():
        at = int(str(row))
        name = names[at] if at < len(names) else None
        if not isinstance(name, str) or not name:
            continue
        before = latest.get(name)
        if before is not None and before[1] > worker["start"]:
            continue  # two of one name at once
        if before is not None:
            first[at] = before[0]
        latest[name] = first[at], int(worker["stop"])
    return first


def _placed(native: Ints, start: Ints, left: Ints, threads: int) -> tuple[NDArray[np.int32], int]:
    """Give the task thread of each of a worker's executions, and how many it has."""
    own, _ = pd.factorize(native)
    if not len(own) or int(own.max()) < threads:
        by: Rows = np.argsort(own, kind="stable")
        again = own[by][1:] == own[by][:-1]
        if not (again & (start[by][1:] < left[by][:-1])).any():
            return own.astype(np.int32), threads
    of = np.empty(len(own), np.int32)
    last: dict[int, int] = {}
    free = [_NEVER] * threads
    for i, (thread, begin, end) in enumerate(
        zip(own.tolist(), start.tolist(), left.tolist(), strict=True)
    ):
        at = last.get(thread, -1)
        if at < 0 or free[at] > begin:
            at = min(range(len(free)), key=free.__getitem__)
            if free[at] > begin:
                at = len(free)
                free.append(_NEVER)
        of[i] = last[thread] = at
        free[at] = end
    return of, len(free)
