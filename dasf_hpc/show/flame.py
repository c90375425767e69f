"""Show, call stacks of a page: the flame graph's tree, and samples by function, worker and time.

What ``flame.js`` draws. Of a run with few samples the page knows of each its worker and its time;
of more it has two sums, by worker and by time, and so many bins of time as keep it small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dasf_hpc.analysis.event_loops import read_calls
from dasf_hpc.analysis.executions import Ints, group_sums, read_executions, run_span, work_span
from dasf_hpc.analysis.stacks import read_groups
from dasf_hpc.show.page_data import Columns, signed
from dasf_hpc.trace.names import natural, node_names, process_names
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.stacks import OWN, Source, Stacks, frame_name, read_stacks, source_of, sums

#: Sums in the page: of so many, by function, call, worker and time, all are; of more those by
#: worker, and those by time, so many (measured: 200,000 take some 600 kB).
WHOLE, CELLS = 60_000, 200_000

#: Bins of time, of which the first are taken that make no more sums than that.
BINS = (1000, 200, 100, 50, 20)

#: Calls in the page: of more those with the least time are counted to what called them.
CALLS = 20_000

#: Of how many ns the page's times are: of few sums, and of many.
FINE, COARSE = 10_000, 100_000


@dataclass(frozen=True)
class Tree:
    """Calls within calls, as they are drawn: those of own code by line, others by function.

    Attributes
    ----------
    parent, frame
        As of `Stacks`.
    line
        At which it was, mostly where it is of several; -1: not known.
    several
        Whether it is of several lines.
    node
        Of each row of the stacks: its position here.
    """

    parent: Ints
    frame: Ints
    line: Ints
    several: np.ndarray[Any, np.dtype[np.bool_]]
    node: Ints

    def __len__(self) -> int:
        return len(self.parent)


def merged(stacks: Stacks, weights: Ints) -> Tree:
    """Merge rows that differ only by lines of code that is not the user's own.

    Parameters
    ----------
    stacks
        The stacks.
    weights
        Of each row: the heaviest tells the line.
    """
    mine = stacks.of_origin(OWN).tolist()
    above, frames, lines = (a.tolist() for a in (stacks.parent, stacks.frame, stacks.line))
    whole = stacks.below(weights).tolist()
    nodes: dict[tuple[int, int, int], int] = {}
    node: list[int] = []
    line: list[int] = []
    several: list[bool] = []
    most: list[int] = []
    for row, frame in enumerate(frames):
        parent = node[above[row]] if above[row] >= 0 else -1
        one = nodes.setdefault((parent, frame, lines[row] if mine[row] else -1), len(nodes))
        node.append(one)
        if one == len(line):
            line.append(lines[row])
            several.append(False)
            most.append(whole[row])
            continue
        several[one] |= line[one] != lines[row]
        if whole[row] > most[one]:
            line[one], most[one] = lines[row], whole[row]
    keys = np.array(list(nodes), np.int64).reshape(-1, 3)
    return Tree(
        keys[:, 0],
        keys[:, 1],
        np.array(line, np.int64),
        np.array(several, bool),
        np.array(node, np.int64),
    )


@dataclass(frozen=True)
class Flame:
    """The flame graph of a page.

    Attributes
    ----------
    packed
        All of it, as `dasf_hpc.show.page_data` packs it; empty: there are no samples.
    samples, stacks
        How many there are.
    timed
        Whether samples stand for a time; else they only count.
    bins, bin
        Into how many bins the recording's time is divided, and the length of one, ns.
    whole
        Whether the time of a sample is known together with its worker.
    folded
        Share of the weight that is counted to what called it, in %.
    """

    packed: str = ""
    samples: int = 0
    stacks: int = 0
    timed: bool = True
    bins: int = 0
    bin: int = 0
    whole: bool = True
    folded: float = 0.0


def flame(trace: Trace) -> Flame:
    """Give the flame graph of a trace's page.

    Returns
    -------
    Flame
        Its data, for JSON: ``frames``: name, module, file and position in ``origins`` of each;
        ``groups``: functions and what is no task's, by name and kind; ``workers``: name and row of
        ``processes``; columns ``parent`` (steps), ``frame`` and ``line`` (twice the line, one more
        where it is of several) of calls; ``idle``: calls in which an event loop waits; ``tables``:
        ``by``, the columns that they have, pairs of group, worker and call with the number of
        ``cells`` of each, and of the cells ``bin`` (steps), ``samples`` and ``weight``.
    """
    source = source_of(trace)
    if source is None:
        return Flame()
    stacks, groups = read_stacks(trace), read_groups(trace)
    executions = read_executions(trace, ())
    span, work = run_span(trace, executions), work_span(trace, executions)
    start, stop = min(span.start, work.start), max(span.stop, work.stop)
    by = ["process", "function", "role", "stack", "bin"]
    found = sums(trace, by, source, bins=(start, stop, BINS[0]))
    if not len(found):
        return Flame()
    found["group"] = groups.of(found)
    weights = group_sums(found["stack"].to_numpy(), found["weight"].to_numpy(), len(stacks))
    tree = merged(stacks, weights)
    own = np.zeros(len(tree), np.int64)
    np.add.at(own, tree.node, weights)
    kept, folded = _kept(tree, own)
    number = np.cumsum(kept) - 1
    found["node"] = number[_nearest(tree, kept)[tree.node[found["stack"].to_numpy()]]]
    columns = Columns()
    tables, bins = _tables(found, columns, source)
    nodes = np.flatnonzero(kept)
    used, frame = np.unique(tree.frame[nodes], return_inverse=True)
    parent = np.where(tree.parent[nodes] >= 0, number[tree.parent[nodes]], -1)
    calls = read_calls(stacks)
    idle = np.zeros(len(tree), bool)
    idle[tree.node[calls.idle]] = True
    origins = sorted({str(one) for one in stacks.frames["origin"]})
    frames = stacks.frames.iloc[used]
    described = {
        "begin": (start - work.start) / 1000,
        "end": (stop - work.start) / 1000,
        "bins": bins,
        "unit": (FINE if len(tables) == 1 else COARSE) / 1000 if source.timed else 0,
        "origins": origins,
        "frames": [
            [frame_name(function, module, origin), module, file, origins.index(origin)]
            for function, module, file, origin in zip(
                *(frames[name] for name in ("function", "module", "file", "origin")), strict=True
            )
        ],
        "groups": [
            [name, "function" if place < groups.functions else "other"]
            for place, name in enumerate(groups.names)
        ],
        "workers": _workers(trace, found),
        "parent": columns.add(signed(np.arange(len(parent)) - parent)),
        "frame": columns.add(frame),
        "line": columns.add(
            2 * np.maximum(tree.line[nodes], 0) + tree.several[nodes].astype(np.int64)
        ),
        "idle": number[np.flatnonzero(idle & kept)].tolist(),
        "tables": tables,
    }
    return Flame(
        packed=columns.packed({"stacks": described}),
        samples=int(found["samples"].sum()),
        stacks=int(np.count_nonzero(weights)),
        timed=source.timed,
        bins=bins,
        bin=(stop - start) // bins,
        whole=len(tables) == 1,
        folded=folded,
    )


def _kept(tree: Tree, own: Ints) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], float]:
    """Say which calls are in the page, and what share of the weight is counted to others, in %."""
    total = own.copy()
    for node in range(len(tree) - 1, -1, -1):  # a call stands after the one that made it
        if tree.parent[node] >= 0:
            total[tree.parent[node]] += total[node]
    if len(tree) <= CALLS:
        return total > 0, 0.0
    # of equal ones the first are kept: a call never without those around it
    kept = np.zeros(len(tree), bool)
    kept[np.argsort(-total, kind="stable")[:CALLS]] = True
    return kept, 100.0 * float(own[~kept].sum()) / max(1, int(own.sum()))


def _nearest(tree: Tree, kept: np.ndarray[Any, np.dtype[np.bool_]]) -> Ints:
    """Give of each call itself, or the innermost around it that is kept."""
    found = np.arange(len(tree))
    for node in np.flatnonzero(~kept):
        if tree.parent[node] >= 0:
            found[node] = found[tree.parent[node]]
    return found


def _tables(
    found: pd.DataFrame, columns: Columns, source: Source
) -> tuple[list[dict[str, Any]], int]:
    """Add the sums to the columns; gives what they are and the number of bins."""
    first = BINS[0]
    for bins in BINS:
        found["cell"] = found["bin"] * bins // first
        cells = found.groupby(["group", "process", "node", "cell"], as_index=False)[
            ["samples", "weight"]
        ].sum()
        if len(cells) <= WHOLE:
            return [_table(cells, ["process", "bin"], columns, source, FINE)], bins
        by_time = cells.groupby(["group", "node", "cell"], as_index=False)[
            ["samples", "weight"]
        ].sum()
        if len(by_time) <= CELLS or bins == BINS[-1]:
            break
    by_worker = cells.groupby(["group", "process", "node"], as_index=False)[
        ["samples", "weight"]
    ].sum()
    return [
        _table(by_time.assign(process=-1), ["bin"], columns, source, COARSE),
        _table(by_worker.assign(cell=0), ["process"], columns, source, COARSE),
    ], bins


def _table(
    cells: pd.DataFrame, by: list[str], columns: Columns, source: Source, unit: int
) -> dict[str, Any]:
    names = ["group", "process", "node", "cell"]
    cells = cells.sort_values(names, kind="stable")
    key = cells[names[:3]].to_numpy(np.int64)
    new = np.ones(len(cells), bool)
    new[1:] = (key[1:] != key[:-1]).any(axis=1)
    firsts = np.flatnonzero(new)
    step = cells["cell"].to_numpy(np.int64).copy()
    step[1:] -= np.where(new[1:], 0, cells["cell"].to_numpy()[:-1])
    weight = cells["weight"].to_numpy(np.int64)
    if source.timed:
        # rounded in sum, so that no share is off by more than one unit
        weight = np.diff((np.cumsum(weight) + unit // 2) // unit, prepend=0)
    pairs = key[firsts]
    return {
        "by": by,
        "group": columns.add(pairs[:, 0]),
        "process": columns.add(pairs[:, 1] + 1),
        "node": columns.add(signed(np.diff(pairs[:, 2], prepend=0))),
        "cells": columns.add(np.diff(np.append(firsts, len(cells)))),
        "bin": columns.add(step),
        "samples": columns.add(cells["samples"].to_numpy()),
        "weight": columns.add(weight),
    }


def _workers(trace: Trace, found: pd.DataFrame) -> list[list[Any]]:
    """Give the processes that were sampled: their names, with their nodes, and their rows."""
    names, nodes = process_names(trace), node_names(trace)
    of = trace.processes["node"].tolist()
    result = []
    for row in sorted({int(row) for row in found["process"]}):
        if 0 <= row < len(names):
            node = int(of[row])
            whole = f"{nodes[node]} {names[row]}" if 0 <= node < len(nodes) else names[row]
            result.append([whole, row])
    return sorted(result, key=lambda one: natural(one[0]))
