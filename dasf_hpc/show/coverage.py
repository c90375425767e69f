"""Show, how busy each worker was: the share of its threads at work in each part of a run.

What executions fill of a bin is exact, however short they are: a bin of which tasks take 0.8 % is
0.8 % full.
"""

from __future__ import annotations

from heapq import heappush, heapreplace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.executions import Executions, in_lanes, run_span, workers
from dasf_hpc.trace.names import natural
from dasf_hpc.trace.open import Trace

#: Functions with a colour of their own: a palette that everybody can tell apart has no more.
COLOURED = 7

#: Digits of a share between 0 and 1 in strings of one character a bin; a space stands for none.
DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def busy_workers(
    trace: Trace, executions: Executions, bins: int
) -> list[tuple[str, dict[str, str]]]:
    """Give each worker's name and its bins over the whole run: ``busy`` and ``most``, as texts."""
    table = in_order(workers(trace, executions))
    if not len(table) or not len(executions):
        return []
    span = run_span(trace, executions)
    row_of = np.full(max(table.index.max(), executions.process.max()) + 1, -1, np.int64)
    row_of[table.index.to_numpy()] = np.arange(len(table))
    order = by_time_spent(executions)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    row = row_of[executions.process]
    known = row >= 0
    width = max(1.0, span.duration / bins)
    begin, end = (
        np.clip((times[known] - span.start) / width, 0, bins)
        for times in (executions.start, executions.stop)
    )
    colour = np.minimum(rank, COLOURED)[executions.function[known]]
    threads = np.maximum(table["threads"].to_numpy(), 1)
    names = [f"{w['node']} {w['worker']}" for w in table.to_dict("records")]
    texts = [
        {"busy": digits(filled.sum(axis=0)), "most": most_of(filled)}
        for filled in binned(begin, end, row[known], colour, threads, bins)
    ]
    return list(zip(names, texts, strict=True))


def by_time_spent(executions: Executions) -> NDArray[np.intp]:
    """Give the codes of functions, the one that took most time first."""
    spent = np.bincount(
        executions.function, executions.duration, minlength=len(executions.functions)
    )
    return np.argsort(-spent, kind="stable")


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Sort workers by node and name, numbers in names by their value."""
    names = [
        (natural(node), natural(worker), row)
        for node, worker, row in zip(table["node"], table["worker"], table.index, strict=True)
    ]
    return table.loc[[row for _, _, row in sorted(names)]]


def lanes(executions: Executions) -> Ints:
    """Give each execution a lane among those of its process, from 0.

    A lane is a thread. Executions of one thread that overlap, as those do whose thread is not
    known, are put into as many lanes as it takes: in a lane, one follows another.
    """
    order, firsts = in_lanes(executions)
    found = np.zeros(len(executions), np.int64)
    used: dict[int, int] = {}
    start, stop = executions.start[order], executions.stop[order]
    overlaps = np.flatnonzero(start[1:] < stop[:-1]) + 1
    for first, last in zip(firsts[:-1].tolist(), firsts[1:].tolist(), strict=True):
        process = int(executions.process[order[first]])
        before = used.get(process, 0)
        within = np.searchsorted(overlaps, [first + 1, last])
        if within[0] == within[1]:
            found[order[first:last]] = before
            used[process] = before + 1
            continue
        own, count = side_by_side(start[first:last], stop[first:last])
        found[order[first:last]] = before + own
        used[process] = before + count
    return found


def side_by_side(start: Ints, stop: Ints) -> tuple[Ints, int]:
    """Put spans that overlap into lanes, each into the one that is free for the longest time.

    Parameters
    ----------
    start, stop
        Of each span, in order of start.

    Returns
    -------
    lane
        Of each, from 0.
    count
        How many there are: no more than spans ever overlap.
    """
    lane = np.zeros(len(start), np.int64)
    ends: list[tuple[int, int]] = []  # a heap: when each lane is free
    for place, (begin, end) in enumerate(zip(start.tolist(), stop.tolist(), strict=True)):
        if ends and ends[0][0] <= begin:
            lane[place] = ends[0][1]
            heapreplace(ends, (end, ends[0][1]))
        else:
            lane[place] = len(ends)
            heappush(ends, (end, len(ends)))
    return lane, len(ends)


def binned(
    begin: Floats,
    end: Floats,
    row: NDArray[np.integer[Any]],
    colour: NDArray[np.integer[Any]],
    threads: NDArray[np.integer[Any]],
    bins: int,
) -> list[Floats]:
    """Give for each row what share of its threads was busy in each bin, by colour.

    Parameters
    ----------
    begin, end
        When each execution began and ended, in widths of a bin.
    row, colour
        The row and the colour of each.
    threads
        How many threads each row has.
    bins
        Their number.

    Returns
    -------
    list of numpy.ndarray
        Of each row, of shape (COLOURED + 1, bins).
    """
    narrow = row.astype(np.uint16) if len(threads) < 1 << 16 else row
    order = np.argsort(narrow, kind="stable")
    firsts = np.searchsorted(narrow[order], np.arange(len(threads) + 1))
    found = []
    for number, count in enumerate(threads.tolist()):  # one by one they stay in the caches
        mine = order[firsts[number] : firsts[number + 1]]
        share = _filled(begin[mine], np.minimum(end[mine], bins), colour[mine], bins)
        share /= count
        found.append(share)
    return found


def _filled(begin: Floats, end: Floats, colour: NDArray[np.integer[Any]], bins: int) -> Floats:
    """Give how much of each bin executions of each colour fill, in sum."""
    colours = COLOURED + 1
    first = np.clip(begin.astype(np.int64), 0, bins - 1)
    last = np.clip(end.astype(np.int64), 0, bins - 1)
    cell = colour * (bins + 1)
    size = colours * (bins + 1)
    # what an execution fills of its first and last bin, and 1 for each between: a sum of steps
    inside = first == last
    filled: Floats = np.zeros(size)
    filled += np.bincount(cell + first, np.where(inside, end - begin, first + 1 - begin), size)
    filled += np.bincount((cell + last)[~inside], (end - last)[~inside], size)
    steps = np.bincount((cell + first + 1)[~inside], minlength=size).astype(np.float64)
    steps -= np.bincount((cell + last)[~inside], minlength=size)
    filled = filled.reshape(colours, bins + 1)
    filled += np.cumsum(steps.reshape(filled.shape), axis=1)
    return filled[:, :bins]


def most_of(filled: Floats) -> str:
    """Write for each bin the colour that fills most of it, a digit each."""
    letters: NDArray[np.uint8] = (filled.argmax(axis=0) + ord("0")).astype(np.uint8)
    return letters.tobytes().decode()


def digits(shares: Floats) -> str:
    """Write shares as a character each; what is more than nothing never becomes 0."""
    none = ~np.isfinite(shares)
    top = len(DIGITS) - 1
    codes = np.clip(np.ceil(np.where(none, 0, shares) * top - 0.01), 0, top).astype(np.int64)
    letters = np.frombuffer((DIGITS + " ").encode(), np.uint8)
    return letters[np.where(none, top + 1, codes)].tobytes().decode()


def roots(shares: Floats) -> NDArray[np.uint8]:
    """Write shares as a byte each, 255 times their root: small ones are told as well as large."""
    known = np.clip(np.nan_to_num(shares), 0, 1)
    written: NDArray[np.uint8] = np.rint(255 * np.sqrt(known)).astype(np.uint8)
    return written
