"""Analysis, what it costs to record: a task's life is played through the recording and timed.

What is called are the functions that a worker calls, with a journal of their own: the listener of
transitions, what is around a task in its thread, and the NVTX ranges. Each is timed twice. *Warm*:
one life after the other, in a loop, as it never is in a worker. *Cold*: other code and data take
the processor's caches before each call, as Dask and the tasks do between two of them. What a worker
pays lies between the two, as far as one machine tells of another; not in it is how much slower Dask
and the tasks are, since the recording takes caches, too.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import io
import pickle
import pprint
import tempfile
import threading
import time
import tokenize
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasf_hpc.profile.call_stacks import Sampled, StackSampler
from dasf_hpc.profile.execution import Executions, _watched, _wrap_thread
from dasf_hpc.profile.journal import Journal, Stream
from dasf_hpc.profile.plugins import WorkerTaskPlugin, _Ranges, _ThreadRecorder

#: Lives that are played warm, in so many rounds of which the fastest counts, ...
WARM, ROUNDS = 1500, 3
#: ... and cold.
COLD = 40
#: Of cold calls this share counts, the fastest: others were interrupted.
COUNTED = 0.9

#: Calls of a task that is sampled.
DEPTH = 20

#: What a task that is computed, held and let go goes through.
LIFE = (
    ("released", "waiting"),
    ("waiting", "ready"),
    ("ready", "executing"),
    ("executing", "memory"),
    ("memory", "released"),
    ("released", "forgotten"),
)

#: Is parsed, pickled and printed to have the caches hold something else.
_SOURCE = """
def of(a, b=1, *more, **named):
    with open(a) as file:
        found = [f"{x!r:>{b}}" for x in file if x % b or x not in more]
    try:
        return found + [{"a": a, "b": (b, a), **named}], lambda y: y @ a ** b - ~y
    except (OSError, ValueError) as error:
        raise RuntimeError(b"bytes", 1.5e3, 0x1F, ...) from error
    finally:
        del found[1:2]
"""
_MESSAGE = {"op": "compute-task", "keys": [f"key-{i}" for i in range(12)], "priority": [(1, 2)] * 4}


@dataclass(frozen=True)
class Cost:
    """What one record costs, ns: with warm caches and with cold ones."""

    low: float
    high: float


def time_recording() -> dict[str, Cost]:
    """Time what is recorded, on this machine; it takes about half a second.

    Returns
    -------
    dict
        ``transition``: a transition of a task, in the mean of a life; ``dependency``;
        ``execution``: start and stop of a task in its thread; ``range``: an NVTX range around it,
        without nsys, absent where the package nvtx cannot be used; ``activity``; ``transfer``;
        ``reschedule``; ``sample``: a sample of a thread's calls, of which there are `DEPTH`, cold
        with what it takes to wake up for it.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with tempfile.TemporaryDirectory() as folder:
            # somebody else brings a worker's records to the file: this thread does at the end
            journal = Journal(Path(folder) / "timed.journal", {"role": "worker"}, alone=False)
            try:
                costs = _transitions(journal)
                costs |= _executions(journal)
                costs |= _rarer(journal)
                costs["sample"] = _sample(journal)
            finally:
                journal.close({"time": time.monotonic_ns()})
        return costs
    finally:
        if collects:
            gc.enable()


class _Caches:
    """Takes the processor's caches: data, and much code that is not the recording's.

    Little code is not enough: with some that is compiled and pickled by C alone a transition took
    0.6 us, with this it takes 3 us, as in a worker (measured).
    """

    def __init__(self) -> None:
        self._data = np.zeros(1 << 18)

    def take(self) -> None:
        self._data.sum()
        ast.unparse(ast.parse(_SOURCE))
        for _ in tokenize.generate_tokens(io.StringIO(_SOURCE).readline):
            pass
        # those that are written in Python
        pickle._loads(pickle._dumps(_MESSAGE))  # type: ignore[attr-defined]
        pprint.pformat(_MESSAGE)


def _key(number: int) -> str:
    return f"increment-{number:x}-0123456789abcdef0123"


def _entry(key: str, start: str, finish: str) -> tuple[Any, ...]:
    """Give a transition as the log of a worker's state machine has it."""
    return key, start, finish, finish, {}, "stimulus", 0.0


def _plugin(journal: Journal) -> Any:
    """Give a plugin that records into a journal, of no worker."""
    plugin: Any = WorkerTaskPlugin(directory=journal.path.parent)
    plugin._journal, plugin._tasks, plugin._ids, plugin._stimuli = journal, {}, {}, []
    plugin._worker = SimpleNamespace(scheduler_delay=0.0, transfer_incoming_log=[])
    plugin._last_incoming = None
    plugin._table, plugin._transitions = LIFE, journal.transitions()
    plugin._edges = journal.records(Stream.EDGES)
    plugin._activity = journal.recorder(Stream.ACTIVITIES)
    plugin._transfer = journal.recorder(Stream.TRANSFERS)
    plugin._reschedule = journal.recorder(Stream.RESCHEDULES)
    plugin._executions = Executions()
    plugin._threads = _ThreadRecorder(journal, plugin._ids)
    plugin._recorded_activities = {}
    return plugin


def _transitions(journal: Journal) -> dict[str, Cost]:
    """Time the transitions of tasks, and what a dependency adds."""
    plugin = _plugin(journal)
    transition, seen = plugin._listen(deque(maxlen=1).append), plugin._threads.seen
    tasks, ids = plugin._tasks, plugin._ids
    needed = SimpleNamespace(key="needed")
    transition(_entry("needed", "released", "waiting"))

    def live(numbers: range, timed: Callable[..., None], needs: list[Any]) -> None:
        for number in numbers:
            key = _key(number)
            tasks[key] = SimpleNamespace(dependencies=needs, startstops=[{}], state="memory")
            for start, finish in LIFE:
                if start == "executing":
                    seen.add(ids[key])
                timed(transition, _entry(key, start, finish))
            del tasks[key]

    def time_life(needs: list[Any], first: int) -> float:
        begins = range(first, first + ROUNDS * WARM, WARM)
        called, not_called = (
            min(_lap(partial(live, range(b, b + WARM), way, needs)) for b in begins)
            for way in (_call, _no_call(ids))
        )
        return (called - not_called) / WARM

    def time_cold(needs: list[Any], first: int) -> _ColdCalls:
        cold = _ColdCalls()
        live(range(first, first + COLD), cold, needs)
        return cold

    alone = time_life([], 0)
    several = 16
    needing = time_life([needed] * several, 1 << 20)
    # where the dependencies are recorded, and not
    step = LIFE.index(("ready", "executing"))
    cold, cold_needing = time_cold([], 1 << 21), time_cold([needed] * several, 1 << 22)
    added = cold_needing.mean(step, len(LIFE)) - cold.mean(step, len(LIFE))
    return {
        "transition": _cost(alone / len(LIFE), cold.mean()),
        "dependency": _cost((needing - alone) / several, added / several),
    }


def _call(function: Callable[..., Any], *args: Any) -> None:
    function(*args)


def _no_call(ids: dict[str, int]) -> Callable[..., None]:
    """Give what is called in place of a transition, and leaves what the next one wants."""

    def call(function: Callable[..., Any], entry: tuple[Any, ...]) -> None:
        if entry[1] == "ready":
            ids[entry[0]] = 0

    return call


def _executions(journal: Journal) -> dict[str, Cost]:
    """Time what is recorded in a task's thread: start and stop, and a range in addition."""
    tasks: dict[Any, Any] = {}
    ids: dict[Any, int] = {}
    caches = _Caches()
    inside = [0, 0]
    message = {"op": "task-finished", "result": 1, "nbytes": 28}

    def task(*args: Any) -> dict[str, Any]:
        return message

    def cold_task(*args: Any) -> dict[str, Any]:
        inside[0] = time.perf_counter_ns()
        caches.take()
        inside[1] = time.perf_counter_ns()
        return message

    keys = [_key(number) for number in range(WARM)]
    for number, key in enumerate(keys):
        ids[key], tasks[key] = number, SimpleNamespace(prefix="increment")

    with contextlib.ExitStack() as stack:

        def recorded(ranges: bool) -> tuple[Callable[..., Any], Callable[..., Any], Any]:
            """Give the task with what is around it, warm and cold, and what names its worker."""
            worker: Any = SimpleNamespace(state=SimpleNamespace(tasks=tasks))
            executions = _watched[id(worker)] = Executions()
            stack.callback(_watched.pop, id(worker), None)
            executions.add(_ThreadRecorder(journal, ids))
            if ranges:
                executions.add(_Ranges(executions.base, worker, False), first=True)
            wrapped = (_wrap_thread(function, 3, 2) for function in (task, cold_task))
            return (*wrapped, {"worker": worker})  # type: ignore[return-value]

        ways = [(task, cold_task, {"worker": None}), recorded(False)]
        with contextlib.suppress(Exception):  # the package nvtx is not there, or not known
            ways.append(recorded(True))
        warm = [
            min(_lap(partial(_run_all, run, state, keys)) for _ in range(ROUNDS)) / WARM
            for run, _, state in ways
        ]
        cold: list[list[int]] = [[] for _ in ways]
        for key in keys[:COLD]:
            for (_, run, state), spent in zip(ways, cold, strict=True):
                caches.take()
                begin = time.perf_counter_ns()
                run(None, None, state, key, {}, None, 0.0)
                spent.append(time.perf_counter_ns() - begin - (inside[1] - inside[0]))
    # each way has more than the one before
    added = zip(np.diff(warm), np.diff([_mean(spent) for spent in cold]), strict=True)
    return dict(zip(("execution", "range"), (_cost(*pair) for pair in added), strict=False))


def _run_all(run: Callable[..., Any], state: dict[str, Any], keys: list[str]) -> None:
    for key in keys:
        run(None, None, state, key, {}, None, 0.0)


def _rarer(journal: Journal) -> dict[str, Cost]:
    """Time what is recorded of some tasks only."""
    plugin = _plugin(journal)
    now = time.time()
    span = {"action": "disk-read", "start": now, "stop": now + 0.001}
    entry = {"start": now, "stop": now + 0.001, "total": 1, "who": "tcp://a:1", "keys": ["k"]}
    key = journal.key("key")

    def activity() -> None:
        plugin._recorded_activities.clear()
        plugin._activities("key", [span], key)

    calls: dict[str, Callable[[], Any]] = {
        "activity": activity,
        "transfer": lambda: plugin._transfers([entry], None, 0, 1),
        "reschedule": lambda: plugin._on_other(
            "key", key, time.monotonic_ns(), "executing", "rescheduled"
        ),
    }
    return {name: _both_ways(call) for name, call in calls.items()}


def _sample(journal: Journal) -> Cost:
    """Time a look at one thread that runs a task; it costs the sampling thread, not the task."""
    stop = threading.Event()
    module: dict[str, Any] = {"__name__": "distributed.worker", "call": _call_deep}
    exec("def _run_task(depth, stop): call(depth, stop)", module)
    thread = threading.Thread(target=module["_run_task"], args=(DEPTH, stop), daemon=True)
    thread.start()
    try:
        worker: Any = _Busy({thread.ident: "key"})
        sampler = StackSampler()
        sampler._all = (Sampled(journal, 0, -1, worker, None),)
        looks = partial(sampler._look, 0)
        cost = _both_ways(looks)
    finally:
        stop.set()
        thread.join()
    return Cost(cost.low, cost.high + _wake())


@dataclass
class _Busy:
    """A worker, as far as it says which threads run tasks."""

    active_threads: dict[int | None, str]


def _call_deep(depth: int, stop: threading.Event) -> None:
    if depth > 2:  # with `_run_task` and the wait
        _call_deep(depth - 1, stop)
    else:
        stop.wait()


def _wake() -> float:
    """Give the CPU time of a thread that sleeps and wakes up, ns."""
    spent: list[int] = []

    def sleep() -> None:
        for _ in range(COLD):
            begin = time.thread_time_ns()
            time.sleep(0.001)
            spent.append(time.thread_time_ns() - begin)

    thread = threading.Thread(target=sleep)
    thread.start()
    thread.join()
    return _mean(spent)


def _both_ways(call: Callable[[], Any]) -> Cost:
    def many() -> None:
        for _ in range(WARM // 3):
            call()

    cold = _ColdCalls()
    for _ in range(COLD // 3):
        cold(call)
    return _cost(min(_lap(many) for _ in range(ROUNDS)) / (WARM // 3), cold.mean())


class _ColdCalls:
    """Calls functions with cold caches, and keeps how long each call took."""

    def __init__(self) -> None:
        self._caches = _Caches()
        self._spent: list[int] = []

    def __call__(self, function: Callable[..., Any], *args: Any) -> None:
        self._caches.take()
        begin = time.perf_counter_ns()
        function(*args)
        self._spent.append(time.perf_counter_ns() - begin)

    def mean(self, first: int = 0, step: int = 1) -> float:
        """Give the mean of the calls, or of each so many-th, ns."""
        return _mean(self._spent[first::step]) - _timer()


def _timer() -> float:
    """Give what is measured of nothing, ns."""
    empty = []
    for _ in range(200):
        begin = time.perf_counter_ns()
        empty.append(time.perf_counter_ns() - begin)
    return float(np.median(empty))


def _mean(spent: list[int]) -> float:
    """Give the mean of the calls that were not interrupted."""
    kept: NDArray[np.int64] = np.sort(np.array(spent))[: max(1, round(len(spent) * COUNTED))]
    return float(kept.mean())


def _lap(what: Callable[[], None]) -> int:
    """Give the CPU time of this thread that something takes, ns."""
    begin = time.thread_time_ns()
    what()
    return time.thread_time_ns() - begin


def _cost(low: float, high: float) -> Cost:
    """Give both in their order: on a busy machine the warm calls may have been slower."""
    low, high = max(0.0, low), max(0.0, high)
    return Cost(float(min(low, high)), float(max(low, high)))
