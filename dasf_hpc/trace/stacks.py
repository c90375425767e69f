"""Trace, its samples of threads by stack of calls: weights for tables and flame graphs.

Samples of Python calls (table ``call_samples``) stand for a time each, those that nsys takes of
CPUs (``cpu_samples``) count alike. Both are read in one way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dasf_hpc.trace.open import Trace

Ints = npt.NDArray[np.int64]

#: Stands for a call whose function has no name in the report.
NO_NAME = "(no name)"

#: The origin of the user's own code, as ``frame_origins`` names it.
OWN = "own"

#: What tells frames apart; the line at which one was is of the row, not of the frame.
FRAME = ("function", "module", "file", "origin")

#: Functions whose names the trace does not know.
UNKNOWN = "?"


class Source(StrEnum):
    """Who took samples: the table that holds them."""

    #: Of Python calls, on a CPU or not: each stands for a time.
    CALLS = "call_samples"
    #: Of what was on a CPU: by nsys, each counts one.
    CPU = "cpu_samples"

    @property
    def timed(self) -> bool:
        """Whether weights are ns; else they are numbers of samples."""
        return self is Source.CALLS


class Role(StrEnum):
    """What a thread was for, as ``thread_roles`` names it."""

    TASK = "task"
    LOOP = "event loop"
    OTHER = "other"


ROLES = tuple(Role)


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
        Columns ``function``, ``module``, ``file`` and ``origin``; text, "" for none.
    line
        At which each was, from 1; -1: not known.
    """

    parent: Ints
    frame: Ints
    frames: pd.DataFrame
    line: Ints

    def __len__(self) -> int:
        return len(self.parent)

    def names(self) -> list[str]:
        """Name each frame; see `frame_name`."""
        columns = (self.frames[name] for name in ("function", "module", "origin"))
        return [frame_name(*one) for one in zip(*columns, strict=True)]

    def place(self, row: int) -> str:
        """Name the line at which a row was: ``job.py:41``; empty where it is not known."""
        file, line = str(self.frames["file"].iloc[self.frame[row]]), int(self.line[row])
        return f"{file}:{line}" if file and line >= 0 else file

    def of_origin(self, origin: str) -> npt.NDArray[np.bool_]:
        """Say of each row whether its code is of an origin."""
        found: npt.NDArray[np.bool_] = (self.frames["origin"] == origin).to_numpy()[self.frame]
        return found

    def below(self, weights: Ints) -> Ints:
        """Add to each stack's weight those of all stacks that go on from it.

        Parameters
        ----------
        weights
            Of each row, as `weights` gives them.
        """
        total = weights.copy()
        # level by level from the innermost: a parent stands before its children
        for rows in reversed(self.levels()[1:]):
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

    def levels(self) -> list[npt.NDArray[np.intp]]:
        """Give the rows by how many calls they lie within, from none on."""
        depth = self.depth()
        order = np.argsort(depth, kind="stable")
        return np.split(order, np.cumsum(np.bincount(depth, minlength=1))[:-1])

    def path(self, row: int) -> list[int]:
        """Give the rows from the outermost call to this one."""
        found = []
        while row >= 0:
            found.append(row)
            row = int(self.parent[row])
        return found[::-1]

    def of_frames(self, weights: Ints) -> pd.DataFrame:
        """Sum up weights by frame.

        Parameters
        ----------
        weights
            Of each row, as `weights` gives them.

        Returns
        -------
        pandas.DataFrame
            By frame, the heaviest first: the columns of `frames`, ``self`` (it was the innermost
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


def frame_name(function: str, module: str, origin: str = "") -> str:
    """Name a frame: a Python function by its module, as ``scipy.signal.hilbert``.

    Parts of a module from the first one on that is private, as ``_signaltools``, are left out: the
    function is called by the name under which it is imported. Compiled code is called by its
    function, and where that has no name by its file.
    """
    if not function:
        return f"{NO_NAME} in {module}" if module else NO_NAME
    if not origin or not module or module == "__main__":
        return function
    parts = module.split(".")
    private = next((i for i, part in enumerate(parts) if part.startswith("_")), len(parts))
    return ".".join([*(parts[:private] or parts), function])


def read_stacks(trace: Trace) -> Stacks:
    """Read the stacks of a trace's samples; a trace without samples has none."""
    table = trace.table("stacks")
    names = [table[name].astype(object).fillna("") for name in FRAME]
    frame, frames = pd.MultiIndex.from_arrays(names).factorize()
    return Stacks(
        table["parent"].to_numpy(np.int64),
        np.asarray(frame, np.int64),
        pd.DataFrame(list(frames), columns=list(FRAME), dtype=object),
        table["line"].to_numpy(np.int64),
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


def source_of(trace: Trace) -> Source | None:
    """Give the table that is read where none is named: samples of Python calls, else of CPUs."""
    return next((source for source in Source if trace.rows(source)), None)


@dataclass(frozen=True)
class Chosen:
    """Which samples are meant; by default all.

    Attributes
    ----------
    function
        Only samples of tasks of this function.
    process
        Only those of this row of ``processes``, a worker say.
    start, stop
        Only those with ``start <= time < stop``, trace time in ns.
    tasks
        Only those of these rows of ``tasks``.
    """

    function: str | None = None
    process: int | None = None
    start: int | None = None
    stop: int | None = None
    tasks: npt.NDArray[np.integer[Any]] | None = None


EVERYTHING = Chosen()


def functions_of(trace: Trace) -> tuple[list[str], Ints]:
    """Give the names of functions, and of each task the position of its own among them."""
    # in the order of rows, which references count, not in that of time
    pieces = [piece["prefix"] for piece in trace.pieces("tasks", ["prefix"])]
    names = [str(name) for name in pieces[0].cat.categories]
    codes: Ints = np.concatenate([piece.cat.codes.to_numpy(np.int64) for piece in pieces])
    if len(codes) and codes.min() < 0:
        names.append(UNKNOWN)
        codes[codes < 0] = len(names) - 1
    return names, codes


def read_samples(
    trace: Trace, source: Source | None = None, chosen: Chosen = EVERYTHING
) -> Iterator[pd.DataFrame]:
    """Read samples, of whichever source, with the same columns.

    Parameters
    ----------
    trace
        The trace.
    source
        The table that holds them; by default as `source_of` says.
    chosen
        Which of them.

    Yields
    ------
    pandas.DataFrame
        So many rows at once, of samples with calls: ``process``, ``thread``, ``start``, ``weight``
        (ns, or 1 of each), ``stack``, ``task`` (row of ``tasks``, -1: none), ``function``
        (position among those of `functions_of`, -1: none), ``role`` (position in `ROLES`) and
        ``late`` (how late it came, as in ``call_samples``).
    """
    source = source or source_of(trace)
    if source is None:
        return
    names, of_task = functions_of(trace)
    wanted = np.ones(len(of_task), bool)
    if chosen.function is not None:
        wanted &= of_task == (names.index(chosen.function) if chosen.function in names else -2)
    if chosen.tasks is not None:
        wanted &= np.isin(np.arange(len(of_task)), chosen.tasks)
    of_tasks = chosen.function is not None or chosen.tasks is not None
    stacks = trace.rows("stacks")
    columns = ["process", "thread", "start", "stack", "task"]
    pieces = (
        trace.pieces(source, [*columns, "span", "role", "late"])
        if source.timed
        else samples_once(trace, columns)
    )
    for piece in pieces:
        part = piece[columns].astype(np.int64)
        part["weight"] = np.maximum(piece["span"].to_numpy(), 0) if source.timed else 1
        task = part["task"].to_numpy()
        known = (task >= 0) & (task < len(of_task))
        part["task"] = np.where(known, task, -1)
        part["function"] = np.where(known, np.append(of_task, -1)[np.where(known, task, -1)], -1)
        part["role"] = (
            pd.Categorical(piece["role"].astype(object), categories=list(ROLES)).codes
            if source.timed
            else np.where(known, 0, 2)
        )
        part["late"] = piece["late"].to_numpy(np.int64) if source.timed else -1
        at, stack = part["start"].to_numpy(), part["stack"].to_numpy()
        used = (stack >= 0) & (stack < stacks)
        if chosen.start is not None:
            used &= at >= chosen.start
        if chosen.stop is not None:
            used &= at < chosen.stop
        if chosen.process is not None:
            used &= part["process"].to_numpy() == chosen.process
        if of_tasks:
            used &= known & np.append(wanted, False)[np.where(known, task, -1)]
        part["role"] = np.where(part["role"] < 0, 2, part["role"])
        yield part if used.all() else part[used]


def sums(
    trace: Trace,
    by: Sequence[str],
    source: Source | None = None,
    chosen: Chosen = EVERYTHING,
    bins: tuple[int, int, int] | None = None,
) -> pd.DataFrame:
    """Sum samples up.

    Parameters
    ----------
    trace, source, chosen
        As for `read_samples`.
    by
        Columns of it that tell sums apart, and ``bin``.
    bins
        Begin and end of a stretch of time, ns, and into how many bins it is divided; a sample is of
        the bin in which it was taken, one outside of the stretch of the first or the last.

    Returns
    -------
    pandas.DataFrame
        Columns of `by`, in their order, ``samples``, ``weight`` (of all of them) and ``squares``
        (the weights' squares in sum).
    """
    measures = ["samples", "weight", "squares"]
    parts = []
    for part in read_samples(trace, source, chosen):
        one = part[[name for name in by if name != "bin"]].copy()
        if "bin" in by and bins is not None:
            start, stop, count = bins
            place = (part["start"] - start) / max(1, stop - start) * count
            one["bin"] = np.clip(np.floor(place), 0, count - 1).astype(np.int64)
        one["samples"], one["weight"] = 1, part["weight"]
        one["squares"] = part["weight"].astype(float) ** 2
        parts.append(one.groupby(list(by), as_index=False, sort=True).sum())
    if not parts:
        return pd.DataFrame({name: np.empty(0, np.int64) for name in [*by, *measures]})
    if len(parts) == 1:
        return parts[0]
    return pd.concat(parts).groupby(list(by), as_index=False, sort=True).sum()


def weights(
    trace: Trace,
    function: str | None = None,
    process: int | None = None,
    start: int | None = None,
    stop: int | None = None,
    tasks: npt.NDArray[np.integer[Any]] | None = None,
    source: Source | None = None,
) -> Ints:
    """Sum up the samples of each stack.

    Parameters
    ----------
    trace
        The trace.
    function, process, start, stop, tasks
        As of `Chosen`.
    source
        The table that holds them; by default as `source_of` says.

    Returns
    -------
    int64
        In the order of the rows of ``stacks``: the weight of the samples that had this call as the
        innermost; ns, or how many. Samples without calls are in none.
    """
    found = np.zeros(trace.rows("stacks"), np.int64)
    for part in read_samples(trace, source, Chosen(function, process, start, stop, tasks)):
        np.add.at(found, part["stack"].to_numpy(), part["weight"].to_numpy())
    return found
