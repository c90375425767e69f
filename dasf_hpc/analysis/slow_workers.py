"""Analysis: workers that are slow, at a function or as a whole, and single tasks that take long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.analysis.cause import WORDS, Cause, placed
from dasf_hpc.analysis.executions import Executions, Floats, Ints, group_quantiles
from dasf_hpc.analysis.savings import Change, Savings

#: A worker whose tasks take this many times the other workers' is slow, ...
SLOW = 1.25
#: ... at a function of which it executed so many tasks.
ENOUGH = 5
#: ... or so many standard deviations more of all its tasks than half are longer than usual.
CHANCE = 3.0
#: So many slow workers are causes of their own; of more so many are named, the worst.
MOST_SLOW, NAMED_SLOW = 8, 3
#: A worker that is slow at functions of this share of its time is slow as a whole.
MOSTLY = 0.8
#: A task that takes this many times the median of its function is a straggler, ...
STRAGGLER = 3.0
#: ... where it takes so much longer than the median, as a share of the time from first to last task
STRAGGLER_SHARE = 0.01
#: ... and where no larger share of the function's tasks is so long.
RARE = 0.1


@dataclass(frozen=True)
class _SlowWorker:
    """A worker that is slow, and how much shorter each of some of its executions should be, ns."""

    words: str
    figures: dict[str, Any]
    tasks: NDArray[np.intp]
    removed: Ints


def slow_workers(run: Savings) -> list[Cause]:
    """Find workers that are slow at a function, or as a whole.

    More than `MOST_SLOW` are one cause.
    """
    found = _slow_at_functions(run)
    found += _slow_as_a_whole(run, {slow.figures["worker"] for slow in found})
    found.sort(key=lambda slow: -int(slow.removed.sum()))
    if len(found) > MOST_SLOW:
        figures = {
            "workers": [slow.figures["worker"] for slow in found],
            "worst": [_place(run, slow.figures["worker"]) for slow in found[:NAMED_SLOW]],
        }
        tasks = np.concatenate([slow.tasks for slow in found])
        removed = np.concatenate([slow.removed for slow in found])
        found = [_SlowWorker(f"{len(found):,} workers are slow", figures, tasks, removed)]
    causes = []
    for slow in found:
        duration = np.zeros(len(run.graph), np.int64)
        duration[slow.tasks] = slow.removed
        change = run.limited(Change(duration=duration))
        causes.append(placed(run, Cause("slow", slow.words, change, 0, figures=slow.figures)))
    return causes


def _slow_at_functions(run: Savings) -> list[_SlowWorker]:
    """Find workers that take longer for a function's tasks than the others do."""
    graph, duration = run.graph, run.duration
    functions = run.runs.functions
    slots = int(graph.process.max()) + 1
    group = graph.function.astype(np.int64) * slots + graph.process
    order = np.lexsort((duration, group))
    in_order = duration[order]
    groups, first, count = np.unique(group[order], return_index=True, return_counts=True)
    quarter, median, upper = (
        in_order[first + ((count - 1) * at).astype(np.int64)] for at in (0.25, 0.5, 0.75)
    )
    of, process = groups // slots, groups % slots
    usual: dict[int, tuple[int, int]] = {}
    enough = np.flatnonzero(count >= ENOUGH)
    cuts = np.flatnonzero(np.diff(of[enough])) + 1
    for mine in np.split(enough, cuts):
        if len(mine) < 2:
            continue
        other = _median_of_others(median[mine])
        slow = (median[mine] > np.median(median[mine])) & (median[mine] >= SLOW * other)
        slow &= (quarter[mine] >= _median_of_others(upper[mine])) & (median[mine] > 0)
        for at in np.flatnonzero(slow).tolist():
            usual[int(mine[at])] = int(other[at]), int(median[mine[at]])
    by_worker: dict[int, list[int]] = {}
    for place in usual:
        by_worker.setdefault(int(process[place]), []).append(place)
    busy = np.bincount(graph.process, weights=duration, minlength=slots)
    sums = np.add.reduceat(in_order, first)
    found = []
    for worker, places in by_worker.items():
        places = sorted(places, key=lambda p: -int(sums[p] * (1 - usual[p][0] / usual[p][1])))
        tasks = [order[first[p] : first[p] + count[p]] for p in places]
        removed = [
            (duration[own] * (1 - usual[p][0] / usual[p][1])).astype(np.int64)
            for p, own in zip(places, tasks, strict=True)
        ]
        worst = places[0]
        whole = len(places) > 1 and sums[places].sum() >= MOSTLY * busy[worker]
        name = functions[int(of[worst])]
        figures = {
            "worker": worker,
            "function": None if whole else name,
            "functions": [functions[int(of[p])] for p in places],
            "same_node": _not_slow(run, worker, {int(process[p]) for p in usual}),
            "count": int(count[places].sum()),
            "median": usual[worst][1],
            "others": usual[worst][0],
            "example": name,
        }
        words = f"{_place(run, worker)} is slow" + ("" if whole else f" at {name}")
        found.append(_SlowWorker(words, figures, np.concatenate(tasks), np.concatenate(removed)))
    return found


def _median_of_others(values: Ints) -> Floats:
    """Give, for each of two values or more, the median of all others."""
    order = np.argsort(values, kind="stable")
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values))
    ordered, left = values[order], len(values) - 1
    low, high = (left - 1) // 2, left // 2
    # those from its own place on are one place further
    result: Floats = (ordered[low + (low >= rank)] + ordered[high + (high >= rank)]) / 2
    return result


def _slow_as_a_whole(run: Savings, told: set[int]) -> list[_SlowWorker]:
    """Find workers that are slow in sum over functions, of each of which they executed few.

    Far more of a slow worker's tasks than half take longer than the median of their function: by
    `CHANCE` standard deviations, were it by chance.
    """
    graph, duration = run.graph, run.duration
    slots = int(graph.process.max()) + 1
    slowdown = slowdowns(run.runs, slots)
    known = slowdown[np.isfinite(slowdown)]
    if not len(known):
        return []
    middle = float(np.median(known))
    median = _medians(run.runs)[graph.function]
    count = np.bincount(graph.process, minlength=slots)
    longer = np.bincount(graph.process[duration > median], minlength=slots)
    surely = longer >= count / 2 + CHANCE * np.sqrt(count) / 2
    order = np.argsort(graph.process, kind="stable")
    firsts = np.searchsorted(graph.process[order], np.arange(slots + 1))
    found = []
    slow = np.flatnonzero(surely & (np.nan_to_num(slowdown) >= SLOW * middle))
    for worker in slow.tolist():
        if worker in told:
            continue
        mine = order[firsts[worker] : firsts[worker + 1]]
        removed = (duration[mine] * (1 - middle / slowdown[worker])).astype(np.int64)
        figures = {
            "worker": worker,
            "slowdown": float(slowdown[worker]),
            "same_node": _not_slow(run, worker, {*told, *slow.tolist()}),
        }
        found.append(_SlowWorker(f"{_place(run, worker)} is slow", figures, mine, removed))
    return found


def _medians(runs: Executions) -> Floats:
    """Give how long a task of each function takes, in the median, ns; NaN: there is none."""
    width = max(1, len(runs.functions))
    return group_quantiles(runs.function, runs.duration, width, (0.5,))[:, 0]


def slowdowns(runs: Executions, slots: int) -> Floats:
    """Give each process's executing time over what its tasks take in the median of all."""
    median = _medians(runs)
    usual = np.bincount(runs.process, weights=median[runs.function], minlength=slots)
    busy = np.bincount(runs.process, weights=runs.duration, minlength=slots)
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Floats = np.where(usual > 0, busy / usual, np.nan)
    return result


def _not_slow(run: Savings, worker: int, slow: set[int]) -> str:
    """Name a worker of the same node that executed tasks and is not slow; empty: there is none."""
    found = run.found
    if worker not in found.index:
        return ""
    used = set(np.unique(run.graph.process).tolist())
    for row in found.index[found["node_row"] == found.loc[worker, "node_row"]].tolist():
        if row not in slow and row in used:
            return str(found.loc[row, "worker"])
    return ""


def _place(run: Savings, worker: int) -> str:
    row = run.found.loc[worker]
    return f"{row['worker']} on {row['node']}"


def stragglers(runs: Executions, whole: int) -> tuple[Ints, Ints]:
    """Give rows of tasks that take far longer than their function's others, and its median, ns.

    Parameters
    ----------
    whole
        From first to last task, ns.
    """
    width = max(1, len(runs.functions))
    median = _medians(runs)
    usual = np.nan_to_num(median).round().astype(np.int64)[runs.function]
    duration = runs.duration
    long = np.flatnonzero(
        (duration >= STRAGGLER * usual) & (duration - usual >= STRAGGLER_SHARE * whole)
    )
    long = long[duration[long] > 0]
    # where many tasks of a function are long it has two kinds of tasks, not stragglers
    many = np.bincount(runs.function[long], minlength=width)
    of = np.bincount(runs.function, minlength=width)
    long = long[many[runs.function[long]] <= np.maximum(1, RARE * of[runs.function[long]])]
    rows = long[np.argsort(usual[long] - duration[long], kind="stable")]
    return rows.astype(np.int64), usual[rows]


def straggling_tasks(run: Savings, slow: list[Cause]) -> list[Cause]:
    rows, usual = stragglers(run.runs, run.recorded)
    if not len(rows):
        return []
    place = np.empty(len(run.graph), np.int64)
    place[run.graph.rows] = np.arange(len(run.graph))
    removed = np.zeros(len(run.graph), np.int64)
    removed[place[rows]] = run.duration[place[rows]] - usual
    for cause in slow:  # the worker is slow at it, not the task
        removed[cause.change.of(len(removed)) > 0] = 0
    words = WORDS["stragglers"]
    return [placed(run, Cause("stragglers", words, run.limited(Change(duration=removed)), 0))]
