"""One process samples a node for all of a run's workers, for as long as there are any."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster

from dasf_hpc.profile.journal import (
    RECORDS,
    JournalContents,
    JournalError,
    Stream,
    read_journal,
)
from dasf_hpc.profile.link import MAX_STARTS, RecorderLink, socket_name, unprofiled
from dasf_hpc.profile.plugins import ResourceMonitor
from dasf_hpc.profile.sampler import LINGER_S, NodeProbe, _ProcFile

TIMEOUT_S = 30.0
#: What a busy machine may add to a wait.
SLACK_S = 10.0


def wait_until(condition: Callable[[], Any], what: str, timeout: float = TIMEOUT_S) -> Any:
    """Wait until a condition gives something true and give that."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.02)


def samplers(directory: Path) -> list[int]:
    """List the pids of a run's sampler processes that are alive."""
    found = []
    for entry in psutil.process_iter(["cmdline", "status"]):
        command = entry.info["cmdline"] or []
        if (
            "dasf_hpc.profile.sampler" in command
            and str(directory) in command
            and entry.info["status"] != psutil.STATUS_ZOMBIE
        ):
            found.append(entry.pid)
    return found


def journals(directory: Path) -> list[JournalContents]:
    found = []
    for path in sorted(directory.glob("sampler-*.journal")):
        with contextlib.suppress(JournalError):  # just made
            found.append(read_journal(path))
    return found


def samples(directory: Path, stream: Stream = Stream.NODE_SAMPLES) -> np.ndarray[Any, Any]:
    """Give the samples of all of a run's samplers, in order."""
    parts = [journal.records[stream] for journal in journals(directory)]
    if not parts:
        return np.empty(0, [("time", "<i8"), ("pid", "<u4")])
    return np.sort(np.concatenate(parts), order="time")


def sampled_for(directory: Path) -> set[int]:
    """Give the pids of the processes in the latest samples."""
    rows = samples(directory, Stream.PROCESS_SAMPLES)
    if not len(rows):
        return set()
    return set(rows["pid"][rows["time"] == rows["time"].max()].tolist())


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Give a run's folder and see to it that no sampler of the run is left."""
    folder = tmp_path / "journals"
    yield folder
    try:
        wait_until(lambda: not samplers(folder), "the sampler's end", LINGER_S + SLACK_S)
    finally:
        for pid in samplers(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def monitored(directory: Path, workers: int, interval: float = 20) -> Iterator[Client]:
    """Start worker processes that have their node sampled."""
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            memory_limit=0,
            local_directory=str(directory.parent),
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(
            ResourceMonitor(interval, autostart=False, directory=directory).for_workers(
                interval, directory=directory
            )
        )
        yield client


HOLDER = """
import sys
from pathlib import Path
from dasf_hpc.profile.plugins import ResourceMonitor
monitor = ResourceMonitor(20, directory=Path(sys.argv[1]))
print("sampled" if monitor._link.sample(20) else "no sample", flush=True)
sys.stdin.readline()
monitor.stop()
"""


@contextlib.contextmanager
def holder(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a plain process that has its node sampled until it is told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "sampled"
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate("end\n", timeout=SLACK_S)
        process.kill()
        process.wait()


# ------------------------------------------------------------------------------ with workers


def test_one_sampler_serves_all_workers_of_a_node_and_ends_with_them(directory: Path) -> None:
    with monitored(directory, 3) as client:
        pids = set(client.run(os.getpid).values())
        wait_until(lambda: sampled_for(directory) == pids, "every worker process sampled")
        # Those that lost the race for the socket are gone as soon as they find out.
        wait_until(lambda: len(samplers(directory)) == 1, "one sampler")
        [only] = samplers(directory)
        wait_until(lambda: len(samples(directory)) > 20, "samples")
        assert samplers(directory) == [only]
        assert psutil.Process(only).cpu_percent(0.2) < 60
    wait_until(lambda: not samplers(directory), "the sampler's end", LINGER_S + SLACK_S)
    [journal] = journals(directory)
    assert journal.damaged == 0
    assert journal.documents("journal")[0]["role"] == "sampler"
    assert journal.documents("journal")[0]["pid"] == only
    [end] = journal.documents("end")
    assert end["dropped"] == 0
    assert "late" in end
    [node] = journal.documents("node")
    assert node["cpus"] == psutil.cpu_count()
    assert node["memory"] == psutil.virtual_memory().total
    assert len(journal.records[Stream.ANCHORS]) >= 2


def test_samples_say_what_the_kernel_says(directory: Path) -> None:
    with monitored(directory, 1) as client:
        [pid] = client.run(os.getpid).values()
        wait_until(lambda: len(samples(directory, Stream.PROCESS_SAMPLES)) > 10, "samples")
        rows = samples(directory, Stream.PROCESS_SAMPLES)
        process = psutil.Process(pid)
        row = rows[-1]
        assert 0.5 < row["memory"] / process.memory_info().rss < 2
        assert abs(int(row["fds"]) - process.num_fds()) < 20
        assert abs(int(row["threads"]) - process.num_threads()) < 20
    node = samples(directory)
    total = psutil.virtual_memory().total
    assert (node["memory_used"] < total).all()
    assert (node["memory_available"] <= total).all()
    assert ((node["cpu"] >= 0) & (node["cpu"] <= 100)).all()
    for counter in ("network_received", "network_sent", "disk_read", "disk_written"):
        assert (np.diff(node[counter].astype(np.int64)) >= 0).all(), counter


def test_a_file_of_proc_is_read_to_its_end_however_long_it_is() -> None:
    command = [sys.executable, "-c", "import ctypes, ssl; print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        file = _ProcFile(f"/proc/{child.pid}/maps")
        assert len(file.read()) > len(file.beginning()) > 1000
        assert file.read() == Path(f"/proc/{child.pid}/maps").read_bytes()
        child.kill()
        child.wait()
        with pytest.raises(ProcessLookupError):
            file.read()


def test_the_node_is_read_as_psutil_reads_it() -> None:
    probe = NodeProbe({})
    before = psutil.net_io_counters(nowrap=False), psutil.disk_io_counters(nowrap=False)
    cpu, used, available, swap, received, sent, read, written = probe.read()
    after = psutil.net_io_counters(nowrap=False), psutil.disk_io_counters(nowrap=False)
    assert 0 <= cpu <= 100
    memory = psutil.virtual_memory()
    assert used + available == memory.total
    assert abs(available - memory.available) < 0.2 * memory.total
    assert abs(swap - psutil.swap_memory().used) < 0.2 * memory.total
    assert before[0].bytes_recv <= received <= after[0].bytes_recv
    assert before[0].bytes_sent <= sent <= after[0].bytes_sent
    if before[1] is None or after[1] is None:
        pytest.skip("no disk is counted here (/proc/diskstats)")
    assert before[1].read_bytes <= read <= after[1].read_bytes
    assert before[1].write_bytes <= written <= after[1].write_bytes


def test_a_processs_cpu_is_never_more_than_the_machine_has(directory: Path) -> None:
    with monitored(directory, 2) as client:
        pids = set(client.run(os.getpid).values())
        wait_until(lambda: sampled_for(directory) == pids, "every worker process sampled")
        client.run(_burn, 0.5)
    rows = samples(directory, Stream.PROCESS_SAMPLES)
    # Clock ticks of 10 ms in intervals of 20 ms: a reading may be half as much again.
    most = 100 * (psutil.cpu_count() or 1) * 1.6
    cpu = rows["cpu"][~np.isnan(rows["cpu"])]
    assert cpu.max() <= most
    assert cpu.max() > 50, "the busy worker is seen"


def _burn(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def _hold_gil(milliseconds: int) -> tuple[int, int]:
    begin = time.monotonic_ns()
    # PyDLL, unlike CDLL, keeps the GIL during the call.
    ctypes.PyDLL(None).usleep(milliseconds * 1000)
    return begin, time.monotonic_ns()


def test_samples_go_on_while_a_task_holds_the_gil(directory: Path) -> None:
    with monitored(directory, 1, interval=100) as client:
        wait_until(lambda: len(samples(directory)) > 3, "samples")
        begin, end = client.submit(_hold_gil, 3000).result()
        assert end - begin > 2.9e9
    times = samples(directory)["time"]
    inside = times[(times >= begin) & (times <= end)]
    gaps = np.diff(inside) / 1e6
    assert len(inside) >= 15  # 30 on a machine that has time for us
    assert 90 < np.median(gaps) < 150
    assert gaps.max() < 1000
    rows = samples(directory, Stream.PROCESS_SAMPLES)
    assert len(rows[(rows["time"] >= begin) & (rows["time"] <= end)]) >= 15


def test_a_sampler_that_is_killed_is_started_again(directory: Path) -> None:
    with monitored(directory, 2) as client:
        pids = set(client.run(os.getpid).values())
        wait_until(lambda: sampled_for(directory) == pids, "every worker process sampled")
        wait_until(lambda: len(samplers(directory)) == 1, "one sampler")
        [first] = samplers(directory)
        os.kill(first, signal.SIGKILL)

        def another() -> bool:
            found = journals(directory)
            return (
                len(found) == 2
                and first not in samplers(directory)
                and len(found[0].records[Stream.NODE_SAMPLES]) > 0
                and len(found[1].records[Stream.NODE_SAMPLES]) > 5
                and sampled_for(directory) == pids
            )

        wait_until(another, "another sampler")
        wait_until(lambda: len(samplers(directory)) == 1, "one sampler again")
    wait_until(lambda: not samplers(directory), "its end", LINGER_S + SLACK_S)
    assert sorted(bool(j.documents("end")) for j in journals(directory)) == [False, True]
    assert all(not j.damaged for j in journals(directory))


def test_a_worker_that_is_killed_and_comes_back_keeps_the_sampler(directory: Path) -> None:
    with monitored(directory, 1) as client:
        [pid] = client.run(os.getpid).values()
        wait_until(lambda: sampled_for(directory) == {pid}, "sampled")
        [sampler] = samplers(directory)
        os.kill(pid, signal.SIGKILL)

        def came_back() -> bool:
            now = set(client.run(os.getpid, on_error="ignore").values())
            return bool(now) and pid not in now and sampled_for(directory) == now

        wait_until(came_back, "the worker's return")
        assert samplers(directory) == [sampler]
        assert len(journals(directory)) == 1
    wait_until(lambda: not samplers(directory), "its end", LINGER_S + SLACK_S)


# ------------------------------------------------------------------------------ by itself


def test_the_sampler_ends_when_its_processes_are_killed(directory: Path) -> None:
    with holder(directory) as first, holder(directory) as second:
        assert len(samplers(directory)) == 1
        first.kill()
        wait_until(lambda: sampled_for(directory) == {second.pid}, "one process left")
        second.kill()
        wait_until(lambda: not samplers(directory), "its end", LINGER_S + SLACK_S)
    [journal] = journals(directory)
    assert journal.documents("end")


def test_ctrl_c_in_the_terminal_does_not_end_the_sampler(directory: Path) -> None:
    with holder(directory) as process:
        [pid] = samplers(directory)
        assert os.getpgid(pid) != os.getpgid(process.pid)
        assert os.getsid(pid) != os.getsid(process.pid)


def test_the_sampler_ends_orderly_when_it_is_told_to(directory: Path) -> None:
    with holder(directory) as process:
        [pid] = samplers(directory)
        process.send_signal(signal.SIGSTOP)  # so that it starts no other
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: pid not in samplers(directory), "its end")
        process.kill()
    [journal] = journals(directory)
    assert journal.documents("end")


def test_two_runs_on_a_node_have_a_sampler_each(directory: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with holder(directory), holder(other):
        assert len(samplers(directory)) == 1
        assert len(samplers(other)) == 1
        assert not set(samplers(directory)) & set(samplers(other))
    wait_until(lambda: not samplers(other), "its end", LINGER_S + SLACK_S)


def test_a_plain_script_samples_from_start_to_stop(directory: Path) -> None:
    monitor = ResourceMonitor(20, autostart=False, directory=directory)
    assert monitor.update() == {}
    assert not samplers(directory)
    monitor.start()
    monitor.start()
    sample = wait_until(monitor.update, "a sample")
    assert set(sample) == {"time", *(name for name, _ in RECORDS[Stream.NODE_SAMPLES][1:])}
    assert all(isinstance(value, int | float) for value in sample.values())
    assert abs(sample["time"] - time.monotonic_ns()) < 5e9
    assert sample["memory_used"] > 0
    wait_until(lambda: sampled_for(directory) == {os.getpid()}, "this process sampled")
    assert len(samplers(directory)) == 1
    monitor.stop()
    monitor.stop()
    wait_until(lambda: not samplers(directory), "its end", SLACK_S)
    assert monitor.update() == {}
    monitor.start()
    wait_until(monitor.update, "a sample of the second time")
    assert len(journals(directory)) == 2
    monitor.stop()
    wait_until(lambda: not samplers(directory), "its end", SLACK_S)


def test_a_monitor_that_is_forgotten_stops(directory: Path) -> None:
    monitor = ResourceMonitor(20, directory=directory)
    wait_until(monitor.update, "a sample")
    del monitor
    gc.collect()
    wait_until(lambda: not samplers(directory), "its end", SLACK_S)


def test_a_short_reading_does_not_spoil_the_cpu_of_the_next(directory: Path) -> None:
    monitor = ResourceMonitor(200, directory=directory)
    wait_until(monitor.update, "a sample")
    busy = threading.Thread(target=_burn, args=(1.5,))
    busy.start()
    while busy.is_alive():
        assert 0 <= monitor.update()["cpu"] <= 100
    monitor.stop()
    wait_until(lambda: not samplers(directory), "its end", SLACK_S)
    rows = samples(directory, Stream.PROCESS_SAMPLES)
    cpu = rows["cpu"][~np.isnan(rows["cpu"])]
    assert cpu.max() <= 100 * (psutil.cpu_count() or 1) * 1.6


def test_a_copy_carries_the_settings_and_the_original_stops(directory: Path) -> None:
    monitor = ResourceMonitor(50, name="mine", directory=directory, monitor_gpu=False)
    wait_until(monitor.update, "a sample")
    text = pickle.dumps(monitor)
    wait_until(lambda: not samplers(directory), "the original's end", SLACK_S)
    twin = pickle.loads(text)
    assert (twin.time, twin.name, twin.directory) == (50, "mine", directory)
    assert twin.autostart is True
    assert twin.monitor_kwargs == {"monitor_gpu": False}
    assert twin.update() == {}, "a copy samples only once a worker sets it up"
    assert not samplers(directory)
    assert pickle.loads(pickle.dumps(twin)).time == 50
    assert copy.copy(twin).name == "mine"


def test_options_leave_counters_out(directory: Path) -> None:
    monitor = ResourceMonitor(
        20, directory=directory, monitor_net_io=False, monitor_disk_io=False, unknown_option=1
    )
    sample = wait_until(monitor.update, "a sample")
    monitor.stop()
    wait_until(lambda: not samplers(directory), "its end", SLACK_S)
    for counter in ("network_received", "network_sent", "disk_read", "disk_written"):
        assert sample[counter] == 0


@pytest.mark.parametrize("time_ms", [0, -1, float("nan")])
def test_an_interval_must_be_above_zero(time_ms: float, directory: Path) -> None:
    with pytest.raises(ValueError, match="milliseconds"):
        ResourceMonitor(time_ms, directory=directory)


def test_where_no_recorder_can_run_few_are_started(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    link = RecorderLink(directory, interval=0.02)
    link.start()
    link._thread.join(SLACK_S)
    assert not link._thread.is_alive(), "starting a recorder is tried without end"
    assert len(link._children) == MAX_STARTS
    assert link.sample(0.1) == {}


def test_where_nothing_can_be_written_there_are_no_samples(directory: Path) -> None:
    directory.write_text("in the way of the folder")
    link = RecorderLink(directory, interval=0.02)
    link.start()
    assert link.sample(3) == {}
    assert len(link._children) == 1
    link.stop()
    link._thread.join(SLACK_S)
    assert not link._thread.is_alive()


# ------------------------------------------------------------------------------ strangers


NOBODY = 65534


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user; run it as root")
def test_another_user_is_refused(directory: Path) -> None:
    with holder(directory) as process:
        [pid] = samplers(directory)
        name = socket_name(directory)
        child = os.fork()
        if child == 0:  # the other user: no code that may be unreadable to it is imported any more
            answer = b"?"
            with contextlib.suppress(BaseException):
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                connection.settimeout(TIMEOUT_S)
                connection.connect(name)
                try:
                    connection.send(b"now\nbye\n")
                    answer = connection.recv(4096)
                except OSError:
                    answer = b""
            os._exit(len(answer))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, "it was given an answer"
        count = len(samples(directory))
        wait_until(lambda: len(samples(directory)) > count, "samples after that")
        assert samplers(directory) == [pid]
        assert sampled_for(directory) == {process.pid}


def test_nonsense_on_the_socket_does_no_harm(directory: Path) -> None:
    with holder(directory) as process:
        [pid] = samplers(directory)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(socket_name(directory))
            connection.send(b"\xff" * 100_000)
        wait_until(lambda: sampled_for(directory) == {process.pid}, "sampling goes on")
        assert samplers(directory) == [pid]


def test_a_client_that_never_reads_does_not_stop_the_samples(directory: Path) -> None:
    with holder(directory), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(socket_name(directory))
        connection.setblocking(False)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                connection.send(b"now\n" * 10)
            time.sleep(0.005)
        count = len(samples(directory))
        wait_until(lambda: len(samples(directory)) > count + 3, "samples after that")


# ------------------------------------------------------------------------------ under nsys


def test_the_environment_of_the_sampler_is_cleaned() -> None:
    given = {
        "PATH": "/bin",
        "LD_PRELOAD": "/opt/nsight-systems/libToolsInjectionProxy64.so:/usr/lib/libfaketime.so",
        "CUDA_INJECTION64_PATH": "/opt/x",
        "NVTX_INJECTION64_PATH": "/opt/x",
        "NSYS_PROFILING_SESSION_ID": "1",
        "QUADD_INJECTION_PROXY": "x",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    assert unprofiled(given) == {
        "PATH": "/bin",
        "LD_PRELOAD": "/usr/lib/libfaketime.so",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    alone = {"LD_PRELOAD": "/opt/nsight-systems/libToolsInjectionProxy64.so"}
    assert unprofiled(alone) == {}


LOOK = """
import json, os, sys
from pathlib import Path
from dasf_hpc.profile.plugins import ResourceMonitor
import psutil
monitor = ResourceMonitor(20, directory=Path(sys.argv[1]))
assert monitor._link.sample(20)
[child] = [p for p in psutil.Process().children(recursive=True)
           if "dasf_hpc.profile.sampler" in p.cmdline()]
def injected(pid):
    maps = Path(f"/proc/{pid}/maps").read_text().lower()
    return "nsight" in maps or "toolsinjection" in maps
Path(sys.argv[2]).write_text(json.dumps({
    "own": injected(os.getpid()), "sampler": injected(child.pid),
    "environment": sorted(child.environ())}))
monitor.stop()
"""


@pytest.mark.needs("nsys")
def test_the_sampler_is_not_profiled_and_does_not_hold_up_nsys(
    directory: Path, tmp_path: Path, profile: Callable[..., Any]
) -> None:
    said = tmp_path / "said.json"
    flags = ["-t", "nvtx,osrt", "--sample=none", "--cpuctxsw=none"]
    command = [sys.executable, "-c", LOOK, str(directory), str(said)]
    began = time.monotonic()
    done = profile(tmp_path / "report", flags, command, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - began < 60
    found = json.loads(said.read_text())
    assert found["own"], "the process itself is profiled"
    assert not found["sampler"]
    assert not [name for name in found["environment"] if "INJECTION" in name or "NSYS" in name]
