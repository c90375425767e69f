"""An export holds what the trace holds, and opens in the program it is for."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent
from perfetto_file import events, read_packets, told, track_names
from perfetto_page import opened, query, rows
from synthetic import SyntheticRun, write_run

from dasf_hpc.errors import RunDirectoryError, TraceFileError
from dasf_hpc.show.export import export
from dasf_hpc.show.formats import OF_STACKS, Format
from dasf_hpc.show.perfetto import PerfettoDrawing
from dasf_hpc.show.timeline import Group, Mark, Row, Slice
from dasf_hpc.trace.foreign import import_dasf
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.names import process_names
from dasf_hpc.trace.open import Trace, open_trace
from dasf_hpc.trace.store import TraceError, replace_tables, write_trace
from dasf_hpc.trace.summary import summarise
from dasf_hpc.units import duration_text


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SyntheticRun]:
    """A run of two nodes with a GPU each; a worker was killed and some tasks fail."""
    folder = tmp_path_factory.mktemp("run")
    run = write_run(
        folder / "journals", nodes=2, workers=2, tasks=300, gpus=1, killed=1, failing=0.02
    )
    merge_journals(folder / "journals").write(folder / "trace.h5")
    return folder, run


@pytest.fixture(scope="module")
def run_folder(written: tuple[Path, SyntheticRun]) -> Path:
    return written[0]


@pytest.fixture
def trace(run_folder: Path) -> Iterator[Trace]:
    with open_trace(run_folder) as trace:
        yield trace


def _rows(frame: pd.DataFrame) -> list[Any]:
    return [
        SimpleNamespace(**{str(name): value for name, value in row.items()})
        for row in frame.to_dict("records")
    ]


@pytest.fixture(scope="module")
def pftrace(run_folder: Path) -> Path:
    return export(run_folder, Format.PERFETTO)


# ------------------------------------------------------------------------------ Perfetto


@pytest.fixture(scope="module")
def packets(pftrace: Path) -> Any:
    return read_packets(pftrace)


def test_perfetto_has_every_execution_with_its_exact_times(packets: Any, trace: Trace) -> None:
    open_slices: dict[int, list[Any]] = {}
    found = {}
    for one in packets:
        if one.kind == TrackEvent.TYPE_SLICE_BEGIN:
            open_slices.setdefault(one.track, []).append((one.time, told(one)))
        elif one.kind == TrackEvent.TYPE_SLICE_END:
            begun, details = open_slices[one.track].pop()
            found[details["key"], details.get("attempt", 1)] = (begun, one.time)
    assert not any(open_slices.values())
    tasks = trace.tasks
    assert len(found) == len(tasks)
    for row in _rows(tasks[tasks["stop"] >= 0]):
        assert found[row.key, row.attempt] == (row.start, row.stop)
    (lost,) = _rows(tasks[tasks["stop"] < 0])
    assert found[lost.key, lost.attempt][1] == trace.processes["stop"].max()


def test_perfetto_has_an_arrow_for_every_dependency(packets: Any, trace: Trace) -> None:
    leaves: dict[int, str] = {}
    enters: dict[int, str] = {}
    for one in packets:
        if one.kind == TrackEvent.TYPE_SLICE_BEGIN:
            key = told(one)["key"]
            leaves.update(dict.fromkeys(one.event.flow_ids, key))
            enters.update(dict.fromkeys(one.event.terminating_flow_ids, key))
    assert leaves.keys() == enters.keys()
    arrows = {(enters[number], leaves[number]) for number in leaves}
    edges = trace.dependencies
    produced = set(trace.tasks.loc[trace.tasks["state"] == "memory", "key"])
    wanted = {
        (key, needed)
        for key, needed in zip(edges["key"], edges["dependency"], strict=True)
        if needed in produced and key in set(trace.tasks["key"])
    }
    assert len(wanted) > 1000
    assert arrows == wanted


def test_perfetto_has_workers_in_their_nodes_with_the_bound_of_their_clock(
    pftrace: Path, trace: Trace
) -> None:
    tracks = track_names(pftrace)
    workers = {path for path in tracks if len(path) == 2 and path[1].startswith("w")}
    assert workers == {(f"node{1 + n // 2}", f"worker-{n}") for n in range(4)}
    bounds = trace.clocks.set_index("node")["bound"].to_dict()
    for node, host in enumerate(trace.nodes["hostname"]):
        if host == "head":
            continue
        about = f"times within {duration_text(bounds[node])} (probes)"
        assert tracks[host,].description == about
        for path in workers:
            if path[0] == host:
                assert tracks[path].description.startswith("pid ")
                assert tracks[path].description.endswith(about)
    threads = {path for path in tracks if path[2:] and path[2].startswith("thread")}
    assert threads == {(*path, "thread 1") for path in workers}
    ids = {f"native thread id {number}" for number in trace.tasks["thread"]}
    assert {tracks[path].description for path in threads} <= ids


def test_perfetto_has_the_counters_of_nodes_gpus_and_workers(
    pftrace: Path, packets: Any, trace: Trace
) -> None:
    paths = {track.uuid: path for path, track in track_names(pftrace).items()}
    values: Counter[str] = Counter()
    sent = []
    for one in packets:
        if one.kind == TrackEvent.TYPE_COUNTER:
            path = paths[one.track]
            values[" ".join(path[-2:]) if len(path) > 1 and "GPU" in path[-2] else path[-1]] += 1
            if path[-1] == "network sent":
                sent.append(one.event.double_counter_value)
    assert values["CPU"] == len(trace.node_samples) + len(trace.process_samples)
    assert values["GPU 0 (Synthetic GPU) power"] == len(trace.gpu_samples)
    assert "GPU 0 (Synthetic GPU) PCIe sent" not in values  # not available in this run
    assert sent == pytest.approx([10_000.0] * len(sent), rel=1e-3)  # 1000 bytes every 0.1 s


@pytest.mark.needs("browser")
@pytest.mark.parametrize("to", [Format.PERFETTO, Format.CHROME])
def test_perfettos_own_user_interface_opens_it(
    run_folder: Path, trace: Trace, browser: Any, to: Format
) -> None:
    (row,) = _rows(trace.tasks[trace.tasks["stop"] >= 0].iloc[[7]])
    worker = trace.processes.loc[row.process]
    place = (trace.nodes["hostname"][worker["node"]], process_names(trace)[row.process], "thread 1")
    with opened(browser, export(run_folder, to)):
        counted = "select count(*) from slice where category is null or category = 'task'"
        assert query(browser, counted) == [[len(trace.tasks) + (to is Format.PERFETTO)]]
        named = (
            "thread_row.name, worker.name, node.name from slice "
            "join args using (arg_set_id) join track thread_row on thread_row.id = track_id "
            "join track worker on worker.id = thread_row.parent_id "
            "join track node on node.id = worker.parent_id "
            "where args.key = 'debug.key'"
            if to is Format.PERFETTO
            else "thread.name, process.name, thread.tid from slice "
            "join args using (arg_set_id) join thread_track on thread_track.id = slice.track_id "
            "join thread using (utid) join process using (upid) "
            "where args.key = 'args.key'"
        )
        (found,) = query(
            browser,
            f'select slice.ts, slice.dur, slice.name, {named} and string_value = "{row.key}"',
        )
        begin, took, *names = found
        assert (begin, took) == pytest.approx((row.start, row.stop - row.start), abs=1)
        if to is Format.PERFETTO:
            assert (begin, took) == (row.start, row.stop - row.start)
            assert names == [row.prefix, *place[::-1]]
        else:
            assert names == [row.prefix, place[2], " ".join(place[:2]), row.thread]
        (flows,) = query(browser, "select count(*) from flow")
        assert flows[0] > 1000
        errors = "select name from stats where severity = 'error' and value > 0"
        assert query(browser, errors) == []


@pytest.mark.needs("browser")
@pytest.mark.parametrize("name", ["trace.pftrace", "trace.pftrace.gz"])
def test_perfettos_page_has_the_rows_in_order(tmp_path: Path, browser: Any, name: str) -> None:
    hosts = ["gpu10", "gpu9", "gpu100"]
    write_trace(tmp_path / "trace.h5", _streams_out_of_order(hosts))
    path = export(tmp_path, Format.PERFETTO, tmp_path / name)
    if name.endswith(".gz"):
        assert path.read_bytes()[:2] == b"\x1f\x8b"
    with opened(browser, path):
        found = [tuple(path) for path in rows(browser)]
    whole = [path for path in found if path[0] == "dasf-hpc trace"]
    nodes = [path[1] for path in whole if len(path) == 2]
    assert nodes == ["gpu9", "gpu10", "gpu100"]
    workers = [path[2] for path in whole if len(path) == 3 and path[1] == "gpu9"]
    assert workers == ["w2", "w10"]
    of_worker = [path[3:] for path in whole if path[1:3] == ("gpu9", "w2") and len(path) > 3]
    assert of_worker == [
        ("thread 1",),
        ("thread 2",),
        ("thread 2 NVTX",),
        ("GPU 0",),
        ("GPU 0", "stream 7"),
        ("GPU 0", "stream 13"),
        ("CPU",),
    ]


def _streams_out_of_order(hosts: list[str]) -> dict[str, Any]:
    """Give tables of a trace whose rows come in another order than they are to be shown in."""
    return {
        "nodes": {"hostname": hosts},
        "gpus": {"node": _ints(1), "index": _ints(0)},
        "processes": {
            "node": _ints(1, 1, 0, 2),
            "role": ["worker"] * 4,
            "pid": np.array([7, 7, 7, 8]),
            "name": ["10", "2", "3", "4"],
            "clock": _ints(-1, -1, -1, -1),
            "start": np.zeros(4, np.int64),
            "stop": np.full(4, 1000),
        },
        "tasks": {
            "id": np.arange(1, 6),
            "key": ["a", "b", "c", "d", "e"],
            "prefix": ["a", "b", "c", "d", "e"],
            "process": _ints(0, 1, 1, 2, 3),
            "thread": np.array([70, 90, 80, 70, 70]),
            "attempt": _ints(1, 1, 1, 1, 1),
            "start": np.array([10, 20, 30, 40, 50]),
            "stop": np.array([15, 90, 95, 45, 55]),
            "state": ["memory"] * 5,
            "nbytes": np.full(5, -1),
        },
        "nvtx_ranges": {
            "report": _ints(-1),
            "process": _ints(1),
            "thread": np.array([90]),
            "start": np.array([21]),
            "stop": np.array([25]),
            "message": ["mine"],
        },
        "kernels": {
            "report": _ints(-1, -1),
            "process": _ints(1, 1),
            "gpu": _ints(0, 0),
            "stream": np.array([13, 7]),
            "start": np.array([22, 24]),
            "stop": np.array([23, 26]),
            "short_name": ["k", "k"],
            "task": _ints(1, 1),
        },
        "process_samples": {
            "time": np.array([50]),
            "node": _ints(1),
            "process": _ints(1),
            "cpu": np.array([1.0], np.float32),
        },
    }


def _ints(*values: int) -> Any:
    return np.array(values, np.int32)


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 60)), max_size=20),
    st.lists(st.integers(0, 200), max_size=5),
    st.integers(1, 3),
)
def test_perfetto_has_the_exact_times_of_nested_slices_and_marks(
    spans: list[tuple[int, int]], moments: list[int], rows_count: int
) -> None:
    wanted = sorted((start, start + lasts) for start, lasts in spans)
    file = io.BytesIO()
    drawing = PerfettoDrawing(file)
    drawing.group(Group(1, None, "node", 0, "node"))
    open_stops: list[list[int]] = [[] for _ in range(rows_count + len(spans))]
    placed: dict[int, list[Slice]] = {}
    for start, stop in sorted(wanted, key=lambda one: (one[0], -one[1])):
        for row, stops in enumerate(open_stops):
            while stops and stops[-1] <= start:
                stops.pop()
            if not stops or stop <= stops[-1]:
                stops.append(stop)
                placed.setdefault(row, []).append(Slice(row, start, stop, "slice", {}))
                break
    for row, slices in placed.items():
        drawing.track(Row(row, 1, f"row {row}", row))
        drawing.slices(slices[: len(slices) // 2])
        drawing.marks([Mark(row, time, "mark", {}) for time in sorted(moments)])
        drawing.slices(slices[len(slices) // 2 :])
    drawing.close()
    begun: dict[int, list[int]] = {}
    found, marks = [], []
    for one in events(file.getvalue()):
        if one.kind == TrackEvent.TYPE_SLICE_BEGIN:
            begun.setdefault(one.track, []).append(one.time)
        elif one.kind == TrackEvent.TYPE_SLICE_END:
            found.append((begun[one.track].pop(), one.time))
        else:
            marks.append(one.time)
    assert sorted(found) == wanted
    assert sorted(marks) == sorted(moments * len(placed))


def test_ranges_of_an_unknown_process_are_drawn_apart(run_folder: Path, tmp_path: Path) -> None:
    shutil.copy(run_folder / "trace.h5", tmp_path)
    ranges: dict[str, Any] = {
        "process": np.array([-1, -1], np.int32),
        "thread": np.array([5, 5]),
        "start": np.array([10**9, 10**9 + 100]),
        "stop": np.array([10**9 + 500, 10**9 + 900]),  # they overlap
        "domain": ["mine", "mine"],
        "message": ["one", "two"],
    }
    replace_tables(tmp_path / "trace.h5", {"nvtx_ranges": ranges})
    paths = track_names(export(tmp_path, Format.PERFETTO))
    lanes = {path for path in paths if "NVTX" in path[-1]}
    assert lanes == {
        ("unknown process", "thread 1 NVTX"),
        ("unknown process", "thread 1 NVTX (2)"),
    }
    assert paths["unknown process", "thread 1 NVTX"].description == "native thread id 5"


def test_streams_of_gpus_are_tracks(run_folder: Path, tmp_path: Path) -> None:
    shutil.copy(run_folder / "trace.h5", tmp_path)
    with open_trace(tmp_path) as trace:
        first, other = (
            trace.processes.index[
                (trace.processes["role"] == "worker") & (trace.processes["node"] == node)
            ][0]
            for node in trace.gpus["node"]
        )
    work = {
        "process": np.array([first, first, other], np.int32),
        "gpu": np.array([0, 0, 1], np.int32),
        "context": np.array([1, 1, 1], np.int32),
        "stream": np.array([7, 7, 13]),
        "start": np.array([10**9, 10**9 + 600, 10**9 + 100]),
        "stop": np.array([10**9 + 500, 10**9 + 900, 10**9 + 200]),
    }
    names = ["void fft<float>(int)", "void add(int)", "void add(int)"]
    kernels: dict[str, Any] = {**work, "name": names, "short_name": ["fft", "add", "add"]}
    replace_tables(tmp_path / "trace.h5", {"kernels": kernels})
    events = json.loads(export(tmp_path, Format.CHROME).read_bytes())["traceEvents"]
    threads = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    groups = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    found = {
        (groups[e["pid"]], threads[e["tid"]], e["name"], round(e["dur"] * 1000))
        for e in events
        if e["ph"] == "X" and "stream" in threads[e["tid"]]
    }
    assert found == {
        ("node1 worker-0", "GPU 0 (Synthetic GPU) stream 7", "fft", 500),
        ("node1 worker-0", "GPU 0 (Synthetic GPU) stream 7", "add", 300),
        ("node2 worker-2", "GPU 0 (Synthetic GPU) stream 13", "add", 100),
    }


# ------------------------------------------------------------------------------ Chrome


def test_chrome_has_every_execution_arrow_and_bound(run_folder: Path, trace: Trace) -> None:
    content = json.loads(export(run_folder, Format.CHROME).read_bytes())
    events = content["traceEvents"]
    tasks = {e["args"]["id"]: e for e in events if e["ph"] == "X"}
    assert len(tasks) == len(trace.tasks)
    for row in _rows(trace.tasks[trace.tasks["stop"] >= 0]):
        event = tasks[row.id]
        assert round(event["ts"] * 1000) == row.start
        assert round(event["dur"] * 1000) == row.stop - row.start
        assert event["args"]["key"] == row.key
    starts = sorted(e["id"] for e in events if e["ph"] == "s")
    assert starts == sorted(e["id"] for e in events if e["ph"] == "f")
    assert len(starts) > 1000
    clocks = {f"clock {c}" for c in trace.clocks["clock"]}
    assert clocks <= content["otherData"].keys()
    assert re.search(r"within \d+(\.\d+)? us \(probes\)", " ".join(content["otherData"].values()))


def test_chrome_sorts_workers_by_node_and_threads_by_number(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.h5", _streams_out_of_order(["gpu10", "gpu9", "gpu100"]))
    path = export(tmp_path, Format.CHROME, tmp_path / "trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    meta = [e for e in events if e["ph"] == "M"]
    name = {e["pid"]: e["args"]["name"] for e in meta if e["name"] == "process_name"}
    places = [
        (e["args"]["sort_index"], name[e["pid"]]) for e in meta if "process_sort" in e["name"]
    ]
    assert [place for _, place in sorted(places)] == [
        *("gpu9", "gpu9 w2", "gpu9 w10", "gpu10", "gpu10 w3", "gpu100", "gpu100 w4")
    ]
    (pid,) = (pid for pid, named in name.items() if named == "gpu9 w2")
    mine = [e for e in meta if e["pid"] == pid]
    threads = {e["tid"]: e["args"]["name"] for e in mine if e["name"] == "thread_name"}
    order = [
        (e["args"]["sort_index"], threads[e["tid"]]) for e in mine if "thread_sort" in e["name"]
    ]
    assert [named for _, named in sorted(order)] == [
        *("thread 1", "thread 2", "thread 2 NVTX", "GPU 0 stream 7", "GPU 0 stream 13")
    ]
    assert (threads[80], threads[90]) == ("thread 1", "thread 2")
    assert {p for p, named in name.items() if named == "gpu100 w4"} == {8}


# ------------------------------------------------------------------------------ any format


@pytest.mark.parametrize("to", [to for to in Format if to not in OF_STACKS])
def test_a_trace_of_nothing_is_exported(tmp_path: Path, to: Format) -> None:
    write_trace(tmp_path / "trace.h5", {})
    assert export(tmp_path, to).exists()


def test_an_export_that_fails_leaves_nothing(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        export(run_folder, Format.CHROME, tmp_path / "missing" / "x.json")
    with pytest.raises(TraceFileError):
        export(tmp_path, Format.PERFETTO)
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_closed_to_others(pftrace: Path) -> None:
    assert pftrace.stat().st_mode & 0o777 == 0o600


def test_tables_are_not_written_over_what_is_there(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(RunDirectoryError, match="mine: File exists"):
        export(run_folder, Format.CSV, tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# ------------------------------------------------------------------------------ tables


def test_csv_holds_every_table_with_units(run_folder: Path, trace: Trace, tmp_path: Path) -> None:
    folder = export(run_folder, Format.CSV, tmp_path / "csv")
    for name in trace.tables:
        table = pd.read_csv(folder / f"{name}.csv", index_col="row", keep_default_na=False)
        assert len(table) == trace.rows(name)
        assert list(table) == list(trace.table(name))
    tasks = pd.read_csv(folder / "tasks.csv", index_col="row", keep_default_na=False)
    assert tasks["key"].tolist() == trace.tasks["key"].tolist()
    assert tasks["start"].tolist() == trace.tasks["start"].tolist()
    columns = pd.read_csv(folder / "columns.csv").set_index(["table", "column"])
    assert columns.loc[("gpu_samples", "power"), "unit"] == "W"
    assert "(probes)" in (folder / "about.csv").read_text()


def test_parquet_holds_every_table_with_units_and_bounds(
    run_folder: Path, trace: Trace, tmp_path: Path
) -> None:
    from pyarrow import parquet

    folder = export(run_folder, Format.PARQUET, tmp_path / "parquet")
    for name in trace.tables:
        table = parquet.read_table(folder / f"{name}.parquet")
        assert table.num_rows == trace.rows(name)
        assert table.column_names == ["row", *trace.table(name)]
    tasks = parquet.read_table(folder / "tasks.parquet")
    assert tasks.column("key").to_pylist() == trace.tasks["key"].tolist()
    assert tasks.column("stop").to_pylist() == trace.tasks["stop"].tolist()
    assert tasks.column("exception").null_count == trace.tasks["exception"].isna().sum()
    assert tasks.schema.field("start").metadata[b"unit"] == b"ns"
    assert "(probes)" in tasks.schema.metadata[b"about"].decode()


# ------------------------------------------------------------------------------ OpenTelemetry


def test_opentelemetry_has_a_span_an_execution_linked_to_what_it_needs(
    run_folder: Path, trace: Trace
) -> None:
    spans, hosts, bounds = {}, {}, set()
    for line in export(run_folder, Format.OTLP_JSON).read_text().splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            about = {a["key"]: a["value"] for a in resource["resource"]["attributes"]}
            if "dasf_hpc.times.bound_ns" in about:
                bounds.add(int(about["dasf_hpc.times.bound_ns"]["intValue"]))
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    spans[span["spanId"]] = span
                    hosts[span["spanId"]] = about.get("host.name", {}).get("stringValue")
    assert bounds <= set(trace.clocks["bound"])
    assert bounds
    assert len({span["traceId"] for span in spans.values()}) == 1
    (root,) = [span for span in spans.values() if "parentSpanId" not in span]
    assert {s["parentSpanId"] for s in spans.values() if s is not root} == {root["spanId"]}
    assert len(spans) == len(trace.tasks) + 1
    assert all(re.fullmatch("[0-9a-f]{16}", number) for number in spans)
    assert re.fullmatch("[0-9a-f]{32}", root["traceId"])
    origin = trace.attributes["origin_utc_ns"]
    names = trace.nodes["hostname"]
    for row in _rows(trace.tasks[trace.tasks["stop"] >= 0]):
        span = spans[f"{row.id:016x}"]
        assert int(span["startTimeUnixNano"]) == origin + row.start
        assert int(span["endTimeUnixNano"]) == origin + row.stop
        assert hosts[span["spanId"]] == names[trace.processes.loc[row.process, "node"]]
    key_of = {
        number: attribute["value"]["stringValue"]
        for number, span in spans.items()
        for attribute in span["attributes"]
        if attribute["key"] == "dask.key"
    }
    links = {
        (key_of[number], key_of[link["spanId"]])
        for number, span in spans.items()
        for link in span.get("links", [])
    }
    done = set(trace.tasks.loc[trace.tasks["state"] == "memory", "key"])
    edges = zip(trace.dependencies["key"], trace.dependencies["dependency"], strict=True)
    assert links == {(key, needed) for key, needed in edges if needed in done}


# ------------------------------------------------------------------------------ dasf-core

#: Fields of dasf-core's classes of events, which its reader makes with ``Event(**fields)``.
DASF_FIELDS = {
    "X": {"name", "timestamp", "duration", "phase", "process_id", "thread_id", "args"},
    "I": {"name", "timestamp", "phase", "scope", "process_id", "thread_id", "args"},
}


def _dasf_events(path: Path) -> Iterator[dict[str, Any]]:
    """Read as dasf-core's ``FileDatabase.get_traces`` does."""
    data = path.read_bytes()
    place = 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 8], "big")
        yield msgpack.unpackb(data[place + 8 : place + 8 + size])
        place += 8 + size


def _dasf_trace(path: Path, events: list[dict[str, Any]]) -> Path:
    packed = [msgpack.packb(event) for event in events]
    path.write_bytes(b"".join(len(p).to_bytes(8, "big") + p for p in packed))
    return path


def test_dasf_cores_analyser_finds_every_field_it_reads(run_folder: Path, trace: Trace) -> None:
    # dasf-core is in no package index: what its analyser reads is checked, not the analyser run
    events = list(_dasf_events(export(run_folder, Format.DASF)))
    for event in events:
        assert event.keys() == DASF_FIELDS[event["phase"]]
    compute = {e["args"]["key"]: e for e in events if e["name"] == "Compute"}
    done = trace.tasks[trace.tasks["state"] == "memory"]
    assert set(done["key"]) == compute.keys()
    workers = trace.processes["name"]
    for row in _rows(done.drop_duplicates("key", keep="last")):
        event = compute[row.key]
        assert event["timestamp"] == pytest.approx(row.start / 1e9, abs=1e-9)
        assert event["duration"] == pytest.approx((row.stop - row.start) / 1e9, abs=1e-9)
        assert event["args"]["name"] == row.prefix
        assert event["args"]["size"] == row.nbytes
        assert event["thread_id"] == f"worker-{event['process_id']}-{workers[row.process]}"
    edges = {(key, needed) for key, e in compute.items() for needed in e["args"]["dependencies"]}
    assert {pair for pair in edges if pair[0] in compute} == {
        pair
        for pair in zip(trace.dependencies["key"], trace.dependencies["dependency"], strict=True)
        if pair[0] in compute
    }
    usage = [e["args"] for e in events if e["name"] == "Resource Usage"]
    assert len(usage) == len(trace.gpu_samples)
    assert usage[0] == {"gpu_utilization": 90.0, "gpu_memory_used": 1 << 30}
    memory = [e for e in events if e["name"] == "Managed Memory"]
    assert len(memory) == len(trace.memory)
    assert memory[0]["args"].keys() == {"key", "state", "size", "tasks"}
    causes = trace.transitions.loc[trace.memory["transition"]]
    told = [(e["args"]["key"], e["args"]["state"], e["args"]["tasks"]) for e in memory]
    assert sorted(told) == sorted(
        zip(causes["key"], causes["finish_state"], trace.memory["tasks"], strict=True)
    )
    kinds = {e["args"]["type"] for e in compute.values()}
    assert kinds == {"unknown"} or all(k.startswith("<class '") for k in kinds if k != "unknown")
    assert all(e["duration"] > 0 for e in compute.values())
    assert [e["timestamp"] for e in events] == sorted(e["timestamp"] for e in events)


def test_what_went_to_dasf_core_comes_back(run_folder: Path, trace: Trace, tmp_path: Path) -> None:
    found = import_dasf([export(run_folder, Format.DASF)], tmp_path / "trace.h5")
    done = trace.tasks[trace.tasks["state"] == "memory"]
    assert found.tasks == len(done)
    with open_trace(tmp_path / "trace.h5") as back:
        assert sorted(back.tasks["key"]) == sorted(done["key"])
        took = (back.tasks["stop"] - back.tasks["start"]).groupby(back.tasks["key"].astype(str))
        before = (done["stop"] - done["start"]).groupby(done["key"].astype(str))
        assert took.sum().tolist() == pytest.approx(before.sum().tolist(), abs=4)
        assert len(back.gpu_samples) == len(trace.gpu_samples)
        assert (back.clocks["bound"] == -1).all()
        assert "clock not aligned" in back.gaps["kind"].tolist()


def test_the_command_imports_by_the_files_name(run_folder: Path, tmp_path: Path) -> None:
    source, target = export(run_folder, Format.DASF), tmp_path / "trace.h5"
    words = ["import", str(source), "--into", str(target), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "dasf_hpc.cli", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    with open_trace(run_folder) as exported, open_trace(target) as trace:
        assert sum(said["summary"]["tasks"].values()) == len(trace.tasks)
        assert set(trace.tasks["key"]) <= set(exported.tasks["key"])
    assert isinstance(said["skipped"], list)


def test_dasf_cores_own_trace_is_read(tmp_path: Path) -> None:
    """Its time stamps are the end, its hosts' clocks have nothing in common, its end is torn."""
    place = {"process_id": "node1", "thread_id": "worker-node1-tcp://1"}
    other = {"process_id": "node2", "thread_id": "worker-node2-7"}
    facts = {"name": "inc", "state": "memory", "shape": [2, 3], "dtype": "float32"}
    compute = {"name": "Compute", "duration": 0.5, "phase": "X"}
    mine = {"key": "('inc-1a2b', 0)", "size": 24, "type": "<class 'numpy.ndarray'>", **facts}
    edges = {"dependencies": [["load-0c1d", 1]], "dependents": []}
    nothing: dict[str, Any] = {"dependencies": [], "dependents": []}
    first = _dasf_trace(
        tmp_path / "TracePlugin-node1.msgpack",
        [{**compute, **place, "timestamp": 1000.5, "args": {**mine, **edges}}],
    )
    second = _dasf_trace(
        tmp_path / "TracePlugin-node2.msgpack",
        [
            {**compute, **other, "timestamp": 7.5, "args": {**mine, **nothing, "key": ["x-1", 0]}},
            {"name": "Managed Memory", "phase": "I", **other, "timestamp": 7.5, "args": {}},
            {
                **{"name": "Resource Usage", "phase": "I", **other, "timestamp": 8.0},
                "args": {"cpu": 50.0, "memory": 4096, "gpu_utilization": 30},
            },
        ],
    )
    with second.open("ab") as file:
        file.write(b"\0\0\0\0\0\0\0\xff torn")
    found = import_dasf([first, second], tmp_path / "trace.h5")
    assert (found.events, found.tasks, found.samples) == (4, 2, 1)
    assert any("damaged from byte" in sentence for sentence in found.skipped)
    with open_trace(tmp_path / "trace.h5") as trace:
        assert trace.tasks["start"].tolist() == [0, 0]
        assert trace.tasks["stop"].tolist() == [500_000_000, 500_000_000]
        assert sorted(trace.tasks["key"]) == ["('inc-1a2b', 0)", "('x-1', 0)"]
        assert trace.tasks["type"].tolist() == ["numpy.ndarray"] * 2
        assert trace.dependencies.values.tolist() == [["('inc-1a2b', 0)", "('load-0c1d', 1)"]]
        assert trace.process_samples["cpu"].tolist() == [50.0]
        assert trace.process_samples["time"].tolist() == [1_000_000_000]
        assert trace.gpu_samples["utilization"].tolist() == [30.0]
        assert set(trace.gaps["kind"]) == {"clock not aligned", "blocks damaged", "not available"}
        assert summarise(trace).workers == 2


@pytest.mark.parametrize("content", [b"", b"no trace at all", b"\0" * 8 + b"x", b"\xff" * 40])
def test_what_is_no_trace_of_dasf_core_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.msgpack").write_bytes(content)
    with pytest.raises(TraceError, match="holds no event"):
        import_dasf([tmp_path / "x.msgpack"], tmp_path / "trace.h5")
    assert not (tmp_path / "trace.h5").exists()
