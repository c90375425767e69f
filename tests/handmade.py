"""Traces of hand-made tables, for tests that want to know every answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dask.utils import key_split

from dasf_hpc.profile.journal import STATES
from dasf_hpc.trace.open import Trace, open_trace
from dasf_hpc.trace.store import write_trace

_CODE = {state: code for code, state in enumerate(STATES)}


@dataclass
class Task:
    """One execution, on the worker of that position."""

    key: str
    worker: int
    start: int
    stop: int
    thread: int = 1
    state: str = "memory"
    nbytes: int = 100
    needs: Sequence[str] = ()
    type: str | None = None


@dataclass
class Worker:
    """A worker; ``node`` is the position of its host."""

    node: int = 0
    threads: int = 1
    start: int = 0
    stop: int = -1
    gpus: str | None = None
    memory_limit: int = -1
    clock: int | None = None


@dataclass
class Made:
    """What a trace is made of; rows of ``processes`` are the workers, then the scheduler."""

    tasks: Sequence[Task]
    workers: Sequence[Worker] = field(default_factory=lambda: [Worker()])
    #: Worker, time, key, state before and after.
    transitions: Iterable[tuple[int, int, str, str, str]] = ()
    span: tuple[int, int] = (0, 0)
    #: Bound of each node's clock.
    bounds: Sequence[int] = ()
    more: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Turn rows into columns."""
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}


def make_trace(path: Path, made: Made) -> Trace:
    """Write a trace and open it."""
    tasks = sorted(made.tasks, key=lambda task: task.start)
    nodes = 1 + max(worker.node for worker in made.workers)
    first, last = made.span
    last = max([last, *(task.stop for task in tasks)])
    transitions = sorted(made.transitions, key=lambda row: row[1])
    pairs = dict.fromkeys((task.key, need) for task in tasks for need in task.needs)
    tables: dict[str, Mapping[str, Any]] = {
        "nodes": {
            "hostname": [f"node{n + 1}" for n in range(nodes)],
            "cpus": [4] * nodes,
            "memory": [8 << 30] * nodes,
        },
        "clocks": {
            "clock": [f"clock{n}" for n in range(nodes)],
            "node": list(range(nodes)),
            "bound": list(made.bounds) or [0] * nodes,
        },
        "processes": columns(
            [
                {
                    "role": "worker",
                    "name": f"worker-{i}",
                    "node": worker.node,
                    "clock": worker.node if worker.clock is None else worker.clock,
                    "nthreads": worker.threads,
                    "start": worker.start,
                    "stop": last if worker.stop < 0 else worker.stop,
                    "gpus": worker.gpus,
                    "memory_limit": worker.memory_limit,
                }
                for i, worker in enumerate(made.workers)
            ]
            + [
                {
                    "role": "scheduler",
                    "name": None,
                    "node": 0,
                    "clock": 0,
                    "nthreads": -1,
                    "start": first,
                    "stop": last,
                    "gpus": None,
                    "memory_limit": -1,
                }
            ]
        ),
        "tasks": columns(
            [
                {
                    "id": i,
                    "key": task.key,
                    "prefix": key_split(task.key),
                    "process": task.worker,
                    "thread": task.thread,
                    "attempt": 1,
                    "start": task.start,
                    "stop": task.stop,
                    "state": task.state,
                    "nbytes": task.nbytes if task.state == "memory" else -1,
                    "type": task.type,
                }
                for i, task in enumerate(tasks)
            ]
        ),
        "dependencies": columns([{"key": k, "dependency": d} for k, d in pairs]),
        "transitions": columns(
            [
                {
                    "time": time,
                    "process": worker,
                    "key": key,
                    "change": 16 * _CODE[before] + _CODE[after],
                }
                for worker, time, key, before, after in transitions
            ]
        ),
        **made.more,
    }
    write_trace(
        path, {k: v for k, v in tables.items() if v}, {"states": list(STATES)}, {"origin_utc_ns": 0}
    )
    return open_trace(path)
