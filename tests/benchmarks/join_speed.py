"""How fast reports are read and joined, and how much memory it takes, for growing numbers.

    python tests/benchmarks/join_speed.py [--sizes 1 10] [--json FILE]

A report of so many million kernels, each with the call that launched it, a copy and a range of the
user's for every ten, of two workers with two GPUs whose journals have a task for every hundred.
Reading it alone and merging the run with it are processes of their own; "merge" is the merge
without a report, for what it takes anyway.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from exports import Export, global_id
from synthetic import BEGIN, BEGIN_UTC, PlainWorker, write_workers

PIDS = (4000, 4001)
#: Time from one kernel to the next, and kernels a task.
STEP, A_TASK = 10_000, 100

_READ = """
import json, resource, sys, time
from pathlib import Path
from dasf_hpc.nsight.reader import read_report

begun = time.monotonic()
report = read_report(Path(sys.argv[1]))
rows = len(report.cuda_api) if len(sys.argv) > 2 else 0
rows += len(report.kernels)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"rows": rows, "s": time.monotonic() - begun,
    "cpu_s": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024}))
"""

_MERGE = """
import json, resource, sys, time
from pathlib import Path
from dasf_hpc.nsight.collect import join_reports
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.open import open_trace
from dasf_hpc.trace.summary import summarise

run, report = Path(sys.argv[1]), sys.argv[2:]
times = [time.monotonic()]
merged = merge_journals(run / "journals")
times.append(time.monotonic())
for entry in join_reports(merged, [(Path(name).name, Path(name)) for name in report]):
    assert entry.status == "joined", entry
times.append(time.monotonic())
merged.write(run / "trace.h5")
times.append(time.monotonic())
with open_trace(run) as trace:
    summarise(trace)
    times.append(time.monotonic())
    if report:
        shares = trace.task_gpu.groupby("gpu")["share"].sum()
        assert shares.tolist() == trace.gpus["busy"].tolist()
        assert (trace.table("kernels", ["task"])["task"] >= 0).mean() > 0.9
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "join_s": times[2] - times[1],
    "write_s": times[3] - times[2],
    "summary_s": times[4] - times[3],
    "cpu_s": used.ru_utime + used.ru_stime,
    "peak_mib": used.ru_maxrss / 1024,
    "trace_mb": (run / "trace.h5").stat().st_size / 1e6,
}))
"""


def write(run: Path, kernels: int) -> Path:
    """Write the journals and the report; gives the report."""
    step = STEP * len(PIDS)
    tasks = kernels // len(PIDS) // A_TASK
    workers = []
    for number, pid in enumerate(PIDS):
        starts = [BEGIN + 10**9 + n * A_TASK * step for n in range(tasks)]
        spans = [(pid + n % 2 * 10, t, t + A_TASK * step - 2000) for n, t in enumerate(starts)]
        workers.append(PlainWorker(pid, spans, [(f"GPU-{number}", number)]))
    write_workers(run / "journals", workers)
    path = run / "report.sqlite"
    with Export(path, "2023.4") as report:
        database: sqlite3.Connection = report.database
        report.begun(BEGIN_UTC)
        for number, pid in enumerate(PIDS):
            report.gpu(number, f"GPU-{number}")
            report.context(pid)
            for n in range(10):
                report.mark(pid, n * 1000, BEGIN + n * 1000)
            # the tables are made by their first rows
            report.call(pid, pid, 0, 1, 2**31)
            report.kernel(pid, 1, 2, correlationId=2**31, deviceId=number)
        names = [report.string(f"void kernel_{n}<float>(float*, int)") for n in range(150)]
        count = f"SELECT 0 UNION ALL SELECT i + 1 FROM rows WHERE i < {kernels - 1}"
        rows = f"WITH RECURSIVE rows(i) AS ({count})"
        session = f"1000000000 + i * {STEP}"
        thread = f"({PIDS[0]} + i % 2 + (i / 2 / {A_TASK}) % 2 * 10)"
        process = f"({global_id(PIDS[0])} + ((i % 2) << 24))"
        database.execute(
            f"INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME {rows} SELECT {session} + 2000 + "
            f"abs(random()) % 2000, {session} + 6000, 0, {process} | {thread}, i, {names[0]}, 0 "
            "FROM rows"
        )
        columns = (
            "start, end, deviceId, contextId, streamId, correlationId, globalPid, demangledName, "
            "shortName, gridX"
        )
        database.execute(
            f"INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL ({columns}) {rows} SELECT "
            f"{session} + 7000 + i * 7919 % 3000, "
            f"{session} + 12000 + i * 7919 % 3000 + abs(random()) % 20000, "
            f"i % 2, 1, 7 + i % 4, i, {process}, {names[0]} + i * 31 % 150, "
            f"{names[0]} + i * 31 % 150, 1 FROM rows"
        )
    return path


def run_python(program: str, *arguments: str) -> dict[str, Any]:
    """Run a program of its own and read the figures that it prints."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def measure(kernels: int) -> dict[str, Any]:
    """Read and join a report of so many kernels."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        report = write(run, kernels)
        row: dict[str, Any] = {"kernels": kernels, "report_mb": report.stat().st_size / 1e6}
        only, both = run_python(_READ, str(report)), run_python(_READ, str(report), "calls")
        row["kernels_read_s"], row["kernels_read_cpu_s"] = only["s"], only["cpu_s"]
        row["kernels_read_peak_mib"] = only["peak_mib"]
        row["read_s"], row["read_cpu_s"] = both["s"], both["cpu_s"]
        row["read_rows_per_s"] = both["rows"] / both["s"]
        without, joined = run_python(_MERGE, str(run)), run_python(_MERGE, str(run), str(report))
        row |= joined
        row["rows_per_s"] = both["rows"] / (joined["join_s"] + joined["write_s"])
        row["merge_peak_mib"] = without["peak_mib"]
        row["bytes_a_kernel"] = (joined["trace_mb"] - without["trace_mb"]) * 1e6 / kernels
    return row


_SHOWN: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("million kernels", lambda r: f"{r['kernels'] / 1e6:g}"),
    ("kernels read s", lambda r: f"{r['kernels_read_s']:.1f}"),
    ("CPU s", lambda r: f"{r['kernels_read_cpu_s']:.1f}"),
    ("peak MiB", lambda r: f"{r['kernels_read_peak_mib']:.0f}"),
    ("with calls s", lambda r: f"{r['read_s']:.1f}"),
    ("CPU s", lambda r: f"{r['read_cpu_s']:.1f}"),
    ("join s", lambda r: f"{r['join_s']:.1f}"),
    ("write s", lambda r: f"{r['write_s']:.1f}"),
    ("summary s", lambda r: f"{r['summary_s']:.1f}"),
    ("M rows/s", lambda r: f"{r['rows_per_s'] / 1e6:.2f}"),
    ("CPU s", lambda r: f"{r['cpu_s']:.1f}"),
    ("peak MiB", lambda r: f"{r['peak_mib']:.0f}"),
    ("merge peak MiB", lambda r: f"{r['merge_peak_mib']:.0f}"),
    ("bytes/kernel", lambda r: f"{r['bytes_a_kernel']:.1f}"),
)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 10], metavar="MILLIONS")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    print(" | ".join(name for name, _ in _SHOWN), flush=True)
    for millions in given.sizes:
        rows.append(measure(round(millions * 1e6)))
        print(" | ".join(show(rows[-1]) for _, show in _SHOWN), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
