"""What the node sampler costs and how even its samples are while a task holds the GIL.

python tests/benchmarks/recording_sampler.py [--seconds 10] [--workers 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from distributed import Client, LocalCluster

from dasf_hpc.profile.journal import Stream, read_journal
from dasf_hpc.profile.plugins import ResourceMonitor

INTERVAL_MS = 100


def hold_gil(seconds: float) -> tuple[int, int]:
    """Hold the GIL, as a library does that does not release it."""
    begin = time.monotonic_ns()
    # PyDLL, unlike CDLL, keeps the GIL during the call.
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    return begin, time.monotonic_ns()


def find_sampler(directory: Path) -> psutil.Process:
    """Find the one sampler that serves a run, once it has come to rest."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [
            process
            for process in psutil.process_iter(["cmdline"])
            if "dasf_hpc.profile.sampler" in (process.info["cmdline"] or [])
            and str(directory) in process.info["cmdline"]
        ]
        if len(found) == 1 and list(directory.glob("sampler-*.journal")):
            time.sleep(1)
            return found[0]
        time.sleep(0.1)
    raise RuntimeError("no sampler")


def cpu_seconds(pid: int) -> float:
    """Give the CPU time of a process's threads, to the ns: clock ticks miss what is short."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def measure(seconds: float, workers: int, folder: Path) -> dict[str, Any]:
    """Sample a node whose workers hold the GIL and look at the samples."""
    directory = folder / "journals"
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            memory_limit=0,
            local_directory=str(folder),
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(ResourceMonitor.for_workers(INTERVAL_MS, directory=directory))
        sampler = find_sampler(directory)
        before = cpu_seconds(sampler.pid)
        begin = time.monotonic()
        spans = client.gather(client.map(hold_gil, [seconds] * workers, pure=False))
        share = (cpu_seconds(sampler.pid) - before) / (time.monotonic() - begin)
        memory = sampler.memory_info().rss
    [path] = directory.glob("sampler-*.journal")
    times = read_journal(path).records[Stream.NODE_SAMPLES]["time"]
    inside = times[(times >= min(s[0] for s in spans)) & (times <= max(s[1] for s in spans))]
    gaps = np.diff(inside) / 1e6
    return {
        "workers": workers,
        "cpus": os.cpu_count(),
        "cpu_percent_of_a_core": 100 * share,
        "memory_MB": memory / 1e6,
        "samples": len(inside),
        "gap_p50_ms": float(np.percentile(gaps, 50)),
        "gap_p99_ms": float(np.percentile(gaps, 99)),
        "gap_longest_ms": float(gaps.max()),
        "bytes_per_s": path.stat().st_size / ((times[-1] - times[0]) / 1e9),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = measure(given.seconds, given.workers, Path(name))
    goals = {"cpu_percent_of_a_core": "at most 1", "gap_p99_ms": "at most 150"}
    print(f"{'sampling every 100 ms while all workers hold the GIL':56}{'':>10}  goal")
    for label, value in figures.items():
        print(f"  {label.replace('_', ' '):54}{value:10.2f}  {goals.get(label, '')}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
