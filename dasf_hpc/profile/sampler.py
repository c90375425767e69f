"""Recording: the node sampler, one process a node, and the link that workers hold to it.

The sampler listens on a Unix socket in Linux's abstract namespace, whose name says run and host: it
belongs to no file system, and the kernel frees it with its process. Each worker process keeps one
connection open; that is how the sampler knows whom to sample (the kernel tells the peer's pid) and
when it is no longer needed, and how a worker learns that the sampler died, and starts another.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import math
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from dasf_hpc.profile.clock import read_anchor
from dasf_hpc.profile.devices import NvmlState, nvml_devices, nvml_state
from dasf_hpc.profile.journal import RECORDS, Journal, Stream
from dasf_hpc.profile.recording import journal_path, process_document

logger = logging.getLogger(__name__)

#: A sampler that nobody holds for this long ends: longer than a nanny takes to restart a worker.
LINGER_S = 5.0
ANCHOR_INTERVAL_S = 5.0
START_TIMEOUT_S = 20.0
#: Attempts of one process to get a sampler before it gives up (each starts a process).
MAX_STARTS = 5

_PEER = struct.Struct("3i")

#: Variables through which nsys loads itself into child processes: the sampler is not profiled.
_INJECTION = ("INJECTION", "NSYS", "QUADD")


def socket_name(directory: Path) -> str:
    """Name the sampler's socket: the same for all workers of a run on one host, and no other's."""
    what = f"{directory.absolute()}\n{socket.gethostname()}\n{os.getuid()}"
    return "\0dasf-hpc-sampler-" + hashlib.sha256(what.encode()).hexdigest()[:32]


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Give pid and uid of the other end, as the kernel knows them."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, uid, _ = _PEER.unpack(raw)
    return pid, uid


# ------------------------------------------------------------------------------ in the worker


class SamplerLink:
    """A process's hold on its node's sampler: starts it when there is none, again when it dies.

    Parameters
    ----------
    directory
        The run's folder of journals.
    interval
        Seconds between samples.
    options
        ResourceMonitor's ``monitor_kwargs``.
    """

    def __init__(self, directory: Path, interval: float, options: dict[str, Any]) -> None:
        self._directory = directory
        self._interval = interval
        self._options = options
        self._stopping = threading.Event()
        self._connection: socket.socket | None = None
        self._connected = threading.Event()
        self._children: list[subprocess.Popen[bytes]] = []
        self._samples: list[dict[str, Any]] = []
        self._sampled = threading.Condition()
        self._thread = threading.Thread(target=self._hold, name="dasf-hpc-sampler", daemon=True)

    def start(self) -> None:
        """Start to hold the sampler, in a thread of its own; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Let the sampler go."""
        self._stopping.set()
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.send(b"bye\n")
                connection.shutdown(socket.SHUT_RDWR)

    def sample(self, timeout: float = 2.0) -> dict[str, Any]:
        """Have one sample taken now and give it; empty where no sampler answers in time."""
        deadline = time.monotonic() + timeout
        if not self._connected.wait(timeout) or self._connection is None:
            return {}
        with self._sampled:
            self._samples.clear()
            try:
                self._connection.send(b"now\n")
            except OSError:
                return {}
            while not self._samples:
                left = deadline - time.monotonic()
                if left <= 0 or not self._sampled.wait(left):
                    return {}
            return self._samples[-1]

    def _hold(self) -> None:
        for _ in range(MAX_STARTS):
            connection = self._connect()
            if connection is None:
                break
            self._connection = connection
            self._connected.set()
            if self._stopping.is_set():
                self.stop()
            self._listen(connection)
            self._connected.clear()
            connection.close()
            if self._stopping.is_set():
                break
        for child in self._children:
            # A sampler that serves other workers goes on; this process only must not hang on it.
            child.poll()

    def _listen(self, connection: socket.socket) -> None:
        buffer = b""
        while True:
            try:
                data = connection.recv(65536)
            except OSError:
                return
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            with self._sampled:
                self._samples.extend(json.loads(line) for line in lines)
                self._sampled.notify_all()

    def _connect(self) -> socket.socket | None:
        name = socket_name(self._directory)
        deadline = time.monotonic() + START_TIMEOUT_S
        child: subprocess.Popen[bytes] | None = None
        while time.monotonic() < deadline and not self._stopping.is_set():
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(name)
                if _peer(connection)[1] == os.getuid():
                    return connection
            except OSError:
                pass
            connection.close()
            if child is None or child.poll() is not None:
                child = self._spawn()
                self._children.append(child)
            self._stopping.wait(0.05)
        return None

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            "dasf_hpc.profile.sampler",
            "--directory",
            str(self._directory),
            "--interval",
            str(self._interval),
            "--options",
            json.dumps(self._options),
        ]
        # A session of its own: Ctrl-C in the terminal is for the run, which then ends the sampler.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=unprofiled(dict(os.environ)),
            start_new_session=True,
        )


def unprofiled(environment: dict[str, str]) -> dict[str, str]:
    """Give an environment without what nsys put there to load itself into children."""
    clean = {}
    for name, value in environment.items():
        if any(part in name for part in _INJECTION):
            continue
        if name == "LD_PRELOAD":
            value = ":".join(
                part
                for part in value.replace(" ", ":").split(":")
                if part and "nsight" not in part.lower() and "ToolsInjection" not in part
            )
            if not value:
                continue
        clean[name] = value
    return clean


# ------------------------------------------------------------------------------ in the sampler


class NodeProbe:
    """Reads the node's counters, in the order of NODE_SAMPLES' fields."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._network = options.get("monitor_net_io", True)
        self._disk = options.get("monitor_disk_io", True)
        psutil.cpu_percent()

    def read(self) -> tuple[Any, ...]:
        """Read CPU (percent of all cores since the last reading) and bytes."""
        memory = psutil.virtual_memory()
        network = psutil.net_io_counters() if self._network else None
        disk = psutil.disk_io_counters() if self._disk else None
        return (
            psutil.cpu_percent(),
            memory.used,
            memory.available,
            psutil.swap_memory().used,
            network.bytes_recv if network else 0,
            network.bytes_sent if network else 0,
            disk.read_bytes if disk else 0,
            disk.write_bytes if disk else 0,
        )


class GpuProbe:
    """Reads every GPU of the node through NVML, in the order of GPU_SAMPLES' fields.

    Attributes
    ----------
    devices, state
        What NVML showed at the start.
    """

    def __init__(self, wanted: bool) -> None:
        self._handles: list[tuple[int, Any]] = []
        self.devices, self.state = nvml_devices() if wanted else ([], NvmlState.NO_DEVICE)
        if not self.devices:
            return
        import pynvml

        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._handles = [
                (d.index, pynvml.nvmlDeviceGetHandleByIndex(d.index)) for d in self.devices
            ]
        except pynvml.NVMLError as error:
            self.state = nvml_state(error)

    def read(self) -> list[tuple[Any, ...]]:
        """Read one row a GPU; what a GPU does not give is NaN or -1."""
        return [self._read_one(index, handle) for index, handle in self._handles]

    def _read_one(self, index: int, handle: Any) -> tuple[Any, ...]:
        nvml = self._nvml
        utilization = self._try(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        memory = self._try(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        nan = math.nan

        def number(call: Callable[[], Any], scale: float = 1.0) -> float:
            value = self._try(call)
            return nan if value is None else value * scale

        return (
            index,
            nan if utilization is None else utilization.gpu,
            nan if utilization is None else utilization.memory,
            -1 if memory is None else memory.used,
            number(lambda: nvml.nvmlDeviceGetPowerUsage(handle), 1e-3),
            number(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            number(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            number(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            number(lambda: nvml.nvmlDeviceGetPcieThroughput(handle, nvml.NVML_PCIE_UTIL_TX_BYTES)),
            number(lambda: nvml.nvmlDeviceGetPcieThroughput(handle, nvml.NVML_PCIE_UTIL_RX_BYTES)),
            *self._nvlink(handle),
        )

    def _nvlink(self, handle: Any) -> tuple[int, int]:
        """Read the cumulative NVLink payload of all links, in KiB, sent and received."""
        nvml = self._nvml
        ids = [
            getattr(nvml, "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX", None),
            getattr(nvml, "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX", None),
        ]
        if None in ids:
            return -1, -1
        # Scope UINT_MAX asks for the sum over all links (NVML API, nvmlFieldValue_t.scopeId).
        values = self._try(
            lambda: nvml.nvmlDeviceGetFieldValues(handle, [(i, 0xFFFFFFFF) for i in ids])
        )
        if values is None or any(v.nvmlReturn != nvml.NVML_SUCCESS for v in values):
            return -1, -1
        return int(values[0].value.ullVal), int(values[1].value.ullVal)

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._nvml.NVMLError:
            return None


class ProcessProbe:
    """Reads the worker processes, in the order of PROCESS_SAMPLES' fields."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}

    def read(self, pids: set[int]) -> list[tuple[Any, ...]]:
        """Read one row a process that is alive."""
        for gone in self._processes.keys() - pids:
            del self._processes[gone]
        rows = []
        for pid in pids:
            try:
                process = self._processes.get(pid)
                if process is None:
                    process = self._processes[pid] = psutil.Process(pid)
                    process.cpu_percent()
                with process.oneshot():
                    rows.append(
                        (
                            pid,
                            process.cpu_percent(),
                            process.num_fds(),
                            process.num_threads(),
                            process.memory_info().rss,
                        )
                    )
            except psutil.Error:
                continue
        return rows


class Sampler:
    """Samples a node into a journal for as long as a process holds a connection."""

    def __init__(self, directory: Path, interval: float, options: dict[str, Any]) -> None:
        self._interval = interval
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(socket_name(directory))  # fails where a sampler is there already
        self._listener.listen(256)
        self._listener.setblocking(False)
        self._journal = Journal(journal_path(directory, "sampler"), process_document("sampler"))
        self._node = NodeProbe(options)
        self._processes = ProcessProbe()
        self._gpus = GpuProbe(options.get("monitor_gpu", True))
        self._journal.meta(
            {
                "kind": "node",
                "hostname": socket.gethostname(),
                "cpus": psutil.cpu_count(),
                "memory": psutil.virtual_memory().total,
                "interval": interval,
            }
        )
        self._journal.meta(
            {
                "kind": "gpus",
                "gpus": [asdict(d) for d in self._gpus.devices],
                "status": self._gpus.state.value,
            }
        )
        self._write_node = self._journal.timed_recorder(Stream.NODE_SAMPLES)
        self._write_gpu = self._journal.timed_recorder(Stream.GPU_SAMPLES)
        self._write_process = self._journal.timed_recorder(Stream.PROCESS_SAMPLES)
        self._write_anchor = self._journal.recorder(Stream.ANCHORS)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._pids: dict[socket.socket, int] = {}
        self._ending = False

    def sample(self) -> dict[str, Any]:
        """Take one sample of everything and record it."""
        now = time.monotonic_ns()
        values = self._node.read()
        self._write_node(now, *values)
        for row in self._gpus.read():
            self._write_gpu(now, *row)
        for row in self._processes.read(set(self._pids.values())):
            self._write_process(now, *row)
        names = [name for name, _ in RECORDS[Stream.NODE_SAMPLES][1:]]
        return {"time": now, **dict(zip(names, values, strict=True))}

    def run(self) -> None:
        """Sample on a fixed grid until nobody holds a connection, then end the journal."""
        next_sample = time.monotonic()
        next_anchor = 0.0
        held_until = time.monotonic() + LINGER_S + START_TIMEOUT_S
        late = 0
        while not self._ending:
            now = time.monotonic()
            if self._pids:
                held_until = now + LINGER_S
            elif now > held_until:
                break
            if now >= next_anchor:
                self._write_anchor(*read_anchor())
                next_anchor = now + ANCHOR_INTERVAL_S
            if now >= next_sample:
                self.sample()
                missed = int((now - next_sample) / self._interval)
                late += missed
                next_sample += (missed + 1) * self._interval
            self._serve(max(0.0, next_sample - time.monotonic()))
        self.sample()
        self._write_anchor(*read_anchor())
        self._journal.close({"late": late})

    def _serve(self, timeout: float) -> None:
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
            else:
                self._hear(key.fileobj)  # type: ignore[arg-type]

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        pid, uid = _peer(connection)
        if uid != os.getuid():
            connection.close()
            return
        connection.setblocking(False)
        self._pids[connection] = pid
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if b"now" in data:
            with contextlib.suppress(OSError):
                connection.send(json.dumps(self.sample()).encode() + b"\n")
        if not data or b"bye" in data:
            self._selector.unregister(connection)
            del self._pids[connection]
            connection.close()
            # Who says goodbye ends on purpose; whose connection breaks may be restarted.
            if b"bye" in data and not self._pids:
                self._ending = True

    def end(self, *_: Any) -> None:
        """End after the current sample (a signal's handler)."""
        self._ending = True


def main(arguments: list[str] | None = None) -> int:
    """Run the sampler; 0 also where another one serves this run on this host already."""
    parser = argparse.ArgumentParser(prog="python -m dasf_hpc.profile.sampler")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--interval", type=float, required=True, help="seconds between samples")
    parser.add_argument("--options", type=json.loads, default={})
    given = parser.parse_args(arguments)
    try:
        sampler = Sampler(given.directory, given.interval, given.options)
    except OSError as error:
        if "in use" in str(error):
            return 0
        print(f"dasf-hpc sampler: {error}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, sampler.end)
    sampler.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
