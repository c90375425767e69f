"""Recording: the node's recorder process, one a node and run.

It files the journals that processes record into memory (`dasf_hpc.profile.drain`), and samples the
node into a journal of its own where a process asks for it. It lives as long as a process holds a
connection (`dasf_hpc.profile.link`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from dasf_hpc.profile.clock import read_anchor
from dasf_hpc.profile.devices import NvmlState, nvml_devices, nvml_state
from dasf_hpc.profile.drain import RETRY_S, Drain
from dasf_hpc.profile.identity import journal_path, process_document
from dasf_hpc.profile.journal import RECORD_SIZES, RECORDS, Journal, Stream
from dasf_hpc.profile.link import MESSAGE, START_TIMEOUT_S, peer
from dasf_hpc.profile.probe import Prober

logger = logging.getLogger(__name__)

#: A recorder that nobody holds for this long ends: longer than a nanny takes to restart a worker.
LINGER_S = 5.0
ANCHOR_INTERVAL_S = 5.0
#: How long it tries to file what a killed process left.
PATIENCE_S = 10.0

#: Between two readings of all GPUs' PCIe traffic, which take 40 ms a GPU themselves.
PCIE_INTERVAL_S = 0.05
_NO_PCIE = (math.nan, math.nan)

_MEMORY_LINES = (b"MemTotal", b"MemAvailable", b"SwapTotal", b"SwapFree")
#: Bytes of a sector in /proc/diskstats, whatever the disk (the kernel's documentation of iostats).
_SECTOR = 512
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


class _ProcFile:
    """A file of /proc that stays open from one reading to the next.

    Raises
    ------
    OSError
        If there is no such file.
    """

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> bytes:
        """Give what it holds now, or raise OSError where that is no more."""
        data = self.beginning()
        # The kernel gives no more than a page of it at once, even where there is room for it.
        while more := os.pread(self._descriptor, _PAGE, len(data)):
            data += more
        return data

    def beginning(self) -> bytes:
        """Give the first lines of what it holds now, or raise OSError where that is no more."""
        return os.pread(self._descriptor, _PAGE, 0)

    def __del__(self) -> None:
        if "_descriptor" in self.__dict__:
            os.close(self._descriptor)


def _proc_file(name: str, wanted: bool) -> _ProcFile | None:
    if wanted:
        with contextlib.suppress(OSError):
            return _ProcFile(f"/proc/{name}")
    return None


class NodeProbe:
    """Reads the node's counters, in the order of NODE_SAMPLES' fields.

    It reads /proc itself: psutil's calls for the same take 300 us in place of 35 (measured).
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._stat = _proc_file("stat", True)
        self._memory = _proc_file("meminfo", True)
        self._network = _proc_file("net/dev", options.get("monitor_net_io", True))
        self._disks = _proc_file("diskstats", options.get("monitor_disk_io", True))
        self._is_disk: dict[bytes, bool] = {}
        self._times = (0, 0)
        self._cpu()

    def read(self) -> tuple[Any, ...]:
        """Read CPU (percent of all cores since the last reading) and bytes."""
        return (self._cpu(), *self._memory_bytes(), *self._network_bytes(), *self._disk_bytes())

    def _cpu(self) -> float:
        if self._stat is None:
            return math.nan
        # user nice system idle iowait irq softirq steal guest guest_nice; both guests are counted
        # in user and nice, too (proc(5)).
        ticks = [int(n) for n in self._stat.beginning().split(b"\n", 1)[0].split()[1:9]]
        total, idle = sum(ticks), ticks[3] + ticks[4]
        passed, idled = total - self._times[0], max(0, idle - self._times[1])
        self._times = (total, idle)
        return 100 * max(0, passed - idled) / passed if passed > 0 else 0.0

    def _memory_bytes(self) -> tuple[int, int, int]:
        if self._memory is None:
            return 0, 0, 0
        found = {}
        for line in self._memory.read().splitlines():
            name, _, rest = line.partition(b":")
            if name in _MEMORY_LINES:
                found[name] = int(rest.split()[0]) * 1024
                if len(found) == len(_MEMORY_LINES):
                    break
        total, available, swap, swap_free = (found.get(name, 0) for name in _MEMORY_LINES)
        return total - available, available, swap - swap_free

    def _network_bytes(self) -> tuple[int, int]:
        received = sent = 0
        if self._network is not None:
            for line in self._network.read().splitlines()[2:]:
                numbers = line.rpartition(b":")[2].split()
                received += int(numbers[0])
                sent += int(numbers[8])
        return received, sent

    def _disk_bytes(self) -> tuple[int, int]:
        read = written = 0
        if self._disks is not None:
            for line in self._disks.read().splitlines():
                words = line.split()
                # A partition's bytes are its disk's, too.
                whole = self._is_disk.get(words[2])
                if whole is None:
                    name = words[2].replace(b"/", b"!")
                    whole = self._is_disk[words[2]] = os.access(b"/sys/block/" + name, os.F_OK)
                if whole:
                    read += int(words[5])
                    written += int(words[9])
        return read * _SECTOR, written * _SECTOR


class GpuProbe:
    """Reads every GPU of the node through NVML, in the order of GPU_SAMPLES' fields.

    Attributes
    ----------
    devices, state
        What NVML showed at the start.
    """

    def __init__(self, wanted: bool) -> None:
        self._handles: list[tuple[int, Any]] = []
        self._pcie: dict[int, tuple[float, float]] = {}
        self._closed = threading.Event()
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
            return
        threading.Thread(target=self._keep_pcie, name="PCIe", daemon=True).start()

    def close(self) -> None:
        """Read no more."""
        self._closed.set()

    def _keep_pcie(self) -> None:
        """Read the PCIe traffic over and over: NVML counts it for 20 ms at every question.

        Two questions a GPU would hold up the samples of a node of two GPUs, and the journals.
        """
        nvml = self._nvml
        counters = (nvml.NVML_PCIE_UTIL_TX_BYTES, nvml.NVML_PCIE_UTIL_RX_BYTES)
        handles = dict(self._handles)
        while handles and not self._closed.wait(PCIE_INTERVAL_S):
            for index, handle in list(handles.items()):
                try:
                    sent, received = (nvml.nvmlDeviceGetPcieThroughput(handle, c) for c in counters)
                    self._pcie[index] = (sent, received)
                except nvml.NVMLError as error:
                    self._pcie[index] = _NO_PCIE
                    if error.value == nvml.NVML_ERROR_NOT_SUPPORTED:
                        del handles[index]

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
            *self._pcie.get(index, _NO_PCIE),
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
        self._files: dict[int, _ProcFile] = {}
        self._times: dict[int, tuple[int, int]] = {}

    def read(self, pids: set[int]) -> list[tuple[Any, ...]]:
        """Read one row a process that is alive; the first one's CPU is not known (NaN)."""
        for gone in self._files.keys() - pids:
            del self._files[gone]
            self._times.pop(gone, None)
        rows = []
        for pid in pids:
            try:
                file = self._files.get(pid)
                if file is None:
                    file = self._files[pid] = _ProcFile(f"/proc/{pid}/stat")
                now = time.monotonic_ns()
                # From the state on: a process's name may hold anything (proc(5)).
                words = file.beginning().rpartition(b")")[2].split()
                if words[0] in (b"Z", b"X"):
                    continue
                ticks = int(words[11]) + int(words[12])
                before = self._times.get(pid)
                self._times[pid] = (now, ticks)
                rows.append(
                    (
                        pid,
                        math.nan
                        if before is None or now <= before[0]
                        else 100 * (ticks - before[1]) / _TICKS * 1e9 / (now - before[0]),
                        len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208
                        int(words[17]),
                        int(words[21]) * _PAGE,
                    )
                )
            except (OSError, IndexError):
                continue
        return rows


class Sampler:
    """Samples the node, and probes the head's clock, into a journal.

    Raises
    ------
    OSError
        If the journal cannot be made.
    """

    def __init__(self, directory: Path, interval: float, options: dict[str, Any]) -> None:
        self._interval = interval
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
        self._write_node = self._journal.recorder(Stream.NODE_SAMPLES)
        self._write_gpu = self._journal.recorder(Stream.GPU_SAMPLES)
        self._write_process = self._journal.recorder(Stream.PROCESS_SAMPLES)
        self._write_anchor = self._journal.recorder(Stream.ANCHORS)
        self._prober = Prober(directory, self._journal.recorder(Stream.PROBES))
        self._prober.start()
        self._next_sample = time.monotonic()
        self._next_anchor = 0.0
        self._late = 0

    def sample(self, pids: set[int] | None = None) -> tuple[Any, ...]:
        """Take one sample of the node, and of processes, and record it.

        Returns
        -------
        tuple
            The time and the node's sample, in the order of NODE_SAMPLES' fields.
        """
        now = time.monotonic_ns()
        values = self._node.read()
        self._write_node(now, *values)
        for row in self._gpus.read():
            self._write_gpu(now, *row)
        # Not between two samples of the grid: a few ms of a process's CPU are no percentage.
        for row in [] if pids is None else self._processes.read(pids):
            self._write_process(now, *row)
        return now, *values

    def keep_time(self, pids: set[int]) -> float:
        """Sample if it is time to, on a fixed grid; gives the seconds until the next one."""
        now = time.monotonic()
        if now >= self._next_anchor:
            self._write_anchor(*read_anchor())
            self._next_anchor = now + ANCHOR_INTERVAL_S
        if now >= self._next_sample:
            self.sample(pids)
            missed = int((now - self._next_sample) / self._interval)
            self._late += missed
            self._next_sample += (missed + 1) * self._interval
        return max(0.0, self._next_sample - time.monotonic())

    def close(self) -> None:
        """Sample and probe once more and end the journal."""
        self._prober.stop()
        self.sample()
        self._gpus.close()
        self._write_anchor(*read_anchor())
        self._journal.close({"late": self._late})


@dataclass
class _Holder:
    """A process that holds a connection."""

    pid: int
    drain: Drain | None = None


class Recorder:
    """Files journals and samples for as long as a process holds a connection.

    Parameters
    ----------
    directory
        The run's folder of journals.
    listener
        The socket on which processes connect.
    """

    def __init__(self, directory: Path, listener: socket.socket) -> None:
        self._directory = directory
        self._listener = listener
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._sampler: Sampler | None = None
        self._holders: dict[socket.socket, _Holder] = {}
        self._leaving: list[Drain] = []
        self._ending = False

    @property
    def _pids(self) -> set[int]:
        return {holder.pid for holder in self._holders.values()}

    def run(self) -> None:
        """Serve until nobody holds a connection any more, then end; bounded, whatever blocks."""
        held_until = time.monotonic() + LINGER_S + START_TIMEOUT_S
        while True:
            now = time.monotonic()
            if self._holders:
                held_until = now + LINGER_S
            # Who asks it to end, as batch systems ask all of a job, asks its workers, too: they
            # have something to record until they did.
            if now > held_until or (
                self._ending and not any(holder.drain for holder in self._holders.values())
            ):
                break
            wait = 1.0 if self._sampler is None else self._sampler.keep_time(self._pids)
            for key, _ in self._selector.select(wait):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._hear(key.fileobj)  # type: ignore[arg-type]
        self._listener.close()
        if self._sampler is not None:
            self._sampler.close()
        deadline = time.monotonic() + PATIENCE_S + RETRY_S
        for drain in self._leaving:
            drain.join(max(0.0, deadline - time.monotonic()))

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        pid, uid = peer(connection)
        if uid != os.getuid():
            connection.close()
            return
        connection.setblocking(False)
        self._holders[connection] = _Holder(pid)
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            data, descriptors, _, _ = socket.recv_fds(connection, MESSAGE, 2)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        word, _, rest = data.partition(b" ")
        holder = self._holders[connection]
        if word == b"journal" and len(descriptors) == 2 and holder.drain is None:
            memory, file = descriptors
            with contextlib.suppress(OSError, ValueError):
                holder.drain = Drain(memory, file, RECORD_SIZES)
                holder.drain.start()
                descriptors = []
                _answer(connection, {"taken": True})
        elif word == b"file" and holder.drain is not None:
            drain, holder.drain = holder.drain, None
            self._leaving.append(drain)
            drain.finish(RETRY_S, lambda: _answer(connection, {"filed": True}))
        elif word == b"drain":
            self._drain_all(connection)
        elif word == b"sample":
            self._start_sampling(rest)
        elif word == b"now":
            names = ["time", *(name for name, _ in RECORDS[Stream.NODE_SAMPLES][1:])]
            values = self._sampler.sample() if self._sampler else ()
            _answer(connection, dict(zip(names, values, strict=False)))
        elif word in (b"", b"bye"):
            self._selector.unregister(connection)
            del self._holders[connection]
            connection.close()
            if holder.drain is not None:
                self._leaving.append(holder.drain)
                holder.drain.finish(PATIENCE_S)
            # Who says goodbye ends on purpose; whose connection breaks may be restarted.
            if word and not self._holders:
                self._ending = True
        for descriptor in descriptors:
            os.close(descriptor)

    def _start_sampling(self, wish: bytes) -> None:
        if self._sampler is not None:
            return
        try:
            given = json.loads(wish)
            self._sampler = Sampler(self._directory, given["interval"], given["options"])
        except (OSError, ValueError, KeyError) as error:
            print(f"dasf-hpc recorder: nothing is sampled: {error}", file=sys.stderr)

    def _drain_all(self, connection: socket.socket) -> None:
        drains = [h.drain for h in self._holders.values() if h.drain is not None]
        left = len(drains)

        def drained() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                _answer(connection, {"drained": True})

        for drain in drains:
            drain.ask(drained)
        if not drains:
            drained()

    def end(self, *_: Any) -> None:
        """End as soon as no journal is recorded any more (a signal's handler)."""
        self._ending = True


def _answer(connection: socket.socket, document: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        connection.send(json.dumps(document).encode())


def main(arguments: list[str] | None = None) -> int:
    """Run the recorder on a listening socket that was handed down."""
    parser = argparse.ArgumentParser(prog="python -m dasf_hpc.profile.sampler")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--listener", type=int, required=True, help="descriptor of its socket")
    given = parser.parse_args(arguments)
    recorder = Recorder(given.directory, socket.socket(fileno=given.listener))
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, recorder.end)
    recorder.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
