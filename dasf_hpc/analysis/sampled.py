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


class _Steps:
    """The times of samples of one metric that do not overlap, and where moments are in them."""

    def __init__(self, start: Ints, stop: Ints, at: Ints) -> None:
        self.start, self.stop = start, stop
        self.lasts = stop - start
        self.covered = np.concatenate([[0], np.cumsum(self.lasts)])
        self._place = np.searchsorted(start, at, "right")
        self._before = np.maximum(self._place - 1, 0)
        # of the sample that a moment is in, what comes after that
        self._beyond = np.where(self._place > 0, np.maximum(stop[self._before] - at, 0), 0)
        self.until: Ints = self.covered[self._place] - self._beyond

    def same(self, start: Ints, stop: Ints) -> bool:
        """Say whether another metric has the same times, as those of one GPU have."""
        return np.array_equal(start, self.start) and np.array_equal(stop, self.stop)

    def integral(self, value: Ints) -> Floats:
        """Give the integral of a metric up to each moment."""
        total = np.concatenate([[0.0], np.cumsum(self.lasts * value.astype(np.float64))])
        result: Floats = total[self._place] - self._beyond * value[self._before].astype(np.float64)
        return result


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
        at = np.empty(0, np.int64)
        if own is not None:
            at = np.clip(np.concatenate([own["start"], own["stop"]]), *window)
        steps: _Steps | None = None
        for metric, places in grouped(sampled["metric"][rows]):
            mine = rows[places]
            mine = mine[np.argsort(sampled["start"][mine], kind="stable")]
            start, stop = (np.clip(sampled[n][mine], *window) for n in ("start", "stop"))
            value = sampled["value"][mine]
            if not (inside := stop > start).all():
                start, stop, value = start[inside], stop[inside], value[inside]
            if not len(start):
                continue
            if steps is None or not steps.same(start, stop):
                steps = _Steps(start, stop, at)
            found.whole.covered[metric, gpu] += int(steps.covered[-1])
            found.whole.integral[metric, gpu] += float(steps.lasts @ value.astype(np.float64))
            if own is not None:
                _add_owners(found, own, steps, value, (metric, gpu))


def _add_owners(
    found: Sampled, own: Columns, steps: _Steps, value: Ints, where: tuple[int, int]
) -> None:
    metric, gpu = where
    count = len(own["start"])
    covered = steps.until[count:] - steps.until[:count]
    some = np.flatnonzero(covered)
    if not len(some):
        return
    until = steps.integral(value)
    integral = (until[count:] - until[:count])[some]
    covered = covered[some]
    found.busy.covered[metric, gpu] += int(covered.sum())
    found.busy.integral[metric, gpu] += float(integral.sum())
    kernel = own["kernel"][some] == 1
    place = own["place"][some]
    for means, group, chosen in (
        (found.kernels, own["owner"][some], kernel),
        (found.others, own["owner"][some], ~kernel),
        (found.tasks, place, kernel & (place >= 0)),
    ):
        width = means.covered.shape[1]
        if not width or not chosen.any():
            continue
        np.add.at(means.covered[metric], group[chosen], covered[chosen])
        means.integral[metric] += np.bincount(group[chosen], integral[chosen], width)
