"""Nsight, sixth step: how long each GPU was busy, and for which task, to the nanosecond.

A GPU is busy while a kernel, a copy or a fill runs on it, on whatever stream. Where several run at
once the instant belongs to the one that began first. So what is sorted by start adds to the busy
time what of it lies after the latest end before it: these parts are whole nanoseconds and add up to
the union exactly, whether they are summed by task, by process or at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dasf_hpc.nsight.attribute import grouped
from dasf_hpc.nsight.sqlite import NONE

Array = npt.NDArray[Any]

KERNEL, TO_DEVICE, TO_HOST, ON_DEVICE, OTHER_COPY, FILL, WAIT = range(7)
"""What ran: column ``what`` of activities. All but `WAIT` keep a GPU busy."""

_SUMMED = ("to_device", "to_host", "on_device", "other_copies", "fills")
"""Names in table ``task_gpu`` of the kinds from `TO_DEVICE` to `FILL`."""

_EARLIEST = np.iinfo(np.int64).min

COLUMNS = ("start", "stop", "gpu", "task", "reason", "process", "launched", "what", "bytes")
"""What `task_gpu` needs to know of an activity."""


class UnionTime:
    """Time that intervals of several groups cover together, each group for itself.

    Intervals come in order of start, some at once; nothing but the groups whose latest interval has
    not ended is kept.
    """

    def __init__(self) -> None:
        self._groups = np.empty(0, np.int64)
        self._ends = np.empty(0, np.int64)

    def add(self, group: Array, start: Array, stop: Array) -> Array:
        """Give how much each interval adds to what its group covered before.

        Parameters
        ----------
        group, start, stop
            Intervals [start, stop) in order of start, none before one that was added earlier.

        Returns
        -------
        int64
            ns, the part of each that no earlier one of its group covers.
        """
        if not len(start):
            return np.empty(0, np.int64)
        order = np.argsort(group, kind="stable")
        first = _firsts(group[order])
        groups = group[order][first]
        number = np.repeat(np.arange(len(groups)), np.diff([*first, len(order)]))
        known = np.searchsorted(self._groups, groups)
        ends_before = np.full(len(groups), _EARLIEST)
        if len(self._groups):
            known = np.minimum(known, len(self._groups) - 1)
            same = self._groups[known] == groups
            ends_before[same] = self._ends[known[same]]
        latest_end = np.maximum(_latest(number, len(groups), stop[order]), ends_before[number])
        before = np.concatenate([[_EARLIEST], latest_end[:-1]])
        before[first] = ends_before
        added = np.empty(len(start), np.int64)
        from_start = np.maximum(start[order], before)
        added[order] = np.maximum(stop[order], from_start) - from_start
        self._keep(groups, latest_end[np.append(first[1:], len(order)) - 1], int(start[-1]))
        return added

    def _keep(self, groups: Array, ends: Array, now: int) -> None:
        old = ~np.isin(self._groups, groups) & (self._ends > now)
        groups = np.concatenate([self._groups[old], groups[ends > now]])
        ends = np.concatenate([self._ends[old], ends[ends > now]])
        order = np.argsort(groups)
        self._groups, self._ends = groups[order], ends[order]


def _firsts(values: Array) -> Array:
    """Give where each distinct one of sorted values begins."""
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    return np.flatnonzero(new)


def _latest(number: Array, groups: int, end: Array) -> Array:
    """Give the latest end so far in each group: of numbers that are larger in each next group."""
    lowest, width = int(end.min()), int(end.max()) - int(end.min()) + 1
    if width < (1 << 62) // groups:
        begin = number * width - lowest
        latest: Array = np.maximum.accumulate(begin + end) - begin
        return latest
    distinct, rank = np.unique(end, return_inverse=True)
    begin = number * len(distinct)
    return np.asarray(distinct[np.maximum.accumulate(begin + rank) - begin])


@dataclass
class BusyUntil:
    """Says how long one GPU was busy before given instants, as its activities come by.

    Attributes
    ----------
    at
        The instants, sorted.
    busy
        For each, for how long the GPU was busy before it, once `finish` was called; ns.
    total
        For how long it was busy so far, ns.
    """

    at: Array
    busy: Array = field(init=False)
    total: int = 0
    _end: int = _EARLIEST
    _done: int = 0

    def __post_init__(self) -> None:
        self.busy = np.zeros(len(self.at), np.int64)

    def add(self, start: Array, stop: Array) -> None:
        """Take activities in order of start, none before one that was taken earlier."""
        if not len(start):
            return
        # instants before these begin know all they need
        self._tell(int(np.searchsorted(self.at, start[0], side="left")))
        end = np.maximum(np.maximum.accumulate(stop), self._end)
        before = np.concatenate([[self._end], end[:-1]])
        from_start = np.maximum(start, before)
        total = self.total + np.cumsum(np.maximum(stop, from_start) - from_start)
        last = int(np.searchsorted(self.at, start[-1], side="left"))
        at = self.at[self._done : last]
        place = np.searchsorted(start, at, side="right") - 1
        # what began by then covers all from then to its latest end
        beyond = np.maximum(end[place] - at, 0)
        self.busy[self._done : last] = total[place] - beyond
        self._done = max(self._done, last)
        self.total, self._end = int(total[-1]), int(end[-1])

    def finish(self) -> None:
        """Say it for the instants that nothing came after."""
        self._tell(len(self.at))

    def _tell(self, last: int) -> None:
        at = self.at[self._done : last]
        beyond = np.maximum(self._end - at, 0) if self._end != _EARLIEST else 0
        self.busy[self._done : last] = self.total - beyond
        self._done = max(self._done, last)


@dataclass
class TaskGpu:
    """Sums by task and GPU, of activities as they come by.

    Parameters
    ----------
    gpus
        Number of GPUs.
    reasons
        Number of reasons.
    """

    gpus: int
    reasons: int
    busy: Array = field(init=False)
    _own: UnionTime = field(default_factory=UnionTime)
    _shared: UnionTime = field(default_factory=UnionTime)
    _parts: list[dict[str, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.busy = np.zeros(self.gpus, np.int64)

    def add(self, activity: Mapping[str, Array]) -> None:
        """Take activities (`COLUMNS`) in order of start, none before one that was taken earlier."""
        start = activity["start"]
        stop = np.maximum(activity["stop"], start)
        gpu, task, what = activity["gpu"].astype(np.int64), activity["task"], activity["what"]
        key = self._key(task, activity["reason"], activity["process"], gpu)
        runs = np.flatnonzero((what != WAIT) & (gpu != NONE))
        own, share = np.zeros(len(start), np.int64), np.zeros(len(start), np.int64)
        own[runs] = self._own.add(key[runs], start[runs], stop[runs])
        share[runs] = self._shared.add(gpu[runs], start[runs], stop[runs])
        np.add.at(self.busy, gpu[runs], share[runs])
        # what ran on a GPU that is not known is no part of any's busy time
        order = np.argsort(key, kind="stable")
        if not len(key):
            return
        first = _firsts(key[order])
        keys = key[order][first]

        def summed(values: Array) -> Array:
            result: Array = np.add.reduceat(values[order], first)
            return result

        kernel = what == KERNEL
        took = stop - start
        launched = kernel & (activity["launched"] != NONE)
        latency = np.where(launched, start - activity["launched"], 0)
        latest = np.where(launched, latency, _EARLIEST)
        part = {
            "key": keys,
            "process": activity["process"][order][first],
            "kernels": summed(kernel.astype(np.int64)),
            "kernel_time": summed(np.where(kernel, took, 0)),
            "first": np.minimum.reduceat(np.where(kernel, start, -(_EARLIEST + 1))[order], first),
            "last": np.maximum.reduceat(np.where(kernel, stop, _EARLIEST)[order], first),
            "launched": summed(launched.astype(np.int64)),
            "latency": summed(latency),
            "latency_max": np.maximum.reduceat(latest[order], first),
            "busy": summed(own),
            "share": summed(share),
            "synchronization": summed(np.where(what == WAIT, took, 0)),
        }
        for number, name in enumerate(_SUMMED, TO_DEVICE):
            of_kind = what == number
            there = bool(of_kind.any())
            for unit, values in (("time", took), ("bytes", np.maximum(activity["bytes"], 0))):
                part[f"{name}_{unit}"] = (
                    summed(np.where(of_kind, values, 0)) if there else np.zeros(len(keys), np.int64)
                )
        self._parts.append(part)

    def _key(self, task: Array, reason: Array, process: Array, gpu: Array) -> Array:
        """Make one number of a task, or of a reason and a process, and of a GPU."""
        without = (process.astype(np.int64) + 1) * (self.reasons + 1) + reason + 1
        who = np.where(task != NONE, task.astype(np.int64), -1 - without)
        key: Array = who * (self.gpus + 1) + gpu + 1
        return key

    def table(self) -> dict[str, Array]:
        """Give table ``task_gpu`` but for its column ``idle``, tasks first."""
        if not self._parts:
            return {}
        every = {name: np.concatenate([p[name] for p in self._parts]) for name in self._parts[0]}
        order = np.argsort(every["key"], kind="stable")
        keys, first = np.unique(every.pop("key")[order], return_index=True)
        how: dict[str, Any] = {"first": np.minimum, "last": np.maximum, "latency_max": np.maximum}
        how["process"] = np.maximum
        found = {n: how.get(n, np.add).reduceat(v[order], first) for n, v in every.items()}
        none = found["kernels"] == 0
        found["first"][none] = found["last"][none] = NONE
        launched, latency = found.pop("launched"), found.pop("latency")
        known = launched > 0
        found["latency_max"][~known] = NONE
        found["latency_mean"] = np.where(known, latency // np.maximum(launched, 1), NONE)
        who, gpu = keys // (self.gpus + 1), keys % (self.gpus + 1) - 1
        is_task = who >= 0
        found["task"] = np.where(is_task, who, NONE)
        found["reason"] = np.where(is_task, NONE, (-1 - who) % (self.reasons + 1) - 1)
        found["gpu"] = gpu
        tasks_first = np.argsort(~is_task, kind="stable")
        return {name: values[tasks_first] for name, values in found.items()}


def idle_times(
    activities: Iterable[Mapping[str, Array]], gpu: Array, start: Array, stop: Array
) -> Iterator[tuple[Array, Array]]:
    """Say how long a GPU did nothing between two instants.

    Parameters
    ----------
    activities
        ``start``, ``stop``, ``gpu`` and ``what`` of all activities, in order of start.
    gpu, start, stop
        GPU and instants, a row each question.

    Yields
    ------
    rows, idle
        Which questions, and the answers, ns.
    """
    asked = {}
    for number, rows in grouped(gpu):
        at = np.concatenate([start[rows], stop[rows]])
        order = np.argsort(at, kind="stable")
        asked[number] = rows, order, BusyUntil(at[order])
    for part in activities:
        runs = np.flatnonzero(part["what"] != WAIT)
        for number, places in grouped(part["gpu"][runs]):
            if number in asked:
                begins = part["start"][runs[places]]
                ends = np.maximum(part["stop"][runs[places]], begins)
                asked[number][2].add(begins, ends)
    for rows, order, counter in asked.values():
        counter.finish()
        busy = np.empty(2 * len(rows), np.int64)
        busy[order] = counter.busy
        yield rows, stop[rows] - start[rows] - (busy[len(rows) :] - busy[: len(rows)])
