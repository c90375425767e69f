"""Trace, its samples of the CPU by stack of calls: weights for tables and flame graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from dasf_hpc.trace.open import Trace

Ints = npt.NDArray[np.int64]

#: Stands for a call whose function has no name in the report.
NO_NAME = "(no name)"


@dataclass(frozen=True)
class Stacks:
    """Stacks of calls as a tree, in the order of the rows of table ``stacks``.

    Attributes
    ----------
    parent
        Row of the call that made each, always an earlier one; -1: none.
    frame
        Position in `frames`.
    frames
        Columns ``function`` and ``module``; text, "" for none.
    """

    parent: Ints
    frame: Ints
    frames: pd.DataFrame

    def __len__(self) -> int:
        return len(self.parent)

    def names(self) -> list[str]:
        """Name each frame: the function, and where it has no name its module."""
        return [
            function or (f"{NO_NAME} in {module}" if module else NO_NAME)
            for function, module in zip(self.frames["function"], self.frames["module"], strict=True)
        ]

    def below(self, weights: Ints) -> Ints:
        """Add to each stack's weight those of all stacks that go on from it.

        Parameters
        ----------
        weights
            Of each row, as `weights` gives them.
        """
        total = weights.copy()
        # level by level from the innermost: a parent stands before its children
        depth = self.depth()
        for level in range(int(depth.max()) if len(depth) else 0, 0, -1):
            rows = np.flatnonzero(depth == level)
            np.add.at(total, self.parent[rows], total[rows])
        return total

    def depth(self) -> Ints:
        """Give how many calls each lies within."""
        depth = np.zeros(len(self.parent), np.int64)
        rows = np.flatnonzero(self.parent >= 0)
        at = self.parent.copy()
        while len(rows):
            depth[rows] += 1
            at[rows] = self.parent[at[rows]]
            rows = rows[at[rows] >= 0]
        return depth

    def of_frames(self, weights: Ints) -> pd.DataFrame:
        """Sum up weights by frame.

        Parameters
        ----------
        weights
            Of each row, as `weights` gives them.

        Returns
        -------
        pandas.DataFrame
            By frame, the heaviest first: ``function``, ``module``, ``self`` (it was the innermost
            call) and ``total`` (it was among the calls, counted once where it calls itself). Frames
            of no weight are left out.
        """
        own = np.zeros(len(self.frames), np.int64)
        np.add.at(own, self.frame, weights)
        total = np.zeros(len(self.frames), np.int64)
        stacks = np.flatnonzero(weights)
        at = stacks.copy()
        width = max(1, len(self.frames))
        pairs: list[Ints] = []
        while len(at):
            pairs.append(stacks * width + self.frame[at])
            at = self.parent[at]
            stacks, at = stacks[at >= 0], at[at >= 0]
        if pairs:
            # a call that stands in a stack several times counts once
            stack, frame = np.divmod(np.unique(np.concatenate(pairs)), width)
            np.add.at(total, frame, weights[stack])
        table = self.frames.copy()
        table["self"], table["total"] = own, total
        table = table[table["total"] > 0]
        return table.sort_values(["self", "total"], ascending=False, kind="stable")


def read_stacks(trace: Trace) -> Stacks:
    """Read the stacks of a trace's samples; a trace without samples has none."""
    table = trace.table("stacks")
    names = {name: table[name].astype(object).fillna("") for name in ("function", "module")}
    pairs = pd.MultiIndex.from_arrays([names["function"], names["module"]])
    frame, frames = pairs.factorize()
    return Stacks(
        table["parent"].to_numpy(np.int64),
        np.asarray(frame, np.int64),
        pd.DataFrame(list(frames), columns=["function", "module"], dtype=object),
    )


def samples_once(trace: Trace, columns: list[str]) -> Iterator[pd.DataFrame]:
    """Read the samples of CPUs; what several nsys of a host sampled of a thread is that of one.

    Parameters
    ----------
    trace
        The trace.
    columns
        Columns of ``cpu_samples``.

    Yields
    ------
    pandas.DataFrame
        So many rows at once. Of each thread they are of the report that has most of it.
    """
    who = ["report", "process", "thread"]
    if len(trace.reports) < 2 or not trace.rows("cpu_samples"):
        yield from trace.pieces("cpu_samples", columns)
        return
    sums = pd.concat([p.groupby(who).size() for p in trace.pieces("cpu_samples", who)])
    counts = sums.groupby(level=who).sum().rename("count").reset_index()
    counts = counts.sort_values("count", kind="stable")
    twice = counts[counts.duplicated(["process", "thread"], keep="last")]
    if not len(twice):
        yield from trace.pieces("cpu_samples", columns)
        return
    left_out = pd.MultiIndex.from_frame(twice[who])
    for part in trace.pieces("cpu_samples", list(dict.fromkeys([*columns, *who]))):
        yield part.loc[~pd.MultiIndex.from_frame(part[who]).isin(left_out), columns]


def weights(
    trace: Trace,
    function: str | None = None,
    process: int | None = None,
    start: int | None = None,
    stop: int | None = None,
    tasks: npt.NDArray[np.integer] | None = None,
) -> Ints:
    """Count the samples of each stack.

    Parameters
    ----------
    trace
        The trace.
    function
        Only samples of tasks of this function.
    process
        Only those of this row of ``processes``, a worker say.
    start, stop
        Only those with ``start <= time < stop``, trace time in ns.
    tasks
        Only those of these rows of ``tasks``.

    Returns
    -------
    int64
        In the order of the rows of ``stacks``: how many samples had this call as the innermost.
        Samples without calls are in none.
    """
    chosen: npt.NDArray[np.bool_] | None = None
    if function is not None or tasks is not None:
        chosen = np.ones(trace.rows("tasks"), bool)
        if function is not None:
            chosen &= (trace.table("tasks", ["prefix"])["prefix"] == function).to_numpy()
        if tasks is not None:
            chosen &= np.isin(np.arange(len(chosen)), tasks)
    found = np.zeros(trace.rows("stacks"), np.int64)
    columns = ["start", "stack", "process", "task"]
    for part in samples_once(trace, columns):
        at, stack, of, task = (part[name].to_numpy() for name in columns)
        used = (stack >= 0) & (stack < len(found))
        if start is not None:
            used &= at >= start
        if stop is not None:
            used &= at < stop
        if process is not None:
            used &= of == process
        if chosen is not None:
            used &= (task >= 0) & np.append(chosen, False)[task]
        np.add.at(found, stack[used], 1)
    return found
