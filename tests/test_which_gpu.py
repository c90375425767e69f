"""Each GPU has a name that says which it is, another one than any other's, in every output."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from exports import SCHEMAS, Export
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from perfetto_file import track_names

from dasf_hpc import open_trace
from dasf_hpc.analysis import analyse
from dasf_hpc.analysis.compare import measure
from dasf_hpc.analysis.executions import read_executions
from dasf_hpc.imports import Wishes, import_files, join_into
from dasf_hpc.nsight.sqlite import NONE
from dasf_hpc.show.export import export
from dasf_hpc.show.formats import Format
from dasf_hpc.show.page_data import Columns
from dasf_hpc.show.picture import timeline
from dasf_hpc.show.report import write_report
from dasf_hpc.trace.gpus import bus_address, gpu_names
from dasf_hpc.trace.store import write_trace
from dasf_hpc.trace.summary import summarise

MS = 1_000_000
UTC = 10**18
NO_NSYS = Wishes("no nsys")
TELLING = [v for v, schema in SCHEMAS.items() if schema["cuda"] and schema["gpu"]]


def write(
    path: Path,
    version: str = "2025.1",
    host: str = "node7",
    uuids: tuple[str, ...] = ("GPU-aaaa", "GPU-bbbb"),
    at: int = 0,
    pid: int = 700,
    system: int | None = None,
) -> Path:
    """Write a report in which each GPU runs a kernel, the first for 1 ms, the next for 2, …."""
    with Export(path, version, hostname=host) as report:
        report.begun(utc=UTC + at, system_clock=system)
        for number, uuid in enumerate(uuids):
            report.gpu(number, uuid)
            report.device(pid, number, number)
            stop = (2 + number) * MS
            report.kernel(pid, MS, stop, f"k{number}", correlationId=number, deviceId=number)
    return path


@pytest.mark.parametrize("version", TELLING)
def test_every_output_names_the_gpu(tmp_path: Path, version: str) -> None:
    trace_path = tmp_path / "trace.h5"
    import_files([write(tmp_path / "r.sqlite", version)], trace_path, NO_NSYS)
    host = "?" if version == "2020.3" else "node7"
    labels = ["GPU 0 (H100, 01:00)", "GPU 1 (H100, 02:00)"]
    names = [f"{host} {label}" for label in labels]
    with open_trace(trace_path) as trace:
        assert gpu_names(trace) == summarise(trace).gpus == names
        assert trace.gpus["nsys_id"].tolist() == [0, 1]
        table = analyse("gpu", trace).tables["gpus"].set_index("gpu")
        assert table["kernel_time"].to_dict() == {names[0]: MS, names[1]: 2 * MS}
        lanes = [row["name"] for row in timeline(trace, read_executions(trace), Columns())["rows"]]
        assert lanes == names
    export(trace_path, Format.PERFETTO, tmp_path / "perfetto")
    paths = track_names(tmp_path / "perfetto")
    assert {path[-2:] for path in paths} >= {(label, "stream 7") for label in labels}
    export(trace_path, Format.CHROME, tmp_path / "chrome")
    events = json.loads((tmp_path / "chrome").read_text())["traceEvents"]
    tracks = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert tracks == {f"{label} stream 7" for label in labels}


def test_a_mig_instance_is_a_gpu_of_its_own(tmp_path: Path) -> None:
    with Export(tmp_path / "r.sqlite", "2025.1") as report:
        report.begun(utc=UTC)
        report.gpu(0, "GPU-aaaa")
        for pid, uuid in ((700, "MIG-11112222-3333"), (701, "MIG-44445555-6666")):
            report.device(pid, 0, 0, uuid)
            report.kernel(pid, MS, 2 * MS, "k", correlationId=1)
    import_files([tmp_path / "r.sqlite"], tmp_path / "trace.h5", NO_NSYS)
    with open_trace(tmp_path / "trace.h5") as trace:
        assert gpu_names(trace) == [
            "node7 GPU 0 (H100, 01:00, MIG 11112222)",
            "node7 GPU 0 (H100, 01:00, MIG 44445555)",
        ]
        # at the same time, each on its own
        assert trace.gpus["busy"].tolist() == [MS, MS]
        assert trace.gpus["mig_of"].tolist() == ["GPU-aaaa"] * 2
        assert trace.gpus["multiprocessors"].tolist() == [16, 16]
        assert trace.gpus["memory"].tolist() == [NONE, NONE]


def test_equal_uuids_prove_one_host_and_its_clock(tmp_path: Path) -> None:
    """Two containers of one node: other host names, the same GPU and the same clock."""
    one = write(tmp_path / "one.sqlite", host="container-1", uuids=("GPU-aaaa",))
    other = write(tmp_path / "other.sqlite", host="container-2", uuids=("GPU-aaaa",), at=MS // 2)
    third = write(tmp_path / "third.sqlite", host="container-3", uuids=("GPU-cccc",), at=MS)
    import_files([one, other, third], tmp_path / "trace.h5", NO_NSYS)
    with open_trace(tmp_path / "trace.h5") as trace:
        bounds = dict(zip(trace.reports["file"], trace.reports["correction_bound"], strict=True))
        assert bounds["other.sqlite"] == MS
        assert bounds["third.sqlite"] == 11 * MS
        # one GPU, on which both ran at the same time for half of it
        assert gpu_names(trace) == [
            "container-1 GPU 0 (H100, 01:00)",
            "container-3 GPU 0 (H100, 01:00)",
        ]
        assert trace.gpus["busy"].tolist() == [MS + MS // 2, MS]
        # their processes are told apart, for a container numbers its own
        assert len(trace.processes) == 3


def test_uuids_of_zeros_prove_nothing(tmp_path: Path) -> None:
    nothing = "GPU-00000000-0000-0000-0000-000000000000"
    files = [
        write(tmp_path / f"{n}.sqlite", host=f"node{n}", uuids=(nothing,), at=n * MS)
        for n in range(2)
    ]
    import_files(files, tmp_path / "trace.h5", NO_NSYS)
    with open_trace(tmp_path / "trace.h5") as trace:
        assert len(trace.gpus) == 2
        assert trace.reports["correction_bound"].tolist()[1] == 11 * MS


@pytest.mark.parametrize(
    ("one", "other"),
    [("00000000:3B:00.0", "0000:3b:00.0"), ("0001:3b:00.0", "00000001:3B:00.0")],
)
def test_a_bus_is_one_whoever_writes_it(one: str, other: str) -> None:
    assert bus_address(one) == bus_address(other)
    assert bus_address("0000:3b:00.0") == "3b:00"
    assert bus_address("0001:3b:00.1") == "0001:3b:00.1"


REPORTS = st.lists(
    st.tuples(
        st.sampled_from(TELLING),
        st.sampled_from(["node7", "node8"]),
        st.lists(st.sampled_from(["GPU-a", "GPU-b", "GPU-c", ""]), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=3,
)


def union(rows: pd.DataFrame) -> int:
    """Give the time that spans cover together."""
    total, end = 0, np.iinfo(np.int64).min
    for start, stop in sorted(map(tuple, rows[["start", "stop"]].to_numpy())):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return int(total)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(reports=REPORTS)
def test_names_are_distinct_and_busy_times_are_each_gpus_own(reports: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = [
            # a UUID is of one host
            write(
                place / f"{n}.sqlite",
                version,
                host,
                tuple(f"{u}-{host}" if u else "" for u in dict.fromkeys(uuids)),
                at=n * MS // 3,
                pid=700 + n,
            )
            for n, (version, host, uuids) in enumerate(reports)
        ]
        import_files(files[:1], place / "trace.h5", NO_NSYS)
        if files[1:]:
            join_into(files[1:], place / "trace.h5", NO_NSYS)
        with open_trace(place / "trace.h5") as trace:
            names = gpu_names(trace)
            assert len(set(names)) == len(names)
            kernels = trace.kernels
            assert (kernels["gpu"] >= 0).all()
            for gpu, busy in enumerate(trace.gpus["busy"].tolist()):
                own = kernels[kernels["gpu"] == gpu]
                assert max(busy, 0) == union(own)
            shares = trace.task_gpu["share"].sum()
            assert shares == trace.gpus["busy"].clip(lower=0).sum()


def test_what_a_node_was_given_and_has_not_is_no_gpu(tmp_path: Path) -> None:
    # of the first two nothing but their numbers is known; on the third something ran
    made: dict[str, Any] = {
        "nodes": {"hostname": ["node7"]},
        "gpus": {"node": np.zeros(3, np.int32), "index": np.array([0, 1, 2], np.int32)},
        "kernels": {
            "gpu": np.array([2], np.int16),
            "start": np.array([MS]),
            "stop": np.array([2 * MS]),
            "task": np.array([-1]),
            "name": ["k"],
            "short_name": ["k"],
        },
        "node_samples": {"time": np.array([MS]), "node": np.zeros(1, np.int32)},
    }
    write_trace(tmp_path / "trace.h5", made)
    names = ["node7 GPU 2"]
    with open_trace(tmp_path) as trace:
        assert summarise(trace).gpus == names
        assert analyse("gpu", trace).tables["gpus"]["gpu"].tolist() == names
        rows = timeline(trace, read_executions(trace), Columns())["rows"]
        assert [row["name"] for row in rows if row["kind"] == "gpu"] == names
        assert "nan" not in measure(trace).hardware
    page = write_report(tmp_path).read_text()
    assert "1 GPU" in page
    assert "3 GPU" not in page
    assert not re.search("GPU [01]", page)


def test_nodes_are_sampled_for_dasf_core_where_gpus_were_only_given(tmp_path: Path) -> None:
    made: dict[str, Any] = {
        "nodes": {"hostname": ["node7"]},
        "gpus": {"node": np.zeros(1, np.int32), "index": np.zeros(1, np.int32)},
        "node_samples": {"time": np.array([MS]), "node": np.zeros(1, np.int32)},
    }
    write_trace(tmp_path / "trace.h5", made)
    export(tmp_path, Format.DASF, tmp_path / "dasf")
    assert b"Resource Usage" in (tmp_path / "dasf").read_bytes()
