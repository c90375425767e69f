"""Reports together: what one adds, another cannot spoil, double or take for its own."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import Export, global_id
from synthetic import BEGIN, BEGIN_UTC, PlainWorker, write_workers

from dasf_hpc import open_trace
from dasf_hpc.analysis import analyse
from dasf_hpc.imports import Wishes, import_files, join_into
from dasf_hpc.nsight.reader import read_report
from dasf_hpc.outcome import merge_run
from dasf_hpc.trace.holdings import Kind, held
from dasf_hpc.trace.stacks import weights

MS = 1_000_000
UTC = 10**18
NO_NSYS = Wishes("no nsys")
WORKER = PlainWorker(4242, [(4250, BEGIN + 10 * MS, BEGIN + 20 * MS)], [])


def job(path: Path, host: str, ranks: tuple[int, ...], calls: int, late: int, at: int = 0) -> Path:
    """Write the report of a host: each rank but the last waits so long in each collective."""
    with Export(path, "2025.1", hostname=host) as made:
        made.begun(utc=UTC + at)
        for rank in ranks:
            pid = 100 + rank
            made.mpi_rank(pid, rank)
            made.mpi("OTHER", pid, 1, 2, "MPI_Init")
            for n in range(calls):
                begin = (10 + 10 * n) * MS
                entered = begin + (late if rank == max(ranks) else 0)
                left = begin + late + MS
                size = {"size": 8, "recvSize": 8}
                handle = {"commHandle": 0x44000000}
                made.mpi("COLLECTIVES", pid, entered, left, "MPI_Allreduce", **handle, **size)
    return path


def waiting(trace: Path) -> tuple[list[int], list[int], int]:
    with open_trace(trace) as opened:
        tables = analyse("collectives", opened).tables
        found = tables["collectives"]
        return found["ranks"].tolist(), found["count"].tolist(), int(found["wait"].sum())


def test_ranks_of_one_report_are_matched(tmp_path: Path) -> None:
    import_files([job(tmp_path / "a.sqlite", "n1", (0, 1), 5, 2 * MS)], tmp_path / "t.h5", NO_NSYS)
    assert waiting(tmp_path / "t.h5") == ([2], [5], 5 * 2 * MS)


def test_collectives_of_a_later_join_are_others(tmp_path: Path) -> None:
    trace = tmp_path / "t.h5"
    import_files([job(tmp_path / "a.sqlite", "n1", (0, 1), 5, 2 * MS)], trace, NO_NSYS)
    later = job(tmp_path / "b.sqlite", "n2", (0, 1), 6, 3 * MS, at=400 * 10**9)
    join_into([later], trace, NO_NSYS)
    with open_trace(trace) as opened:
        numbers = opened.messages.groupby("report")["collective"].agg(set)
        assert not (numbers[0] & numbers[1]) - {-1}
    ranks, counts, waited = waiting(trace)
    assert (ranks, sum(counts), waited) == ([2], 11, 5 * 2 * MS + 6 * 3 * MS)


def test_collectives_that_could_not_be_matched_are_told(tmp_path: Path) -> None:
    trace = tmp_path / "t.h5"
    import_files([job(tmp_path / "a.sqlite", "n1", (0,), 5, 0)], trace, NO_NSYS)
    join_into([job(tmp_path / "b.sqlite", "n2", (1,), 5, 0, at=MS)], trace, NO_NSYS)
    with open_trace(trace) as opened:
        answer = analyse("collectives", opened)
    assert len(answer.tables["collectives"]) == 0
    assert any("join or import all reports of a job in one command" in s for s in answer.unanswered)


# ------------------------------------------------------------------------------ not whole


def filled(path: Path, damaged: bool) -> Path:
    """Write a report of a worker; a damaged one cannot be put into a trace whole."""
    with Export(path, "2025.1") as made:
        made.begun(utc=BEGIN_UTC)
        made.mark(WORKER.pid, 0, BEGIN)
        made.os_call(WORKER.pid, 4250, 11 * MS, 12 * MS)
        made.switch(WORKER.pid, 4250, 11 * MS, on=False, state=1)
        made.switch(WORKER.pid, 4250, 13 * MS, on=True)
        made.sample(WORKER.pid, 4250, 14 * MS)
        made.allocation(WORKER.pid, 15 * MS, 4096, 100)
    if damaged:
        with sqlite3.connect(path) as database:
            database.execute("UPDATE CUDA_GPU_MEMORY_USAGE_EVENTS SET address = 'nowhere'")
        database.close()
    return path


def test_a_report_that_cannot_be_put_in_whole_leaves_nothing(tmp_path: Path) -> None:
    write_workers(tmp_path / "journals", [WORKER])
    (tmp_path / "nsight").mkdir()
    merge_run(tmp_path)
    whole = filled(tmp_path / "whole.sqlite", damaged=False)
    with Export(tmp_path / "other.sqlite", "2025.1", hostname="node9") as made:
        made.begun(utc=BEGIN_UTC)
        made.kernel(1, 2, 3)
    damaged = filled(tmp_path / "damaged.sqlite", damaged=True)
    done = join_into([damaged, tmp_path / "other.sqlite"], tmp_path, NO_NSYS)
    assert [entry.status for entry in done.reports] == ["unreadable", "joined"]
    with open_trace(tmp_path) as trace:
        for table in ("os_runtime_sums", "task_cpu", "recorded", "report_clocks"):
            assert 0 not in trace.table(table)["report"].tolist(), table
    join_into([whole], tmp_path, NO_NSYS)
    with open_trace(tmp_path) as trace:
        assert trace.os_runtime_sums["count"].tolist() == [1]
        assert trace.task_cpu["off"].tolist() == [2 * MS]


def test_what_two_nsys_of_a_host_saw_of_a_thread_counts_once(tmp_path: Path) -> None:
    write_workers(tmp_path / "journals", [WORKER])
    merge_run(tmp_path)
    paths = []
    for number in range(2):
        path = filled(tmp_path / f"{number}.sqlite", damaged=False)
        # another recording of the same threads
        start = "UPDATE TARGET_INFO_SESSION_START_TIME SET utcEpochNs = utcEpochNs"
        with sqlite3.connect(path) as database:
            database.execute(f"{start} + {number}")
        database.close()
        paths.append(path)
    join_into(paths, tmp_path, NO_NSYS)
    with open_trace(tmp_path) as trace:
        assert len(trace.task_cpu) == len(trace.cpu_samples) == 2
        (row,) = analyse("cpu", trace).tables["functions"].to_dict("records")
        assert row["samples"] == 1
        assert row["off_cpu"] == 2 * MS
        assert row["known"] <= row["executing"] == 10 * MS


def test_samples_alone_are_kept(tmp_path: Path) -> None:
    with Export(tmp_path / "s.sqlite", "2025.1") as made:
        made.begun(utc=UTC)
        for n in range(5):
            made.sample(700, 700, n * MS, [("main", "/usr/bin/app")])
    import_files([tmp_path / "s.sqlite"], tmp_path / "t.h5", NO_NSYS)
    with open_trace(tmp_path / "t.h5") as trace:
        assert held(trace)[Kind.SAMPLES].count == 5
        assert weights(trace).tolist() == [5]


# ------------------------------------------------------------------------------ odd content


def test_a_gpu_with_releases_alone_is_no_traceback(tmp_path: Path) -> None:
    with Export(tmp_path / "r.sqlite", "2025.1") as made:
        made.begun(utc=UTC)
        made.gpu(0, "GPU-1")
        made.allocation(700, MS, 4096, -100)
    import_files([tmp_path / "r.sqlite"], tmp_path / "t.h5", NO_NSYS)
    with open_trace(tmp_path / "t.h5") as trace:
        answer = analyse("cuda", trace)
        json.dumps([finding.sentence for finding in answer.findings])
        assert answer.tables["memory"]["unknown_releases"].tolist() == [1]


def test_more_kinds_than_a_trace_tells_apart_are_none(tmp_path: Path) -> None:
    with Export(tmp_path / "k.sqlite", "2025.1") as made:
        made.begun(utc=UTC)
        for n in range(300):
            made.memcpy(700, n * MS, n * MS + 1, 100 + n, 8)
    import_files([tmp_path / "k.sqlite"], tmp_path / "t.h5", NO_NSYS)
    with open_trace(tmp_path / "t.h5") as trace:
        kinds = trace.memcpys["kind"]
        assert kinds.notna().sum() == 128
        assert kinds.iloc[0] == "kind 100"


@pytest.mark.parametrize("device", [2**62, 2**31, -7])
def test_a_number_that_is_no_gpus_is_none(tmp_path: Path, device: int) -> None:
    with Export(tmp_path / "d.sqlite", "2025.1") as made:
        made.begun(utc=UTC)
        made.kernel(700, MS, 2 * MS, deviceId=device)
    import_files([tmp_path / "d.sqlite"], tmp_path / "t.h5", NO_NSYS)
    with open_trace(tmp_path / "t.h5") as trace:
        assert trace.kernels["gpu"].tolist() == [-1]


@pytest.mark.parametrize("value", [b"\xffraw", 5, 1.5])
def test_a_name_that_is_no_text_is_read_as_one(tmp_path: Path, value: Any) -> None:
    with Export(tmp_path / "n.sqlite", "2025.1") as made:
        made.begun(utc=UTC)
        made.kernel(700, MS, 2 * MS, "odd")
        thread = global_id(700, 700)
        for n in range(2):
            made._event(59, n, n + 1, "", globalTid=thread, domainId=0, **{})
    with sqlite3.connect(tmp_path / "n.sqlite") as database:
        database.execute("UPDATE StringIds SET value = ?", [value])
        database.execute("UPDATE NVTX_EVENTS SET text = ?, textId = NULL", [value])
    database.close()
    import_files([tmp_path / "n.sqlite"], tmp_path / "t.h5", NO_NSYS)
    with open_trace(tmp_path / "t.h5") as trace:
        expected = "\N{REPLACEMENT CHARACTER}raw" if isinstance(value, bytes) else str(value)
        assert trace.kernels["short_name"].tolist() == [expected]
        assert trace.nvtx_ranges["message"].tolist() == [expected] * 2


def test_an_export_whose_rows_are_still_in_its_log_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "w.sqlite"
    with Export(path, "2025.1") as made:
        made.begun(utc=UTC)
        made.memset(700, 0, 1, 8)
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA wal_autocheckpoint = 0")
    row = database.execute("SELECT * FROM CUPTI_ACTIVITY_KIND_MEMSET").fetchone()
    holes = ", ".join("?" * len(row))
    database.executemany(
        f"INSERT INTO CUPTI_ACTIVITY_KIND_MEMSET VALUES ({holes})",
        [(n, n + 1, *row[2:]) for n in range(1, 100_000)],
    )
    database.commit()
    try:
        assert path.stat().st_size < (tmp_path / "w.sqlite-wal").stat().st_size
        assert (read_report(path).memsets.start == np.arange(100_000)).all()
    finally:
        database.close()
