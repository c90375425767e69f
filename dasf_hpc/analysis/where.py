"""Analysis: where did the workers' time go? Every nanosecond of every thread, counted once.

A worker with n threads has n slots; the wall time of the run times n is split into `PARTS`. At each
moment an executing task fills a slot, up to n. Of the slots that are left each is put down to the
first part, in the order of `PARTS`, that still has a cause at that moment: two keys being read from
disk are a cause for two slots, a third idle slot is put down to what comes next. What happens on
the worker itself comes before what happens elsewhere.

- ``deserialising``, ``disk``: Dask reports such a span for one of the worker's tasks.
- ``paused``: a task is ready, but the worker's process uses as much memory as makes Dask pause it.
- ``dispatching``: a task is ready, or Dask has just begun to execute it, but no thread runs it yet.
- ``transferring``: a task waits, and data is on its way to the worker.
- ``waiting``: a task waits for data, and none is on its way.
- ``scheduler``: the worker has no task; one that could run has not reached any worker.
- ``elsewhere``: the worker has no task; one stands in the queue of a worker without a free thread.
- ``no_parallelism``: no task could run: all that are to come need one that is being executed.
- ``nothing_submitted``: no worker knows of any task: the script does something else.

Tasks in the scheduler's hands and in other workers' queues are causes for as many slots as they
are, shared by the slots idle at that moment in proportion.

A task could run when the last result it needs is there. When one that needs none was submitted the
trace does not know: tasks of one array or collection (one name in their keys) could run when the
first of them arrived at a worker, any other when it arrived itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dasf_hpc.analysis.answer import Answer, Columns, Finding, Severity
from dasf_hpc.analysis.executions import (
    Executions,
    Floats,
    Ints,
    Span,
    duration_text,
    gpu_names,
    read_executions,
    run_span,
    workers,
)
from dasf_hpc.trace.open import Trace

#: Share of a worker's memory limit at which Dask pauses it: ``distributed.worker.memory.pause``.
PAUSE = 0.8

#: The parts in the order of precedence, and what each means.
PARTS: dict[str, str] = {
    "executing": "a task's function runs",
    "deserialising": "a task is being deserialised",
    "disk": "results are read from or written to disk",
    "paused": "a task is ready, but the worker is paused: its memory is full",
    "dispatching": "a task is ready, but no thread runs it yet",
    "transferring": "a task waits for data that is on its way",
    "waiting": "a task waits for data that is not on its way yet",
    "scheduler": "no task: one that could run has not reached a worker (scheduler latency)",
    "elsewhere": "no task: others queue at other workers (uneven work)",
    "no_parallelism": "no task: none could run (no parallelism)",
    "nothing_submitted": "no task: the script submitted none",
    "starting": "before the worker was up, or the run's first task known",
    "stopping": "after the run's last task, or after the worker ended",
}

#: The same for a GPU: kernels and copies first.
GPU_PARTS: dict[str, str] = {
    "busy": "a kernel or a copy runs",
    "in_task": "a task runs on a worker of the GPU, but nothing on the GPU",
    **{name: meaning for name, meaning in PARTS.items() if name != "executing"},
}

_SUMMARY: Columns = {
    "part": ("", "what the time was spent on"),
    "time": ("ns", "in sum over all threads of all workers"),
    "share": ("%", "of the wall time of all threads"),
    "meaning": ("", "what the part means"),
}
_WORKERS: Columns = {
    "worker": ("", "the worker"),
    "node": ("", "the host"),
    "threads": ("", "threads that run tasks"),
    "wall": ("ns", "length of the run times threads; the parts sum to it exactly"),
    **{name: ("ns", meaning) for name, meaning in PARTS.items()},
}
_GPUS: Columns = {
    "gpu": ("", "the GPU"),
    "wall": ("ns", "length of the run; the parts sum to it exactly"),
    **{name: ("ns", meaning) for name, meaning in GPU_PARTS.items()},
}

#: What to do about a part that is large.
_NEXT: dict[str, str] = {
    "deserialising": "Send less with each task: put large objects into the graph once (scatter).",
    "disk": "Give the workers more memory, or make chunks smaller, so that they need not spill.",
    "paused": "Give the workers more memory, fewer threads, or make chunks smaller.",
    "dispatching": "Make tasks larger, or give a worker fewer threads: its event loop is late.",
    "transferring": "Move less: larger chunks along the axis that is exchanged; see "
    "`dasf-hpc analyze communication`.",
    "waiting": "Workers cannot fetch as fast as they need: see `dasf-hpc analyze communication`.",
    "scheduler": "Make fewer and larger tasks: the scheduler does not keep up.",
    "elsewhere": "Make more and more even tasks: see `dasf-hpc analyze balance`.",
    "no_parallelism": "Make more chunks, or shorten the chain: see "
    "`dasf-hpc analyze critical_path`.",
    "nothing_submitted": "Submit the next computation before the last one is read, or compute both "
    "at once (dask.compute(a, b)).",
    "starting": "Use the nodes longer once they are there, or fewer of them.",
    "stopping": "Nothing in the graph: reports are written and node jobs end.",
}
#: A part of the workers' time is named from this share.
NAMED_SHARE = 10.0


@dataclass(frozen=True)
class Steps:
    """A count over time: from ``times[i]`` on it is ``values[i]``, before the first it is 0."""

    times: Ints
    values: Ints

    def at(self, grid: Ints) -> Ints:
        """Give the values at some times."""
        if not len(self.times):
            return np.zeros(len(grid), np.int64)
        place = np.searchsorted(self.times, grid, "right")
        result: Ints = np.where(place > 0, self.values[np.maximum(place - 1, 0)], 0)
        return result


def steps(times: Ints, changes: NDArray[np.integer]) -> Steps:
    """Sum up changes of a count."""
    if not len(times):
        return Steps(np.empty(0, np.int64), np.empty(0, np.int64))
    order = np.argsort(times, kind="stable")
    sorted_times = times[order]
    values = np.cumsum(changes[order].astype(np.int64))
    last = np.append(sorted_times[1:] != sorted_times[:-1], True)
    sorted_times, values = sorted_times[last], values[last]
    changed = np.append(True, values[1:] != values[:-1])
    return Steps(sorted_times[changed], values[changed])


def _distinct(times: Ints) -> Ints:
    """Sort times and leave out repeated ones; numpy.unique takes ten times as long for it."""
    times = np.sort(times)
    result: Ints = times[np.append(True, times[1:] != times[:-1])[: len(times)]]
    return result


def spans(start: Ints, stop: Ints) -> Steps:
    """Count the spans that cover each moment; a span holds its start and not its stop."""
    changes = np.concatenate([np.ones(len(start), np.int64), np.full(len(stop), -1, np.int64)])
    return steps(np.concatenate([start, np.maximum(start, stop)]), changes)


@dataclass
class Slots:
    """A worker's slots, or a GPU, from `start` to `stop`, and what they may be put down to."""

    threads: int
    start: int
    stop: int
    #: Counts by name, see `_Causes`.
    counts: dict[str, Steps] = field(default_factory=dict)


@dataclass(frozen=True)
class _Split:
    """Parts of some slots' time on the worker itself, and how many are left when."""

    parts: dict[str, int]
    left: Steps
    surplus: Steps


def where(trace: Trace) -> Answer:
    """Split the time of each worker, and of each GPU, into what it was spent on.

    Returns
    -------
    Answer
        Tables ``summary``, ``workers`` and ``gpus``; the parts of a row sum to its wall exactly.

    Notes
    -----
    Each thread's time is that of the whole run, so that workers which came late, or went early,
    compare. States come from transitions, which are exact to 1.024 us; what two hosts did at once
    is known as far as their clocks agree.
    """
    runs = read_executions(trace, ("key", "thread", "prefix", "state"))
    found = workers(trace, runs)
    span = run_span(trace, runs)
    unanswered = _unanswered(trace, runs)
    recorded = _Recorded(trace, runs, found, span)
    slots: dict[int, Slots] = {}
    splits: dict[int, _Split] = {}
    for row in found.index.tolist():  # one at a time: a worker's counts may be a gigabyte
        one = recorded.slots(row, found)
        splits[row] = _split(one, _LOCAL)
        slots[row] = Slots(one.threads, one.start, one.stop)
    shares = _Elsewhere(recorded, list(splits.values()))
    table = _table(
        [
            {
                "worker": worker["worker"],
                "node": worker["node"],
                "threads": slots[row].threads,
                **_row(slots[row], splits[row], shares, span, PARTS),
            }
            for row, worker in zip(slots, found.to_dict("records"), strict=True)
        ],
        _WORKERS,
    )
    gpus = _table(_gpus(trace, recorded, found, shares, unanswered), _GPUS)
    wall = int(table["wall"].sum())
    times = [int(table[part].sum()) for part in PARTS]
    summary = pd.DataFrame(
        {
            "part": list(PARTS),
            "time": times,
            "share": [100.0 * time / wall if wall else 0.0 for time in times],
            "meaning": list(PARTS.values()),
        }
    )
    if not len(found):
        summary = summary.head(0)
    return Answer(
        "where",
        {"summary": summary, "workers": table, "gpus": gpus},
        {"summary": _SUMMARY, "workers": _WORKERS, "gpus": _GPUS},
        _findings(summary),
        unanswered,
    )


def _table(rows: list[dict[str, object]], columns: Columns) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns))


def _unanswered(trace: Trace, runs: Executions) -> list[str]:
    sentences = []
    if not len(runs):
        sentences.append("No task was executed in this run.")
    elif not trace.rows("transitions"):
        sentences.append(
            "Why threads had no task: no transition of a task was recorded in this run."
        )
    if len(trace.clocks) > 1 and (trace.clocks["bound"] < 0).any():
        sentences.append(
            "What hosts did at one time, exactly: how far a clock of the run may be wrong is not "
            "known, so that scheduler, elsewhere and no_parallelism are guesses."
        )
    if not trace.rows("process_samples"):
        sentences.append("Whether workers were paused: their memory was not sampled.")
    return sentences


#: Counts that may explain an idle slot of a worker, in the order of precedence. ``ready`` counts
#: once: where the worker is paused for ``paused``, else for ``dispatching``; so does ``waits``.
_LOCAL = ("deserialising", "disk", "paused", "dispatching", "transferring", "waiting")


def _split(slots: Slots, local: tuple[str, ...], first: tuple[str, ...] = ("executing",)) -> _Split:
    """Split slots' time by what happens on the worker itself."""
    counts = slots.counts
    inside = [c.times[(c.times > slots.start) & (c.times < slots.stop)] for c in counts.values()]
    grid = _distinct(np.concatenate([*inside, np.array([slots.start, slots.stop], np.int64)]))
    if len(grid) < 2:
        return _Split(
            dict.fromkeys((*first, *local), 0), steps(grid[:0], grid[:0]), steps(grid[:0], grid[:0])
        )
    lengths, grid = np.diff(grid), grid[:-1]
    value = {name: count.at(grid) for name, count in counts.items()}
    none = np.zeros(len(grid), np.int64)
    ready = np.maximum(value.get("assigned", none) - value.get("threads", none), 0)
    paused, coming = value.get("full", none) > 0, value.get("flights", none) > 0
    waits = value.get("waits", none)
    causes = {
        **{name: value.get(name, none) for name in (*first, "deserialising", "disk")},
        "paused": np.where(paused, ready, 0),
        "dispatching": np.where(paused, 0, ready),
        "transferring": np.where(coming, waits, 0),
        "waiting": np.where(coming, 0, waits),
    }
    idle = np.full(len(grid), slots.threads, np.int64)
    parts: dict[str, int] = {}
    queued = none
    for name in (*first, *local):
        used = np.minimum(idle, np.maximum(causes[name], 0))
        idle = idle - used
        parts[name] = int(np.dot(used, lengths))
        if name in ("paused", "dispatching"):
            queued = queued + causes[name] - used
    ends = np.array([slots.stop], np.int64)
    zero = np.zeros(1, np.int64)
    times = np.concatenate([grid, ends])
    return _Split(
        parts,
        _compressed(times, np.concatenate([idle, zero])),
        _compressed(times, np.concatenate([queued, zero])),
    )


def _compressed(times: Ints, values: Ints) -> Steps:
    changed = np.append(True, values[1:] != values[:-1])
    return Steps(times[changed], values[changed])


class _Recorded:
    """What the trace says of each worker's states and of the tasks that no worker has."""

    def __init__(self, trace: Trace, runs: Executions, found: pd.DataFrame, span: Span) -> None:
        self.span = span
        self._runs = runs
        top = int(runs.key.max()) + 1 if len(runs) else 0
        self._never = np.iinfo(np.int64).max
        self._arrival = np.full(max(top, 1), self._never)
        self._events: dict[int, list[tuple[Ints, NDArray[np.int16]]]] = {}
        self._states: list[str] = []
        self._read_transitions(trace)
        np.minimum.at(self._arrival, np.maximum(runs.key, 0), runs.start)
        first = int(self._arrival.min()) if len(runs) else span.stop
        #: When the run's first task was known to a worker, and when its last one ended.
        self.first = max(span.start, min(first, span.stop))
        self.last = int(runs.stop.max()) if len(runs) else span.stop
        self._order = np.argsort(runs.process, kind="stable")
        self._firsts = np.searchsorted(
            runs.process[self._order], np.arange(int(found.index.max()) + 2 if len(found) else 1)
        )
        self._activities = trace.table("activities", ["start", "stop", "process", "action"])
        self._transfers = self._incoming(trace)
        self._samples = trace.table("process_samples", ["time", "process", "memory"])
        self.released = self._released(trace)
        self.active = spans(self._known_since(), runs.stop)

    def _known_since(self) -> Ints:
        runs = self._runs
        arrival = self._arrival[np.maximum(runs.key, 0)]
        result: Ints = np.minimum(np.where(runs.key >= 0, arrival, runs.start), runs.start)
        return result

    def _read_transitions(self, trace: Trace) -> None:
        kept = ("waiting", "ready", "constrained", "executing", "long-running", "flight")
        columns = ["time", "process", "key", "start_state", "finish_state"]
        for piece in trace.pieces("transitions", columns):
            if not len(piece):
                continue
            states = [str(s) for s in piece["start_state"].cat.categories]
            of_interest = np.array([*(s in kept for s in states), False])
            start = piece["start_state"].cat.codes.to_numpy()
            finish = piece["finish_state"].cat.codes.to_numpy()
            self._states = states
            chosen = of_interest[start] | of_interest[finish]
            time = piece["time"].to_numpy()[chosen]
            process = piece["process"].to_numpy()[chosen]
            key = piece["key"].to_numpy()[chosen]
            start, finish = start[chosen].astype(np.int16), finish[chosen].astype(np.int16)
            if "waiting" in states:
                came = (finish == states.index("waiting")) & (key >= 0) & (key < len(self._arrival))
                np.minimum.at(self._arrival, key[came], time[came])
            order = np.argsort(process, kind="stable")
            rows, firsts = np.unique(process[order], return_index=True)
            coded = (start + 1) * 64 + finish + 1
            for row, part in zip(rows.tolist(), np.split(order, firsts[1:]), strict=True):
                self._events.setdefault(row, []).append((time[part], coded[part]))

    @staticmethod
    def _incoming(trace: Trace) -> pd.DataFrame:
        transfers = trace.table("transfers", ["start", "stop", "process", "direction"])
        return transfers[transfers["direction"] == "incoming"]

    def slots(self, row: int, found: pd.DataFrame) -> Slots:
        """Describe a worker."""
        worker = found.loc[row].to_dict()
        mine = self._order[self._firsts[row] : self._firsts[row + 1]]
        start, stop = self._runs.start[mine], self._runs.stop[mine]
        up, down = int(worker["start"]), int(worker["stop"])
        if len(mine):
            up, down = min(up, int(start.min())), max(down, int(stop.max()))
        begin = min(max(up, self.first), self.span.stop)
        end = max(begin, min(down, self.last, self.span.stop))
        slots = Slots(int(worker["threads"]), begin, end)
        counts = slots.counts
        counts["executing"] = spans(start, stop)
        if row in self._events:
            time = np.concatenate([t for t, _ in self._events[row]])
            coded = np.concatenate([c for _, c in self._events[row]])
            counts["waits"] = self._held(time, coded, "waiting")
            counts["flights"] = self._held(time, coded, "flight")
            counts["assigned"] = self._held(
                time, coded, "ready", "constrained", "executing", "long-running"
            )
            counts["threads"] = counts["executing"]
        elif len(self._transfers):
            part = self._transfers[self._transfers["process"] == row]
            counts["flights"] = spans(part["start"].to_numpy(), part["stop"].to_numpy())
        mine_too = self._activities[self._activities["process"] == row]
        for name, actions in (
            ("deserialising", ("deserialize",)),
            ("disk", ("disk-read", "disk-write")),
        ):
            part = mine_too[mine_too["action"].isin(actions)]
            counts[name] = spans(part["start"].to_numpy(), part["stop"].to_numpy())
        counts["full"] = self._full(row, int(worker["memory_limit"]))
        return slots

    def _held(self, time: Ints, coded: NDArray[np.int16], *names: str) -> Steps:
        """Count the tasks that a worker has in some states."""
        member = np.array([False, *(state in names for state in self._states)])
        change = member[coded % 64].astype(np.int8) - member[coded // 64]
        changed = change != 0
        return steps(time[changed], change[changed])

    def _full(self, row: int, limit: int) -> Steps:
        samples = self._samples[self._samples["process"] == row].sort_values("time", kind="stable")
        if limit <= 0 or not len(samples):
            return steps(np.empty(0, np.int64), np.empty(0, np.int64))
        full = (samples["memory"].to_numpy() >= PAUSE * limit).astype(np.int64)
        return _compressed(samples["time"].to_numpy(), full)

    def _released(self, trace: Trace) -> Steps:
        """Count the tasks that could run and have not reached a worker."""
        runs = self._runs
        arrival = self._arrival
        done = np.full(len(arrival), -1, np.int64)
        ended = runs.in_state("memory") & (runs.key >= 0)
        done[runs.key[ended]] = runs.stop[ended]
        able = np.full(len(arrival), -1, np.int64)
        needs = np.zeros(len(arrival), bool)
        for piece in trace.pieces("dependencies", ["key", "dependency"]):
            if not len(piece):
                continue
            key, dependency = piece["key"].to_numpy(), piece["dependency"].to_numpy()
            known = (key >= 0) & (key < len(arrival))
            needs[key[known]] = True
            known &= (dependency >= 0) & (dependency < len(arrival))
            np.maximum.at(able, key[known], done[dependency[known]])
        executed = np.zeros(len(arrival), bool)
        executed[runs.key[runs.key >= 0]] = True
        roots = np.flatnonzero(executed & ~needs)
        able[roots] = _layer_arrivals(trace, roots, arrival)
        # a task whose dependencies' end is not known could run when it arrived
        able = np.where(able < 0, arrival, able)
        late = executed & (arrival < self._never) & (able < arrival)
        return spans(able[late], arrival[late])


def _layer_arrivals(trace: Trace, roots: NDArray[np.intp], arrival: Ints) -> Ints:
    """Give, for tasks that need none, when the first task of the same collection arrived."""
    if not len(roots):
        return np.empty(0, np.int64)
    texts = trace.texts("keys", roots)
    layers = [
        text[: text.find("',", 2)] if text.startswith("('") and "'," in text else text
        for text in (str(t) for t in texts)
    ]
    codes, names = pd.factorize(pd.Series(layers, dtype=object))
    first = np.full(len(names), np.iinfo(np.int64).max)
    np.minimum.at(first, codes, arrival[roots])
    result: Ints = first[codes]
    return result


#: Moments that are looked at together: bounds the memory it takes.
_AT_ONCE = 1 << 21


class _Elsewhere:
    """Why slots are idle whose worker has no task: shares of the idle slots, over time."""

    NAMES = ("scheduler", "elsewhere", "nothing_submitted")

    def __init__(self, recorded: _Recorded, splits: list[_Split]) -> None:
        left = _summed(split.left for split in splits)
        surplus = _summed(split.surplus for split in splits)
        grid = _distinct(
            np.concatenate(
                [left.times, surplus.times, recorded.released.times, recorded.active.times]
            )
        )
        if len(grid) < 2:
            grid = np.array([0, 1], np.int64)
        kept: list[tuple[Ints, Floats]] = []
        for first in range(0, len(grid), _AT_ONCE):
            part = grid[first : first + _AT_ONCE]
            idle = left.at(part).astype(np.float64)
            released, queued = recorded.released.at(part), surplus.at(part)
            waiting = np.minimum(released, idle)
            others = np.minimum(queued, idle - waiting)
            nothing = (recorded.active.at(part) == 0) & (released == 0) & (queued == 0)
            rates = np.stack([waiting, others, nothing]) / np.stack([np.maximum(idle, 1)] * 3)
            rates[2] = nothing
            changed = np.append(True, (rates[:, 1:] != rates[:, :-1]).any(axis=0))
            kept.append((part[changed], rates[:, changed]))
        self._grid = np.concatenate([part for part, _ in kept])
        all_rates = np.concatenate([rates for _, rates in kept], axis=1)
        lengths = np.diff(self._grid)
        self._rates = dict(zip(self.NAMES, all_rates, strict=True))
        self._sums = {
            name: np.concatenate([[0.0], np.cumsum(rate[:-1] * lengths)])
            for name, rate in self._rates.items()
        }

    def time(self, name: str, times: Ints) -> Floats:
        """Give for how long one slot that is idle from the beginning has a cause, ns."""
        place = np.clip(np.searchsorted(self._grid, times, "right") - 1, 0, None)
        past = np.maximum(times - self._grid[place], 0)
        result: Floats = self._sums[name][place] + self._rates[name][place] * past
        return result

    def parts(self, left: Steps) -> dict[str, int]:
        """Split the time of slots whose worker has no task; the sum is exact."""
        lengths = np.diff(left.times)
        slots = left.values[:-1]
        whole = rest = int(np.dot(slots, lengths)) if len(lengths) else 0
        parts = {}
        for name in self.NAMES:
            at = self.time(name, left.times)
            time = min(rest, round(float(np.dot(slots, np.diff(at))))) if whole else 0
            parts[name] = max(0, time)
            rest -= parts[name]
        return {**parts, "no_parallelism": rest}


def _summed(counts: Iterable[Steps]) -> Steps:
    times, changes = [], []
    for count in counts:
        times.append(count.times)
        changes.append(np.diff(count.values, prepend=0))
    if not times:
        return steps(np.empty(0, np.int64), np.empty(0, np.int64))
    return steps(np.concatenate(times), np.concatenate(changes))


def _row(
    slots: Slots, split: _Split, shares: _Elsewhere, span: Span, parts: dict[str, str]
) -> dict[str, int]:
    """Give a row's wall and its parts, which sum to it."""
    figures = {
        "wall": slots.threads * span.duration,
        **split.parts,
        **shares.parts(split.left),
        "starting": slots.threads * (slots.start - span.start),
        "stopping": slots.threads * (span.stop - slots.stop),
    }
    assert sum(figures[part] for part in parts) == figures["wall"], figures
    return figures


def _gpus(
    trace: Trace,
    recorded: _Recorded,
    found: pd.DataFrame,
    shares: _Elsewhere,
    unanswered: list[str],
) -> list[dict[str, object]]:
    """Put each GPU's idle time down to what its workers did."""
    if "kernels" not in trace.tables:
        unanswered.append("Why GPUs were idle: no CUDA table in this trace.")
        return []
    names = gpu_names(trace)
    busy = gpu_work(trace)
    span = recorded.span
    rows: list[dict[str, object]] = []
    for gpu, name in enumerate(names):
        if gpu not in busy:
            continue
        rows_of = [int(str(row)) for row, own in found["gpus"].items() if gpu in own]
        users = [recorded.slots(row, found) for row in rows_of]
        start, stop = busy[gpu]
        begin = min([int(start.min()), *(u.start for u in users)])
        end = max([int(stop.max()), *(u.stop for u in users)])
        begin = min(max(begin, span.start), span.stop)
        one = Slots(1, begin, max(begin, min(end, span.stop)), {"busy": spans(start, stop)})
        for cause in {cause for user in users for cause in user.counts}:
            one.counts[cause] = _summed(u.counts[cause] for u in users if cause in u.counts)
        one.counts["in_task"] = one.counts.get("executing", spans(start[:0], stop[:0]))
        split = _split(one, _LOCAL, ("busy", "in_task"))
        rows.append({"gpu": name, **_row(one, split, shares, span, GPU_PARTS)})
    return rows


def gpu_work(trace: Trace) -> dict[int, tuple[Ints, Ints]]:
    """Give, by row of ``gpus``, start and stop of kernels and copies, in no order.

    Those of a GPU that the trace does not know are under -1.
    """
    parts: dict[int, list[pd.DataFrame]] = {}
    for name in ("kernels", "memcpys"):
        if name in trace.tables:
            table = trace.table(name, ["gpu", "start", "stop"])
            for gpu, part in table.groupby("gpu"):
                parts.setdefault(int(str(gpu)), []).append(part)
    return {
        gpu: (
            np.concatenate([p["start"].to_numpy() for p in tables]),
            np.concatenate([p["stop"].to_numpy() for p in tables]),
        )
        for gpu, tables in parts.items()
    }


def _findings(summary: pd.DataFrame) -> list[Finding]:
    found = []
    if not len(summary):
        return []
    lost = summary[(summary["share"] >= NAMED_SHARE) & summary["part"].isin(_NEXT)]
    for row, part in lost.sort_values("share", ascending=False).iterrows():
        quiet = part["part"] in ("starting", "stopping")
        found.append(
            Finding(
                Severity.NOTICE
                if quiet
                else (Severity.SERIOUS if part["share"] >= 30 else Severity.WARNING),
                "where",
                "summary",
                (int(str(row)),),
                f"{part['share']:.0f} % of the workers' time ({duration_text(part['time'])} of "
                f"thread time): {part['meaning']}.",
                _NEXT[part["part"]],
            )
        )
    return found
