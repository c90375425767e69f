"""How fast the analyses are on a large run, and how much memory they take.

    python tests/benchmarks/analysis_speed.py [--tasks 10] [--analyses functions balance] [--json F]
    python tests/benchmarks/analysis_speed.py --trace trace.h5

Each analysis is a process of its own, which opens the trace and gives the whole answer: all rows of
all its tables. `--tasks` is in millions; the run is synthetic, of 8 nodes and 64 workers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from synthetic_large import synthesise

from dasf_hpc.analysis import ANALYSES
from dasf_hpc.trace.merge import merge_journals

NODES, WORKERS = 8, 8

_ASK = """
import json, resource, sys, time
from dasf_hpc.analysis import analyse
from dasf_hpc.trace.open import open_trace

begun, used = time.monotonic(), time.process_time()
with open_trace(sys.argv[1]) as trace:
    answer = analyse(sys.argv[2], trace)
    tasks = trace.rows("tasks")
print(json.dumps({
    "analysis": sys.argv[2],
    "tasks": tasks,
    "rows": sum(len(table) for table in answer.tables.values()),
    "wall_s": time.monotonic() - begun,
    "cpu_s": time.process_time() - used,
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""


def measure(trace: Path, name: str) -> dict[str, Any]:
    """Ask one question of a trace and say what it took."""
    done = subprocess.run(
        [sys.executable, "-c", _ASK, str(trace), name], check=True, capture_output=True, text=True
    )
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=float, default=10, metavar="MILLIONS")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--analyses", nargs="+", default=list(ANALYSES), choices=list(ANALYSES))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        trace = given.trace
        if trace is None:
            tasks = max(1, round(given.tasks * 1e6 / NODES / WORKERS))
            synthesise(Path(folder), NODES, WORKERS, tasks)
            trace = Path(folder) / "trace.h5"
            merge_journals(Path(folder) / "journals").write(trace)
        print("analysis | million tasks | rows | wall s | CPU s | peak MiB", flush=True)
        for name in given.analyses:
            row = measure(trace, name)
            rows.append(row)
            print(
                f"{name} | {row['tasks'] / 1e6:.2f} | {row['rows']} | {row['wall_s']:.1f} | "
                f"{row['cpu_s']:.1f} | {row['peak_mib']:.0f}",
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
