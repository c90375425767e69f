"""Which functions and tasks took the time, how evenly, over which links, at what energy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from handmade import Made, Task, Worker, make_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import write_run
from typer.testing import CliRunner

from dasf_hpc.analysis import ANALYSES, Severity, analyse
from dasf_hpc.analysis.balance import balance
from dasf_hpc.analysis.communication import communication, matrix
from dasf_hpc.analysis.energy import IDLE, energy
from dasf_hpc.analysis.functions import LONGEST, functions, task_bottleneck
from dasf_hpc.cli import app
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.open import open_trace
from dasf_hpc.trace.store import TraceError

S = 10**9


def test_functions_of_a_synthetic_run_are_those_that_were_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "journals", seed=3, nodes=2, workers=2, tasks=400, failing=0.02)
    merge_journals(run.journals).write(tmp_path / "trace.h5")
    truth = pd.DataFrame([e.__dict__ for e in run.executions])
    with open_trace(tmp_path) as trace:
        table = functions(trace).table.set_index("function")
        prefixes = trace.tasks.set_index("id")["prefix"].astype(str)
    truth["function"] = truth["id"].map(prefixes)
    truth["took"] = truth["stop"] - truth["start"]
    grouped = truth.groupby("function")
    assert set(table.index) == set(grouped.groups)
    assert (table["count"] == grouped.size()[table.index]).all()
    assert (
        table["failed"] == truth["state"].eq("error").groupby(truth["function"]).sum()[table.index]
    ).all()
    # clocks of the nodes drift by up to 50 ppm and are corrected
    np.testing.assert_allclose(table["total"], grouped["took"].sum()[table.index], rtol=1e-4)
    np.testing.assert_allclose(table["p50"], grouped["took"].median()[table.index], rtol=1e-4)
    np.testing.assert_allclose(table["p95"], grouped["took"].quantile(0.95)[table.index], rtol=1e-4)
    np.testing.assert_allclose(table["max"], grouped["took"].max()[table.index], rtol=1e-4)
    out = truth["nbytes"].clip(lower=0).groupby(truth["function"]).sum()
    assert (table["bytes_out"] == out[table.index]).all()
    size = (
        truth[truth["nbytes"] >= 0].drop_duplicates("key", keep="last").set_index("key")["nbytes"]
    )
    needed: dict[str, int] = {}
    for dependency, key in run.edges:
        needed[key] = needed.get(key, 0) + int(size.get(dependency, 0))
    bytes_in = truth["key"].map(needed).fillna(0).groupby(truth["function"]).sum()
    assert (table["bytes_in"] == bytes_in[table.index].astype(int)).all()
    assert table["share"].sum() == pytest.approx(100)


def test_functions_by_worker_are_shares_of_each_worker(tmp_path: Path) -> None:
    tasks = [
        Task("f-1", 0, 0, 30),
        Task("g-1", 0, 30, 40),
        Task("f-2", 1, 0, 10),
        Task("f-3", 1, 10, 20, needs=["g-1", "f-1"]),
    ]
    made = Made(tasks, [Worker(), Worker(node=1)])
    with make_trace(tmp_path / "trace.h5", made) as trace:
        table = functions(trace, by="worker").table
        assert table[
            ["worker", "function", "count", "total", "share", "bytes_in"]
        ].values.tolist() == [
            ["worker-0", "f", 1, 30, 75.0, 0],
            ["worker-1", "f", 2, 20, 100.0, 200],
            ["worker-0", "g", 1, 10, 25.0, 0],
        ]
        assert list(functions(trace, by="node").table["node"]) == ["node1", "node2", "node1"]
        with pytest.raises(ValueError, match="planet"):
            functions(trace, by="planet")


def test_gpu_samples_count_for_what_ran_when_they_were_taken(tmp_path: Path) -> None:
    made = Made(
        [Task("f-1", 0, 0, 100), Task("g-1", 0, 100, 200), Task("f-2", 1, 0, 200)],
        [Worker(gpus="GPU-0"), Worker(gpus="GPU-1")],
        more={
            "gpus": {"node": [0, 0], "index": [0, 1], "uuid": ["GPU-0", "GPU-1"]},
            "gpu_samples": {
                "time": [50, 99, 100, 150, 150, 250],
                "gpu": [0, 0, 0, 0, 1, 0],
                "utilization": [10.0, 20.0, 90.0, float("nan"), 60.0, 5.0],
                "memory_used": [1, 3, 8, -1, 10, 7],
            },
        },
    )
    with make_trace(tmp_path / "trace.h5", made) as trace:
        answer = functions(trace)
        table = answer.table.set_index("function")
        assert table["gpu_utilization"].to_dict() == {"f": 30.0, "g": 90.0}
        assert table["gpu_memory"].to_dict() == {"f": 14 / 3, "g": 8.0}
        assert answer.unanswered == [
            "Kernels and copies: not recorded (no CUDA table in this trace)."
        ]
        by_gpu = functions(trace, by="gpu").table
        assert set(by_gpu["gpu"]) == {"node1 GPU 0", "node1 GPU 1"}


def test_every_execution_stands_in_task_bottleneck_the_longest_first(tmp_path: Path) -> None:
    made = Made(
        [Task("f-1", 0, 0, 30), Task("g-1", 0, 30, 130), Task("f-2", 1, 0, 10)], [Worker()] * 2
    )
    with make_trace(tmp_path / "trace.h5", made) as trace:
        table = task_bottleneck(trace).table
        assert table["duration"].tolist() == [100, 30, 10]
        assert table["key"].tolist() == ["g-1", "f-1", "f-2"]
        assert table["share"].round(3).tolist() == [76.923, 23.077, 100.0]
        assert trace.tasks.loc[table["task"], "key"].tolist() == ["g-1", "f-1", "f-2"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.integers(1, 25))
def test_the_longest_tasks_are_the_first_of_all_of_them(
    tmp_path_factory: pytest.TempPathFactory, durations: list[int], longest: int
) -> None:
    tasks = [Task(f"f-{i}", 0, 10 * i, 10 * i + d) for i, d in enumerate(durations)]
    path = tmp_path_factory.mktemp("longest") / "trace.h5"
    with make_trace(path, Made(tasks)) as trace:
        whole = task_bottleneck(trace, longest=None).table
        some = task_bottleneck(trace, longest=longest).table
    assert len(whole) == len(tasks)
    columns = ["task", "key", "duration", "share", "nbytes"]
    assert some[columns].equals(whole[columns].head(longest))


def test_the_command_gives_all_tasks_as_csv_and_so_many_of_the_longest_on_request(
    tmp_path: Path,
) -> None:
    count = LONGEST + 5
    made = Made([Task(f"f-{i}", 0, 10 * i, 10 * i + 1 + i % 7) for i in range(count)])
    make_trace(tmp_path / "trace.h5", made).close()
    words = ["analyze", "task_bottleneck", str(tmp_path)]
    assert len(CliRunner().invoke(app, [*words, "--csv"]).stdout.splitlines()) == 1 + count
    asked = CliRunner().invoke(app, [*words, "--json", "--rows", "2"]).stdout
    rows = json.loads(asked)["tables"]["tasks"]["rows"]
    assert [row["key"] for row in rows] == ["f-6", "f-13"]


def test_lost_executions_last_until_their_worker_ended(tmp_path: Path) -> None:
    made = Made([Task("f-1", 0, 10, -1, state="lost")], [Worker(stop=60)], span=(0, 100))
    with make_trace(tmp_path / "trace.h5", made) as trace:
        answer = functions(trace)
        assert answer.table[["count", "failed", "total"]].values.tolist() == [[1, 1, 50]]
        assert [f.severity for f in answer.findings] == [Severity.SERIOUS, Severity.WARNING]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 500), st.integers(0, 300)),
        min_size=1,
        max_size=25,
    ),
    st.integers(1, 120),
)
def test_busy_time_over_time_is_what_a_count_of_each_moment_gives(
    tmp_path_factory: pytest.TempPathFactory, spans: list[tuple[int, int, int]], interval: int
) -> None:
    tasks = [Task(f"f-{i}", w, s, s + d, thread=i) for i, (w, s, d) in enumerate(spans)]
    path = tmp_path_factory.mktemp("balance") / "trace.h5"
    with make_trace(path, Made(tasks, [Worker(threads=4)] * 3, span=(0, 10))) as trace:
        table = balance(trace, interval=interval).tables["over_time"]
    for row in table.to_dict("records"):
        worker = int(str(row["worker"]).split("-")[1].split(" ")[0])
        begin, end = row["time"], row["time"] + interval
        mine = [task for task in tasks if task.worker == worker]
        assert row["busy"] == sum(max(0, min(t.stop, end) - max(t.start, begin)) for t in mine)
        assert row["started"] == sum(begin <= t.start < end for t in mine)
        assert row["finished"] == sum(begin <= t.stop < end for t in mine)


def test_imbalance_and_slow_workers_are_found(tmp_path: Path) -> None:
    tasks = []
    for worker in range(4):
        took = 3 * S if worker == 2 else S
        tasks += [Task(f"f-{worker}-{i}", worker, i * took, (i + 1) * took) for i in range(10)]
    with make_trace(
        tmp_path / "trace.h5", Made(tasks, [Worker(node=n) for n in range(4)])
    ) as trace:
        answer = balance(trace)
    summary = answer.tables["summary"].iloc[0]
    assert summary["factor"] == pytest.approx(30 / 15)
    assert summary["lost"] == 15 * S
    slow, uneven = answer.findings
    assert (slow.severity, slow.saves) == (Severity.SERIOUS, 20 * S)
    # that is why the work is uneven: no cause of its own
    assert (uneven.severity, uneven.rows) == (Severity.WARNING, (2,))
    assert uneven.cause == slow.cause
    assert "worker-2 on node3 is slow" in slow.sentence
    assert slow.rows == (2,)


def test_even_work_is_looked_at_and_nothing_is_found(tmp_path: Path) -> None:
    tasks = [Task(f"f-{w}-{i}", w, i * S, (i + 1) * S) for w in range(3) for i in range(5)]
    with make_trace(tmp_path / "trace.h5", Made(tasks, [Worker()] * 3)) as trace:
        answer = balance(trace)
    assert answer.looked
    assert answer.findings == []
    assert answer.tables["summary"]["factor"].item() == 1


def test_a_straggler_is_named_with_its_row(tmp_path: Path) -> None:
    tasks = [Task(f"f-{i}", 0, i * S, (i + 1) * S) for i in range(30)]
    tasks.append(Task("f-30", 0, 30 * S, 40 * S))
    with make_trace(tmp_path / "trace.h5", Made(tasks)) as trace:
        table = balance(trace).tables["stragglers"]
    assert table[["task", "duration", "median", "excess"]].values.tolist() == [
        [30, 10 * S, S, 9 * S]
    ]


def test_results_in_memory_are_carried_from_interval_to_interval(tmp_path: Path) -> None:
    run = write_run(tmp_path / "journals", nodes=1, workers=2, tasks=60)
    merge_journals(run.journals).write(tmp_path / "trace.h5")
    with open_trace(tmp_path) as trace:
        table = balance(trace, interval=1_000_000).tables["over_time"]
        origin = int(trace.attributes["origin_monotonic_ns"])
    for name, address in run.workers.items():
        changes = run.memory[address]
        mine = table[table["worker"] == name]
        ends = (mine["time"] + 1_000_000).to_numpy() + origin
        # corrected times are off by up to the bound of the clock: compare away from changes
        times = np.array([t for t, _, _ in changes])
        counts = np.array([0, *(n for _, _, n in changes)])
        near = np.array([np.abs(times - e).min() for e in ends]) < 300_000
        expected = counts[np.searchsorted(times, ends)]
        assert (~near).sum() > 20
        assert mine["held"].to_numpy()[~near].tolist() == expected[~near].tolist()


def _transfers(rows: list[tuple[int, int, str, int, int, int]]) -> dict[str, list[object]]:
    return {
        "process": [r[0] for r in rows],
        "peer_process": [r[1] for r in rows],
        "direction": [r[2] for r in rows],
        "start": [r[3] for r in rows],
        "stop": [r[4] for r in rows],
        "nbytes": [r[5] for r in rows],
        "keys": [1 for r in rows],
    }


def test_a_message_is_counted_once_and_a_slow_link_is_found(tmp_path: Path) -> None:
    workers = [Worker(node=n) for n in range(3)]
    rows = []
    for source in range(3):
        for target in range(3):
            if source != target:
                took = 10 * S if (source, target) == (2, 0) else S
                rows.append((target, source, "incoming", 0, took, 50_000_000))
                rows.append((source, target, "outgoing", 0, took, 50_000_000))
    rows.append((0, -1, "outgoing", 0, S, 7))
    rows.sort(key=lambda row: row[3])
    made = Made([Task("f-1", 0, 0, 100 * S)], workers, more={"transfers": _transfers(rows)})
    with make_trace(tmp_path / "trace.h5", made) as trace:
        answer = communication(trace)
    table = answer.table
    assert len(table) == 7
    assert table["messages"].tolist() == [1] * 7
    assert table["bytes"].sum() == 6 * 50_000_000 + 7
    (finding,) = [f for f in answer.findings if "slow" in f.sentence]
    slow = table.loc[finding.rows[0]]
    assert (slow["source"], slow["target"], slow["throughput"]) == ("node3", "node1", 5e6)
    wide = matrix(table[table["target"] != "?"])
    assert wide.loc["node1", "node1"] == 0
    assert wide.loc["node3", "node1"] == 50_000_000


def _powered(power: list[float], times: list[int]) -> dict[str, dict[str, list[object]]]:
    return {
        "gpus": {"node": [0], "index": [0], "uuid": ["GPU-0"]},
        "gpu_samples": {"time": list(times), "gpu": [0] * len(times), "power": list(power)},
    }


def test_energy_goes_to_the_tasks_that_ran_and_adds_up(tmp_path: Path) -> None:
    times = [t * S // 10 for t in range(0, 101)]
    made = Made(
        [
            Task("f-1", 0, 0, 4 * S, thread=1),
            Task("g-1", 0, 2 * S, 4 * S, thread=2),
            Task("g-2", 0, 6 * S, 7 * S, thread=2),
        ],
        [Worker(threads=2, gpus="GPU-0")],
        more=_powered([100.0] * 101, times),
        span=(0, 10 * S),
    )
    with make_trace(tmp_path / "trace.h5", made) as trace:
        answer = energy(trace)
    gpu = answer.table.iloc[0]
    assert gpu["energy"] == pytest.approx(1000)
    assert gpu["covered"] == pytest.approx(100)
    table = answer.tables["functions"].set_index("function")["energy"]
    assert table["f"] == pytest.approx(200 + 100)  # alone, then one half
    assert table["g"] == pytest.approx(100 + 100)
    assert table[IDLE] == pytest.approx(500)
    assert [f.rows for f in answer.findings] == [(0,)]
    assert answer.tables["nodes"]["energy"].item() == pytest.approx(1000)


def test_a_hole_in_the_samples_is_not_filled_with_energy(tmp_path: Path) -> None:
    times = [t * S // 10 for t in (*range(0, 21), *range(80, 101))]
    made = Made(
        [Task("f-1", 0, 0, 10 * S)],
        [Worker(gpus="GPU-0")],
        more=_powered([50.0] * len(times), times),
    )
    with make_trace(tmp_path / "trace.h5", made) as trace:
        gpu = energy(trace).table.iloc[0]
    assert gpu["energy"] == pytest.approx(50 * 4)
    assert gpu["covered"] == pytest.approx(40)


@pytest.mark.parametrize("power", [None, float("nan")])
def test_energy_is_refused_with_a_reason_where_power_was_not_sampled(
    tmp_path: Path, power: float | None
) -> None:
    more = {} if power is None else _powered([power] * 3, [0, 1, 2])
    made = Made([Task("f-1", 0, 0, 10)], [Worker(gpus="GPU-0")], more=more)
    with make_trace(tmp_path / "trace.h5", made) as trace:
        answer = energy(trace)
    assert not answer.looked
    assert len(answer.unanswered) == 1
    assert answer.findings == []


@pytest.mark.parametrize("name", list(ANALYSES))
def test_every_analysis_answers_every_trace_and_describes_its_columns(
    tmp_path: Path, name: str
) -> None:
    run = write_run(
        tmp_path / "journals", nodes=2, workers=2, tasks=60, gpus=1, killed=1, failing=0.1
    )
    merge_journals(run.journals).write(tmp_path / "trace.h5")
    made = Made([], [Worker()], span=(0, 10))
    with open_trace(tmp_path) as whole, make_trace(tmp_path / "empty.h5", made) as empty:
        for trace in (whole, empty):
            answer = analyse(name, trace)
            for title, table in answer.tables.items():
                assert set(table.columns) <= set(answer.columns[title]), title
                assert table.index.tolist() == list(range(len(table)))
            for finding in answer.findings:
                assert set(finding.rows) <= set(answer.tables[finding.table].index)
                assert finding.rows
                assert finding.analysis == name
            json.dumps(answer.document(rows=5), allow_nan=False)
        assert answer.unanswered
        # without tasks there is no answer but that the workers waited
        assert answer.looked == (name == "where")


def test_executions_of_an_unknown_process_or_function_are_counted_apart(tmp_path: Path) -> None:
    made = Made([Task("f-1", 0, 0, 10), Task("f-2", -1, 0, 30)], [Worker()])
    with make_trace(tmp_path / "trace.h5", made) as trace:
        table = functions(trace, by="node").table
        assert table[["node", "total"]].values.tolist() == [["?", 30], ["node1", 10]]
        for name in ANALYSES:
            analyse(name, trace)


def test_the_command_asks_one_question_in_every_form(tmp_path: Path) -> None:
    made = Made([Task("f-1", 0, 0, 30 * S), Task("g-1", 0, 30 * S, 40 * S)])
    make_trace(tmp_path / "trace.h5", made).close()
    call = CliRunner().invoke
    assert set(json.loads(call(app, ["analyze", "--json"]).stdout)) == set(ANALYSES)
    assert "Where did the workers' time go?" in call(app, ["analyze"]).stdout
    shown = call(app, ["analyze", "functions", str(tmp_path)])
    assert shown.exit_code == 0
    assert "  f takes 75 % of the executing time (30 s in 1 task)." in shown.stdout
    assert "could not look: GPU utilisation" in shown.stdout
    asked = call(app, ["analyze", "functions", str(tmp_path), "--json", "--rows", "1"])
    document = json.loads(asked.stdout)
    assert document["tables"]["functions"]["row_count"] == 2
    assert document["tables"]["functions"]["columns"]["total"]["unit"] == "ns"
    (row,) = document["tables"]["functions"]["rows"]
    assert (row["function"], row["total"], row["kernel_time"]) == ("f", 30 * S, None)
    csv = call(app, ["analyze", "balance", str(tmp_path), "--csv", "--table", "summary"])
    assert csv.stdout.startswith("workers,busiest [ns],mean [ns],factor,lost [ns]\n1,")
    faster = call(app, ["analyze", "what_if", str(tmp_path), "--faster", "f=3x", "--json"])
    assert json.loads(faster.stdout)["tables"]["changes"]["rows"][0]["time"] == 20 * S
    for wrong in (
        ["analyze", "functions"],
        ["analyze", "nothing", str(tmp_path)],
        ["analyze", "functions", str(tmp_path), "--by", "planet"],
        ["analyze", "balance", str(tmp_path), "--by", "node"],
        ["analyze", "balance", str(tmp_path), "--csv", "--table", "none"],
        ["analyze", "what_if", str(tmp_path), "--faster", "f"],
        ["analyze", "what_if", str(tmp_path), "--faster", "f=0"],
    ):
        assert call(app, wrong).exit_code == 2, wrong
    missing = call(app, ["analyze", "where", str(tmp_path / "none")])
    assert isinstance(missing.exception, TraceError)
