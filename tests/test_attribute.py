"""Which task launched what, and how long each GPU was busy for it: against the plainest oracles."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasf_hpc.nsight import busy
from dasf_hpc.nsight.attribute import (
    FOREVER,
    Calls,
    Overlaps,
    Reason,
    RunningTasks,
    grouped,
    innermost,
    task_of_calls,
)
from dasf_hpc.nsight.sqlite import NONE

TIMES = st.integers(0, 60)
INTERVALS = st.lists(st.tuples(TIMES, st.integers(0, 20)), max_size=12)
INSTANTS = st.lists(st.integers(-2, 85), min_size=1, max_size=12)


def columns(rows: Sequence[tuple[int, ...]], count: int) -> list[Any]:
    return [np.array([row[n] for row in rows], np.int64) for n in range(count)]


@given(INTERVALS, INSTANTS)
def test_the_innermost_interval_is_the_last_to_begin_of_those_that_hold_the_instant(
    intervals: list[tuple[int, int]], instants: list[int]
) -> None:
    start, length = columns(sorted(intervals, key=lambda i: i[0]), 2)
    found = innermost(start, start + length, np.array(instants))
    for at, place in zip(instants, found.tolist(), strict=True):
        holding = np.flatnonzero((start <= at) & (at < start + length))
        assert place == (holding[-1] if len(holding) else NONE)


@given(INTERVALS, INSTANTS)
def test_intervals_at_an_instant_are_counted_and_the_only_one_is_named(
    intervals: list[tuple[int, int]], instants: list[int]
) -> None:
    start, length = columns(intervals, 2)
    count, which = Overlaps.of(start, start + length).running(np.array(instants))
    for at, number, place in zip(instants, count.tolist(), which.tolist(), strict=True):
        holding = np.flatnonzero((start <= at) & (at < start + length))
        assert number == len(holding)
        if number == 1:
            assert place == holding[0]


@given(st.lists(st.integers(-3, 5), max_size=30))
def test_groups_hold_every_place_once_in_order(values: list[int]) -> None:
    found = {value: places.tolist() for value, places in grouped(np.array(values, np.int64))}
    assert found == {v: [i for i, w in enumerate(values) if w == v] for v in set(values)}


@given(
    st.lists(st.tuples(st.integers(1, 3), TIMES, st.integers(0, 20)), max_size=8),
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 85)), min_size=1, max_size=12),
)
def test_a_call_is_of_its_threads_task_or_of_the_only_one(
    tasks: list[tuple[int, int, int]], calls: list[tuple[int, int]]
) -> None:
    thread, start, length = columns(tasks, 3)
    ran = RunningTasks(np.arange(len(tasks)) + 100, thread, start, start + length)
    task, reason = task_of_calls(ran, *columns(calls, 2))
    for (caller, at), row, why in zip(calls, task.tolist(), reason.tolist(), strict=True):
        now = [i for i in range(len(tasks)) if start[i] <= at < start[i] + length[i]]
        mine = [i for i in now if thread[i] == caller]
        if not tasks:
            assert (row, why) == (NONE, Reason.UNKNOWN_PROCESS)
        elif caller in thread:
            assert why == (Reason.BY_THREAD if mine else Reason.BETWEEN_TASKS)
            assert (row - 100 in mine) if mine else row == NONE
            if mine:
                assert start[row - 100] == max(start[i] for i in mine)
        elif len(now) == 1:
            assert (row, why) == (now[0] + 100, Reason.ONLY_TASK)
        else:
            assert (row, why) == (NONE, Reason.SEVERAL_TASKS if now else Reason.NO_TASK)


def test_a_task_that_never_stopped_runs_for_ever() -> None:
    ran = RunningTasks(*(np.array([v]) for v in (7, 1, 10, FOREVER)))
    task, reason = task_of_calls(ran, np.array([1, 2]), np.array([2**62, 2**62]))
    assert task.tolist() == [7, 7]
    assert reason.tolist() == [Reason.BY_THREAD, Reason.ONLY_TASK]


def test_numbers_of_calls_count_by_process_and_fill_32_bits() -> None:
    calls = Calls.of(
        pid=np.array([5, 6, 5, 5]),
        correlation=np.array([2**32 - 1, 2**32 - 1, NONE, 1]),
        thread=np.array([50, 60, 51, 52]),
        start=np.array([1, 2, 3, 4]),
        task=np.array([10, 20, 30, NONE]),
        reason=np.array([0, 0, 0, Reason.NO_TASK]),
    )
    found = calls.launching(
        np.array([6, 5, 5, 7, NONE, 5]), np.array([2**32 - 1, 2**32 - 1, NONE, 1, 1, 1])
    )
    assert found.thread.tolist() == [60, 50, NONE, NONE, NONE, 52]
    assert found.start.tolist() == [2, 1, NONE, NONE, NONE, 4]
    assert found.task.tolist() == [20, 10, NONE, NONE, NONE, NONE]
    missing = [Reason.NO_CALL, Reason.NO_CALL, Reason.NO_PROCESS]
    assert found.reason.tolist() == [0, 0, *missing, Reason.NO_TASK]


# ---- busy times: a GPU whose every nanosecond is looked at ----

ACTIVITY = st.tuples(
    TIMES,  # start
    st.integers(0, 15),  # how long
    st.sampled_from([0, 1, 1, NONE]),  # GPU
    st.sampled_from([0, 1, 2, NONE]),  # task
    st.integers(0, 6),  # what
    st.integers(0, 3),  # reason, where there is no task
    st.integers(0, 1),  # process, likewise
)


def activities(rows: list[tuple[int, ...]]) -> dict[str, Any]:
    start, length, gpu, task, what, reason, process = columns(
        sorted(rows, key=lambda row: row[0]), 7
    )
    start += 3  # so that no call began at -1
    return {
        "start": start,
        "stop": start + length,
        "gpu": gpu.astype(np.int32),
        "task": task.astype(np.int32),
        "what": what.astype(np.int8),
        "reason": np.where(task == NONE, reason, NONE),
        "process": np.where(task == NONE, process, task % 2),
        "launched": np.where(what == busy.KERNEL, start - 3, NONE),
        "bytes": np.where(what > 0, 10, 0),
    }


def cut(whole: dict[str, Any], places: list[int]) -> list[dict[str, Any]]:
    """Cut activities into parts, as they come from files."""
    cuts = [0, *sorted(min(p, len(whole["start"])) for p in places), len(whole["start"])]
    return [
        {name: values[a:b] for name, values in whole.items()} for a, b in itertools.pairwise(cuts)
    ]


def owners(whole: dict[str, Any], gpu: int) -> dict[int, int]:
    """Give, for each busy ns of a GPU, the row that it belongs to."""
    owner: dict[int, int] = {}
    for row in range(len(whole["start"])):
        if whole["gpu"][row] == gpu and whole["what"][row] != busy.WAIT:
            for ns in range(whole["start"][row], whole["stop"][row]):
                owner.setdefault(ns, row)
    return owner


@given(st.lists(ACTIVITY, max_size=14), st.lists(st.integers(0, 14), max_size=3))
def test_parts_add_up_to_the_gpus_busy_time_to_the_nanosecond(
    rows: list[tuple[int, ...]], places: list[int]
) -> None:
    whole = activities(rows)
    sums = busy.TaskGpu(gpus=2, reasons=4)
    for part in cut(whole, places):
        sums.add(part)
    table = sums.table()
    if not rows:
        assert table == {}
        return

    def who(row: int) -> tuple[int, ...]:
        task, gpu = int(whole["task"][row]), int(whole["gpu"][row])
        if task != NONE:
            return task, NONE, gpu, int(whole["process"][row])
        return NONE, int(whole["reason"][row]), gpu, int(whole["process"][row])

    names = ("task", "reason", "gpu", "process")
    found = {
        key: number
        for number, key in enumerate(zip(*(table[n].tolist() for n in names), strict=True))
    }
    assert len(found) == len(table["task"])
    assert set(found) == {who(row) for row in range(len(rows))}
    for gpu in (0, 1):
        owner = owners(whole, gpu)
        assert table["share"][table["gpu"] == gpu].sum() == len(owner) == sums.busy[gpu]
        for key, number in found.items():
            if key[2] == gpu:
                assert table["share"][number] == sum(who(row) == key for row in owner.values())
    took = whole["stop"] - whole["start"]
    for key, number in found.items():
        own = np.array([row for row in range(len(rows)) if who(row) == key])
        kernels = own[whole["what"][own] == busy.KERNEL]
        waits = own[whole["what"][own] == busy.WAIT]
        runs = [r for r in own if whole["what"][r] != busy.WAIT and key[2] != NONE]
        covered = {ns for r in runs for ns in range(whole["start"][r], whole["stop"][r])}
        assert table["busy"][number] == len(covered)
        assert table["kernels"][number] == len(kernels)
        assert table["kernel_time"][number] == took[kernels].sum()
        assert table["synchronization"][number] == took[waits].sum()
        assert table["latency_max"][number] == (3 if len(kernels) else NONE)
        assert table["latency_mean"][number] == (3 if len(kernels) else NONE)
        first, last = whole["start"][kernels], whole["stop"][kernels]
        assert table["first"][number] == (first.min() if len(kernels) else NONE)
        assert table["last"][number] == (last.max() if len(kernels) else NONE)
        for what, name in ((busy.TO_DEVICE, "to_device"), (busy.FILL, "fills")):
            mine = own[whole["what"][own] == what]
            assert table[f"{name}_time"][number] == took[mine].sum()
            assert table[f"{name}_bytes"][number] == 10 * len(mine)


@given(
    st.lists(ACTIVITY, max_size=14),
    st.lists(st.integers(0, 14), max_size=3),
    st.lists(st.tuples(st.integers(0, 1), TIMES, st.integers(0, 40)), min_size=1, max_size=6),
)
def test_idle_is_what_of_a_task_no_activity_covers(
    rows: list[tuple[int, ...]], places: list[int], asked: list[tuple[int, int, int]]
) -> None:
    whole = activities(rows)
    gpu, start, length = columns(asked, 3)
    found = np.full(len(asked), NONE)
    for places_, idle in busy.idle_times(cut(whole, places), gpu, start, start + length):
        found[places_] = idle
    for (number, first, took), idle in zip(asked, found.tolist(), strict=True):
        owner = owners(whole, number)
        assert idle == sum(ns not in owner for ns in range(first, first + took))


@pytest.mark.parametrize("at_once", [1, 1000])
def test_long_times_stay_exact(at_once: int) -> None:
    """A day of kernels of odd lengths, far beyond what a float holds to the nanosecond."""
    rng = np.random.default_rng(3)
    start = np.sort(rng.integers(0, 86_400 * 10**9, 2000)) + 2**61
    stop = start + rng.integers(1, 10**9, 2000) * 2 + 1
    union = busy.UnionTime()
    group = rng.integers(0, 3, 2000)
    added = np.concatenate(
        [
            union.add(group[i : i + at_once], start[i : i + at_once], stop[i : i + at_once])
            for i in range(0, 2000, at_once)
        ]
    )
    for number in range(3):
        end, total = 0, 0
        for first, last in zip(
            start[group == number].tolist(), stop[group == number].tolist(), strict=True
        ):
            total += max(0, last - max(first, end))
            end = max(end, last)
        assert added[group == number].sum() == total
