"""What a run's end takes once the last report is written: merge, join, trace, summary, report.html.

    python tests/benchmarks/end_of_run.py [--tasks 1] [--kernels 0 2] [--json FILE]

A run of so many million tasks on 8 nodes with 8 workers each, with its samplers' journals and an
Nsight report of each node: a range around every execution and, for each, so many kernels and, where
there are any, a copy, with the calls that launched them. The steps are those that `submit` takes,
by its own calls, in a process of its own; a part lasts from the step that names it to the next one.
The reports are exports in nsys's schema: what nsys needs to export its own format is not in it.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from exports import Export, global_id
from synthetic import BEGIN, BEGIN_UTC
from synthetic_large import Shape, local_times, plan_of, synthesise

NODES, WORKERS = 8, 8

#: What nsys does before the first worker begins, ns.
AHEAD = 5_000_000_000

_END = """
import json, sys, time
from pathlib import Path
import psutil
from dasf_hpc.outcome import merge_run
from dasf_hpc.show.report import write_report

me, steps = psutil.Process(), []

def used():
    own = me.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in me.children(recursive=True):
        try:
            total += sum(child.cpu_times()[:2])
        except psutil.Error:
            pass
    return total

def told(step):
    name, _, more = step.label.partition(": ")
    if name == "Merging":
        name = "reading journals" if ".journal" in more else "joining keys"
    if name == "Writing the report" and more:
        name = more
    if not steps or steps[-1][0] != name:
        steps.append((name, time.monotonic(), used()))

run = Path(sys.argv[1])
summary = merge_run(run, told=told)
write_report(run, told=told)
steps.append(("", time.monotonic(), used()))
parts = [
    (name, after[1] - begun, after[2] - cpu)
    for (name, begun, cpu), after in zip(steps, steps[1:])
]
print(json.dumps({
    "tasks": sum(summary.tasks.values()),
    "linked": sum(report.linked for report in summary.reports),
    "kernels": summary.gpu.kernels if summary.gpu else 0,
    "wall_s": steps[-1][1] - steps[0][1],
    "cpu_s": steps[-1][2] - steps[0][2],
    "parts": parts,
}))
"""


def write_report(run: Path, shape: Shape, kernels: int, node: int) -> None:
    """Write one node's report, its export, and what the node said of it."""
    name = f"node{node + 1}"
    path = run / "nsight" / f"{name}.sqlite"
    report = path.with_suffix(".nsys-rep")
    plans = [plan_of(shape, node * shape.workers + number) for number in range(shape.workers)]
    begun = plans[0].clock.local(BEGIN) - AHEAD
    with Export(path, "2023.4", name) as export:
        export.begun(BEGIN_UTC - AHEAD)
        launch, copy = (export.string(text) for text in ("cudaLaunchKernel", "cudaMemcpyAsync"))
        names = [export.string(f"void kernel_{n}<float>(float*, int)") for n in range(20)]
        for number, plan in enumerate(plans):
            # a table and a domain are made by their first rows
            for at in range(BEGIN, plan.end, 1_000_000_000):
                local = plan.clock.local(at)
                export.mark(plan.pid, local - begun, local)
            export.range(plan.pid, plan.pid, 0, 1, -1)
            thread = global_id(plan.pid, 70_000 + plan.number)
            starts, stops = (
                (local_times(plan.clock, true) - begun) for true in (plan.starts, plan.stops)
            )
            (domain,) = export.database.execute(
                "SELECT domainId FROM NVTX_EVENTS WHERE eventType = 59 AND globalTid = ?",
                (global_id(plan.pid, plan.pid),),
            ).fetchone()
            export.database.executemany(
                "INSERT INTO NVTX_EVENTS (start, end, eventType, textId, globalTid, domainId, "
                f"int64Value) VALUES (?, ?, 59, {export.string('f')}, {thread}, {domain}, ?)",
                rows(starts + 2_000, stops - 1_000, plan.base + 1 + np.arange(len(starts))),
            )
            if not kernels:
                continue
            export.gpu(number, f"GPU-{name}-{number}")
            export.call(plan.pid, plan.pid, 0, 1, 2**31)
            export.kernel(plan.pid, 1, 2, correlationId=2**31, deviceId=number)
            export.memcpy(plan.pid, 2, 3, 1, 8, correlationId=2**31 + 1, deviceId=number)
            # the calls of a task share its time
            count = kernels + 1
            step = np.repeat((stops - starts - 4_000) // (count + 1), count).clip(1)
            call = np.repeat(starts + 3_000, count) + np.tile(np.arange(count), len(starts)) * step
            which = np.arange(len(call))
            copies = which % count == kernels
            export.database.executemany(
                "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME (start, end, eventClass, globalTid, "
                f"correlationId, nameId, returnValue) VALUES (?, ?, 0, {thread}, ?, ?, 0)",
                rows(call, call + step // 2, which, np.where(copies, copy, launch)),
            )
            place = f"{number}, 1, 7, {global_id(plan.pid)}"
            at, last = call + step // 2 + 500, call + step // 2 + 500 + step // 2
            ours = ~copies
            text = names[0] + which[ours] % len(names)
            export.database.executemany(
                "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL (start, end, deviceId, contextId, "
                "streamId, globalPid, correlationId, demangledName, shortName, gridX) "
                f"VALUES (?, ?, {place}, ?, ?, ?, 1)",
                rows(at[ours], last[ours], which[ours], text, text),
            )
            export.database.executemany(
                "INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY (start, end, deviceId, contextId, "
                "streamId, globalPid, correlationId, bytes, copyKind) "
                f"VALUES (?, ?, {place}, ?, 4096, 1)",
                rows(at[copies], last[copies], which[copies]),
            )
    # nsys's own format is only hashed: as many bytes as a quarter of the export
    report.write_bytes(os.urandom(path.stat().st_size // 4))
    path.touch()  # an export that is older than its report is made anew
    record = {"hostname": name, "report": f"nsight/{report.name}", "notes": []}
    (run / "nodes" / f"{name}.json").write_text(json.dumps(record))


def rows(*columns: np.ndarray[Any, Any]) -> Any:
    """Give the rows of columns, as SQLite takes them."""
    return zip(*(column.tolist() for column in columns), strict=True)


def write(run: Path, tasks: int, kernels: int) -> None:
    """Write a run's directory as it is when the last report is written."""
    shape = Shape(NODES, WORKERS, tasks // NODES // WORKERS)
    for folder in ("journals", "nsight", "nodes"):
        (run / folder).mkdir()
    (run / "run.json").write_text(
        json.dumps({"name": "end", "shape": {"nodes": NODES, "workers_per_node": WORKERS}})
    )
    synthesise(run, shape.nodes, shape.workers, shape.tasks, shape.seed)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(functools.partial(write_report, run, shape, kernels), range(NODES)))


def measure(run: Path) -> dict[str, Any]:
    """End a run that is written, and say what it took."""
    command = [sys.executable, "-c", _END, str(run)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, Any] = json.loads(done.stdout)
    merging = [name for name, _, _ in row["parts"]].index("Summing up") + 1
    row["merge_s"], row["merge_cpu_s"] = (
        sum(part[place] for part in row["parts"][:merging]) for place in (1, 2)
    )
    return row


def main() -> None:
    """Measure and print the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=float, default=1.0, metavar="MILLIONS")
    parser.add_argument("--kernels", type=int, nargs="+", default=[0, 2], help="a task")
    parser.add_argument("--run", type=Path, help="end a run that was written (--keep) before")
    parser.add_argument("--keep", type=Path, help="only write a run, there")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.keep:
        given.keep.mkdir()
        write(given.keep, round(given.tasks * 1e6), given.kernels[0])
        return
    found = {}
    for kernels in given.kernels:
        with tempfile.TemporaryDirectory() as folder:
            run = given.run or Path(folder)
            if not given.run:
                write(run, round(given.tasks * 1e6), kernels)
            row = measure(run)
        assert row["linked"] >= 0.99 * row["tasks"], row
        found[f"{kernels} kernels a task"] = row
        print(f"{row['tasks']} tasks, {row['kernels']} kernels; load {os.getloadavg()[0]:.1f}")
        sums = [
            ("all but report.html", row["merge_s"], row["merge_cpu_s"]),
            ("all", row["wall_s"], row["cpu_s"]),
        ]
        for name, wall_s, cpu_s in (*row["parts"], *sums):
            print(f"  {name:40} {wall_s:6.2f} s  {cpu_s:6.2f} CPU s", flush=True)
        if given.run:
            break
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
