"""GPU metrics: what nsys sampled, and which function had the GPU then."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import SCHEMAS, Export
from hypothesis import given
from hypothesis import strategies as st
from synthetic import BEGIN, write_workers
from test_join import OTHER, POOL_1, POOL_2, SESSION, WORKER, at
from test_recorded import import_one

from dasf_hpc import open_trace
from dasf_hpc.analysis import analyse
from dasf_hpc.analysis.sampled import _Rows, add_up
from dasf_hpc.imports import Wishes, import_files, join_into
from dasf_hpc.nsight.metrics import Metric
from dasf_hpc.outcome import merge_run
from dasf_hpc.trace.holdings import Kind, State, held

MS = 1_000_000
SM, TENSOR, READ, WRITE, CLOCK, RX_USER, RX_PROTOCOL, ODD = range(11, 19)
NAMES = {
    SM: "SMs Active [Throughput %]",
    TENSOR: "Tensor Active [Throughput %]",
    READ: "DRAM Read Bandwidth [Throughput %]",
    WRITE: "DRAM Write Bandwidth [Throughput %]",
    CLOCK: "GPC Clock Frequency [MHz]",
    RX_USER: "NVLink RX Requests User Data [Throughput %]",
    RX_PROTOCOL: "NVLink RX Requests Protocol Data [Throughput %]",
    ODD: "Flux Capacitor Charge [Jigowatts]",
}


# -------------------------------------------------------------------------------- what it is


@pytest.mark.parametrize(
    ("name", "measure", "unit"),
    [
        ("SMs Active [Throughput %]", "sm_active", "%"),
        ("SM Active", "sm_active", "%"),
        ("Tensor Active / FP16 Active", "tensor_active", "%"),
        ("DRAM Read Throughput", "dram_read", "%"),
        ("VRAM Write Bandwidth [Throughput %]", "dram_write", "%"),
        ("GPC Clock Frequency [MHz]", "gpc_clock", "Hz"),
        ("SYS Clock Frequency", "sys_clock", "Hz"),
        ("PCIe Read Throughput", "pcie_rx", "%"),
        ("NVLink TX Responses Protocol Data [Throughput %]", "nvlink_tx", "%"),
        ("Compute Warps In Flight", "compute_warps", "%"),
        ("Compute Warps in Flight [Throughput %]", "compute_warps", "%"),
        # the same as a number is not the share
        ("Compute Warps in Flight [Avg Warps per Cycle]", None, "avg warps per cycle"),
        ("PCIe Read Requests to BAR1 [Requests]", None, "requests"),
        ("Flux Capacitor Charge [Jigowatts]", None, "jigowatts"),
        ("Something", None, ""),
    ],
)
def test_a_metric_is_known_by_its_name(name: str, measure: str | None, unit: str) -> None:
    assert Metric.of(name) == Metric(name, measure, unit)


# ------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("version", [v for v, s in SCHEMAS.items() if s["start"]])
def test_samples_are_read_of_each_gpu_in_its_unit(version: str, tmp_path: Path) -> None:
    with Export(tmp_path / "r.sqlite", version) as made:
        made.begun(utc=10**18)
        for gpu in (0, 1):
            made.gpu(gpu, f"GPU-{gpu}")
            for number, name in NAMES.items():
                made.metric_name(number, name, gpu)
        for number in range(4):
            time = 1000 + 100 * number
            made.metric(time, SM, 10 * number, 0)
            made.metric(time, SM, 50, 1)
            # a clock in Hz, in a column of 32 bits with a sign
            made.metric(time, CLOCK, 2_526_794_496 - 2**32, 1)
            made.metric(time, ODD, 7, 1)
        made.metric(5000, SM, 60, 1)  # after a gap
        made.metric(5100, SM, -3, 1)
        made.metric(5100, SM, 61.7, 1)
        made.metric(None, SM, 99, 1)
        made.metric(5200, SM, None, 1)
        made.metric(1500, 99, 1, 1)  # of which no table tells
    _, path = import_one(tmp_path)
    with open_trace(path) as trace:
        rows = trace.gpu_metrics
        names, measures = (trace.metrics[name].astype(object) for name in ("name", "measure"))
        named = names[rows["metric"]].to_numpy()
        of_one = rows[(rows["gpu"] == 1) & (named == NAMES[SM])].sort_values("stop")
        assert of_one["value"].tolist() == [50, 50, 50, 50, 60, 61]
        stops = of_one["stop"] - of_one["stop"].iloc[0]
        assert stops.tolist() == [0, 100, 200, 300, 4000, 4100]
        assert (of_one["stop"] - of_one["start"]).tolist() == [100] * 6
        assert set(rows["value"][named == NAMES[CLOCK]]) == {2_526_794_496}
        assert rows["value"][(rows["gpu"] == 0)].tolist() == [0, 10, 20, 30]
        told = dict(zip(names, measures, strict=True))
        assert told[NAMES[SM]] == "sm_active"
        assert not isinstance(told[NAMES[ODD]], str)
        assert "metric 99" in told
        assert held(trace)[Kind.METRICS].state is State.RECORDED
        answer = analyse("gpu_metrics", trace)
        metrics = answer.tables["metrics"].set_index(["gpu", "metric"])
        assert metrics["samples"].sum() == len(rows)
        assert not len(answer.tables["functions"])
        assert answer.unanswered


def test_a_table_without_rows_is_told_from_none(tmp_path: Path) -> None:
    with Export(tmp_path / "r.sqlite", "2025.1") as made:
        made.begun(utc=10**18)
        made.no_metrics()
    _, path = import_one(tmp_path)
    with open_trace(path) as trace:
        assert held(trace)[Kind.METRICS].state is State.NONE
        assert analyse("gpu_metrics", trace).unanswered == ["GPU metrics: recorded, none."]


@pytest.mark.parametrize(
    "table",
    [
        "timestamp INTEGER, typeId INTEGER, metricId INTEGER",
        "deviceId INTEGER, value REAL",
        "timestamp TEXT, typeId TEXT, metricId TEXT, value TEXT",
    ],
)
def test_tables_of_odd_columns_cost_nothing_else(table: str, tmp_path: Path) -> None:
    with Export(tmp_path / "r.sqlite", "2025.1") as made:
        made.begun(utc=10**18)
        made.range(7, 7, 1000, 2000, 1)
    database = sqlite3.connect(tmp_path / "r.sqlite")
    database.execute(f"CREATE TABLE GPU_METRICS ({table})")
    database.execute("CREATE TABLE TARGET_INFO_GPU_METRICS (id INTEGER, name TEXT)")
    database.execute("CREATE TABLE NET_NIC_METRIC (start INTEGER, value REAL)")
    database.commit()
    database.close()
    done, path = import_one(tmp_path)
    assert done.reports[0].status == "joined"
    with open_trace(path) as trace:
        assert trace.rows("nvtx_ranges") == 1


@pytest.mark.parametrize("version", ["2022.4", "2025.1"])
def test_counters_of_network_adapters_are_read(version: str, tmp_path: Path) -> None:
    sent = ("IB: Bytes sent", "B/ms")
    with Export(tmp_path / "r.sqlite", version) as made:
        made.begun(utc=10**18)
        made.nic(4, "mlx5_0")
        made.nic_metric(1000, 2000, 4, sent, 77)
        made.nic_metric(2000, 3000, 5, sent, 78)
    _, path = import_one(tmp_path)
    with open_trace(path) as trace:
        rows = trace.nic_metrics
        assert rows["value"].tolist() == [77, 78]
        assert rows["nic"].tolist() == ["mlx5_0", "adapter 9005"]
        assert (rows["stop"] - rows["start"]).tolist() == [1000, 1000]
        metric = trace.metrics.iloc[rows["metric"].iloc[0]]
        assert (metric["name"], metric["unit"]) == sent
        assert trace.nodes["hostname"][rows["node"].iloc[0]] == "node7"


# ---------------------------------------------------------------------- who had the GPU then


def _run(folder: Path, *reports: Any) -> Path:
    """Make a run of two workers; each report is a function that fills one."""
    write_workers(folder / "journals", [WORKER, OTHER])
    (folder / "nsight").mkdir()
    for number, fill in enumerate(reports):
        report = folder / "nsight" / f"r{number}.nsys-rep"
        report.write_bytes(b"report %d" % number)
        with Export(report.with_suffix(".sqlite"), "2025.1") as made:
            made.begun(utc=10**18 + number * 10**9)
            for n in range(10):
                made.mark(WORKER.pid, at(0) + n * 1000, BEGIN + n * 1000)
            made.gpu(0, "GPU-aaaa-0")
            made.device(WORKER.pid, 0, 0)
            for n, name in NAMES.items():
                made.metric_name(n, name, 0)
            fill(made)
    return folder


def _kernels(made: Export) -> None:
    for n, (thread, start, stop) in enumerate(WORKER.tasks[:2]):
        made.range(WORKER.pid, thread, start - SESSION, stop - SESSION, WORKER.task_id(n))
    # of the first task from 12 to 16, of the second from 15 to 20: 15 to 16 are the first's
    made.call(WORKER.pid, POOL_1, at(11), at(11.1), 1)
    made.kernel(WORKER.pid, at(12), at(16), "one", correlationId=1)
    made.call(WORKER.pid, POOL_2, at(15.5), at(15.6), 2)
    made.kernel(WORKER.pid, at(15.5), at(20), "two", correlationId=2)


def _samples(made: Export) -> None:
    # of each ms from 11 to 22; while 15 to 16: 30
    for ms in range(11, 22):
        value = {11: 1, 16: 70, 17: 70, 18: 70, 19: 70}.get(ms, 30)
        made.metric(at(ms + 1), SM, value, 0)
        made.metric(at(ms + 1), RX_USER, 5, 0)
        made.metric(at(ms + 1), RX_PROTOCOL, 2, 0)
        made.metric(at(ms + 1), ODD, ms, 0)


def test_a_sample_counts_for_who_had_the_gpu(tmp_path: Path) -> None:
    def both(made: Export) -> None:
        _kernels(made)
        _samples(made)

    run = _run(tmp_path / "run", both)
    merge_run(run)
    with open_trace(run) as trace:
        answer = analyse("gpu_metrics", trace)
        tasks = answer.tables["tasks"].set_index("task")
        rows = {number: row for row, number in trace.tasks["id"].items()}
        one, two = (rows[WORKER.task_id(n)] for n in range(2))
        assert tasks["held"].to_dict() == {one: 4 * MS, two: 4 * MS}
        assert tasks["sm_active"].round(6).to_dict() == {one: 30, two: 70}
        assert tasks["nvlink_rx"].round(6).to_dict() == {one: 7, two: 7}
        assert tasks["coverage"].round(6).to_dict() == {one: 100, two: 100}
        functions = answer.tables["functions"]
        assert functions["held"].sum() == trace.task_gpu["share"].sum()
        metrics = answer.tables["metrics"].set_index("metric").loc[NAMES[SM]]
        assert metrics["busy"] == pytest.approx(50)
        assert metrics["covered"] == 11 * MS
        assert metrics["idle"] == pytest.approx((1 + 30 + 30) / 3)
        others = answer.tables["function_metrics"]
        assert set(others["metric"]) == {NAMES[ODD]}


def test_what_two_reports_sampled_counts_once(tmp_path: Path) -> None:
    def first(made: Export) -> None:
        _kernels(made)
        _samples(made)

    def second(made: Export) -> None:
        made.kernel(WORKER.pid, at(60), at(61), "later")
        _samples(made)

    run = _run(tmp_path / "run", first, second)
    merge_run(run)
    with open_trace(run) as trace:
        assert trace.rows("gpu_metrics") == 2 * 44
        metrics = analyse("gpu_metrics", trace).tables["metrics"].set_index("metric")
        assert metrics["samples"].tolist() == [22] * 4
        assert metrics["covered"].tolist() == [11 * MS] * 4
        assert metrics["busy_covered"].tolist() == [8 * MS] * 4
        assert metrics["busy"][NAMES[SM]] == pytest.approx(50)


def test_functions_that_use_little_of_their_gpu_are_found(tmp_path: Path) -> None:
    def idle(made: Export) -> None:
        _kernels(made)
        for ms in range(11, 22):
            made.metric(at(ms + 1), SM, 20, 0)

    def bound(made: Export) -> None:
        _kernels(made)
        for ms in range(11, 22):
            for metric, value in ((SM, 90), (READ, 50), (WRITE, 25), (TENSOR, 0)):
                made.metric(at(ms + 1), metric, value, 0)

    def scalar(made: Export) -> None:
        _kernels(made)
        for ms in range(11, 22):
            for metric, value in ((SM, 90), (READ, 5), (WRITE, 2), (TENSOR, 0)):
                made.metric(at(ms + 1), metric, value, 0)

    for name, fill, words in (
        ("a", idle, "20 % of the SMs active: SMs without work amount to 6.4 ms of whole GPUs"),
        ("b", bound, "memory at 75 % of its peak"),
        ("c", scalar, "use no tensor cores"),
    ):
        run = _run(tmp_path / name, fill)
        merge_run(run)
        with open_trace(run) as trace:
            (finding,) = analyse("gpu_metrics", trace).findings
            assert words in finding.sentence
            assert "8 ms" in finding.sentence


def test_without_a_list_of_gpus_samples_are_of_the_one_that_kernels_ran_on(tmp_path: Path) -> None:
    with Export(tmp_path / "r.sqlite", "2026.2") as made:
        made.begun(utc=10**18)
        made.device(7, 0, 3, "GPU-c")
        made.kernel(7, 1000, 2000)
        made.metric_name(SM, NAMES[SM], 3)
        for number in range(11, 25):
            made.metric(100 * number, SM, 40, 3)
    _, path = import_one(tmp_path)
    with open_trace(path) as trace:
        assert len(trace.gpus) == 1
        (row,) = analyse("gpu_metrics", trace).table.to_dict("records")
        assert (row["held"], row["coverage"]) == (1000, 100)


def test_samples_of_a_divided_gpu_are_not_those_of_an_instance(tmp_path: Path) -> None:
    with Export(tmp_path / "r.sqlite", "2025.1") as made:
        made.begun(utc=10**18)
        made.gpu(0, "GPU-aaaa")
        made.device(7, 0, 0, "MIG-a")
        made.kernel(7, 1000, 2000)
        for number in range(11, 25):
            made.metric(100 * number, SM, 40, 0)
    _, path = import_one(tmp_path)
    with open_trace(path) as trace:
        assert set(trace.gpu_metrics["gpu"]).isdisjoint(trace.kernels["gpu"])
        answer = analyse("gpu_metrics", trace)
        assert answer.table["coverage"].tolist() == [0]
        assert "no samples of it" in answer.unanswered[0]


def test_a_report_that_is_joined_later_finds_the_metrics_that_are_there(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        with Export(tmp_path / f"{name}.sqlite", "2025.1", f"node-{name}") as made:
            made.begun(utc=10**18 + number)
            made.gpu(0, f"GPU-{name}")
            for metric in (ODD, SM) if number else (SM,):
                made.metric_name(metric, NAMES[metric], 0)
                made.metric(1000, metric, 1 + number, 0)
                made.metric(1100, metric, 1 + number, 0)
    trace_path = tmp_path / "trace.h5"
    import_files([tmp_path / "a.sqlite"], trace_path, Wishes())
    join_into([tmp_path / "b.sqlite"], trace_path, Wishes())
    with open_trace(trace_path) as trace:
        assert trace.metrics["name"].tolist() == [NAMES[SM], NAMES[ODD]]
        rows = trace.gpu_metrics
        assert sorted(zip(rows["gpu"], rows["metric"], rows["value"], strict=True)) == [
            (0, 0, 1), (0, 0, 1), (1, 0, 2), (1, 0, 2), (1, 1, 2), (1, 1, 2),
        ]  # fmt: skip


def test_what_nsys_says_it_lost_of_metrics_is_told_of_them_alone(tmp_path: Path) -> None:
    with Export(tmp_path / "r.sqlite", "2025.1") as made:
        made.begun(utc=10**18)
        made.kernel(7, 1000, 2000)
        made.metric(1000, SM, 40, 0)
        made.say("GPU Metrics [0]: buffer overflow, samples were dropped", 7)
    _, path = import_one(tmp_path)
    with open_trace(path) as trace:
        found = held(trace)
        assert found[Kind.METRICS].state is State.PARTLY
        assert found[Kind.KERNELS].state is State.RECORDED
        assert [str(kind) for kind in trace.gaps["kind"]] == ["lost by nsys"]


def test_where_another_tool_samples_the_gpus_nsys_says_so(tmp_path: Path) -> None:
    with Export(tmp_path / "r.sqlite", "2025.1") as made:
        made.begun(utc=10**18)
        made.kernel(7, 1000, 2000)
        made.enum("ENUM_DIAGNOSTIC_SEVERITY_LEVEL", {1: "Info", 2: "Warning", 3: "Error"})
        made.say("GPU Metrics [0]: profiling started", severity=1)
        # a text of nsys 2022.4
        said = "GPU metrics sampling hardware unit is already in use by another instance of nsys"
        made.say(f"{said} or other tool.", severity=3)
    _, path = import_one(tmp_path)
    with open_trace(path) as trace:
        holding = held(trace)[Kind.METRICS]
        assert holding.state is State.MISSING
        assert holding.reason == f"nsys says: {said} or other tool"
        (why,) = analyse("gpu_metrics", trace).unanswered
        assert "already in use" in why


# --------------------------------------------------------------------- sums, whatever comes

SPANS = st.lists(
    st.tuples(
        st.integers(0, 60), st.integers(0, 25), st.integers(0, 1), st.integers(-1, 3),
        st.booleans(),
    ),
    max_size=25,
)  # fmt: skip
SAMPLES = st.lists(
    st.tuples(
        st.integers(-5, 70), st.integers(0, 9), st.integers(0, 1), st.integers(0, 2),
        st.integers(0, 100),
    ),
    max_size=40,
)  # fmt: skip


def _pieces(rows: list[tuple[Any, ...]], names: list[str], size: int) -> _Rows:
    ordered = sorted(rows, key=lambda row: row[0])
    table = {
        name: np.array([int(row[n]) for row in ordered], np.int64) for n, name in enumerate(names)
    }
    table["stop"] = table["start"] + table.pop("lasts")
    return _Rows(
        {name: values[first : first + size] for name, values in table.items()}
        for first in range(0, len(ordered), size)
    )


@given(spans=SPANS, samples=SAMPLES, size=st.integers(1, 12))
def test_parts_of_samples_sum_to_the_busy_time_that_has_samples(
    spans: list[tuple[int, int, int, int, bool]],
    samples: list[tuple[int, int, int, int, int]],
    size: int,
) -> None:
    kinds = [[row for row in spans if row[4]], [row for row in spans if not row[4]]]
    activities = [
        _pieces(rows, ["start", "lasts", "gpu", "task", "kernel"], size) for rows in kinds
    ]
    # owners: a function of tasks 0 and 1, one of the others, and none
    owner = np.array([0, 0, 1, 1, 2], np.int32)
    found = add_up(
        activities,
        _pieces(samples, ["start", "lasts", "gpu", "metric", "value"], size),
        (owner, 3),
        (np.array([0, -1, 1, -1, -1], np.int32), 2),
        (2, 3),
    )
    busy: list[set[int]] = [set(), set()]
    for start, lasts, gpu, _, _ in spans:
        busy[gpu] |= set(range(start, start + lasts))
    shares = found.kernel_share.sum() + found.other_share.sum()
    assert shares == sum(map(len, busy))
    for metric in range(3):
        for gpu in range(2):
            # each instant has the sample that began first
            values: dict[int, int] = {}
            for start, lasts, of, which, value in sorted(samples, key=lambda row: row[0]):
                if (of, which) == (gpu, metric):
                    for instant in range(start, start + lasts):
                        values.setdefault(instant, value)
            worked = busy[gpu] & values.keys()
            assert found.whole.covered[metric, gpu] == len(values)
            assert found.busy.covered[metric, gpu] == len(worked)
            assert math.isclose(found.whole.integral[metric, gpu], sum(values.values()))
            assert math.isclose(
                found.busy.integral[metric, gpu], sum(values[t] for t in worked), abs_tol=1e-6
            )
    by_owner = found.kernels.covered + found.others.covered
    assert (by_owner.sum(axis=1) == found.busy.covered.sum(axis=1)).all()
    integral = found.kernels.integral + found.others.integral
    assert np.allclose(integral.sum(axis=1), found.busy.integral.sum(axis=1))
    # a task alone has what its owner has of it
    assert (found.tasks.covered[:, 0] <= found.kernels.covered[:, 0]).all()
    assert (found.task_share <= found.kernel_share[:2]).all()
