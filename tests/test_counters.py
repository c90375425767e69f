"""Tables of samples as curves: whose they are, their names, and what is left of very many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import Export
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace as PerfettoTrace
from test_gpu_metrics import CLOCK, SM, _run, _samples
from test_join import at

from dasf_hpc import open_trace
from dasf_hpc.analysis.executions import read_executions
from dasf_hpc.imports import Wishes, import_files
from dasf_hpc.outcome import merge_run
from dasf_hpc.show.counters import COUNTERS, Counter, curves_of
from dasf_hpc.show.export import export
from dasf_hpc.show.formats import Format
from dasf_hpc.show.picture import curves
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
    told = PerfettoTrace()
    told.ParseFromString(export(run, Format.PERFETTO).read_bytes())
    counters = {
        p.track_descriptor.uuid: (p.track_descriptor.name, p.track_descriptor.counter.unit_name)
        for p in told.packet
        if p.track_descriptor.HasField("counter")
    }
    named = dict(counters.values())
    (active,) = (name for name in named if name.endswith("SMs active"))
    assert active.startswith("GPU 0")
    assert named[active] == "%"
    assert any(name.endswith("SM clock") for name in named)
    assert "mlx5_0 1 IB: Bytes sent" in named
    values = [
        p.track_event.double_counter_value
        for p in told.packet
        if counters.get(p.track_event.track_uuid, ("",))[0] == active
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
