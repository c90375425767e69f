"""Where the workers' time went: exact to the nanosecond, against a count of each moment."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from handmade import Made, Task, Worker, make_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import write_run

from dasf_hpc.analysis import idle, slots
from dasf_hpc.analysis.answer import Answer, Severity, told_as_one
from dasf_hpc.analysis.where import PARTS, where
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.names import natural, process_names
from dasf_hpc.trace.open import open_trace

Transition = tuple[int, int, str, str, str]


def _life(worker: int, key: str, arrival: int, ready: int, stop: int) -> list[Transition]:
    """Give the transitions of a task on its worker."""
    return [
        (worker, arrival, key, "released", "waiting"),
        (worker, ready, key, "waiting", "ready"),
        (worker, ready, key, "ready", "executing"),
        (worker, stop, key, "executing", "memory"),
    ]


def _flight(worker: int, key: str, start: int, stop: int) -> list[Transition]:
    return [
        (worker, start, key, "fetch", "flight"),
        (worker, stop, key, "flight", "memory"),
    ]


def _parts(answer: Answer, worker: int) -> dict[str, int]:
    row = answer.tables["workers"].iloc[worker]
    return {part: int(row[part]) for part in PARTS if row[part]}


def test_each_part_of_a_plain_run(tmp_path: Path) -> None:
    tasks = [
        Task("a-1", 0, 100, 200),
        Task("b-1", 1, 260, 300, needs=["a-1"]),
        Task("c-1", 0, 400, 500, needs=["b-1"]),
    ]
    transitions = [
        *_life(0, "a-1", 90, 95, 200),
        *_life(1, "b-1", 220, 255, 300),
        *_flight(1, "a-1", 225, 250),
        *_life(0, "c-1", 390, 395, 500),
    ]
    made = Made(
        tasks, [Worker(start=50, stop=600), Worker(start=120, stop=550)], transitions, (0, 700)
    )
    with make_trace(tmp_path / "trace.h5", made) as trace:
        answer = where(trace)
    # 200 to 220, b, and 300 to 390, c: a task that could run was on no worker, and two slots idled
    assert _parts(answer, 0) == {
        "executing": 200,
        "dispatching": 10,  # 95 to 100, 395 to 400
        "waiting": 10,  # 90 to 95, 390 to 395: no data was on its way
        "scheduler": 10 + 45,
        "no_parallelism": 10 + 80 + 45,
        "starting": 90,
        "stopping": 200,
    }
    assert _parts(answer, 1) == {
        "executing": 40,
        "dispatching": 5,
        "transferring": 25,
        "waiting": 5 + 5,
        "scheduler": 10 + 45,
        "no_parallelism": 80 + 10 + 45 + 110,
        "starting": 120,
        "stopping": 200,
    }
    for row in answer.tables["workers"].to_dict("records"):
        assert sum(row[part] for part in PARTS) == row["wall"] == 700


def test_a_call_of_an_actor_executes_and_is_no_task_of_the_workers_states(tmp_path: Path) -> None:
    tasks = [
        Task("a-1", 0, 0, 100),
        Task("A.work-(A-1)-2", 0, 100, 300, thread=8),
        # ready from 150 on, beside the actor, whose call is not the one that was assigned
        Task("b-1", 0, 200, 260),
        Task("A.work-(A-1)-3", 0, 320, 400, thread=8),
    ]
    transitions = [*_life(0, "a-1", 0, 0, 100), *_life(0, "b-1", 150, 150, 260)]
    made = Made(tasks, [Worker(threads=2)], transitions, (0, 400))
    with make_trace(tmp_path / "trace.h5", made) as trace:
        assert _parts(where(trace), 0) == {
            "executing": 100 + 200 + 60 + 80,
            "dispatching": 50,
            "no_parallelism": 100 + 50 + 40 + 80,
            "nothing_submitted": 40,
        }


def test_a_worker_without_tasks_beside_a_queue_is_uneven_work(tmp_path: Path) -> None:
    tasks = [Task(f"a-{i}", 0, 10 + 100 * i, 110 + 100 * i) for i in range(3)]
    transitions = [t for task in tasks for t in _life(0, task.key, 10, 10, task.stop)]
    made = Made(tasks, [Worker(), Worker()], transitions)
    with make_trace(tmp_path / "trace.h5", made) as trace:
        answer = where(trace)
    assert _parts(answer, 0) == {"executing": 300, "starting": 10}
    # while the last one is executed, nothing queues any more
    assert _parts(answer, 1) == {"elsewhere": 200, "no_parallelism": 100, "starting": 10}


def test_tasks_of_one_array_were_submitted_at_once(tmp_path: Path) -> None:
    keys = [f"('blocks-0a1b', {i})" for i in range(3)]
    tasks = [Task(key, 0, 100 * i, 100 * i + 60) for i, key in enumerate(keys)]
    transitions = [
        t for task in tasks for t in _life(0, task.key, task.start, task.start, task.stop)
    ]
    with make_trace(tmp_path / "one.h5", Made(tasks, [Worker()], transitions)) as trace:
        assert _parts(where(trace), 0) == {"executing": 180, "scheduler": 80}
    for task, key in zip(tasks, ("f-1", "g-2", "h-3"), strict=True):
        task.key = key
    transitions = [
        t for task in tasks for t in _life(0, task.key, task.start, task.start, task.stop)
    ]
    with make_trace(tmp_path / "three.h5", Made(tasks, [Worker()], transitions)) as trace:
        assert _parts(where(trace), 0) == {"executing": 180, "nothing_submitted": 80}


def test_a_full_worker_is_paused_and_disk_comes_before(tmp_path: Path) -> None:
    made = Made(
        [Task("a-1", 0, 300, 400)],
        [Worker(memory_limit=1000)],
        _life(0, "a-1", 0, 0, 400),
        more={
            "process_samples": {
                "time": [0, 100, 200],
                "process": [0, 0, 0],
                "memory": [100, 900, 700],
            },
            "activities": {
                "start": [120, 250],
                "stop": [150, 260],
                "process": [0, 0],
                "key": ["a-1", "a-1"],
                "action": ["disk-write", "deserialize"],
            },
        },
    )
    with make_trace(tmp_path / "trace.h5", made) as trace:
        assert _parts(where(trace), 0) == {
            "executing": 100,
            "deserialising": 10,
            "disk": 30,
            "paused": 70,
            "dispatching": 190,
        }


def test_threads_are_counted_each(tmp_path: Path) -> None:
    tasks = [Task("a-1", 0, 0, 100, thread=1), Task("b-1", 0, 0, 40, thread=2)]
    transitions = [*_life(0, "a-1", 0, 0, 100), *_life(0, "b-1", 0, 0, 40)]
    made = Made(tasks, [Worker(threads=3)], transitions, (0, 100))
    with make_trace(tmp_path / "trace.h5", made) as trace:
        answer = where(trace)
    assert answer.tables["workers"]["wall"].item() == 300
    assert _parts(answer, 0) == {"executing": 140, "no_parallelism": 160}


_TASKS = st.lists(
    st.tuples(
        st.integers(0, 2),  # worker
        st.integers(0, 60),  # arrival
        st.integers(0, 8),  # until ready
        st.integers(0, 8),  # until start
        st.integers(0, 25),  # duration
        st.booleans(),  # whether it is of the array
        st.lists(st.integers(0, 7), max_size=2),  # needs
        st.tuples(st.integers(0, 9), st.integers(0, 20)),  # fetches: begins after arrival, lasts
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=30, deadline=None)
@given(
    _TASKS,
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 40), st.integers(50, 130)),
        min_size=3,
        max_size=3,
    ),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 100), st.integers(0, 20)), max_size=3),
)
def test_the_parts_are_those_of_a_count_of_each_moment(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, int, int, int, int, bool, list[int], tuple[int, int]]],
    lives: list[tuple[int, int, int]],
    disks: list[tuple[int, int, int]],
) -> None:
    keys = [f"('x-1', {i})" if row[5] else f"f-{i}" for i, row in enumerate(rows)]
    tasks, arrivals, readies, transitions = [], [], [], []
    flights: list[tuple[int, int, int]] = []
    for i, (worker, arrival, to_ready, to_start, length, _, needs, fetch) in enumerate(rows):
        ready = arrival + to_ready
        start = ready + to_start
        stop = start + length
        needed = [keys[n] for n in needs if n < i]
        tasks.append(Task(keys[i], worker, start, stop, thread=i, needs=needed))
        arrivals.append(arrival)
        readies.append(ready)
        transitions += _life(worker, keys[i], arrival, ready, stop)
        if needed and fetch[1]:
            flights.append((worker, arrival + fetch[0], arrival + fetch[0] + fetch[1]))
            transitions += _flight(worker, needed[0], *flights[-1][1:])
    made = Made(
        tasks,
        [Worker(threads=t, start=a, stop=b) for t, a, b in lives],
        transitions,
        (0, 120),
        more={
            "activities": {
                "start": [d[1] for d in sorted(disks, key=lambda d: d[1])],
                "stop": [d[1] + d[2] for d in sorted(disks, key=lambda d: d[1])],
                "process": [d[0] for d in sorted(disks, key=lambda d: d[1])],
                "key": [keys[0]] * len(disks),
                "action": ["disk-read"] * len(disks),
            }
        }
        if disks
        else {},
    )
    path = tmp_path_factory.mktemp("where") / "trace.h5"
    with make_trace(path, made) as trace:
        table = where(trace).tables["workers"]
    expected = _count_each_moment(tasks, arrivals, readies, flights, lives, disks)
    for worker, counts in enumerate(expected):
        row = table.iloc[worker]
        assert sum(int(row[part]) for part in PARTS) == row["wall"]
        for part in PARTS:
            # shares of several idle slots need not be whole numbers
            assert abs(int(row[part]) - counts[part]) <= 1.5, (worker, part, row.to_dict(), counts)


def _count_each_moment(
    tasks: list[Task],
    arrivals: list[int],
    readies: list[int],
    flights: list[tuple[int, int, int]],
    lives: list[tuple[int, int, int]],
    disks: list[tuple[int, int, int]],
) -> list[dict[str, float]]:
    """Split the time of each worker, looking at each nanosecond."""
    end = max([120, *(t.stop for t in tasks), *(b for _, _, b in lives)])
    first = min([*arrivals, *(t.start for t in tasks)])
    last = max(t.stop for t in tasks)
    done = {t.key: t.stop for t in tasks}
    array = [
        a for a, t in zip(arrivals, tasks, strict=True) if t.key.startswith("(") and not t.needs
    ]
    able = [
        max(done[n] for n in t.needs)
        if t.needs
        else min(array)
        if t.key.startswith("(")
        else arrival
        for t, arrival in zip(tasks, arrivals, strict=True)
    ]
    parts: list[dict[str, float]] = [defaultdict(float) for _ in lives]
    for now in range(end):
        left = []
        queued = 0
        for worker, (threads, up, down) in enumerate(lives):
            mine = [i for i, t in enumerate(tasks) if t.worker == worker]
            up = min([up, *(tasks[i].start for i in mine)])
            down = max([down, *(tasks[i].stop for i in mine)])
            begin = max(up, first)
            if now < begin:
                parts[worker]["starting"] += threads
                left.append(0)
                continue
            if now >= max(begin, min(down, last)):
                parts[worker]["stopping"] += threads
                left.append(0)
                continue
            running = sum(tasks[i].start <= now < tasks[i].stop for i in mine)
            assigned = sum(readies[i] <= now < tasks[i].stop for i in mine)
            waits = sum(arrivals[i] <= now < readies[i] for i in mine)
            coming = any(w == worker and a <= now < b for w, a, b in flights)
            causes = {
                "executing": running,
                "disk": sum(w == worker and a <= now < a + b for w, a, b in disks),
                "dispatching": max(0, assigned - running),
                "transferring" if coming else "waiting": waits,
            }
            idle = threads
            for part, count in causes.items():
                used = min(idle, count)
                parts[worker][part] += used
                idle -= used
                if part == "dispatching":
                    queued += count - used
            left.append(idle)
        idle_slots = sum(left)
        released = sum(a <= now < b for a, b in zip(able, arrivals, strict=True))
        active = any(a <= now < t.stop for a, t in zip(arrivals, tasks, strict=True))
        for worker, idle in enumerate(left):
            if not idle:
                continue
            waiting = min(released, idle_slots)
            others = min(queued, idle_slots - waiting)
            parts[worker]["scheduler"] += idle * waiting / idle_slots
            parts[worker]["elsewhere"] += idle * others / idle_slots
            rest = "no_parallelism" if active or released or queued else "nothing_submitted"
            parts[worker][rest] += idle * (1 - (waiting + others) / idle_slots)
    return parts


def test_a_synthetic_run_sums_up_with_killed_workers_and_failures(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "journals",
        nodes=3,
        workers=2,
        tasks=300,
        killed=2,
        failing=0.05,
        rescheduled=0.05,
    )
    merge_journals(run.journals).write(tmp_path / "trace.h5")
    with open_trace(tmp_path) as trace:
        answer = where(trace)
        tasks = trace.tasks
        names = process_names(trace)
    table = answer.tables["workers"]
    assert (table[list(PARTS)].sum(axis=1) == table["wall"]).all()
    assert (table[list(PARTS)] >= 0).all(axis=None)
    ended = tasks[tasks["stop"] >= 0]
    took = (ended["stop"] - ended["start"]).groupby(ended["process"]).sum()
    by_worker = pd.Series(
        table["executing"].to_numpy(), [names.index(one) for one in table["worker"]]
    )
    by_worker = by_worker.sort_index()
    assert (by_worker >= took).all()
    places = [
        (natural(node), natural(one))
        for node, one in zip(*(table[c] for c in ("node", "worker")), strict=True)
    ]
    assert places == sorted(places)
    summary = answer.table.set_index("part")["time"]
    assert summary.sum() == table["wall"].sum()
    # between a task's start and its arrival, 5 us before, lies what the writer calls dispatching
    assert summary["dispatching"] > 4_000 * len(tasks)


def test_windows_of_time_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "journals", nodes=2, workers=2, tasks=300, failing=0.05)
    merge_journals(run.journals).write(tmp_path / "trace.h5")
    with open_trace(tmp_path) as trace:
        whole = where(trace).tables["workers"]
        monkeypatch.setattr(idle, "AT_ONCE", 50)
        monkeypatch.setattr(idle, "AT_ONCE_EACH", 1)
        monkeypatch.setattr(slots, "AT_ONCE", 7)
        pieces = where(trace).tables["workers"]
    assert (whole["scheduler"] > 0).any()
    for part in PARTS:
        assert np.abs(whole[part].to_numpy() - pieces[part].to_numpy()).max() <= 1, part


def test_without_transitions_it_says_that_it_could_not_look(tmp_path: Path) -> None:
    with make_trace(tmp_path / "trace.h5", Made([Task("a-1", 0, 0, 10)])) as trace:
        answer = where(trace)
    assert any("transition" in sentence for sentence in answer.unanswered)
    assert _parts(answer, 0) == {"executing": 10}


def test_clocks_without_a_bound_are_told(tmp_path: Path) -> None:
    tasks = [Task("a-1", 0, 0, 10), Task("b-1", 1, 0, 10)]
    for bounds, told in (([5, 7], False), ([5, -1], True)):
        made = Made(tasks, [Worker(), Worker(node=1)], bounds=bounds)
        with make_trace(tmp_path / "trace.h5", made) as trace:
            assert any("clock" in sentence for sentence in where(trace).unanswered) == told


def _short_tasks(count: int, length: int, late: int, at: str) -> Made:
    """Make a run of one thread whose tasks wait before they begin: there, or for the scheduler."""
    tasks, transitions = [], []
    for i in range(count):
        came = i * (late + length)
        start = came + late
        tasks.append(Task(f"('f-1', {i})", 0, start, start + length))
        known = came if at == "worker" else start
        transitions += _life(0, tasks[-1].key, known, known, start + length)
    return Made(tasks, [Worker()], transitions)


@pytest.mark.parametrize("at", ["worker", "scheduler"])
def test_tasks_that_are_too_small_are_found_and_by_how_much(tmp_path: Path, at: str) -> None:
    made = _short_tasks(100, 2_000_000, 2_000_000, at)
    with make_trace(tmp_path / "trace.h5", made) as trace:
        answer = where(trace)
    first = answer.findings[0]
    assert first.severity == "serious"
    assert "100 tasks of f take 2 ms in the mean" in first.sentence
    # the time begins with the first task: its wait is none
    assert "leave a thread idle 1.98 ms before each" in first.sentence
    # 200 ms of waits for 200 ms of work: a tenth of the tasks make it a tenth of the work
    assert "about 10 times as large leave 10 tasks of f for 1 thread" in first.next_step
    assert answer.tables[first.table].loc[list(first.rows), "cause"].tolist() == ["scheduler"]
    assert [f for f in answer.findings if f.severity != "notice"] == [first]


def test_large_tasks_that_wait_are_not_called_small(tmp_path: Path) -> None:
    made = _short_tasks(20, 200_000_000, 200_000_000, "worker")
    with make_trace(tmp_path / "trace.h5", made) as trace:
        sentences = [f.sentence for f in where(trace).findings]
    assert not any("too small" in sentence for sentence in sentences)
    assert any("20 tasks of f could run, and waited 190 ms each" in s for s in sentences)


def test_tasks_are_not_to_be_so_large_that_threads_have_none(tmp_path: Path) -> None:
    made = _short_tasks(9, 2_000_000, 4_000_000, "worker")
    with make_trace(tmp_path / "trace.h5", made) as trace:
        step = where(trace).findings[0].next_step
    assert "about 3 times as large leave 3 tasks of f for 1 thread." in step


def test_many_findings_of_a_kind_are_one_with_the_worst_named() -> None:
    table = pd.DataFrame({"worker": list("abcde"), "slow": [5, 4, 3, 2, 1]}, [7, 5, 3, 1, 0])

    def told(count: int) -> list[tuple[str, tuple[int, ...]]]:
        found = told_as_one(
            Severity.WARNING,
            "balance",
            "workers",
            table.head(count),
            "workers are slow",
            lambda row: f"{row['worker']} is {row['slow']} times slower",
            "Look.",
        )
        return [(finding.sentence, finding.rows) for finding in found]

    assert told(0) == []
    assert told(1) == [("a is 5 times slower.", (7,))]
    assert told(5) == [
        (
            "5 workers are slow: a is 5 times slower; b is 4 times slower; c is 3 times slower; "
            "and 2 more.",
            (7, 5, 3, 1, 0),
        )
    ]
