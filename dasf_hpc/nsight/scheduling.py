"""Nsight, when threads were on a CPU: the time that each task's thread was off it.

nsys notes when a thread got a CPU and when it left one. Newer versions say of a thread that leaves
in which state it is: one that could have gone on was preempted, another one waits.
"""

from __future__ import annotations

from collections.abc import Mapping
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
            off = off_intervals(start[own], event["on"][rows[own]] != 0, event["state"][rows[own]])
            found, stretches = off_of_tasks(
                tasks, thread, off, (int(window[0]), int(window[1])), states
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


def off_intervals(start: Array, on: Array, state: Array) -> tuple[Array, Array, Array]:
    """Give when a thread was off the CPU.

    Parameters
    ----------
    start
        When it got a CPU or left one, in any order.
    on
        Whether it got one.
    state
        Its state as a number, told where it left one.

    Returns
    -------
    start, stop, state
        The intervals. Before the first event it was in the opposite state of that, since the
        smallest int64; after the last one it stays so until the largest. Of several events of one
        sort in a row, which happens where others are lost, the first counts.
    """
    order = np.argsort(start, kind="stable")
    start, on, state = start[order], on[order], state[order]
    changes = np.flatnonzero(np.append(True, on[1:] != on[:-1])[: len(on)])
    start, on, state = start[changes], on[changes], state[changes]
    limits = np.iinfo(np.int64)
    if len(on) and on[0]:
        start = np.insert(start, 0, limits.min)
        on, state = np.insert(on, 0, False), np.insert(state, 0, NONE)
    ends = np.append(start[1:], limits.max)
    return start[~on], ends[~on], state[~on]


def off_of_tasks(
    tasks: RunningTasks,
    thread: int,
    off: tuple[Array, Array, Array],
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
    off
        When it was off the CPU and in which state, in order and apart; see `off_intervals`.
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
    off_start, off_stop = (np.clip(values, *window) for values in off[:2])
    first, last, which = pieces(begun, ended, off_start, off_stop)
    size = last - first
    known = np.zeros(len(row), np.int64)
    np.add.at(known, which, size)
    # each piece lies within one interval or in none
    place = np.searchsorted(off_start, first, side="right") - 1
    inside = np.flatnonzero((place >= 0) & (off_stop[np.maximum(place, 0)] >= last))
    interval, which, size = place[inside], which[inside], size[inside]
    first, last = first[inside], last[inside]
    # what a task that lies within another one cut apart is one interval of the other
    pairs, number = np.unique(np.stack([which, interval]), axis=1, return_inverse=True)
    number = number.reshape(-1)
    length = np.zeros(pairs.shape[1], np.int64)
    np.add.at(length, number, size)
    task, interval = pairs
    state = off[2][interval]
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
            "state": off[2][place[inside][long]],
            "task": row[which[long]],
        },
    )


def _in(state: Array, states: Mapping[int, str], names: frozenset[str]) -> Array:
    return np.isin(state, [number for number, name in states.items() if name in names])


def _add(placing: Placing, columns: dict[str, Array]) -> None:
    placing.additions.made("task_cpu")
    table = placing.run.tables["task_cpu"]
    columns["report"] = np.full(len(columns["task"]), placing.number)
    for name, values in table.items():
        table[name] = np.concatenate([values, columns[name].astype(values.dtype)])
