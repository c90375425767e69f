"""How many bytes of trace a task costs, by table and column.

    python tests/benchmarks/merge_size.py [--run FOLDER | --tasks 20000] [--json FILE]

Without a run, a synthetic one is made: 64 workers, 2 dependencies a task, five keys of eight those
of arrays (tuples that share a token), three with a token of their own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import h5py

sys.path.insert(0, str(Path(__file__).parents[1]))

from synthetic_large import synthesise

from dasf_hpc.trace.merge import merge_journals


def bytes_by_column(trace: Path) -> tuple[int, dict[str, dict[str, int]]]:
    """Give the number of tasks, and the stored bytes of each column of each table."""
    with h5py.File(trace) as file:
        sizes = {
            name: {column: data.id.get_storage_size() for column, data in group.items()}
            for name, group in file.items()
        }
        return int(file["tasks"].attrs["rows"]), sizes


def main() -> None:
    """Merge and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--tasks", type=int, default=20_000, help="tasks a worker")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = given.run or Path(folder)
        trace = Path(folder) / "trace.h5"
        if not given.run:
            synthesise(run, 8, 8, given.tasks)
        merge_journals(run / "journals", scratch=Path(folder)).write(trace)
        tasks, sizes = bytes_by_column(trace)
        file_size = trace.stat().st_size
    total = sum(sum(columns.values()) for columns in sizes.values())
    for table, columns in sorted(sizes.items(), key=lambda t: -sum(t[1].values())):
        parts = sorted(((size / tasks, name) for name, size in columns.items()), reverse=True)
        detail = ", ".join(f"{name} {size:.2f}" for size, name in parts if size > 0.05)
        print(f"{table:16} {sum(columns.values()) / tasks:7.2f}  {detail}")
    print(f"{'all columns':16} {total / tasks:7.2f}  bytes a task, {tasks} tasks")
    print(f"{'whole file':16} {file_size / tasks:7.2f}")
    if given.json:
        result = {
            "tasks": tasks,
            "file": file_size,
            "bytes_a_task": file_size / tasks,
            "columns": sizes,
        }
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
