"""Reports that a real nsys makes of real runs, joined: ranges, and kernels where there is a GPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from system.conftest import Submit

from dasf_hpc import open_trace
from dasf_hpc.imports import Wishes, import_files, join_into
from dasf_hpc.launch.node import write_record
from dasf_hpc.manifest import Manifest
from dasf_hpc.nsight.attribute import SENTENCES, Reason
from dasf_hpc.outcome import merge_run

THREADS = """
    import time
    from distributed import Client

    def work(number):
        time.sleep(0.005)
        return number

    with Client() as client:
        futures = client.map(work, range(60), pure=False)
        assert client.gather(futures) == list(range(60))
"""


@pytest.mark.needs("nsys")
def test_a_report_that_is_joined_later_gives_what_the_merge_gave(
    submit: Submit, script: Callable[[str], str], tmp_path: Path
) -> None:
    workers = ["--workers-per-node", "2", "--threads-per-worker", "2"]
    done = submit("--on", "local", "--nsys", *workers, script(THREADS))
    assert done.code == 0, done.err
    (report,) = (done.directory / "nsight").glob("*.nsys-rep")
    later = tmp_path / "later"
    shutil.copytree(done.directory / "journals", later / "journals")
    merge_run(later)
    entries = join_into([report], later, Wishes(os_runtime=True)).reports
    assert [entry.status for entry in entries] == ["joined"]
    assert entries[0].linked == entries[0].compute_ranges == 60
    with open_trace(done.directory) as merged, open_trace(later) as joined:
        pd.testing.assert_frame_equal(merged.nvtx_ranges, joined.nvtx_ranges)
        assert len(merged.os_runtime) == 0 < len(joined.os_runtime)
        ranges, tasks = merged.nvtx_ranges, merged.tasks
        compute = ranges[ranges["task"] >= 0]
        assert sorted(compute["task"]) == list(range(60))
        assert compute["process"].nunique() == 2
        # ranges lie within their tasks, on the trace's time
        row = tasks.loc[compute["task"].to_numpy()]
        bound = merged.report_clocks["bound"].max()
        assert 0 <= bound < 1_000_000
        assert (compute["start"].to_numpy() >= row["start"].to_numpy() - bound).all()
        assert (compute["stop"].to_numpy() <= row["stop"].to_numpy() + bound).all()
        assert (compute["thread"].to_numpy() == row["thread"].to_numpy()).all()
        calls = joined.os_runtime
        assert set(tasks["thread"]) <= set(calls["thread"])
        assert (np.diff(calls["start"]) >= 0).all()
    alone = import_files([report], tmp_path / "alone.h5", Wishes())
    with open_trace(alone.trace) as trace:
        assert len(trace.nvtx_ranges) == len(ranges)
        assert set(trace.nvtx_ranges["payload"]) == set(ranges["payload"])


@pytest.mark.needs("nsys")
def test_a_node_job_that_ended_before_its_worker_began_owes_no_report(
    submit: Submit, script: Callable[[str], str]
) -> None:
    done = submit("--on", "local", "--nsys", script(THREADS))
    assert done.code == 0, done.err
    node = {
        "name": f"{done.directory.name}-7", "hostname": "node2", "batch_job": "46",
        "report": "nsight/node2-46.nsys-rep", "notes": [],
    }  # fmt: skip
    record = write_record(done.directory, node)
    merge_run(done.directory)
    content = Manifest(done.directory).content
    assert content["state"] == "complete"
    assert content["merged"]["reports_expected"] == content["merged"]["reports_found"] == 1
    assert sum("46 ended before its worker began" in note for note in content["notes"]) == 1
    # One whose worker did begin owes its report.
    record.with_suffix(".begun").touch()
    merge_run(done.directory)
    content = Manifest(done.directory).content
    assert content["state"] == "partial"
    states = {report["file"]: report["status"] for report in content["merged"]["reports"]}
    assert states.pop(node["report"]) == "missing"
    assert list(states.values()) == ["joined"]


#: A job with kernels, by the driver's own interface, which is wherever a GPU is. Task n launches
#: n % 5 + 1 kernels of about 0.2 ms, one of them from a thread that it starts, and fetches 4 bytes
#: for each.
CUDA = '''
    import ctypes, threading
    from distributed import Client

    PTX = b"""
    .version 6.4
    .target sm_50
    .address_size 64
    .visible .entry dasf_spin(.param .u64 out, .param .u32 count)
    {
        .reg .pred %p;
        .reg .u32 %i, %n, %x;
        .reg .u64 %o;
        ld.param.u64 %o, [out];
        ld.param.u32 %n, [count];
        cvta.to.global.u64 %o, %o;
        mov.u32 %i, 0;
        mov.u32 %x, 1;
    again:
        mad.lo.u32 %x, %x, 1664525, 1013904223;
        add.u32 %i, %i, 1;
        setp.lt.u32 %p, %i, %n;
        @%p bra again;
        st.global.u32 [%o], %x;
        ret;
    }
    """

    def call(function, *arguments):
        code = function(*arguments)
        assert code == 0, (function.__name__, code)

    def work(number):
        cuda = ctypes.CDLL("libcuda.so.1")
        device, context, module, function, memory = (
            ctypes.c_int(), *(ctypes.c_void_p() for _ in range(3)), ctypes.c_uint64()
        )
        call(cuda.cuInit, 0)
        call(cuda.cuDeviceGet, ctypes.byref(device), 0)
        call(cuda.cuDevicePrimaryCtxRetain, ctypes.byref(context), device)

        def launch():
            call(cuda.cuCtxSetCurrent, context)
            count = ctypes.c_uint32(30_000)
            pointers = (ctypes.c_void_p * 2)(
                ctypes.addressof(memory), ctypes.addressof(count)
            )
            call(cuda.cuLaunchKernel, function, 1, 1, 1, 1, 1, 1, 0, None, pointers, None)

        call(cuda.cuCtxSetCurrent, context)
        call(cuda.cuModuleLoadData, ctypes.byref(module), PTX)
        call(cuda.cuModuleGetFunction, ctypes.byref(function), module, b"dasf_spin")
        call(cuda.cuMemAlloc_v2, ctypes.byref(memory), ctypes.c_size_t(4))
        kernels = number % 5 + 1
        thread = threading.Thread(target=launch)
        thread.start()
        thread.join()
        for _ in range(kernels - 1):
            launch()
        found = (ctypes.c_uint32 * 1)()
        for _ in range(kernels):
            call(cuda.cuMemcpyDtoH_v2, found, memory, ctypes.c_size_t(4))
        call(cuda.cuCtxSynchronize)
        call(cuda.cuMemFree_v2, memory)
        return kernels

    with Client() as client:
        futures = client.map(work, range(20), pure=False)
        assert sum(client.gather(futures)) == 60
'''


@pytest.mark.gpu
@pytest.mark.needs("gpu", "nsys")
def test_every_kernel_of_a_cuda_job_is_under_the_task_that_launched_it(
    submit: Submit, script: Callable[[str], str]
) -> None:
    # one thread: while a task runs it is the only one, so that its helper's kernels are its own
    one = ["--workers-per-node", "1", "--threads-per-worker", "1"]
    done = submit("--on", "local", "--nsys", *one, script(CUDA))
    assert done.code == 0, done.err
    with open_trace(done.directory) as trace:
        kernels = trace.kernels[trace.kernels["short_name"] == "dasf_spin"]
        assert len(kernels) == 60
        assert (kernels["task"] >= 0).all()
        tasks = trace.tasks
        assert (kernels["stop"] > kernels["start"]).all()
        assert (kernels["launched"] <= kernels["start"]).all()
        row = tasks.loc[kernels["task"].to_numpy()]
        bound = trace.report_clocks["bound"].max() + trace.clocks["bound"].max()
        # each task waits for its kernels before it ends
        assert (kernels["start"].to_numpy() >= row["start"].to_numpy() - bound).all()
        assert (kernels["stop"].to_numpy() <= row["stop"].to_numpy() + bound).all()
        counts = sorted(kernels.groupby("task").size())
        assert counts == sorted(n % 5 + 1 for n in range(20))
        helpers = kernels["reason"] == SENTENCES[Reason.ONLY_TASK]
        assert helpers.sum() == 20
        assert kernels["reason"][~helpers].isna().all()

        table, gpus = trace.task_gpu, trace.gpus
        of_tasks = table[table["task"] >= 0].set_index("task")
        assert (of_tasks["kernels"] == kernels.groupby("task").size()).all()
        assert (of_tasks["to_host_bytes"] == 4 * of_tasks["kernels"]).all()
        assert (of_tasks["busy"] <= of_tasks["kernel_time"] + of_tasks["to_host_time"]).all()
        assert (of_tasks["latency_mean"] > 0).all()
        assert (of_tasks["idle"] >= 0).all()
        shares = table.groupby("gpu")["share"].sum()
        used = gpus["busy"] > 0
        assert used.sum() == 1
        assert shares[gpus.index[used][0]] == gpus["busy"][used].iloc[0]
        assert gpus["uuid"][used].notna().all()
        assert (gpus["multiprocessors"][used] > 0).all()
