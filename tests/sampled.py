"""Traces with samples of Python calls, made by hand: every share in them is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from handmade import Made, Task, Worker, make_trace

from dasf_hpc.trace.open import Trace

MS = 1_000_000
STEP = 10 * MS

#: Function, module, file, line and origin.
Call = tuple[str, str, str, int, str]


def own(function: str, line: int, file: str = "job.py", module: str = "__main__") -> Call:
    return function, module, file, line, "own"


def package(function: str, module: str, line: int = 7) -> Call:
    return function, module, module.replace(".", "/") + ".py", line, "package"


def dask(function: str, module: str, line: int = 9) -> Call:
    return function, module, module.replace(".", "/") + ".py", line, "dask"


def library(function: str, module: str, line: int = 5) -> Call:
    return function, module, module.replace(".", "/") + ".py", line, "standard library"


HILBERT = package("hilbert", "scipy.signal._signaltools", 2400)
SORT = package("sort", "numpy._core.fromnumeric", 1000)
POOL = [library("run", "threading"), dask("_run_task", "distributed.worker", 2800)]
LOOP = [library("run_forever", "asyncio.base_events"), library("_run_once", "asyncio.base_events")]
WAITING = [*LOOP, library("select", "selectors", 468)]
STEP_OF_LOOP = [*LOOP, library("_run", "asyncio.events", 84)]
UPDATE_GRAPH = [*STEP_OF_LOOP, dask("Server._handle_comm", "distributed.core", 900),
                dask("Scheduler.update_graph", "distributed.scheduler", 4700)]  # fmt: skip
STREAM = [*STEP_OF_LOOP, dask("Server.handle_stream", "distributed.core", 980)]
TRANSITIONS = [*STREAM, dask("Scheduler._transitions", "distributed.scheduler", 2000)]


@dataclass
class Sample:
    """A sample; ``process`` is the position of the worker, one more than the last the scheduler."""

    process: int
    start: int
    calls: Sequence[Call]
    span: int = STEP
    thread: int = 1
    role: str = "task"
    #: Key of the task.
    task: str = ""
    late: int = 0


@dataclass
class Table:
    """Table ``stacks`` as it grows."""

    rows: dict[tuple[int, Call], int] = field(default_factory=dict)

    def of(self, calls: Sequence[Call]) -> int:
        row = -1
        for call in calls:
            row = self.rows.setdefault((row, call), len(self.rows))
        return row

    def columns(self) -> dict[str, Any]:
        calls = [call for _, call in self.rows]
        found: dict[str, Any] = {"parent": [parent for parent, _ in self.rows]}
        for place, name in enumerate(("function", "module", "file", "line", "origin")):
            found[name] = [call[place] or None for call in calls]
        return found


def tables(samples: Sequence[Sample], tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """Make tables ``stacks`` and ``call_samples``."""
    rows = {task.key: row for row, task in enumerate(sorted(tasks, key=lambda one: one.start))}
    ordered, stacks = sorted(samples, key=lambda one: one.start), Table()
    return {
        "call_samples": {
            "process": [one.process for one in ordered],
            "thread": [one.thread for one in ordered],
            "start": [one.start for one in ordered],
            "span": [one.span for one in ordered],
            "stack": [stacks.of(one.calls) for one in ordered],
            "role": [one.role for one in ordered],
            "task": [rows[one.task] if one.task else -1 for one in ordered],
            "late": [one.late for one in ordered],
        },
        "stacks": stacks.columns(),
    }


def make_sampled(
    path: Path, samples: Sequence[Sample], tasks: Sequence[Task], workers: int = 2
) -> Trace:
    """Write a trace with samples, of workers on two nodes, and open it."""
    made = Made(tasks, [Worker(node=n % 2) for n in range(workers)], more=tables(samples, tasks))
    return make_trace(path, made)


def small_run() -> tuple[list[Sample], list[Task]]:
    """Two functions of 1 s each on two workers, their event loops and the scheduler's.

    ``filter_trace``: 68 of 100 samples are in hilbert, called from job.py:41, 12 in sort, called
    from job.py:43, 20 at job.py:44 itself. ``load``: all in its own line, job.py:12. The scheduler
    is busy for 60 of 200 samples; the event loop of worker 0 is blocked for 300 ms.
    """
    tasks = [Task("filter_trace-1", 0, 0, 1000 * MS), Task("load-1", 1, 0, 1000 * MS)]
    tasks.append(Task("load-2", 0, 1000 * MS, 2000 * MS))
    samples = []
    inner = own("filter_trace", 41), own("filter_trace", 43), own("filter_trace", 44)
    for n in range(100):
        calls = (
            [*POOL, inner[0], HILBERT]
            if n < 68
            else ([*POOL, inner[1], SORT] if n < 80 else [*POOL, inner[2]])
        )
        if n < 30:
            calls = [*calls, package("c2c", "scipy.fft._pocketfft", 3)]
        end = (n + 1) * STEP
        samples.append(Sample(0, end, calls, task="filter_trace-1"))
        samples.append(Sample(1, end, [*POOL, own("load", 12)], task="load-1", thread=3))
        samples.append(Sample(0, 1000 * MS + end, [*POOL, own("load", 12)], task="load-2"))
    for n in range(200):
        end = (n + 1) * STEP
        blocks = [*STEP_OF_LOOP, own("report", 70, "plug.py", "plug")]
        samples.append(
            Sample(0, end, blocks if 50 <= n < 80 else WAITING, thread=2, role="event loop")
        )
        samples.append(Sample(1, end, WAITING, thread=4, role="event loop"))
        calls = WAITING
        if n < 40:
            calls = [*UPDATE_GRAPH, dask("order", "dask.order", 100 + n)]
        elif n < 80 and n % 2:
            calls = TRANSITIONS
        samples.append(Sample(2, end, calls, thread=5, role="event loop"))
    return samples, tasks


def make_small(path: Path) -> Trace:
    """Write `small_run` and open it."""
    return make_sampled(path, *small_run())


def make_large(
    path: Path, samples: int = 1_000_000, stacks: int = 1000, workers: int = 32
) -> Trace:
    """Write a trace of so many samples in so many stacks, of twelve functions, and open it.

    The stacks of a function grow as a tree does; some are common, most are seldom, as in programs.
    """
    chance = np.random.default_rng(7)
    functions, table = 12, Table()
    leaves: list[tuple[int, int]] = []
    packages = ["numpy._core.numeric", "scipy.signal._signaltools", "pandas.core.frame",
                "numpy.linalg", "zarr.core.array", "numcodecs.blosc"]  # fmt: skip
    while len(leaves) < stacks:
        function = len(leaves) % functions
        calls = [*POOL, own(f"step_{function}", int(chance.integers(30, 60)), f"job_{function}.py")]
        module = packages[int(chance.integers(len(packages)))]
        for _ in range(int(chance.integers(2, 16))):
            name = f"call_{int(chance.zipf(1.6)) % 40}"
            calls.append(package(name, module, int(chance.integers(1, 400))))
        leaves.append((function, table.of(calls)))
    duration = samples // workers * STEP
    tasks = [
        Task(f"step_{n % functions}-{n}", n % workers, n // workers * duration // 40,
             (n // workers + 1) * duration // 40 - 1)
        for n in range(40 * workers)
    ]  # fmt: skip
    ordered = sorted(tasks, key=lambda one: one.start)
    of_function = [[row for f, row in leaves if f == function] for function in range(functions)]
    place = np.arange(samples)
    process = (place % workers).astype(np.int32)
    start = place // workers * STEP + chance.integers(0, STEP, samples)
    order = np.argsort(start, kind="stable")
    process, start = process[order], start[order]
    rows = np.full((workers, 41), -1)
    for row, task in enumerate(ordered):
        rows[task.worker, task.start * 40 // duration if task.start else 0] = row
    slot = np.minimum(start * 40 // duration, 39)
    task_of = rows[process, slot]
    function = np.array([int(task.key.split("-")[0][5:]) for task in ordered])[task_of]
    stack = np.empty(samples, np.int64)
    for number, some in enumerate(of_function):
        mine = np.flatnonzero(function == number)
        stack[mine] = np.asarray(some)[(chance.zipf(1.3, len(mine)) - 1) % len(some)]
    more = {
        "call_samples": {
            "process": process,
            "thread": 100 + process.astype(np.int64),
            "start": start,
            "span": chance.integers(9 * MS, 11 * MS, samples),
            "stack": stack.astype(np.int32),
            "role": np.zeros(samples, np.int8),
            "task": task_of.astype(np.int32),
        },
        "stacks": table.columns(),
    }
    more["call_samples"]["role"] = ["task"] * samples
    nodes = [Worker(node=n // 8) for n in range(workers)]
    return make_trace(path, Made(tasks, nodes, more=more))
