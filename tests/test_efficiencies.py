"""POP's factors of synthetic schedules, by answers made by hand, and the tree that shows them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from handmade import Made, Task, Worker, columns, make_trace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pages import check_clean, open_page
from typer.testing import CliRunner

from dasf_hpc.analysis import ANALYSES, Severity, analyse
from dasf_hpc.analysis.devices import devices
from dasf_hpc.analysis.efficiencies import (
    Factors,
    computation_scalability,
    efficiencies,
    factors,
    hosts,
)
from dasf_hpc.analysis.efficiency_tree import FACTORS, lost_by_devices, lost_by_hosts
from dasf_hpc.analysis.executions import read_executions, work_span
from dasf_hpc.analysis.headline import headline
from dasf_hpc.analysis.task_threads import task_threads
from dasf_hpc.cli import app
from dasf_hpc.show.report import write_report
from dasf_hpc.trace.open import Trace, open_trace

MS = 1_024_000  # times of transitions are rounded to 1,024 ns
#: Factors of hosts; of a perfect schedule all are 1.
FACTORS_OF_HOSTS = (
    *("parallel_efficiency", "load_balance", "between_workers", "within_workers"),
    *("communication_efficiency", "serialisation", "transfer"),
    *("data", "scheduling", "submission"),
)
ONE = dict.fromkeys(FACTORS_OF_HOSTS, 1.0)


def _task(key: str, worker: int, start: float, stop: float, **more: Any) -> Task:
    return Task(key, worker, round(start * MS), round(stop * MS), **more)


def _factors(path: Path, made: Made) -> Factors:
    with make_trace(path / "trace.h5", made) as trace:
        return factors(trace)


def _check(found: Factors, duration: float, threads: int, useful: float, **other: float) -> None:
    """Compare factors to what they should be; those that are not named are 1."""
    assert found.duration == round(duration * MS)
    assert found.threads == threads
    assert found.useful == round(useful * MS)
    got = {name: getattr(found, name) for name in ONE}
    assert got == pytest.approx(ONE | other, abs=1e-12)


def _incoming(process: int, start: float, stop: float) -> dict[str, Any]:
    row = {"start": round(start * MS), "stop": round(stop * MS), "process": process}
    return {"transfers": columns([{**row, "direction": "incoming", "nbytes": 10}])}


# -------------------------------------------------------------------------- known schedules


def test_a_perfect_schedule_has_no_factor_below_1(tmp_path: Path) -> None:
    tasks = [_task(f"f-{w}-{i}", w, 10 * i, 10 * i + 10) for w in range(2) for i in range(3)]
    _check(_factors(tmp_path, Made(tasks, [Worker(), Worker()])), 30, 2, 60)


def test_an_idle_worker_is_a_load_imbalance(tmp_path: Path) -> None:
    tasks = [_task(f"f-{i}", 0, 10 * i, 10 * i + 10) for i in range(3)]
    found = _factors(tmp_path, Made(tasks, [Worker(), Worker()]))
    _check(found, 30, 2, 30, parallel_efficiency=0.5, load_balance=0.5, between_workers=0.5)


def test_a_slow_worker_is_a_load_imbalance(tmp_path: Path) -> None:
    tasks = [_task(f"f-0-{i}", 0, 10 * i, 10 * i + 10) for i in range(3)]
    tasks += [_task(f"f-1-{i}", 1, 20 * i, 20 * i + 20) for i in range(3)]
    found = _factors(tmp_path, Made(tasks, [Worker(), Worker()]))
    _check(found, 60, 2, 90, parallel_efficiency=0.75, load_balance=0.75, between_workers=0.75)


def test_a_thread_without_tasks_is_an_imbalance_within_its_worker(tmp_path: Path) -> None:
    tasks = [_task("f-0", 0, 0, 20), _task("f-1", 1, 0, 20), _task("f-2", 1, 0, 20, thread=2)]
    found = _factors(tmp_path, Made(tasks, [Worker(threads=2), Worker(threads=2)]))
    _check(found, 20, 4, 60, parallel_efficiency=0.75, load_balance=0.75, between_workers=0.75)
    # all workers alike: it is not between them
    found = _factors(tmp_path, Made(tasks[:2], [Worker(threads=2), Worker(threads=2)]))
    _check(found, 20, 4, 40, parallel_efficiency=0.5, load_balance=0.5, within_workers=0.5)


def test_a_wait_for_data_is_data_movement(tmp_path: Path) -> None:
    tasks = [_task("a", 0, 0, 10), _task("b", 1, 15, 25, needs=["a"])]
    more = _incoming(1, 10, 15)
    found = _factors(tmp_path, Made(tasks, [Worker(), Worker()], more=more))
    split = {"serialisation": 10 / 20, "transfer": 20 / 25, "data": 20 / 25}
    _check(found, 25, 2, 20, parallel_efficiency=0.4, communication_efficiency=0.4, **split)


def test_a_wait_for_the_scheduler_is_scheduling(tmp_path: Path) -> None:
    tasks = [_task("a", 0, 0, 10), _task("b", 1, 15, 25, needs=["a"])]
    found = _factors(tmp_path, Made(tasks, [Worker(), Worker()]))
    split = {"serialisation": 10 / 20, "transfer": 20 / 25, "scheduling": 20 / 25}
    _check(found, 25, 2, 20, parallel_efficiency=0.4, communication_efficiency=0.4, **split)


def test_a_pause_of_the_script_is_submission(tmp_path: Path) -> None:
    tasks = [_task("a", 0, 0, 10), _task("b", 0, 16, 26)]
    found = _factors(tmp_path, Made(tasks))
    split = {"transfer": 20 / 26, "submission": 20 / 26}
    _check(found, 26, 1, 20, parallel_efficiency=20 / 26, communication_efficiency=20 / 26, **split)


def test_delays_of_all_kinds_are_left_out_one_after_the_other(tmp_path: Path) -> None:
    tasks = [
        _task("a", 0, 0, 10),
        _task("b", 1, 15, 25, needs=["a"]),  # 3 for data, 2 for Dask
        _task("c", 1, 31, 41),  # 6 for the script
    ]
    more = _incoming(1, 10, 13)
    found = _factors(tmp_path, Made(tasks, [Worker(), Worker()], more=more))
    split = {"serialisation": 20 / 30, "transfer": 30 / 41, "data": 38 / 41}
    split |= {"scheduling": 36 / 38, "submission": 30 / 36, "load_balance": 0.75}
    split |= {"between_workers": 0.75, "communication_efficiency": 20 / 41}
    _check(found, 41, 2, 30, parallel_efficiency=30 / 82, **split)


def test_a_chain_over_workers_is_serialisation(tmp_path: Path) -> None:
    tasks = [
        _task("a", 0, 0, 10),
        _task("b", 1, 10, 20, needs=["a"]),
        _task("c", 0, 20, 30, needs=["b"]),
    ]
    found = _factors(tmp_path, Made(tasks, [Worker(), Worker()]))
    whole = {"load_balance": 0.75, "between_workers": 0.75, "communication_efficiency": 2 / 3}
    _check(found, 30, 2, 30, parallel_efficiency=0.5, serialisation=2 / 3, **whole)


def test_work_in_vain_is_useful(tmp_path: Path) -> None:
    tasks = [_task("a", 0, 0, 10, state="error"), _task("a", 0, 10, 20)]
    _check(_factors(tmp_path, Made(tasks)), 20, 1, 20)


# ------------------------------------------------------------------------------ task threads


def _seceding(*, told: bool) -> Made:
    """A worker of one thread: a task that secedes after 10 waits for two of its own until 90."""
    tasks = [
        _task("outer", 0, 0, 100),
        _task("inner-1", 0, 12, 60, thread=2),
        _task("inner-2", 0, 60, 90, thread=2),
        _task("after", 0, 100, 110, thread=2, needs=["outer"]),
    ]
    seceded = [(0, 10 * MS, "outer", "executing", "long-running")]
    return Made(tasks, transitions=seceded if told else [])


def test_a_task_that_secedes_is_useful_until_then(tmp_path: Path) -> None:
    found = _factors(tmp_path, _seceding(told=True))
    # played: 10, 48, 30, then 10 that the outer task does by itself, and 10
    split = {"serialisation": 98 / 108, "transfer": 108 / 110, "submission": 108 / 110}
    whole = {"parallel_efficiency": 98 / 110, "communication_efficiency": 98 / 110}
    _check(found, 110, 1, 98, **whole, **split)
    with open_trace(tmp_path / "trace.h5") as trace:
        answer = efficiencies(trace)
    assert any("1 task did after it seceded: 92.2 ms" in why for why in answer.unanswered)


def test_a_worker_that_runs_more_at_once_than_it_has_threads_has_more(tmp_path: Path) -> None:
    found = _factors(tmp_path, _seceding(told=False))
    assert (found.threads, found.useful) == (2, 188 * MS)
    assert found.parallel_efficiency == pytest.approx(188 / 220, abs=1e-12)
    # coroutines are all in one native thread
    tasks = [_task(f"f-{i}", 0, i, 10 + i) for i in range(4)]
    found = _factors(tmp_path, Made(tasks, [Worker(threads=2)]))
    assert (found.threads, found.useful) == (4, 40 * MS)
    assert found.parallel_efficiency == pytest.approx(40 / 52, abs=1e-12)


def test_native_threads_that_come_and_go_share_the_workers_threads(tmp_path: Path) -> None:
    tasks = [_task(f"f-{i}", 0, 10 * i, 10 * i + 10, thread=i + 1) for i in range(6)]
    tasks += [_task(f"g-{i}", 0, 10 * i, 10 * i + 10, thread=50) for i in range(6)]
    _check(_factors(tmp_path, Made(tasks, [Worker(threads=2)])), 60, 2, 120)


def test_a_restarted_worker_goes_on_with_its_threads(tmp_path: Path) -> None:
    tasks = [_task("a", 0, 0, 10), _task("b", 1, 10, 20), _task("c", 2, 0, 20)]
    row = {"role": "worker", "node": 0, "clock": 0, "nthreads": 1}
    lives = [("one", 0, 9), ("one", 10, 20), ("other", 0, 20)]
    processes = [row | {"name": n, "start": a * MS, "stop": b * MS} for n, a, b in lives]
    made = Made(tasks, [Worker()] * 3, more={"processes": columns(processes)})
    found = _factors(tmp_path, made)
    _check(found, 20, 2, 40)
    with open_trace(tmp_path / "trace.h5") as trace:
        table = efficiencies(trace).tables["workers"]
    assert table["worker"].tolist() == ["one", "other"]
    assert table["useful"].tolist() == [20 * MS, 20 * MS]
    # of one name at one time are two
    made.more["processes"]["start"][1] = 5 * MS
    assert _factors(tmp_path, made).threads == 3


# ------------------------------------------------------------------------- random schedules


@st.composite
def _schedules(draw: st.DrawFn) -> Made:
    """Workers of some threads; tasks that begin when what they need has ended, or later."""
    threads = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    free = {(w, t): 0 for w, count in enumerate(threads) for t in range(count)}
    lanes = sorted(free)
    tasks: list[Task] = []
    stop: dict[str, int] = {}
    for i in range(draw(st.integers(1, 14))):
        lane = draw(st.sampled_from(lanes))
        needs = draw(st.lists(st.sampled_from(sorted(stop)), max_size=3, unique=True)) if i else []
        ready = max([free[lane], *(stop[key] for key in needs)])
        start = ready + draw(st.integers(0, 5)) * MS
        end = start + draw(st.integers(0, 20)) * MS
        key = f"f{i}-{i}"
        tasks.append(Task(key, lane[0], start, end, thread=lane[1] + 1, needs=needs))
        stop[key] = free[lane] = end
    moved = [
        {
            "process": draw(st.integers(0, len(threads) - 1)),
            "start": (at := draw(st.integers(0, 100)) * MS),
            "stop": at + draw(st.integers(0, 20)) * MS,
            "direction": "incoming",
            "nbytes": 1,
        }
        for _ in range(draw(st.integers(0, 3)))
    ]
    known = [(t.worker, 0, t.key, "released", "waiting") for t in tasks]
    return Made(
        tasks,
        [Worker(node=w, threads=count) for w, count in enumerate(threads)],
        transitions=known if draw(st.booleans()) else [],
        more={"transfers": columns(moved)},
    )


def _longest(made: Made) -> int:
    """Give the longest way through what tasks need and their threads, without any delay, ns."""
    ends: dict[str, int] = {}
    free: dict[tuple[int, int], int] = {}
    for task in sorted(made.tasks, key=lambda t: t.start):
        lane = (task.worker, task.thread)
        begin = max([free.get(lane, 0), *(ends[key] for key in task.needs)])
        ends[task.key] = free[lane] = begin + task.stop - task.start
    return max(ends.values())


@given(_schedules())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_factors_multiply_to_the_whole_and_losses_add_to_it(made: Made) -> None:
    with (
        TemporaryDirectory() as folder,
        make_trace(Path(folder) / "trace.h5", made) as trace,
    ):
        found, of = factors(trace), hosts(trace)
        lost = lost_by_hosts(of.threads, of.lengths)
        tree = efficiencies(trace).table
    useful = sum(task.stop - task.start for task in made.tasks)
    first = min(task.start for task in made.tasks)
    duration = max(task.stop for task in made.tasks) - first
    assert (found.useful, found.duration) == (useful, duration)
    assert found.threads == sum(worker.threads for worker in made.workers)
    if not useful:
        assert np.isnan(found.load_balance)
        assert found.parallel_efficiency == 0 or not duration
        return
    assert found.parallel_efficiency == pytest.approx(
        useful / (found.threads * duration), abs=1e-12, rel=0
    )
    assert found.parallel_efficiency == pytest.approx(
        found.load_balance * found.communication_efficiency, abs=1e-12, rel=0
    )
    assert found.load_balance == pytest.approx(
        found.between_workers * found.within_workers, abs=1e-12, rel=0
    )
    assert found.communication_efficiency == pytest.approx(
        found.serialisation * found.transfer, abs=1e-12, rel=0
    )
    assert found.transfer == pytest.approx(
        found.data * found.scheduling * found.submission, abs=1e-12, rel=0
    )
    assert all(0 < getattr(found, name) <= 1 for name in ONE)
    lengths = asdict(of.lengths)
    del lengths["exact"]
    assert all(one >= other for one, other in pairwise(lengths.values()))
    if made.transitions:  # without them a moment in which no task is known is a barrier
        assert of.lengths.ideal == _longest(made)
    else:
        assert of.lengths.ideal >= _longest(made)
    leaves = [name for name in FACTORS_OF_HOSTS if name in lost and name != "load_balance"]
    assert min(lost.values()) >= 0
    assert sum(lost[name] for name in leaves) == found.threads * duration - useful
    # the table says the same, and each factor is the product of its parts
    values = dict(zip(tree["factor"], tree["value"] / 100, strict=True))
    for name in values:
        parts = [
            values[one] for one in values if tree["parent"][tree["factor"] == one].item() == name
        ]
        if parts:
            assert values[name] == pytest.approx(float(np.prod(parts)), abs=1e-12, rel=0)
    assert tree["lost"][0] == found.threads * duration - useful


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30), st.integers(1, 9)), min_size=1),
    st.integers(1, 3),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_task_thread_does_two_things_at_a_time(
    given_tasks: list[tuple[int, int, int]], threads: int
) -> None:
    tasks = [
        Task(f"f-{i}", 0, start, start + took, thread=thread)
        for i, (thread, start, took) in enumerate(given_tasks)
    ]
    with (
        TemporaryDirectory() as folder,
        make_trace(Path(folder) / "trace.h5", Made(tasks, [Worker(threads=threads)])) as trace,
    ):
        from dasf_hpc.analysis.savings import savings

        run = savings(trace)
        found = task_threads(trace, run.runs, run.graph, run.found)
    at_once = max(sum(t.start <= moment < t.stop for t in tasks) for moment in range(40))
    assert threads <= len(found) <= max(threads, at_once, 1)
    for one in range(len(found)):
        mine = np.flatnonzero(found.of == one)
        assert (run.graph.stop[mine][:-1] <= run.graph.start[mine][1:]).all()
    assert found.useful.sum() == sum(t.stop - t.start for t in tasks)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),  # worker
            st.integers(0, 3),  # native thread
            st.integers(0, 60),  # start
            st.integers(1, 20),  # time
            st.integers(0, 30),  # secedes after so much, if it runs so long
            st.lists(st.integers(1, 4), max_size=2),  # needs what began so many before it
        ),
        min_size=1,
        max_size=14,
    ),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_clocks_and_tasks_do_factors_stay_factors(
    drawn: list[tuple[int, int, int, int, int, list[int]]], threads: int
) -> None:
    # tasks overlap in their threads, secede, and begin before what they need has ended
    drawn.sort(key=lambda one: one[2])
    tasks = [
        _task(
            f"f{i}", w, start, start + took, thread=t, needs=[f"f{i - n}" for n in needs if n <= i]
        )
        for i, (w, t, start, took, _, needs) in enumerate(drawn)
    ]
    away = [
        (w, (start + after) * MS, f"f{i}", "executing", "long-running")
        for i, (w, _, start, took, after, _) in enumerate(drawn)
        if after < took
    ]
    made = Made(tasks, [Worker(threads=threads), Worker(threads=threads)], transitions=away)
    with TemporaryDirectory() as folder, make_trace(Path(folder) / "trace.h5", made) as trace:
        found, of = factors(trace), hosts(trace)
        lost = lost_by_hosts(of.threads, of.lengths)
    assert found.useful == sum(min(took, after) for *_, took, after, _ in drawn) * MS
    if not found.useful:
        return
    assert of.threads.useful.max() <= found.duration
    assert all(0 < getattr(found, name) <= 1 for name in ONE)
    product = found.load_balance * found.serialisation
    product *= found.data * found.scheduling * found.submission
    assert found.parallel_efficiency == pytest.approx(product, abs=1e-12, rel=0)
    leaves = [name for name in FACTORS_OF_HOSTS if name in lost and name != "load_balance"]
    assert min(lost.values()) >= 0
    assert sum(lost[name] for name in leaves) == found.threads * found.duration - found.useful


def test_of_very_many_executions_the_critical_path_bounds_the_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [
        _task("a", 0, 0, 10),
        _task("b", 1, 15, 25, needs=["a"]),
        _task("c", 0, 10, 18),
        _task("d", 0, 20, 24),
    ]
    made = Made(tasks, [Worker(), Worker()])
    exact = _factors(tmp_path, made)
    monkeypatch.setattr("dasf_hpc.analysis.savings.PLAYED", 3)
    with make_trace(tmp_path / "trace.h5", made) as trace:
        bound, answer = factors(trace), efficiencies(trace)
    assert (exact.exact, bound.exact) == (True, False)
    same = ("parallel_efficiency", "load_balance", "communication_efficiency", "between_workers")
    assert [getattr(exact, name) for name in same] == [getattr(bound, name) for name in same]
    assert bound.transfer <= exact.transfer
    assert bound.serialisation >= exact.serialisation
    assert bound.serialisation * bound.transfer == pytest.approx(exact.communication_efficiency)
    assert any("critical path is told" in why for why in answer.unanswered)


# -------------------------------------------------------------------------------------- GPUs


def _ran(gpu: int, start: float, stop: float, task: int = 0, **more: Any) -> dict[str, Any]:
    times = {"start": round(start * MS), "stop": round(stop * MS), "task": task}
    return {"process": gpu, "gpu": gpu, **times, **more}


def _call(process: int, start: float, stop: float, name: str, task: int = 0) -> dict[str, Any]:
    times = {"start": round(start * MS), "stop": round(stop * MS), "task": task}
    return {"process": process, "name": name, **times}


def _on_gpus(path: Path, calls: Sequence[dict[str, Any]] = ()) -> Trace:
    """Two workers with a GPU each execute a task of 100.

    GPU 0 runs kernels for 40 and copies for 20, of which 10 beside a kernel; GPU 1 runs kernels for
    20, two at once for a while, and one of them goes on after the last task.
    """
    kernel: dict[str, Any] = {"name": "k()", "short_name": "k"}
    more: dict[str, Any] = {
        "gpus": columns(
            [{"node": 0, "index": i, "uuid": f"GPU-{i}", "name": "H100"} for i in (0, 1)]
        ),
        "kernels": columns(
            [
                _ran(0, 10, 50, **kernel),
                _ran(1, 20, 30, 1, **kernel),
                _ran(1, 25, 35, 1, **kernel),
                _ran(1, 95, 120, 1, **kernel),
            ]
        ),
        "memcpys": columns([_ran(0, 40, 60, bytes=10, kind="host to device")]),
    }
    if calls:
        more["cuda_api"] = columns(list(calls))
    workers = [Worker(gpus="GPU-0"), Worker(gpus="GPU-1")]
    tasks = [_task("f-0", 0, 0, 100), _task("f-1", 1, 0, 100)]
    return make_trace(path / "trace.h5", Made(tasks, workers, more=more))


def _values(trace: Trace) -> dict[str, float]:
    table = efficiencies(trace).table
    return dict(zip(table["factor"], table["value"] / 100, strict=True))


def test_two_gpus_with_known_kernels(tmp_path: Path) -> None:
    with _on_gpus(tmp_path) as trace:
        values, answer = _values(trace), efficiencies(trace)
    expected = {
        "device_parallel_efficiency": 60 / 200,
        "device_load_balance": 60 / 80,
        "device_communication": 40 / 50,
        "orchestration": 50 / 100,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert "host_parallel_efficiency" not in values  # calls of CUDA are not known
    assert any("spent in calls of CUDA: not recorded" in why for why in answer.unanswered)
    gpus = answer.tables["gpus"]
    assert gpus["kernels"].tolist() == [40 * MS, 20 * MS]
    assert gpus["memory"].tolist() == [10 * MS, 0]
    tree = answer.table.set_index("factor")
    lost = tree["lost"]
    assert lost["device_parallel_efficiency"] == 140 * MS
    assert lost["orchestration"] == 2 * 50 * MS
    assert tree["worst"]["orchestration"]
    assert not tree["worst"]["device_load_balance"]
    assert not answer.table["worst"][answer.table["factor"] == "load_balance"].any()


def test_time_in_calls_of_cuda_is_what_offloading_costs(tmp_path: Path) -> None:
    calls = [
        _call(0, 10, 40, "cudaDeviceSynchronize"),
        _call(0, 20, 30, "cuStreamSynchronize"),  # within the other
        _call(1, 90, 130, "cudaMemcpy", 1),  # its task ends before
        _call(1, 0, 10, "cudaMalloc", -1),  # of no task
    ]
    with _on_gpus(tmp_path, calls) as trace:
        values, answer = _values(trace), efficiencies(trace)
    # 30 of 100, and 40 of 100: for that long it was in a call, whatever its task's clock says
    assert values["device_offload_efficiency"] == pytest.approx(130 / 200, abs=1e-12)
    assert values["host_parallel_efficiency"] == pytest.approx(
        values["parallel_efficiency"] * values["device_offload_efficiency"], abs=1e-12
    )
    assert answer.table["factor"][0] == "host_parallel_efficiency"
    assert answer.table.set_index("factor")["lost"]["device_offload_efficiency"] == 70 * MS
    # a host that waits for its GPU is not pointed at: the GPU's own factors are
    (device,) = answer.findings
    assert "GPUs ran kernels for 30 % of the run" in device.sentence


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 80), st.integers(1, 40)),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_factors_of_gpus_multiply_to_the_whole(
    ran: list[tuple[bool, int, int, int]],
) -> None:
    rows: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for kernel, gpu, start, took in ran:
        name: dict[str, Any] = {"name": "k()", "short_name": "k"} if kernel else {"bytes": 1}
        rows[kernel].append(_ran(gpu, start, start + took, **name))
    more = {
        "gpus": columns([{"node": 0, "index": i, "uuid": f"GPU-{i}"} for i in range(3)]),
        "kernels": columns(rows[True]),
        "memcpys": columns(rows[False]),
    }
    workers = [Worker(gpus=f"GPU-{i}") for i in range(3)]
    made = Made([_task("f", 0, 0, 100)], workers, more={k: v for k, v in more.items() if v})
    with TemporaryDirectory() as folder, make_trace(Path(folder) / "trace.h5", made) as trace:
        runs = read_executions(trace)
        found = devices(trace, runs, work_span(trace, runs))
    kernels, busy = (
        [
            {t for k, g, a, d in ran if (k or both) and g == gpu for t in range(a, min(100, a + d))}
            for gpu in range(3)
        ]
        for both in (False, True)
    )
    assert found.kernels.tolist() == [len(moments) * MS for moments in kernels]
    assert (found.kernels + found.memory).tolist() == [len(moments) * MS for moments in busy]
    if not any(kernels):
        assert np.isnan(found.load_balance)
        return
    whole = found.parallel_efficiency
    assert whole == pytest.approx(sum(map(len, kernels)) / 300, abs=1e-12, rel=0)
    parts = (
        found.load_balance,
        found.communication_efficiency,
        found.orchestration_efficiency,
    )
    assert all(0 < one <= 1 for one in parts)
    assert whole == pytest.approx(float(np.prod(parts)), abs=1e-12, rel=0)
    lost = lost_by_devices(found)
    assert sum(lost.values()) == 3 * found.duration - found.kernels.sum()
    assert min(lost.values()) >= 0


# --------------------------------------------------------------------------- between two runs


def test_computation_scalability_is_of_useful_time(tmp_path: Path) -> None:
    few = [_task(f"f-{i}", 0, 10 * i, 10 * i + 10) for i in range(4)]
    many = [_task(f"f-{i}", i, 0, 12.5) for i in range(4)]
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    one = _factors(tmp_path / "few", Made(few))
    four = _factors(tmp_path / "many", Made(many, [Worker() for _ in range(4)]))
    assert computation_scalability(one, four) == pytest.approx(0.8)
    assert computation_scalability(one, one) == 1
    assert np.isnan(computation_scalability(one, replace(four, useful=0)))
    run = [str(tmp_path / "many"), "--reference", str(tmp_path / "few")]
    asked = CliRunner().invoke(app, ["analyze", "efficiencies", *run, "--json"])
    assert asked.exit_code == 0, asked.output
    rows = json.loads(asked.stdout)["tables"]["tree"]["rows"]
    of = {row["factor"]: row for row in rows}
    assert list(of)[:3] == ["global_efficiency", "computation_scalability", "parallel_efficiency"]
    assert of["global_efficiency"]["value"] == pytest.approx(80)
    assert of["computation_scalability"]["value"] == pytest.approx(80)
    assert of["computation_scalability"]["lost"] == 10 * MS
    assert of["parallel_efficiency"]["reference"] == pytest.approx(100)
    shown = CliRunner().invoke(app, ["analyze", "efficiencies", *run])
    assert "  Parallel efficiency" in shown.stdout
    assert "Reference" in shown.stdout
    make_trace(tmp_path / "few" / "trace.h5", Made([], span=(0, 5))).close()
    with open_trace(tmp_path / "many") as trace, open_trace(tmp_path / "few") as empty:
        for asked_of, reference in ((trace, empty), (empty, trace)):
            answer = efficiencies(asked_of, reference)
            assert "How the computation scales" in answer.unanswered[-1]
            assert "global_efficiency" not in answer.table["factor"].tolist()
    refused = CliRunner().invoke(app, ["analyze", "where", *run])
    assert refused.exit_code == 2
    assert "takes no --reference" in refused.output


# ---------------------------------------------------------------------------------- findings


def test_the_worst_factor_is_told_once_as_the_cause_that_it_is(tmp_path: Path) -> None:
    tasks = [_task(f"f-{i}", 0, i, i + 1) for i in range(50)]
    tasks += [_task(f"g-{i}", 0, 100 + i, 101 + i) for i in range(50)]
    with make_trace(tmp_path / "trace.h5", Made(tasks)) as trace:
        answers = {name: analyse(name, trace) for name in ANALYSES}
        told = headline(trace, answers)
    (own,) = answers["efficiencies"].findings
    assert own.severity == Severity.WARNING
    assert own.cause == "the script submitted nothing"
    assert own.saves == 50 * MS
    assert "submission 67 %), which loses 51.2 ms of the run" in own.sentence
    assert len([f for f in told.findings if f.cause == own.cause]) == 1
    assert told.avoidable == 50 * MS
    (row,) = own.rows
    assert answers["efficiencies"].table["factor"][row] == "submission"


def test_where_nothing_is_low_nothing_is_told(tmp_path: Path) -> None:
    tasks = [_task(f"f-{i}", i % 2, 10 * (i // 2), 10 * (i // 2) + 9) for i in range(20)]
    with make_trace(tmp_path / "trace.h5", Made(tasks, [Worker(), Worker()])) as trace:
        assert efficiencies(trace).findings == []


def test_every_factor_says_how_it_is_made(tmp_path: Path) -> None:
    for name, (parent, formula, meaning) in FACTORS.items():
        assert parent in (*FACTORS, ""), name
        assert "÷" in formula or "×" in formula
        assert meaning
    with make_trace(tmp_path / "trace.h5", Made([], span=(0, 5))) as trace:
        answer = efficiencies(trace)
        assert not answer.looked
        assert "no task was executed" in answer.unanswered[0]
        assert np.isnan(factors(trace).parallel_efficiency)


def test_tasks_that_took_no_time_are_no_error(tmp_path: Path) -> None:
    tasks = [_task("a", 0, 5, 5), _task("b", 0, 5, 5), _task("c", 0, 8, 8)]
    with make_trace(tmp_path / "trace.h5", Made(tasks)) as trace:
        found, answer = factors(trace), efficiencies(trace)
    assert found.parallel_efficiency == 0
    assert np.isnan(found.transfer)
    assert answer.table["factor"].tolist() == ["parallel_efficiency"]
    assert any("no task took any time" in why for why in answer.unanswered)


# ------------------------------------------------------------------- on the terminal, the page


@pytest.fixture(scope="module")
def low(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose factors are low, of workers and of GPUs, and its report."""
    path = tmp_path_factory.mktemp("low")
    calls = [_call(0, 10, 40, "cudaDeviceSynchronize")]
    _on_gpus(path, calls).close()
    write_report(path)
    return path


def test_show_prints_the_tree_indented(tmp_path: Path) -> None:
    tasks = [_task("a", 0, 0, 10), _task("b", 1, 15, 25, needs=["a"])]
    make_trace(tmp_path / "trace.h5", Made(tasks, [Worker(), Worker()])).close()
    shown = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    lines = [line.rstrip() for line in shown.stdout.splitlines() if "%" in line]
    indented = [line[2:].split("  %")[0] for line in lines]
    assert indented[0].startswith("Parallel efficiency")
    assert any(line.startswith("  Communication efficiency") for line in indented)
    assert any(line.startswith("    Serialisation") and "the worst" in line for line in indented)
    assert any(line.startswith("      Scheduling") for line in indented)
    document = json.loads(CliRunner().invoke(app, ["show", str(tmp_path), "--json"]).stdout)
    rows = document["efficiencies"]
    assert [row["factor"] for row in rows if row["worst"]] == ["serialisation"]
    assert rows[0]["value"] == pytest.approx(40)


def test_the_summary_of_a_large_run_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dasf_hpc.show.efficiencies.QUICK", 1)
    make_trace(tmp_path / "trace.h5", Made([_task("a", 0, 0, 5), _task("b", 0, 5, 9)])).close()
    shown = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert "Efficiencies of 2 executions: dasf-hpc analyze efficiencies" in shown.stdout
    document = json.loads(CliRunner().invoke(app, ["show", str(tmp_path), "--json"]).stdout)
    assert document["efficiencies"] is None


def test_the_page_has_the_tree_and_its_table_closed(low: Path) -> None:
    text = (low / "report.html").read_text()
    assert '<section id="efficiencies">' in text
    assert text.count('class="factors"') == 2
    assert text.count("the worst factor<") == 1
    closed = '<details class="data">\n<summary>Efficiencies, factor by factor'
    assert closed in text


@pytest.mark.needs("browser")
@pytest.mark.parametrize(("width", "theme"), [(1400, "light"), (900, "dark"), (360, "light")])
def test_the_tree_in_a_browser(browser: Any, low: Path, width: int, theme: str) -> None:
    page = low / "report.html"
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    try:
        open_page(browser, page, theme)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        boxes = browser.execute_script(
            "return [...document.querySelectorAll('.factor')].map(f => {"
            "const r = f.getBoundingClientRect();"
            "return [f.dataset.factor, r.left, r.right, r.top, r.bottom, f.scrollWidth,"
            " f.clientWidth];})"
        )
        names = [box[0] for box in boxes]
        assert names[:3] == [
            "Host parallel efficiency",
            "Device offload efficiency",
            "Parallel efficiency",
        ]
        assert "Device parallel efficiency" in names
        # each is whole, and none covers another
        assert all(box[5] <= box[6] for box in boxes)
        for i, (_, left, right, top, bottom, *_) in enumerate(boxes):
            assert 0 <= left < right <= width
            for _, begin, end, above, below, *_ in boxes[i + 1 :]:
                assert right <= begin or end <= left or bottom <= above or below <= top
        # its formula comes with the focus, by keyboard, within the page
        for name in ("Orchestration", "Device load balance", "Host parallel efficiency"):
            shown = browser.execute_script(
                "const f = document.querySelector(`[data-factor='${arguments[0]}']`);"
                "const note = f.querySelector('.factor-formula');"
                "const before = note.getClientRects().length; f.focus();"
                "const r = note.getBoundingClientRect();"
                "return [before, r.left, r.right, r.height, note.textContent];",
                name,
            )
            assert shown[0] == 0
            assert 0 <= shown[1] < shown[2] <= width
            assert shown[3] > 10
            assert "÷" in shown[4] or "×" in shown[4]
        bars = browser.execute_script(
            "return [...document.querySelectorAll('.factor-bar i')].map(i => "
            "[i.getBoundingClientRect().width / i.parentNode.getBoundingClientRect().width,"
            " getComputedStyle(i).backgroundImage])"
        )
        with open_trace(low) as trace:
            values = efficiencies(trace).table["value"].tolist()
        assert [bar[0] for bar in bars] == pytest.approx([v / 100 for v in values], abs=0.01)
        for value, (_, image) in zip(values, bars, strict=True):  # a pattern where it is low
            assert (image == "none") == (value >= 80)
        check_clean(browser)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
