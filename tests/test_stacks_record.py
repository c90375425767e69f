"""Samples of Python calls, as they are recorded and merged: who ran what, when, in which task."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster, secede, worker_client
from distributed.diagnostics.plugin import WorkerPlugin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dasf_hpc
from dasf_hpc.errors import SettingsError
from dasf_hpc.launch.call_stacks import python_sampling, stack_sampling
from dasf_hpc.launch.worker_command import choose_nsys
from dasf_hpc.profile import call_stacks
from dasf_hpc.profile.call_stacks import LATE, LOOP, SPAN_AT, SPAN_NS, TASK, StackSampler
from dasf_hpc.profile.frames import Frame, Namer, Origin, packed, unpacked
from dasf_hpc.profile.journal import BLOCK, Journal, JournalError, Stream, read_journal
from dasf_hpc.profile.plugins import WorkerTaskPlugin
from dasf_hpc.trace import layout, merge
from dasf_hpc.trace.call_stacks import tasks_at
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.open import Trace, open_trace

MS = 1_000_000
THREAD = "dasf-hpc-stacks"


# ------------------------------------------------------------------------------ what is run


def spin(seconds: float) -> float:
    """Compute in Python, and hold the GIL."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        pass
    return time.perf_counter() - begin


def nap(seconds: float) -> float:
    begin = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - begin


DATA = bytes(1 << 24)


def crunch(seconds: float) -> float:
    """Compute outside of Python, without the GIL."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        hashlib.sha256(DATA)
    return time.perf_counter() - begin


def planted(rounds: int) -> dict[str, float]:
    """Call three functions; give how long each took indeed.

    Long turns: what holds the GIL gives it up 5 ms after it is asked to, and where its turn ends
    before, the look falls into the next one's.
    """
    took = dict.fromkeys(("spin", "nap", "crunch"), 0.0)
    for _ in range(rounds):
        took["spin"] += spin(0.5)
        took["nap"] += nap(0.3)
        took["crunch"] += crunch(0.2)
    return took


def held_gil(seconds: float) -> None:
    # PyDLL, unlike CDLL, keeps the GIL during the call
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    # of a task that ended before anybody could look there is no sample
    time.sleep(0.03)


def inner(seconds: float) -> None:
    spin(seconds)


def outer(seconds: float) -> None:
    with worker_client() as client:  # it secedes
        future = client.submit(inner, seconds, pure=False)
        future.result()


def seceded(seconds: float) -> None:
    secede()
    nap(seconds)


def block_first(seconds: float) -> None:
    time.sleep(seconds)


def block_second(seconds: float) -> None:
    time.sleep(seconds)


async def first(rounds: int) -> None:
    for _ in range(rounds):
        await asyncio.sleep(0.01)
        block_first(0.04)


async def second(rounds: int) -> None:
    for _ in range(rounds):
        await asyncio.sleep(0.01)
        block_second(0.04)


class BlocksLoop(WorkerPlugin):  # type: ignore[misc]
    """Blocks the event loop at a task's end, as a plugin of somebody's may."""

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        if finish == "memory" and "nap" in str(key):
            self.wait_for_something()

    def wait_for_something(self) -> None:
        time.sleep(0.4)


class Counter:
    """An actor."""

    async def on_loop(self, seconds: float) -> None:
        block_second(seconds)

    def in_thread(self, seconds: float) -> None:
        spin(seconds)


# ------------------------------------------------------------------------------ looking at it


def samples_of(trace: Trace) -> pd.DataFrame:
    """Give the samples with the functions of their stacks, the outermost first, and the task's."""
    table = trace.table("stacks")
    parents, functions = table["parent"].tolist(), table["function"].astype(object).tolist()
    chains: list[tuple[str, ...]] = []
    for parent, function in zip(parents, functions, strict=True):
        assert parent < len(chains)
        chains.append(((*chains[parent],) if parent >= 0 else ()) + (function,))
    found = trace.table("call_samples").reset_index(drop=True)
    prefix = [*trace.tasks.sort_index()["prefix"].astype(str), None]
    found["calls"] = pd.Series([chains[row] if row >= 0 else () for row in found["stack"]])
    found["of"] = pd.Series([prefix[row] for row in found["task"]], dtype=object)
    return found


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Client, Path]]:
    """Give a client of a cluster of one worker, in a process of its own or in this one."""
    processes = getattr(request, "param", True)
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=processes,
            dashboard_address=":0",
            local_directory=str(tmp_path / "workers"),
        ) as local,
        Client(local) as client,
    ):
        yield client, tmp_path / "journals"


def recorded(client: Client, journals: Path) -> Trace:
    """End the recording, merge it and open the trace."""
    client.unregister_worker_plugin("TracePlugin")
    merge_journals(journals).write(journals.parent / "trace.h5")
    return open_trace(journals.parent)


def begin(client: Client, journals: Path, **options: Any) -> None:
    client.register_plugin(WorkerTaskPlugin(directory=journals, **options))


both = pytest.mark.parametrize("cluster", [True, False], indirect=True, ids=["process", "thread"])


# ------------------------------------------------------------------------------ tasks


def test_functions_are_found_in_the_proportions_that_were_planted(
    cluster: tuple[Client, Path],
) -> None:
    client, journals = cluster
    begin(client, journals)
    took = client.submit(planted, 8, pure=False).result()
    with recorded(client, journals) as trace:
        samples = samples_of(trace)
        samples = samples[samples["of"] == "planted"]
        assert (samples["role"] == "task").all()
        called = samples["calls"].map(lambda calls: calls[1] if len(calls) > 1 else "itself")
        assert np.mean([calls[0] == "planted" for calls in samples["calls"]]) > 0.95
        duration = int((trace.tasks["stop"] - trace.tasks["start"]).sum())
        assert 0.9 < samples["span"].sum() / duration < 1.1
    count, whole = len(samples), sum(took.values())
    assert count > 200
    for name, seconds in took.items():
        share = seconds / whole
        # by time: where a thread holds the GIL, or a CPU is somebody else's, looks are fewer
        found = samples["span"][called == name].sum() / samples["span"].sum()
        bound = 0.03 + 1.96 * np.sqrt(share * (1 - share) / count)
        assert abs(found - share) < bound, (name, found, share, count)


def first_half() -> None:
    time.sleep(0.008)


def second_half() -> None:
    time.sleep(0.008)


def two_halves(number: int) -> int:
    first_half()
    second_half()
    return number


def test_the_beginning_of_short_tasks_counts_as_much_as_their_end(
    cluster: tuple[Client, Path],
) -> None:
    client, journals = cluster
    begin(client, journals)
    client.gather(client.map(two_halves, range(400)))
    with recorded(client, journals) as trace:
        samples = samples_of(trace)
        samples = samples[samples["of"] == "two_halves"]
        duration = int((trace.tasks["stop"] - trace.tasks["start"]).sum())
    called = samples["calls"].map(lambda calls: calls[1] if len(calls) > 1 else "itself")
    span = samples["span"]
    share = (
        span[called == "first_half"].sum() / span[called.isin(["first_half", "second_half"])].sum()
    )
    assert abs(share - 0.5) < 0.03 + 1.96 * np.sqrt(0.25 / len(samples)), (share, len(samples))
    # and samples stand for all of the time
    assert abs(span.sum() / duration - 1) < 0.15


@both
def test_a_task_that_holds_the_gil_in_python_is_seen(cluster: tuple[Client, Path]) -> None:
    client, journals = cluster
    begin(client, journals)
    client.submit(spin, 1.0, pure=False).result()
    with recorded(client, journals) as trace:
        samples = samples_of(trace)
        samples = samples[samples["of"] == "spin"]
        # by time, here and below: a machine that is busy elsewhere looks seldom, and a look that
        # comes late stands for the time since the last one
        assert samples["span"].sum() > 800 * MS
        spins = np.array([calls[0] == "spin" for calls in samples["calls"]])
        assert samples["span"][spins].sum() > 0.8 * samples["span"].sum()
        table = trace.table("stacks")
        lines = table[table["function"] == "spin"]["line"]
        begun = spin.__code__.co_firstlineno
        assert lines.between(begun, begun + 6).all()
        thread = set(trace.tasks["thread"])
        assert set(samples["thread"]) == thread


def test_a_call_that_never_gives_up_the_gil_is_one_long_sample(
    cluster: tuple[Client, Path],
) -> None:
    client, journals = cluster
    begin(client, journals)
    client.submit(held_gil, 0.6, pure=False).result()
    with recorded(client, journals) as trace:
        samples = samples_of(trace)
        samples = samples[samples["of"] == "held_gil"]
        assert samples["span"].max() > 500 * MS
        longest = samples.sort_values("span").iloc[-1]
        assert longest["calls"][0] == "held_gil"
        assert longest["late"] == 2


@both
def test_tasks_within_tasks_have_their_own_samples(cluster: tuple[Client, Path]) -> None:
    client, journals = cluster
    begin(client, journals)
    client.gather([client.submit(outer, 0.5), client.submit(seceded, 0.5), client.submit(nap, 0.4)])
    with recorded(client, journals) as trace:
        samples = samples_of(trace)
        of_tasks = samples[samples["role"] == "task"]
        assert (of_tasks["task"] >= 0).all()
        for name in ("outer", "inner", "seceded", "nap"):
            own = of_tasks[of_tasks["of"] == name]
            assert own["span"].sum() > 200 * MS, name
            # but for what Dask does around it, and what it lets go of at its end
            begins = np.array([calls[0] == name for calls in own["calls"]])
            assert own["span"][begins].sum() > own["span"].sum() / 2
            others = {"outer", "inner", "seceded", "nap"} - {name}
            assert not any(calls[0] in others for calls in own["calls"])
        row = of_tasks["task"].to_numpy()
        start, stop, thread = (
            trace.tasks.sort_index()[name].to_numpy()[row] for name in ("start", "stop", "thread")
        )
        assert ((start <= of_tasks["start"]) & (of_tasks["start"] <= stop)).all()
        assert (thread == of_tasks["thread"]).all()


@both
def test_a_coroutine_has_the_samples_of_what_it_runs_and_no_other_ones(
    cluster: tuple[Client, Path],
) -> None:
    client, journals = cluster
    begin(client, journals)
    client.gather([client.submit(first, 10), client.submit(second, 10)])
    with recorded(client, journals) as trace:
        samples = samples_of(trace)
        of_tasks = samples[samples["role"] == "task"]
        for name in ("first", "second"):
            own = of_tasks[of_tasks["of"] == name]
            blocked = own["calls"].map(lambda calls, last=f"block_{name}": calls[-1] == last)
            assert own["span"][blocked].sum() > 200 * MS  # of 400
            assert set(own["calls"][blocked]) == {(name, f"block_{name}")}
            other = "second" if name == "first" else "first"
            assert not any({other, f"block_{other}"} & set(calls) for calls in own["calls"])
        assert set(of_tasks["thread"]) == set(trace.tasks["thread"])


@both
def test_calls_of_an_actor_are_sampled(cluster: tuple[Client, Path]) -> None:
    client, journals = cluster
    begin(client, journals)
    actor: Any = client.submit(Counter, actor=True).result()
    actor.on_loop(0.3).result()
    actor.in_thread(0.3).result()
    with recorded(client, journals) as trace:
        samples = samples_of(trace)
        both_columns = zip(samples["of"], samples["calls"], strict=True)
        last = {(of, calls[0], calls[-1]) for of, calls in both_columns}
        assert ("Counter.on_loop", "Counter.on_loop", "block_second") in last
        assert ("Counter.in_thread", "Counter.in_thread", "spin") in last


@both
def test_an_idle_worker_has_next_to_no_samples(cluster: tuple[Client, Path]) -> None:
    client, journals = cluster
    begin(client, journals)
    client.submit(nap, 0.01).result()
    time.sleep(1.0)
    with recorded(client, journals) as trace:
        samples = samples_of(trace)
        assert (samples["of"].dropna() == "nap").all()
        waiting = [c for c in samples["calls"] if c[-1] in ("EpollSelector.select", "_worker")]
        assert waiting == []
        assert len(samples[samples["role"] == "task"]) <= 10


# ------------------------------------------------------------------------------ event loops


@both
def test_what_blocks_an_event_loop_is_seen(cluster: tuple[Client, Path]) -> None:
    client, journals = cluster
    client.register_plugin(BlocksLoop(), name="blocks")
    begin(client, journals)
    client.submit(nap, 0.01).result()
    with recorded(client, journals) as trace:
        samples = samples_of(trace)
        name = "BlocksLoop.wait_for_something"
        blocked = samples[samples["calls"].map(lambda calls: calls[-1] == name)]
        assert blocked["span"].sum() > 300 * MS
        assert (blocked["role"] == "event loop").all()
        assert (blocked["task"] == -1).all()
        for calls in blocked["calls"]:
            assert "Handle._run" in calls  # the loop's own calls are there, whole
            assert "BlocksLoop.transition" in calls


def test_one_loop_of_several_recordings_of_a_folder_is_sampled_once(tmp_path: Path) -> None:
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as local,
        Client(local) as client,
    ):
        begin(client, tmp_path / "journals")
        client.run(block_first, 0.3)
        with recorded(client, tmp_path / "journals") as trace:
            samples = samples_of(trace)
            blocked = samples[samples["calls"].map(lambda calls: calls[-1] == "block_first")]
            assert blocked["process"].nunique() == 1
            assert blocked["start"].is_unique


def test_a_recorded_block_samples_the_scheduler_too(tmp_path: Path) -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as local,
        Client(local) as client,
    ):
        with dasf_hpc.record(client, tmp_path / "runs", report=False) as run:
            client.run_on_scheduler(block_second, 0.3)
            client.submit(nap, 0.2).result()
        samples = samples_of(run.trace)
        role = run.trace.processes["role"].to_numpy()[samples["process"]]
        blocked = samples["calls"].map(lambda calls: calls[-1] == "block_second").to_numpy()
        assert samples["span"][blocked].sum() > 150 * MS
        assert (role[blocked] == "scheduler").all()
        assert run.summary is not None
        assert run.summary.call_samples == len(samples)
        threads = client.run(thread_names)
        assert not any(THREAD in names for names in threads.values())

        with dasf_hpc.record(client, tmp_path / "runs", report=False, stacks="off") as run:
            threads = client.run(thread_names)
            client.submit(nap, 0.2, pure=False).result()
        assert not any(THREAD in names for names in threads.values())
        assert THREAD not in thread_names()
        assert run.trace.rows("call_samples") == run.trace.rows("stacks") == 0
        for path in (run.directory / "journals").glob("*.journal"):
            assert streams_of(path).isdisjoint({Stream.STACKS, Stream.CALL_SAMPLES})
        with pytest.raises(SettingsError, match="'dask' or 'off'"):
            dasf_hpc.record(client, tmp_path / "runs", stacks="nsys")


def thread_names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def streams_of(path: Path) -> set[int]:
    """Give the streams of which a journal has blocks."""
    data = path.read_bytes()
    return {data[at + 6] for at in range(0, len(data), BLOCK) if data[at : at + 4] == b"DHJ1"}


def test_dasks_own_switch_and_interval_hold(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.journal", {"role": "worker"})
    with dask.config.set({call_stacks.ENABLED: False}):
        call_stacks.start_sampling(journal, "dask")()
    assert THREAD not in thread_names()
    with dask.config.set({call_stacks.INTERVAL: "25ms"}):
        end = call_stacks.start_sampling(journal, "dask")
        end()
        end()
    with dask.config.set({call_stacks.INTERVAL: "often"}):
        assert call_stacks.dasks_interval() == 0.01
    journal.close()
    contents = read_journal(journal.path)
    (why,) = contents.documents("unavailable")
    assert "switched off" in why["why"]
    assert [m["interval"] for m in contents.documents("stacks")] == [0.025]
    with pytest.raises(ValueError, match="'off', 'dask' or 'nsys'"):
        WorkerTaskPlugin(directory=tmp_path, stacks="sometimes")


# ------------------------------------------------------------------------------ processes


def run(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )


SAMPLED = """
import os, signal, sys, threading, time
from pathlib import Path
from dasf_hpc.profile import call_stacks
from dasf_hpc.profile.journal import Journal, Stream, read_journal

def work(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass

journal = Journal(Path("one.journal"), {"role": "scheduler"})
end = call_stacks.start_sampling(journal, "dask")
work(0.5)
"""


def test_a_killed_process_leaves_its_samples(tmp_path: Path) -> None:
    text = "work(1.5)\nprint(time.monotonic_ns(), flush=True)\nos.kill(os.getpid(), 9)"
    done = run(tmp_path, SAMPLED + text)
    assert done.returncode == -signal.SIGKILL
    samples = read_journal(tmp_path / "one.journal").records[Stream.CALL_SAMPLES]
    assert len(samples) > 10
    # a tenth of a second may be lost, as of all that is recorded; busy machines are late
    assert int(done.stdout) - samples["time"].max() < 1000 * MS


def test_a_process_that_just_ends_does_so_without_a_word(tmp_path: Path) -> None:
    done = run(tmp_path, SAMPLED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    contents = read_journal(tmp_path / "one.journal")
    texts = [unpacked(text) for text in contents.strings.values()]
    assert ("work", "__main__", "script.py", "own") in texts


def test_a_forked_child_samples_nothing_of_its_parents(tmp_path: Path) -> None:
    text = """
    pid = os.fork()
    if not pid:
        names = [thread.name for thread in threading.enumerate()]
        end()
        other = Journal(Path("two.journal"), {"role": "scheduler"})
        end = call_stacks.start_sampling(other, "dask")
        work(0.5)
        end()
        other.close()
        print(names, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    print(time.monotonic_ns(), flush=True)
    work(0.5)
    end()
    journal.close()
    """
    done = run(tmp_path, SAMPLED + textwrap.dedent(text))
    assert done.returncode == 0, done.stderr
    names, forked = done.stdout.splitlines()
    assert names == "['MainThread']"
    one, two = (read_journal(tmp_path / name) for name in ("one.journal", "two.journal"))
    assert one.damaged == two.damaged == 0
    assert (one.records[Stream.CALL_SAMPLES]["time"] > int(forked)).sum() > 3
    assert len(two.records[Stream.CALL_SAMPLES]) > 3
    (account,) = one.documents("stacks-end")
    assert account["samples"] == len(one.records[Stream.CALL_SAMPLES])


# ------------------------------------------------------------------------------ names


def test_names_hold_no_folder_of_the_machine_and_tell_whose_code_it_is(tmp_path: Path) -> None:
    def named(function: Any, module: str | None = None) -> tuple[str, str, str, str]:
        return namer.name(function.__code__, function.__module__ if module is None else module)

    def made(file: str, module: str) -> tuple[str, str, str, str]:
        return namer.name(compile("pass", file, "exec"), module)

    namer = Namer()
    namer.script = "job.py"
    assert named(json.dumps) == ("dumps", "json", "json/__init__.py", Origin.STANDARD)
    assert named(pd.concat)[2:] == ("pandas/core/reshape/concat.py", Origin.PACKAGE)
    assert named(dask.get)[2:] == ("dask/local.py", Origin.DASK)
    assert named(distributed.wait)[2:] == ("distributed/client.py", Origin.DASK)
    assert named(dasf_hpc.record)[2:] == ("dasf_hpc/block.py", Origin.DASF_HPC)
    assert named(spin, "__main__")[2:] == ("test_stacks_record.py", Origin.OWN)
    assert made(str(tmp_path / "deep" / "job.py"), "__main__")[2:] == ("job.py", Origin.OWN)
    assert made(str(tmp_path / "a" / "b.py"), "a.b")[2:] == ("a/b.py", Origin.OWN)
    assert made(str(tmp_path / "a" / "b.py"), "")[2] == "b.py"
    assert made("sub/job.py", "__main__")[2] == "job.py"
    assert made("<string>", "__main__")[2:] == ("<string>", Origin.OWN)
    assert made("<string>", "collections")[2:] == ("<string>", Origin.STANDARD)
    assert made("<ipython-input-3-ab>", "__main__")[2] == "<ipython-input-3-ab>"
    assert made(f"<template {tmp_path}/x.html>", "")[2] == "<x.html>"
    assert made("<frozen importlib._bootstrap>", "importlib")[3] == Origin.STANDARD
    # as cloudpickle sends what is not imported
    assert made("<dynamic-code>", "__main__")[2:] == ("job.py", Origin.OWN)
    assert made("<dynamic-code>", "mine.own")[2:] == ("mine/own.py", Origin.OWN)
    name = namer.name(spin.__code__, "x" * 1000)
    assert len(name.module) == 300
    assert unpacked(packed(name)) == name


def test_a_traces_names_have_no_folder(cluster: tuple[Client, Path]) -> None:
    client, journals = cluster
    begin(client, journals)
    client.submit(planted, 1).result()
    client.run(block_first, 0.1)
    with recorded(client, journals) as trace:
        table = trace.table("stacks")
        texts = {str(v) for c in ("function", "module", "file") for v in table[c].dropna()}
        folders = {sys.prefix, sys.base_prefix, str(Path.home()), str(Path.cwd()), str(journals)}
        for text in texts:
            assert not text.startswith("/")
            assert not any(folder in text for folder in folders if len(folder) > 1)
        own = table[table["function"] == "spin"]
        assert set(own["origin"]) == {"own"}
        assert set(own["file"]) == {"test_stacks_record.py"}
        assert set(table["origin"].dropna()) <= {str(origin) for origin in Origin}


# ------------------------------------------------------------------------------ bounds


class Threads:
    """A worker, as far as it says which threads run tasks."""

    def __init__(self, *threads: threading.Thread) -> None:
        self.active_threads = {thread.ident: "key" for thread in threads}


def look(tmp_path: Path, functions: list[Any]) -> Any:
    """Look once at each function while a thread runs it as a task; give the journal."""
    journal = Journal(tmp_path / "looked.journal", {"role": "worker"})
    sampler = StackSampler()
    module: dict[str, Any] = {"__name__": "distributed.worker"}
    exec("def _run_task(function, *arguments): function(*arguments)", module)
    sampled = None
    for function in functions:
        there, go_on = threading.Event(), threading.Event()
        thread = threading.Thread(target=module["_run_task"], args=(function, there, go_on))
        thread.start()
        there.wait()
        worker: Any = Threads(thread)
        if sampled is None:
            sampled = call_stacks.Sampled(journal, 0, -1, worker, None)
            sampler._all = (sampled,)
        sampled.worker = lambda worker=worker: worker  # type: ignore[assignment]
        sampler._look(time.monotonic_ns() - MS)
        go_on.set()
        thread.join()
    assert sampled is not None
    journal.meta(sampler._account(sampled))
    journal.close()
    return read_journal(journal.path)


def recursing(depth: int) -> Any:
    def call(there: threading.Event, go_on: threading.Event, left: int = depth) -> None:
        if left:
            call(there, go_on, left - 1)
        else:
            there.set()
            go_on.wait()

    return call


def generated(number: int) -> Any:
    made: dict[str, Any] = {"__name__": "made"}
    exec(f"def made_{number}(there, go_on):\n there.set()\n go_on.wait()", made)
    return made[f"made_{number}"]


def test_a_deep_recursion_is_cut_in_the_middle_and_that_is_counted(tmp_path: Path) -> None:
    contents = look(tmp_path, [recursing(700)])
    (sample,) = contents.records[Stream.CALL_SAMPLES]
    calls = {int(c["stack"]): c for c in contents.records[Stream.STACKS]}
    names, at = [], int(sample["stack"])
    while at != 0xFFFFFFFF:
        names.append(unpacked(contents.strings[int(calls[at]["frame"])]).function)
        at = int(calls[at]["parent"])
    assert len(names) == call_stacks.OUTER + call_stacks.INNER + 1
    assert names[0] == "Condition.wait"
    assert names[-1] == "recursing.<locals>.call"
    assert names[call_stacks.INNER] == "(calls left out)"
    assert contents.documents("stacks-end")[0]["cut"] == 1


def test_deep_stacks_take_no_more_memory_than_what_is_kept_of_them(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.journal", {"role": "worker"})
    sampled, codes = call_stacks.Sampled(journal, 0, -1, None, None), call_stacks._Codes()
    call = codes.meet(recursing(1).__code__, "m") << 32
    tracemalloc.start()
    try:
        for number in range(100):
            sampled.record(1, 1, TASK, [call + number] + [call + n for n in range(10_000)], codes)
        snapshot = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    journal.close()
    # not what other threads of this process took meanwhile, as those of earlier tests
    ours = [tracemalloc.Filter(True, name) for name in (__file__, call_stacks.__file__)]
    statistics = snapshot.filter_traces(ours).statistics("filename")
    # whole they are 40 MB
    assert 0 < sum(statistic.size for statistic in statistics) < 4e6
    assert len(read_journal(journal.path).records[Stream.CALL_SAMPLES]) == 100


def test_a_look_that_fails_keeps_nothing_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Large:
        """Stands for an array."""

    alive: list[weakref.ref[Large]] = []
    walked = call_stacks._walk

    def fail(frame: Any, codes: Any) -> Any:
        walked(frame, codes)
        raise RuntimeError("no room")

    def task(there: threading.Event, go_on: threading.Event) -> None:
        large = Large()
        alive.append(weakref.ref(large))
        there.set()
        go_on.wait()

    monkeypatch.setattr(call_stacks, "_walk", fail)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            there, go_on = threading.Event(), threading.Event()
            thread = threading.Thread(target=task, args=(there, go_on))
            thread.start()
            there.wait()
            sampler = StackSampler()
            worker: Any = Threads(thread)
            journal = Journal(tmp_path / f"{len(alive)}.journal", {"role": "worker"})
            sampled = call_stacks.Sampled(journal, 0, -1, worker, None)
            sampler._all = (sampled,)
            with pytest.raises(RuntimeError, match="no room"):
                sampler._look(0)
            go_on.set()
            thread.join()
            journal.close()
        assert [one() for one in alive] == [None] * 3
    finally:
        gc.enable()


def test_names_run_nothing_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy:
        """Stands for a module that is imported when something of it is asked for."""

        def __getattribute__(self, name: str) -> Any:
            raise ImportError(f"asked for {name}")

    class Globals(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            raise ImportError(f"asked for {key}")

    monkeypatch.setitem(sys.modules, "lazy_thing", Lazy())
    made = Globals(__name__="lazy_thing.inner")
    exec("def made(there, go_on):\n there.set()\n go_on.wait()", made)
    contents = look(tmp_path, [made["made"]])
    assert len(contents.records[Stream.CALL_SAMPLES]) == 1
    names = [unpacked(text) for text in contents.strings.values()]
    assert Frame("made", "lazy_thing.inner", "<string>", Origin.OWN) in names


def test_a_name_does_not_wait_for_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # while it is made a thread's frames are held
    monkeypatch.syspath_prepend(tmp_path)
    code = compile("pass", str(tmp_path / "inside" / "one.py"), "exec")
    namer = Namer()

    def stall(*_: Any, **__: Any) -> Any:
        raise AssertionError("the file system was asked")

    with monkeypatch.context() as stalled:
        for name in ("stat", "lstat", "readlink", "listdir", "scandir"):
            stalled.setattr("os." + name, stall)
        assert namer.name(code, "other").file == "inside/one.py"
        stalled.setattr(sys, "path", [str(tmp_path / "inside"), *sys.path])
        assert namer.name(code, "other").file == "inside/one.py"
    monkeypatch.syspath_prepend(tmp_path / "inside")
    namer.look_at_path()
    assert namer.name(code, "other").file == "one.py"


def test_the_end_waits_no_longer_than_it_has_to_for_a_look_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, go_on = threading.Event(), threading.Event()

    def hang(*_: Any) -> Any:
        hangs.set()
        go_on.wait()
        return [1], None

    monkeypatch.setattr(call_stacks, "_walk", hang)
    monkeypatch.setattr(call_stacks, "_PATIENCE_S", 0.05)
    journal = Journal(tmp_path / "a.journal", {"role": "worker"})
    sampler = StackSampler()
    sampled = sampler.add(journal)
    try:
        assert hangs.wait(30)
        ended = threading.Thread(target=sampler.remove, args=(sampled,))
        ended.start()
        ended.join(30)
        assert not ended.is_alive()
    finally:
        go_on.set()
    journal.close()


def test_code_without_end_fills_no_memory_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_stacks, "MOST_CODES", 20)
    monkeypatch.setattr(call_stacks, "MOST_NAMES", 30)
    contents = look(tmp_path, [generated(number) for number in range(100)])
    assert len(contents.records[Stream.CALL_SAMPLES]) == 100
    texts = [unpacked(text).function for text in contents.strings.values()]
    assert len(texts) <= 31
    assert "(one of many functions)" in texts
    assert contents.documents("stacks-end")[0]["unnamed"] > 50


def test_calls_beyond_the_limit_end_at_the_last_one_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_stacks, "MOST_CALLS", 25)
    monkeypatch.setattr(call_stacks, "_MOST_STEPS", 5)
    monkeypatch.setattr(call_stacks, "_MOST_STACKS", 5)
    contents = look(tmp_path, [generated(number) for number in range(100)])
    assert len(contents.records[Stream.STACKS]) == 25
    assert len(contents.records[Stream.CALL_SAMPLES]) == 100
    assert contents.documents("stacks-end")[0]["cut"] > 50


def test_a_look_that_fails_is_counted_and_ends_it_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no frames")

    monkeypatch.setattr(call_stacks, "_walk", fail)
    journal = Journal(tmp_path / "a.journal", {"role": "worker"})
    sampler = StackSampler()
    sampler.interval = 0.001
    sampled = sampler.add(journal)
    thread = sampler._thread
    assert thread is not None
    thread.join(30)
    assert not thread.is_alive()
    sampler.remove(sampled)
    journal.close()
    contents = read_journal(journal.path)
    assert "failed" in contents.documents("unavailable")[0]["why"]
    assert contents.documents("stacks-end")[0]["failures"] >= 20
    # who comes later is told, too
    monkeypatch.setattr(call_stacks, "_sampler", sampler)
    later = Journal(tmp_path / "b.journal", {"role": "worker"})
    call_stacks.start_sampling(later, "dask")()
    later.close()
    contents = read_journal(later.path)
    assert "failed" in contents.documents("unavailable")[0]["why"]
    assert not contents.documents("stacks")


# ------------------------------------------------------------------------------ merging


def write_samples(folder: Path, workers: int = 3, samples: int = 400) -> None:
    """Write journals of workers that run two tasks after the other, with samples of them."""
    folder.mkdir()
    for number in range(workers):
        first = {"role": "worker", "hostname": "a", "pid": number, "clock": "c", "task_id_base": 0}
        journal = Journal(folder / f"worker-{number}.journal", first, alone=False)
        start, stop = journal.recorder(Stream.STARTS), journal.recorder(Stream.STOPS)
        call = journal.recorder(Stream.STACKS)
        sample = journal.recorder(Stream.CALL_SAMPLES)
        for stack in range(20):
            # workers meet the same calls in other orders
            name = (stack + number) % 20
            text = packed(Namer().name(recursing(1).__code__, f"m{name}"))
            parent = (stack - 1) & 0xFFFFFFFF if stack % 4 else 0xFFFFFFFF
            call(stack, parent, journal.string(text), name + 1)
        for row in range(samples):
            now = 10_000 * MS + row * 10 * MS
            if row % 10 == 0:
                start(now - 2 * MS, row // 10, journal.key(f"task-{number}-{row}"), 7)
            role = LOOP if row % 3 == 0 else TASK
            late = row % 50 in (10, 25)
            what = (100 if late else 10) * MS // SPAN_NS << SPAN_AT | LATE * late | role
            sample(now, row % 20, 8 if role == LOOP else 7, what)
            if row % 10 == 8:
                stop(now + MS, row // 10, journal.string("int||"), 0, 8)
        journal.close()


def plain(folder: Path) -> pd.DataFrame:
    with open_trace(folder) as trace:
        samples = samples_of(trace)
        keys = [*trace.tasks.sort_index()["key"].astype(str), None]
        samples["key"] = pd.Series([keys[row] for row in samples["task"]], dtype=object)
        # rows are others where there are other blocks
        samples = samples.drop(columns=["stack", "task"])
        return samples.sort_values(["process", "start"], ignore_index=True)


def test_trees_fall_together_and_samples_are_in_their_tasks(tmp_path: Path) -> None:
    write_samples(tmp_path / "journals")
    merge_journals(tmp_path / "journals").write(tmp_path / "trace.h5")
    with open_trace(tmp_path) as trace:
        table = trace.table("stacks")
        assert not table.duplicated().any()
        samples = samples_of(trace)
        assert len(samples) == 3 * 400
        tasks = trace.tasks.sort_index()
        of_tasks = samples["role"] == "task"
        assert (samples["task"][~of_tasks] == -1).all()
        assert set(samples["role"]) == {"task", "event loop"}
        assert sorted(set(samples["late"])) == [0, 1]
        for row in np.flatnonzero(of_tasks):
            process, when, span, task = (
                int(samples[name].iloc[row]) for name in ("process", "start", "span", "task")
            )
            inside = (tasks["process"] == process) & (tasks["start"] <= when)
            inside &= (tasks["stop"] >= when) | (tasks["stop"] < 0)
            assert task == (np.flatnonzero(inside)[0] if inside.any() else -1)
            if task >= 0:
                # where the look before was long ago a task gets no more than it had run
                since = when - int(tasks["start"].iloc[task])
                late = row // 3 % 50 in (10, 25)
                assert samples["late"].iloc[row] == late
                assert span == (max(10 * MS, since) if late else 10 * MS)
        assert len(trace.gaps[trace.gaps["kind"] == "unknown calls"]) == 0


def write_looks(path: Path, seconds: list[float], pause: float, count: int) -> None:
    """Write a journal of a thread that runs tasks without a pause, and of looks at it.

    Parameters
    ----------
    path
        The journal.
    seconds
        How long the tasks last, in turns.
    pause
        Seconds that the first task takes besides, without a look at it.
    count
        Number of turns.
    """
    first = {"role": "worker", "hostname": "a", "pid": 1, "clock": "c", "task_id_base": 0}
    journal = Journal(path, first, alone=False)
    start, stop = journal.recorder(Stream.STARTS), journal.recorder(Stream.STOPS)
    call = journal.recorder(Stream.STACKS)
    sample = journal.recorder(Stream.CALL_SAMPLES)
    for stack in range(2 * len(seconds)):  # of each kind of task one for each half of it
        text = packed(Frame(f"half {stack % 2} of kind {stack // 2}", "m", "m.py", Origin.OWN))
        call(stack, 0xFFFFFFFF, journal.string(text), 1)
    ends = np.cumsum([pause * (n == 0) + seconds[n % len(seconds)] for n in range(count)])
    begins = np.append(0, ends[:-1])
    for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        key = journal.key(f"kind{number % len(seconds)}-{number}")
        start(10_000 * MS + int(begin * 1e9), number, key, 7)
        stop(10_000 * MS + int(end * 1e9), number, journal.string("int||"), 0, 8)
    shift = np.random.default_rng(15).random(int(ends[-1] / 0.01) + 1)
    before = 0.0
    for now in (np.arange(len(shift)) + shift) * 0.01:
        if not pause + seconds[0] * bool(pause) < now < ends[-1]:
            continue
        row = int(np.searchsorted(ends, now))
        half = now - begins[row] > seconds[row % len(seconds)] / 2
        span = int((now - before) * 1e9) // SPAN_NS
        stack = 2 * (row % len(seconds)) + half
        sample(10_000 * MS + int(now * 1e9), stack, 7, span << SPAN_AT | TASK)
        before = now
    journal.close()


@pytest.mark.parametrize("ms", [(1.03, 1.71), (1.03, 7.1), (5.3, 40.7), (16.1, 203)])
def test_short_tasks_and_their_first_steps_count_as_much_as_others(
    tmp_path: Path, ms: tuple[float, float]
) -> None:
    (tmp_path / "journals").mkdir()
    seconds = [n / 1000 for n in ms]
    count = 2 * round(40 / sum(seconds))
    write_looks(tmp_path / "journals" / "worker.journal", seconds, 0.0, count)
    merge_journals(tmp_path / "journals").write(tmp_path / "trace.h5")
    with open_trace(tmp_path) as trace:
        samples = samples_of(trace)
    whole = samples["span"].sum()
    assert abs(whole / 40e9 - 1) < 0.01
    found = samples.groupby(samples["calls"].map(lambda calls: calls[0]))["span"].sum() / whole
    for kind, length in enumerate(seconds):
        share = length / sum(seconds) / 2
        # 1.17 samples say as much as one of equal weight: they are up to two intervals apart
        bound = 4 * np.sqrt(1.17 * share * (1 - share) / len(samples))
        for half in (0, 1):
            name = f"half {half} of kind {kind}"
            assert abs(found[name] - share) < bound, (name, found[name], share)


def test_a_task_that_began_after_a_long_pause_does_not_stand_for_that(tmp_path: Path) -> None:
    (tmp_path / "journals").mkdir()
    # a task held the GIL for 30 s: the next look is at the one after it
    write_looks(tmp_path / "journals" / "worker.journal", [0.004, 0.3], 30.0, 40)
    merge_journals(tmp_path / "journals").write(tmp_path / "trace.h5")
    with open_trace(tmp_path) as trace:
        samples = samples_of(trace)
    assert samples["span"].max() < 50 * MS
    assert len(samples) > 300


def test_a_merge_in_processes_and_in_many_blocks_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_samples(tmp_path / "journals")
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    merge_journals(tmp_path / "journals").write(tmp_path / "one" / "trace.h5")
    monkeypatch.setattr(merge, "SMALL_RUN", 0)
    merge_journals(tmp_path / "journals").write(tmp_path / "two" / "trace.h5")
    one, two = ((tmp_path / name / "trace.h5").read_bytes() for name in ("one", "two"))
    assert one == two
    monkeypatch.setattr(layout, "BLOCK_ROWS", 100)
    merge_journals(tmp_path / "journals").write(tmp_path / "three" / "trace.h5")
    with open_trace(tmp_path / "three") as trace:
        assert trace.rows("blocks") > 5
        whole = trace.table("call_samples")
        window = trace.table("call_samples", start=500 * MS, stop=900 * MS)
        wanted = whole[(whole["start"] >= 500 * MS) & (whole["start"] < 900 * MS)]
        assert len(window) == len(wanted) > 0
    pd.testing.assert_frame_equal(plain(tmp_path / "one"), plain(tmp_path / "three"))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_journal_keeps_what_is_whole_and_counts_the_rest(
    tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "journals"
    shutil.rmtree(folder, ignore_errors=True)
    write_samples(folder, workers=1)
    (path,) = folder.glob("*.journal")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        whole = read_journal(path)
    except JournalError:
        return
    merge_journals(folder).write(tmp_path / "trace.h5")
    with open_trace(tmp_path) as trace:
        samples = samples_of(trace)
        assert len(samples) == len(whole.records[Stream.CALL_SAMPLES])
        gaps = trace.gaps.set_index("kind")["count"]
        unknown = (samples["stack"] < 0).sum()
        assert gaps.get("unknown calls", 0) >= unknown
        assert samples["task"].max() < trace.rows("tasks") if len(samples) else True


@given(
    runs=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 50), st.integers(-1, 30)), max_size=12
    ),
    when=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 90)), max_size=12),
)
def test_the_task_of_a_time_is_the_last_one_that_began_and_had_not_ended(
    runs: list[tuple[int, int, int]], when: list[tuple[int, int]]
) -> None:
    # one that lies within another ends with it at the latest, as calls in a thread do
    runs.sort(key=lambda run: run[1])
    rows: list[tuple[int, int, int]] = []
    for thread, start, length in runs:
        if any(t == thread and b == start for t, b, _ in rows):
            continue
        around = [e for t, b, e in rows if t == thread and b <= start <= e]
        rows.append((thread, start, min([start + max(0, length), *around])))
    runs_of = np.array(rows, np.int64).reshape(-1, 3).T
    asked = np.array(when, np.int64).reshape(-1, 2).T
    found = tasks_at(*runs_of, *asked)
    for (which, moment), row in zip(when, found.tolist(), strict=True):
        running = [i for i, (t, b, e) in enumerate(rows) if t == which and b <= moment <= e]
        assert row == (running[-1] if running else -1)


def test_one_whose_end_is_not_known_ended_with_the_next_in_its_thread() -> None:
    thread, start, stop = np.array([1, 1, 1]), np.array([0, 10, 20]), np.array([-1, 15, -1])
    found = tasks_at(thread, start, stop, np.ones(5, np.int64), np.array([5, 12, 17, 20, 99]))
    assert found.tolist() == [0, 1, -1, 2, 2]


# ------------------------------------------------------------------------------ nsys


def test_nsys_is_asked_for_stacks_and_what_it_cannot_is_said(tmp_path: Path) -> None:
    def words(*extra: str, offered: bool | None = True) -> tuple[str, ...]:
        return choose_nsys(extra, True, None, stack_sampling(extra, offered)).arguments

    assert "--sample=none" in choose_nsys((), True).arguments
    whole = words()
    assert "--sample=process-tree" in whole
    assert "--sample=none" not in whole
    assert {"--python-sampling=true", "--python-sampling-frequency=100"} <= set(whole)
    for given_ in ("--sample=system-wide", "-snone"):
        assert [w for w in words(given_) if "sample" in w or w[:2] == "-s"] == [given_]
    assert words("--python-sampling=false").count("--python-sampling=true") == 0
    older = choose_nsys((), True, None, stack_sampling((), False))
    assert not any("python" in word for word in older.arguments)
    (sentence,) = older.reductions
    assert "--python-sampling" in sentence
    assert "--stacks dask" in sentence

    program = tmp_path / "nsys"
    for help_, offered in (("--python-sampling=\n", True), ("--sample=\n", False)):
        program.write_text(f"#!/bin/sh\nprintf '%s' '{help_}'\n")
        program.chmod(0o755)
        assert python_sampling(program) is offered
    assert python_sampling(tmp_path / "none") is None


def test_the_switch_reaches_every_plugin() -> None:
    plugin = WorkerTaskPlugin(directory="x", stacks="off", script="job.py")
    make, arguments = plugin.__reduce__()
    again = make(*arguments)
    assert (again.stacks, again.script) == ("off", "job.py")


def test_the_frames_of_a_thread_are_taken_in_order_and_nothing_of_them_stays() -> None:
    class Held:
        """Is a local variable of the thread."""

    entered, leave = threading.Event(), threading.Event()
    alive: list[weakref.ref[Held]] = []

    def blocking() -> None:
        held = Held()
        alive.append(weakref.ref(held))
        blocked()

    def blocked() -> None:
        entered.set()
        leave.wait(30.0)

    thread = threading.Thread(target=blocking)
    thread.start()
    assert entered.wait(30.0)
    ident = thread.ident
    assert ident is not None
    enabled = gc.isenabled()
    frames = call_stacks._frames_of(ident)
    names = [frame.f_code.co_name for frame in frames]
    at = names.index("blocked")
    assert names[at : at + 2] == ["blocked", "blocking"]
    assert names[-1] == "_bootstrap"
    assert [frame.f_back for frame in frames[:-1]] == frames[1:]
    del frames
    found = call_stacks._calls_of(ident, call_stacks._Codes())
    assert found is not None
    assert len(found[0]) == len(names)
    assert gc.isenabled() == enabled
    leave.set()
    thread.join()
    assert alive[0]() is None
    assert call_stacks._frames_of(ident) == []
    assert call_stacks._calls_of(ident, call_stacks._Codes()) is None


COLLECTED = """
import gc, sys, threading, time
from dasf_hpc.profile import call_stacks

class Cycle:
    def __init__(self):
        self.me = self

class Sleeps(Cycle):
    def __del__(self):
        time.sleep(1e-5)  # whoever waits for the GIL goes on

def call(deep):
    return call(deep - 1) if deep else deep

def other(deep, a=1, b=2, c=3):
    kept = [a, b, c]
    return other(deep - 1) if deep else kept

def work():
    while not over:
        for deep in (40, 3, 25, 7, 60, 1):
            call(deep)
            other(deep)

over = []
codes = call_stacks._Codes()
thread = threading.Thread(target=work, daemon=True)
thread.start()
sys.setswitchinterval(1e-5)
begin, looks = time.monotonic(), 0
while looks < 60 or (looks < 1000 and time.monotonic() < begin + 5.0):
    gc.disable()
    gc.collect()
    Sleeps()
    for _ in range(100):
        Cycle()
    # so many objects later garbage is collected: while one of the frames is made
    gc.set_threshold(110 + looks % 30, 1000, 1000)
    gc.enable()
    calls, _ = call_stacks._calls_of(thread.ident, codes)
    assert 3 < len(calls) < 80, len(calls)
    looks += 1
over.append(True)
thread.join()
"""


def test_garbage_that_is_collected_during_a_look_harms_nothing(tmp_path: Path) -> None:
    # Before Python 3.12, where a frame's object is made garbage may be collected first, and what
    # then runs may let the thread go on: the frame is gone, and its object is made of what is
    # there now.
    done = run(tmp_path, COLLECTED)
    assert (done.returncode, done.stderr) == (0, "")
