"""How fast a merge is, and how much memory it takes, for runs of growing size.

    python tests/benchmarks/merge_speed.py [--sizes 1 10 75] [--journals 64] [--json FILE]
    python tests/benchmarks/merge_speed.py --run FOLDER        # journals in FOLDER/journals

Each merge is a process of its own. Its memory is that of all its processes, together: the sum of
their proportional set sizes (Linux's smaps_rollup), looked at twenty times a second. Beside it
stands what it takes to read the journals and write as many bytes as the trace has, with fsync, and
the merge's ratio to it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from synthetic_large import RECORDS_A_TASK, synthesise

_MERGE = """
import json, resource, sys, time
from pathlib import Path
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.open import open_trace
from dasf_hpc.trace.summary import summarise

run = Path(sys.argv[1])
begun, times = time.monotonic(), []
merged = merge_journals(run / "journals")
times.append(time.monotonic() - begun)
merged.write(run / "trace.h5")
times.append(time.monotonic() - begun)
with open_trace(run) as trace:
    summarise(trace)
    tasks = trace.rows("tasks")
times.append(time.monotonic() - begun)
every = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({
    "events": merged.events,
    "tasks": tasks,
    "read_s": times[0],
    "write_s": times[1] - times[0],
    "summary_s": times[2] - times[1],
    "cpu_s": sum(used.ru_utime + used.ru_stime for used in every),
}))
"""


def copy_seconds(run: Path) -> float:
    """Read the journals and write as many bytes as the trace has."""
    left = (run / "trace.h5").stat().st_size
    begun = time.monotonic()
    with (run / "copied").open("wb") as copied:
        for path in sorted((run / "journals").glob("*.journal")):
            with path.open("rb") as journal:
                while piece := journal.read(1 << 24):
                    copied.write(piece[:left])
                    left -= len(piece[:left])
        copied.flush()
        os.fsync(copied.fileno())
    passed = time.monotonic() - begun
    (run / "copied").unlink()
    return passed


def memory_mib(process: psutil.Process) -> float:
    """Give the memory of a process and all that it started, MiB; 0 where it just ended."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += one.memory_full_info().pss
    return total / (1 << 20)


def measure(run: Path) -> dict[str, Any]:
    """Merge a run once and say what it took."""
    with subprocess.Popen(
        [sys.executable, "-c", _MERGE, str(run)], stdout=subprocess.PIPE, text=True
    ) as merging:
        peak = 0.0
        while merging.poll() is None:
            peak = max(peak, memory_mib(psutil.Process(merging.pid)))
            time.sleep(0.05)
        said, _ = merging.communicate()
    if merging.returncode:
        raise subprocess.CalledProcessError(merging.returncode, merging.args)
    row: dict[str, Any] = json.loads(said)
    row["peak_mib"] = peak
    merge_s = row["read_s"] + row["write_s"]
    row["journals_mb"] = sum(p.stat().st_size for p in (run / "journals").iterdir()) / 1e6
    row["trace_mb"] = (run / "trace.h5").stat().st_size / 1e6
    row["bytes_a_task"] = row["trace_mb"] * 1e6 / row["tasks"]
    row["events_per_s"] = row["events"] / merge_s
    row["events_per_cpu_s"] = row["events"] / row["cpu_s"]
    row["copy_s"] = copy_seconds(run)
    row["over_copy"] = merge_s / row["copy_s"]
    return row


_SHOWN: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("million events", lambda r: f"{r['events'] / 1e6:.1f}"),
    ("read s", lambda r: f"{r['read_s']:.1f}"),
    ("write s", lambda r: f"{r['write_s']:.1f}"),
    ("summary s", lambda r: f"{r['summary_s']:.1f}"),
    ("CPU s", lambda r: f"{r['cpu_s']:.1f}"),
    ("M events/s", lambda r: f"{r['events_per_s'] / 1e6:.2f}"),
    ("M events/CPU s", lambda r: f"{r['events_per_cpu_s'] / 1e6:.2f}"),
    ("peak MiB", lambda r: f"{r['peak_mib']:.0f}"),
    ("bytes/task", lambda r: f"{r['bytes_a_task']:.1f}"),
    ("copy s", lambda r: f"{r['copy_s']:.1f}"),
    ("x copy", lambda r: f"{r['over_copy']:.1f}"),
)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 10, 75], metavar="MILLIONS")
    parser.add_argument("--journals", type=int, default=64)
    parser.add_argument("--run", type=Path, nargs="+", default=[])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    print(" | ".join(name for name, _ in _SHOWN), flush=True)

    def report(run: Path) -> None:
        for _ in range(given.repeats):
            rows.append(measure(run))
            print(" | ".join(show(rows[-1]) for _, show in _SHOWN), flush=True)

    for run in given.run:
        report(run)
    for millions in () if given.run else given.sizes:
        with tempfile.TemporaryDirectory() as folder:
            nodes = max(1, given.journals // 8)
            workers = given.journals // nodes
            tasks = max(1, round(millions * 1e6 / RECORDS_A_TASK / nodes / workers))
            synthesise(Path(folder), nodes, workers, tasks)
            report(Path(folder))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
