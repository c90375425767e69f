"""What a call of the task plugin costs the event loop: microseconds a call and the longest stall.

Three measurements with one worker in this process. *Replay*: the transitions of tasks that a worker
holds are told to the plugin again, one after the other, with nothing else running; a plugin that
does nothing is told the same, and the difference is the cost of the recording. *Threads*: a task
that does nothing is run through the wrapper that tells of starts and stops, and the CPU time of the
thread is read. *Storm*: every call that Dask makes of all three plugins while tasks run at full
speed is timed from outside, as are the recordings at the start and stop of a task and between
tasks. There the processor's caches are cold, which makes a call 3 to 5 times as long, and the GIL
is shared with the tasks' threads: the plugin that does nothing shows what of a stall is not ours.

    python tests/benchmarks/recording_calls.py [--tasks 20000] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import distributed.worker
import numpy as np
from distributed import Client, LocalCluster
from distributed.diagnostics.plugin import WorkerPlugin

from dasf_hpc.profile.execution import _wrap_thread
from dasf_hpc.profile.plugins import GPUAnnotationPlugin, ResourceMonitor, WorkerTaskPlugin

#: What a task that is computed, held and let go goes through.
LIFE = (
    ("released", "waiting"),
    ("waiting", "ready"),
    ("ready", "executing"),
    ("executing", "memory"),
    ("memory", "released"),
    ("released", "forgotten"),
)


class EmptyPlugin(WorkerPlugin):  # type: ignore[misc]
    """Is told of transitions and does nothing."""

    name = "empty"

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""


class Timed:
    """A function whose calls are timed."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.durations: list[int] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter_ns()
        result = self.function(*args, **kwargs)
        self.durations.append(time.perf_counter_ns() - begin)
        return result


def increment(value: int) -> int:
    """Be a task."""
    return value + 1


@contextmanager
def cluster_of_one(folder: Path) -> Iterator[tuple[Client, Any]]:
    """Give a client and the worker, all in this process."""
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            dashboard_address=":0",
            memory_limit=0,
            local_directory=str(folder),
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client, cluster.workers[0]


def timer_cost() -> float:
    """Give what a `Timed` call of a function that does nothing measures, in ns."""
    timed = Timed(lambda *args: None)
    for _ in range(100_000):
        timed("key", "waiting", "ready")
    return float(np.median(timed.durations))


def replay(plugin: Any, keys: list[Any], start_all: Callable[[], None]) -> dict[str, float]:
    """Tell a plugin the lives of tasks, and give nanoseconds a call by transition."""
    cost: dict[str, float] = {}
    gc.disable()
    try:
        for start, finish in LIFE:
            if start == "executing":
                start_all()
            transition = plugin.transition
            begin = time.perf_counter_ns()
            for key in keys:
                transition(key, start, finish)
            cost[f"{start} to {finish}"] = (time.perf_counter_ns() - begin) / len(keys)
    finally:
        gc.enable()
    return cost


def measure_replay(folder: Path, tasks: int, rounds: int = 5) -> dict[str, Any]:
    """Replay lives to the plugin and to the empty one, in turns; the median of the rounds."""
    with cluster_of_one(folder) as (client, worker):
        client.register_plugin(WorkerTaskPlugin(directory=folder / "journals"))
        client.register_plugin(EmptyPlugin())
        futures = client.map(increment, range(tasks), key=[f"increment-{i}" for i in range(tasks)])
        client.gather(futures)
        keys = list(worker.state.tasks)
        empty, ours = [], []
        plugin = worker.plugins["TracePlugin"]

        def start_all() -> None:  # as the threads that run tasks do
            for key in keys:
                number = plugin._id(key)
                plugin._threads.seen.add(number)

        async def on_the_event_loop() -> None:
            for _ in range(rounds):
                empty.append(replay(worker.plugins["empty"], keys, lambda: None))
                ours.append(replay(plugin, keys, start_all))

        asyncio.run_coroutine_threadsafe(on_the_event_loop(), worker.loop.asyncio_loop).result()
    by_transition = {
        name: float(np.median([o[name] - e[name] for o, e in zip(ours, empty, strict=True)]))
        for name in ours[0]
    }
    return {
        "by_transition_us": {name: ns / 1e3 for name, ns in by_transition.items()},
        "mean_us": float(np.mean(list(by_transition.values()))) / 1e3,
        "empty_us": float(np.median([np.mean(list(e.values())) for e in empty])) / 1e3,
    }


def run_task(
    task: Any,
    data: Any,
    execution_state: dict[str, Any],
    key: Any,
    active_threads: Any,
    active_threads_lock: Any,
    time_delay: float,
) -> dict[str, Any]:
    """Be what runs a task in distributed, and do nothing."""
    return {"op": "task-finished", "result": 1, "nbytes": 28}


def measure_threads(folder: Path, tasks: int, rounds: int = 5) -> dict[str, Any]:
    """Time starts and stops in a task's thread: of the task plugin, and of ranges in addition."""
    found: dict[str, list[float]] = {}
    original = distributed.worker._run_task
    with cluster_of_one(folder) as (client, worker):
        keys = [f"increment-{i}" for i in range(tasks)]
        futures = client.map(increment, range(tasks), key=keys)
        client.gather(futures)

        def time_all(label: str) -> None:
            function: Any = run_task
            if distributed.worker._run_task is not original:
                function = _wrap_thread(run_task, 3, 2)
            state = {"worker": worker}
            begin = time.thread_time_ns()
            for key in keys:
                function(None, None, state, key, {}, None, 0.0)
            cost = (time.thread_time_ns() - begin) / tasks
            found.setdefault(label, []).append(cost / 1e3)

        for _ in range(rounds):
            time_all("bare")
            client.register_plugin(WorkerTaskPlugin(directory=folder / "journals"))
            time_all("task plugin")
            client.register_plugin(GPUAnnotationPlugin(directory=folder / "journals"))
            time_all("both")
            client.unregister_worker_plugin("GPUAnnotationPlugin")
            client.unregister_worker_plugin("TracePlugin")
    median = {label: float(np.median(values)) for label, values in found.items()}
    return {
        "task_plugin_us": median["task plugin"] - median["bare"],
        "ranges_us": median["both"] - median["task plugin"],
    }


class TimedAround:
    """The function that runs a task, timed from outside and, by `inside`, from within."""

    def __init__(self) -> None:
        self.original = distributed.worker._run_task
        self.starts: list[int] = []
        self.stops: list[int] = []
        self._times = threading.local()

    def inside(
        self,
        task: Any,
        data: Any,
        execution_state: dict[str, Any],
        key: Any,
        active_threads: Any,
        active_threads_lock: Any,
        time_delay: float,
    ) -> Any:
        """Run a task as distributed does; what is around this call is the recording."""
        self.starts.append(time.perf_counter_ns() - self._times.begin)
        result = self.original(
            task, data, execution_state, key, active_threads, active_threads_lock, time_delay
        )
        self._times.end = time.perf_counter_ns()
        return result

    def outside(self, recorded: Callable[..., Any]) -> Callable[..., Any]:
        """Give what is called in place of distributed's function."""

        def run_task(*args: Any) -> Any:
            self._times.begin = time.perf_counter_ns()
            result = recorded(*args)
            self.stops.append(time.perf_counter_ns() - self._times.end)
            return result

        return run_task


def measure_storm(folder: Path, tasks: int, plugins: list[WorkerPlugin]) -> dict[str, Any]:
    """Time every call during a storm of tasks, and what is recorded between the tasks."""
    overhead = timer_cost()
    around = TimedAround()
    distributed.worker._run_task = around.inside
    timed: dict[str, Timed] = {}
    with cluster_of_one(folder) as (client, worker):
        for plugin in plugins:
            client.register_plugin(plugin)
            attached = worker.plugins[plugin.name]
            for name in ("transition", "_outgoing", "_activities"):
                if hasattr(attached, name):
                    label = name if plugin is plugins[0] else f"{name}, {plugin.name}"
                    timed[label] = Timed(getattr(attached, name))
                    setattr(attached, name, timed[label])
        wrapped = distributed.worker._run_task
        distributed.worker._run_task = around.outside(wrapped)
        begin = time.perf_counter()
        client.gather(client.map(increment, range(tasks)))
        seconds = time.perf_counter() - begin
        distributed.worker._run_task = wrapped
    distributed.worker._run_task = around.original
    durations = {label: calls.durations for label, calls in timed.items()}
    durations |= {"start of a task": around.starts, "stop of a task": around.stops}
    found: dict[str, Any] = {"tasks_per_s": tasks / seconds, "us_per_task": 0.0, "p50_us": 0.0}
    for name, ns in durations.items():
        if not ns:
            continue
        us = (np.array(ns) - overhead) / 1e3
        found["us_per_task"] += float(us.sum()) / tasks
        found["p50_us"] += float(np.median(us)) * len(us) / tasks
        found[name] = {
            "calls": len(us),
            "calls_per_task": len(us) / tasks,
            "mean_us": float(us.mean()),
            "p50_us": float(np.percentile(us, 50)),
            "p99.9_us": float(np.percentile(us, 99.9)),
            "longest_us": float(us.max()),
        }
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures: dict[str, Any] = {
            "replay": measure_replay(folder / "replay", given.tasks),
            "threads": measure_threads(folder / "threads", given.tasks),
            "storm, empty plugin": measure_storm(folder / "a", given.tasks, [EmptyPlugin()]),
            "storm, all plugins": measure_storm(
                folder / "b",
                given.tasks,
                [
                    WorkerTaskPlugin(directory=folder / "b" / "journals"),
                    GPUAnnotationPlugin(directory=folder / "b" / "journals"),
                    ResourceMonitor.for_workers(100, directory=folder / "b" / "journals"),
                ],
            ),
        }
    print(f"{'replay, cost over an empty plugin':42} {'us a call':>10}")
    for label, value in figures["replay"]["by_transition_us"].items():
        print(f"  {label:40} {value:10.2f}")
    print(f"  {'mean (goal: 2)':40} {figures['replay']['mean_us']:10.2f}")
    print(f"  {'the empty plugin itself':40} {figures['replay']['empty_us']:10.2f}")
    threads = figures["threads"]
    print(f"{'in the thread of a task, start and stop':42} {'us a task':>10}")
    print(f"  {'task plugin':40} {threads['task_plugin_us']:10.2f}")
    print(f"  {'NVTX ranges, without nsys':40} {threads['ranges_us']:10.2f}")
    for label in ("storm, empty plugin", "storm, all plugins"):
        storm = figures[label]
        print(
            f"{label}: {storm['tasks_per_s']:.0f} tasks/s, {storm['us_per_task']:.1f} us a task in "
            f"all calls, {storm['p50_us']:.1f} if all took their median"
        )
        print(f"  {'':32}{'calls/task':>11}{'mean us':>9}{'p50':>8}{'p99.9':>9}{'longest':>10}")
        for name, row in storm.items():
            if not isinstance(row, dict):
                continue
            print(
                f"  {name:32}{row['calls_per_task']:11.2f}{row['mean_us']:9.2f}"
                f"{row['p50_us']:8.2f}{row['p99.9_us']:9.1f}{row['longest_us']:10.1f}"
            )
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
