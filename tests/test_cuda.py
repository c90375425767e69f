"""What CUDA's calls, copies, waits and memory cost each function."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from exports import Export
from handmade import Made, Task, Worker, columns, make_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import write_workers
from test_join import HELPER, OTHER, POOL_1, POOL_2, SESSION, WORKER, at

from dasf_hpc import open_trace
from dasf_hpc.analysis import Answer, Severity, analyse
from dasf_hpc.analysis.cuda import NO_TASK
from dasf_hpc.analysis.cuda_rules import GAP, SMALL, Rule, costs, own_time
from dasf_hpc.analysis.executions import read_executions
from dasf_hpc.analysis.gpu_allocations import levels
from dasf_hpc.imports import Wishes, import_files, join_into
from dasf_hpc.nsight.gpu_memory import other_ends
from dasf_hpc.nsight.memory import OnlyTask
from dasf_hpc.nsight.sqlite import NONE
from dasf_hpc.outcome import merge_run
from dasf_hpc.trace.holdings import Kind, State, held
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.sums import Sums

MS = 1_000_000
FIRST, SECOND, THIRD = 0, 1, 2
"""Rows of the worker's tasks: of POOL_1 from 10 to 20 ms, POOL_2 15 to 30, POOL_1 40 to 50."""


def made_run(folder: Path, fill: Callable[[Export], None], **more: Any) -> Trace:
    """Merge a run of `test_join`'s workers whose report holds what is filled in."""
    run = folder / "run"
    write_workers(run / "journals", [WORKER, OTHER])
    (run / "nsight").mkdir()
    (run / "nsight" / "node7.nsys-rep").write_bytes(b"exported below")
    write_filled(run / "nsight" / "node7.sqlite", fill)
    merge_run(run, **more)
    return open_trace(run)


def write_filled(path: Path, fill: Callable[[Export], None]) -> None:
    with Export(path, "2023.4") as made:
        made.begun(utc=10**18)
        for worker in (WORKER, OTHER):
            for n in range(10):
                made.mark(worker.pid, at(0) + n * 1000, at(0) + SESSION + n * 1000)
        for number, uuid in enumerate(("GPU-aaaa-0", "GPU-bbbb-1")):
            made.gpu(number, uuid)
        fill(made)


def rows(table: pd.DataFrame, *names: str) -> list[list[Any]]:
    """Give some columns as lists; what is not there is None."""
    chosen = table[list(names)].astype(object)
    return chosen.where(chosen.notna(), None).to_numpy().tolist()


# ------------------------------------------------------------------------- kinds of memory


def _copies(made: Export) -> None:
    made.memcpy(WORKER.pid, at(1), at(2), 1, 100, srcKind=0, dstKind=2, dstDeviceId=0)
    made.memcpy(
        WORKER.pid, at(3), at(4), 10, 100, srcKind=2, dstKind=2, srcDeviceId=0, dstDeviceId=1
    )
    made.memcpy(WORKER.pid, at(5), at(6), 2, 100, srcKind=2, dstKind=99)
    made.memcpy(WORKER.pid, at(7), at(8), 2, 100)
    made.memcpy(WORKER.pid, at(9), at(9.5), 1, 100, srcKind=2**40, dstKind="x", srcDeviceId=-7)
    made.memset(WORKER.pid, at(1), at(2), 64, memKind=4)
    made.memset(WORKER.pid, at(3), at(4), 64)


def test_copies_and_fills_keep_what_memory_they_were_between(tmp_path: Path) -> None:
    with made_run(tmp_path, _copies) as trace:
        one, other = trace.gpus.index[trace.gpus["uuid"].notna()].tolist()
        assert rows(trace.memcpys, "source", "target", "source_gpu", "target_gpu", "cause") == [
            ["pageable", "device", NONE, one, None],
            ["device", "device", one, other, None],
            ["device", "kind 99", NONE, NONE, None],
            [None, None, NONE, NONE, None],
            [None, None, NONE, NONE, None],
        ]
        assert rows(trace.memsets, "memory") == [["managed"], [None]]
        answer = analyse("cuda", trace)
        assert rows(answer.tables["fills"], "function", "memory", "bytes") == [
            [NO_TASK, None, 64],
            [NO_TASK, "managed", 64],
        ]
        assert any("Whether 2 of 5 copies" in why for why in answer.unanswered)


def test_columns_that_an_older_report_lacks_are_not_told(tmp_path: Path) -> None:
    with Export(tmp_path / "r.sqlite", "2020.3") as made:
        made.memcpy(WORKER.pid, 100, 200, 1, 64, srcKind=0, dstKind=2)
        made.memset(WORKER.pid, 300, 400, 64, memKind=2)
    with sqlite3.connect(tmp_path / "r.sqlite") as database:
        for name in ("srcKind", "dstKind", "srcDeviceId", "dstDeviceId", "migrationCause"):
            database.execute(f"ALTER TABLE CUPTI_ACTIVITY_KIND_MEMCPY DROP COLUMN {name}")
        database.execute("ALTER TABLE CUPTI_ACTIVITY_KIND_MEMSET DROP COLUMN memKind")
    database.close()
    import_files([tmp_path / "r.sqlite"], tmp_path / "trace.h5", Wishes())
    with open_trace(tmp_path / "trace.h5") as trace:
        told = rows(trace.memcpys, "kind", "source", "target", "source_gpu", "target_gpu", "cause")
        assert told == [["host to device", None, None, NONE, NONE, None]]
        assert rows(trace.memsets, "memory") == [[None]]


# ------------------------------------------------------------- what no call launched, by time


def _migrations(made: Export) -> None:
    for number, (thread, start, stop) in enumerate([(POOL_1, 12, 18), (POOL_2, 16, 28)], 1):
        made.call(WORKER.pid, thread, at(start) - 1000, at(start), number)
        made.kernel(WORKER.pid, at(start), at(stop), correlationId=number)
    for time, kind, cause in ((13, 11, 2), (17, 12, 4), (20, 11, 3), (29, 11, 2)):
        made.memcpy(WORKER.pid, at(time), at(time + 0.5), kind, 4096, migrationCause=cause)
    for time in (13, 17):
        made.gpu_fault(WORKER.pid, at(time), at(time) + 500, 3, access=2)
    made.cpu_fault(WORKER.pid, at(13))


def test_migrations_and_faults_belong_to_the_task_whose_kernels_ran_alone(tmp_path: Path) -> None:
    with made_run(tmp_path, _migrations) as trace:
        assert rows(trace.memcpys, "task", "cause") == [
            [FIRST, "coherence"],
            [NONE, "eviction"],
            [SECOND, "prefetch"],
            [NONE, "coherence"],
        ]
        assert "kernels of this task alone" in trace.memcpys["reason"].iloc[0]
        faults = trace.page_faults
        assert rows(faults, "on_gpu", "task", "count", "access") == [
            [1, FIRST, 3, "write"],
            [0, NONE, 1, None],
            [1, NONE, 3, "write"],
        ]
        assert (faults["stop"] - faults["start"]).tolist()[::2] == [500, 500]
        assert faults["stop"].iloc[1] == NONE
        assert faults["reason"].iloc[1] == "the report does not say its thread"
        answer = analyse("cuda", trace)
        moved = answer.tables["migrations"]
        assert moved["count"].sum() == 4
        assert moved["total"].sum() == 2 * MS
        assert len(answer.tables["copies"]) == 0
        found = [f for f in answer.findings if f.table == "migrations"]
        assert "migrated" in found[0].sentence
        assert answer.tables["page_faults"]["faults"].sum() == 7
        assert held(trace)[Kind.FAULTS].count == 3


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12), st.integers(-1, 3)), max_size=12),
    st.lists(st.integers(-2, 50), min_size=1, max_size=12),
)
def test_the_task_that_is_alone_at_a_moment(
    spans: list[tuple[int, int, int]], moments: list[int]
) -> None:
    start, length, task = (np.array([s[n] for s in spans], np.int64) for n in range(3))
    found = OnlyTask.of(start, start + length, task).at(np.array(moments))
    for moment, one in zip(moments, found.tolist(), strict=True):
        there = {t for s, d, t in spans if s <= moment < s + d}
        assert one == (there.pop() if len(there) == 1 else NONE)


# ------------------------------------------------------------------------ the system's calls


def _os_calls(made: Export) -> None:
    for start, stop, thread, name in (
        (11, 12, POOL_1, "read"),
        (13, 16, POOL_1, "read"),
        (16, 17, POOL_2, "poll"),
        (26, 28, HELPER, "poll"),
        (35, 36, POOL_1, "read"),
        (60, 64, HELPER, "poll"),
    ):
        made.os_call(WORKER.pid, thread, at(start), at(stop), name)
    made.os_call(31000, 31000, at(1), at(9), "wait4")
    made.kernel(WORKER.pid, at(1), at(2))


@pytest.mark.parametrize("store", [False, True])
def test_the_systems_calls_are_summed_by_task_whether_or_not_they_are_stored(
    store: bool, tmp_path: Path
) -> None:
    with made_run(tmp_path, _os_calls, os_runtime=store) as trace:
        sums = trace.os_runtime_sums
        found = sorted(rows(sums, "task", "name", "count", "time", "longest"), key=str)
        assert found == sorted(
            [
                [FIRST, "read", 2, 4 * MS, 3 * MS],
                [SECOND, "poll", 1, MS, MS],
                [SECOND, "poll", 1, 2 * MS, 2 * MS],  # of a thread that runs no task
                [NONE, "read", 1, MS, MS],
                [NONE, "poll", 1, 4 * MS, 4 * MS],
                [NONE, "wait4", 1, 8 * MS, 8 * MS],
            ],
            key=str,
        )
        assert trace.rows("os_runtime") == (7 if store else 0)
        if store:
            stored = trace.os_runtime
            assert stored["task"].tolist() == [NONE, FIRST, FIRST, SECOND, SECOND, NONE, NONE]
        else:  # a shell that nsys traced is no process of the run
            assert 31000 not in trace.processes["pid"].tolist()
        assert held(trace)[Kind.OS_CALLS].count == 7
        answer = analyse("cuda", trace)
        table = answer.tables["os_calls"]
        assert (table["count"].sum(), table["total"].sum()) == (7, 20 * MS)
        assert table["share"].sum() == pytest.approx(100)
        assert not any("OS runtime calls" in why for why in answer.unanswered)


def test_sums_of_the_systems_calls_grow_with_each_report(tmp_path: Path) -> None:
    write_workers(tmp_path / "journals", [WORKER, OTHER])
    merge_run(tmp_path)
    write_filled(tmp_path / "r.sqlite", _os_calls)
    join_into([tmp_path / "r.sqlite"], tmp_path, Wishes())
    with Export(tmp_path / "later.sqlite", "2023.4") as made:
        made.begun(utc=2 * 10**18)
        made.os_call(OTHER.pid, 5001, at(11), at(12), "write")
    join_into([tmp_path / "later.sqlite"], tmp_path, Wishes())
    with open_trace(tmp_path) as trace:
        assert trace.os_runtime_sums["count"].sum() == 8
        assert set(trace.os_runtime_sums["report"]) == {0, 1}


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(-1, 3), st.sampled_from([-1, 0, 7, 2**40]), st.integers(-5, 100)),
            max_size=8,
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_sums_are_those_of_a_dictionary(
    pieces: list[list[tuple[int, int, int]]], wide: bool
) -> None:
    sums = Sums(("one", "other"), ("time",), largest="time")
    expected: dict[tuple[int, int], list[int]] = {}
    for piece in pieces:
        one, other, time = (np.array([row[n] for row in piece], np.int64) for n in range(3))
        one = one << 40 if wide else one
        sums.add(np.where(one < 0, -1, one), other, time)
        for a, b, t in zip(np.where(one < 0, -1, one).tolist(), other.tolist(), time, strict=True):
            known = expected.setdefault((a, b), [0, 0, 0])
            took = max(0, int(t))
            known[:] = known[0] + 1, known[1] + took, max(known[2], took)
    found = sums.columns()
    names = ("one", "other", "count", "time", "largest")
    told = {
        (a, b): [*rest] for a, b, *rest in zip(*(found[n].tolist() for n in names), strict=True)
    }
    assert told == expected
    assert len(found["one"]) == len(expected)


# ---------------------------------------------------------------------------------- memory


def _allocations(made: Export) -> None:
    for number, (thread, time) in enumerate([(POOL_1, 11), (POOL_2, 16), (POOL_1, 45)], 1):
        made.call(WORKER.pid, thread, at(time), at(time) + 1000, number, "cudaMalloc_v3020")
    made.allocation(WORKER.pid, at(1), 0xA000, -700)  # of before the recording
    made.allocation(WORKER.pid, at(11), 0x7F00_0000_1000, 1000, correlationId=1)
    made.allocation(WORKER.pid, at(16), 0x7F00_0000_2000, 500, correlationId=2)
    made.allocation(WORKER.pid, at(19), 0x7F00_0000_1000, -1)
    made.allocation(WORKER.pid, at(45), 0x7F00_0000_1000, 200, correlationId=3)
    made.allocation(WORKER.pid, at(46), 0xB000, 10**6, kind=1)
    made.allocation(OTHER.pid, at(46), 0x7F00_0000_1000, 300, deviceId=1)


def test_memory_that_was_allocated_over_time_and_for_whom(tmp_path: Path) -> None:
    with made_run(tmp_path, _allocations) as trace:
        events = trace.gpu_allocations
        assert rows(events, "bytes", "kind", "task") == [
            [-700, "device", NONE],
            [1000, "device", FIRST],
            [500, "device", SECOND],
            [-1000, "device", NONE],  # as much as was allocated
            [200, "device", THIRD],
            [10**6, "pinned", NONE],
            [300, "device", NONE],
        ]
        start, other = events["start"].tolist(), events["other"].tolist()
        assert other == [NONE, start[3], NONE, start[1], NONE, NONE, NONE]
        assert events["gpu"].tolist()[5] == NONE
        answer = analyse("cuda", trace)
        memory = answer.tables["memory"]
        assert rows(memory, "peak", "allocations", "unreleased", "unknown_releases") == [
            [1500, 3, 2, 1],
            [300, 1, 1, 0],
        ]
        assert memory["peak_time"].iloc[0] == start[2]
        holders = answer.tables["memory_holders"]
        for gpu, table in holders.groupby("gpu"):
            peak = memory["peak"][memory["gpu"] == gpu].iloc[0]
            assert table["at_peak"].sum() == peak
            assert table["share"].sum() == pytest.approx(100)
        over_time = answer.tables["memory_over_time"]
        assert over_time["allocated"].max() == 1500
        assert (over_time["allocated"] >= 0).all()
        (told,) = [f.sentence for f in answer.findings if f.table == "memory"]
        assert "1.5 kB of node7 GPU 0" in told
        assert "1 release(s) were of memory from before the recording" in told


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from([NONE, 5, 6]), st.booleans()), max_size=14
    )
)
def test_releases_find_their_allocations(events: list[tuple[int, int, bool]]) -> None:
    pid, address, given_ = (np.array([e[n] for e in events]) for n in range(3))
    found = other_ends(pid, address, given_.astype(bool)).tolist()
    expected = [NONE] * len(events)
    open_ones: dict[tuple[int, int], int] = {}
    for row, (process, place, allocated) in enumerate(events):
        if place == NONE:
            continue
        before = open_ones.pop((process, place), None)
        if before is not None:
            expected[before] = row
            if not allocated:
                expected[row] = before
        if allocated:
            open_ones[process, place] = row
    assert found == expected


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(-1, 9), st.integers(1, 50)), max_size=10))
def test_the_level_of_memory_is_a_sum_over_what_lives(spans: list[tuple[int, int, int]]) -> None:
    start, length, size = (np.array([s[n] for s in spans], np.int64) for n in range(3))
    end = np.where(length < 0, -1, start + length)
    times, level = levels(start, end, size)
    assert (level >= 0).all()
    for moment in range(40):
        lives = (start <= moment) & ((end == -1) | (end > moment))
        place = np.searchsorted(times, moment, "right") - 1
        assert (level[place] if place >= 0 else 0) == size[lives].sum()
    # what ends when other memory begins is not held beside it
    some = length != 0
    start, end, size = start[some], end[some], size[some]
    most = max((size[(start <= m) & ((end == -1) | (end > m))].sum() for m in range(40)), default=0)
    assert levels(start, end, size)[1].max() == most


# ----------------------------------------------------------------------------------- rules


def _row(start: float, stop: float, **more: Any) -> dict[str, Any]:
    return {"report": 0, "process": 0, "start": round(start * MS), "stop": round(stop * MS), **more}


def _call(
    name: str, start: float, stop: float, task: int, number: int = -1, thread: int = 1
) -> Any:
    return _row(start, stop, name=name, task=task, correlation=number, thread=thread)


def _copy(number: int, kind: str, source: str, target: str, size: int, **more: Any) -> Any:
    given_ = {"start": 0, "stop": 0, **more}
    return _row(
        **given_, correlation=number, kind=kind, source=source, target=target, bytes=size, gpu=-1
    )


def _answer(
    folder: Path,
    calls: Sequence[Any],
    copies: Sequence[Any] = (),
    fills: Sequence[Any] = (),
    kernels: Sequence[Any] = (),
    tasks: Sequence[Task] = (),
) -> Answer:
    made = Made(
        tasks or [Task("fft-1", 0, 0, 50 * MS), Task("store-1", 0, 60 * MS, 100 * MS)],
        [Worker(gpus="GPU-0", stop=100 * MS)],
        more={
            "gpus": {"node": [0], "index": [0], "uuid": ["GPU-0"], "own_axis": [-1]},
            "cuda_api": columns(calls),
            "memcpys": columns(copies),
            "memsets": columns(fills),
            "kernels": columns(kernels),
        },
    )
    with make_trace(folder / "trace.h5", made) as trace:
        return analyse("cuda", trace)


def test_what_calls_hold_threads_up(tmp_path: Path) -> None:
    large = SMALL + 1
    answer = _answer(
        tmp_path,
        [
            _call("cudaMemcpyAsync_v3020", 1, 5, 0, 1),  # pageable
            _call("cudaMemcpyAsync_v3020", 6, 7, 0, 2),  # pinned: returns at once
            _call("cudaMemcpy_v3020", 10, 13, 0, 3),
            _call("cudaMemcpy_v3020", 14, 15, 0, 4),  # small, from the host
            _call("cudaMemcpy_v3020", 16, 17, 0, 5),  # on the device
            _call("cuMemcpyDtoH_v2", 61, 63, 1, 6),
            _call("cudaMemset_v3020", 64, 66, 1, 7),  # managed
            _call("cudaMemset_v3020", 67, 68, 1, 8),  # of the device: returns at once
            _call("cudaStreamSynchronize_v3020", 70, 75, 1),
            _call("cudaEventSynchronize", 71, 74, 1),  # within the one before
            _call("cudaDeviceSynchronize_v3020", 80, 81, -1),  # for no task
            _call("cudaLaunchKernel_v7000", 82, 83, 1),
        ],
        [
            _copy(1, "host to device", "pageable", "device", 100),
            _copy(2, "host to device", "pinned", "device", 100),
            _copy(3, "host to device", "pinned", "device", large),
            _copy(4, "host to device", "pageable", "device", SMALL),
            _copy(5, "device to device", "device", "device", large),
            _copy(6, "device to host", "device", "pageable", 10),
        ],
        [
            _row(0, 0, correlation=7, memory="managed", bytes=64, gpu=-1),
            _row(0, 0, correlation=8, memory="device", bytes=64, gpu=-1),
        ],
    )
    rules = answer.tables["rules"]
    assert rows(rules, "rule", "function", "count", "time", "bytes") == [
        [Rule.WAIT, "store", 1, 5 * MS, 0],
        [Rule.PAGEABLE, "fft", 1, 4 * MS, 100],
        [Rule.COPY, "fft", 1, 3 * MS, large],
        [Rule.COPY, "store", 1, 2 * MS, 10],
        [Rule.FILL, "store", 1, 2 * MS, 64],
    ]
    assert rules["share"].tolist() == pytest.approx([12.5, 8, 6, 5, 5])
    told = [finding.sentence for finding in answer.findings]
    # by their seconds: 5 for each of the two that cost as much, first in the order of rules
    assert "functions lose 5 ms to: synchronous copy" in told[0]
    assert "store waits 5 ms (12.5 % of its tasks' time) in 1 call(s)" in told[1]
    assert "fft waits 4 ms (8 % of its tasks' time) in 1 call(s) of 100 B" in told[2]
    assert [f.severity for f in answer.findings] == [Severity.WARNING] * 3 + [Severity.NOTICE]
    assert "pinned memory" in answer.findings[2].next_step
    calls = answer.tables["calls"]
    assert calls["total"].sum() == 25 * MS
    assert calls["share"].sum() == pytest.approx(100)
    outside = calls[calls["function"] == NO_TASK]
    assert rows(outside, "call", "count", "total") == [["cudaDeviceSynchronize_v3020", 1, MS]]


def test_a_gpu_without_work_costs_what_no_other_rule_has(tmp_path: Path) -> None:
    def kernel(start: float, stop: float) -> Any:
        return _row(start, stop, gpu=0, task=0, short_name="k")

    short = [kernel(60 + 0.5 * n, 60.1 + 0.5 * n) for n in range(41)]  # a fifth of 20 ms
    answer = _answer(
        tmp_path,
        [_call("cudaStreamSynchronize", 20, 28, 0)],
        kernels=[kernel(0, 10), kernel(25, 30), *short],
    )
    found = {
        (r, f): (n, t)
        for r, f, n, t in rows(answer.tables["rules"], "rule", "function", "count", "time")
    }
    # from 10 to 25 nothing runs, of which the wait has 5; then from 30 to 60, fft ends at 50
    assert found[Rule.WAIT, "fft"] == (1, 8 * MS)
    assert found[Rule.GAP, "fft"] == (1, (10 + 20) * MS)
    assert (Rule.GAP, "store") not in found
    count, time = found[Rule.LOW, "store"]
    assert count == 1
    assert time == 40 * round(0.4 * MS)
    assert GAP == MS


TIMES = st.integers(0, 40)
SPANS = st.tuples(TIMES, st.integers(0, 15))
NAMES = ("cudaMemcpyAsync", "cudaMemcpy", "cudaMemset", "cudaStreamSynchronize", "cudaMalloc")


@settings(max_examples=40, deadline=None)
@given(
    tasks=st.lists(st.tuples(SPANS, st.integers(1, 2)), min_size=1, max_size=4),
    calls=st.lists(st.tuples(SPANS, st.integers(1, 3), st.sampled_from(NAMES)), max_size=10),
    kernels=st.lists(SPANS, max_size=5),
)
def test_no_moment_of_a_thread_counts_twice(
    tasks: list[Any], calls: list[Any], kernels: list[Any], tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("made")
    executions = [
        Task(f"f-{n}", 0, s * MS, (s + d) * MS, thread) for n, ((s, d), thread) in enumerate(tasks)
    ]
    made = [
        _call(name, s, s + d, n % 2 - 1 if name != "cudaStreamSynchronize" else 0, n, thread)
        for n, ((s, d), thread, name) in enumerate(calls)
    ]
    copies = [_copy(n, "device to host", "device", "pageable", 10) for n in range(len(calls))]
    fills = [
        _row(0, 0, correlation=n, memory="managed", bytes=64, gpu=-1) for n in range(len(calls))
    ]
    more: dict[str, Any] = {
        "gpus": {"node": [0], "index": [0], "uuid": ["GPU-0"], "own_axis": [-1]},
        "cuda_api": columns(sorted(made, key=lambda call: call["start"])),
        "memcpys": columns(copies),
        "memsets": columns(fills),
        "kernels": columns([_row(s, s + d, gpu=0, task=0) for s, d in sorted(kernels)]),
    }
    with make_trace(folder / "trace.h5", Made(executions, [Worker(gpus="GPU-0")], more=more)) as t:
        found = costs(t, read_executions(t, ("thread", "prefix")))
    busy = {m for s, d in kernels for m in range(s, s + d)}
    for thread in (1, 2, 3):
        in_calls = {
            m for (s, d), who, name in calls if who == thread and name != "cudaMalloc"
            for m in range(s, s + d)
        }  # fmt: skip
        in_tasks = {m for (s, d), who in tasks if who == thread for m in range(s, s + d)}
        ends = [s for s, _ in kernels], [s + d for s, d in kernels]
        extent = range(min(ends[0], default=0), max(ends[1], default=0))
        idle = {m for m in in_tasks - in_calls if m in extent and m not in busy}
        own = found.thread == thread
        unused = own & np.isin(found.rule, [list(Rule).index(r) for r in (Rule.GAP, Rule.LOW)])
        assert found.time[own & ~unused].sum() == len(in_calls) * MS
        # gaps are of a millisecond and more here, each of which counts
        assert found.time[unused].sum() == len(idle) * MS
        assert found.time[own].sum() <= len(in_calls | in_tasks) * MS
    assert not len(found.time) or found.time.min() > 0


@given(st.lists(st.tuples(TIMES, st.integers(0, 15)), max_size=12))
def test_every_moment_is_the_first_spans_own(spans: list[tuple[int, int]]) -> None:
    spans.sort(key=lambda span: (span[0], -span[1]))
    start, length = (np.array([span[n] for span in spans], np.int64) for n in range(2))
    begin, end = own_time(start, start + length)
    moments = [m for b, e in zip(begin.tolist(), end.tolist(), strict=True) for m in range(b, e)]
    assert len(moments) == len(set(moments))
    assert set(moments) == {m for s, d in spans for m in range(s, s + d)}
    assert all(a <= b for a, b in itertools.pairwise(begin.tolist()))


# ------------------------------------------------------------------------ what is not there


def test_not_recorded_nothing_came_and_some_are_told_apart(tmp_path: Path) -> None:
    states = {}
    for name in ("nothing", "empty", "some"):
        with Export(tmp_path / f"{name}.sqlite", "2025.1") as made:
            made.begun(utc=10**18)
            made.kernel(WORKER.pid, 100, 200)
            if name != "nothing":
                made.allocation(WORKER.pid, 1, 4096, 100)
                made.gpu_fault(WORKER.pid, 1, 2, 1)
                made.os_call(WORKER.pid, WORKER.pid, 1, 2)
        if name == "empty":
            with sqlite3.connect(tmp_path / "empty.sqlite") as database:
                for table in ("CUDA_GPU_MEMORY_USAGE_EVENTS", "OSRT_API"):
                    database.execute(f"DELETE FROM {table}")
                database.execute("DELETE FROM CUDA_UM_GPU_PAGE_FAULT_EVENTS")
            database.close()
        import_files([tmp_path / f"{name}.sqlite"], tmp_path / f"{name}.h5", Wishes())
        with open_trace(tmp_path / f"{name}.h5") as trace:
            found = held(trace)
            states[name] = {
                found[kind].state for kind in (Kind.ALLOCATIONS, Kind.FAULTS, Kind.OS_CALLS)
            }
            said = " ".join(analyse("cuda", trace).unanswered)
            asked = "What allocations cost: not recorded (`--nsys-arg=--cuda-memory-usage=true`"
            assert (asked in said) == (name == "nothing")
    assert states == {
        "nothing": {State.MISSING},
        "empty": {State.NONE},
        "some": {State.RECORDED},
    }


def test_a_trace_without_reports_says_so(tmp_path: Path) -> None:
    with make_trace(tmp_path / "trace.h5", Made([Task("f-1", 0, 0, 50 * MS)])) as trace:
        answer = analyse("cuda", trace)
    assert not answer.looked
    assert not answer.findings
    assert answer.unanswered[0] == (
        "What CUDA calls, copies, fills cost: not recorded (no CUDA table in this trace)."
    )


def test_what_was_lost_is_told_once(tmp_path: Path) -> None:
    def fill(made: Export) -> None:
        made.call(WORKER.pid, POOL_1, at(11), at(12), 1, "cudaMemcpyAsync_v3020")
        made.kernel(WORKER.pid, at(13), at(14))
        made.say("Number of incomplete CUPTI events dropped: 2", WORKER.pid, 5)

    with made_run(tmp_path, fill) as trace:
        found = held(trace)
        assert found[Kind.CALLS].state is State.PARTLY
        assert found[Kind.ALLOCATIONS].state is State.MISSING  # that it was asked for nothing says
        said = analyse("cuda", trace).unanswered
        told = [why for why in said if why.startswith("What CUDA calls")]
        assert told == [
            "What CUDA calls cost: partly lost (Number of incomplete CUPTI events dropped: 2)."
        ]
        assert any(why.startswith("When GPUs had no work: kernels: 1, partly lost") for why in said)


def test_gpus_whose_clock_nothing_ties_are_not_compared_with_tasks(tmp_path: Path) -> None:
    write_workers(tmp_path / "journals", [WORKER, OTHER])
    merge_run(tmp_path)
    with Export(tmp_path / "r.sqlite", "2020.3") as made:
        made.call(WORKER.pid, POOL_1, at(11), at(12), 1, "cudaMemcpy_v3020")
        made.memcpy(WORKER.pid, at(11), at(12), 2, 10**6, correlationId=1, srcKind=2, dstKind=0)
        made.kernel(WORKER.pid, at(40), at(41))
    join_into([tmp_path / "r.sqlite"], tmp_path, Wishes())
    with open_trace(tmp_path) as trace:
        answer = analyse("cuda", trace)
    assert rows(answer.tables["rules"], "rule", "function", "time") == [[Rule.COPY, NO_TASK, MS]]
    assert any("nothing ties the clock" in why for why in answer.unanswered)


def test_allocations_stand_beside_what_was_sampled(tmp_path: Path) -> None:
    made = Made(
        [Task("f-1", 0, 0, 1000 * MS)],
        [Worker(gpus="GPU-0", stop=1000 * MS)],
        more={
            "gpus": {"node": [0], "index": [0], "uuid": ["GPU-0"], "own_axis": [-1]},
            "gpu_allocations": {
                "process": [0, 0],
                "gpu": [0, 0],
                "start": [100 * MS, 300 * MS],
                "other": [300 * MS, 100 * MS],
                "bytes": [40, -40],
                "task": [0, -1],
                "kind": ["device", "device"],
            },
            "gpu_samples": {
                "time": [50 * MS, 200 * MS, 400 * MS],
                "gpu": [0, 0, 0],
                "memory_used": [7, 90, 8],
            },
        },
    )
    with make_trace(tmp_path / "trace.h5", made) as trace:
        answer = analyse("cuda", trace)
    assert rows(answer.tables["memory"], "peak", "sampled_peak") == [[40, 90]]
    assert rows(answer.tables["memory_over_time"], "time", "allocated", "sampled") == [
        [50 * MS, 0, 7],
        [100 * MS, 40, None],
        [200 * MS, 40, 90],
        [300 * MS, 40, None],
        [400 * MS, 0, 8],
    ]
