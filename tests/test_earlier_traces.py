"""Traces that an earlier dasf-hpc wrote, without columns that came since, are read and extended."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from exports import Export

from dasf_hpc import open_trace
from dasf_hpc.analysis import ANALYSES, analyse
from dasf_hpc.imports import Wishes, import_files, join_into
from dasf_hpc.show.export import export
from dasf_hpc.show.formats import Format
from dasf_hpc.trace.schema import TABLES
from dasf_hpc.trace.store import TraceError
from dasf_hpc.trace.summary import summarise

MS = 1_000_000
UTC = 10**18
NO_NSYS = Wishes("no nsys")

#: Columns of text, numbers and fractions that came after the first traces, by table.
SINCE = {
    "nvtx_ranges": ("category", "value", "data"),
    "memcpys": ("source", "target", "source_gpu", "target_gpu", "cause"),
    "memsets": ("memory",),
}
DICTIONARIES = {
    column.dictionary for name in SINCE for column in TABLES[name].columns
    if column.name in SINCE[name] and column.dictionary
}  # fmt: skip


def report(path: Path, pid: int) -> Path:
    with Export(path, "2025.1") as made:
        made.begun(utc=UTC + pid * MS)
        made.gpu(0, f"GPU-{pid}")
        made.range(pid, pid, MS, 20 * MS, 1)
        made.call(pid, pid, 2 * MS, 3 * MS, 1)
        made.kernel(pid, 3 * MS, 5 * MS, correlationId=1)
        made.memcpy(pid, 6 * MS, 7 * MS, 1, 4096, correlationId=2)
        made.memset(pid, 8 * MS, 9 * MS, 4096, correlationId=3)
    return path


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """Give a trace as an earlier dasf-hpc wrote it."""
    trace = tmp_path / "trace.h5"
    import_files([report(tmp_path / "a.sqlite", 700)], trace, NO_NSYS)
    with h5py.File(trace, "r+") as file:
        for table, columns in SINCE.items():
            for column in columns:
                del file[table][column]
            names = file[table].attrs["columns"].decode().split(",")
            kept = ",".join(name for name in names if name not in columns)
            file[table].attrs["columns"] = np.bytes_(kept)
        for name in DICTIONARIES & set(file["dictionaries"]):
            del file["dictionaries"][name]
    return trace


def test_what_came_since_is_not_available(earlier: Path) -> None:
    with open_trace(earlier) as trace:
        assert trace.memcpys["source"].isna().tolist() == [True]
        assert trace.memcpys["source_gpu"].tolist() == [-1]
        assert np.isnan(trace.nvtx_ranges["value"]).tolist() == [True]
        assert trace.memcpys["bytes"].tolist() == [4096]
        for piece in trace.pieces("memcpys", ["source", "target_gpu"]):
            assert piece["source"].isna().all()
            assert piece["target_gpu"].tolist() == [-1]
        window = trace.table("nvtx_ranges", start=0, stop=10**12)
        assert window["category"].isna().tolist() == [True]


def test_every_question_and_export_takes_it(earlier: Path, tmp_path: Path) -> None:
    with open_trace(earlier) as trace:
        assert len(summarise(trace).gpus) == 1
        for name in ANALYSES:
            analyse(name, trace)
    for number, form in enumerate((Format.PERFETTO, Format.CHROME, Format.CSV, Format.PARQUET)):
        export(earlier, form, tmp_path / f"out-{number}")


def test_a_report_can_be_joined_to_it(earlier: Path, tmp_path: Path) -> None:
    join_into([report(tmp_path / "b.sqlite", 800)], earlier, NO_NSYS)
    with open_trace(earlier) as trace:
        assert len(trace.memcpys) == len(trace.memsets) == len(trace.nvtx_ranges) == 2
        assert trace.memcpys["bytes"].tolist() == [4096, 4096]
        assert np.isnan(trace.nvtx_ranges["value"]).tolist() == [True, True]


def test_a_column_that_was_written_and_is_gone_is_damage(earlier: Path) -> None:
    with h5py.File(earlier, "r+") as file:
        del file["memcpys/bytes"]
    with open_trace(earlier) as trace, pytest.raises(TraceError, match="lacks column bytes"):
        trace.table("memcpys")
