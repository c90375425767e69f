"""How long it takes to open a trace and read one column of a window of time.

    python tests/benchmarks/merge_open.py [TRACE | --events 75] [--share 60] [--json FILE]

The window is one part of `share` of the run's length: one minute of an hour by default. Each
reading is a process of its own; the time is from `open_trace` to the column, without imports.
Without a trace, one of so many million events is made of a synthetic run of 64 workers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from synthetic_large import RECORDS_A_TASK, synthesise

from dasf_hpc.trace.merge import merge_journals

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


def measure(trace: Path, share: float, repeats: int) -> list[dict[str, Any]]:
    """Read each column several times; print and give what it took."""
    result = []
    for table, column in COLUMNS:
        arguments = [str(trace), table, column, str(share)]
        runs = []
        for _ in range(repeats):
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
    return result


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path, nargs="?")
    parser.add_argument("--events", type=float, default=75.0, metavar="MILLIONS")
    parser.add_argument("--share", type=float, default=60.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.trace:
        result = measure(given.trace, given.share, given.repeats)
    else:
        with tempfile.TemporaryDirectory() as folder:
            tasks = max(1, round(given.events * 1e6 / RECORDS_A_TASK / 64))
            synthesise(Path(folder), 8, 8, tasks)
            trace = Path(folder) / "trace.h5"
            merge_journals(Path(folder) / "journals").write(trace)
            result = measure(trace, given.share, given.repeats)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
