"""What the three plugins record of real workers, whatever the tasks and the workers do."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array
import distributed
import distributed.worker
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from dask.sizeof import sizeof
from dask.utils import key_split
from distributed import (
    Client,
    LocalCluster,
    Reschedule,
    get_worker,
    rejoin,
    secede,
    wait,
    worker_client,
)
from distributed.diagnostics.plugin import WorkerPlugin

from dasf_hpc.profile import plugins as plugins_module
from dasf_hpc.profile.journal import (
    DIRECTIONS,
    STATES,
    STATUSES,
    JournalContents,
    JournalError,
    Stream,
    read_journal,
)
from dasf_hpc.profile.link import drain
from dasf_hpc.profile.plugins import (
    MARK_INTERVAL_S,
    MARKS,
    GPUAnnotationPlugin,
    ResourceMonitor,
    WorkerTaskPlugin,
)
from dasf_hpc.profile.results import ResultTexts

TIMEOUT_S = 30.0
LOST = "(lost with a block)"
#: Dask's spans are wall-clock readings: how far they may be from the monotonic clock's.
WALL_CLOCK_SLACK_NS = 50_000_000


# ------------------------------------------------------------------------------ reading back


@dataclass(frozen=True)
class Execution:
    """A start, with its stop where there is one, as a journal holds them."""

    key: str
    task_id: int
    pid: int
    thread: int
    start: int
    stop: int | None
    status: str | None
    result: str | None
    nbytes: int


def journals(directory: Path) -> list[JournalContents]:
    """Read the workers' journals, also those that are being written, up to this moment."""
    drain(directory)
    found = []
    for path in sorted(directory.glob("worker-*.journal")):
        with contextlib.suppress(JournalError):  # just made: its first block is not written yet
            found.append(read_journal(path))
    return found


def process(journal: JournalContents) -> dict[str, Any]:
    return journal.documents("journal")[0]


def executions(directory: Path, *keys: Any) -> list[Execution]:
    """Give the executions in the order of their starts, of some keys or of all."""
    texts = {str(key) for key in keys}
    found = []
    for journal in journals(directory):
        first = process(journal)
        stops = {int(s["sequence"]): s for s in journal.records[Stream.STOPS]}
        assert len(stops) == len(journal.records[Stream.STOPS]), "two stops of one start"
        for start in journal.records[Stream.STARTS]:
            key = journal.keys.get(int(start["key"]), LOST)
            if texts and key not in texts:
                continue
            stop = stops.pop(int(start["sequence"]), None)
            found.append(
                Execution(
                    key,
                    first["task_id_base"] + int(start["sequence"]),
                    first["pid"],
                    int(start["thread"]),
                    int(start["time"]),
                    None if stop is None else int(stop["time"]),
                    None if stop is None else STATUSES[int(stop["status"])],
                    None if stop is None else journal.strings.get(int(stop["result"]), LOST),
                    0 if stop is None else int(stop["nbytes"]),
                )
            )
        if not texts:
            assert not stops, "stops without a start"
    return sorted(found, key=lambda e: e.start)


def execution(directory: Path, key: Any) -> Execution:
    """Give the one execution of a key, which must have ended."""
    found = executions(directory, key)
    assert len(found) == 1, found
    assert found[0].stop is not None
    return found[0]


def transitions(directory: Path, key: Any) -> list[tuple[str, str]]:
    """Give a key's transitions in the order of their times."""
    found = []
    for journal in journals(directory):
        for row in journal.records[Stream.TRANSITIONS]:
            if journal.keys.get(int(row["key"])) == str(key):
                found.append((int(row["time"]), STATES[row["start"]], STATES[row["finish"]]))
    return [(start, finish) for _, start, finish in sorted(found, key=lambda t: t[0])]


def rows(directory: Path, stream: Stream) -> list[dict[str, Any]]:
    """Give a stream's records with ids replaced by what they stand for."""
    found = []
    for journal in journals(directory):
        for record in journal.records[stream]:
            row: dict[str, Any] = {"pid": process(journal)["pid"]}
            for name in record.dtype.names:
                value = record[name].item()
                if name in ("key", "dependency"):
                    value = journal.keys[value]
                elif name in ("action", "peer", "reason"):
                    value = journal.strings.get(value)
                elif name == "direction":
                    value = DIRECTIONS[value]
                row[name] = value
            found.append(row)
    return found


def wait_until(condition: Callable[[], Any], what: str, timeout: float = TIMEOUT_S) -> Any:
    """Wait until a condition gives something true and give that."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.02)


# ------------------------------------------------------------------------------ clusters


@dataclass
class Recorded:
    """A cluster whose workers carry the plugins, and where they write."""

    client: Client
    cluster: LocalCluster
    directory: Path

    def addresses(self) -> list[str]:
        return sorted(self.client.scheduler_info(n_workers=-1)["workers"])

    def pids(self) -> dict[str, int]:
        pids: dict[str, int] = self.client.run(os.getpid, on_error="ignore")
        return pids


@contextlib.contextmanager
def recorded_cluster(folder: Path, register: bool = True, **options: Any) -> Iterator[Recorded]:
    """Start a cluster and record its workers' tasks."""
    directory = folder / "journals"
    given: dict[str, Any] = {
        "n_workers": 1,
        "threads_per_worker": 2,
        "processes": False,
        "dashboard_address": ":0",
        "memory_limit": 0,
        "local_directory": str(folder),
        **options,
    }
    with LocalCluster(**given) as cluster, Client(cluster) as client:
        if register:
            client.register_plugin(WorkerTaskPlugin(directory=directory))
            client.register_plugin(GPUAnnotationPlugin(directory=directory))
        yield Recorded(client, cluster, directory)


def wait_until_filed(recorded: Recorded, workers: int) -> None:
    """Wait until a recorder has the workers' journals: one that just starts files nothing yet."""
    deadline = time.monotonic() + TIMEOUT_S
    while len(journals(recorded.directory)) < workers:
        assert time.monotonic() < deadline, "no journals"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """Give two worker processes of two threads."""
    folder = tmp_path_factory.mktemp("two")
    with recorded_cluster(folder, n_workers=2, processes=True) as recorded:
        wait_until_filed(recorded, 2)
        yield recorded


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """Give one worker of two threads in this process."""
    with recorded_cluster(tmp_path_factory.mktemp("one")) as recorded:
        wait_until_filed(recorded, 1)
        yield recorded


# ------------------------------------------------------------------------------ tasks


def clock_readings() -> tuple[int, int, int, int]:
    entry = time.monotonic_ns()
    time.sleep(0.002)
    return entry, time.monotonic_ns(), threading.get_native_id(), os.getpid()


def add(*values: int) -> int:
    return sum(values)


class Trouble(Exception):
    """An exception of the user's own."""


def fail_twice(folder: str) -> int:
    attempt = len(list(Path(folder).iterdir()))
    Path(folder, str(attempt)).touch()
    if attempt < 2:
        raise Trouble(attempt)
    return attempt


def reschedule_once(folder: str) -> int:
    with contextlib.suppress(FileExistsError):
        Path(folder, "seen").touch(exist_ok=False)
        raise Reschedule
    return 1


def step_out_and_back() -> tuple[int, int]:
    entry = threading.get_native_id()
    secede()
    time.sleep(0.01)
    rejoin()
    return entry, threading.get_native_id()


def submit_more(count: int) -> int:
    with worker_client() as client:
        return sum(
            client.gather(client.map(add, range(count), key=[f"in-{i}" for i in range(count)]))
        )


async def meet(name: str, others: int) -> int:
    """Wait, on the worker's event loop, until others are there too."""
    import asyncio

    worker = get_worker()
    present = worker.__dict__.setdefault("_present", set())
    present.add(name)
    deadline = time.monotonic() + TIMEOUT_S
    while len(present) < others and time.monotonic() < deadline:
        await asyncio.sleep(0.005)
    return threading.get_native_id()


async def fail_on_loop() -> None:
    raise Trouble


def hold(name: str) -> str:
    """Run until the test lets go."""
    worker = get_worker()
    gates: dict[str, threading.Event] = worker.__dict__.setdefault("_gates", {})
    gates.setdefault(name, threading.Event()).wait(TIMEOUT_S)
    return name


def let_go(name: str, dask_worker: Any) -> None:
    dask_worker.__dict__.setdefault("_gates", {}).setdefault(name, threading.Event()).set()


class Total:
    """An actor."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, value: int) -> int:
        self.value += value
        return self.value

    async def later(self, value: int) -> int:
        await asyncio.sleep(0.05)
        return self.add(value)

    def thread(self) -> int:
        return threading.get_native_id()

    def fail(self) -> None:
        raise Trouble

    def wait(self, name: str) -> None:
        hold(name)

    @property
    def secret(self) -> int:
        raise SystemExit("asked for what nobody called")


KEYS: list[Any] = [
    "noop",
    "a",
    "noop-0123456789abcdef0123456789abcdef",
    "no-op-text-with-dashes",
    "it's 'quoted'",
    'and "so"',
    "line\nfeed\ttab",
    "with\0zero",
    "größe-日本-🙂",
    "x" * 800,
    ("x-0123456789abcdef", 0),
    ("x-0123456789abcdef", 0, 1),
    ("it's", 0),
    ("nested", ("deep", ("deeper", 1)), 2),
    ("größe', 'x", 0),
    ("float", 0.5),
]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: ascii(key)[:40])
def test_a_task_is_recorded_once_and_whole_whatever_its_key(one: Recorded, key: Any) -> None:
    assert one.client.get({key: (add, 1, 2)}, key) == 3
    found = execution(one.directory, key)
    assert found.status == "memory"
    steps = transitions(one.directory, key)
    assert ("executing", "memory") in steps
    wait_until(lambda: transitions(one.directory, key)[-1][1] == "forgotten", "forgotten")


def test_keys_that_look_alike_stay_two_tasks(one: Recorded) -> None:
    text = "('alike', 0)"
    first = one.client.submit(add, 1, key=text)
    second = one.client.submit(add, 2, key=("alike", 0))
    assert one.client.gather([first, second]) == [1, 2]
    assert len(executions(one.directory, text)) == 2


def test_every_task_of_a_storm_is_recorded_exactly_once(two: Recorded) -> None:
    keys: list[Any] = [f"storm-{i}" if i % 2 else ("storm", i) for i in range(1000)]
    futures = two.client.map(add, range(1000), key=keys)
    assert sum(two.client.gather(futures)) == 499500
    found = executions(two.directory, *keys)
    assert Counter(e.key for e in found) == Counter(str(key) for key in keys)
    assert {e.status for e in found} == {"memory"}
    assert len({e.task_id for e in found}) == 1000
    assert {e.pid for e in found} == set(two.pids().values())
    for journal in journals(two.directory):
        assert journal.damaged == 0


def test_start_and_stop_bracket_the_functions_own_clock_in_its_own_thread(two: Recorded) -> None:
    keys = [f"bracket-{i}" for i in range(100)]
    futures = two.client.map(lambda _: clock_readings(), range(100), key=keys)
    readings = dict(zip(keys, two.client.gather(futures), strict=True))
    slack = []
    for key, (entry, leave, thread, pid) in readings.items():
        found = execution(two.directory, key)
        assert found.stop is not None
        assert found.start <= entry < leave <= found.stop
        assert (found.thread, found.pid) == (thread, pid)
        slack += [entry - found.start, found.stop - leave]
    assert sorted(slack)[len(slack) // 2] < 5_000_000


def test_every_dependency_is_recorded(two: Recorded) -> None:
    leaves = two.client.map(add, range(8), key=[("leaf", i) for i in range(8)])
    pairs = [
        two.client.submit(add, leaves[i], leaves[i + 1], key=("pair", i)) for i in range(0, 8, 2)
    ]
    root = two.client.submit(add, *pairs, leaves[0], key="root-of-all")
    assert root.result() == 28
    found = {(row["key"], row["dependency"]) for row in rows(two.directory, Stream.EDGES)}
    expected = {(f"('pair', {i})", f"('leaf', {j})") for i in range(0, 8, 2) for j in (i, i + 1)}
    expected |= {("root-of-all", f"('pair', {i})") for i in range(0, 8, 2)}
    expected |= {("root-of-all", "('leaf', 0)")}
    own = {(k, d) for k, d in found if k.startswith(("('pair'", "root-of-all"))}
    assert own == expected


# ------------------------------------------------------------------------------ ends of tasks


def test_failures_are_seen_with_their_type_and_retries_as_executions(
    two: Recorded, tmp_path: Path
) -> None:
    future = two.client.submit(fail_twice, str(tmp_path), key="flaky", retries=2)
    assert future.result() == 2
    found = executions(two.directory, "flaky")
    assert [e.status for e in found] == ["error", "error", "memory"]
    assert [e.result for e in found[:2]] == [f"{_name(Trouble)}|{attempt}" for attempt in (0, 1)]
    assert len({e.task_id for e in found}) == 3
    assert transitions(two.directory, "flaky").count(("executing", "error")) == 2


def test_a_failure_of_a_builtin_type_is_named_plainly(one: Recorded) -> None:
    future = one.client.submit(lambda: 1 // 0, key="division")
    assert isinstance(future.exception(), ZeroDivisionError)
    found = execution(one.directory, "division")
    kind, _, message = (found.result or "").partition("|")
    assert (found.status, kind) == ("error", "ZeroDivisionError")
    assert message.endswith("by zero")


def test_what_depends_on_a_failure_is_not_executed(one: Recorded) -> None:
    bad = one.client.submit(lambda: 1 // 0, key="bad-base")
    after = one.client.submit(add, bad, key="after-bad")
    assert isinstance(after.exception(), ZeroDivisionError)
    assert not executions(one.directory, "after-bad")


def test_a_reschedule_is_an_execution_of_its_own(two: Recorded, tmp_path: Path) -> None:
    future = two.client.submit(reschedule_once, str(tmp_path), key="again")
    assert future.result() == 1
    assert [e.status for e in executions(two.directory, "again")] == ["rescheduled", "memory"]
    reasons = [r["reason"] for r in rows(two.directory, Stream.RESCHEDULES) if r["key"] == "again"]
    assert reasons == ["reschedule"]


def test_a_task_that_secedes_and_rejoins_is_one_execution(one: Recorded) -> None:
    before, after = one.client.submit(step_out_and_back, key="long").result()
    found = execution(one.directory, "long")
    assert found.thread == before == after
    assert ("executing", "long-running") in transitions(one.directory, "long")
    assert ("long-running", "memory") in transitions(one.directory, "long")


def test_tasks_that_submit_tasks_are_recorded_with_them(two: Recorded) -> None:
    assert two.client.submit(submit_more, 20, key="outer").result() == 190
    outer = execution(two.directory, "outer")
    inner = executions(two.directory, *(f"in-{i}" for i in range(20)))
    assert Counter(e.key for e in inner) == Counter(f"in-{i}" for i in range(20))
    for found in inner:
        assert outer.start < found.start
        assert found.stop is not None
        assert outer.stop is not None
        assert found.stop < outer.stop


def test_coroutines_overlap_on_the_event_loop(one: Recorded) -> None:
    keys = [f"meet-{i}" for i in range(3)]
    one.client.run(lambda dask_worker: setattr(dask_worker.state, "nthreads", 4))
    futures = [one.client.submit(meet, key, 2, key=key) for key in keys]
    threads = one.client.gather(futures)
    one.client.run(lambda dask_worker: setattr(dask_worker.state, "nthreads", 2))
    found = executions(one.directory, *keys)
    assert [e.status for e in found] == ["memory"] * 3
    assert [e.thread for e in found] == threads
    assert found[1].start < (found[0].stop or 0)


def test_a_coroutine_that_fails_is_seen(one: Recorded) -> None:
    future = one.client.submit(fail_on_loop, key="loop-trouble")
    assert isinstance(future.exception(), Trouble)
    found = execution(one.directory, "loop-trouble")
    assert found.status == "error"
    assert (found.result or "").endswith("Trouble")


def step_out_and_fail() -> None:
    secede()
    raise Trouble


def test_what_a_failure_holds_of_an_ended_thread_mixes_no_records(tmp_path: Path) -> None:
    with recorded_cluster(tmp_path) as recorded:
        wait_until_filed(recorded, 1)
        client = recorded.client
        gc.collect()
        gc.disable()  # what the failure holds is to be freed when its thread has ended
        try:
            future = client.submit(step_out_and_fail, key="left")
            assert isinstance(future.exception(), Trouble)
            left = execution(recorded.directory, "left").thread
            wait_until(lambda: not Path(f"/proc/self/task/{left}").exists(), "its thread ended")
            del future
            wait_until(lambda: transitions(recorded.directory, "left")[-1][1] == "forgotten", "it")
        finally:
            gc.enable()
        gc.collect()
        coroutines = [f"meet-{i}" for i in range(2)]
        for (
            key
        ) in coroutines:  # the event loop's thread is given the recorders of the one that ended
            client.submit(meet, key, 1, key=key).result()
            assert client.submit(add, 1, key=f"after-{key}").result() == 1
        order = [e.key for e in executions(recorded.directory)]
        assert order == ["left", "meet-0", "after-meet-0", "meet-1", "after-meet-1"]


def test_actors_work_and_their_making_is_recorded(two: Recorded) -> None:
    future = two.client.submit(Total, actor=True, key="actor")
    total = future.result()
    assert [total.add(2).result() for _ in range(3)] == [2, 4, 6]
    found = execution(two.directory, "actor")
    assert (found.result or "").split("|")[0].endswith("test_plugins.Total")


def calls(directory: Path, actor: str) -> list[Execution]:
    """Give the executions of an actor's calls."""
    return [e for e in executions(directory) if f"-({actor})-" in e.key]


def test_calls_of_actors_are_executions_of_their_own(one: Recorded) -> None:
    # held: the worker lets go of an actor of which nobody has the future
    futures = [one.client.submit(Total, actor=True, key=key) for key in ("counter", "other")]
    total, other = one.client.gather(futures)
    assert [total.add(2).result(TIMEOUT_S) for _ in range(3)] == [2, 4, 6]
    assert total.later(1).result(TIMEOUT_S) == 7
    assert total.add(1, separate_thread=False).result() == 8
    thread = total.thread().result()
    with pytest.raises(Trouble):
        total.fail().result()
    assert other.add(1).result() == 1
    found = calls(one.directory, "counter")
    assert [e.key.partition("-")[0] for e in found] == [
        *["Total.add"] * 3, "Total.later", "Total.add", "Total.thread", "Total.fail"
    ]  # fmt: skip
    assert [key_split(e.key) for e in found] == [e.key.partition("-")[0] for e in found]
    assert len({e.key for e in found}) == len(found)
    assert [e.status for e in found] == ["memory"] * 6 + ["error"]
    assert [e.result for e in found] == ["int||"] * 6 + [_name(Trouble)]
    assert {e.nbytes for e in found[:6]} == {2**64 - 1}, "no worker holds what they gave"
    assert found[5].thread == thread
    # Two of them on the event loop, and none in the thread of a task.
    assert found[3].thread == found[4].thread != thread
    assert execution(one.directory, "counter").thread not in {e.thread for e in found}
    assert (found[3].stop or 0) - found[3].start > 50_000_000
    assert len(calls(one.directory, "other")) == 1
    # They are no tasks of the worker's.
    assert not [e for e in found if transitions(one.directory, e.key)]


def test_a_call_that_runs_has_begun_and_not_ended(one: Recorded) -> None:
    future = one.client.submit(Total, actor=True, key="waiting")
    total = future.result()
    waiting = total.wait("actor-gate")
    [found] = wait_until(lambda: calls(one.directory, "waiting"), "call begun")
    assert found.stop is None
    one.client.run(let_go, "actor-gate")
    waiting.result()
    [found] = calls(one.directory, "waiting")
    assert found.status == "memory"


def test_a_worker_that_calls_actors_in_another_way_is_named(tmp_path: Path) -> None:
    with recorded_cluster(tmp_path, register=False) as recorded:
        [worker] = recorded.cluster.workers.values()
        del worker.handlers["actor_execute"]
        recorded.client.register_plugin(WorkerTaskPlugin(directory=recorded.directory))
        wait_until_filed(recorded, 1)
        assert recorded.client.submit(sum, [1, 2], key="three").result() == 3
        [journal] = journals(recorded.directory)
        [named] = journal.documents("unavailable")
        assert named["what"] == "calls of actors"
        assert f"distributed {distributed.__version__}" in named["why"]
        assert execution(recorded.directory, "three").status == "memory"


def test_what_no_actor_has_is_told_as_without_recording(one: Recorded) -> None:
    future = one.client.submit(Total, actor=True, key="plain")
    total = future.result()
    worker = one.cluster.workers[0]
    with pytest.raises(KeyError):
        one.client.sync(worker.handlers["actor_execute"], actor="nobody", function="add")
    with pytest.raises(AttributeError):
        one.client.sync(worker.handlers["actor_execute"], actor="plain", function="subtract")
    assert total.add(0).result(TIMEOUT_S) == 0
    assert len(calls(one.directory, "plain")) == 1


@contextlib.contextmanager
def executor(recorded: Recorded, made: Executor) -> Iterator[None]:
    """Give the worker of this process one more executor; tasks submitted meanwhile go there."""
    executors = recorded.cluster.workers[0].executors
    executors["mine"] = made
    try:
        with dask.annotate(executor="mine"):
            yield
    finally:
        del executors["mine"]
        made.shutdown()


def test_tasks_on_an_executor_of_the_users_own(one: Recorded) -> None:
    with executor(one, ThreadPoolExecutor(1)):
        entry, leave, thread, _ = one.client.submit(clock_readings, key="on-mine").result()
    found = execution(one.directory, "on-mine")
    assert found.thread == thread
    assert found.stop is not None
    assert found.start <= entry < leave <= found.stop


def test_tasks_in_a_process_pool_keep_their_compute_time(one: Recorded) -> None:
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    with executor(one, pool):
        entry, leave, _, pid = one.client.submit(clock_readings, key="in-pool").result()
    assert pid != os.getpid()
    assert ("executing", "memory") in transitions(one.directory, "in-pool")
    # No code of ours runs in the pool's process: Dask's own span of the compute is what there is.
    found = execution(one.directory, "in-pool")
    assert found.stop is not None
    assert found.thread == 0
    assert found.status == "memory"
    assert found.start <= entry + WALL_CLOCK_SLACK_NS
    assert found.stop >= leave - WALL_CLOCK_SLACK_NS


def test_cancelled_and_released_tasks(one: Recorded) -> None:
    holding = [one.client.submit(hold, f"gate-{i}", key=f"gate-{i}") for i in range(2)]
    wait_until(lambda: len(executions(one.directory, "gate-0", "gate-1")) == 2, "both started")
    waiting = one.client.submit(add, 1, key="never-run")
    wait_until(lambda: transitions(one.directory, "never-run"), "known to the worker")
    waiting.cancel()
    holding[0].cancel()
    # Dask names the state that was asked for; the task itself is "cancelled" until it ends.
    wait_until(
        lambda: (
            transitions(one.directory, "gate-0")[-1][0] == "executing"
            and transitions(one.directory, "gate-0")[-1][1] in ("released", "cancelled")
        ),
        "cancelled while it runs",
    )
    for i in range(2):
        one.client.run(let_go, f"gate-{i}")
    assert holding[1].result() == "gate-1"
    wait_until(
        lambda: transitions(one.directory, "gate-0")[-1][1] == "forgotten",
        "cancelled one forgotten",
    )
    wait_until(
        lambda: transitions(one.directory, "never-run")[-1] == ("released", "forgotten"),
        "released and forgotten",
    )
    assert not executions(one.directory, "never-run")
    # It ran to its end all the same, and the thread's time was spent.
    assert execution(one.directory, "gate-0").status == "memory"


# ------------------------------------------------------------------------------ data


class Shapeless:
    """A result whose shape nobody may ask for."""

    @property
    def shape(self) -> tuple[int, ...]:
        raise SystemExit("no shape")


class Renamed(np.ndarray):
    """An array that says of its shape what it likes."""

    @property  # type: ignore[misc]
    def shape(self) -> tuple[int, ...]:
        raise SystemExit("no shape")


class Titled(pd.DataFrame):
    """A frame that does so."""

    @property
    def shape(self) -> tuple[int, int]:
        raise SystemExit("no shape")


class Unlike(type):
    """A metaclass of classes of which nothing can be asked."""

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__module__", "__qualname__", "__mro__"):
            raise RuntimeError(name)
        return super().__getattribute__(name)

    def __hash__(cls) -> int:
        raise RuntimeError("no hash")


class Nameless(metaclass=Unlike):
    """A result of such a class."""


class OddType:
    """A result with a dtype that cannot be written down."""

    class Bad:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    shape = (1,)
    dtype = Bad()


class ListShape:
    """A result whose shape is no tuple."""

    shape = (3, 4)

    def __init__(self) -> None:
        self.shape = [1, 2]  # type: ignore[assignment]


class Answers:
    """A result that has every attribute one asks for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


class HalfByte:
    """A result whose size is reported as a fraction."""


@sizeof.register(HalfByte)  # type: ignore[untyped-decorator]
def _size_of_half_byte(_: HalfByte) -> float:
    return 0.5


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


RESULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "array": (lambda: np.zeros((3, 4), "f4"), "numpy.ndarray|float32|(3, 4)"),
    "empty": (lambda: np.empty((0, 7), "S5"), "numpy.ndarray||S5|(0, 7)"),
    "scalar": (lambda: np.float64(1), "numpy.float64|float64|()"),
    "int": (lambda: 1, "int||"),
    "none": (lambda: None, "NoneType||"),
    "text": (lambda: "x" * 1000, "str||"),
    "frame": (lambda: pd.DataFrame({"a": [1, 2]}), f"{_name(pd.DataFrame)}||(2, 1)"),
    "series": (lambda: pd.Series([1.0, 2.0]), f"{_name(pd.Series)}|float64|(2,)"),
    # Columns may be called anything, and are no types: what is in them is nobody's business.
    "column": (
        lambda: pd.DataFrame({"dtype": ["secret"], "shape": [1]}),
        f"{_name(pd.DataFrame)}||(1, 2)",
    ),
    "shapeless": (Shapeless, f"{_name(Shapeless)}||"),
    "odd dtype": (OddType, f"{_name(OddType)}||"),
    # NumPy's own class knows, whatever one that is made of it says
    "array subclass": (
        lambda: np.zeros((2, 3), "i2").view(Renamed),
        f"{_name(Renamed)}|int16|(2, 3)",
    ),
    "masked array": (
        lambda: np.ma.masked_array([1.0, 2.0], [False, True]),
        f"{_name(np.ma.MaskedArray)}|float64|(2,)",
    ),
    "frame subclass": (lambda: Titled({"a": [1]}), f"{_name(Titled)}||"),
    "index": (lambda: pd.RangeIndex(5), f"{_name(pd.RangeIndex)}|int64|(5,)"),
    "categories": (
        lambda: pd.Series(["a", "b"], dtype="category"),
        f"{_name(pd.Series)}|category|(2,)",
    ),
    "sparse": (
        lambda: scipy.sparse.random(4, 5, format="csr"),
        "scipy.sparse._csr.csr_matrix|float64|(4, 5)",
    ),
    "lists": (
        lambda: scipy.sparse.lil_array((4, 5), dtype="f4"),
        "scipy.sparse._lil.lil_array|float32|(4, 5)",
    ),
    "lazy": (lambda: dask.array.ones((6, 4), chunks=3), "dask.array.core.Array|float64|(6, 4)"),
    "lazy frame": (lambda: dask.delayed(Shapeless)(), "dask.delayed.Delayed||"),
    "list shape": (ListShape, f"{_name(ListShape)}||"),
    "answers": (Answers, f"{_name(Answers)}||"),
    "fraction": (HalfByte, f"{_name(HalfByte)}||"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_described_and_sized(one: Recorded, name: str) -> None:
    make, description = RESULTS[name]
    future = one.client.submit(make, key=f"result {name}", pure=False)
    wait(future)
    found = execution(one.directory, f"result {name}")
    assert (found.status, found.result) == ("memory", description)
    assert found.nbytes == int(sizeof(make()))


def test_a_class_that_answers_nothing_is_named_all_the_same() -> None:
    texts: list[str] = []

    def string(text: str) -> int:
        texts.append(text)
        return len(texts)

    assert ResultTexts(string).describe(Nameless()) == 1
    assert texts == [f"{__name__}.Nameless||"]


def test_scattered_data_is_stored_and_not_executed(two: Recorded) -> None:
    [future] = two.client.scatter([np.zeros(1000)], hash=False)
    stored = [r for r in rows(two.directory, Stream.STORED) if r["key"] == str(future.key)]
    assert [r["nbytes"] for r in stored] == [8000]
    assert not executions(two.directory, future.key)


def test_data_moves_with_bytes_and_peers_in_both_directions(two: Recorded) -> None:
    source, target = two.addresses()
    pids = two.pids()
    before = time.monotonic_ns()
    made = two.client.submit(np.zeros, 500_000, key="moved", workers=[source])
    wait(made)
    two.client.submit(len, made, key="mover", workers=[target]).result()
    consumed = execution(two.directory, "mover")

    def transfers(direction: str, here: str, there: str) -> list[dict[str, Any]]:
        return [
            row
            for row in rows(two.directory, Stream.TRANSFERS)
            if (row["direction"], row["pid"], row["peer"]) == (direction, pids[here], there)
            and row["nbytes"] >= 4_000_000
            and row["start"] > before - WALL_CLOCK_SLACK_NS
        ]

    [incoming] = transfers("incoming", target, source)
    [outgoing] = wait_until(lambda: transfers("outgoing", source, target), "outgoing transfer")
    for row in (incoming, outgoing):
        assert row["keys"] == 1
        assert row["start"] < row["stop"] <= consumed.start + WALL_CLOCK_SLACK_NS
    [stored] = [r for r in rows(two.directory, Stream.STORED) if r["key"] == "moved"]
    assert (stored["pid"], stored["nbytes"]) == (pids[target], 4_000_000)
    # Dask puts a transfer to the account of the task that waits for it.
    spans = [r for r in rows(two.directory, Stream.ACTIVITIES) if r["key"] == "mover"]
    assert [(r["action"], r["peer"], r["pid"]) for r in spans] == [
        ("transfer", source, pids[target])
    ]


def test_replicas_are_stored_on_each_worker_and_executed_once(two: Recorded) -> None:
    future = two.client.submit(np.ones, 1000, key="replica")
    wait(future)
    two.client.replicate([future], n=2)
    execution(two.directory, "replica")
    stored = wait_until(
        lambda: [r for r in rows(two.directory, Stream.STORED) if r["key"] == "replica"], "stored"
    )
    # Dask lets a replica too many go, and may have made it again for the call
    assert {r["nbytes"] for r in stored} == {8000}


class Told(WorkerPlugin):  # type: ignore[misc]
    """Keeps what Dask tells plugins of."""

    name = "told"

    def setup(self, worker: Any) -> None:
        self.told: list[tuple[str, str, str]] = []

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        self.told.append((str(key), start, finish))


def test_what_is_heard_in_the_log_is_what_dask_tells_plugins_of_in_its_order(
    tmp_path: Path,
) -> None:
    """With failures, retries, transfers, cancellations, tasks in several threads and lost keys."""

    def fail_at_first(number: int, seen: str) -> int:
        path = Path(seen) / str(number)
        if not path.exists():
            path.touch()
            raise ValueError(number)
        return number

    def slow(number: int) -> int:
        time.sleep(0.02)
        return number

    (tmp_path / "seen").mkdir()
    with recorded_cluster(tmp_path, n_workers=2, processes=True) as recorded:
        client = recorded.client
        client.register_plugin(Told())
        before = client.run(lambda dask_worker: len(dask_worker.plugins["told"].told))
        assert set(before.values()) == {0}
        failing = client.map(
            fail_at_first, range(20), seen=str(tmp_path / "seen"), retries=1, pure=False
        )
        lost = client.map(fail_at_first, range(20, 30), seen=str(tmp_path / "seen"), pure=False)
        cancelled = client.map(slow, range(200), pure=False)
        tree = client.map(add, range(64))
        while len(tree) > 1:
            tree = [client.submit(sum, tree[i : i + 2], pure=False) for i in range(0, len(tree), 2)]
        scattered = client.scatter([np.ones(1000) for _ in range(4)], broadcast=True)
        sums = client.map(np.sum, scattered)
        wait([*failing, *lost, *tree, *sums])
        client.cancel(cancelled[50:])
        wait(cancelled[:20])
        assert client.gather(failing) == list(range(20))
        del failing, lost, cancelled, tree, scattered, sums
        time.sleep(0.5)
        told = client.run(lambda dask_worker: (os.getpid(), dask_worker.plugins["told"].told))
        heard = {}
        for journal in journals(recorded.directory):
            (start,) = journal.documents("journal")
            moves = journal.records[Stream.TRANSITIONS]
            heard[start["pid"]] = [
                (journal.keys[row["key"]], STATES[row["start"]], STATES[row["finish"]])
                for row in moves
            ]
    seen = set()
    for pid, expected in told.values():
        assert len(expected) > 300
        # more may have been by when the journal was read
        assert heard[pid][: len(expected)] == expected
        seen |= {(start, finish) for _, start, finish in expected}
    assert {("executing", "error"), ("released", "memory"), ("flight", "memory")} <= seen


def test_where_transitions_cannot_be_heard_of_that_is_said_and_the_rest_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins_module, "unknown", lambda worker: "distributed 9 logs otherwise")
    with recorded_cluster(tmp_path) as recorded:
        assert recorded.client.submit(add, 1, key="unheard").result() == 1
        assert execution(recorded.directory, "unheard").status == "memory"
    [journal] = journals(recorded.directory)
    assert len(journal.records[Stream.TRANSITIONS]) == 0
    [said] = journal.documents("unavailable")
    assert (said["what"], said["why"]) == ("transitions", "distributed 9 logs otherwise")
    assert journal.documents("end")[0]["failures"] == 0


def test_two_recordings_of_one_worker_hear_the_same_until_each_ends(tmp_path: Path) -> None:
    with recorded_cluster(tmp_path) as recorded:
        client = recorded.client
        client.submit(add, 1, key="first").result()
        client.register_plugin(WorkerTaskPlugin("other", directory=tmp_path / "other"))
        client.submit(add, 1, key="both").result()
        client.unregister_worker_plugin("TracePlugin")
        client.submit(add, 1, key="second").result()
        time.sleep(0.3)
        assert transitions(tmp_path / "other", "second")
        assert transitions(tmp_path / "other", "both")
        assert transitions(recorded.directory, "both")
        assert transitions(recorded.directory, "first")
        assert transitions(recorded.directory, "second") == []
        client.unregister_worker_plugin("other")
        kinds = client.run(lambda dask_worker: "append" in vars(dask_worker.state.log))
        assert list(kinds.values()) == [False]


def test_spilling_is_recorded_as_disk_writes_and_reads(tmp_path: Path) -> None:
    config = {
        "distributed.worker.memory.target": 0.5,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
    }
    with (
        dask.config.set(config),
        recorded_cluster(tmp_path, memory_limit="100MB", threads_per_worker=1) as recorded,
    ):
        futures = recorded.client.map(
            lambda i: np.full(3_000_000, i, "f8"), range(6), key=[f"big-{i}" for i in range(6)]
        )
        wait(futures)
        for future in futures:
            recorded.client.submit(len, future, key=f"read-{future.key}").result()
        spans = rows(recorded.directory, Stream.ACTIVITIES)
        assert {r["action"] for r in spans} >= {"disk-write", "disk-read"}
        for row in spans:
            assert 5_000_000 < row["stop"] - row["start"] < 60_000_000_000


def test_stolen_tasks_are_named_and_executed_once(tmp_path: Path) -> None:
    with recorded_cluster(tmp_path, n_workers=2, threads_per_worker=1) as recorded:
        first = recorded.addresses()[0]
        keys = [f"steal-{i}" for i in range(100)]
        futures = recorded.client.map(
            lambda i: time.sleep(0.02),
            range(100),
            key=keys,
            workers=[first],
            allow_other_workers=True,
        )
        wait(futures)
        stolen = [
            r["key"] for r in rows(recorded.directory, Stream.RESCHEDULES) if r["reason"] == "steal"
        ]
        assert stolen
        assert set(stolen) <= set(keys)
        found = executions(recorded.directory, *keys)
        assert Counter(e.key for e in found) == Counter(keys)
        bases = {e.task_id >> 24 for e in found}
        assert len(bases) == 2, "both workers executed some"


# ------------------------------------------------------------------------------ trouble


def test_tasks_go_on_where_no_journal_can_be_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "journals").write_text("in the way")
    with recorded_cluster(tmp_path) as recorded:
        assert sum(recorded.client.gather(recorded.client.map(add, range(50)))) == 1225
    assert (tmp_path / "journals").read_text() == "in the way"
    assert "no journal could be made" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a tmpfs; to run it: be root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_what_a_full_disk_does_not_take_is_kept_until_there_is_room(
    tmp_path: Path, small_disk: Path
) -> None:
    directory = small_disk / "journals"
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "memory_limit": 0}
    with (
        LocalCluster(**options, dashboard_address=":0", local_directory=str(tmp_path)) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(WorkerTaskPlugin(directory=directory))

        def storm(count: int, name: str) -> set[str]:
            keys = [f"{name}-{i}" for i in range(count)]
            assert len(client.gather(client.map(add, range(count), key=keys))) == count
            return set(keys)

        keys = storm(6000, "full")
        # A block that has its place on the disk goes on being filled, a new one has no room: what
        # is there may lack a start, and is not the last word.
        assert 0 < sum(len(j.records[Stream.STARTS]) for j in journals(directory)) < 6000
        subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
        time.sleep(1.1)  # RETRY_S: the recorder tries again after that
        keys |= storm(200, "room")
    assert {e.key for e in executions(directory)} == keys
    [journal] = journals(directory)
    assert journal.documents("gap") == []
    [end] = journal.documents("end")
    assert end["failures"] == end["dropped"] == journal.damaged == 0


def test_what_could_not_be_recorded_is_counted(tmp_path: Path) -> None:
    with recorded_cluster(tmp_path) as recorded:
        client = recorded.client
        client.submit(add, 1, key="before").result()

        def upset(dask_worker: Any) -> None:
            # A key of which nothing can be told, as a broken user type in a tuple would be.
            for _ in range(3):
                entry: Any = (_Unspeakable(), "waiting", "ready", "ready", {}, "stimulus", 0.0)
                dask_worker.state.log.append(entry)

        client.run(upset)
        client.submit(add, 1, key="after").result()
        assert execution(recorded.directory, "after").status == "memory"
    [journal] = journals(recorded.directory)
    [end] = journal.documents("end")
    assert (end["failures"], end["dropped"]) == (3, 0)


class _Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


# ------------------------------------------------------------------------------ workers


def test_a_plugin_registered_twice_records_once(tmp_path: Path) -> None:
    with recorded_cluster(tmp_path) as recorded:
        recorded.client.register_plugin(WorkerTaskPlugin(directory=recorded.directory))
        recorded.client.submit(add, 1, key="once").result()
        execution(recorded.directory, "once")
        assert len(journals(recorded.directory)) == 1


def test_a_second_task_plugin_of_another_name_records_nothing_twice(tmp_path: Path) -> None:
    with recorded_cluster(tmp_path) as recorded:
        recorded.client.register_plugin(WorkerTaskPlugin("mine", directory=recorded.directory))
        recorded.client.submit(add, 1, key="once").result()
        execution(recorded.directory, "once")
        assert transitions(recorded.directory, "once").count(("executing", "memory")) == 1


def test_a_plugin_removed_and_registered_again_goes_on_in_a_new_journal(tmp_path: Path) -> None:
    with recorded_cluster(tmp_path) as recorded:
        client = recorded.client
        client.submit(add, 1, key="first").result()
        for name in ("TracePlugin", "GPUAnnotationPlugin"):
            client.unregister_worker_plugin(name)
        client.submit(add, 1, key="unseen").result()
        client.register_plugin(WorkerTaskPlugin(directory=recorded.directory))
        client.submit(add, 1, key="second").result()
        assert len(journals(recorded.directory)) == 2
        for key in ("first", "second"):
            execution(recorded.directory, key)
        assert not executions(recorded.directory, "unseen")


def test_only_plugins_that_do_something_are_told_of_transitions(tmp_path: Path) -> None:
    class Own(ResourceMonitor):
        def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
            self.monitor_kwargs[start] = finish

    with recorded_cluster(tmp_path) as recorded:
        client = recorded.client
        client.register_plugin(Own.for_workers(1000, "own", tmp_path / "own"))
        client.register_plugin(ResourceMonitor.for_workers(1000, "later", tmp_path / "own"))
        client.submit(add, 1, key="told").result()

        def plugins(dask_worker: Any) -> tuple[list[str], list[str], dict[str, str]]:
            told = dask_worker.state.plugins
            own = dask_worker.plugins["own"].monitor_kwargs
            return sorted(dask_worker.plugins), sorted(told), own

        [(there, told, own)] = client.run(plugins).values()
        assert {"own", "later", "TracePlugin"} <= set(there)
        quiet = ("later", "GPUAnnotationPlugin", "TracePlugin")
        assert told == [n for n in there if n not in quiet]
        assert own["executing"] == "memory"
        for name in ("own", "later"):
            client.unregister_worker_plugin(name)
        [(there, told, _)] = client.run(
            lambda dask_worker: (list(dask_worker.plugins), list(dask_worker.state.plugins), {})
        ).values()
        assert not {"own", "later"} & {*there, *told}
        assert transitions(recorded.directory, "told")[0] == ("released", "waiting")


def test_one_plugin_object_given_to_several_workers_records_each(tmp_path: Path) -> None:
    directory = tmp_path / "journals"
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            dashboard_address=":0",
            memory_limit=0,
            plugins=[WorkerTaskPlugin(directory=directory)],
        ) as cluster,
        Client(cluster) as client,
    ):
        for i, address in enumerate(sorted(client.scheduler_info(n_workers=-1)["workers"])):
            client.submit(add, i, key=f"each-{i}", workers=[address]).result()
        assert len(journals(directory)) == 2
        for i in range(2):
            execution(directory, f"each-{i}")
        assert len({e.task_id >> 24 for e in executions(directory)}) == 2
    for journal in journals(directory):
        assert journal.documents("end")


def test_workers_that_come_late_are_killed_or_restarted_have_journals(tmp_path: Path) -> None:
    with recorded_cluster(tmp_path, processes=True, threads_per_worker=1) as recorded:
        client = recorded.client

        def run_on_each(name: str) -> list[str]:
            keys = []
            for i, address in enumerate(recorded.addresses()):
                keys.append(f"{name}-{i}")
                client.submit(add, i, key=keys[-1], workers=[address]).result()
            return keys

        keys = run_on_each("first")

        recorded.cluster.scale(2)
        client.wait_for_workers(2, timeout=TIMEOUT_S)
        keys += run_on_each("late")
        assert len(journals(recorded.directory)) == 2

        victim = next(iter(recorded.pids().values()))
        os.kill(victim, signal.SIGKILL)
        wait_until(
            lambda: len(p := set(recorded.pids().values())) == 2 and victim not in p,
            "nanny's restart",
        )
        keys += run_on_each("killed")
        assert len(journals(recorded.directory)) == 3

        client.restart(timeout=TIMEOUT_S)
        keys += run_on_each("restarted")
        assert len(journals(recorded.directory)) == 5

    found = executions(recorded.directory)
    assert Counter(e.key for e in found) == Counter(keys)
    closed = {process(j)["pid"]: bool(j.documents("end")) for j in journals(recorded.directory)}
    assert not closed.pop(victim)
    for journal in journals(recorded.directory):
        assert journal.damaged == 0
        assert journal.documents("worker")[0]["address"]


def test_closed_workers_leave_complete_journals(tmp_path: Path) -> None:
    with recorded_cluster(tmp_path, n_workers=2, processes=True) as recorded:
        futures = recorded.client.map(add, range(100))
        recorded.client.gather(futures)
        del futures  # data that somebody holds and nobody can take keeps a worker from retiring
        wait_until(lambda: not any(recorded.client.has_what().values()), "the workers hold nothing")
        began = time.monotonic()
        recorded.client.retire_workers(recorded.addresses(), close_workers=True)
        wait_until(
            lambda: all(j.documents("end") for j in journals(recorded.directory)), "journals closed"
        )
        assert time.monotonic() - began < 10
    for journal in journals(recorded.directory):
        anchors = journal.records[Stream.ANCHORS]
        assert len(anchors) >= 3
        assert (anchors["before"] <= anchors["after"]).all()
        last = max(int(t) for t in journal.records[Stream.TRANSITIONS]["time"])
        assert int(anchors["before"].max()) >= last
        assert journal.documents("end")[0]["dropped"] == 0


# ------------------------------------------------------------------------------ plain scripts


SCRIPT = """
import sys, time
import distributed
import distributed.worker
from distributed import Client, LocalCluster
from dasf_hpc.profile.plugins import GPUAnnotationPlugin, ResourceMonitor, WorkerTaskPlugin

def double(value):
    return 2 * value

if __name__ == "__main__":
    def functions():
        worker = distributed.worker
        return worker._run_task, worker._run_task_async, worker._run_actor

    original = functions()
    with LocalCluster(
        n_workers=1, processes=False, dashboard_address=":0", memory_limit=0
    ) as cluster, Client(cluster) as client:
        client.register_plugin({plugin}())
        wrapped = all(now is not then for now, then in zip(functions(), original))
        print("total", sum(client.gather(client.map(double, range(10)))))
        {more}
        began = time.monotonic()
    print("closed in", time.monotonic() - began)
    print("wrapped", wrapped)
    print("restored", functions() == original)
"""


def run_script(folder: Path, text: str, **environment: str) -> dict[str, str]:
    """Run a script of a user's own and give what it printed, a line a name."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("DASF")} | environment,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line.rpartition(" ") for line in done.stdout.splitlines()]
    return {name: value for name, _, value in lines}


@pytest.mark.parametrize("plugin", ["WorkerTaskPlugin", "GPUAnnotationPlugin"])
def test_a_plugin_alone_in_a_plain_script(tmp_path: Path, plugin: str) -> None:
    said = run_script(tmp_path, SCRIPT.format(plugin=plugin, more=""))
    assert said["total"] == "90"
    assert said["wrapped"] == "True"
    assert said["restored"] == "True"
    assert float(said["closed in"]) < 3
    [directory] = tmp_path.glob("runs/*-plugins-*/journals")
    [journal] = journals(directory)
    assert journal.documents("end")
    assert len(journal.records[Stream.STARTS]) == (10 if plugin == "WorkerTaskPlugin" else 0)
    assert len(journal.records[Stream.ANCHORS]) >= 2


def test_the_resource_monitor_alone_in_a_plain_script(tmp_path: Path) -> None:
    directory = tmp_path / "here"
    more = f"""
        from pathlib import Path
        from dasf_hpc.profile.journal import Stream, read_journal
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            paths = list(Path({str(directory)!r}).glob("sampler-*.journal"))
            if paths and len(read_journal(paths[0]).records[Stream.PROCESS_SAMPLES]) > 2:
                break
            time.sleep(0.05)
    """
    text = textwrap.dedent(SCRIPT).format(
        plugin="ResourceMonitor", more=textwrap.indent(textwrap.dedent(more), " " * 8).strip()
    )
    said = run_script(tmp_path, text, DASF_HPC_JOURNALS=str(directory))
    assert said["wrapped"] == "False"
    assert said["restored"] == "True"
    [path] = wait_until(lambda: list(directory.glob("*.journal")), "the sampler's journal")
    wait_until(lambda: read_journal(path).documents("end"), "the sampler's end")


def test_clock_readings_go_on_in_a_cluster_of_others(tmp_path: Path) -> None:
    """The scheduler of a plain script answers no probes: anchors must not depend on it."""
    with recorded_cluster(tmp_path) as recorded:
        [journal] = wait_until(
            lambda: [
                j for j in journals(recorded.directory) if len(j.records[Stream.ANCHORS]) >= 3
            ],
            "anchors at the start and after 5 s",
        )
        assert len(journal.records[Stream.PROBES]) == 0


def test_distributed_is_as_it_was_after_the_last_worker(tmp_path: Path) -> None:
    before = distributed.worker._run_task, distributed.worker._run_task_async
    with recorded_cluster(tmp_path, n_workers=2):
        assert distributed.worker._run_task is not distributed.worker._run_task_async
    assert (distributed.worker._run_task, distributed.worker._run_task_async) == before


# ------------------------------------------------------------------------------ GPUs and NVTX


UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"


@pytest.mark.parametrize(
    "value",
    [None, "", "0", "0,1", "-1", UUID, f"{UUID},0", "MIG-8932f937", "nonsense", "NoDevFiles"],
)
def test_annotation_works_whatever_selects_the_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with recorded_cluster(tmp_path) as recorded:
        assert recorded.client.submit(add, 1, key=("gpu", 0)).result() == 1
        execution(recorded.directory, ("gpu", 0))
    [journal] = journals(recorded.directory)
    [worker] = journal.documents("worker")
    assert isinstance(worker["gpus"], list)
    assert "CUDA_VISIBLE_DEVICES" in worker["gpu_status"]
    assert journal.documents("end")[0]["failures"] == 0


@pytest.mark.parametrize("variables", [{"NVTX_DISABLE": "1"}, {}], ids=["disabled", "not loaded"])
def test_annotation_costs_no_task_without_nsys(tmp_path: Path, variables: dict[str, str]) -> None:
    said = run_script(tmp_path, SCRIPT.format(plugin="GPUAnnotationPlugin", more=""), **variables)
    assert said["total"] == "90"


#: Event types of NVTX_EVENTS in nsys's export.
MARK, PUSH_POP, START_END, DOMAIN_CREATE = 34, 59, 60, 75

ANNOTATED = """
import sys, threading, time
from pathlib import Path

import nvtx
from distributed import Client, LocalCluster, secede, worker_client
from dasf_hpc.profile.plugins import GPUAnnotationPlugin, WorkerTaskPlugin

def inner(value):
    with nvtx.annotate("users own", domain="user", payload=value):
        time.sleep(0.005)
    return threading.get_native_id()

async def on_loop(value):
    return threading.get_native_id()

def failing():
    raise ValueError

class Box:
    def put(self):
        time.sleep(0.005)

    async def put_on_loop(self):
        pass

def outer():
    with worker_client() as client:
        return client.gather(client.map(inner, range(100, 104)))

if __name__ == "__main__":
    for message in ("prefix", "key"):
        directory = Path(sys.argv[1], message)
        with LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0",
            memory_limit=0,
        ) as cluster, Client(cluster) as client:
            client.register_plugin(WorkerTaskPlugin(directory=directory))
            client.register_plugin(GPUAnnotationPlugin(directory=directory, message=message))
            keys = [("inner-0a1b2c3d", i) for i in range(20)]
            client.gather(client.map(inner, range(20), key=keys))
            client.gather(client.map(on_loop, range(5), key=[f"on_loop-{i}" for i in range(5)]))
            client.submit(failing, key="failing-ffffffff").exception()
            client.submit(outer, key="outer-1").result()
            box = client.submit(Box, actor=True, key="box-1").result()
            box.put().result()
            box.put_on_loop().result()
            time.sleep(2.5 if message == "prefix" else 0)
"""


@dataclass(frozen=True)
class Profiled:
    """A script's journals and the report that nsys made of it, exported."""

    directory: Path
    events: list[dict[str, Any]]


@pytest.fixture(scope="module", params=["installed", "0.2.11"])
def profiled(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    nsys: Path,
    profile: Callable[..., Any],
) -> Profiled:
    """Profile a script of a user's own under the real nsys, with this and other nvtx."""
    folder = tmp_path_factory.mktemp("profiled")
    environment = dict(os.environ)
    if request.param != "installed":
        site = folder / "site"
        words = ["install", "-q", "--no-deps", "--only-binary=:all:", "-t", str(site)]
        done = subprocess.run(
            [sys.executable, "-m", "pip", *words, f"nvtx=={request.param}"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1]
            pytest.skip(f"pip gives no nvtx {request.param} for this Python: {last}")
        environment["PYTHONPATH"] = str(site)
    script = folder / "annotated.py"
    script.write_text(ANNOTATED)
    report, exported = folder / "report.nsys-rep", folder / "report.sqlite"
    flags = ["-t", "nvtx", "--sample=none", "--cpuctxsw=none"]
    command = [sys.executable, str(script), str(folder)]
    done = profile(report.with_suffix(""), flags, command, cwd=folder, env=environment, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    export = [str(nsys), "export", "--type", "sqlite", "-o", str(exported), str(report)]
    done = subprocess.run(export, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with contextlib.closing(sqlite3.connect(exported)) as database:
        database.row_factory = sqlite3.Row
        query = (
            "SELECT n.*, coalesce(n.text, s.value) AS message FROM NVTX_EVENTS n "
            "LEFT JOIN StringIds s ON s.id = n.textId"
        )
        events = [dict(row) for row in database.execute(query)]
    domains = {e["domainId"]: e["message"] for e in events if e["eventType"] == DOMAIN_CREATE}
    return Profiled(
        folder,
        [
            {**e, "domain": domains.get(e["domainId"])}
            for e in events
            if e["eventType"] in (MARK, PUSH_POP, START_END)
        ],
    )


def _payload(event: dict[str, Any]) -> int:
    values = (event.get(n) for n in ("int64Value", "uint64Value", "int32Value", "uint32Value"))
    return int(next(v for v in values if v is not None))


@pytest.mark.needs("nsys")
def test_every_execution_is_a_range_with_its_task_id(profiled: Profiled) -> None:
    ranges = {_payload(e): e for e in profiled.events if e["domain"] == "compute"}
    found = executions(profiled.directory / "prefix") + executions(profiled.directory / "key")
    assert len(found) == 2 * (20 + 5 + 1 + 1 + 4 + 1 + 2)
    assert set(ranges) == {e.task_id for e in found}
    assert len([e for e in profiled.events if e["domain"] == "compute"]) == len(ranges)
    for one in found:
        event = ranges[one.task_id]
        assert event["eventType"] == (START_END if "on_loop" in one.key else PUSH_POP)
        assert event["globalTid"] & 0xFFFFFF == one.thread
        assert event["globalTid"] >> 24 & 0xFFFFFF == one.pid
        assert one.stop is not None
        # One clock would do, were the session's start known: the lengths agree by themselves.
        length = event["end"] - event["start"]
        assert 0 < length <= one.stop - one.start
        assert one.stop - one.start - length < 50_000_000


@pytest.mark.needs("nsys")
@pytest.mark.parametrize("message", ["prefix", "key"])
def test_a_ranges_message_is_the_prefix_or_the_whole_key(profiled: Profiled, message: str) -> None:
    ranges = {_payload(e): e["message"] for e in profiled.events if e["domain"] == "compute"}
    found = executions(profiled.directory / message)
    said = Counter(ranges[e.task_id] for e in found)
    if message == "key":
        assert said == Counter(e.key for e in found)
    else:
        assert said == Counter(
            {"inner": 24, "on_loop": 5, "failing": 1, "outer": 1}
            | {"box": 1, "Box.put": 1, "Box.put_on_loop": 1}
        )


@pytest.mark.needs("nsys")
def test_ranges_nest_around_the_users_own(profiled: Profiled) -> None:
    compute = [
        e for e in profiled.events if e["domain"] == "compute" and e["eventType"] == PUSH_POP
    ]
    users = [e for e in profiled.events if e["domain"] == "user"]
    assert len(users) == 2 * 24
    for event in users:
        around = [
            e
            for e in compute
            if e["globalTid"] == event["globalTid"]
            and e["start"] <= event["start"]
            and event["end"] <= e["end"]
        ]
        assert len(around) == 1
        assert "inner" in around[0]["message"]
    by_thread: dict[int, list[dict[str, Any]]] = {}
    for event in sorted(compute, key=lambda e: e["start"]):
        by_thread.setdefault(event["globalTid"], []).append(event)
    for events in by_thread.values():
        for one, following in itertools.pairwise(events):
            assert one["end"] <= following["start"], "a thread runs one task after the other"


@pytest.mark.needs("nsys")
def test_clock_marks_are_there_at_the_start_during_and_at_the_end(profiled: Profiled) -> None:
    marks = [e for e in profiled.events if e["domain"] == "dasf_hpc.clock"]
    assert {e["eventType"] for e in marks} == {MARK}
    payloads = sorted(_payload(e) for e in marks)
    for message, seconds in (("prefix", 2.5), ("key", 0.0)):
        [journal] = journals(profiled.directory / message)
        start, stop = process(journal)["start"], journal.documents("end")[0]["time"]
        own = [p for p in payloads if start < p < stop]
        assert len(own) >= 2 * MARKS + int(seconds // MARK_INTERVAL_S) * MARKS + MARKS
        assert np.diff(own).max() < 1.5 * MARK_INTERVAL_S * 1e9
        assert own[0] - start < 1e9
        assert stop - own[-1] < 1e9
    # Their payload is a reading of one clock: the lag of nsys's own is nearly always the same.
    lags = np.array([e["start"] - _payload(e) for e in marks])
    assert np.median(lags - lags.min()) < 1_000_000


def test_a_wrong_message_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="it may be 'prefix' or 'key'"):
        GPUAnnotationPlugin(message="all")
