"""What the report and the exports of a trace take: CPU time, memory and bytes.

    python tests/benchmarks/show_size.py [--tasks 1] [--what report perfetto ...] [--json FILE]
    python tests/benchmarks/show_size.py --trace trace.h5

Each is a process of its own, so that its memory is its own. `--tasks` is in millions; the run is
synthetic, of 8 nodes and 64 workers.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from synthetic_large import synthesise

from dasf_hpc.show.formats import Format
from dasf_hpc.trace.merge import merge_journals
from dasf_hpc.trace.open import open_trace

NODES, WORKERS = 8, 8
WHAT = ("report", *(str(to) for to in Format))


def measured(trace: Path, what: str) -> dict[str, Any]:
    """Write one of them in a process of its own and give what it took."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out"
        words = ["report", str(trace)] if what == "report" else ["export", str(trace), "--to", what]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", _PEAK, *words, "--output", str(target)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        files = [target] if target.is_file() else list(target.iterdir())
        return {
            "what": what,
            "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "memory_mb": int(told.split()[-1]) / 1024,
            "mb": sum(path.stat().st_size for path in files) / 1e6,
        }


_PEAK = """
import resource, sys
from dasf_hpc.cli import app
app(standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=float, default=1, metavar="MILLIONS")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = given.trace
        if path is None:
            synthesise(Path(folder), NODES, WORKERS, round(given.tasks * 1e6 / NODES / WORKERS))
            path = Path(folder) / "trace.h5"
            merge_journals(Path(folder) / "journals").write(path)
        with open_trace(path) as trace:
            tasks = trace.rows("tasks")
        print(f"{tasks:,} tasks")
        print(f"{'what':<10} {'CPU s':>8} {'memory MB':>10} {'MB':>9}")
        for what in given.what:
            one = measured(path, what)
            found.append(one)
            numbers = f"{one['cpu_s']:8.1f} {one['memory_mb']:10.0f} {one['mb']:9.1f}"
            print(f"{what:<10} {numbers}", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"tasks": tasks, "results": found}, indent=1))


if __name__ == "__main__":
    main()
