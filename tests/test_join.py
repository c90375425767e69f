"""Reports in a trace: each kernel under the task that launched it, whatever the schema."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from exports import SCHEMAS, Export
from synthetic import BEGIN, PlainWorker, write_workers

from dasf_hpc import open_trace
from dasf_hpc.cli import main
from dasf_hpc.errors import TraceFileError
from dasf_hpc.imports import Wishes, import_files, join_into
from dasf_hpc.nsight.attribute import SENTENCES, Reason
from dasf_hpc.nsight.spool import SpooledRows, in_order
from dasf_hpc.nsight.sqlite import NONE
from dasf_hpc.outcome import merge_run
from dasf_hpc.trace.open import Trace
from dasf_hpc.trace.summary import summarise

MS = 1_000_000
SESSION = BEGIN - 77 * MS
"""True time at which nsys's session began."""

POOL_1, POOL_2, HELPER = 4250, 4251, 4300
WORKER = PlainWorker(
    4242,
    [
        (POOL_1, BEGIN + 10 * MS, BEGIN + 20 * MS),
        (POOL_2, BEGIN + 15 * MS, BEGIN + 30 * MS),
        (POOL_1, BEGIN + 40 * MS, BEGIN + 50 * MS),
    ],
    [("GPU-aaaa-0", 0)],
)
OTHER = PlainWorker(5000, [(5001, BEGIN + 10 * MS, BEGIN + 20 * MS)], [("GPU-bbbb-1", 1)])
STRANGER = 6000
NODE_ID = {f"{w.pid}-{n}": w.task_id(n) for w in (WORKER, OTHER) for n in range(len(w.tasks))}

WITH_CUDA = [version for version, schema in SCHEMAS.items() if schema["cuda"]]


def at(ms: float) -> int:
    """Give the session time of a moment of the run, ms after its begin."""
    return BEGIN - SESSION + round(ms * MS)


def write_report(path: Path, version: str, stray: bool = True) -> None:
    """Write the report of the node: what each kernel is, and whose, stands in `KERNELS`."""
    with Export(path, version) as report:
        report.begun(utc=10**18)
        for pid in (WORKER.pid, OTHER.pid):
            for n in range(10):
                report.mark(pid, at(0) + n * 1000, BEGIN + n * 1000)
        # the third task of the first worker and that of the other have no range
        for n, (thread, start, stop) in enumerate(WORKER.tasks[:2]):
            report.range(
                WORKER.pid, thread, start - SESSION + 1000, stop - SESSION - 1000, WORKER.task_id(n)
            )
        for number, uuid in enumerate(("GPU-aaaa-0", "GPU-bbbb-1")):
            report.gpu(number, uuid)
        report.device(WORKER.pid, 0, 0)
        report.device(OTHER.pid, 0, 1)
        # of the versions that number a process's own devices
        second = 0 if version in ("2025.1", "2026.2") else 1

        def kernel(
            name: str, thread: int | None, call: float, start: float, stop: float, **more: Any
        ) -> None:
            number = next(numbers)
            if thread is not None:
                report.call(WORKER.pid, thread, at(call), at(call) + 5000, number)
            given = {"correlationId": number, **more}
            report.kernel(WORKER.pid, at(start), at(stop), name, **given)

        numbers = itertools.count(1)
        kernel("own", POOL_1, 11, 12, 14)
        kernel("second", POOL_2, 16, 17, 19, streamId=8)
        kernel("after", POOL_1, 18, 18.5, 25)
        kernel("only", HELPER, 25, 26, 27)
        kernel("several", HELPER, 16, 31, 32)
        kernel("between", POOL_1, 35, 36, 37)
        kernel("none", HELPER, 36, 38, 38.5)
        kernel("trimmed", None, 0, 39, 39.25)
        # a graph: one call, two kernels
        report.call(WORKER.pid, POOL_1, at(41), at(41.5), 50, "cudaGraphLaunch_v10000")
        kernel("node", None, 0, 42, 43, correlationId=50, graphNodeId=5)
        kernel("node", None, 0, 43, 44, correlationId=50, graphNodeId=6)
        report.call(WORKER.pid, POOL_1, at(44), at(44.1), 51, "cudaGraphLaunch_v10000")
        report.graph(WORKER.pid, at(45), at(46), 9, correlationId=51)
        kernel("lost", POOL_1, 41, 60, 61, globalPid=None)
        report.call(WORKER.pid, POOL_1, at(10.5), at(11.1), 60, "cudaMemcpyAsync_v3020")
        report.memcpy(WORKER.pid, at(11.2), at(11.7), 1, 1000, correlationId=60)
        report.call(WORKER.pid, POOL_1, at(46), at(46.2), 61, "cudaMemcpyAsync_v3020")
        report.memcpy(WORKER.pid, at(46.5), at(47.5), 2, 2000, correlationId=61)
        report.call(WORKER.pid, POOL_1, at(46.3), at(46.4), 62, "cudaMemsetAsync_v3020")
        report.memset(WORKER.pid, at(47.4), at(47.6), 64, correlationId=62)
        report.call(WORKER.pid, POOL_1, at(47), at(49), 63, "cudaStreamSynchronize_v3020")
        report.wait(WORKER.pid, at(47), at(49), correlationId=63)
        # the other worker numbers its calls from 1, too
        report.call(OTHER.pid, 5001, at(11), at(11.5), 1)
        report.kernel(OTHER.pid, at(12), at(13), "other", correlationId=1, deviceId=second)
        if stray:
            report.call(STRANGER, STRANGER, at(69), at(69.5), 1)
            report.kernel(STRANGER, at(70), at(71), "stranger", correlationId=1)


#: Name of each kernel: number of the task in the trace (in the order of start), and why.
KERNELS = {
    "own": (0, Reason.BY_THREAD),
    "second": (2, Reason.BY_THREAD),
    "after": (0, Reason.BY_THREAD),
    "only": (2, Reason.ONLY_TASK),
    "several": (NONE, Reason.SEVERAL_TASKS),
    "between": (NONE, Reason.BETWEEN_TASKS),
    "none": (NONE, Reason.NO_TASK),
    "trimmed": (NONE, Reason.NO_CALL),
    "node": (3, Reason.BY_THREAD),
    "CUDA graph 9": (3, Reason.BY_THREAD),
    "lost": (NONE, Reason.NO_PROCESS),
    "other": (1, Reason.BY_THREAD),
    "stranger": (NONE, Reason.UNKNOWN_PROCESS),
}


def write_run_with_report(run: Path, version: str, **more: Any) -> Path:
    """Write a run's journals and its report, exported already."""
    write_workers(run / "journals", [WORKER, OTHER])
    (run / "nsight").mkdir()
    report = run / "nsight" / "node7.nsys-rep"
    report.write_bytes(b"exported below")
    write_report(report.with_suffix(".sqlite"), version, **more)
    return report


def frames(trace: Trace) -> dict[str, pd.DataFrame]:
    """Give what a report puts into a trace."""
    names = ("nvtx_ranges", "cuda_api", "kernels", "memcpys", "memsets", "synchronizations")
    return {name: trace.table(name) for name in (*names, "task_gpu", "gpus", "report_clocks")}


def task_number(trace: Trace) -> dict[int, int]:
    """Give for the row of each task its place in the order of start and process."""
    tasks = trace.tasks
    by_id = {task: NODE_ID[name] for name, task in NODE_ID.items()}
    assert set(tasks["id"]) == set(by_id)
    order = [WORKER.task_id(0), OTHER.task_id(0), WORKER.task_id(1), WORKER.task_id(2)]
    rows = zip(tasks.index.tolist(), tasks["id"].tolist(), strict=True)
    return {row: order.index(task) for row, task in rows} | {NONE: NONE}


@pytest.fixture(params=WITH_CUDA, scope="module")
def version(request: pytest.FixtureRequest) -> str:
    """Give each version whose exports tell of GPUs."""
    return str(request.param)


@pytest.fixture(scope="module")
def run(version: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a run with its report, merged without an nsys."""
    run = tmp_path_factory.mktemp("made") / "run"
    write_run_with_report(run, version)
    merge_run(run, str(run / "no nsys"))
    return run


class TestEverySchema:
    def test_every_kernel_is_under_its_task_or_says_why_not(self, run: Path) -> None:
        with open_trace(run) as trace:
            number = task_number(trace)
            kernels = trace.kernels
            reasons = kernels["reason"].astype(object).where(kernels["reason"].notna(), None)
            tasks = [number[task] for task in kernels["task"]]
            found = set(zip(kernels["short_name"], tasks, reasons, strict=True))
            assert found == {
                (name, task, SENTENCES[reason]) for name, (task, reason) in KERNELS.items()
            }
            assert len(kernels) == len(KERNELS) + 1
            nodes = kernels[kernels["short_name"] == "node"]
            assert nodes["graph_node"].tolist() == [5, 6]
            assert (kernels["graph_node"][kernels["short_name"] != "node"] == NONE).all()
            names = dict(zip(kernels["short_name"], kernels["name"], strict=True))
            assert names["own"] == "void own(float*)"

    def test_times_are_the_traces_and_exact(self, run: Path) -> None:
        with open_trace(run) as trace:
            kernels = trace.kernels
            origin = trace.attributes["origin_monotonic_ns"]
            own = kernels[kernels["short_name"] == "own"].iloc[0]
            assert own["start"] + origin == BEGIN + 12 * MS
            assert own["stop"] + origin == BEGIN + 14 * MS
            assert own["launched"] + origin == BEGIN + 11 * MS
            assert own["thread"] == POOL_1
            assert (np.diff(kernels["start"]) >= 0).all()
            clocks = trace.report_clocks
            pids = trace.processes["pid"][clocks["process"]].tolist()
            assert dict(zip(pids, clocks["source"], strict=True)) == {
                WORKER.pid: "marks",
                OTHER.pid: "marks",
                STRANGER: "same-host",
            }
            assert (clocks["bound"] >= 0).all()
            # the same instants through a window of time
            window = trace.table("kernels", start=own["start"], stop=own["stop"])
            assert set(window["short_name"]) == {"own", "other"}

    def test_calls_belong_to_the_tasks_of_their_threads(self, run: Path) -> None:
        with open_trace(run) as trace:
            number, calls = task_number(trace), trace.cuda_api
            graphs = calls[calls["name"] == "cudaGraphLaunch_v10000"]
            assert [number[t] for t in graphs["task"]] == [3, 3]
            assert set(graphs["thread"]) == {POOL_1}
            kernels = trace.kernels
            both = kernels.merge(calls, on=["report", "process", "correlation"])
            launched = kernels[kernels["launched"] != NONE]
            assert len(both) == len(launched)
            assert (both["launched"] == both["start_y"]).all()
            assert (both["task_x"] == both["task_y"]).all()

    def test_gpus_are_those_of_the_journals(self, run: Path, version: str) -> None:
        with open_trace(run) as trace:
            gpus, kernels = trace.gpus, trace.kernels
            uuids = gpus["uuid"].astype(object)
            of = {
                name: uuids[row] if row >= 0 else None
                for name, row in zip(kernels["short_name"], kernels["gpu"], strict=True)
            }
            assert of["own"] == "GPU-aaaa-0"
            assert of["other"] == "GPU-bbbb-1"
            told = version in ("2023.1", "2023.4", "2025.1")
            assert gpus["multiprocessors"][:2].tolist() == [132 if told else NONE] * 2
            if told:
                assert len(gpus) == 2

    def test_parts_add_up_to_each_gpus_busy_time(self, run: Path) -> None:
        with open_trace(run) as trace:
            table, gpus = trace.task_gpu, trace.gpus
            shares = table.groupby("gpu")["share"].sum()
            for row, busy in enumerate(gpus["busy"].tolist()):
                rows = [
                    t[t["gpu"] == row][["start", "stop"]].to_numpy()
                    for t in (trace.kernels, trace.memcpys, trace.memsets)
                ]
                total, end = 0, -1
                for start, stop in sorted(map(tuple, np.concatenate(rows))):
                    total += max(0, stop - max(start, end))
                    end = max(end, stop)
                assert busy == total == shares[row]

    def test_what_each_task_did_on_its_gpu(self, run: Path) -> None:
        with open_trace(run) as trace:
            number = task_number(trace)
            table = trace.task_gpu.assign(number=[number[t] for t in trace.task_gpu["task"]])
            of_tasks = table[table["task"] >= 0]
            assert of_tasks["number"].is_unique
            assert of_tasks["reason"].isna().all()
            rows = {row["number"]: row for row in of_tasks.to_dict("records")}
            assert rows[0]["kernels"] == 2
            assert rows[0]["kernel_time"] == 8.5 * MS
            assert [rows[0]["to_device_time"], rows[0]["to_device_bytes"]] == [0.5 * MS, 1000]
            assert rows[0]["busy"] == 9 * MS
            # what of its second kernel ran while that of the other task did is the other's
            assert rows[0]["share"] == 8.5 * MS
            assert rows[2]["share"] == 3 * MS
            assert [rows[0]["latency_mean"], rows[0]["latency_max"]] == [0.75 * MS, MS]
            # of 10 to 20: 11.2 to 11.7, 12 to 14 and 17 to 20 (of both tasks)
            assert rows[0]["idle"] == 4.5 * MS
            origin = trace.attributes["origin_monotonic_ns"]
            assert rows[0]["first"] + origin == BEGIN + 12 * MS
            assert rows[0]["last"] + origin == BEGIN + 25 * MS
            assert rows[3]["kernels"] == 3
            assert [rows[3]["to_host_time"], rows[3]["to_host_bytes"]] == [MS, 2000]
            assert [rows[3]["fills_time"], rows[3]["fills_bytes"]] == [0.2 * MS, 64]
            assert rows[3]["synchronization"] == 2 * MS
            assert [rows[3]["busy"], rows[3]["share"]] == [4_100_000] * 2
            nobodys = table[table["task"] < 0].groupby("reason", observed=True)["share"].sum()
            shares = {str(reason): int(share) for reason, share in nobodys.items()}
            assert shares[str(SENTENCES[Reason.NO_CALL])] == MS // 4
            assert shares[str(SENTENCES[Reason.UNKNOWN_PROCESS])] == MS

    def test_kinds_have_names(self, run: Path) -> None:
        with open_trace(run) as trace:
            assert trace.memcpys["kind"].tolist() == ["host to device", "device to host"]
            assert trace.synchronizations["kind"].tolist() == ["stream"]

    def test_a_process_without_journal_is_named(self, run: Path) -> None:
        with open_trace(run) as trace:
            assert f"processes {STRANGER}:" in trace.reports["sentence"][0]
            strangers = trace.processes[trace.processes["role"] == "profiled"]
            assert strangers["pid"].tolist() == [STRANGER]

    def test_joining_later_gives_the_same_trace(self, run: Path, tmp_path: Path) -> None:
        later = tmp_path / "later"
        shutil.copytree(run / "journals", later / "journals")
        merge_run(later)
        done = join_into([run / "nsight" / "node7.sqlite"], later, Wishes("no nsys"))
        assert [entry.status for entry in done.reports] == ["joined"]
        with open_trace(run) as one, open_trace(later) as other:
            for name, frame in frames(one).items():
                pd.testing.assert_frame_equal(frame, frames(other)[name])
            assert len(other.tasks) == 4
            assert other.tasks["key"].tolist() == one.tasks["key"].tolist()


def test_a_report_is_joined_once(tmp_path: Path) -> None:
    write_run_with_report(tmp_path / "run", "2025.1")
    merge_run(tmp_path / "run")
    with open_trace(tmp_path / "run") as trace:
        before = frames(trace)
    done = join_into([tmp_path / "run" / "nsight" / "node7.nsys-rep"], tmp_path / "run", Wishes())
    assert done.reports[0].sentence == "the trace holds it already"
    with open_trace(tmp_path / "run") as trace:
        for name, frame in frames(trace).items():
            pd.testing.assert_frame_equal(frame, before[name])


def test_what_is_damaged_or_odd_is_named_or_joined_and_adds_up(tmp_path: Path) -> None:
    write_report(tmp_path / "whole.sqlite", "2023.4")
    write_workers(tmp_path / "run" / "journals", [WORKER, OTHER])
    merge_run(tmp_path / "run")
    whole, base = (tmp_path / "whole.sqlite").read_bytes(), tmp_path / "run" / "trace.h5"
    bad, trace_path = tmp_path / "bad.sqlite", tmp_path / "trace.h5"
    rng = random.Random(11)
    joined = 0
    for number in range(24):
        bad.write_bytes(whole)
        if number % 2:
            table = rng.choice(["KERNEL", "MEMCPY", "MEMSET", "RUNTIME", "SYNCHRONIZATION"])
            with contextlib.closing(sqlite3.connect(bad)) as database, database:
                name = f"CUPTI_ACTIVITY_KIND_{table}"
                columns = [row[1] for row in database.execute(f"PRAGMA table_info({name})")]
                value = rng.choice([0, -1, 2**31, 2**32 - 1, -(2**63), 2**63 - 1])
                where = f"rowid % {rng.randint(1, 3)} = 0"
                database.execute(
                    f'UPDATE {name} SET "{rng.choice(columns)}" = ? WHERE {where}', (value,)
                )
        else:
            at, length = rng.randrange(len(whole)), rng.choice([1, 64, 4096])
            bad.write_bytes(whole[:at] + rng.randbytes(length) + whole[at + length :])
        shutil.copy(base, trace_path)
        try:
            join_into([bad], trace_path, Wishes("no nsys"))
        except TraceFileError as error:
            assert "bad.sqlite" in str(error)  # noqa: PT017
            continue
        joined += 1
        with open_trace(trace_path) as trace:
            summarise(trace)
            table_gpu, gpus = trace.task_gpu, trace.gpus
            shares = table_gpu[table_gpu["gpu"] >= 0]["share"].sum()
            assert shares == gpus["busy"][gpus["busy"] > 0].sum()
    assert joined > 12


def test_two_reports_of_one_gpu_share_its_time(tmp_path: Path) -> None:
    """The second one, of a process that no journal knows, runs at the same time on the GPU."""
    write_run_with_report(tmp_path / "run", "2025.1", stray=False)
    with Export(tmp_path / "second.sqlite", "2023.4") as report:
        for n in range(10):
            report.mark(STRANGER, n * 1000, BEGIN + n * 1000)
        report.gpu(3, "aaaa-0")  # as some versions write it
        for n in range(40):
            report.kernel(STRANGER, n * MS, n * MS + MS // 2, f"k{n}", deviceId=3, correlationId=n)
    merge_run(tmp_path / "run")
    with open_trace(tmp_path / "run") as trace:
        alone = trace.gpus["busy"][0]
    join_into([tmp_path / "second.sqlite"], tmp_path / "run", Wishes())
    with open_trace(tmp_path / "run") as trace:
        assert len(trace.gpus) == 2
        kernels = trace.kernels
        assert (np.diff(kernels["start"]) >= 0).all()
        assert set(kernels["report"]) == {0, 1}
        shares = trace.task_gpu.groupby("gpu")["share"].sum()
        assert shares[0] == trace.gpus["busy"][0] > alone
        own = kernels[kernels["gpu"] == 0][["start", "stop"]]
        covered = np.zeros(80 * 1000, bool)  # in us
        origin = trace.attributes["origin_monotonic_ns"] - BEGIN
        more = [own, trace.memcpys[["start", "stop"]], trace.memsets[["start", "stop"]]]
        for start, stop in pd.concat(more).to_numpy():
            covered[(start + origin) // 1000 : (stop + origin) // 1000] = True
        assert trace.gpus["busy"][0] == covered.sum() * 1000


def test_a_report_of_another_host_is_tied_by_utc_and_named(tmp_path: Path) -> None:
    write_workers(tmp_path / "run" / "journals", [WORKER])
    merge_run(tmp_path / "run")
    with open_trace(tmp_path / "run") as trace:
        utc = trace.attributes["origin_utc_ns"]
    with Export(tmp_path / "far.sqlite", "2023.4", hostname="elsewhere") as report:
        report.begun(utc=utc + 5 * MS)
        report.call(WORKER.pid, POOL_1, MS, MS + 10, 1)
        report.kernel(WORKER.pid, 2 * MS, 3 * MS, "far", correlationId=1)
    done = join_into([tmp_path / "far.sqlite"], tmp_path / "run", Wishes())
    assert f"processes {WORKER.pid}:" in done.reports[0].sentence
    with open_trace(tmp_path / "run") as trace:
        assert trace.kernels["start"].tolist() == [7 * MS]
        assert trace.report_clocks["source"].tolist() == ["utc"]
        assert trace.report_clocks["bound"][0] >= 10 * MS
        assert trace.kernels["task"].tolist() == [NONE]
        assert trace.kernels["reason"].tolist() == [SENTENCES[Reason.UNKNOWN_PROCESS]]
        assert trace.nodes["hostname"].tolist() == ["node7", "elsewhere"]


def test_a_report_that_nothing_ties_says_so(tmp_path: Path) -> None:
    write_workers(tmp_path / "run" / "journals", [WORKER])
    merge_run(tmp_path / "run")
    with Export(tmp_path / "old.sqlite", "2020.3") as report:
        report.kernel(STRANGER, 2 * MS, 3 * MS, "old", correlationId=1)
    done = join_into([tmp_path / "old.sqlite"], tmp_path / "run", Wishes())
    assert "nothing ties its clock" in done.reports[0].sentence
    with open_trace(tmp_path / "run") as trace:
        # on its own axis: the kernel took what it took
        assert trace.kernels[["start", "stop"]].to_numpy().tolist() == [[2 * MS, 3 * MS]]
        assert trace.reports["correction_source"].tolist() == ["own axis"]


class TestImport:
    def test_a_trace_of_reports_alone(self, version: str, tmp_path: Path) -> None:
        write_report(tmp_path / "node7.sqlite", version)
        done = import_files([tmp_path / "node7.sqlite"], tmp_path / "trace.h5", Wishes())
        assert done.reports[0].sentence == ""
        with open_trace(tmp_path / "trace.h5") as trace:
            assert len(trace.tasks) == 0
            kernels = trace.kernels
            assert len(kernels) == len(KERNELS) + 1
            assert kernels["start"][kernels["short_name"] == "own"].tolist() == [at(12)]
            assert (kernels["task"] == NONE).all()
            assert len(trace.nvtx_ranges) == 2
            assert trace.gpus["busy"].sum() == trace.task_gpu["share"].sum() > 0
            assert set(trace.processes["role"]) == {"profiled"}
            assert trace.nodes["hostname"].tolist() == ([] if version == "2020.3" else ["node7"])

    def test_several_reports_begin_with_the_first(self, tmp_path: Path) -> None:
        for name, start in (("late", 3 * MS), ("early", 0)):
            with Export(tmp_path / f"{name}.sqlite", "2025.1", hostname=name) as report:
                report.begun(utc=10**18 + start)
                report.kernel(STRANGER, MS, 2 * MS, name, correlationId=1)
        paths = [tmp_path / "late.sqlite", tmp_path / "early.sqlite"]
        import_files(paths, tmp_path / "trace.h5", Wishes())
        with open_trace(tmp_path / "trace.h5") as trace:
            assert trace.kernels["short_name"].tolist() == ["early", "late"]
            assert trace.kernels["start"].tolist() == [MS, 4 * MS]
            assert trace.attributes["reference_host"] == "early"
            assert trace.attributes["origin_utc_ns"] == 10**18
            sources = dict(zip(trace.reports["file"], trace.report_clocks["source"], strict=True))
            assert sources == {"early.sqlite": "reference", "late.sqlite": "utc"}

    def test_nothing_of_the_environment_gets_out(self, tmp_path: Path) -> None:
        write_report(tmp_path / "node7.sqlite", "2025.1")
        import_files([tmp_path / "node7.sqlite"], tmp_path / "trace.h5", Wishes())
        assert b"hunter2" not in (tmp_path / "trace.h5").read_bytes()

    def test_what_cannot_be_imported_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("no report")
        with pytest.raises(TraceFileError, match=r"notes\.txt .* should end in one of \.nsys-rep"):
            import_files([tmp_path / "notes.txt"], tmp_path / "trace.h5", Wishes())
        (tmp_path / "bad.sqlite").write_text("no database")
        with pytest.raises(TraceFileError, match=r"No report could be joined: .*bad\.sqlite"):
            import_files([tmp_path / "bad.sqlite"], tmp_path / "trace.h5", Wishes())
        assert not (tmp_path / "trace.h5").exists()
        (tmp_path / "trace.h5").write_text("in the way")
        with pytest.raises(TraceFileError, match="exists"):
            import_files([tmp_path / "bad.sqlite"], tmp_path / "trace.h5", Wishes())
        write_report(tmp_path / "node7.sqlite", "2025.1")
        nowhere = tmp_path / "no folder" / "trace.h5"
        with pytest.raises(TraceFileError, match="could not be written: No such file"):
            import_files([tmp_path / "node7.sqlite"], nowhere, Wishes())
        with pytest.raises(TraceFileError, match=r"There is no file .*gone\.nsys-rep"):
            import_files([tmp_path / "gone.nsys-rep"], tmp_path / "other.h5", Wishes())
        with pytest.raises(TraceFileError, match="cannot be read"):
            join_into([tmp_path / "bad.sqlite"], tmp_path / "none.h5", Wishes())


def test_join_and_import_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said_by(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["dasf-hpc", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    write_report(tmp_path / "node7.sqlite", "2025.1")
    made = tmp_path / "made.h5"
    said = json.loads(
        said_by("import", str(tmp_path / "node7.sqlite"), "--into", str(made), "--json")
    )
    assert said["reports"][0]["status"] == "joined"
    assert said["summary"]["gpu"]["kernels"] == len(KERNELS) + 1
    assert said["summary"]["gpu"]["attributed"] == 0
    assert said["summary"]["nodes"] == ["node7"]
    with open_trace(made) as trace:
        kernels = trace.table("kernels")
        kernels = kernels[kernels["start"] >= 0]
        least = kernels["stop"].max() - kernels["start"].min()
        assert said["summary"]["duration"] >= least > 0
    shown = " ".join(said_by("show", str(made)).split())
    assert "Nodes 1: node7 Tasks none: a trace of Nsight reports alone Duration" in shown
    assert "Workers" not in shown
    write_workers(tmp_path / "run" / "journals", [WORKER, OTHER])
    merge_run(tmp_path / "run")
    told = " ".join(
        said_by("join", str(tmp_path / "node7.sqlite"), "--into", str(tmp_path / "run")).split()
    )
    assert "GPU" not in told  # the summary is for people: it goes to the terminal
    shown = " ".join(said_by("show", str(tmp_path / "run")).split())
    assert "GPU time" in shown
    assert "void after(float*)" in shown
    assert str(SENTENCES[Reason.SEVERAL_TASKS]) in shown


def test_rows_of_several_files_come_in_order_whatever_their_cuts(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    files = []
    for number in range(4):
        count = (0, 1, 700, 300)[number]
        start = rng.integers(-1, 50, count)  # many are equal
        rows = {"start": start, "report": np.full(count, number), "row": np.arange(count)}
        files.append(SpooledRows(tmp_path / str(number), rows))
    parts = list(in_order(files, ["report", "row"], rows=64))
    start, report, row = (
        np.concatenate([part[name] for part in parts]) for name in ("start", "report", "row")
    )
    assert len(start) == 1001
    assert max(len(part["start"]) for part in parts) <= 4 * 64
    assert (np.diff(start) >= 0).all()
    assert len(set(zip(report.tolist(), row.tolist(), strict=True))) == 1001
