"""What a run's length depended on, and what a faster function would bring."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster
from handmade import Made, Task, Worker, make_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import write_run

from dasf_hpc import WorkerTaskPlugin
from dasf_hpc.analysis.critical_path import critical_path
from dasf_hpc.analysis.executions import read_executions
from dasf_hpc.analysis.graph import Schedule, executed_graph
from dasf_hpc.analysis.savings import savings
from dasf_hpc.analysis.what_if import what_if
from dasf_hpc.analysis.where import where
from dasf_hpc.errors import SettingsError
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.open import Trace, open_trace

S = 10**9


def _segments(trace: Trace) -> list[tuple[str, int, int]]:
    path = critical_path(trace).tables["path"]
    return [(r["function"], r["start"], r["stop"]) for r in path.to_dict("records")]


def test_the_path_goes_over_dependencies_threads_and_transfers(tmp_path: Path) -> None:
    made = Made(
        [
            Task("load-1", 0, 0, 100),
            Task("load-2", 1, 0, 60),
            Task("fft-1", 1, 150, 250, needs=["load-1"]),
            Task("other-1", 0, 100, 180),
            Task("sum-1", 1, 255, 300, needs=["fft-1", "other-1"]),
        ],
        [Worker(), Worker(node=1)],
        more={
            "transfers": {
                "start": [110, 112],
                "stop": [130, 140],
                "process": [1, 1],
                "direction": ["incoming", "incoming"],
                "peer_process": [0, 0],
                "nbytes": [5, 5],
                "keys": [1, 1],
            }
        },
    )
    with make_trace(tmp_path / "trace.h5", made) as trace:
        assert _segments(trace) == [
            ("load", 0, 100),
            ("(scheduling)", 100, 120),
            ("(transfer)", 120, 150),
            ("fft", 150, 250),
            ("(scheduling)", 250, 255),
            ("sum", 255, 300),
        ]
        answer = critical_path(trace)
    table = answer.table.set_index("function")
    assert table["time"].sum() == 300
    assert table.loc["load", "share"] == pytest.approx(100 / 3)
    assert [f.rows for f in answer.findings] == [(0,), (1,)]


def test_the_script_between_two_computations_is_on_the_path(tmp_path: Path) -> None:
    made = Made(
        [Task("a-1", 0, 0, 100), Task("b-1", 1, 0, 50), Task("c-1", 1, 400, 500)],
        [Worker(), Worker()],
    )
    with make_trace(tmp_path / "trace.h5", made) as trace:
        assert _segments(trace) == [("a", 0, 100), ("(script)", 100, 400), ("c", 400, 500)]


def test_hosts_hand_over_no_finer_than_their_clocks_agree(tmp_path: Path) -> None:
    tasks = [
        Task("a-1", 0, 0, 1000),
        Task("b-1", 1, 1040, 2000, needs=["a-1"]),
        Task("c-1", 0, 1990, 3000, needs=["b-1"]),  # before its need has ended: clocks differ
    ]
    made = Made(tasks, [Worker(), Worker(node=1)], bounds=[20, 30])
    with make_trace(tmp_path / "trace.h5", made) as trace:
        path = critical_path(trace).tables["path"]
    assert path["kind"].tolist() == ["task", "handover", "task", "task"]
    assert path["bound"].tolist() == [0, 50, 0, 0]
    assert path["start"].tolist() == [0, 1000, 1040, 1990]
    assert path["stop"].tolist() == [1000, 1040, 1990, 3000]


_GRAPH = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 1),
        st.integers(0, 40),
        st.integers(0, 30),
        st.lists(st.integers(0, 11), max_size=3),
        st.sampled_from("fgh"),
    ),
    min_size=1,
    max_size=12,
)


def _scheduled(rows: list[tuple[int, int, int, int, list[int], str]]) -> list[Task]:
    """Lay tasks out so that none begins before what it needs, and threads do one at a time."""
    tasks: list[Task] = []
    free: dict[tuple[int, int], int] = {}
    for i, (worker, thread, pause, length, needs, name) in enumerate(rows):
        needed = [tasks[n] for n in needs if n < i]
        start = max([free.get((worker, thread), 0), *(t.stop for t in needed)]) + pause
        keys = [t.key for t in needed]
        tasks.append(Task(f"{name}-{i}", worker, start, start + length, thread, needs=keys))
        free[worker, thread] = start + length
    return tasks


@settings(max_examples=15, deadline=None)
@given(_GRAPH)
def test_the_path_tiles_the_run_and_the_schedule_plays_what_was_recorded(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, int, int, int, list[int], str]],
) -> None:
    tasks = _scheduled(rows)
    first, last = min(t.start for t in tasks), max(t.stop for t in tasks)
    path = tmp_path_factory.mktemp("path") / "trace.h5"
    with make_trace(path, Made(tasks, [Worker(threads=2)] * 3)) as trace:
        table = critical_path(trace).tables["path"]
        assert table["start"].iloc[0] == first
        assert table["stop"].iloc[-1] == last
        assert (table["start"].to_numpy()[1:] == table["stop"].to_numpy()[:-1]).all()
        graph = executed_graph(trace, read_executions(trace))
        schedule = Schedule(graph, {0: 2, 1: 2, 2: 2})
        start, stop = schedule.played(graph.stop - graph.start)
        assert (start == graph.start).all()
        assert (stop == graph.stop).all()
        # what is made shorter does not make the run longer
        changes = what_if(
            trace, {task.key[0]: 2 + 2 * (task.key[0] == "h") for task in tasks}
        ).table
        assert (changes["time"] <= changes["recorded"]).all()


@pytest.mark.parametrize(
    ("key", "needs", "kind"),
    [
        ("b-1", ["c-1"], "scheduling"),  # what it needs is there
        ("('x-1', 1)", [], "scheduling"),  # its array was submitted
        ("('x-2', 1)", [], "script"),
        ("f-1", [], "script"),
    ],
)
def test_while_a_task_could_run_the_script_is_not_to_blame(
    tmp_path: Path, key: str, needs: list[str], kind: str
) -> None:
    tasks = [
        Task("('x-1', 0)", 0, 0, 100),
        Task("c-1", 1, 0, 50),
        Task(key, 1, 200, 300, needs=needs),
    ]
    transitions = [
        (task.worker, max(0, task.start - 10), task.key, "released", "waiting") for task in tasks
    ]
    with make_trace(tmp_path / "t.h5", Made(tasks, [Worker(), Worker()], transitions)) as trace:
        path = critical_path(trace).tables["path"]
    assert path["kind"].tolist() == ["task", kind, "task"]
    assert path["start"].tolist() == [0, 100, 200]


def test_threads_that_tasks_seceded_from_are_no_more_threads(tmp_path: Path) -> None:
    """Two tasks wait for others, in threads of their own: the worker still runs two at once."""
    tasks = [Task(f"outer-{i}", 0, 0, 4 * S, thread=i) for i in range(2)]
    starts = range(S // 10, 4 * S, S // 10)
    tasks += [Task(f"f-{i}-{s}", 0, s, s + S // 10, thread=i) for i in (2, 3) for s in starts]
    tasks += [
        Task(f"f-{i}-{s * S}", 0, s * S, (s + 2) * S, thread=i) for i in (0, 1) for s in (4, 6)
    ]
    known = [(0, 0, task.key, "released", "waiting") for task in tasks]
    seceded = [(0, S // 10, f"outer-{i}", "executing", "long-running") for i in range(2)]
    made = Made(tasks, [Worker(threads=2)], [*known, *seceded])
    with make_trace(tmp_path / "trace.h5", made) as trace:
        run = savings(trace)
        assert not run.schedule.delays.any()  # both threads run tasks all the time
        assert not [finding for finding in where(trace).findings if finding.saves]
        start, stop = run.schedule.played(run.duration)
        assert (start == run.graph.start).all()
        assert (stop == run.graph.stop).all()
        table = what_if(trace).table.set_index("function")
    # 0.05 s of each 0.1 s, and 2 s of the last 4 s
    assert table.loc["f", "saved"] == 39 * S // 20 + 2 * S


@settings(max_examples=15, deadline=None)
@given(_GRAPH, st.lists(st.integers(0, 40), min_size=12, max_size=12))
def test_a_run_whose_tasks_seceded_plays_as_it_was_recorded(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, int, int, int, list[int], str]],
    after: list[int],
) -> None:
    tasks = _scheduled(rows)
    seceded = [
        (t.worker, t.start + n, t.key, "executing", "long-running")
        for t, n in zip(tasks, after, strict=False)
    ]
    made = Made(tasks, [Worker(threads=2)] * 3, seceded)
    with make_trace(tmp_path_factory.mktemp("path") / "trace.h5", made) as trace:
        run = savings(trace)
        start, stop = run.schedule.played(run.duration)
        assert (start == run.graph.start).all()
        assert (stop == run.graph.stop).all()
        half = run.schedule.played(run.duration // 2)[1]
        assert (half <= run.graph.stop).all()
        assert (run.graph.stop - half).max() <= (run.duration - run.duration // 2).sum()


def test_a_merged_run_plays_as_it_was_recorded(tmp_path: Path) -> None:
    run = write_run(tmp_path / "journals", nodes=2, workers=2, tasks=300, failing=0.05, killed=1)
    merge_journals(run.journals).write(tmp_path / "trace.h5")
    with open_trace(tmp_path) as trace:
        graph = executed_graph(trace, read_executions(trace))
        start, stop = Schedule(graph, {}).played(graph.stop - graph.start)
        assert np.array_equal(start, graph.start)
        assert np.array_equal(stop, graph.stop)
        path = critical_path(trace).tables["path"]
    assert path["duration"].sum() == graph.stop.max() - graph.start.min()


def test_what_would_be_saved_is_known_on_a_chain_and_beside_it(tmp_path: Path) -> None:
    tasks = [
        Task("load-1", 0, 0, 4 * S),
        Task("fft-1", 0, 4 * S, 10 * S, needs=["load-1"]),
        Task("aside-1", 1, 0, 5 * S),
        Task("sum-1", 0, 11 * S, 12 * S, needs=["fft-1", "aside-1"]),
    ]
    with make_trace(tmp_path / "trace.h5", Made(tasks, [Worker(), Worker()])) as trace:
        table = what_if(trace).table.set_index("function")
        # 3 s of 12; sum keeps the second it waited for
        fft_row = table.loc["fft"].to_dict()
        assert (fft_row["time"], fft_row["saved"], fft_row["saved_share"]) == (9 * S, 3 * S, 25.0)
        assert table.loc["load", "saved"] == 2 * S
        assert table.loc["aside", "saved"] == 0
        assert table.loc["sum", "saved"] == S // 2
        slower = what_if(trace, {"aside": 0.25})
        assert slower.table["time"].item() == 20 * S + S + S
        assert slower.unanswered == []
        with pytest.raises(SettingsError, match=r"No task of asides was .*; of aside"):
            what_if(trace, {"asides": 2})
        with pytest.raises(SettingsError, match="of aside, fft, load, sum some were"):
            what_if(trace, {"xyz": 2})
        with pytest.raises(ValueError, match="above 0"):
            what_if(trace, {"fft": 0})


def test_threads_of_a_worker_take_each_others_tasks(tmp_path: Path) -> None:
    # one thread's long task becomes short: the next one begins there, not after the other's
    tasks = [
        Task("long-1", 0, 0, 10 * S, thread=1),
        Task("short-1", 0, 0, 6 * S, thread=2),
        Task("next-1", 0, 6 * S, 12 * S, thread=2),
    ]
    with make_trace(tmp_path / "trace.h5", Made(tasks, [Worker(threads=2)])) as trace:
        assert what_if(trace, {"long": 10}).table["time"].item() == 7 * S


def load(i: int, seconds: float) -> int:
    time.sleep(seconds)
    return i


def fft(value: int, seconds: float) -> int:
    time.sleep(seconds)
    return value


def total(values: list[int], seconds: float) -> int:
    time.sleep(seconds)
    return sum(values)


def _job(client: Client, seconds: float) -> None:
    for _ in range(2):
        loaded = [client.submit(load, i, 0.05, pure=False) for i in range(12)]
        done = [client.submit(fft, value, seconds, pure=False) for value in loaded]
        client.submit(total, done, 0.1, pure=False).result()


def test_the_prediction_holds_when_the_function_really_is_made_faster(tmp_path: Path) -> None:
    """Real runs of Dask: the prediction from the slow ones against the fast ones.

    Of three runs each the shortest: what else the machine does only adds to a run's time.
    """
    recorded: dict[float, list[int]] = {0.3: [], 0.1: []}
    predictions = []
    for number, seconds in enumerate([0.3, 0.1] * 3):
        journals = tmp_path / f"{number}" / "journals"
        with (
            LocalCluster(
                n_workers=2, threads_per_worker=2, processes=False, dashboard_address=None
            ) as cluster,
            Client(cluster) as client,
        ):
            client.register_plugin(WorkerTaskPlugin(directory=journals))
            _job(client, seconds)
        merge_journals(journals).write(journals.parent / "trace.h5")
        with open_trace(journals.parent) as trace:
            change = what_if(trace, {"fft": 3}).table.iloc[0]
        recorded[seconds].append(int(change["recorded"]))
        if seconds == 0.3:
            predictions.append(int(change["time"]))
    slow, fast, predicted = min(recorded[0.3]), min(recorded[0.1]), min(predictions)
    assert fast < 0.75 * slow
    # sleeps are exact to milliseconds; what is off is where the scheduler puts tasks: 4 to 9 % on
    # a quiet machine, 19 % seen of single runs on a busy one
    assert predicted == pytest.approx(fast, rel=0.3)
    assert predicted < 0.75 * slow


def test_a_long_path_reads_the_keys_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [Task(f"f-{n}", n % 2, 10 * n, 10 * n + 8) for n in range(300)]
    asked: list[str] = []
    texts = Trace.texts

    def counted(self: Trace, dictionary: str, codes: Any) -> list[str | None]:
        asked.append(dictionary)
        return texts(self, dictionary, codes)

    with make_trace(tmp_path / "trace.h5", Made(tasks, [Worker(), Worker()])) as trace:
        monkeypatch.setattr(Trace, "texts", counted)
        answer = critical_path(trace)
    assert (answer.tables["path"]["kind"] == "task").sum() == 300
    assert len(asked) < 30
