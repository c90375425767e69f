"""How long it takes to open a trace and read one column of a window of time.

    python tests/benchmarks/merge_open.py TRACE [--share 60] [--json FILE]

The window is one part of `share` of the run's length: one minute of an hour by default. Each
reading is a process of its own; the time is from `open_trace` to the column, without imports.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

_OPEN = """
import json, sys, time
from dasf_hpc.trace.open import open_trace
from dasf_hpc.trace.schema import TABLES

path, table, column, share = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
with open_trace(path) as trace:
    length = int(trace.processes["stop"].max())
begun = time.monotonic()
with open_trace(path) as trace:
    start = length // 2
    found = trace.table(table, [column], start, start + int(length / share))
    rows = trace.rows(table)
print(json.dumps([time.monotonic() - begun, len(found), rows]))
"""

COLUMNS = (
    ("tasks", "stop"),
    ("tasks", "key"),
    ("transitions", "time"),
    ("transitions", "finish_state"),
    ("memory", "managed"),
)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--share", type=float, default=60.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result = []
    for table, column in COLUMNS:
        arguments = [str(given.trace), table, column, str(given.share)]
        runs = []
        for _ in range(given.repeats):
            done = subprocess.run(
                [sys.executable, "-c", _OPEN, *arguments],
                check=True,
                capture_output=True,
                text=True,
            )
            runs.append(json.loads(done.stdout))
        seconds = statistics.median(run[0] for run in runs)
        result.append(
            {"column": f"{table}.{column}", "s": seconds, "rows": runs[0][1], "of": runs[0][2]}
        )
        print(f"{table + '.' + column:26} {seconds:6.3f} s  {runs[0][1]} of {runs[0][2]} rows")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
