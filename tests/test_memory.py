"""What held the workers' memory: checked against plain loops, and against a real cluster."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster, wait
from handmade import Made, Task, Worker, make_trace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pages import check_clean, open_page, wait_until
from typer.testing import CliRunner

from dasf_hpc.analysis.answer import Severity
from dasf_hpc.analysis.causes import causes
from dasf_hpc.analysis.communication import communication
from dasf_hpc.analysis.executions import read_executions
from dasf_hpc.analysis.held import held
from dasf_hpc.analysis.memory import SCRIPT, TASK, memory
from dasf_hpc.analysis.where import where
from dasf_hpc.cli import app
from dasf_hpc.profile.plugins import ResourceMonitor, WorkerTaskPlugin
from dasf_hpc.show.page_data import Columns
from dasf_hpc.show.picture import timeline
from dasf_hpc.show.report import write_report
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.open import Trace, open_trace

MS = 1_000_000
MB = 1_000_000
#: One worker, time, key, state before and after.
Change = tuple[int, int, str, str, str]


def _came(worker: int, time: int, key: str, before: str = "executing") -> Change:
    return worker, time, key, before, "memory"


def _left(worker: int, time: int, key: str) -> Change:
    return worker, time, key, "memory", "released"


def managed(changes: list[Change], sizes: dict[str, int]) -> dict[str, list[int]]:
    """Give table ``memory`` of some transitions, by a plain loop."""
    held: dict[int, dict[str, int]] = {}
    rows: dict[str, list[int]] = {"transition": [], "managed": [], "tasks": []}
    for row, (worker, _, key, before, after) in enumerate(sorted(changes, key=lambda c: c[1])):
        own = held.setdefault(worker, {})
        if after == "memory":
            own[key] = sizes[key]
        elif before == "memory":
            del own[key]
        else:
            continue
        rows["transition"].append(row)
        rows["managed"].append(sum(own.values()))
        rows["tasks"].append(len(own))
    return rows


def _run(path: Path, **more: Any) -> Trace:
    """Make a run of two workers of which every answer is known.

    ``big-1`` (40 MB) is made on worker 0, copied to worker 1 from 300 to 800 ms, and kept to
    900 ms; ``small-1`` and ``small-2`` (1 MB) need it, until 400 and 600 ms.
    """
    tasks = [
        Task("big-1", 0, 0, 100 * MS, nbytes=40 * MB),
        Task("small-1", 0, 200 * MS, 400 * MS, nbytes=MB, needs=["big-1"]),
        Task("small-2", 1, 350 * MS, 600 * MS, nbytes=MB, needs=["big-1"]),
    ]
    changes = [
        _came(0, 100 * MS, "big-1"),
        _came(1, 300 * MS, "big-1", "flight"),
        _came(0, 400 * MS, "small-1"),
        _left(0, 500 * MS, "small-1"),
        _came(1, 600 * MS, "small-2"),
        _left(1, 800 * MS, "big-1"),
        _left(0, 900 * MS, "big-1"),
    ]
    sizes = {task.key: task.nbytes for task in tasks}
    workers = [Worker(0, memory_limit=100 * MB), Worker(1, memory_limit=50 * MB)]
    tables = {"memory": managed(changes, sizes), **more}
    return make_trace(path, Made(tasks, workers, changes, (0, 1000 * MS), more=tables))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Trace]:
    with _run(tmp_path / "trace.h5") as trace:
        yield trace


def _row(table: pd.DataFrame, **values: Any) -> dict[str, Any]:
    """Give the one row that has some values."""
    for name, value in values.items():
        table = table[table[name] == value]
    assert len(table) == 1, table
    return {str(name): value for name, value in table.iloc[0].items()}


def test_results_are_told_by_function(run: Trace) -> None:
    table = memory(run).tables["prefixes"]
    assert table["function"].tolist() == ["big", "small"]
    big = _row(table, function="big")
    assert (big["results"], big["copies"], big["copied"]) == (2, 1, 40 * MB)
    assert (big["peak"], big["peak_time"]) == (80 * MB, 300 * MS)
    assert big["byte_seconds"] == pytest.approx(0.04 * 0.8 + 0.04 * 0.5)
    assert (big["longest"], big["mean"]) == (800 * MS, 650 * MS)
    small = _row(table, function="small")
    # small-2 is never released: it is held until its worker ends, at 1000 ms
    assert (small["results"], small["copies"], small["longest"]) == (2, 0, 400 * MS)
    assert small["byte_seconds"] == pytest.approx(0.001 * 0.1 + 0.001 * 0.4)


def test_the_peak_is_told_by_worker_and_function(run: Trace) -> None:
    answer = memory(run)
    workers: Any = answer.tables["workers"].set_index("worker")
    assert workers.loc["worker-0", "peak"] == 41 * MB
    assert workers.loc["worker-0", "peak_time"] == 400 * MS
    assert workers.loc["worker-1", "peak"] == 41 * MB
    assert workers.loc["worker-1", "share"] == pytest.approx(82)
    assert workers["function"].tolist() == ["big", "big"]
    peak = answer.tables["peak"]
    assert peak["bytes"].sum() == 81 * MB
    assert _row(peak, function="small")["worker"] == "worker-0"
    assert peak["share"].sum() == pytest.approx(100)


def test_copies_are_told_with_what_they_take(run: Trace) -> None:
    answer = memory(run)
    (copies,) = answer.tables["duplicates"].to_dict("records")
    assert copies["function"] == "big"
    assert (copies["keys"], copies["most"], copies["extra"]) == (1, 2, 40 * MB)
    assert copies["start"] == 300 * MS
    assert copies["byte_seconds"] == pytest.approx(0.04 * 0.5)
    assert copies["example"] == "big-1"
    (found,) = [f for f in answer.findings if f.table == "duplicates"]
    assert "(40 MB) is on up to 2 workers at once" in found.sentence
    assert found.start == 300 * MS


def test_for_whom_results_are_kept(run: Trace) -> None:
    kept = memory(run).tables["kept"]
    # the last task that needs it begins at 350 ms and ends at 600 ms
    waits = _row(kept, function="big", holder=TASK)
    assert waits["results"] == 2
    assert waits["byte_seconds"] == pytest.approx(0.04 * 0.25 + 0.04 * 0.05)
    script = _row(kept, function="big", holder=SCRIPT)
    assert script["byte_seconds"] == pytest.approx(0.04 * 0.3 + 0.04 * 0.2)
    assert (script["bytes"], script["start"], script["longest"]) == (80 * MB, 600 * MS, 300 * MS)
    # nothing needs these: the script does
    assert _row(kept, function="small", holder=SCRIPT)["share"] == pytest.approx(100)


def test_a_full_worker_is_told_of_with_what_is_on_it(run: Trace) -> None:
    (full,) = [f for f in memory(run).findings if f.table == "workers"]
    assert full.severity == Severity.WARNING
    assert full.sentence.startswith("big holds 40 MB of node2 worker-1's 50 MB at 0.300 s")
    assert full.process == 1
    # of 500 ms it waits 50 and is kept 200
    assert "tasks use its result for most of the time" in full.sentence
    assert (full.start, full.stop) == (300 * MS, 800 * MS)


@pytest.mark.parametrize("late", [True, False])
def test_why_a_worker_is_full_is_told_by_where_the_time_goes(tmp_path: Path, late: bool) -> None:
    begin = 900 * MS if late else 110 * MS
    tasks = [Task(f"big-{i}", 0, i * MS, 100 * MS, thread=i, nbytes=20 * MB) for i in range(2)]
    tasks += [Task(f"use-{i}", 0, begin, begin + 10 * MS, 1, needs=[f"big-{i}"]) for i in range(2)]
    changes = [_came(0, 100 * MS, f"big-{i}") for i in range(2)]
    changes += [_left(0, 1000 * MS, f"big-{i}") for i in range(2)]
    made = Made(tasks, [Worker(memory_limit=50 * MB)], changes, (0, 1000 * MS))
    with make_trace(tmp_path / "trace.h5", made) as trace:
        (full,) = [f for f in memory(trace).findings if f.table == "workers"]
        kept = [f for f in memory(trace).findings if f.table == "kept"]
    place = "big holds 40 MB of node1 worker-0's 50 MB at 0.100 s"
    if late:
        assert full.sentence == f"{place}: its 2 results wait 800 ms for the last use."
        assert "smaller batches" in full.next_step
        assert not kept
    else:
        why = "the script keeps its 2 results for 880 ms after the last use"
        assert full.sentence == f"{place}: {why}."
        assert "`del`" in full.next_step
        assert "2 results of big stay in memory for 880 ms in the mean" in kept[0].sentence


def test_one_worker_alone_is_told_of(run: Trace) -> None:
    answer = memory(run, worker="worker-1")
    assert answer.tables["workers"]["worker"].tolist() == ["worker-1"]
    assert _row(answer.tables["prefixes"], function="big")["peak"] == 40 * MB
    assert set(answer.tables["peak"]["worker"]) == {"worker-1"}
    assert memory(run, worker="node2 worker-1").tables["over_time"]["bytes"].max() == 40 * MB
    with pytest.raises(ValueError, match=r"no worker w9; the workers are node1 worker-0"):
        memory(run, worker="w9")


def test_the_command_tells_of_one_worker(run: Trace) -> None:
    call = CliRunner().invoke
    done = call(app, ["analyze", "memory", str(run.path), "--worker", "worker-1", "--json"])
    assert done.exit_code == 0, done.output
    tables = json.loads(done.output)["tables"]
    assert [row["worker"] for row in tables["workers"]["rows"]] == ["worker-1"]
    done = call(app, ["analyze", "memory", str(run.path), "--csv", "--table", "kept"])
    assert done.output.startswith("function,holder,results,")
    for wrong in (
        ["memory", str(run.path), "--worker", "x"],
        ["where", str(run.path), "--worker=x"],
    ):
        assert call(app, ["analyze", *wrong]).exit_code == 2


def test_without_its_table_sizes_are_those_that_tasks_tell(tmp_path: Path) -> None:
    with _run(tmp_path / "a.h5") as one, _run(tmp_path / "b.h5", memory={}) as other:
        assert not other.rows("memory")
        a, b = memory(one).tables, memory(other).tables
        for name in a:
            pd.testing.assert_frame_equal(a[name], b[name])


@pytest.mark.parametrize("lacks", ["transitions", "dependencies", "tasks"])
def test_a_trace_that_lacks_a_part_is_told_of_as_far_as_it_goes(tmp_path: Path, lacks: str) -> None:
    tasks = [Task("big-1", 0, 0, 100 * MS, nbytes=MB)]
    changes = [_came(0, 100 * MS, "big-1"), _left(0, 200 * MS, "big-1")]
    made = Made(
        [] if lacks == "tasks" else tasks,
        [Worker()],
        [] if lacks == "transitions" else changes,
        (0, 300 * MS),
    )
    with make_trace(tmp_path / "trace.h5", made) as trace:
        answer = memory(trace)
        assert answer.findings == []
        if lacks == "transitions":
            assert answer.unanswered == [
                "What workers did with their tasks was not recorded in this run."
            ]
        elif lacks == "tasks":
            assert any("Sizes of results: of 1 of 1" in why for why in answer.unanswered)
            assert answer.tables["prefixes"]["unsized"].tolist() == [1]
        else:
            assert any("no dependency was recorded" in why for why in answer.unanswered)
        write_report(trace.path, tmp_path / "page.html")


def test_what_is_scattered_has_the_size_that_its_worker_tells(tmp_path: Path) -> None:
    changes = [(0, 10 * MS, "array-17", "released", "memory"), _left(0, 30 * MS, "array-17")]
    made = Made(
        [Task("sum-1", 0, 15 * MS, 20 * MS)],
        [Worker()],
        changes,
        (0, 50 * MS),
        more={"memory": managed(changes, {"array-17": 7 * MB})},
    )
    with make_trace(tmp_path / "trace.h5", made) as trace:
        table = memory(trace).tables["prefixes"]
        assert _row(table, function="array")["peak"] == 7 * MB


# ------------------------------------------------------------------------------ random histories


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Change], dict[str, int]]:
    """Give what comes to three workers and leaves them, and the sizes."""
    sizes = {f"{f}-{i}": draw(st.integers(1, 10**9)) for f in ("load", "sum") for i in range(3)}
    held: set[tuple[int, str]] = set()
    changes: list[Change] = []
    now = 0
    for _ in range(draw(st.integers(1, 40))):
        now += 1024 * draw(st.integers(1, 1000))
        worker, key = draw(st.integers(0, 2)), draw(st.sampled_from(sorted(sizes)))
        if (worker, key) in held:
            changes.append(_left(worker, now, key))
            held.remove((worker, key))
        else:
            changes.append(_came(worker, now, key, draw(st.sampled_from(["executing", "flight"]))))
            held.add((worker, key))
    return changes, sizes


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(history=histories(), in_table=st.booleans())
def test_sums_by_function_are_what_is_held_at_each_moment(
    tmp_path: Path, history: tuple[list[Change], dict[str, int]], in_table: bool
) -> None:
    changes, sizes = history
    end = changes[-1][1] + 1024
    tasks = [
        Task(key, 0, 0, 1 + i, thread=i, nbytes=size) for i, (key, size) in enumerate(sizes.items())
    ]
    rows = managed(changes, sizes)
    made = Made(
        tasks, [Worker() for _ in range(3)], changes, (0, end),
        more={"memory": rows} if in_table else {},
    )  # fmt: skip
    path = tmp_path / "trace.h5"
    path.unlink(missing_ok=True)
    with make_trace(path, made) as trace:
        whole = held(trace)
        assert whole.disagreeing == 0
        assert whole.sized.all()
        # the sum over functions is what the table says after each transition
        for row, total in zip(rows["transition"], rows["managed"], strict=True):
            worker, now = changes[row][0], changes[row][1]
            there = whole.at(now)
            assert whole.nbytes[there[whole.process[there] == worker]].sum() == total
        answer = memory(trace)
        _check_over_time(answer.tables["over_time"], changes, sizes)
        _check_peaks(answer.tables, changes, sizes)
        _check_copies(answer.tables["duplicates"], changes, sizes, end)


def _states(changes: list[Change]) -> Iterator[tuple[int, set[tuple[int, str]]]]:
    """Give what is held after each change."""
    held: set[tuple[int, str]] = set()
    for worker, now, key, _, after in changes:
        if after == "memory":
            held.add((worker, key))
        else:
            held.discard((worker, key))
        yield now, set(held)


def _sums(there: set[tuple[int, str]], sizes: dict[str, int]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for _, key in there:
        sums[key.split("-")[0]] += sizes[key]
    return sums


def _check_over_time(table: pd.DataFrame, changes: list[Change], sizes: dict[str, int]) -> None:
    states = [(0, set()), *_states(changes)]
    for now, rows in table.groupby("time"):
        there = [state for moment, state in states if moment <= int(str(now))][-1]
        told = dict(zip(rows["function"], rows["bytes"], strict=True))
        assert told == dict(_sums(there, sizes))
    totals = table.groupby("time")["bytes"].sum()
    assert totals.max() == max(sum(sizes[k] for _, k in there) for _, there in states)
    assert table["time"].nunique() <= 500


def _check_peaks(
    tables: dict[str, pd.DataFrame], changes: list[Change], sizes: dict[str, int]
) -> None:
    states = list(_states(changes))
    for row in tables["prefixes"].to_dict("records"):
        sums = [_sums(there, sizes)[row["function"]] for _, there in states]
        assert row["peak"] == max(sums)
        assert row["peak_time"] == states[sums.index(max(sums))][0]
    for row in tables["workers"].to_dict("records"):
        mine = int(row["worker"].split("-")[1])
        sums = [sum(sizes[k] for w, k in there if w == mine) for _, there in states]
        assert row["peak"] == max(sums)


def _check_copies(
    table: pd.DataFrame, changes: list[Change], sizes: dict[str, int], end: int
) -> None:
    most: Counter[str] = Counter()
    extra: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    states = list(_states(changes))
    for (now, there), after in zip(states, [*(t for t, _ in states[1:]), end], strict=True):
        count = Counter(key for _, key in there)
        sums: Counter[str] = Counter()
        for key, workers in count.items():
            function = key.split("-")[0]
            sums[function] += (workers - 1) * sizes[key]
            if workers > 1:
                most[function] = max(most[function], workers)
        for function, nbytes in sums.items():
            extra[function] = max(extra[function], nbytes)
            spent[function] += nbytes * (after - now)
    assert dict(zip(table["function"], table["most"], strict=True)) == dict(most)
    for row in table.to_dict("records"):
        assert row["extra"] == extra[row["function"]]
        assert row["byte_seconds"] == pytest.approx(spent[row["function"]] * 1e-18)


# ------------------------------------------------------------------------------ disk, processes


def _samples(*rows: tuple[int, int, int]) -> dict[str, Any]:
    """Give samples of processes: time, worker, memory."""
    times, workers, used = (np.array(column) for column in zip(*rows, strict=True))
    return {"time": times, "node": workers, "process": workers, "memory": used}


def _activities(*rows: tuple[int, int, int, str, str]) -> dict[str, Any]:
    start, stop, process, key, action = zip(*rows, strict=True)
    return {"start": start, "stop": stop, "process": process, "key": key, "action": action}


def test_what_was_read_back_from_disk_is_told_by_whose_results_it_was(tmp_path: Path) -> None:
    spans = _activities(
        (150 * MS, 190 * MS, 0, "small-1", "disk-read"),
        (300 * MS, 340 * MS, 1, "small-2", "disk-read"),
        (95 * MS, 100 * MS, 0, "big-1", "disk-write"),
    )
    samples = _samples((350 * MS, 0, 10 * MB), (350 * MS, 1, 10 * MB))
    with _run(tmp_path / "trace.h5", activities=spans, process_samples=samples) as trace:
        answer = memory(trace)
    spills: Any = answer.tables["spills"].set_index("worker")
    assert spills["function"].tolist() == ["big", "big"]
    assert spills.loc["worker-0", ["writes", "reads", "read_bytes"]].tolist() == [1, 1, 40 * MB]
    assert spills.loc["worker-0", "read_time"] == 40 * MS
    assert spills.loc["worker-0", "write_time"] == 5 * MS
    assert spills.loc["worker-0", "longest"] == 50 * MS
    assert spills.loc["worker-1", "longest"] == 0
    # 40 MB are held where the process has 10 MB
    assert answer.tables["workers"]["on_disk"].tolist() == [30 * MB, 30 * MB]
    (full,) = [f for f in answer.findings if f.table == "workers"]
    assert "30 MB and more of what it held was on disk" in full.sentence
    assert full.cause == "spilling to disk"


@pytest.mark.parametrize(
    ("limit", "used", "more", "read"),
    [
        (200, 60, [], False),  # all of it was in memory: only collecting it took long
        (200, 120, [], True),
        (60, 10, [], True),  # it held more than half of its limit
        (200, 60, [(95 * MS, 100 * MS, 0, "big-1", "disk-write")], True),
        (-1, 60, [], True),
        (200, None, [], True),
    ],
)
def test_what_took_long_in_memory_was_not_read_from_disk(
    tmp_path: Path, limit: int, used: int | None, more: list[Any], read: bool
) -> None:
    tasks = [
        Task("big-1", 0, 0, 100 * MS, nbytes=40 * MB),
        Task("small-1", 0, 300 * MS, 400 * MS, nbytes=MB, needs=["big-1"]),
    ]
    changes = [_came(0, 100 * MS, "big-1"), _came(0, 400 * MS, "small-1")]
    spans = _activities(*more, (150 * MS, 290 * MS, 0, "small-1", "disk-read"))
    tables: dict[str, Any] = {
        "memory": managed(changes, {task.key: task.nbytes for task in tasks}),
        "activities": spans,
    }
    if used is not None:
        tables["process_samples"] = _samples((350 * MS, 0, used * MB))
    worker = Worker(0, memory_limit=limit * MB if limit > 0 else -1)
    made = Made(tasks, [worker], changes, (0, 1000 * MS), more=tables)
    with make_trace(tmp_path / "trace.h5", made) as trace:
        assert (memory(trace).tables["spills"]["reads"].sum() == 1) == read
        lost = where(trace).tables["workers"]["disk"].sum()
        assert (lost >= 140 * MS) == read
        assert bool(causes(trace).of("disk")) == read
        drawn = timeline(trace, read_executions(trace), Columns(), None)["tracks"]
        assert ("disk" in json.dumps(drawn)) == read


def test_what_no_disk_is_known_of_is_on_none(tmp_path: Path) -> None:
    samples = _samples((350 * MS, 0, 10 * MB), (350 * MS, 1, 10 * MB))
    with _run(tmp_path / "trace.h5", process_samples=samples) as trace:
        answer = memory(trace)
    assert answer.tables["workers"]["on_disk"].tolist() == [0, 0]
    assert not len(answer.tables["spills"])


@pytest.mark.parametrize("stays", [True, False])
def test_memory_that_is_no_result_is_told_of(tmp_path: Path, stays: bool) -> None:
    used = [10, *[85] * 28, *[85 if stays else 12] * 11]
    samples = _samples(*((i * 25 * MS, 0, u * MB) for i, u in enumerate(used)))
    with _run(tmp_path / "trace.h5", process_samples=samples) as trace:
        answer = memory(trace, worker="worker-0")
    (found,) = [f for f in answer.findings if "no result of a task" in f.sentence]
    assert "Memory of 85 MB (85 % of the limit) on node1 worker-0 at 0.025 s" in found.sentence
    assert ("a leak" in found.sentence) == stays
    assert ("as big then" in found.sentence) != stays


# ------------------------------------------------------------------------------ by type


def _transfers(
    rows: list[tuple[int, int, str, list[str], dict[str, int]]],
) -> tuple[dict[str, Any], list[Change]]:
    """Give messages to worker 1, and the transitions with which their results come."""
    table: dict[str, Any] = {
        name: []
        for name in ("start", "stop", "process", "direction", "peer_process", "nbytes", "keys")
    }
    changes = []
    for start, stop, direction, keys, sizes in rows:
        own = (start, stop, 1, direction, 0, sum(sizes[k] for k in keys), len(keys))
        for name, value in zip(table, own, strict=True):
            table[name].append(value)
        changes += [_came(1, stop + (i + 1) * 1024, key, "flight") for i, key in enumerate(keys)]
    return table, changes


def _typed(path: Path, rows: list[tuple[int, int, str, list[str]]], kinds: dict[str, str]) -> Trace:
    sizes = {key: (200_000 + 1000 * i) for i, key in enumerate(kinds)}
    table, changes = _transfers([(*row, sizes) for row in rows])
    tasks = [
        Task(key, 0, i, i + 1, nbytes=sizes[key], type=kind)
        for i, (key, kind) in enumerate(kinds.items())
    ]
    more = {"transfers": table, "memory": managed(changes, sizes)}
    return make_trace(path, Made(tasks, [Worker(0), Worker(1)], changes, (0, 10**10), more=more))


def test_messages_are_told_by_the_type_of_their_results(tmp_path: Path) -> None:
    kinds = {"a-1": "numpy.ndarray", "a-2": "numpy.ndarray", "f-1": "pandas.DataFrame",
             "f-2": "pandas.DataFrame", "f-3": "pandas.DataFrame"}  # fmt: skip
    rows = [
        (1000 * MS, 1001 * MS, "incoming", ["a-1", "a-2"]),
        (1100 * MS, 1110 * MS, "incoming", ["f-1"]),
        (1200 * MS, 1220 * MS, "incoming", ["f-2", "f-3"]),
    ]
    with _typed(tmp_path / "trace.h5", rows, kinds) as trace:
        answer = communication(trace)
    types: Any = answer.tables["types"].set_index("type")
    assert types.loc["numpy.ndarray", ["messages", "keys", "bytes"]].tolist() == [1, 2, 401_000]
    assert types.loc["pandas.DataFrame", ["messages", "keys"]].tolist() == [2, 3]
    assert types.loc["pandas.DataFrame", "time"] == 30 * MS
    assert types["bytes"].sum() == answer.tables["links"]["bytes"].sum()
    assert answer.unanswered == []


def test_a_message_of_several_types_is_of_none(tmp_path: Path) -> None:
    kinds = {"a-1": "numpy.ndarray", "f-1": "pandas.DataFrame", "a-2": "numpy.ndarray"}
    rows = [
        (1000 * MS, 1001 * MS, "incoming", ["a-1", "f-1"]),
        (1100 * MS, 1101 * MS, "incoming", ["a-2"]),
    ]
    with _typed(tmp_path / "trace.h5", rows, kinds) as trace:
        answer = communication(trace)
    types: Any = answer.tables["types"].set_index("type")
    assert types.loc["several types", "keys"] == 2
    assert types.loc["numpy.ndarray", "keys"] == 1
    assert "went in messages of several types" in answer.unanswered[0]


@pytest.mark.parametrize("slower", [1.5, 5.0])
def test_a_type_that_goes_slowly_is_told_of(tmp_path: Path, slower: float) -> None:
    kinds = {f"a-{i}": "numpy.ndarray" for i in range(60)}
    kinds |= {f"f-{i}": "mine.Frame" for i in range(60)}
    rows = [
        (i * 20 * MS, round((i * 20 + (slower if k[0] == "f" else 1)) * MS), "incoming", [k])
        for i, k in enumerate(kinds)
    ]
    with _typed(tmp_path / "trace.h5", rows, kinds) as trace:
        found = [f for f in communication(trace).findings if f.table == "types"]
    assert len(found) == (slower > 3)
    if found:
        assert found[0].sentence.startswith("Results of type mine.Frame go at ")
        assert "times slower than others of their size" in found[0].sentence


@pytest.mark.parametrize("slower", [1.5, 5.0])
def test_a_pair_that_is_slower_than_another_is_told_of(tmp_path: Path, slower: float) -> None:
    table: dict[str, Any] = {
        "start": [i * 20 * MS for i in range(120)],
        "stop": [round((i * 20 + (slower if i % 2 else 1)) * MS) for i in range(120)],
        "process": [i % 2 for i in range(120)],
        "direction": ["incoming"] * 120,
        "peer_process": [1 - i % 2 for i in range(120)],
        "nbytes": [200_000] * 120,
        "keys": [1] * 120,
    }
    made = Made([], [Worker(0), Worker(1)], span=(0, 10**10), more={"transfers": table})
    with make_trace(tmp_path / "trace.h5", made) as trace:
        found = [f for f in communication(trace).findings if f.table == "links"]
    assert len(found) == (slower > 3)
    if found:
        assert found[0].sentence.startswith("What goes from node1 to node2 takes 5 times as long")


# ------------------------------------------------------------------------------ a real cluster


def block(i: int) -> np.ndarray:
    return np.full(2_500_000, float(i))  # 20 MB


def first(array: np.ndarray, i: int) -> float:
    return float(array[i])


def _spilled(dask_worker: Any) -> tuple[int, int]:
    return dask_worker.data.spilled_total[0], dask_worker.state.nbytes


@pytest.fixture(scope="module")
def spilling(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Give a run on two workers that spill, and what Dask says of it at its fullest moment."""
    folder = tmp_path_factory.mktemp("spilling")
    journals = folder / "journals"
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, memory_limit="400MB",
            dashboard_address=":0", local_directory=str(folder / "space"),
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        client.register_plugin(WorkerTaskPlugin(directory=journals))
        client.register_plugin(ResourceMonitor(time=50, directory=journals))
        blocks = client.map(block, range(30), pure=False)
        wait(blocks)
        (whole,) = client.scatter([b"x" * 5_000_000], broadcast=True)
        time.sleep(1)
        told: dict[str, Any] = {"spilled": client.run(_spilled)}
        told["at"] = time.monotonic_ns()
        told["who_has"] = client.who_has()
        sums = client.map(first, blocks, range(30), pure=False)
        assert client.gather(sums) == [float(i) for i in range(30)]
        told["memory"] = client.run_on_scheduler(
            lambda dask_scheduler: dask_scheduler.task_prefixes["block"].nbytes_total
        )
        del blocks, sums, whole
        time.sleep(0.5)
    merge_journals(journals).write(folder / "trace.h5")
    return folder, told


def test_a_real_cluster_that_spills_is_told_as_dask_tells_it(
    spilling: tuple[Path, dict[str, Any]],
) -> None:
    folder, told = spilling
    with open_trace(folder) as trace:
        answer, whole = memory(trace), held(trace)
        origin = int(trace.attributes["origin_monotonic_ns"])
        of_address = {a: row for row, a in enumerate(trace.processes["address"])}
        now = told["at"] - origin
        there = whole.at(now)
        for address, (spilled, nbytes) in told["spilled"].items():
            mine = there[whole.process[there] == of_address[address]]
            assert whole.nbytes[mine].sum() == nbytes  # to the byte
            assert spilled > 0, "it did not spill: the test has nothing to look at"
        holders = {str(key): len(addresses) for key, addresses in told["who_has"].items()}
        names = trace.texts("keys", whole.key[there])
        assert Counter(names) == Counter(holders)
        assert whole.disagreeing == 0
        assert whole.sized.all()
    prefixes = answer.tables["prefixes"]
    assert _row(prefixes, function="block")["peak"] == told["memory"]
    spills: Any = answer.tables["spills"]
    assert _row(spills.groupby("function", as_index=False).sum(), function="block")["reads"] > 0
    # at least, as it is called
    at_least = answer.tables["workers"]["on_disk"].sum()
    assert 0 < at_least <= 1.05 * sum(spilled for spilled, _ in told["spilled"].values())
    assert [f for f in answer.findings if f.sentence.startswith("block holds")]
    # what was scattered to both
    duplicates = answer.tables["duplicates"]
    copies = duplicates[duplicates["largest"].between(5_000_000, 5_001_000)]
    assert copies["most"].tolist() == [2]


def test_areas_are_what_the_trace_tells(
    spilling: tuple[Path, dict[str, Any]], browser: Any, tmp_path: Path
) -> None:
    folder, _ = spilling
    page = write_report(folder, tmp_path / "page.html")
    open_page(browser, page)
    read = """
        const {chosen, functions} = document.getElementById('memory-canvas').memory;
        return {moment: chosen.moment, held: chosen.held, names: functions.map(f => f.name)};
    """
    with open_trace(folder) as trace:
        whole = held(trace)
        zero = int(trace.tasks["start"].min())
        rows = trace.processes.index[trace.processes["role"] == "worker"].tolist()
        for process in (-1, *rows):
            browser.execute_script(
                "const s = document.getElementById('memory-worker'); s.value = arguments[0];"
                "s.dispatchEvent(new Event('change'));",
                str(process),
            )
            drawn = browser.execute_script(read)
            moments = drawn["moment"]
            assert len(moments) > 50
            looked = np.linspace(0, len(moments) - 1, 12).astype(int)
            some = 0
            for i in looked.tolist():
                # a moment is told to a microsecond
                there = whole.at(zero + round(moments[i] * 1000) + 1000)
                if process >= 0:
                    there = there[whole.process[there] == process]
                for f, name in enumerate(drawn["names"]):
                    if name not in whole.functions:
                        continue
                    own = there[whole.function[there] == whole.functions.index(name)]
                    expected = int(whole.nbytes[own].sum())
                    assert drawn["held"][f][i] == pytest.approx(expected, rel=0.02, abs=1)
                    some += expected > 0
            assert some > 5
    # what is drawn is there to see: the area of the largest has its colour
    colour = browser.execute_script(
        """
        const canvas = document.getElementById('memory-canvas'), {chosen} = canvas.memory;
        canvas.scrollIntoView();
        const pen = canvas.getContext('2d'), seen = {};
        const {data} = pen.getImageData(0, 0, canvas.width, canvas.height);
        for (let i = 0; i < data.length; i += 4) {
          const one = data.slice(i, i + 3).join(',');
          seen[one] = (seen[one] || 0) + 1;
        }
        return Object.entries(seen).sort((a, b) => b[1] - a[1]).slice(0, 3).map(([c]) => c);
        """
    )
    assert len(colour) == 3
    check_clean(browser)


def test_memory_is_read_with_the_keyboard(
    spilling: tuple[Path, dict[str, Any]], browser: Any, tmp_path: Path
) -> None:
    page = write_report(spilling[0], tmp_path / "page.html")
    open_page(browser, page, theme="dark")
    told = "return document.getElementById('memory-told').textContent"
    assert browser.execute_script(told).startswith("At most ")
    browser.execute_script("document.getElementById('memory-canvas').focus()")
    at_peak = browser.execute_script(told)
    browser.switch_to.active_element.send_keys("")
    browser.execute_script(
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'Home'}))"
    )
    assert browser.execute_script(told) != at_peak
    assert "in results at" in browser.execute_script(told)
    wait_until(browser, "return document.querySelector('#memory-keys .reading').textContent")
    browser.execute_script("document.activeElement.blur()")
    assert browser.execute_script(told).startswith("At most ")
    check_clean(browser)
