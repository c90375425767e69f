"""A seeded generator of large synthetic runs: journals packed by numpy, with known answers.

What it writes is what `synthetic.write_run` writes (keys, dependencies, fetches, failures, memory,
clocks), but for kills and rarities: made by columns, at about ten times the speed, for benchmarks.
Blocks are packed here from the text of `dasf_hpc.profile.journal`, not by its writer; a test merges
a run of each size against the answers.
"""

from __future__ import annotations

import functools
import json
import os
import random
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from synthetic import (
    BEGIN,
    BEGIN_UTC,
    EXECUTE,
    FAILED_RELEASE,
    FETCH,
    FETCHED,
    FINISH,
    FORGET,
    RELEASE,
    Clock,
    Plan,
    SyntheticRun,
    journal_meta,
    make_clocks,
    worker_meta,
    write_sampler,
    write_scheduler,
)

from dasf_hpc.profile.drain import BLOCK, HEADER
from dasf_hpc.profile.journal import DTYPES, MAGIC, VERSION, Stream

Array = NDArray[Any]

#: Records that a run has for each of its tasks, about.
RECORDS_A_TASK = 11.5

#: Tasks whose keys share a token, as the chunks of one dask.array do.
LAYER = 500

#: Keys that a worker holds; the oldest is released when there are more.
HELD = 20

#: Which other workers have what a worker fetches: so many further on.
_STRIDES = (1, 2, 3, 5)

#: The texts that describe results repeat after so many tasks.
_RESULTS = 210

_HEAD = np.dtype(
    [
        ("magic", "S4"),
        ("version", "<u2"),
        ("stream", "u1"),
        ("zero", "u1"),
        ("writer", "<u8"),
        ("number", "<u4"),
        ("first", "<u4"),
        ("base", "<i8"),
        ("base_key", "<u4"),
    ]
)
_NOTHING = 0xFFFFFFFF


@dataclass
class Answers:
    """What truly happened on one worker; times are true ns.

    Attributes
    ----------
    number
        The worker's.
    ids, tasks, starts, stops, status, sizes
        Of every execution: task id, number of the task (see `key_of`), times, position in STATUSES,
        bytes of the result.
    edges
        A row each: task, and worker and task that it needs; some stand twice.
    memory_times, managed, held
        After each change of what the worker holds.
    transitions
        Their number.
    """

    number: int
    ids: Array
    tasks: Array
    starts: Array
    stops: Array
    status: Array
    sizes: Array
    edges: Array
    memory_times: Array
    managed: Array
    held: Array
    transitions: int


@dataclass(frozen=True)
class Shape:
    """Nodes, workers a node, tasks a worker, and the seed: what determines a run."""

    nodes: int
    workers: int
    tasks: int
    seed: int = 1


@functools.lru_cache(maxsize=1)
def clocks_of(shape: Shape) -> dict[str, Clock]:
    """Give every node's clocks by host name; ``head`` is the scheduler's."""
    return make_clocks(shape.nodes, random.Random(shape.seed))


def synthesise(folder: Path, nodes: int, workers: int, tasks: int, seed: int = 1) -> int:
    """Write a run on all cores and give the bytes of its journals.

    Parameters
    ----------
    folder
        Where its folder ``journals`` is made.
    nodes, workers, tasks, seed
        As in `Shape`. Equal ones give equal workers' journals.
    """
    shape = Shape(nodes, workers, tasks, seed)
    journals = folder / "journals"
    journals.mkdir(mode=0o700, parents=True, exist_ok=True)
    total = nodes * workers
    cores = min(len(os.sched_getaffinity(0)), total)
    with ProcessPoolExecutor(cores) as pool:
        ends = pool.map(_end, [shape] * total, range(total), chunksize=1 + total // cores // 4)
        end = max(ends, default=BEGIN)
        shares = [pool.submit(_write_share, shape, journals, end, i, cores) for i in range(cores)]
        for share in shares:
            share.result()
    return sum(path.stat().st_size for path in journals.iterdir())


def write_large_run(journals: Path, shape: Shape) -> list[Answers]:
    """Write a run in this process and give what each worker's journal must tell."""
    journals.mkdir(mode=0o700, parents=True, exist_ok=True)
    total = shape.nodes * shape.workers
    end = max(map(functools.partial(_end, shape), range(total)), default=BEGIN)
    _write_others(shape, journals, end, 0, 1)
    return [_Worker(shape, number, end).write(journals) for number in range(total)]


def _end(shape: Shape, number: int) -> int:
    return plan_of(shape, number).end


def _write_share(shape: Shape, journals: Path, end: int, turn: int, turns: int) -> None:
    for number in range(turn, shape.nodes * shape.workers, turns):
        _Worker(shape, number, end).write(journals)
    _write_others(shape, journals, end, turn, turns)


def _write_others(shape: Shape, journals: Path, end: int, turn: int, turns: int) -> None:
    """Write the journals of the nodes' samplers and of the scheduler."""
    run = SyntheticRun(journals, clocks=clocks_of(shape))
    plans = [_placed(shape, number, 0) for number in range(shape.nodes * shape.workers)]
    for node in range(turn, shape.nodes, turns):
        here = plans[node * shape.workers : (node + 1) * shape.workers]
        write_sampler(run, f"node{node + 1}", here, end, 0, True, shape.seed)
    if turn == 0:
        write_scheduler(run, plans, end, True)


def _placed(shape: Shape, number: int, tasks: int) -> Plan:
    node = f"node{number // shape.workers + 1}"
    return Plan(number, node, clocks_of(shape)[node], tasks, shape.seed, 0.005, 0.0)


def local_times(clock: Clock, true: Array) -> Array:
    """Give what a node's CLOCK_MONOTONIC shows at true times, ns."""
    drifted: Array = np.rint((true - BEGIN) * clock.drift).astype(np.int64)
    return true + clock.offset + drifted


@functools.lru_cache(maxsize=8)
def plan_of(shape: Shape, number: int) -> Plan:
    """Give when a worker executes what."""
    return _placed(shape, number, shape.tasks)


@functools.lru_cache(maxsize=8)
def _tokens(shape: Shape, number: int) -> tuple[str, str]:
    """Give the tokens of a worker's single keys and of its layers, 32 digits each."""
    chance = np.random.default_rng([shape.seed, number, 1])
    return chance.bytes(16 * shape.tasks).hex(), chance.bytes(16 * (1 + shape.tasks // LAYER)).hex()


def _heads(shape: Shape, number: int) -> list[str]:
    """Give what the text of the keys of each layer begins with."""
    layers = _tokens(shape, number)[1]
    names = ("add", "sum-partial", "getitem")
    return [
        f"('{names[layer % 3]}-{layers[32 * layer : 32 * layer + 32]}"
        for layer in range(len(layers) // 32)
    ]


def _tail(number: int, task: int) -> str | None:
    """Give the end of a tuple's text, None for a key that is a string: three of eight."""
    kind = (task + number) % 8
    return f"{task % LAYER}, {kind})" if kind < 5 else None


def key_of(shape: Shape, number: int, task: int) -> str:
    """Give the text of the key of a worker's task."""
    tail = _tail(number, task)
    if tail is None:
        return f"inc-{_tokens(shape, number)[0][32 * task : 32 * task + 32]}"
    return f"{_heads(shape, number)[task // LAYER]}', {tail}"


def _result(task: int) -> str:
    if task % 3:
        return f"numpy.ndarray|float64|({task % 7 + 1}, 100)"
    return "int||" if task % 2 else f"numpy.ndarray||S{task % 5 + 1}|(3,)"


# ------------------------------------------------------------------------------ one worker


class _Strings:
    def __init__(self) -> None:
        self.codes: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.codes.setdefault(text, len(self.codes))


class _Pack:
    """Puts records and texts into blocks."""

    def __init__(self, writer: int) -> None:
        self._writer = writer
        self.blocks: list[tuple[int, bytes]] = []

    def _block(
        self, stream: Stream, first: int, base: int, base_key: int, data: bytes, at: int
    ) -> None:
        head = np.array(
            (MAGIC, VERSION, stream, 0, self._writer, len(self.blocks), first, base, base_key),
            _HEAD,
        ).tobytes()
        end = HEADER + len(data)
        slot = end.to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little")
        header = (head + zlib.crc32(head).to_bytes(4, "little") + slot).ljust(HEADER, b"\0")
        self.blocks.append((at, (header + data).ljust(BLOCK, b"\0")))

    def text(self, stream: Stream, texts: Sequence[str], times: Array) -> None:
        """Put texts, each defined at a time, into blocks."""
        raw = [text.encode() + b"\0" for text in texts]
        ends = np.cumsum([len(r) for r in raw])
        first = 0
        while first < len(raw):
            before = int(ends[first - 1]) if first else 0
            last = int(np.searchsorted(ends, before + BLOCK - HEADER, "right"))
            self._block(stream, first, 0, 0, b"".join(raw[first:last]), int(times[first]))
            first = last

    def put(self, stream: Stream, times: Array | None, **fields: Array | int) -> None:
        """Put records, with their times where they carry ``dt``, into blocks."""
        dtype = DTYPES[stream]
        count = len(next(f for f in (times, *fields.values()) if isinstance(f, np.ndarray)))
        records = np.zeros(count, dtype)
        for name, values in fields.items():
            records[name] = values
        room = (BLOCK - HEADER) // dtype.itemsize
        clock = next((fields[n] for n in ("start", "before", "t1") if n in fields), None)
        first = 0
        while first < count:
            last = min(count, first + room)
            base = 0
            if times is not None:
                base = int(times[first])
                last = min(last, int(np.searchsorted(times, base + _NOTHING, "right")))
                records["dt"][first:last] = times[first:last] - base
            at = base if clock is None else int(np.asarray(clock)[first])
            self._block(stream, first, base, 0, records[first:last].tobytes(), at)
            first = last

    def write(self, path: Path) -> None:
        """Write the blocks in the order in which they were begun."""
        self.blocks.sort(key=lambda block: block[0])
        path.write_bytes(b"".join(data for _, data in self.blocks))


def _known_keys(shape: Shape, owners: Array, tasks: Array, define: _Strings) -> list[str]:
    """Give the texts of keys as a journal holds them: heads of tuples are strings of it."""
    heads = {owner: _heads(shape, owner) for owner in np.unique(owners).tolist()}
    singles = {owner: _tokens(shape, owner)[0] for owner in heads}
    texts = []
    for owner, task in zip(owners.tolist(), tasks.tolist(), strict=True):
        tail = _tail(owner, task)
        if tail is None:
            texts.append(f"inc-{singles[owner][32 * task : 32 * task + 32]}")
        else:
            texts.append(f"\x01{define(heads[owner][task // LAYER]):x}\x02{tail}")
    return texts


class _Worker:
    """What one worker does, column by column."""

    def __init__(self, shape: Shape, number: int, end: int) -> None:
        self.shape, self.number, self.end = shape, number, end
        self.plan = plan_of(shape, number)
        self.chance = np.random.default_rng([shape.seed, number, 2])
        #: The first execution of each task.
        self.first = np.searchsorted(self.plan.task, np.arange(shape.tasks))
        self._choose_dependencies()
        self._choose_fetches()

    def local(self, true: Array) -> Array:
        """Give what the worker's CLOCK_MONOTONIC shows, ns."""
        return local_times(self.plan.clock, true)

    def _choose_dependencies(self) -> None:
        """Choose two of the worker's own tasks, now and then another's, for each task."""
        shape, number = self.shape, self.number
        needer = np.repeat(np.arange(shape.tasks), 2)
        needer = needer[(needer > 1) | ((needer == 1) & (np.arange(len(needer)) % 2 == 0))]
        lowest = np.maximum(0, needer - 50)
        needed = lowest + (self.chance.random(len(needer)) * (needer - lowest)).astype(np.int64)
        owner = np.full(len(needer), number)
        total = shape.nodes * shape.workers
        away = self.chance.random(len(needer)) < 0.1
        peers = (number + np.array(_STRIDES)[self.chance.integers(0, 4, len(needer))]) % total
        for peer in sorted({(number + stride) % total for stride in _STRIDES} - {number}):
            theirs, mine = plan_of(shape, peer), np.flatnonzero(away & (peers == peer))
            begins = self.plan.starts[self.first[needer[mine]]]
            done = np.searchsorted(theirs.stops, begins - 15_000) - 1
            good = (done >= 0) & (theirs.status[done] == 0)
            owner[mine[good]], needed[mine[good]] = peer, theirs.task[done[good]]
        self.needer, self.needed, self.owner = needer, needed, owner

    def _choose_fetches(self) -> None:
        """Number the keys in the order of first use; one that is fetched comes after its needer."""
        tasks = self.shape.tasks
        foreign = np.flatnonzero(self.owner != self.number)
        both = self.owner[foreign] * max(1, tasks) + self.needed[foreign]
        distinct, at, which = np.unique(both, return_index=True, return_inverse=True)
        turn = np.argsort(at, kind="stable")
        rank = np.empty(len(turn), np.int64)
        rank[turn] = np.arange(len(turn))
        self.fetched_owner, self.fetched_task = np.divmod(distinct[turn], max(1, tasks))
        self.fetcher = self.needer[foreign[at[turn]]]
        self.own_id = np.arange(tasks) + np.searchsorted(self.fetcher, np.arange(tasks))
        self.fetched_id = self.fetcher + 1 + np.arange(len(turn))
        self.dependency = np.empty(len(self.needer), np.int64)
        own = self.owner == self.number
        self.dependency[own] = self.own_id[self.needed[own]]
        self.dependency[foreign] = self.fetched_id[rank[which]]
        self.fetched_size = np.empty(len(turn), np.int64)
        for peer in np.unique(self.fetched_owner).tolist():
            mine = np.flatnonzero(self.fetched_owner == peer)
            self.fetched_size[mine] = plan_of(self.shape, peer).sizes[self.fetched_task[mine]]

    def write(self, journals: Path) -> Answers:
        """Write the journal; give what it must tell."""
        plan, local, number = self.plan, self.local, self.number
        task, status, starts, stops = plan.task, plan.status, plan.starts, plan.stops
        strings, pack = _Strings(), _Pack((self.shape.seed << 32) + number + 1)
        results = np.array([strings(_result(t)) for t in range(_RESULTS)], np.uint32)
        failure, transfer, disk = map(strings, ("builtins.ValueError", "transfer", "disk-write"))
        peers = np.zeros(len(self.fetched_owner), np.uint32)
        for peer in np.unique(self.fetched_owner).tolist():
            peers[self.fetched_owner == peer] = strings(plan_of(self.shape, peer).address)
        count = len(self.own_id) + len(self.fetched_id)
        owners, tasks = np.full(count, number), np.empty(count, np.int64)
        owners[self.fetched_id] = self.fetched_owner
        tasks[self.fetched_id], tasks[self.own_id] = self.fetched_task, np.arange(len(self.own_id))
        fetch_at = starts[self.first[self.fetcher]]
        used = np.empty(count, np.int64)
        used[self.own_id], used[self.fetched_id] = starts[self.first], fetch_at
        key, size = self.own_id[task], plan.sizes[task]

        self._documents(pack)
        pack.text(Stream.KEYS, _known_keys(self.shape, owners, tasks, strings), local(used))
        begun = local(np.full(len(strings.codes), BEGIN))
        pack.text(Stream.STRINGS, list(strings.codes), begun)
        memory, transitions = self._transitions(pack, fetch_at, key, size)
        sequence = np.arange(1, len(task) + 1)
        pack.put(Stream.STARTS, local(starts), sequence=sequence, key=key, thread=70_000 + number)
        pack.put(
            Stream.STOPS,
            local(stops),
            sequence=sequence,
            result=np.where(status == 0, results[task % _RESULTS], failure),
            status=status,
            nbytes=np.where(status == 0, size, 0),
        )
        stored = local(fetch_at - 12_000)
        pack.put(Stream.STORED, stored, key=self.fetched_id, nbytes=self.fetched_size)
        pack.put(Stream.EDGES, None, key=self.own_id[self.needer], dependency=self.dependency)
        begins, ends = local(fetch_at - 14_000), local(fetch_at - 13_000)
        pack.put(
            Stream.TRANSFERS,
            None,
            start=begins,
            stop=ends,
            nbytes=self.fetched_size,
            peer=peers,
            keys=1,
            direction=0,
        )
        disked = np.flatnonzero(task % 8 == 0)
        begins = np.concatenate([begins, local(stops[disked] + 1_000)])
        order = np.argsort(begins, kind="stable")
        pack.put(
            Stream.ACTIVITIES,
            None,
            start=begins[order],
            stop=np.concatenate([ends, local(stops[disked] + 2_000)])[order],
            key=np.concatenate([self.fetched_id, key[disked]])[order],
            action=np.repeat([transfer, disk], [len(ends), len(disked)])[order],
            peer=np.concatenate([peers, np.full(len(disked), _NOTHING)])[order],
        )
        pack.write(journals / f"worker-{plan.node}-{plan.pid}.journal")
        times, managed, held = memory
        return Answers(
            number=number,
            ids=plan.base + sequence,
            tasks=task,
            starts=starts,
            stops=stops,
            status=status,
            sizes=np.where(status == 0, size, -1),
            edges=np.stack([self.needer, self.owner, self.needed], axis=1),
            memory_times=times,
            managed=managed,
            held=held,
            transitions=transitions,
        )

    def _transitions(
        self, pack: _Pack, fetch_at: Array, key: Array, size: Array
    ) -> tuple[tuple[Array, Array, Array], int]:
        """Write the transitions; give what the worker held after each change, and their number."""
        plan = self.plan
        starts, stops = plan.starts, plan.stops
        ok, failed = np.flatnonzero(plan.status == 0), np.flatnonzero(plan.status == 1)
        # what comes into memory, execution after execution
        turn = np.concatenate([self.first[self.fetcher], ok])
        order = np.argsort(turn, kind="stable")
        enters = np.concatenate([fetch_at - 12_000, stops[ok] + 5_000])[order]
        entered = np.concatenate([self.fetched_id, key[ok]])[order]
        step = np.concatenate([self.fetched_size, size[ok]])[order]
        code = np.repeat([FETCHED, FINISH[0]], [len(fetch_at), len(ok)])[order]
        # after each execution the oldest leave until few are left
        so_far = np.searchsorted(turn[order], np.arange(len(starts)), "right")
        release = np.searchsorted(so_far, np.arange(len(entered)) + HELD + 1)
        gone = np.flatnonzero(release < len(starts))
        leaves = stops[release[gone]] + 8_000
        pieces = [
            *((fetch_at - 15_000, self.fetched_id, state) for state in FETCH),
            *((starts - 5_000, key, state) for state in EXECUTE),
            (enters, entered, code),
            (stops[failed] + 5_000, key[failed], FINISH[1]),
            (stops[failed] + 6_000, key[failed], FAILED_RELEASE),
            *((leaves, entered[gone], state) for state in (RELEASE, FORGET)),
        ]
        times = np.concatenate([piece[0] for piece in pieces])
        what = np.concatenate([piece[1].astype(np.uint32) << 8 | piece[2] for piece in pieces])
        order = np.argsort(times, kind="stable")
        pack.put(Stream.TRANSITIONS, self.local(times[order]), what=what[order])

        changes = np.concatenate([enters, leaves])
        order = np.argsort(changes, kind="stable")
        managed = np.cumsum(np.concatenate([step, -step[gone]])[order])
        held = np.cumsum(np.repeat([1, -1], [len(enters), len(leaves)])[order])
        return (changes[order], managed, held), len(times)

    def _documents(self, pack: _Pack) -> None:
        """Write the META documents, the round trips and the readings of UTC."""
        plan, clock = self.plan, self.plan.clock
        begun = clock.local(BEGIN)
        first = journal_meta("worker", plan.node, plan.pid, clock, begun, plan.base)
        documents = [
            {"kind": "journal", "version": VERSION, **first},
            worker_meta(plan, 0),
            {"kind": "end", "time": clock.local(self.end + 50_000_000), "dropped": 0},
        ]
        times = np.array([begun, begun, clock.local(self.end)])
        pack.text(Stream.META, [json.dumps(document) for document in documents], times)
        true = np.concatenate(
            [
                BEGIN + 1_000_000 * np.arange(8),
                np.arange(BEGIN + 5_000_000_000, self.end, 5_000_000_000),
                self.end + 1_000_000 * np.arange(1, 4),
            ]
        )
        width = self.chance.integers(60, 900, len(true))
        utc = BEGIN_UTC + true - BEGIN + clock.utc_error + width // 2
        pack.put(
            Stream.ANCHORS, None, before=self.local(true), utc=utc, after=self.local(true + width)
        )
        there, back = 60_000 + self.chance.exponential(50_000, (2, len(true))).astype(np.int64)
        asked, answered = true + 10_000, true + 30_000 + there
        pack.put(
            Stream.PROBES,
            None,
            t1=self.local(asked),
            t2=asked + there,
            t3=answered,
            t4=self.local(answered + back),
        )
