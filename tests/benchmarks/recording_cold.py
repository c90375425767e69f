"""What each call of the recording costs with the processor's caches cold, as Dask leaves them.

Between two calls of a plugin Dask runs some hundred microseconds of other code, after which the
nearest caches hold neither the plugin's code nor its data: a call then takes 2 to 4 times what it
takes in a loop. Here other work is done before every call, and each call is timed by itself, so
that the median depends little on what else the machine does: differences of 0.2 us show on a loaded
machine, where the CPU time of a storm of tasks differs by 100 us a task from run to run.

    python tests/benchmarks/recording_cold.py [--rounds 1500] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import pickle
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from recording_calls import LIFE

from dasf_hpc.profile.execution import Executions, _watched, _wrap_thread
from dasf_hpc.profile.journal import Journal, Stream
from dasf_hpc.profile.plugins import WorkerTaskPlugin, _Ranges, _ThreadRecorder

_MEMORY = np.zeros(1 << 17)
_MESSAGE = {
    "op": "compute",
    "keys": [f"k{i}" for i in range(30)],
    "a": [{"b": i} for i in range(9)],
}
_SOURCE = "def f(a, b=1):\n  return [x for x in range(a) if x % b] + [{'a': a, 'b': (b, a)}]\n"


def pollute() -> None:
    """Take the caches: a MiB of memory, and code that is not ours."""
    _MEMORY.sum()
    compile(_SOURCE, "source", "exec")
    pickle.loads(pickle.dumps(_MESSAGE))


def empty(key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
    """Be told of a transition and do nothing."""


def listener(journal: Journal, tasks: dict[Any, Any]) -> tuple[Callable[..., None], set[int]]:
    """Give what a task plugin puts in the place of `transition`, and the executions it has seen."""
    plugin: Any = WorkerTaskPlugin(directory=journal.path.parent)
    plugin._journal, plugin._tasks, plugin._ids = journal, tasks, {}
    plugin._table, plugin._transitions = LIFE, journal.transitions()
    plugin._edges = journal.records(Stream.EDGES)
    plugin._executions = Executions()
    plugin._threads = _ThreadRecorder(journal, plugin._ids)
    plugin._recorded_activities = {}
    listen = plugin._listen(deque(maxlen=1).append)

    def transition(key: Any, start: str, finish: str) -> None:
        listen((key, start, finish, finish, {}, "stimulus", 0.0))

    return transition, plugin._threads.seen


def measure_transitions(journal: Journal, rounds: int) -> dict[str, float]:
    """Time each transition of a task with one dependency, over a plugin that does nothing; us."""
    tasks: dict[Any, Any] = {}
    transition, seen = listener(journal, tasks)
    dependency = SimpleNamespace(key="before")
    transition("before", "released", "waiting")
    spent: dict[str, list[int]] = {}
    for number in range(rounds):
        key = f"increment-{number:x}-0123456789abcdef0123"
        tasks[key] = SimpleNamespace(dependencies=[dependency], startstops=[{}], state="memory")
        for start, finish in LIFE:
            if start == "executing":
                seen.add(number + 1)  # ids count up from that of the dependency
            for name, function in (("", transition), ("empty ", empty)):
                pollute()
                begin = time.perf_counter_ns()
                function(key, start, finish)
                end = time.perf_counter_ns()
                spent.setdefault(f"{name}{start} to {finish}", []).append(end - begin)
        del tasks[key]
    median = {name: float(np.median(ns)) / 1e3 for name, ns in spent.items()}
    steps = [f"{start} to {finish}" for start, finish in LIFE]
    return {step: median[step] - median[f"empty {step}"] for step in steps}


def measure_threads(journal: Journal, rounds: int) -> dict[str, float]:
    """Time what is recorded before and after a task in its thread; us."""
    tasks: dict[Any, Any] = {}
    ids: dict[Any, int] = {}
    inner = [0, 0]

    def task(*args: Any) -> dict[str, Any]:
        inner[0] = time.perf_counter_ns()
        pollute()
        inner[1] = time.perf_counter_ns()
        return {"op": "task-finished", "result": 1, "nbytes": 28}

    ways: dict[str, tuple[Callable[..., Any], Any]] = {"bare": (task, {})}
    for name in ("wrapper", "task plugin", "task plugin and ranges"):
        worker: Any = SimpleNamespace(state=SimpleNamespace(tasks=tasks))
        executions = _watched[id(worker)] = Executions()
        if name != "wrapper":
            executions.add(_ThreadRecorder(journal, ids))
        if name == "task plugin and ranges":
            executions.add(_Ranges(executions.base, worker, False), first=True)
        ways[name] = (_wrap_thread(task, 3, 2), {"worker": worker})
    spent: dict[str, list[tuple[int, int]]] = {name: [] for name in ways}
    for number in range(rounds):
        key = f"increment-{number:x}-0123456789abcdef0123"
        ids[key], tasks[key] = number, SimpleNamespace(prefix="increment")
        for name, (function, state) in ways.items():
            pollute()
            begin = time.perf_counter_ns()
            function(None, None, state, key, {}, None, 0.0)
            end = time.perf_counter_ns()
            spent[name].append((inner[0] - begin, end - inner[1]))
        del tasks[key], ids[key]
    median = {name: np.median(np.array(ns), axis=0) / 1e3 for name, ns in spent.items()}
    return {
        f"{moment}, {name}": float(median[name][at] - median["bare"][at])
        for name in ways
        if name != "bare"
        for at, moment in enumerate(("start", "stop"))
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1500)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "a.journal", {})
        gc.disable()
        transitions = measure_transitions(journal, given.rounds)
        threads = measure_threads(journal, given.rounds)
        gc.enable()
        journal.close()
    mean = float(np.mean(list(transitions.values())))
    last = threads["start, task plugin and ranges"] + threads["stop, task plugin and ranges"]
    figures = {
        "transitions_us": transitions,
        "transition_mean_us": mean,
        "threads_us": threads,
        "task_us": (task := sum(transitions.values()) + last),
    }
    for name, value in (*transitions.items(), ("mean of a transition (goal: 2)", mean)):
        print(f"{name:44}{value:8.2f} us")
    for name, value in (*threads.items(), ("a task, all calls (goal: 20)", task)):
        print(f"{name:44}{value:8.2f} us")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
