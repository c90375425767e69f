"""Nsight, when threads were on a CPU: the time that each task's thread was off it.

nsys notes when a thread got a CPU and when it left one. Newer versions say of a thread that leaves
in which state it is: one that could have gone on was preempted, another one waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dasf_hpc.nsight.attribute import RunningTasks, grouped, pieces
from dasf_hpc.nsight.sqlite import NONE, Export
from dasf_hpc.trace.holdings import Kind

if TYPE_CHECKING:
    from dasf_hpc.nsight.rows import Placing

Array = npt.NDArray[Any]

TABLE = "SCHED_EVENTS"

#: Values of ``threadState``: ENUM_SAMPLING_THREAD_STATE.
THREAD_STATES: Mapping[int, str] = {
    0: "unknown",
    1: "running",
    2: "interruptible",
    3: "uninterruptible",
    4: "stopped",
    5: "terminated",
    6: "unscheduled",
    7: "waiting",
    8: "osruntime",
    9: "initialized",
    10: "transition",
}
#: A thread that leaves a CPU in this state could have gone on: others got the CPU.
PREEMPTED = frozenset({"running"})
#: One that leaves it in one of these waits for something.
BLOCKED = frozenset({"interruptible", "uninterruptible", "stopped", "waiting", "osruntime"})

#: Intervals off the CPU within a task that are kept one by one, ns.
KEPT = 1_000_000


def place(placing: Placing) -> None:
    """Put the sums of each task into table ``task_cpu``, and long intervals into a file."""
    with Export.opened(placing.report.sqlite) as export:
        if TABLE not in export.columns:
            return
        event = export.numbers(
            TABLE,
            {
                "pid": ("globalTid", NONE),
                "tid": ("globalTid", NONE),
                "start": ("start", NONE),
                "on": ("isSchedIn", 0),
                "state": ("threadState", NONE),
            },
        )
        states = {**THREAD_STATES, **export.enum("ENUM_SAMPLING_THREAD_STATE")}
    placed = event["start"] != NONE
    if not placed.any():
        return
    placing.summed[Kind.SWITCHES] = int(placed.sum())
    # of other people's processes nothing is kept
    mine = np.isin(event["pid"], placing.own_pids()) & placed
    first, last = event["start"][placed].min(), event["start"][placed].max()
    event = {name: values[mine] for name, values in event.items()}
    process = placing.process(event["pid"])
    sums: dict[str, list[Array]] = {}
    kept: dict[str, list[Array]] = {}
    for pid, rows in grouped(event["pid"]):
        # the report tells what threads did between its first event and its last
        window = np.array([first, last])
        pids = np.full(2, pid)
        placing.times(pids, window)
        start = event["start"][rows]
        placing.times(event["pid"][rows], start)
        tasks = placing.tasks(pid)
        for thread, own in grouped(event["tid"][rows]):
            if thread not in tasks.by_thread:
                continue
            switches = Switches.of(
                start[own], event["on"][rows[own]] != 0, event["state"][rows[own]]
            )
            found, stretches = off_of_tasks(
                tasks, thread, switches, (int(window[0]), int(window[1])), states
            )
            for name, values in found.items():
                sums.setdefault(name, []).append(values)
            for columns, values in ((sums, found["task"]), (kept, stretches["task"])):
                columns.setdefault("process", []).append(np.full(len(values), process[rows[0]]))
                columns.setdefault("thread", []).append(np.full(len(values), thread))
            for name, values in stretches.items():
                kept.setdefault(name, []).append(values)
    if sums:
        _add(placing, {name: np.concatenate(parts) for name, parts in sums.items()})
    if kept:
        long = {name: np.concatenate(parts) for name, parts in kept.items()}
        long["state"] = placing.kinds("thread_states", states, long["state"])
        placing.spool("off_cpu", long)


@dataclass(frozen=True)
class Switches:
    """When a thread was off the CPU, and when nobody knows whether it was.

    Attributes
    ----------
    start, stop, state
        Off the CPU: from when, until when, and the thread's state as it left, as a number.
    lost_start, lost_stop
        Between two events of one sort: the event of the other sort is lost.
    """

    start: Array
    stop: Array
    state: Array
    lost_start: Array
    lost_stop: Array

    @classmethod
    def of(cls, start: Array, on: Array, state: Array) -> Switches:
        """Make intervals of events.

        Before the first event the thread was in the opposite state of that, since the smallest
        int64; after the last one it stays so until the largest.

        Parameters
        ----------
        start
            When the thread got a CPU or left one, in any order.
        on
            Whether it got one.
        state
            Its state as a number, told where it left one.
        """
        order = np.argsort(start, kind="stable")
        limits = np.iinfo(np.int64)
        start = np.concatenate([[limits.min], start[order], [limits.max]])
        on, state = on[order], state[order]
        before = np.concatenate([~on[:1], on])
        after = np.concatenate([on, ~on[-1:]])
        state = np.concatenate([[NONE], state])
        off, lost = ~before & after, before == after
        return cls(start[:-1][off], start[1:][off], state[off], start[:-1][lost], start[1:][lost])


def off_of_tasks(
    tasks: RunningTasks,
    thread: int,
    switches: Switches,
    window: tuple[int, int],
    states: Mapping[int, str],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Sum up for each task of a thread how long the thread was off the CPU within it.

    Parameters
    ----------
    tasks
        All of the process.
    thread
        Native id of the thread.
    switches
        When it was off the CPU.
    window
        From when to when the report tells what threads did.
    states
        What the numbers of states mean.

    Returns
    -------
    sums
        A value each task, of the columns of table ``task_cpu``. Where tasks lie in each other, an
        instant is of the one that began last.
    long
        Intervals of `KEPT` ns and more, of the columns of table ``off_cpu``.
    """
    row, begun, ended = tasks.by_thread[thread]
    begun, ended = np.clip(begun, *window), np.clip(ended, *window)
    cuts = (switches.start, switches.stop, switches.lost_start, switches.lost_stop)
    off_start, off_stop, *lost = (np.clip(values, *window) for values in cuts)
    first, last, which = pieces(begun, ended, off_start, off_stop, *lost)
    size = last - first
    known = np.zeros(len(row), np.int64)
    told = _within(lost[0], lost[1], first, last) == NONE
    np.add.at(known, which[told], size[told])
    place = _within(off_start, off_stop, first, last)
    inside = np.flatnonzero(place != NONE)
    interval, which, size = place[inside], which[inside], size[inside]
    first, last = first[inside], last[inside]
    # what a task that lies within another one cut apart is one interval of the other
    pairs, number = np.unique(np.stack([which, interval]), axis=1, return_inverse=True)
    number = number.reshape(-1)
    length = np.zeros(pairs.shape[1], np.int64)
    np.add.at(length, number, size)
    task, interval = pairs
    state = switches.state[interval]
    sums = {"task": row, "known": known}
    for name, of in (
        ("off", np.ones(len(task), bool)),
        ("blocked", _in(state, states, BLOCKED)),
        ("preempted", _in(state, states, PREEMPTED)),
    ):
        sums[name] = np.zeros(len(row), np.int64)
        np.add.at(sums[name], task[of], length[of])
    sums["count"] = np.bincount(task, minlength=len(row))
    sums["longest"] = np.zeros(len(row), np.int64)
    np.maximum.at(sums["longest"], task, length)
    told = known > 0
    long = size >= KEPT
    return (
        {name: values[told] for name, values in sums.items()},
        {
            "start": first[long],
            "stop": last[long],
            "state": switches.state[place[inside][long]],
            "task": row[which[long]],
        },
    )


def _within(start: Array, stop: Array, first: Array, last: Array) -> Array:
    """Give the interval that each piece lies in, -1 for none; pieces are cut at their ends."""
    if not len(start):
        return np.full(len(first), NONE, np.int64)
    place = np.searchsorted(start, first, side="right") - 1
    held = (place >= 0) & (stop[np.maximum(place, 0)] >= last)
    found: Array = np.where(held, place, NONE)
    return found


def _in(state: Array, states: Mapping[int, str], names: frozenset[str]) -> Array:
    return np.isin(state, [number for number, name in states.items() if name in names])


def _add(placing: Placing, columns: dict[str, Array]) -> None:
    placing.additions.made("task_cpu")
    table = placing.run.tables["task_cpu"]
    columns["report"] = np.full(len(columns["task"]), placing.number)
    for name, values in table.items():
        table[name] = np.concatenate([values, columns[name].astype(values.dtype)])
