"""Show, what a page draws of memory: what workers held, by function, over time.

Time is cut into intervals, and of each is told the moment at which most was held: no peak is lost,
and what stands above each other was there at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dasf_hpc.analysis.executions import Executions, Ints, Span, work_span, workers
from dasf_hpc.analysis.held import Held, held
from dasf_hpc.analysis.memory import Samples, fullest, shown_span, worker_samples
from dasf_hpc.show.coverage import COLOURED, by_time_spent, in_order
from dasf_hpc.show.page_data import Columns, three_digits
from dasf_hpc.trace.open import Trace

#: Functions that are drawn singly: those that held most; and intervals of all, and of a worker.
FUNCTIONS, INTERVALS, OF_WORKER = 10, 400, 160

#: Workers that can be looked at singly: those that held most.
WORKERS = 64


def areas(trace: Trace, executions: Executions, columns: Columns) -> dict[str, Any]:
    """Describe what is drawn of memory, and add its numbers to the columns.

    Parameters
    ----------
    trace
        The trace.
    executions
        Its executions.
    columns
        Where numbers are put; the description names them by their numbers.

    Returns
    -------
    dict
        ``functions`` with names and colours, and ``choices``: all workers, then single ones, each
        with its intervals' begin and length (us from time 0) and the columns ``time`` (us from
        the interval's begin), ``held`` (sizes, function after function), ``used`` (what its
        processes used) and ``on_disk`` (at least). Empty where nothing was held.
    """
    whole = held(trace)
    if not len(whole) or not whole.nbytes.any():
        return {}
    found = workers(trace, executions)
    span = work_span(trace, executions)
    shown = shown_span(whole, span)
    group, functions = _functions(executions, whole)
    samples, with_disk = worker_samples(trace, found, whole)
    rows = [int(str(row)) for row in in_order(found).index]
    choices = [
        {"name": "all workers", "process": -1}
        | _choice(
            whole, None, group, len(functions), (shown, span), INTERVALS, columns,
            [samples[row] for row in rows if row in samples] if set(rows) <= set(samples) else [],
            bool(with_disk), found["memory_limit"].tolist(),
        )
    ]  # fmt: skip
    peaks = {row: whole.steps(whole.process == row).peak()[0] for row in rows}
    most = sorted(rows, key=lambda row: -peaks[row])[:WORKERS]
    for row in rows:
        if row not in most or not peaks[row]:
            continue
        worker = found.loc[row]
        choices.append(
            {"name": f"{worker['node']} {worker['worker']}", "process": row}
            | _choice(
                whole, whole.process == row, group, len(functions), (shown, span), OF_WORKER,
                columns, [samples[row]] if row in samples else [], row in with_disk,
                [worker["memory_limit"]],
            )
        )  # fmt: skip
    return {
        "functions": functions,
        "choices": choices,
        "workers": len(rows),
    }


def _functions(executions: Executions, whole: Held) -> tuple[Ints, list[dict[str, Any]]]:
    """Choose the functions that are drawn singly, and give the number of each one's area."""
    width = len(whole.functions)
    steps = whole.steps()
    order = np.argsort(steps.group, kind="stable")
    ends = np.cumsum(np.bincount(steps.group, minlength=width))
    peaks = [
        int(np.cumsum(part).max(initial=0)) for part in np.split(steps.change[order], ends[:-1])
    ]
    chosen = [f for f in np.argsort([-p for p in peaks], kind="stable").tolist() if peaks[f] > 0]
    rank = {int(code): number for number, code in enumerate(by_time_spent(executions))}
    group = np.full(width, min(len(chosen), FUNCTIONS), np.int64)
    functions = []
    for number, f in enumerate(chosen[:FUNCTIONS]):
        group[f] = number
        colour = min(rank.get(f, COLOURED), COLOURED)
        functions.append({"name": whole.functions[f], "colour": colour})
    if len(chosen) > FUNCTIONS:
        functions.append({"name": f"{len(chosen) - FUNCTIONS} more", "colour": COLOURED})
    return np.minimum(group, max(0, len(functions) - 1)), functions


def _choice(
    whole: Held,
    rows: Any,
    group: Ints,
    groups: int,
    spans: tuple[Span, Span],
    intervals: int,
    columns: Columns,
    samples: list[Samples],
    disk: bool,
    limits: list[Any],
) -> dict[str, Any]:
    shown, work = spans
    steps = whole.steps(rows)
    count = int(min(intervals, max(1, shown.duration // 1000)))
    times = fullest(steps, shown.start, shown.stop, count)
    edges = shown.start + shown.duration * np.arange(count) // count
    grouped = type(steps)(steps.time, steps.change, group[steps.group])
    sums = grouped.until(times, groups)
    used = np.full(count, -1, np.int64)
    on_disk = np.full(count, -1, np.int64)
    if samples:
        used, on_disk = np.zeros(count, np.int64), np.zeros(count, np.int64)
        for one in samples:
            at = np.searchsorted(one.time, times, "right") - 1
            # a process is sampled while it is there, and not long after
            there = (at >= 0) & (times <= one.time[-1] + int(np.diff(one.time).max(initial=0)))
            used += np.where(there, one.used[at], 0)
            on_disk += np.where(there, one.on_disk[at], 0)
        used = np.where(used > 0, used, -1)
    known = [int(limit) for limit in limits]
    return {
        "begin": (shown.start - work.start) / 1000,
        "each": shown.duration / count / 1000,
        "limit": sum(known) if known and min(known) > 0 else -1,
        "time": columns.add((times - edges) // 1000),
        "held": columns.add(three_digits(sums.T.reshape(-1))),
        "used": columns.add(three_digits(used)),
        "on_disk": columns.add(three_digits(on_disk)) if disk and samples else -1,
    }
