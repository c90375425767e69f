"""Show, while it runs: a run's nodes, workers and rate, read from what it writes.

Nothing of the run is asked and nothing of it is written: only its files are read, of the journals
what is new.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from dasf_hpc.launch.look import read_now
from dasf_hpc.manifest import Manifest, find_run, run_state
from dasf_hpc.profile.journal import STATUSES, Stream
from dasf_hpc.profile.tail import JournalTail
from dasf_hpc.runs import state_now
from dasf_hpc.show.fit import Column, Kind, fitted
from dasf_hpc.show.progress import can_draw, cut, live_lines, one_line
from dasf_hpc.steps import Now
from dasf_hpc.trace.names import natural, short_hosts, short_workers
from dasf_hpc.units import bytes_text, clock_text, count_text, share_text, three_digits

#: Over how many seconds the rate of tasks is taken.
RATE_S = 10.0

#: Workers listed; of more, the nodes are enough.
LISTED = 32

#: States of a run that is not over.
LIVE = ("queued", "running")

#: Seconds between two questions to the batch scheduler about a head that waits.
ASK_S = 15.0

_STREAMS = (
    Stream.META,
    Stream.STARTS,
    Stream.STOPS,
    Stream.NODE_SAMPLES,
    Stream.GPU_SAMPLES,
    Stream.PROCESS_SAMPLES,
)


@dataclass
class GpuNow:
    """A GPU's latest sample; None: not available."""

    index: int
    name: str
    utilization: float | None = None
    memory_used: int | None = None
    power: float | None = None


@dataclass
class NodeNow:
    """A node's latest sample; cpu in %, memory in bytes; ``short`` is what it is called here."""

    hostname: str
    cpu: float | None = None
    memory_used: int | None = None
    memory: int | None = None
    gpus: list[GpuNow] = field(default_factory=list)
    short: str = ""


@dataclass
class WorkerNow:
    """A worker: executions so far and now, and its resident memory in bytes.

    ``short`` and ``node`` are what it and its node are called here.
    """

    name: str
    hostname: str
    pid: int
    executing: int = 0
    done: int = 0
    failed: int = 0
    memory: int | None = None
    ended: bool = False
    short: str = ""
    node: str = ""


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment.

    Attributes
    ----------
    time
        Seconds of the epoch.
    run, state, step
        Its name; running, complete, partial, failed or abandoned; what it is at.
    waiting_for
        Why workers are not there yet, as the batch scheduler says; or what tasks wait for that no
        worker has.
    elapsed
        Seconds since it was submitted.
    batch_jobs
        Ids of its node jobs.
    workers_expected
        Workers that were asked for; None: not known.
    executing, done, failed
        Executions now and so far.
    rate
        Tasks that ended per second, over the last 10 s.
    nodes, workers
        Each node and worker that has recorded anything, in the order of their names.
    now
        What the run itself tells of its tasks; None where it does not, as it has not begun, is
        over, or another version made it.
    """

    time: float
    run: str
    state: str
    step: str
    waiting_for: str
    elapsed: float | None
    batch_jobs: list[str]
    workers_expected: int | None
    executing: int
    done: int
    failed: int
    rate: float
    nodes: list[NodeNow]
    workers: list[WorkerNow]
    now: Now | None = None


class Watch:
    """Follows a run by its files.

    Parameters
    ----------
    run
        The run's directory.

    Raises
    ------
    RunDirectoryError
        If there is no run.
    """

    def __init__(self, run: Path) -> None:
        self.directory = find_run(run)
        self._tails: dict[Path, JournalTail] = {}
        self._headers: dict[Path, dict[str, Any]] = {}
        self._workers: dict[Path, WorkerNow] = {}
        self._nodes: dict[str, NodeNow] = {}
        self._memory: dict[tuple[str, int], int] = {}
        self._done: deque[tuple[float, int]] = deque()
        self._ask_at = 0.0

    def _state(self) -> str:
        """Give the state; the batch scheduler is not asked for a waiting head at every look."""
        state = run_state(self.directory)
        if state == "queued" and time.monotonic() >= self._ask_at:
            state = state_now(self.directory)
            self._ask_at = time.monotonic() + ASK_S
        return state

    def look(self) -> Snapshot:
        """Read what is new and say how the run is."""
        # before its files are read: what is read after the end is complete
        state = self._state()
        content = Manifest(self.directory).content
        for path in sorted((self.directory / "journals").glob("*.journal")):
            tail = self._tails.setdefault(path, JournalTail(path, _STREAMS))
            with contextlib.suppress(OSError):
                records, documents = tail.read()
                for document in documents:
                    self._take_document(path, document)
                self._take_records(path, records)
        for worker in self._workers.values():
            worker.memory = self._memory.get((worker.hostname, worker.pid))
        nodes, workers = self._named()
        done = sum(worker.done for worker in workers)
        now = time.time()
        shape = content.get("shape") or {}
        jobs, per_node = shape.get("nodes"), shape.get("workers_per_node")
        expected = None
        if isinstance(jobs, int) and isinstance(per_node, int):
            expected = jobs * per_node
        started = content.get("started")
        ended = content.get("ended") if state not in LIVE else None
        return Snapshot(
            time=now,
            run=self.directory.name,
            state=state,
            step=str(content.get("state", "")),
            waiting_for=str(content.get("waiting_for") or ""),
            elapsed=(ended or now) - started if isinstance(started, int | float) else None,
            batch_jobs=[str(job) for job in content.get("batch_jobs", [])],
            workers_expected=expected,
            executing=sum(worker.executing for worker in workers if not worker.ended),
            done=done,
            failed=sum(worker.failed for worker in workers),
            rate=self._rate(now, done),
            nodes=nodes,
            workers=workers,
            now=read_now(self.directory) if state == "running" else None,
        )

    def _named(self) -> tuple[list[NodeNow], list[WorkerNow]]:
        """Give nodes and workers with their short names, in the order of these."""
        nodes, workers = list(self._nodes.values()), list(self._workers.values())
        hosts = list(dict.fromkeys([*(n.hostname for n in nodes), *(w.hostname for w in workers)]))
        hosts_short = dict(zip(hosts, short_hosts(hosts), strict=True))
        for node in nodes:
            node.short = hosts_short[node.hostname]
        names = short_workers([worker.name for worker in workers])
        for worker, name in zip(workers, names, strict=True):
            worker.short, worker.node = name, hosts_short[worker.hostname]
        nodes.sort(key=lambda node: natural(node.short))
        workers.sort(key=lambda worker: (natural(worker.node), natural(worker.short)))
        return nodes, workers

    def _rate(self, now: float, done: int) -> float:
        self._done.append((now, done))
        while len(self._done) > 2 and self._done[1][0] <= now - RATE_S:
            self._done.popleft()
        (first, before), (last, after) = self._done[0], self._done[-1]
        return (after - before) / (last - first) if last > first else 0.0

    def _take_document(self, path: Path, document: dict[str, Any]) -> None:
        kind = document.get("kind")
        header = self._headers.get(path, {})
        host = str(header.get("hostname", "?"))
        if kind == "journal":
            self._headers[path] = document
            if document.get("role") == "worker":
                self._workers[path] = WorkerNow(
                    str(document.get("name") or path.stem),
                    str(document.get("hostname", "?")),
                    int(document.get("pid", -1)),
                )
        elif kind == "worker" and path in self._workers:
            self._workers[path].name = str(document.get("name") or path.stem)
        elif kind == "node":
            memory = document.get("memory")
            self._node(host).memory = memory if isinstance(memory, int) else None
        elif kind == "gpus":
            self._node(host).gpus = [
                GpuNow(int(gpu.get("index", -1)), str(gpu.get("name", "GPU")))
                for gpu in document.get("gpus", [])
            ]
        elif kind == "end" and path in self._workers:
            self._workers[path].ended = True

    def _node(self, host: str) -> NodeNow:
        return self._nodes.setdefault(host, NodeNow(host))

    def _take_records(self, path: Path, records: dict[Stream, Any]) -> None:
        worker = self._workers.get(path)
        if worker is not None:
            started, stopped = records.get(Stream.STARTS, ()), records.get(Stream.STOPS, ())
            worker.executing = max(0, worker.executing + len(started) - len(stopped))
            worker.done += len(stopped)
            if len(stopped):
                failed = stopped["status"] == STATUSES.index("error")
                worker.failed += int(np.count_nonzero(failed))
        host = str(self._headers.get(path, {}).get("hostname", "?"))
        samples = records.get(Stream.NODE_SAMPLES, ())
        if len(samples):
            node, last = self._node(host), samples[-1]
            node.cpu, node.memory_used = _float(last["cpu"]), int(last["memory_used"])
        samples = records.get(Stream.GPU_SAMPLES, ())
        if len(samples):
            known = self._node(host).gpus
            for number in np.unique(samples["gpu"]).tolist():
                if number < len(known):
                    last, gpu = samples[samples["gpu"] == number][-1], known[number]
                    gpu.utilization, gpu.power = _float(last["utilization"]), _float(last["power"])
                    gpu.memory_used = int(last["memory_used"]) if last["memory_used"] >= 0 else None
        samples = records.get(Stream.PROCESS_SAMPLES, ())
        if len(samples):
            pids = ((host, pid) for pid in samples["pid"].tolist())
            self._memory.update(zip(pids, samples["memory"].tolist(), strict=True))


def _float(value: Any) -> float | None:
    return float(value) if np.isfinite(value) and value >= 0 else None


def watch(run: Path, interval: float) -> Iterator[Snapshot]:
    """Give a snapshot every so many seconds, the last one when the run is over.

    Raises
    ------
    RunDirectoryError
        If there is no run.
    """
    follower = Watch(run)
    while True:
        began = time.monotonic()
        snapshot = follower.look()
        yield snapshot
        if snapshot.state not in LIVE:
            return
        # looking at a run of thousands of workers may take long: at most half of the time
        took = time.monotonic() - began
        time.sleep(max(interval - took, took))


def snapshot_document(snapshot: Snapshot) -> dict[str, Any]:
    """Give a snapshot as what JSON can hold."""
    return asdict(snapshot)


def show_watch(console: Console, run: Path, interval: float) -> Snapshot:
    """Draw a run on the terminal until it is over; a pipe gets a line for each look.

    Returns
    -------
    Snapshot
        The last one.
    """
    last: Snapshot | None = None
    if not can_draw(console):
        for last in watch(run, interval):
            console.print(headline(last), soft_wrap=True, highlight=False, markup=False)
    else:
        with Live(console=console, auto_refresh=False, screen=False) as live:
            for last in watch(run, interval):
                live.update(drawn(last, console.width), refresh=True)
    assert last is not None
    return last


def headline(snapshot: Snapshot) -> str:
    """Say in a line how a run is."""
    there = sum(not worker.ended for worker in snapshot.workers)
    workers = f"{count_text(there)}"
    if snapshot.workers_expected:
        workers += f" of {count_text(snapshot.workers_expected)}"
    elapsed = "" if snapshot.elapsed is None else f"{clock_text(snapshot.elapsed)}  "
    step = snapshot.step if snapshot.state == "running" else snapshot.state
    known = f" of {count_text(snapshot.now.known)}" if snapshot.now and snapshot.now.known else ""
    done = snapshot.now.done if known and snapshot.now else snapshot.done
    text = (
        f"{elapsed}{step}: {workers} workers, {count_text(snapshot.executing)} tasks executing, "
        f"{count_text(done)}{known} done, {three_digits(snapshot.rate)}/s"
    )
    if snapshot.failed:
        text += f", {count_text(snapshot.failed)} failed"
    waits_for = snapshot.waiting_for or (snapshot.now.waits_for if snapshot.now else "")
    if waits_for:
        text += f"; waiting: {one_line(waits_for)}"
    return text


def drawn(snapshot: Snapshot, width: int) -> Group:
    """Draw a snapshot for a terminal of some width."""
    parts: list[Any] = [Text(cut(snapshot.run, width - 1), "bold")]
    if snapshot.now is not None:
        parts += map(Text, live_lines(snapshot.now, snapshot.rate, width))
    else:
        parts.append(Text(headline(snapshot)))
    # above all tables, which may be longer than the terminal
    nodes = [_NodeRow(node, snapshot.workers) for node in snapshot.nodes]
    columns = [
        Column("Node", [row.node.short for row in nodes]),
        Column("CPU", [_percent(row.node.cpu) for row in nodes], Kind.NUMBER),
        Column("Memory", [row.memory for row in nodes], Kind.NUMBER),
        Column("Workers", [count_text(len(row.there)) for row in nodes], Kind.NUMBER),
        Column("Executing", [count_text(row.executing) for row in nodes], Kind.NUMBER),
        Column("Done", [count_text(row.done) for row in nodes], Kind.NUMBER),
        Column("GPUs", ["  ".join(map(_gpu, row.node.gpus)) for row in nodes], Kind.PROSE),
    ]
    if nodes:
        parts.append(fitted("Nodes", [c for c in columns if any(c.cells)], width))
    if 1 < len(snapshot.workers) <= LISTED:
        workers = snapshot.workers
        columns = [
            Column("Node", [worker.node for worker in workers]),
            Column("Worker", [worker.short for worker in workers]),
            Column(
                "Executing",
                ["ended" if one.ended else count_text(one.executing) for one in workers],
                Kind.NUMBER,
            ),
            Column("Done", [count_text(worker.done) for worker in workers], Kind.NUMBER),
            Column("Failed", [count_text(w.failed) for w in workers], Kind.NUMBER),
            Column(
                "Memory",
                ["" if one.memory is None else bytes_text(one.memory) for one in workers],
                Kind.NUMBER,
            ),
        ]
        parts.append(fitted("Workers", [c for c in columns if any(c.cells)], width))
    return Group(*parts)


class _NodeRow:
    """A node with what its workers do."""

    def __init__(self, node: NodeNow, workers: Sequence[WorkerNow]) -> None:
        own = [worker for worker in workers if worker.hostname == node.hostname]
        self.node = node
        self.there = [worker for worker in own if not worker.ended]
        self.executing = sum(worker.executing for worker in self.there)
        self.done = sum(worker.done for worker in own)
        self.memory = "" if node.memory_used is None else bytes_text(node.memory_used)
        if node.memory:
            self.memory += f" of {bytes_text(node.memory)}"


def _percent(value: float | None) -> str:
    return "" if value is None else share_text(value)


def _gpu(gpu: GpuNow) -> str:
    used = "–" if gpu.utilization is None else share_text(gpu.utilization)
    memory = "" if gpu.memory_used is None else f" {bytes_text(gpu.memory_used)}"
    power = "" if gpu.power is None else f" {three_digits(gpu.power)} W"
    return f"{gpu.index}: {used}{memory}{power}"
