"""NVTX of the code itself: marks, ranges of any domain, categories, payloads, and their answer."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from exports import Export
from hypothesis import given
from hypothesis import strategies as st
from synthetic import BEGIN, write_workers
from test_join import HELPER, OTHER, POOL_1, POOL_2, SESSION, WORKER, at

from dasf_hpc import open_trace
from dasf_hpc.analysis import analyse
from dasf_hpc.analysis.coverage import Covered
from dasf_hpc.analysis.ranges import NO_TASK, self_times
from dasf_hpc.nsight.attribute import SENTENCES, Reason, pieces
from dasf_hpc.nsight.payloads import LONGEST
from dasf_hpc.nsight.reader import CLOCK_DOMAIN, read_report
from dasf_hpc.outcome import merge_run

MS = 1_000_000


def write_run(run: Path, version: str) -> Export:
    """Write a run's journals, and begin its report with what ties its clock."""
    write_workers(run / "journals", [WORKER, OTHER])
    (run / "nsight").mkdir()
    report = run / "nsight" / "node7.nsys-rep"
    report.write_bytes(b"exported beside it")
    export = Export(report.with_suffix(".sqlite"), version)
    export.begun(utc=10**18)
    for pid in (WORKER.pid, OTHER.pid):
        for n in range(10):
            export.mark(pid, at(0) + n * 1000, BEGIN + n * 1000)
    for n, (thread, start, stop) in enumerate(WORKER.tasks):
        stretch = (start - SESSION + 1000, stop - SESSION - 1000)
        export.range(WORKER.pid, thread, *stretch, WORKER.task_id(n))
    return export


def texts(column: pd.Series[str]) -> list[str]:
    """Give a column's strings, "" for none."""
    return column.astype(object).fillna("").tolist()


def fill(export: Export) -> None:
    pid = WORKER.pid
    export.category(pid, 4, "reading")
    export.category(pid, 4, "writing", "io")
    # within the first task: a range that holds two others, one of which holds a third
    export.user_range(pid, POOL_1, at(11), at(19), "outer", category=4, doubleValue=2.5)
    export.user_range(pid, POOL_1, at(12), at(14), "inner", "io", category=4, int64Value=7)
    export.user_range(pid, POOL_1, at(15), at(18), "inner", "io", category=9, floatValue=0.5)
    export.user_range(pid, POOL_1, at(16), at(17), "deep", "io")
    # in another task, on another thread; a range that crosses threads; one that never ended
    export.user_range(pid, POOL_2, at(25), at(29), "outer")
    export.user_range(pid, POOL_2, at(26), at(45), "cross", "io", stacked=False)
    export.user_range(pid, POOL_1, at(41), None, "never")
    export.user_range(pid, POOL_1, at(32), at(33), "idle")
    export.user_mark(pid, POOL_1, at(13), "here", "io", category=4, int64Value=3)
    export.user_mark(pid, POOL_1, at(13.5), "here", "io", category=4, doubleValue=-1.5)
    export.user_mark(pid, HELPER, at(28), "there")
    export.user_mark(pid, POOL_1, at(35), "between")
    export.user_mark(pid, pid, at(1), "clock", CLOCK_DOMAIN)  # without a reading


@pytest.fixture(params=["2020.3", "2022.4", "2025.1", "2026.2"], scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a run whose code makes ranges and marks."""
    run = tmp_path_factory.mktemp("made") / "run"
    with write_run(run, str(request.param)) as export:
        fill(export)
    merge_run(run, str(run / "no nsys"))
    return run


def test_marks_of_the_code_are_kept_and_ours_are_not(run: Path) -> None:
    with open_trace(run) as trace:
        marks, tasks = trace.nvtx_marks, trace.tasks
        assert marks["message"].tolist() == ["here", "here", "there", "between"]
        assert texts(marks["domain"]) == ["io", "io", "", ""]
        assert texts(marks["category"]) == ["writing", "writing", "", ""]
        assert marks["payload"].tolist() == [3, -1, -1, -1]
        assert marks["value"].fillna(0).tolist() == [0, -1.5, 0, 0]
        origin = trace.attributes["origin_monotonic_ns"]
        assert (marks["start"] + origin - BEGIN).tolist() == [
            13 * MS, 13.5 * MS, 28 * MS, 35 * MS,
        ]  # fmt: skip
        assert tasks["thread"][marks["task"][:2]].tolist() == [POOL_1, POOL_1]
        assert tasks["thread"][marks["task"][2]] == POOL_2
        assert marks["task"][3] == -1
        why = (Reason.BY_THREAD, Reason.BY_THREAD, Reason.ONLY_TASK, Reason.BETWEEN_TASKS)
        reasons = marks["reason"].astype(object).where(marks["reason"].notna(), None)
        assert reasons.tolist() == [SENTENCES[one] for one in why]


def test_a_range_of_any_domain_is_of_the_task_that_ran_on_its_thread(run: Path) -> None:
    with open_trace(run) as trace:
        ranges, tasks = trace.nvtx_ranges, trace.tasks
        compute = ranges[ranges["domain"] == "compute"]
        assert tasks["id"][compute["task"]].tolist() == compute["payload"].tolist()
        own = ranges[ranges["domain"] != "compute"]
        threads = [tasks["thread"][task] if task >= 0 else -1 for task in own["task"].tolist()]
        places = list(zip(own["message"].tolist(), threads, strict=True))
        assert [place for name, place in places if name == "outer"] == [POOL_1, POOL_2]
        assert [place for name, place in places if name == "idle"] == [-1]
        inner = own[own["message"] == "inner"]
        assert inner["category"].tolist() == ["writing", "category 9"]
        assert inner["payload"].tolist() == [7, -1]
        assert inner["value"].fillna(0).tolist() == [0, 0.5]
        assert texts(own[own["message"] == "outer"]["category"]) == ["reading", ""]
        assert own[own["stacked"] == 0]["message"].tolist() == ["cross"]


def test_what_ranges_took_by_function(run: Path) -> None:
    with open_trace(run) as trace:
        answer = analyse("ranges", trace)
        (function,) = {str(name) for name in trace.tasks["prefix"]} or {""}
    rows = {
        (row["range"], row["category"] or ""): row
        for row in answer.document()["tables"]["ranges"]["rows"]
    }
    outer, deep = rows["outer", "reading"], rows["deep", ""]
    assert outer["function"] == deep["function"] == function
    assert (outer["count"], outer["total"], outer["self"]) == (1, 8 * MS, 3 * MS)
    assert (deep["count"], deep["total"], deep["self"]) == (1, MS, MS)
    inner = answer.table[answer.table["range"] == "inner"]
    assert (inner["total"].sum(), inner["self"].sum()) == (5 * MS, 4 * MS)
    assert answer.table[answer.table["range"] == "cross"]["self"].isna().all()
    assert answer.table[answer.table["range"] == "idle"]["function"].tolist() == [NO_TASK]
    never = answer.table[answer.table["range"] == "never"]
    assert never[["count", "open"]].values.tolist() == [[0, 1]]
    marks = answer.tables["marks"]
    assert dict(zip(marks["mark"], marks["count"], strict=True)) == {
        "here": 2, "there": 1, "between": 1,
    }  # fmt: skip
    json.dumps(answer.document(), allow_nan=False)


def test_kernels_count_where_their_thread_launched_them(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with write_run(run, "2025.1") as export:
        fill(export)
        for number, (thread, call) in enumerate(
            [(POOL_1, 13), (POOL_1, 16.5), (POOL_1, 18.5), (POOL_2, 16.5)], start=1
        ):
            export.call(WORKER.pid, thread, at(call), at(call) + 1000, number)
            begin = at(50 + number)
            export.kernel(WORKER.pid, begin, begin + number * 1000, correlationId=number)
    merge_run(run, str(run / "no nsys"))
    with open_trace(run) as trace:
        table = analyse("ranges", trace).table
    sums = table.groupby("range")[["kernels", "kernel_time"]].sum()
    found = {str(name): tuple(row) for name, row in zip(sums.index, sums.values, strict=True)}
    assert {name: found[name] for name in ("outer", "inner", "deep", "cross")} == {
        "outer": (3, 6000), "inner": (2, 3000), "deep": (1, 2000), "cross": (0, 0),
    }  # fmt: skip


def test_payloads_that_are_texts_or_structures_are_kept_as_json(tmp_path: Path) -> None:
    path = tmp_path / "report.sqlite"
    with Export(path, "2026.2") as export:
        of = export.payload_field(1, "nccl", 70_000, "Message size [bytes]", 22, 8)
        export.payload_field(1, "nccl", 70_000, "Communicator", 18, 0)
        export.payload_field(1, "nccl", 70_000, "Scale", 20, 16)
        packed = struct.pack("<QQd", 2**63, 4096, 0.5)
        header = struct.pack("<QQQQ", of, 70_000, len(packed), 32 + len(packed))
        more: list[dict[str, Any]] = [
            {"jsonText": '{"a": 1}'},
            {"jsonTextId": export.string('{"b": 2}')},
            {"binaryData": header + packed},
            {"binaryData": (header + packed).hex()},
            {"binaryData": header + packed[:12]},
            {"binaryData": header[:20]},
            {"binaryData": "no hexadecimal"},
            {"binaryData": struct.pack("<QQQQ", of, 1, 0, 32)},
            {"jsonText": "x" * (LONGEST + 1)},
            {"doubleValue": "a text"},
            {},
        ]
        for n, columns in enumerate(more):
            export.user_range(1, 1, 10 * n, 10 * n + 5, f"r{n}", "nccl", **columns)
    ranges = read_report(path).ranges
    whole = {"Communicator": 2**63, "Message size [bytes]": 4096, "Scale": 0.5}
    said = ranges.data.values().tolist()
    assert [json.loads(text) for text in said[:5]] == [
        {"a": 1}, {"b": 2}, whole, whole, {"Communicator": 2**63},
    ]  # fmt: skip
    assert said[5:8] == ["", "", ""]
    assert said[8] == "x" * (LONGEST - 1) + "…"
    assert said[9:] == ["", ""]
    assert np.isnan(ranges.value).all()


#: Small, so that ends meet.
SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=12)


@given(spans=SPANS)
def test_self_times_sum_to_the_time_that_ranges_cover(spans: list[tuple[int, int]]) -> None:
    start = np.array([first for first, _ in spans], np.int64)
    stop = start + np.array([length for _, length in spans], np.int64)
    found = self_times(start, stop)
    assert found.sum() == Covered(start, stop).total
    assert (found <= stop - start).all()
    first, last, which = pieces(start, stop)
    assert (first[1:] >= last[:-1]).all()
    # each instant is of the range that began last of those that hold it
    for a, b, one in zip(first, last, which, strict=True):
        holds = (start <= a) & (stop >= b)
        assert holds[one]
        assert start[one] == start[holds].max()
        assert stop[one] == stop[holds & (start == start[one])].min()
