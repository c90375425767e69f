"""Tables of samples as curves: whose they are, their names, and what is left of very many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from exports import Export
from hypothesis import given
from hypothesis import strategies as st
from perfetto_file import read_packets, track_names
from synthetic import BEGIN
from test_cuda import made_run
from test_gpu_metrics import CLOCK, SM, _run, _samples
from test_join import OTHER, WORKER, at

from dasf_hpc import open_trace
from dasf_hpc.analysis.executions import read_executions
from dasf_hpc.imports import Wishes, import_files
from dasf_hpc.outcome import merge_run
from dasf_hpc.show.counters import COUNTERS, Counter, _Level, curves_of, level_means
from dasf_hpc.show.curves import curves
from dasf_hpc.show.export import export
from dasf_hpc.show.formats import Format
from dasf_hpc.show.report import report_page

MS = 1_000_000


def _many(made: Export) -> None:
    for number in range(400):
        made.metric(at(11) + number * 10_000, SM, 40 if number % 2 else 60, 0)
    made.metric(at(12), CLOCK, 1_500_000_000, 0)
    made.nic(4, "mlx5_0")
    made.nic_metric(at(12), at(13), 4, ("IB: Bytes sent", "B/ms"), 77)


def _all(trace: Any, **more: Any) -> dict[str, Any]:
    found = [curve for counter in COUNTERS for curve in curves_of(trace, counter, **more)]
    return {curve.title: curve for curve in found}


def test_each_measure_is_a_curve_of_its_gpu_and_parts_add_up(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", _samples)
    merge_run(run)
    with open_trace(run) as trace:
        found = _all(trace)
        assert set(found) == {"SMs active", "NVLink received"}  # nsys's own stay in the table
        active = found["SMs active"]
        assert (active.owner, active.apart, active.unit) == (0, -1, "%")
        assert active.times[0] == 11 * MS
        assert active.values.tolist() == [1, 30, 30, 30, 30, 70, 70, 70, 70, 30, 30]
        assert set(found["NVLink received"].values.tolist()) == {7.0}


def test_two_reports_of_one_gpu_are_one_curve(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", _samples, _samples)
    merge_run(run)
    with open_trace(run) as trace:
        assert trace.rows("gpu_metrics") == 88
        assert set(_all(trace)["NVLink received"].values.tolist()) == {7.0}


def test_very_many_samples_become_means_of_intervals(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", _many)
    merge_run(run)
    with open_trace(run) as trace:
        assert len(_all(trace)["SMs active"].times) == 400
        active = _all(trace, most=50)["SMs active"]
        assert len(active.times) == 50
        assert np.all(np.diff(active.times) > 0)
        assert active.values == pytest.approx(np.full(50, 50.0), abs=2)
        assert _all(trace)["mlx5_0 1 IB: Bytes sent"].unit == "B/ms"


def test_they_are_counters_in_perfetto_and_charts_in_the_report(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", _many)
    merge_run(run)
    path = export(run, Format.PERFETTO)
    counters = {
        track.uuid: (" ".join(names[1:]), track.counter.unit_name)
        for names, track in track_names(path).items()
        if track.HasField("counter")
    }
    named = dict(counters.values())
    (active,) = (name for name in named if name.endswith("SMs active"))
    assert active.startswith("GPU 0")
    assert named[active] == "%"
    assert any(name.endswith("SM clock") for name in named)
    assert "mlx5_0 1 IB: Bytes sent" in named
    values = [
        one.event.double_counter_value
        for one in read_packets(path)
        if counters.get(one.track, ("",))[0] == active
    ]
    assert len(values) == 400
    assert set(values) == {40.0, 60.0}
    with open_trace(run) as trace:
        charts = {chart["title"]: chart for chart in curves(trace, read_executions(trace))}
        assert charts["SMs active"]["unit"] == "%"
        (curve,) = charts["SMs active"]["curves"]
        assert "GPU 0" in curve["name"]
        assert "SM clock" not in charts
        assert "Which functions use the GPU that they hold?" in report_page(trace, {})


def test_what_has_no_place_on_the_traces_time_is_drawn_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with Export(tmp_path / f"{name}.sqlite", "2025.1", f"node-{name}") as made:
            if name == "a":
                made.begun(utc=10**18)
                made.range(7, 7, 0, 10_000, 1)
                continue
            made.gpu(0, "GPU-0")
            made.metric_name(SM, "SMs Active [Throughput %]", 0)
            for number in range(5):
                made.metric(1000 + number * 100, SM, 9, 0)
    path = tmp_path / "trace.h5"
    import_files([tmp_path / "a.sqlite", tmp_path / "b.sqlite"], path, Wishes())
    with open_trace(path) as trace:
        apart = [curve.apart for curve in curves_of(trace, COUNTERS[0])]
    assert apart == [1]


def test_another_table_is_one_line(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", _samples)
    merge_run(run)
    with open_trace(run) as trace:
        line = Counter("gpu_metrics", "gpu", "value", "everything", "things", series=("metric",))
        assert {curve.unit for curve in curves_of(trace, line)} == {"things"}
        assert len(curves_of(trace, line)) == 4


# --------------------------------------------------------------------- memory that is allocated

ALLOCATED = "CUDA memory allocated"


def _allocations(made: Export) -> None:
    made.allocation(WORKER.pid, at(1), 0xF000, -900)  # of before the recording
    made.allocation(WORKER.pid, at(11), 0x1000, 1000)
    made.allocation(WORKER.pid, at(13), 0x2000, 500)
    made.allocation(WORKER.pid, at(14), 0x3000, 10**6, kind=1)  # the host's
    made.allocation(WORKER.pid, at(19), 0x1000, -1000)
    made.allocation(WORKER.pid, at(20), 0x2000, 200)  # the release before was not recorded
    made.allocation(OTHER.pid, at(12), 0x1000, 70, deviceId=1)


def _steps(curve: Any) -> list[tuple[int, float]]:
    return list(zip((curve.times // MS).tolist(), curve.values.tolist(), strict=True))


def test_memory_is_what_is_allocated_at_each_moment(tmp_path: Path) -> None:
    with made_run(tmp_path, _allocations) as trace:
        (line,) = (counter for counter in COUNTERS if counter.table == "gpu_allocations")
        one, two = curves_of(trace, line)
        assert (one.title, one.unit, one.apart) == (ALLOCATED, "bytes", -1)
        assert [one.owner, two.owner] == [0, 1]
        assert _steps(one) == [(0, 0), (11, 1000), (13, 1500), (19, 500), (20, 200)]
        assert _steps(two) == [(0, 0), (12, 70)]
        charts = {chart["title"]: chart for chart in curves(trace, read_executions(trace))}
        first, second = charts[ALLOCATED]["curves"]
        assert charts[ALLOCATED]["unit"] == "bytes"
        assert set(second["values"]) >= {0, 70}
        assert None not in first["values"]  # known in every part of the run
        assert (first["values"][0], first["values"][-1], max(first["values"])) == (0, 200, 1500)


def test_processes_of_several_reports_share_a_gpu(tmp_path: Path) -> None:
    def other(made: Export) -> None:
        made.device(OTHER.pid, 0, 0)
        for number in range(10):
            made.mark(OTHER.pid, at(0) + number * 1000, BEGIN + number * 1000)
        made.allocation(OTHER.pid, at(12), 0x1000, 70)
        made.allocation(OTHER.pid, at(15), 0x1000, -70)

    def one(made: Export) -> None:
        made.allocation(WORKER.pid, at(11), 0x1000, 1000)

    run = _run(tmp_path / "run", one, other)
    merge_run(run)
    with open_trace(run) as trace:
        assert trace.rows("reports") == 2
        assert _steps(_all(trace)[ALLOCATED]) == [(0, 0), (11, 1000), (12, 1070), (15, 1000)]


def test_memory_is_a_counter_in_perfetto(tmp_path: Path) -> None:
    run = _run(
        tmp_path / "run",
        lambda made: made.allocation(WORKER.pid, at(11), 0x1000, 1000),
    )
    merge_run(run)
    path = export(run, Format.PERFETTO)
    ((names, counter),) = (
        (names, track) for names, track in track_names(path).items() if names[-1] == ALLOCATED
    )
    assert names[-2].startswith("GPU 0")
    values = [
        (one.time, one.event.double_counter_value)
        for one in read_packets(path)
        if one.track == counter.uuid
    ]
    assert values == [(0, 0), (11 * MS, 1000)]


def test_memory_on_a_reports_own_axis_is_drawn_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with Export(tmp_path / f"{name}.sqlite", "2025.1", f"node-{name}") as made:
            if name == "a":
                made.begun(utc=10**18)
                made.range(7, 7, 0, 10_000, 1)
                continue
            made.gpu(0, "GPU-0")
            made.device(7, 0, 0)
            made.allocation(7, 1000, 0x1000, 64)
    path = tmp_path / "trace.h5"
    import_files([tmp_path / "a.sqlite", tmp_path / "b.sqlite"], path, Wishes())
    with open_trace(path) as trace:
        (curve,) = _all(trace).values()
        assert (curve.title, curve.apart) == (ALLOCATED, 1)
        charts = curves(trace, read_executions(trace))
        assert ALLOCATED not in [chart["title"] for chart in charts]


def _level(spans: list[tuple[int, int, int]], pieces: int, most: int) -> Any:
    """Give the curve of spans (start, how long it was there or -1, size), read in pieces."""
    start, lasts, size = np.array(spans, np.int64).T
    table = pd.DataFrame(
        {
            "start": start,
            "stop": np.where(lasts < 0, -1, start + lasts),
            "value": size.astype(np.float64),
        }
    )
    parts = [table.iloc[first::pieces] for first in range(pieces)]
    level = _Level()
    for part in parts:
        level.look(part)
    for part in parts:
        level.add(part, most)
    return level.curve()


_SPANS = st.lists(
    st.tuples(st.integers(0, 300), st.integers(-1, 300), st.integers(1, 2**40)),
    min_size=1,
    max_size=60,
)


@given(_SPANS, st.integers(1, 4))
def test_a_level_is_the_sum_of_what_is_there(
    spans: list[tuple[int, int, int]], pieces: int
) -> None:
    times, values = _level(spans, pieces, 10**6)
    assert times[0] == 0
    for moment in range(700):
        there = sum(
            size
            for start, lasts, size in spans
            if start <= moment and (lasts < 0 or moment < start + lasts)
        )
        assert values[np.searchsorted(times, moment, "right") - 1] == there


@given(_SPANS, st.integers(1, 4), st.integers(3, 20))
def test_a_level_of_too_many_changes_is_its_mean_in_each_interval(
    spans: list[tuple[int, int, int]], pieces: int, most: int
) -> None:
    times, values = _level(spans, pieces, most)
    exact = _level(spans, 1, 10**6)
    assert len(times) <= most
    assert np.all(np.diff(times) > 0)
    assert values[-1] == exact[1][-1]  # what is never released stays, what is released goes
    # the last interval may reach beyond the last change
    for first, last, value in zip(times[:-2], times[1:-1], values[:-2], strict=True):
        level = exact[1][np.searchsorted(exact[0], np.arange(first, last), "right") - 1]
        assert abs(value - level.mean()) <= 0.5 + 1e-3


def test_means_of_a_level_are_known_before_and_after_its_changes() -> None:
    times, values = np.array([10, 15]), np.array([4.0, 1.0])
    assert level_means(times, values, 0, 4, 6).tolist() == [0, 0, 2, 3.25, 1, 1]
    assert level_means(times, values, 12, 2, 3).tolist() == [4, 2.5, 1]
