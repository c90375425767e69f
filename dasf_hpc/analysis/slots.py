"""Analysis of where time went: a worker's slots, and what of their time was spent on the worker.

What changes a count at some moment (a task begins, data arrives) is one number: the time, and in
its lowest bits which counts change by how much. Sorting these numbers puts everything in the order
of time at once, and a running sum then gives each count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.analysis.executions import Ints

Counts = NDArray[np.int32]

#: What is counted. ``running`` are executions on a worker whose transitions are known, so that they
#: can be told from what is ``assigned`` to it.
COUNTS = (
    *("executing", "running", "deserialising", "disk", "full"),
    *("waits", "assigned", "flights", "busy"),
)

#: Bits of an event that say what changes; the others are its time, ns.
BITS = 6
_MASK = (1 << BITS) - 1
#: Events that are looked at together: more leave the caches, fewer make the calls count.
AT_ONCE = 1 << 16
#: Times beyond 2 years are those of a damaged file.
LATEST = 1 << (62 - BITS)

#: Codes of transitions: the changes of waits, assigned and flights as digits to the base 3.
_TRANSITIONS = ("waits", "assigned", "flights")
NOTHING = 13

#: Codes of what begins; that of its end is one more.
BEGINS = {
    "executing": 27,  # a task, where transitions are known
    "executing alone": 29,  # and where they are not, or it has none, as an actor's call
    "deserialising": 31,
    "disk": 33,
    "full": 35,
    "busy": 37,
}


def _changes() -> NDArray[np.int8]:
    """Give the change of each count, by code."""
    table = np.zeros((1 << BITS, len(COUNTS)), np.int8)
    for code in range(27):
        for digit, name in enumerate(_TRANSITIONS):
            table[code, COUNTS.index(name)] = code // 3 ** (2 - digit) % 3 - 1
    for what, code in BEGINS.items():
        names = {"executing": ("executing", "running"), "executing alone": ("executing",)}
        for name in names.get(what, (what,)):
            table[code, COUNTS.index(name)] = 1
            table[code + 1, COUNTS.index(name)] = -1
    return table


_CHANGES = _changes()


def transition_code(waits: Any, assigned: Any, flights: Any) -> Any:
    """Give the code of a transition, or of each, that changes counts by -1, 0 or 1."""
    return 9 * (waits + 1) + 3 * (assigned + 1) + flights + 1


def events(times: Ints, codes: int | NDArray[np.uint8]) -> Ints:
    """Make events of times, ns, and what changes then."""
    if len(times) and (int(times.max()) >= LATEST or int(times.min()) <= -LATEST):
        times = np.clip(times, -LATEST, LATEST - 1)
    result: Ints = (times << BITS) | codes
    return result


def span_events(what: str, start: Ints, stop: Ints) -> list[Ints]:
    """Make events of spans; a span holds its start and not its stop."""
    code = BEGINS[what]
    return [events(start, code), events(np.maximum(start, stop), code + 1)]


@dataclass
class Slots:
    """A worker's slots, or a GPU, from `start` to `stop`, and what they may be put down to."""

    threads: int
    start: int
    stop: int
    #: What changes when, in any order.
    events: list[Ints] = field(default_factory=list)


@dataclass(frozen=True)
class Split:
    """Parts of some slots' time on the worker itself, and how many are left when.

    Attributes
    ----------
    parts
        Time by part, ns.
    times
        When one of the others changes; the last is the end of the slots.
    left, queued
        From each time on, slots that nothing on the worker explains, and its tasks that are ready
        and have no slot.
    """

    parts: dict[str, int]
    times: Ints
    left: Counts
    queued: Counts


#: What may explain an idle slot of a worker, in the order of precedence. A task that is ready
#: counts once: where the worker is paused for ``paused``, else for ``dispatching``; so does one
#: that waits.
LOCAL = ("deserialising", "disk", "paused", "dispatching", "transferring", "waiting")


def split(slots: Slots, first: Iterable[str] = ("executing",)) -> Split:
    """Split slots' time by what happens on the worker itself."""
    names = (*first, *LOCAL)
    if slots.stop <= slots.start:
        no_counts = np.empty(0, np.int32)
        return Split(dict.fromkeys(names, 0), np.empty(0, np.int64), no_counts, no_counts)
    packed = _in_order(slots)
    parts = dict.fromkeys(names, 0)
    before = dict.fromkeys(COUNTS, 0)
    pieces: list[tuple[Ints, Counts, Counts]] = []
    for row in range(0, len(packed), AT_ONCE):
        part = packed[row : row + AT_ONCE]
        after = packed[row + AT_ONCE : row + AT_ONCE + 1] >> BITS
        end = max(int(after[0]), slots.start) if len(after) else slots.stop
        lengths = np.diff(np.maximum(part >> BITS, slots.start), append=end)
        counts = _counted((part & _MASK).astype(np.uint8), before)
        none: Counts = np.zeros(len(part), np.int32)
        causes = _causes(counts, none)
        idle: Counts = np.full(len(part), slots.threads, np.int32)
        queued = none
        for name in names:
            cause = causes.get(name)
            if cause is None:
                continue
            used = np.minimum(idle, np.maximum(cause, 0))
            idle = idle - used
            parts[name] += exact_sum(used, lengths)
            if name in ("paused", "dispatching"):
                queued = queued + (cause - used)
        real = np.flatnonzero(lengths)  # of changes at one moment only the last one is seen
        idle, queued = idle[real], queued[real]
        changed = np.append(True, (idle[1:] != idle[:-1]) | (queued[1:] != queued[:-1]))
        changed = np.flatnonzero(changed[: len(real)])
        times = np.maximum(part[real[changed]] >> BITS, slots.start)
        pieces.append((times, idle[changed], queued[changed]))
    zero: Counts = np.zeros(1, np.int32)
    pieces.append((np.array([slots.stop], np.int64), zero, zero))
    all_times, left, waiting = (np.concatenate(column) for column in zip(*pieces, strict=True))
    return Split(parts, all_times, left, waiting)


def _in_order(slots: Slots) -> Ints:
    """Give the events up to the end of some slots in the order of time."""
    begin = np.array([slots.start << BITS | NOTHING], np.int64)
    packed = np.concatenate([begin, *slots.events])
    packed.sort()
    return packed[: np.searchsorted(packed, slots.stop << BITS)]


def _counted(codes: NDArray[np.uint8], before: dict[str, int]) -> dict[str, Counts]:
    """Give each count from each event on; `before` is what it was, and is brought up to date."""
    present = np.bincount(codes, minlength=1 << BITS) > 0
    counts: dict[str, Counts] = {}
    for number, name in enumerate(COUNTS):
        if _CHANGES[present, number].any():
            counts[name] = np.cumsum(_CHANGES[:, number][codes], dtype=np.int32)
            counts[name] += np.int32(before[name])
            before[name] = int(counts[name][-1])
        elif before[name]:
            counts[name] = np.full(len(codes), before[name], np.int32)
    return counts


def _causes(counts: dict[str, Counts], none: Counts) -> dict[str, Counts]:
    """Give what may explain an idle slot, by part; what never happened is left out."""
    causes: dict[str, Counts] = {}
    for name in ("busy", "deserialising", "disk"):
        if name in counts:
            causes[name] = counts[name]
    if "executing" in counts:
        causes["executing"] = causes["in_task"] = counts["executing"]
    if "assigned" in counts:
        ready = np.maximum(counts["assigned"] - counts.get("running", none), 0)
        causes["dispatching"] = ready
        if "full" in counts:
            paused = counts["full"] > 0
            causes["paused"] = np.where(paused, ready, 0)
            causes["dispatching"] = np.where(paused, 0, ready)
    if "waits" in counts:
        causes["waiting"] = counts["waits"]
        if "flights" in counts:
            coming = counts["flights"] > 0
            causes["transferring"] = np.where(coming, counts["waits"], 0)
            causes["waiting"] = np.where(coming, 0, counts["waits"])
    return causes


def exact_sum(counts: NDArray[np.integer], lengths: Ints) -> int:
    """Sum counts times lengths. Not `numpy.dot`: its threads cost more than they save here."""
    return int(np.multiply(counts, lengths, dtype=np.int64).sum())
