"""Nsight, fourth step: which task made each CUDA call, and so which launched each kernel.

A call belongs to the task that its thread ran at that moment, and what ran on a GPU to the task of
the call that launched it: both carry a number (``correlationId``), unique in their process. That
holds for CUDA graphs too, whose kernels carry the number of the graph's launch. A call of a thread
that runs no tasks itself, such as one that a task started, belongs to the only task that its
process ran at that moment; where there were several nobody knows whose it is.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dasf_hpc.nsight.sqlite import NONE, distinct_values

Array = npt.NDArray[Any]

FOREVER = np.iinfo(np.int64).max
"""Stands for the end of what never ended."""


class Reason(enum.IntEnum):
    """Why a call or kernel belongs to no task, or, for the first two, how its task was found."""

    BY_THREAD = 0
    """Its thread, or that of the call that launched it, ran the task."""

    ONLY_TASK = 1
    """Its thread runs no tasks, and its process ran this one only."""

    BETWEEN_TASKS = 2
    """Its thread runs tasks, but ran none at that moment."""

    SEVERAL_TASKS = 3
    """Its thread runs no tasks, and its process ran several."""

    NO_TASK = 4
    """Its thread runs no tasks, and its process ran none at that moment."""

    UNKNOWN_PROCESS = 5
    """The trace has no task of its process."""

    NO_CALL = 6
    """The report has no call that launched it: it was trimmed, or the GPU itself did it."""

    NO_PROCESS = 7
    """The report does not say its process."""

    NOT_TIED = 8
    """Nothing ties its report's clock to the trace's: its thread tells no task."""

    BY_KERNELS = 9
    """Nothing launched it; kernels of this task alone ran on its GPU at that moment."""

    NO_KERNEL = 10
    """Nothing launched it, and no kernel of a task, or of several, ran on its GPU then."""

    NO_THREAD = 11
    """The report does not say its thread."""


SENTENCES: dict[Reason, str | None] = {
    Reason.BY_THREAD: None,
    Reason.ONLY_TASK: "its thread runs no tasks; this was the only one that its process ran then",
    Reason.BETWEEN_TASKS: "its thread ran no task at that moment",
    Reason.SEVERAL_TASKS: "its thread runs no tasks, and its process ran several at that moment",
    Reason.NO_TASK: "its process ran no task at that moment",
    Reason.UNKNOWN_PROCESS: "the trace has no task of its process",
    Reason.NO_CALL: "the report has no call that launched it",
    Reason.NO_PROCESS: "the report does not say its process",
    Reason.NOT_TIED: "nothing ties its report's clock to the trace's, and it is in no task's range",
    Reason.BY_KERNELS: "no call launched it; kernels of this task alone ran on its GPU then",
    Reason.NO_KERNEL: "no call launched it, and kernels of no task or of several ran on its GPU",
    Reason.NO_THREAD: "the report does not say its thread",
}
"""What stands in columns ``reason``."""


@dataclass(frozen=True)
class RunningTasks:
    """When each task of one process ran, and where.

    Attributes
    ----------
    row
        The task's row in the trace.
    thread
        Native id of the thread that ran it.
    start, stop
        From when, and until when excluded; `FOREVER` where it never stopped.
    """

    row: Array
    thread: Array
    start: Array
    stop: Array

    @functools.cached_property
    def by_thread(self) -> dict[int, tuple[Array, Array, Array]]:
        """Rows, starts and stops of each thread's tasks, in order of start."""
        order = np.argsort(self.start, kind="stable")
        stop = np.maximum(self.stop, self.start)
        return {
            thread: (self.row[own], self.start[own], stop[own])
            for thread, places in grouped(self.thread[order])
            for own in [order[places]]
        }

    @functools.cached_property
    def at_once(self) -> Overlaps:
        """How many ran at which time, and which where it was one."""
        return Overlaps.of(self.start, np.maximum(self.stop, self.start))


def task_of_calls(tasks: RunningTasks, thread: Array, time: Array) -> tuple[Array, Array]:
    """Find the task to which each call of one process belongs.

    Parameters
    ----------
    tasks
        All of the process, on the clock of `time`.
    thread, time
        Who called, and when.

    Returns
    -------
    task : int32
        Rows of tasks, -1 for none.
    reason : int8
        A `Reason` each.
    """
    task = np.full(len(time), NONE, np.int32)
    reason = np.full(len(time), Reason.NO_TASK, np.int8)
    if not len(tasks.row):
        reason[:] = Reason.UNKNOWN_PROCESS
        return task, reason
    others = []
    for number, calls in grouped(thread):
        own = tasks.by_thread.get(number)
        if own is None:
            others.append(calls)
            continue
        row, start, stop = own
        found = innermost(start, stop, time[calls])
        inside = found != NONE
        task[calls[inside]] = row[found[inside]]
        reason[calls] = np.where(inside, Reason.BY_THREAD, Reason.BETWEEN_TASKS)
    if others:
        calls = np.concatenate(others)
        count, found = tasks.at_once.running(time[calls])
        only = count == 1
        task[calls[only]] = tasks.row[found[only]]
        reason[calls[only]] = Reason.ONLY_TASK
        reason[calls[count > 1]] = Reason.SEVERAL_TASKS
    return task, reason


def innermost(start: Array, stop: Array, at: Array) -> Array:
    """Find, for each instant, the interval [start, stop) that holds it and began last, -1 for none.

    Parameters
    ----------
    start, stop
        The intervals, in order of start; they may lie in each other.
    at
        The instants.
    """
    if not len(start):
        return np.full(len(at), NONE, np.int64)
    found: Array = np.searchsorted(start, at, side="right") - 1
    over = (found >= 0) & (stop[found] <= at)
    if (stop[:-1] <= start[1:]).all():
        return np.where(over, NONE, found)
    around = _earlier_that_ends_later(stop.tolist())
    while over.any():
        found[over] = around[found[over]]
        over = (found >= 0) & (stop[found] <= at)
    return found


def pieces(start: Array, stop: Array, *more: Array) -> tuple[Array, Array, Array]:
    """Cut time at the ends of intervals, and find for each piece the interval that began last.

    Each instant that intervals hold is in one piece, and of one interval: the one that began last
    of those that hold it, of equal begins the shortest. So the pieces of all intervals sum up to
    the time that they cover together.

    Parameters
    ----------
    start, stop
        The intervals [start, stop), in any order; one that ends before it begins holds nothing.
    more
        Further times at which to cut.

    Returns
    -------
    start, stop
        The pieces, in order of time.
    which
        Position of each one's interval.
    """
    order = np.lexsort((-stop, start))
    cuts = np.unique(np.concatenate([start, stop, *more]))
    found = innermost(start[order], np.maximum(start, stop)[order], cuts[:-1])
    inside = np.flatnonzero(found != NONE)
    return cuts[inside], cuts[inside + 1], order[found[inside]]


def _earlier_that_ends_later(stops: Sequence[int]) -> Array:
    """Give, for each interval, the last one before it that ends later, -1 for none."""
    around = np.full(len(stops), NONE, np.int64)
    open_ones: list[int] = []
    for place, stop in enumerate(stops):
        while open_ones and stops[open_ones[-1]] <= stop:
            open_ones.pop()
        if open_ones:
            around[place] = open_ones[-1]
        open_ones.append(place)
    return around


@dataclass(frozen=True)
class Overlaps:
    """How many of some intervals [start, stop) hold an instant, and which where it is one.

    Attributes
    ----------
    starts, stops
        Sorted, each for itself.
    began, ended
        Sums of the positions of the intervals that began or ended first, from none on: of all that
        began less of all that ended is the position of the one that is left.
    """

    starts: Array
    stops: Array
    began: Array
    ended: Array

    @classmethod
    def of(cls, start: Array, stop: Array) -> Overlaps:
        """Prepare intervals, in any order."""
        by_start, by_stop = np.argsort(start, kind="stable"), np.argsort(stop, kind="stable")
        began, ended = (np.concatenate([[0], np.cumsum(order)]) for order in (by_start, by_stop))
        return cls(start[by_start], stop[by_stop], began, ended)

    def running(self, at: Array) -> tuple[Array, Array]:
        """Look at instants.

        Returns
        -------
        count : int64
            How many intervals hold the instant.
        which : int64
            The interval's position where `count` is 1, else meaningless.
        """
        began = np.searchsorted(self.starts, at, side="right")
        ended = np.searchsorted(self.stops, at, side="right")
        return began - ended, self.began[began] - self.ended[ended]


def grouped(values: Array) -> Iterator[tuple[int, Array]]:
    """Give each distinct value and the places where it stands, in their order."""
    distinct, codes = distinct_values(values)
    if len(distinct) == 1:
        yield int(distinct[0]), np.arange(len(values))
        return
    # NumPy sorts 16 bits by radix
    codes = codes.astype(np.int16 if len(distinct) < 1 << 15 else np.int64)
    order = np.argsort(codes, kind="stable")
    cuts = np.searchsorted(codes[order], np.arange(len(distinct) + 1))
    for place, value in enumerate(distinct.tolist()):
        yield int(value), order[cuts[place] : cuts[place + 1]]


@dataclass(frozen=True)
class Calls:
    """Calls of a report, to be found by what they launched.

    Attributes
    ----------
    key
        Process and correlation, `call_key`; sorted.
    thread, start, task, reason
        Of each call.
    """

    key: Array
    thread: Array
    start: Array
    task: Array
    reason: Array

    @classmethod
    def of(
        cls, pid: Array, correlation: Array, thread: Array, start: Array, task: Array, reason: Array
    ) -> Calls:
        """Sort calls by what they launched."""
        key = call_key(pid, correlation)
        order = np.argsort(key, kind="stable")
        return cls(key[order], thread[order], start[order], task[order], reason[order])

    def launching(self, pid: Array, correlation: Array) -> Launches:
        """Find the call that launched each kernel, copy, fill or wait.

        Of several with one number, as when a runtime call holds a driver call, it is the first.
        """
        key = call_key(pid, correlation)
        none = np.full(len(key), NONE)
        if not len(self.key):
            found = np.zeros(len(key), bool)
            launches = Launches(*(none.astype(t) for t in ("i4", "i8", "i4", "i1")))
        else:
            place = np.minimum(np.searchsorted(self.key, key), len(self.key) - 1)
            found = (self.key[place] == key) & (correlation != NONE)
            launches = Launches(
                thread=np.where(found, self.thread[place], NONE).astype(np.int32),
                start=np.where(found, self.start[place], NONE),
                task=np.where(found, self.task[place], NONE).astype(np.int32),
                reason=self.reason[place].astype(np.int8),
            )
        launches.reason[~found] = Reason.NO_CALL
        launches.reason[pid == NONE] = Reason.NO_PROCESS
        return launches


@dataclass(frozen=True)
class Launches:
    """Of each kernel, copy, fill or wait: who launched it, when, and for which task."""

    thread: Array
    start: Array
    task: Array
    reason: Array


def call_key(pid: Array, correlation: Array) -> Array:
    """Make one number of a process and a correlation (32 bits each, none is -1)."""
    key: Array = (pid.astype(np.int64) << 32) | (correlation.astype(np.int64) & 0xFFFFFFFF)
    return key
