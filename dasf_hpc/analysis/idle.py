"""Analysis of where time went: why slots are idle whose worker has no task.

What the scheduler holds and what other workers queue are causes for as many idle slots as they are
tasks, shared by all slots idle at that moment in proportion.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.analysis.executions import Floats, Ints
from dasf_hpc.analysis.slots import Split, exact_sum

#: The causes, in the order of precedence; what is left of the idle time is no parallelism.
CAUSES = ("scheduler", "elsewhere", "nothing_submitted")

#: Changes that are looked at together. Measured: arrays of more leave the caches and take twice as
#: long; for fewer, the calls count.
AT_ONCE = 1 << 18
#: The same for each worker or GPU, at least: a window costs some calls for each.
AT_ONCE_EACH = 1 << 8


@dataclass(frozen=True)
class Tasks:
    """Tasks of all workers over time, as sorted times, ns.

    Attributes
    ----------
    able, arrived
        When a task could run that no worker knew of, and when a worker did.
    empty_from, empty_until
        Stretches of time in which no worker knew of any task.
    """

    able: Ints
    arrived: Ints
    empty_from: Ints
    empty_until: Ints


#: Two counts in one number, so that one sum gives both: this is one of the first. Slots that idle
#: and tasks that queue are such a pair, tasks that could run and empty stretches another.
_HIGH = 1 << 32
_OF_TASKS = {"able": _HIGH, "arrived": -_HIGH, "empty_from": 1, "empty_until": -1}


def idle_parts(
    tasks: Tasks, workers: Sequence[Split], gpus: Sequence[Split] = ()
) -> list[dict[str, int]]:
    """Split the time of slots whose worker has no task; the parts of each sum to it exactly.

    Parameters
    ----------
    tasks
        What could run and what was known.
    workers
        Their slots, which share the causes.
    gpus
        Others, which only have them.

    Returns
    -------
    list
        Time by cause, ns: of each worker, then of each GPU.
    """
    rows = [*workers, *gpus]
    used = [row.times for row in rows if len(row.times)]
    found = np.zeros((len(CAUSES), len(rows)))
    if used:
        span = min(int(times[0]) for times in used), max(int(times[-1]) for times in used)
        of_tasks = {name: np.clip(getattr(tasks, name), *span) for name in _OF_TASKS}
        sums = [0, 0]
        for window in itertools.pairwise(_windows([*used, *of_tasks.values()], *span)):
            sums = _add_window(found, sums, rows, len(workers), of_tasks, *window)
    return [_exact(row, times) for row, times in zip(rows, found.T.tolist(), strict=True)]


def _windows(times: Sequence[Ints], first: int, last: int) -> list[int]:
    """Give bounds of windows that hold about `AT_ONCE` changes each."""
    count = -(-sum(map(len, times)) // max(AT_ONCE, AT_ONCE_EACH * len(times)))
    some = np.sort(np.concatenate([part[::64] for part in times]))
    inner = np.unique(some[np.arange(1, count) * len(some) // count])
    return [first, *(int(t) for t in inner if first < t <= last), last + 1]


def _add_window(
    found: Floats,
    sums: list[int],
    rows: Sequence[Split],
    sharing: int,
    of_tasks: dict[str, Ints],
    begin: int,
    end: int,
) -> list[int]:
    """Add what a window of time holds to `found`.

    Parameters
    ----------
    found
        Time by cause and row, ns.
    sums
        Both pairs of counts before the window.
    rows, sharing
        All slots; the first so many share the causes.
    of_tasks
        Times by what changes then.
    begin, end
        The window.

    Returns
    -------
    list
        Both pairs of counts after it.
    """
    ranges = [tuple(np.searchsorted(row.times, (begin, end)).tolist()) for row in rows]
    parts = list(zip(rows, ranges, strict=True))
    none = np.empty(0, np.int64)
    left = np.concatenate([none, *(np.diff(_with_before(row.left, *r)) for row, r in parts)])
    queued = np.concatenate(
        [none, *(np.diff(_with_before(row.queued, *r)) for row, r in parts[:sharing])]
    )
    times = [row.times[first:last] for row, (first, last) in parts]
    # what holds from the begin on counts from the begin
    times.append(np.array([begin], np.int64))
    changes = [np.zeros(len(left) + 1, np.int64)]
    for name, step in _OF_TASKS.items():
        first, last = np.searchsorted(of_tasks[name], (begin, end)).tolist()
        times.append(of_tasks[name][first:last])
        changes.append(np.full(last - first, step, np.int64))
    time = np.concatenate(times)
    of_slots = np.zeros(len(time), np.int64)
    of_slots[: len(queued)] = left[: len(queued)] * _HIGH + queued
    order = np.argsort(time)
    time = time[order]
    slots = np.cumsum(of_slots[order]) + sums[0]
    known = np.cumsum(np.concatenate(changes)[order]) + sums[1]
    # the changes of rows among all, in the order of time
    place = np.flatnonzero(order < len(left))
    of = order[place]
    change = left[of].astype(np.float64)
    counts = [last - first for first, last in ranges]
    owner = np.repeat(np.arange(len(rows), dtype=np.int32), counts)[of]
    before = np.array([row.left[first - 1] if first else 0 for row, (first, _) in parts])
    for number, one in enumerate(_times_of_one(slots, known, np.diff(time, append=end))):
        if one is None:
            continue
        until = np.cumsum(one)
        whole = float(until[-1])
        rest = whole - (until - one)[place]
        found[number] += before * whole
        found[number] += np.bincount(owner, change * rest, minlength=len(rows))
    return [int(slots[-1]), int(known[-1])]


def _with_before(values: NDArray[np.int32], first: int, last: int) -> Ints:
    before = values[first - 1 : first] if first else np.zeros(1, np.int64)
    return np.concatenate([before, values[first:last]], dtype=np.int64)


def _times_of_one(slots: Ints, known: Ints, lengths: Ints) -> list[Floats | None]:
    """Give, for each cause, for how long an idle slot has it in each stretch, ns; None: never."""
    idle, queued = slots >> 32, slots & (_HIGH - 1)
    released, empty = known >> 32, known & (_HIGH - 1)
    share = lengths / np.maximum(idle, 1)
    waiting = np.minimum(released, idle)
    others = nothing = None
    if queued.any():
        others = np.minimum(queued, idle - waiting) * share
    if empty.any():
        nothing = np.where((empty > 0) & (released == 0) & (queued == 0), lengths, 0.0)
    return [waiting * share, others, nothing]


def _exact(row: Split, found: list[float]) -> dict[str, int]:
    """Round times so that they sum to the row's idle time."""
    lengths = np.diff(row.times)
    whole = rest = exact_sum(row.left[:-1], lengths) if len(lengths) else 0
    parts = {}
    for name, time in zip(CAUSES, found, strict=True):
        parts[name] = max(0, min(rest, round(time))) if whole else 0
        rest -= parts[name]
    return {**parts, "no_parallelism": rest}
