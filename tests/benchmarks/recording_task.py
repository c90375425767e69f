"""What recording costs a worker for each task, measured so that 1 us shows.

A task's life is played on the state machines of real workers, one for each arm: Dask's own events
for a task that is to be computed, is executed, and is let go, and between them Dask's own function
that runs it. The arms take turns, in a drawn order with each task; before every step the
processor's caches are taken by other code, as a worker that does nothing but tasks never has them
warm. Each step is timed in its thread's CPU time, and each arm's task is compared with the same
task of the worker without a plugin, so that what the machine does meanwhile drops out. The arm
"bare again" is a second worker without a plugin: what it shows is the error.

    python tests/benchmarks/recording_task.py [--tasks 1500] [--json FILE]

Not in it is what a network does, and what the recording's memory takes of the caches of tasks.
Instructions tell the same without any noise, and without what caches do; valgrind counts them:

    python tests/benchmarks/recording_task.py --instructions
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import distributed.worker
import numpy as np
from dask._task_spec import Task
from distributed import Scheduler, Worker
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.worker_state_machine import (
    ComputeTaskEvent,
    ExecuteSuccessEvent,
    FreeKeysEvent,
)

from dasf_hpc import GPUAnnotationPlugin, ResourceMonitor, WorkerTaskPlugin
from dasf_hpc.analysis.recording_cost import _Caches

ARMS = ("bare", "bare again", "empty plugin", "task plugin", "with ranges", "all three")
SHAPES = ("map", "tree", "array")

#: Tasks that are played before instructions are counted, and those of which they are.
UNCOUNTED, COUNTED = 60, 192


class Empty(WorkerPlugin):  # type: ignore[misc]
    """A plugin that is told and does nothing."""

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""


def plugins(arm: str, folder: Path, peer: Path | None) -> list[Any]:
    """Give what is attached in an arm."""
    if arm == "empty plugin":
        return [Empty()]
    if arm == "dasf-core":
        return [_peer(peer)]
    made: list[Any] = []
    if arm in ("task plugin", "with ranges", "all three"):
        made.append(WorkerTaskPlugin(directory=folder, stacks="off"))
    if arm in ("with ranges", "all three"):
        made.append(GPUAnnotationPlugin(directory=folder))
    if arm == "all three":
        made.append(ResourceMonitor.for_workers(100, directory=folder))
    return made


def _peer(path: Path | None) -> Any:
    """Give dasf-core's own plugin, of a file of its source (dasf/profiler/plugins/...)."""
    assert path is not None
    spec = importlib.util.spec_from_file_location("dasf_core_plugin", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WorkerTaskPlugin()


def one() -> int:
    """Be a task that does nothing."""
    return 1


class Played:
    """A real worker, on whose state machine tasks are played."""

    def __init__(self, worker: Any, run: Callable[..., Any]) -> None:
        self.state, self._run = worker.state, run
        # What a worker does with its state machine's instructions is not played.
        self._arguments: tuple[Any, ...] = ({}, worker.execution_state)
        self._rest = (worker.active_threads, worker.active_threads_lock, 0.0)

    def compute(self, key: Any, needs: list[Any], number: int) -> None:
        event = ComputeTaskEvent(
            key=key,
            run_id=number,
            who_has={other: [self.state.address] for other in needs},
            nbytes=dict.fromkeys(needs, 28),
            priority=(number,),
            run_spec=Task(key, one),
            resource_restrictions={},
            actor=False,
            annotations={},
            span_id=None,
            stimulus_id=f"compute-{number}",
        )
        self.state.handle_stimulus(event)

    def run(self, key: Any) -> Any:
        return self._run(self.state.tasks[key].run_spec, *self._arguments, key, *self._rest)

    def finish(self, key: Any, number: int, message: Any) -> None:
        event = ExecuteSuccessEvent(
            key=key,
            run_id=number,
            value=message["result"],
            start=message["start"],
            stop=message["stop"],
            nbytes=message["nbytes"],
            type=int,
            stimulus_id=f"finish-{number}",
        )
        self.state.handle_stimulus(event)

    def free(self, keys: list[Any], number: int) -> None:
        self.state.handle_stimulus(FreeKeysEvent(keys=keys, stimulus_id=f"free-{number}"))


def task_of(shape: str, number: int) -> tuple[Any, list[Any], list[Any]]:
    """Give a task's key, those it needs, and those that are let go after it."""

    def key(at: int) -> Any:
        if shape == "array":
            return (f"sum-{at // 64:032x}", at % 8, at // 8 % 8)
        return f"increment-{at:032x}"

    if shape == "map":
        return key(number), [], [key(number)]
    if shape == "tree":  # every third one sums up the two before
        if number % 3 < 2:
            return key(number), [], []
        pair = [key(number - 2), key(number - 1)]
        return key(number), pair, [*pair, key(number)]
    if number % 2 == 0:
        return key(number), [], []
    return key(number), [key(number - 1)], [key(number - 1), key(number)]


def play(played: Played, shape: str, number: int, step: Callable[..., Any]) -> None:
    """Play one task's life; `step` calls what is given to it."""
    key, needs, free = task_of(shape, number)
    step(played.compute, key, needs, number)
    message = step(played.run, key)
    step(played.finish, key, number, message)
    if free:
        step(played.free, free, number)


@contextlib.asynccontextmanager
async def workers(arms: list[str], folder: Path, peer: Path | None) -> Any:
    """Start a scheduler and a worker an arm, all in this process."""
    bare = distributed.worker._run_task
    async with contextlib.AsyncExitStack() as stack:
        scheduler = await stack.enter_async_context(
            Scheduler(dashboard=False, protocol="inproc://", port=0)
        )
        made = {}
        for number, arm in enumerate(arms):
            worker = Worker(scheduler.address, name=arm, nthreads=1, memory_limit=0)
            await stack.enter_async_context(worker)
            for plugin in plugins(arm, folder / str(number), peer):
                await worker.plugin_add(plugin, name=f"{type(plugin).__name__}-{number}")
            recorded = arm in ("task plugin", "with ranges", "all three")
            made[arm] = Played(worker, distributed.worker._run_task if recorded else bare)
        yield made


async def measure(
    arms: list[str], shape: str, tasks: int, peer: Path | None
) -> dict[str, list[float]]:
    """Give, for each arm, how much longer each task took than the bare worker's, us."""
    spent: dict[str, list[int]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as folder:
        async with workers(arms, Path(folder), peer) as played:
            gc.collect()
            gc.disable()
            order, caches = np.random.default_rng(1), _Caches()
            total = 0

            def step(function: Callable[..., Any], *args: Any) -> Any:
                nonlocal total
                caches.take()
                begin = time.thread_time_ns()
                answer = function(*args)
                total += time.thread_time_ns() - begin
                return answer

            for number in range(tasks):
                # not in turn: each would always come after the same other one
                for arm in order.permutation(arms).tolist():
                    total = 0
                    play(played[arm], shape, number, step)
                    spent[arm].append(total)
                if number % 100 == 0:  # let the loop run what is due
                    await asyncio.sleep(0)
            gc.enable()
    # a tree's and an array's tasks differ: whole groups are compared
    group = {"map": 1, "tree": 3, "array": 2}[shape]
    whole = tasks // group * group
    sums = {a: np.array(ns[:whole]).reshape(-1, group).mean(axis=1) for a, ns in spent.items()}
    return {a: ((sums[a] - sums["bare"]) / 1e3).tolist() for a in arms if a != "bare"}


def interval(values: list[float]) -> tuple[float, float, float]:
    """Give the median and its 95 % interval, by the order statistics of the sample."""
    ordered = np.sort(np.array(values))
    half = 0.98 * np.sqrt(len(ordered))
    low, high = (int(np.clip(len(ordered) / 2 + s * half, 0, len(ordered) - 1)) for s in (-1, 1))
    return float(np.median(ordered)), float(ordered[low]), float(ordered[high])


async def plain(arm: str, shape: str, tasks: int, peer: Path | None, switch: Path) -> None:
    """Play an arm's tasks, of which all but the first are counted by the valgrind around it."""
    toggle = ctypes.CDLL(str(switch)).toggle
    # Dask's own profile looks at threads by the clock, which a busy machine makes more often a task
    dask.config.set({"distributed.worker.profile.enabled": False})
    with tempfile.TemporaryDirectory() as folder:
        async with workers([arm], Path(folder), peer) as played:
            gc.disable()
            for number in range(UNCOUNTED + tasks):
                if number == UNCOUNTED:
                    toggle()
                play(played[arm], shape, number, lambda function, *args: function(*args))
            toggle()


def compiled_switch(folder: Path) -> Path:
    """Compile what has valgrind begin and end to count; it comes with valgrind's headers."""
    source, product = folder / "switch.c", folder / "switch.so"
    source.write_text(
        "#include <valgrind/callgrind.h>\nvoid toggle(void) { CALLGRIND_TOGGLE_COLLECT; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", product, source], check=True)
    return product


def instructions(arm: str, shape: str, tasks: int = COUNTED, peer: Path | None = None) -> float:
    """Give the instructions of one task, with Dask's, as valgrind's callgrind counts them.

    Raises
    ------
    FileNotFoundError
        If there is no valgrind.
    """
    program = shutil.which("valgrind")
    if program is None:
        raise FileNotFoundError("valgrind: apt-get install valgrind")
    more = [] if peer is None else ["--peer", str(peer)]
    with tempfile.TemporaryDirectory() as folder:
        switch = compiled_switch(Path(folder))
        done = subprocess.run(
            [
                *(program, "--tool=callgrind", "--collect-atstart=no"),
                f"--callgrind-out-file={folder}/out",
                *(sys.executable, __file__, *more),
                *("--plain", arm, shape, str(tasks), str(switch)),
            ],
            env=os.environ | {"PYTHONHASHSEED": "0"},
            capture_output=True, text=True, check=False, timeout=580,
        )  # fmt: skip
    found = re.search(r"Collected : (\d+)", done.stderr)
    if found is None or done.returncode:
        raise RuntimeError(f"valgrind counted nothing: {done.stderr[-3000:]}")
    return int(found[1]) / tasks


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1500)
    parser.add_argument("--shapes", nargs="*", default=SHAPES, choices=SHAPES)
    parser.add_argument("--peer", type=Path, help="dasf-core's file with its WorkerTaskPlugin")
    parser.add_argument("--instructions", action="store_true", help="count them, by valgrind")
    parser.add_argument("--plain", nargs=4, metavar=("ARM", "SHAPE", "TASKS", "SWITCH"))
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    given = parser.parse_args()
    arms = [*ARMS, *(["dasf-core"] if given.peer else [])]
    if given.plain:
        arm, shape, tasks, switch = given.plain
        asyncio.run(plain(arm, shape, int(tasks), given.peer, Path(switch)))
        return 0
    figures: dict[str, Any] = {}
    logging.getLogger("distributed").setLevel(logging.ERROR)
    for shape in given.shapes:
        if given.instructions:
            counted = {
                arm: instructions(arm, shape, peer=given.peer)
                for arm in arms
                if arm != "bare again"
            }
            for arm, count in counted.items():
                print(f"{shape:6} {arm:14}{(count - counted['bare']) / 1e3:8.1f} k instructions")
            figures[shape] = {arm: count - counted["bare"] for arm, count in counted.items()}
            continue
        for arm, values in asyncio.run(measure(arms, shape, given.tasks, given.peer)).items():
            median, low, high = interval(values)
            print(f"{shape:6} {arm:14}{median:8.2f} us a task [{low:.2f} to {high:.2f}]")
            figures.setdefault(shape, {})[arm] = {"us": median, "low": low, "high": high}
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
