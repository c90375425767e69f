"""What GPUs did, what they waited for, and the same in the terms of their workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import Made, Task, Worker, columns, make_trace
from hypothesis import given
from hypothesis import strategies as st

from dasf_hpc.analysis import Severity
from dasf_hpc.analysis.coverage import Covered
from dasf_hpc.analysis.functions import functions
from dasf_hpc.analysis.gpu import NO_TASK, gpu
from dasf_hpc.analysis.where import GPU_PARTS, where
from dasf_hpc.trace.open import open_trace
from dasf_hpc.trace.store import write_trace

MS = 1_000_000


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 12))), st.integers(-2, 70))
def test_what_spans_cover_is_a_count_of_moments(spans: list[tuple[int, int]], time: int) -> None:
    start = np.array([s for s, _ in spans], np.int64)
    stop = np.array([s + d for s, d in spans], np.int64)
    covered = Covered(start, stop)
    moments = {t for s, d in spans for t in range(s, s + d)}
    assert covered.total == len(moments)
    assert covered.until(time) == len([t for t in moments if t < time])
    assert covered.between(10, 30) == len([t for t in moments if 10 <= t < 30])
    holes = {t for a, b in zip(*covered.gaps(), strict=True) for t in range(a, b)}
    assert not holes & moments


def _kernel(start: int, stop: int, task: int, name: str = "gemm", gpu: int = 0) -> dict[str, Any]:
    return {
        "process": 0,
        "gpu": gpu,
        "start": start * MS,
        "stop": stop * MS,
        "task": task,
        "name": f"{name}(float*)",
        "short_name": name,
    }


def _copy(start: int, stop: int, task: int, size: int) -> dict[str, Any]:
    return {
        "process": 0,
        "gpu": 0,
        "start": start * MS,
        "stop": stop * MS,
        "task": task,
        "bytes": size,
        "kind": "host to device",
    }


def _made(
    kernels: Sequence[dict[str, Any]],
    copies: Sequence[dict[str, Any]] = (),
    task_gpu: Sequence[dict[str, Any]] = (),
    calls: Sequence[dict[str, Any]] = (),
    **more: dict[str, Any],
) -> Made:
    """Make a run of two tasks, fft from 0 to 50 ms and store from 60 to 100 ms, on one GPU."""
    return Made(
        [Task("fft-1", 0, 0, 50 * MS), Task("store-1", 0, 60 * MS, 100 * MS)],
        [Worker(gpus="GPU-0", stop=100 * MS)],
        more={
            "gpus": {"node": [0], "index": [0], "uuid": ["GPU-0"], "memory": [1000]},
            "kernels": columns(kernels),
            "memcpys": columns(copies),
            "task_gpu": columns(task_gpu),
            "cuda_api": columns(calls),
            **more,
        },
    )


KERNELS = [
    _kernel(10, 20, 0),
    _kernel(20, 24, 0, "scale"),
    _kernel(30, 40, 0),
    _kernel(70, 71, 1, "copy_if"),
    _kernel(90, 92, -1, "warmup"),
]


def test_kernels_overlap_and_gaps_of_a_gpu(tmp_path: Path) -> None:
    made = _made(KERNELS, [_copy(22, 32, 0, 600), _copy(71, 75, 1, 400)])
    with make_trace(tmp_path / "trace.h5", made) as trace:
        answer = gpu(trace)
    one = answer.tables["gpus"].iloc[0]
    assert one["gpu"] == "node1 GPU 0"
    assert one["busy"] == (30 + 5 + 2) * MS  # 10-40, 70-75, 90-92
    assert one["busy_share"] == pytest.approx(37)
    assert (one["kernels"], one["kernel_time"]) == (5, 27 * MS)
    assert (one["copies"], one["copy_time"], one["copied"]) == (2, 14 * MS, 1000)
    assert one["overlap"] == (2 + 2) * MS  # 22-24, 30-32
    assert one["overlap_share"] == pytest.approx(100 * 4 / 14)
    table = answer.tables["kernels"]
    assert table[["function", "kernel", "count", "total", "mean"]].values.tolist() == [
        ["fft", "gemm", 2, 20 * MS, 10 * MS],
        ["fft", "scale", 1, 4 * MS, 4 * MS],
        [NO_TASK, "warmup", 1, 2 * MS, 2 * MS],
        ["store", "copy_if", 1, MS, MS],
    ]
    gaps = answer.tables["gaps"]
    assert gaps[["start", "duration", "task", "function"]].values.tolist() == [
        [40 * MS, 30 * MS, 0, "fft"],  # fft until 50, store from 60: ten each, the first
        [75 * MS, 15 * MS, 1, "store"],
    ]
    assert gaps["worker"].tolist() == ["worker-0", "worker-0"]
    assert [f.severity for f in answer.findings] == [Severity.NOTICE]
    assert any("sampled" in sentence for sentence in answer.unanswered)


def test_the_idle_time_of_a_gpu_is_put_down_to_what_its_worker_did(tmp_path: Path) -> None:
    made = _made(KERNELS, [_copy(22, 32, 0, 600)])
    with make_trace(tmp_path / "trace.h5", made) as trace:
        answer = where(trace)
    row = answer.tables["gpus"].iloc[0]
    parts = {part: int(row[part]) // MS for part in GPU_PARTS if row[part]}
    assert sum(int(row[part]) for part in GPU_PARTS) == row["wall"] == 100 * MS
    assert parts == {
        "busy": 30 + 1 + 2,
        "in_task": 10 + 10 + 10 + 19 + 8,
        "nothing_submitted": 10,
    }
    assert not any("CUDA" in sentence for sentence in answer.unanswered)


def _of_task(task: int, kernels: int, kernel_time: int, busy: int) -> dict[str, Any]:
    return {
        "task": task,
        "process": 0,
        "gpu": 0,
        "kernels": kernels,
        "kernel_time": kernel_time * MS,
        "to_device_time": 3 * MS,
        "to_host_time": 0,
        "on_device_time": MS,
        "other_copies_time": 0,
        "fills_time": 7 * MS,
        "busy": busy * MS,
        "idle": 5 * MS,
        "latency_max": 20_000,
    }


def test_a_function_that_launches_for_longer_than_it_computes_is_launch_bound(
    tmp_path: Path,
) -> None:
    calls = [
        {"process": 0, "start": 0, "stop": 30 * MS, "name": "cudaLaunchKernel_v7000", "task": 0},
        {"process": 0, "start": 31 * MS, "stop": 45 * MS, "name": "cudaMemcpy", "task": 0},
        {"process": 0, "start": 61 * MS, "stop": 62 * MS, "name": "cuLaunchKernel", "task": 1},
    ]
    rows = [_of_task(0, 5000, 10, 12), _of_task(1, 4000, 30, 35), _of_task(-1, 1, 1, 1)]
    with make_trace(tmp_path / "trace.h5", _made(KERNELS, (), rows, calls)) as trace:
        answer = gpu(trace)
        table = functions(trace).table.set_index("function")
    found = answer.tables["functions"].set_index("function")
    assert found["launch_time"].to_dict() == {"store": MS, "fft": 30 * MS}
    assert found["launch_bound"].to_dict() == {"store": False, "fft": True}
    assert found["busy_share"].to_dict() == {"store": 87.5, "fft": 24.0}
    assert found["kernel_mean"].to_dict() == {"store": 30 * MS // 4000, "fft": 10 * MS // 5000}
    assert found["copy_time"].tolist() == [4 * MS, 4 * MS]
    (bound,) = [f for f in answer.findings if "launch-bound" in f.sentence]
    assert answer.tables["functions"].loc[bound.rows[0], "function"] == "fft"
    # 30 ms of launches for 10 ms of kernels, in the first of two tasks of one thread
    assert (bound.saves, bound.cause) == (20 * MS, "launching kernels")
    assert table["kernel_time"].to_dict() == {"fft": 10 * MS, "store": 30 * MS}
    assert table["copy_time"].to_dict() == {"fft": 4 * MS, "store": 4 * MS}


def test_memory_over_time_and_a_full_gpu(tmp_path: Path) -> None:
    samples = {
        "time": [0, 10 * MS, 50 * MS],
        "gpu": [0, 0, 0],
        "utilization": [10.0, float("nan"), 30.0],
        "memory_used": [100, -1, 990],
    }
    with make_trace(tmp_path / "trace.h5", _made(KERNELS, gpu_samples=samples)) as trace:
        answer = gpu(trace)
    one = answer.tables["gpus"].iloc[0]
    assert (one["utilization"], one["peak_memory"], one["peak_memory_share"]) == (20.0, 990, 99.0)
    assert answer.tables["memory"]["used"].dropna().tolist() == [100, 990]
    assert "99 % full" in answer.findings[0].sentence


def test_without_any_cuda_table_it_could_not_look(tmp_path: Path) -> None:
    with make_trace(tmp_path / "trace.h5", Made([Task("f-1", 0, 0, 10)])) as trace:
        answer = gpu(trace)
        assert "no CUDA table" in where(trace).unanswered[-1]
    assert not answer.looked
    assert (
        answer.unanswered[0]
        == "Kernels, copies and gaps: not recorded (no CUDA table in this trace)."
    )


def test_a_trace_of_reports_alone_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "trace.h5"
    write_trace(
        path,
        {
            "gpus": {"node": [-1], "index": [0], "uuid": ["GPU-0"], "memory": [1000]},
            "kernels": columns([_kernel(10, 20, -1), _kernel(30, 40, -1)]),
        },
    )
    with open_trace(path) as trace:
        one = gpu(trace).tables["gpus"].iloc[0]
        row = where(trace).tables["gpus"].iloc[0]
    assert (one["busy"], one["busy_share"]) == (20 * MS, pytest.approx(200 / 3))
    assert sum(int(row[part]) for part in GPU_PARTS) == row["wall"] == 30 * MS
    assert row["busy"] == 20 * MS


def test_kernels_outside_the_run_as_the_clocks_tell_it_are_cut(tmp_path: Path) -> None:
    made = _made([_kernel(95, 130, 1), _kernel(140, 150, -1)])
    with make_trace(tmp_path / "trace.h5", made) as trace:
        row = where(trace).tables["gpus"].iloc[0]
    assert sum(int(row[part]) for part in GPU_PARTS) == row["wall"] == 100 * MS
    assert row["busy"] == 5 * MS
