"""A seeded generator of synthetic runs: real journals, written by the real writer, known answers.

A run has one true time, the scheduler's CLOCK_MONOTONIC. Every node reads it through a clock of its
own (offset of up to days, drift of up to 50 ppm) and a wall clock of its own (off by milliseconds);
what the journals hold is what those clocks would have shown.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dasf_hpc.profile.journal import STATES, STATUSES, Journal, Stream

#: True time at which a run begins, ns: a scheduler's host that has been up for a day.
BEGIN = 86_400_000_000_000
#: UTC at BEGIN, ns.
BEGIN_UTC = 1_795_000_000_000_000_000

_STATE = {state: code for code, state in enumerate(STATES)}


def _states(start: str, finish: str) -> int:
    return _STATE[start] << 4 | _STATE[finish]


EXECUTE = (
    _states("released", "waiting"),
    _states("waiting", "ready"),
    _states("ready", "executing"),
)
FETCH = (_states("released", "fetch"), _states("fetch", "flight"))
FETCHED = _states("flight", "memory")
FINISH = tuple(_states("executing", status) for status in STATUSES)
RELEASE = _states("memory", "released")
FORGET = _states("released", "forgotten")
FAILED_RELEASE = _states("error", "released")
RESCHEDULED_RELEASE = _states("rescheduled", "released")


@dataclass(frozen=True)
class Clock:
    """A node's clocks: what they show at a true time."""

    identity: str
    offset: int
    drift: float
    utc_error: int

    def local(self, true: int) -> int:
        """Give what CLOCK_MONOTONIC shows, ns."""
        since = true - BEGIN
        return true + self.offset + round(since * self.drift)

    def utc(self, true: int) -> int:
        """Give what the wall clock shows, ns since 1970."""
        return BEGIN_UTC + true - BEGIN + self.utc_error


@dataclass
class Execution:
    """One execution as it truly was; times are true ns, ``stop`` is -1 for one that was lost."""

    id: int
    key: str
    worker: str
    start: int
    stop: int
    state: str
    nbytes: int
    result: str


@dataclass
class SyntheticRun:
    """What was written, and what a merge must find.

    Attributes
    ----------
    journals
        The folder.
    clocks
        Every node's clocks by host name; ``head`` is the scheduler's.
    executions
        Every execution, in no order.
    edges
        Pairs (key, dependency).
    memory
        By worker's address: true time, managed bytes, keys in memory after each change.
    transitions
        Their number.
    workers
        Addresses by name of the worker.
    killed
        Addresses of workers that were killed.
    """

    journals: Path
    clocks: dict[str, Clock] = field(default_factory=dict)
    executions: list[Execution] = field(default_factory=list)
    edges: set[tuple[str, str]] = field(default_factory=set)
    memory: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)
    transitions: int = 0
    workers: dict[str, str] = field(default_factory=dict)
    killed: list[str] = field(default_factory=list)


def write_run(
    journals: Path,
    *,
    seed: int = 0,
    nodes: int = 2,
    workers: int = 2,
    tasks: int = 50,
    gpus: int = 0,
    killed: int = 0,
    failing: float = 0.0,
    rescheduled: float = 0.0,
    dependencies: int = 2,
    scheduler: bool = True,
    probes: bool = True,
    anchors: bool = True,
    answers: bool = True,
) -> SyntheticRun:
    """Write the journals of a run.

    Parameters
    ----------
    journals
        A folder, made when missing.
    seed
        Runs with the same seed and numbers are equal up to the journals' random ids.
    nodes, workers, tasks
        Nodes, workers a node, tasks a worker.
    gpus
        GPUs a node.
    killed
        Workers that are killed in the middle of their last task, which another one then executes.
    failing, rescheduled
        Chance that an execution fails, or is given back, and is then repeated.
    dependencies
        Dependencies a task.
    scheduler, probes, anchors
        Whether there is a scheduler's journal, round trips to it, readings of UTC.
    answers
        Whether to keep the answers (not wanted for a benchmark).

    Returns
    -------
    SyntheticRun
    """
    chance = random.Random(seed)
    run = SyntheticRun(journals)
    run.clocks = make_clocks(nodes, chance)
    end = BEGIN
    plans = []
    for node in range(nodes):
        name = f"node{node + 1}"
        clock = run.clocks[name]
        for number in range(workers):
            plan = Plan(node * workers + number, name, clock, tasks, seed, failing, rescheduled)
            plans.append(plan)
            end = max(end, plan.end)
    for plan in plans[:killed]:
        plan.killed = True
    for plan in plans:
        _write_worker(run, plan, plans, end, dependencies, gpus, probes, anchors, answers)
    for node in range(nodes):
        name = f"node{node + 1}"
        here = [plan for plan in plans if plan.node == name]
        write_sampler(run, name, here, end, gpus, anchors, seed)
    if scheduler:
        write_scheduler(run, plans, end, anchors)
    return run


def make_clocks(nodes: int, chance: random.Random) -> dict[str, Clock]:
    """Give clocks by host name: the scheduler's, which is true, and each node's own."""
    clocks = {"head": Clock("head/boot-0/time:[1]", 0, 0.0, 0)}
    for node in range(1, nodes + 1):
        clocks[f"node{node}"] = Clock(
            f"node{node}/boot-{node}/time:[1]",
            chance.randint(-80_000, 500_000) * 1_000_000_000 + chance.randint(0, 10**9),
            chance.uniform(-5e-5, 5e-5),
            chance.randint(-5_000_000, 5_000_000),
        )
    return clocks


def _token(*parts: int) -> str:
    """Give 128 random bits as Dask's tokens are."""
    return hashlib.md5(repr(parts).encode(), usedforsecurity=False).hexdigest()


class Plan:
    """When one worker executes what, in true time."""

    def __init__(
        self,
        number: int,
        node: str,
        clock: Clock,
        tasks: int,
        seed: int,
        failing: float,
        rescheduled: float,
    ) -> None:
        random_numbers = np.random.default_rng([seed, number])
        self.number = number
        self.node = node
        self.clock = clock
        self.name = f"worker-{number}"
        self.address = f"tcp://10.0.0.{number + 1}:{40000 + number}"
        self.pid = 1000 + number
        self.base = (number + 1) << 24
        self.killed = False
        status = random_numbers.choice(
            3, tasks, p=[1 - failing - rescheduled, failing, rescheduled]
        )
        #: Position of the task of each execution: a failed one is executed again.
        self.task = np.repeat(np.arange(tasks), 1 + (status != 0))
        self.status = np.zeros(len(self.task), int)
        first = np.searchsorted(self.task, np.arange(tasks))
        self.status[first] = status
        count = len(self.task)
        duration = np.maximum(1000, random_numbers.lognormal(13, 1.5, count)).astype(np.int64)
        pause = 20_000 + random_numbers.exponential(50_000, count).astype(np.int64)
        self.stops = BEGIN + 1_000_000_000 + np.cumsum(duration + pause)
        self.starts = self.stops - duration
        self.sizes = random_numbers.integers(8, 1 << 20, tasks) * 8
        self.end = int(self.stops[-1]) if count else BEGIN + 1_000_000_000

    def key(self, task: int) -> Any:
        """Give the key of a task: tuples of dask.array, strings of delayed, the odd one."""
        kind = (task + self.number) % 8
        if kind < 5:
            layer = task // 500
            token = _token(self.number, layer)
            return (f"{('add', 'sum-partial', 'getitem')[layer % 3]}-{token}", task % 500, kind)
        if kind == 7 and task < 16:
            return (
                f"odd {self.number} {task}\n\x00'\N{SNOWMAN}".encode()
                if task < 8
                else (f"odd {self.number} {task}\n\x00'\N{SNOWMAN}")
            )
        return f"inc-{_token(self.number, -task)}"

    def result(self, task: int) -> str:
        """Give the text that describes the task's result."""
        if task % 3:
            return f"numpy.ndarray|float64|({task % 7 + 1}, 100)"
        return "int||" if task % 2 else f"numpy.ndarray||S{task % 5 + 1}|(3,)"


def journal_meta(
    role: str, node: str, pid: int, clock: Clock, start: int, base: int
) -> dict[str, Any]:
    """Give what is known of a process at its start."""
    return {
        "role": role,
        "hostname": node,
        "pid": pid,
        "clock": clock.identity,
        "task_id_base": base,
        "start": start,
        "python": "3.11.7",
        "dask": "2026.8.0",
        "distributed": "2026.8.0",
        "dasf_hpc": "0.1.0",
    }


def worker_meta(plan: Plan, gpus: int) -> dict[str, Any]:
    """Give what is known of a worker."""
    mine = {"uuid": f"GPU-{plan.node}-0", "index": 0, "name": "Synthetic GPU"}
    return {
        "kind": "worker",
        "name": plan.name,
        "address": plan.address,
        "nthreads": 1,
        "memory_limit": 4 << 30,
        "batch_job": str(500 + plan.number),
        "gpus": [mine] if gpus else [],
        "gpu_status": "ok" if gpus else "no GPU",
    }


def _journal(run: SyntheticRun, role: str, node: str, pid: int, start: int, base: int) -> Journal:
    return Journal(
        run.journals / f"{role}-{node}-{pid}.journal",
        journal_meta(role, node, pid, run.clocks[node], start, base),
    )


def clock_records(
    journal: Journal,
    clock: Clock,
    end: int,
    seed: int,
    probes: bool,
    anchors: bool,
    closed: bool = True,
) -> None:
    """Write round trips (asymmetric, now and then slow) and UTC readings, every five seconds."""
    chance = random.Random(seed)
    probe = journal.recorder(Stream.PROBES)
    anchor = journal.recorder(Stream.ANCHORS)
    times = [BEGIN + 1_000_000 * i for i in range(8)]
    times += [BEGIN + 5_000_000_000 * i for i in range(1, 1 + (end - BEGIN) // 5_000_000_000)]
    times += [end + 1_000_000 * i for i in range(1, 4) if closed]
    for true in times:
        width = chance.randint(60, 900)
        if anchors:
            anchor(clock.local(true), clock.utc(true + width // 2), clock.local(true + width))
        if probes:
            there, back = (60_000 + round(chance.expovariate(1 / 50_000)) for _ in range(2))
            asked = true + 10_000
            answered = asked + there + 20_000
            probe(clock.local(asked), asked + there, answered, clock.local(answered + back))


def _write_worker(
    run: SyntheticRun,
    plan: Plan,
    plans: list[Plan],
    end: int,
    dependencies: int,
    gpus: int,
    probes: bool,
    anchors: bool,
    answers: bool,
) -> None:
    chance = random.Random(plan.base)
    local = plan.clock.local
    journal = _journal(run, "worker", plan.node, plan.pid, local(BEGIN), plan.base)
    run.workers[plan.name] = plan.address
    journal.meta(worker_meta(plan, gpus))
    until = plan.end if plan.killed else end
    clock_records(journal, plan.clock, until, plan.base, probes, anchors, not plan.killed)

    transition = journal.transition_recorder()
    started = journal.recorder(Stream.STARTS)
    stopped = journal.recorder(Stream.STOPS)
    stored = journal.recorder(Stream.STORED)
    edge = journal.recorder(Stream.EDGES)
    activity = journal.recorder(Stream.ACTIVITIES)
    transfer = journal.recorder(Stream.TRANSFERS)
    reschedule = journal.recorder(Stream.RESCHEDULES)
    memory = _Memory(transition, local)
    count = len(plan.task)
    sequence = 0
    ids: dict[Any, int] = {}

    def identify(key: Any) -> int:
        number = ids.get(key)
        if number is None:
            number = ids[key] = journal.key(key)
        return number

    for position in range(count):
        task, status = int(plan.task[position]), int(plan.status[position])
        start, stop = int(plan.starts[position]), int(plan.stops[position])
        key, size = plan.key(task), int(plan.sizes[task])
        number = identify(key)
        # what it needs: tasks of this worker, and now and then of another that has finished it
        for _ in range(min(dependencies, task)):
            if chance.random() < 0.1 and len(plans) > 1:
                other = plans[chance.randrange(len(plans))]
                done = int(np.searchsorted(other.stops, start - 15_000)) - 1
                # its last execution was given up where it was killed
                if other is plan or done < 0 or other.status[done] or other.killed:
                    continue
                needed_task = int(other.task[done])
                needed = other.key(needed_task)
                needed_size = int(other.sizes[needed_task])
                if needed not in memory:
                    fetched = identify(needed)
                    for code in FETCH:
                        transition(local(start - 15_000), fetched, code)
                    stored(local(start - 12_000), fetched, needed_size)
                    memory.enter(start - 12_000, needed, fetched, needed_size, FETCHED)
                    span = local(start - 14_000), local(start - 13_000)
                    peer = journal.string(other.address)
                    transfer(*span, needed_size, peer, 1, 0)
                    activity(*span, fetched, journal.string("transfer"), peer)
            else:
                needed = plan.key(chance.randrange(max(0, task - 50), task))
            edge(number, identify(needed))
            if answers:
                run.edges.add((str(needed), str(key)))
        for code in EXECUTE:
            transition(local(start - 5_000), number, code)
        sequence += 1
        started(local(start), sequence, number, 70_000 + plan.number)
        lost = plan.killed and position == count - 1
        if not lost:
            result = plan.result(task) if status == 0 else "builtins.ValueError"
            stopped(local(stop), sequence, journal.string(result), status, (size, 0, 0)[status])
            if status == 0:
                memory.enter(stop + 5_000, key, number, size, FINISH[0])
            else:
                transition(local(stop + 5_000), number, FINISH[status])
                transition(
                    local(stop + 6_000),
                    number,
                    FAILED_RELEASE if status == 1 else RESCHEDULED_RELEASE,
                )
                memory.transitions += 2
                if status == 2:
                    reschedule(local(stop + 5_000), number, journal.string("reschedule"))
            if task % 8 == 0:
                span = local(stop + 1_000), local(stop + 2_000)
                activity(*span, number, journal.string("disk-write"), 0xFFFFFFFF)
        memory.transitions += len(EXECUTE)
        memory.release(stop + 8_000, keep=20)
        if answers:
            run.executions.append(
                Execution(
                    plan.base + sequence,
                    str(key),
                    plan.address,
                    start,
                    -1 if lost else stop,
                    "lost" if lost else STATUSES[status],
                    size if status == 0 and not lost else -1,
                    "" if status or lost else plan.result(task),
                )
            )
    _repeat_lost(run, plan, plans, end, journal, memory, sequence, answers)
    run.transitions += memory.transitions
    if answers:
        run.memory[plan.address] = memory.changes
    if plan.killed:
        run.killed.append(plan.address)
        journal.flush()
        return  # never closed
    journal.close({"time": local(end + 50_000_000)})


def _repeat_lost(
    run: SyntheticRun,
    plan: Plan,
    plans: list[Plan],
    end: int,
    journal: Journal,
    memory: _Memory,
    sequence: int,
    answers: bool,
) -> None:
    """Execute, on the last worker, what the killed ones were at."""
    if plan is not plans[-1] or plan.killed:
        return
    started = journal.recorder(Stream.STARTS)
    stopped = journal.recorder(Stream.STOPS)
    local = plan.clock.local
    for turn, other in enumerate(p for p in plans if p.killed and len(p.task)):
        task = int(other.task[-1])
        key, size = other.key(task), int(other.sizes[task])
        number = journal.key(key)
        start = end + 10_000_000 + turn * 1_000_000
        sequence += 1
        for code in EXECUTE:
            memory.transition(local(start - 5_000), number, code)
        memory.transitions += len(EXECUTE)
        started(local(start), sequence, number, 70_000 + plan.number)
        stopped(local(start + 500_000), sequence, journal.string(other.result(task)), 0, size)
        memory.enter(start + 505_000, key, number, size, FINISH[0])
        if answers:
            run.executions.append(
                Execution(
                    plan.base + sequence,
                    str(key),
                    plan.address,
                    start,
                    start + 500_000,
                    "memory",
                    size,
                    other.result(task),
                )
            )


class _Memory:
    """What a worker holds, written as transitions and kept as the answer."""

    def __init__(
        self, transition: Callable[[int, int, int], None], local: Callable[[int], int]
    ) -> None:
        self.transition = transition
        self.transitions = 0
        self.changes: list[tuple[int, int, int]] = []
        self._local = local
        self._held: deque[tuple[Any, int, int]] = deque()
        self._keys: set[Any] = set()
        self._managed = 0

    def __contains__(self, key: Any) -> bool:
        return key in self._keys

    def enter(self, true: int, key: Any, number: int, size: int, states: int) -> None:
        self.transition(self._local(true), number, states)
        self.transitions += 3 if states == FETCHED else 1
        self._held.append((key, number, size))
        self._keys.add(key)
        self._managed += size
        self.changes.append((true, self._managed, len(self._held)))

    def release(self, true: int, keep: int) -> None:
        while len(self._held) > keep:
            key, number, size = self._held.popleft()
            self._keys.discard(key)
            self.transition(self._local(true), number, RELEASE)
            self.transition(self._local(true), number, FORGET)
            self.transitions += 2
            self._managed -= size
            self.changes.append((true, self._managed, len(self._held)))


def write_sampler(
    run: SyntheticRun, node: str, plans: list[Plan], end: int, gpus: int, anchors: bool, seed: int
) -> None:
    clock = run.clocks[node]
    local = clock.local
    journal = _journal(run, "sampler", node, 900, local(BEGIN), 0)
    journal.meta({"kind": "node", "hostname": node, "cpus": 16, "memory": 64 << 30})
    journal.meta(
        {
            "kind": "gpus",
            "gpus": [
                {
                    "index": i,
                    "uuid": f"GPU-{node}-{i}",
                    "name": "Synthetic GPU",
                    "memory": 80 << 30,
                }
                for i in range(gpus)
            ],
            "status": "ok" if gpus else "no device",
        }
    )
    clock_records(journal, clock, end, seed, False, anchors)
    node_sample = journal.recorder(Stream.NODE_SAMPLES)
    gpu_sample = journal.recorder(Stream.GPU_SAMPLES)
    process_sample = journal.recorder(Stream.PROCESS_SAMPLES)
    nan = float("nan")
    for turn, true in enumerate(range(BEGIN, end, 100_000_000)):
        now = local(true)
        counted = turn * 1000
        node_sample(now, 50.0, 8 << 30, 56 << 30, 0, counted, counted, counted, counted)
        for gpu in range(gpus):
            gpu_sample(now, gpu, 90.0, 40.0, 1 << 30, 300.0, 60.0, 1400.0, 1200.0, nan, nan, -1, -1)
        for plan in plans:
            process_sample(now, plan.pid, 100.0, 0xFFFFFFFF, 4, 1 << 30)
    journal.close({"time": local(end)})


def write_scheduler(run: SyntheticRun, plans: list[Plan], end: int, anchors: bool) -> None:
    journal = _journal(run, "scheduler", "head", 100, BEGIN, 0)
    clock_records(journal, run.clocks["head"], end, 0, False, anchors)
    for plan in plans:
        place = {
            "address": plan.address,
            "name": plan.name,
            "hostname": plan.node,
            "pid": plan.pid,
        }
        journal.meta({"kind": "worker-added", "time": BEGIN + 1_000, **place})
        removed = plan.end if plan.killed else end + 60_000_000
        journal.meta({"kind": "worker-removed", "time": removed, **place})
    journal.close({"time": end + 100_000_000})


@dataclass(frozen=True)
class PlainWorker:
    """A worker process of which everything is said; times are true ns.

    Attributes
    ----------
    pid
        Process id; ids of its tasks are 1000 times that, and from 1 on.
    tasks
        Thread, start and stop of each; -1: it never stopped.
    gpus
        UUID and index of each of its GPUs.
    """

    pid: int
    tasks: list[tuple[int, int, int]]
    gpus: list[tuple[str, int]]

    def task_id(self, number: int) -> int:
        """Give the id of a task."""
        return 1000 * self.pid + 1 + number


def write_workers(journals: Path, workers: list[PlainWorker], hostname: str = "node7") -> None:
    """Write the journals of some workers and their scheduler on one host, whose clock is true."""
    journals.mkdir(parents=True, exist_ok=True)
    run = SyntheticRun(journals, {hostname: Clock(f"clock-{hostname}", 0, 0.0, 0)})
    scheduler = _journal(run, "scheduler", hostname, 1, BEGIN, 0)
    clock_records(scheduler, run.clocks[hostname], BEGIN, 1, False, True)
    scheduler.close({"time": BEGIN + 10**9})
    for worker in workers:
        journal = _journal(run, "worker", hostname, worker.pid, BEGIN, worker.task_id(-1))
        gpus = [{"uuid": uuid, "index": index} for uuid, index in worker.gpus]
        journal.meta({"kind": "worker", "name": str(worker.pid), "gpus": gpus})
        clock_records(journal, run.clocks[hostname], BEGIN, worker.pid, False, True)
        started = journal.recorder(Stream.STARTS)
        stopped = journal.recorder(Stream.STOPS)
        moments: list[tuple[int, bool, tuple[int, ...]]] = []
        for sequence, (thread, start, stop) in enumerate(worker.tasks, 1):
            key = journal.key(("task", worker.pid, sequence))
            moments.append((start, True, (sequence, key, thread)))
            if stop >= 0:
                result = journal.string("builtins.int")
                moments.append((stop, False, (sequence, result, 0, 28)))
        for time, begins, record in sorted(moments):
            (started if begins else stopped)(time, *record)
        journal.close({"time": BEGIN + 10**9})
