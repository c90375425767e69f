"""Trace, samples of Python calls: a journal's own, each with its task, and those of all together.

A journal's calls within calls are a tree of its own (`calls_of`). The trees of all journals fall
together into table ``stacks`` (`Tree`), in the order of the processes, whoever made the parts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.profile.call_stacks import COROUTINE, LATE, LOOP, SPAN_AT, SPAN_NS, TASK
from dasf_hpc.profile.frames import unpacked
from dasf_hpc.profile.journal import JournalContents, Stream
from dasf_hpc.trace.store import Strings, storable

if TYPE_CHECKING:
    from dasf_hpc.trace.parts import ColumnFile

Array = NDArray[Any]

#: Codes of dictionary ``thread_roles``.
ROLES = ("task", "event loop", "other")

#: What is unusually long between two looks, in medians of that. Twice as long comes by chance, and
#: a GIL that somebody holds puts off many by one or two: those say as much as the others.
LONG = 5

_NONE = 0xFFFFFFFF


@dataclass(frozen=True)
class Calls:
    """What a journal holds of calls.

    Attributes
    ----------
    samples
        Columns of ``call_samples`` by start, raw; ``task`` counts the journal's executions by start
        and ``stack`` the rows of `stacks`.
    stacks
        ``parent`` (-1: none), ``frame``, a position in the texts of names (-1: lost), and ``line``;
        and the texts, as the bytes of a JSON list.
    unknown
        Samples of which the calls, or some of the outer ones, are not known.
    """

    samples: dict[str, Array]
    stacks: dict[str, Array]
    unknown: int


def calls_of(contents: JournalContents, starts: Array, stops: Array) -> Calls:
    """Read the samples of calls of a journal.

    Parameters
    ----------
    contents
        The journal.
    starts
        Its executions, a row of STARTS each, by time.
    stops
        When each ended, -1: not known.
    """
    records = contents.records[Stream.CALL_SAMPLES]
    records = records[np.argsort(records["time"], kind="stable")]
    rows, stacks, torn = _stacks(contents)
    time = records["time"].astype(np.int64)
    stack = _looked_up(rows, records["stack"])
    what = records["what"].astype(np.int64)
    kind, late, span = what & 3, what // LATE & 3, (what >> SPAN_AT) * SPAN_NS
    thread = records["thread"].astype(np.int64)
    task = np.full(len(records), -1, np.int64)

    coroutine = kind == COROUTINE
    # the sequence number is in the thread's place
    task[coroutine] = _by_sequence(starts["sequence"], thread[coroutine])
    known = coroutine & (task >= 0)
    thread[coroutine] = -1
    thread[known] = starts["thread"][task[known]]
    in_thread = kind == TASK
    task[in_thread] = tasks_at(
        starts["thread"].astype(np.int64),
        starts["time"].astype(np.int64),
        stops,
        thread[in_thread],
        time[in_thread],
    )
    own = task >= 0
    span[own] = _bounded(span[own], time[own] - starts["time"][task[own]])
    role = np.full(len(records), ROLES.index("other"), np.int8)
    role[coroutine | in_thread] = ROLES.index("task")
    role[kind == LOOP] = ROLES.index("event loop")
    unknown = int(np.count_nonzero(np.append(torn, True)[stack]))
    samples = {
        "start": time,
        "thread": thread,
        "span": span,
        "stack": stack.astype(np.int32),
        "role": role,
        "late": late.astype(np.int8),
        "task": task.astype(np.int32),
    }
    return Calls(samples, stacks, unknown)


def _bounded(span: Array, since: Array) -> Array:
    """Give for what time samples of tasks stand, where it may have been long since the one before.

    A look comes anywhere in its interval, whatever a thread does then. So samples times interval
    are the time in expectation, for what takes less than an interval, too; to count from the task's
    start on would make the beginning of each task too short. Only where threads could not be looked
    at for long (one held the GIL, say) a task that has just begun does not get all of that.

    Parameters
    ----------
    span
        Since the look before, ns.
    since
        Since the task's start, ns.
    """
    if not len(span):
        return span
    usual = int(np.median(span))
    bounded: Array = np.where(span > LONG * usual, np.minimum(span, np.maximum(since, usual)), span)
    return bounded


def _stacks(contents: JournalContents) -> tuple[Array, dict[str, Array], Array]:
    """Give the ids of a journal's calls, its tree in their order, and whose outer ones are lost.

    A call is numbered after the one that made it, so that a row's parent is an earlier one.
    """
    records = contents.records[Stream.STACKS]
    ids, first = np.unique(records["stack"], return_index=True)
    records = records[first]
    parent = _looked_up(ids, records["parent"])
    parent[parent >= np.arange(len(ids))] = -1
    lost = (parent < 0) & (records["parent"] != _NONE)
    names, frame = np.unique(records["frame"], return_inverse=True)
    texts = [contents.strings.get(name) for name in names.tolist()]
    code = np.array([place if text is not None else -1 for place, text in enumerate(texts)], int)
    torn = lost.tolist()
    for row, above in enumerate(parent.tolist()):
        if above >= 0 and torn[above]:
            torn[row] = True
    line = records["line"].astype(np.int64)
    line[line > np.iinfo(np.int32).max] = -1
    packed = json.dumps([storable(text or "") for text in texts]).encode()
    stacks: dict[str, Array] = {
        "parent": parent.astype(np.int32),
        "frame": (code[frame] if len(frame) else frame).astype(np.int32),
        "line": line.astype(np.int32),
        "names": np.frombuffer(packed, np.uint8),
    }
    return ids, stacks, np.array(torn, bool)


def _looked_up(sorted_ids: Array, wanted: Array) -> Array:
    """Give the position of each in sorted ids, -1 where it is none of them."""
    if not len(sorted_ids):
        return np.full(len(wanted), -1, np.int64)
    place = np.minimum(np.searchsorted(sorted_ids, wanted), len(sorted_ids) - 1)
    found: Array = np.where(sorted_ids[place] == wanted, place, -1)
    return found


def _by_sequence(sequences: Array, wanted: Array) -> Array:
    order = np.argsort(sequences, kind="stable")
    place = _looked_up(sequences[order].astype(np.int64), wanted)
    found: Array = np.append(order, -1)[place]
    return found


def tasks_at(thread: Array, start: Array, stop: Array, of: Array, when: Array) -> Array:
    """Give the execution that ran in a thread at a time: the last one that began, if several did.

    Parameters
    ----------
    thread, start, stop
        Of the executions, by start; times in ns, a stop of -1 is not known: then the next one in
        that thread ended it.
    of, when
        Threads, and times.

    Returns
    -------
    int64
        Position of each one's execution, -1 for none.
    """
    found = np.full(len(of), -1, np.int64)
    if not len(thread) or not len(of):
        return found
    order = np.argsort(thread, kind="stable")
    threads, firsts = np.unique(thread[order], return_index=True)
    lasts = np.append(firsts[1:], len(order))
    by_thread = np.argsort(of, kind="stable")
    bounds = np.searchsorted(of[by_thread], threads, "left")
    ends = np.searchsorted(of[by_thread], threads, "right")
    for first, last, low, high in zip(
        firsts.tolist(), lasts.tolist(), bounds.tolist(), ends.tolist(), strict=True
    ):
        if low == high:
            continue
        own, asked = order[first:last], by_thread[low:high]
        place = _within(start[own], stop[own], when[asked])
        found[asked] = np.append(own, -1)[place]
    return found


def _within(start: Array, stop: Array, when: Array) -> Array:
    """Do what `tasks_at` does, of one thread."""
    count = len(start)
    end = stop.copy()
    open_ended = stop < 0
    end[open_ended] = np.append(start[1:], np.iinfo(np.int64).max)[open_ended]
    # the one that each lies in: the nearest before it that had not ended; all go back at once, and
    # whoever was passed over had ended before, so that each step doubles
    around = np.arange(-1, count - 1)
    latest = np.maximum.accumulate(end)
    around[1:][latest[:-1] < start[1:]] = -1
    around[:1] = -1
    while True:
        passed = (around >= 0) & (end[around] < start)
        if not passed.any():
            break
        around[passed] = around[around[passed]]
    place = np.searchsorted(start, when, "right") - 1
    while True:
        over = (place >= 0) & (end[place] < when)
        if not over.any():
            return place
        place[over] = around[place[over]]


# ------------------------------------------------------------------------------ of all journals


@dataclass
class Tree:
    """The calls within calls of all journals, together.

    Attributes
    ----------
    names
        Names of functions, as journals hold them.
    """

    names: dict[str | None, int] = field(default_factory=dict)
    _rows: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def add(self, columns: ColumnFile) -> Array:
        """Add a part's; gives the row of each, and as the last one -1."""
        parents, frames, lines = (
            columns.read(f"stacks.{name}").tolist() for name in ("parent", "frame", "line")
        )
        texts: list[str | None] = json.loads(columns.read("stacks.names").tobytes())
        known = [self.names.setdefault(text, len(self.names)) for text in texts]
        known.append(self.names.setdefault(None, len(self.names)))  # what -1 points at
        rows, every = [-1] * (len(parents) + 1), self._rows
        for place, (parent, frame, line) in enumerate(zip(parents, frames, lines, strict=True)):
            key = (rows[parent], known[frame], line)
            row = every.get(key)
            if row is None:
                row = every[key] = len(every)
            rows[place] = row
        return np.array(rows, np.int32)

    def table(self, dictionary: Any) -> dict[str, Array]:
        """Give table ``stacks``.

        Parameters
        ----------
        dictionary
            Gives the dictionary of a name.
        """
        frames = [unpacked(text) if text is not None else None for text in self.names]
        columns = {}
        for name, place in (("function", 0), ("module", 1), ("file", 2), ("origin", 3)):
            strings: Strings = dictionary(f"frame_{name}s")
            values = [frame[place] or None if frame is not None else None for frame in frames]
            columns[name] = np.append(strings.codes(values), -1)
        keys = np.array(list(self._rows), np.int64).reshape(-1, 3)
        found = {name: codes[keys[:, 1]] for name, codes in columns.items()}
        return {
            "parent": keys[:, 0].astype(np.int32),
            **{name: found[name].astype(np.int32) for name in ("function", "module", "file")},
            "line": keys[:, 2].astype(np.int32),
            "origin": found["origin"].astype(np.int8),
        }
