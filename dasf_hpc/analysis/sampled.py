"""Analysis, what was sampled on a GPU while it worked for each task: means that sums agree with.

A GPU's busy time is divided as in table ``task_gpu``: each instant belongs to what, of all that ran
then, began first. A sample stands for a stretch of time, and counts for each owner with the part of
it that is the owner's. So the parts of a sample add up to the part of it in which the GPU was busy,
and what several reports sampled at once counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.executions import Floats, Ints
from dasf_hpc.nsight.attribute import grouped
from dasf_hpc.nsight.busy import UnionTime
from dasf_hpc.trace.open import Trace

#: Rows of a table that are in memory at once.
ROWS_AT_ONCE = 1 << 18

#: What keeps a GPU busy, in the order in which equal begins count.
ACTIVITIES = ("kernels", "memcpys", "memsets")

_EARLIEST, _LATEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max

Columns = dict[str, NDArray[np.int64]]


@dataclass
class Means:
    """Integrals of samples over time; divided by the time they are means.

    Attributes
    ----------
    covered, integral
        Time of which there are samples, ns, and samples times time; both of shape
        (metrics, groups).
    """

    covered: Ints
    integral: Floats

    @classmethod
    def zeros(cls, metrics: int, groups: int) -> Means:
        """Begin with nothing."""
        return cls(np.zeros((metrics, groups), np.int64), np.zeros((metrics, groups)))

    def mean(self) -> Floats:
        """Give the mean of each metric in each group, NaN where nothing was sampled."""
        with np.errstate(invalid="ignore", divide="ignore"):
            result: Floats = np.where(self.covered > 0, self.integral / self.covered, np.nan)
        return result


@dataclass
class Sampled:
    """What was sampled, by owner of the GPU's time.

    Attributes
    ----------
    kernels, others
        By owner while its kernels, or its copies and fills, had the GPU.
    tasks
        By task of those that were asked for, while its kernels had the GPU.
    busy, whole
        By GPU while it was busy, and in all.
    samples
        Number of samples, of shape (metrics, GPUs).
    kernel_share, other_share
        The GPU's time that each owner had by kernels, and by copies and fills, ns.
    task_share
        The GPU's time that each task had by kernels, ns.
    """

    kernels: Means
    others: Means
    tasks: Means
    busy: Means
    whole: Means
    samples: Ints
    kernel_share: Ints
    other_share: Ints
    task_share: Ints


def sampled_by_owner(
    trace: Trace, owner: NDArray[np.int32], owners: int, tasks: Sequence[int]
) -> Sampled:
    """Add up a trace's samples by who had the GPU then.

    Parameters
    ----------
    trace
        The trace.
    owner
        By task, its owner (a function, say) from 0.
    owners
        Number of owners; what belongs to no task has one more, the last.
    tasks
        Tasks that are added up each for itself.
    """
    place = np.full(len(owner) + 1, -1, np.int32)
    place[list(tasks)] = np.arange(len(tasks))
    of_task = np.append(owner, owners).astype(np.int32)
    return add_up(
        [_Rows(_activities(trace, name, number == 0)) for number, name in enumerate(ACTIVITIES)],
        _Rows(_samples(trace)),
        (of_task, owners + 1),
        (place, len(tasks)),
        (max(1, len(trace.gpus)), max(1, trace.rows("metrics"))),
    )


def _activities(trace: Trace, table: str, kernel: bool) -> Iterator[Columns]:
    count = len(trace.gpus)
    for piece in trace.pieces(table, ["start", "stop", "gpu", "task"], ROWS_AT_ONCE):
        rows = _arrays(piece[(piece["gpu"] >= 0) & (piece["gpu"] < count)])
        rows["stop"] = np.maximum(rows["stop"], rows["start"])
        rows["kernel"] = np.full(len(rows["start"]), int(kernel))
        yield rows


def _samples(trace: Trace) -> Iterator[Columns]:
    gpus, metrics = len(trace.gpus), trace.rows("metrics")
    columns = ["start", "stop", "gpu", "metric", "value"]
    for piece in trace.pieces("gpu_metrics", columns, ROWS_AT_ONCE):
        known = (piece["gpu"] >= 0) & (piece["gpu"] < gpus)
        known &= (piece["metric"] >= 0) & (piece["metric"] < metrics)
        yield _arrays(piece[known])


def _arrays(frame: pd.DataFrame) -> Columns:
    return {str(name): frame[name].to_numpy(np.int64) for name in frame}


class _Rows:
    """Rows sorted by start, some of them in memory."""

    def __init__(self, pieces: Iterable[Columns]) -> None:
        self._pieces = iter(pieces)
        self._held: Columns | None = None
        self._fill()

    def _fill(self) -> None:
        self._held = next((piece for piece in self._pieces if len(piece["start"])), None)

    @property
    def last(self) -> int | None:
        """Up to where all rows are known; None: there are no more."""
        return None if self._held is None else int(self._held["start"][-1])

    def take(self, limit: int) -> Columns | None:
        """Take the rows that start up to a limit."""
        held = self._held
        if held is None:
            return None
        count = int(np.searchsorted(held["start"], limit, "right"))
        taken = {name: values[:count] for name, values in held.items()}
        if count == len(held["start"]):
            self._fill()
        else:
            self._held = {name: values[count:] for name, values in held.items()}
        return taken if count else None


def add_up(
    activities: Sequence[_Rows],
    samples: _Rows,
    by_owner: tuple[NDArray[np.int32], int],
    by_task: tuple[NDArray[np.int32], int],
    sizes: tuple[int, int],
) -> Sampled:
    """Add up samples by who had the GPU, a window of time after the other.

    Parameters
    ----------
    activities
        Kernels, copies and fills: ``start``, ``stop``, ``gpu``, ``task`` (-1: none), ``kernel``.
    samples
        ``start``, ``stop``, ``gpu``, ``metric``, ``value``.
    by_owner, by_task
        For each task and then for none, the number of its group, and how many groups there are.
    sizes
        Numbers of GPUs and metrics.
    """
    gpus, metrics = sizes
    (owner, owners), (place, places) = by_owner, by_task
    found = Sampled(
        kernels=Means.zeros(metrics, owners),
        others=Means.zeros(metrics, owners),
        tasks=Means.zeros(metrics, places),
        busy=Means.zeros(metrics, gpus),
        whole=Means.zeros(metrics, gpus),
        samples=np.zeros((metrics, gpus), np.int64),
        kernel_share=np.zeros(owners, np.int64),
        other_share=np.zeros(owners, np.int64),
        task_share=np.zeros(places, np.int64),
    )
    of_gpu, of_metric = UnionTime(), UnionTime()
    busy: Columns | None = None
    sampled: Columns | None = None
    begin = _EARLIEST
    sources = [*activities, samples]
    while (limits := [last for one in sources if (last := one.last) is not None]) or busy:
        limit = min(limits, default=_LATEST)
        taken = [rows for one in activities if (rows := one.take(limit)) is not None]
        if taken:
            new = _joined(taken)
            order = np.argsort(new["start"], kind="stable")
            new = _first_come({name: v[order] for name, v in new.items()}, of_gpu, new_key="gpu")
            task = np.where((new["task"] < 0) | (new["task"] >= len(owner) - 1), -1, new["task"])
            new["owner"], new["place"] = owner[task].astype(np.int64), place[task].astype(np.int64)
            _add_shares(found, new)
            busy = new if busy is None else _joined([busy, new])
        if (rows := samples.take(limit)) is not None:
            np.add.at(found.samples, (rows["metric"], rows["gpu"]), 1)
            rows["key"] = rows["gpu"] * metrics + rows["metric"]
            rows = _first_come(rows, of_metric, new_key="key")
            sampled = rows if sampled is None else _joined([sampled, rows])
        _add_window(found, busy, sampled, (begin, limit))
        busy, sampled = _after(busy, limit), _after(sampled, limit)
        begin = limit
        if limit == _LATEST:
            return found
    _add_window(found, busy, sampled, (begin, _LATEST))
    return found


def _joined(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _first_come(rows: Columns, covered: UnionTime, new_key: str) -> Columns:
    """Give of each row only the time that no earlier one of its group had."""
    added = covered.add(rows[new_key], rows["start"], rows["stop"])
    kept = added > 0
    if not kept.all():
        rows, added = {name: values[kept] for name, values in rows.items()}, added[kept]
    return rows | {"start": rows["stop"] - added}


def _add_shares(found: Sampled, rows: Columns) -> None:
    took = rows["stop"] - rows["start"]
    kernel = rows["kernel"] == 1
    np.add.at(found.kernel_share, rows["owner"][kernel], took[kernel])
    np.add.at(found.other_share, rows["owner"][~kernel], took[~kernel])
    wanted = kernel & (rows["place"] >= 0)
    np.add.at(found.task_share, rows["place"][wanted], took[wanted])


def _after(rows: Columns | None, limit: int) -> Columns | None:
    if rows is None:
        return None
    left = rows["stop"] > limit
    return {name: values[left] for name, values in rows.items()} if left.any() else None


def _add_window(
    found: Sampled, busy: Columns | None, sampled: Columns | None, window: tuple[int, int]
) -> None:
    """Add what was sampled in a window of time."""
    if sampled is None:
        return
    for gpu, rows in grouped(sampled["gpu"]):
        own = None
        if busy is not None:
            here = np.flatnonzero(busy["gpu"] == gpu)
            own = {name: values[here] for name, values in busy.items()} if len(here) else None
            if own is not None:
                own["start"], own["stop"] = (np.clip(own[n], *window) for n in ("start", "stop"))
        parts: _Parts | None = None
        for metric, places in grouped(sampled["metric"][rows]):
            mine = rows[places]
            start, stop = (np.clip(sampled[n][mine], *window) for n in ("start", "stop"))
            inside = np.flatnonzero(stop > start)
            inside = inside[np.argsort(start[inside], kind="stable")]
            start, stop, value = start[inside], stop[inside], sampled["value"][mine[inside]]
            if not len(start):
                continue
            if parts is None or not parts.same(start, stop):
                parts = _Parts(start, stop, own)
            parts.add_to(found, value.astype(np.float64), metric, gpu)


class _Parts:
    """Which part of each sample of a metric belongs to whom; those of one GPU mostly share times.

    Parameters
    ----------
    start, stop
        Of the samples, which do not overlap; in order of time.
    own
        Stretches of the GPU's busy time, which do not overlap; in order of time.
    """

    def __init__(self, start: Ints, stop: Ints, own: Columns | None) -> None:
        self._start, self._stop = start, stop
        self._lasts = stop - start
        self._groups: list[tuple[str, Ints, Ints, Floats]] = []
        self._busy: tuple[Ints, Floats] | None = None
        if own is None:
            return
        # a stretch may be of several samples, and a sample of several stretches
        first = np.searchsorted(stop, own["start"], "right")
        count = np.maximum(np.searchsorted(start, own["stop"], "left") - first, 0)
        stretch = np.repeat(np.arange(len(first)), count)
        before = np.cumsum(count) - count
        sample = np.arange(len(stretch)) - np.repeat(before - first, count)
        both = np.minimum(own["stop"][stretch], stop[sample])
        both -= np.maximum(own["start"][stretch], start[sample])
        kernel, place = own["kernel"][stretch] == 1, own["place"][stretch]
        self._busy = sample, both.astype(np.float64)
        for name, group, chosen in (
            ("kernels", own["owner"][stretch], kernel),
            ("others", own["owner"][stretch], ~kernel),
            ("tasks", place, kernel & (place >= 0)),
        ):
            if chosen.any():
                # many short kernels of one owner lie in a sample: they are one part of it
                key, which = np.unique(
                    group[chosen] * len(start) + sample[chosen], return_inverse=True
                )
                took = np.bincount(which, both[chosen]).astype(np.float64)
                self._groups.append((name, key // len(start), key % len(start), took))

    def same(self, start: Ints, stop: Ints) -> bool:
        """Say whether another metric has the same times."""
        return np.array_equal(start, self._start) and np.array_equal(stop, self._stop)

    def add_to(self, found: Sampled, value: Floats, metric: int, gpu: int) -> None:
        """Add a metric's samples."""
        found.whole.covered[metric, gpu] += int(self._lasts.sum())
        found.whole.integral[metric, gpu] += float(self._lasts @ value)
        if self._busy is not None:
            sample, took = self._busy
            found.busy.covered[metric, gpu] += int(took.sum())
            found.busy.integral[metric, gpu] += float(took @ value[sample])
        for name, group, sample, took in self._groups:
            means: Means = getattr(found, name)
            width = means.covered.shape[1]
            # whole numbers below 2**53 are exact
            means.covered[metric] += np.bincount(group, took, width).astype(np.int64)
            means.integral[metric] += np.bincount(group, took * value[sample], width)
