"""How many bytes of journal a task costs, by what the tasks are like and by stream.

python tests/benchmarks/recording_size.py [--tasks 10000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
from distributed import Client, LocalCluster, worker_client

from dasf_hpc.profile.journal import BLOCK, Stream, read_journal
from dasf_hpc.profile.plugins import WorkerTaskPlugin


def increment(value: int) -> int:
    """Be a task."""
    return value + 1


def add(first: int, second: int) -> int:
    """Be a task with two dependencies."""
    return first + second


def inside(value: int) -> int:
    """Be a task that submits one."""
    with worker_client() as client:
        result: int = client.submit(increment, value, pure=False).result()
        return result


def run_map(client: Client, tasks: int) -> None:
    """Run independent tasks whose keys are text."""
    client.gather(client.map(increment, range(tasks)))


def run_tree(client: Client, tasks: int) -> None:
    """Run a map and sum it up by twos."""
    level = client.map(increment, range(tasks // 2))
    while len(level) > 1:
        level = client.map(add, level[: len(level) // 2 * 2 : 2], level[1::2])
    level[0].result()


def run_array(client: Client, tasks: int) -> None:
    """Run blocks of an array: keys are tuples."""
    side = max(2, int((tasks / 4) ** 0.5))
    array = da.ones((side * 4, side * 4), chunks=(4, 4))
    ((array + array.T) * 2).sum().compute(optimize_graph=False)


def run_inside(client: Client, tasks: int) -> None:
    """Run tasks that submit tasks: each has a thread of its own."""
    client.gather(client.map(inside, range(min(tasks, 1000) // 2)))


WORKLOADS: dict[str, Callable[[Client, int], None]] = {
    "map, text keys": run_map,
    "tree, 2 dependencies": run_tree,
    "array, tuple keys": run_array,
    "tasks in tasks": run_inside,
}


def blocks_by_stream(path: Path) -> Counter[str]:
    """Count a journal's bytes by stream, whole blocks of them."""
    data = path.read_bytes()
    streams: Counter[str] = Counter()
    for offset in range(0, len(data), BLOCK):
        magic, _, stream = struct.unpack_from("<4sHB", data, offset)
        streams[Stream(stream).name if magic == b"DHJ1" else "reserved"] += BLOCK
    return streams


def measure(workload: Callable[[Client, int], None], tasks: int, folder: Path) -> dict[str, Any]:
    """Run a workload on one worker and look at its journal."""
    directory = folder / "journals"
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            dashboard_address=":0",
            memory_limit=0,
            local_directory=str(folder),
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(WorkerTaskPlugin(directory=directory, stacks="off"))
        workload(client, tasks)
    [path] = directory.glob("worker-*.journal")
    count = len(read_journal(path).records[Stream.STARTS])
    by_stream = blocks_by_stream(path)
    return {
        "tasks": count,
        "bytes_per_task": path.stat().st_size / count,
        "by_stream": {name: size / count for name, size in by_stream.most_common()},
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    given = parser.parse_args()
    figures = {}
    print(f"{'':22}{'tasks':>8}{'bytes a task (goal: 150)':>27}   of these")
    for label, workload in WORKLOADS.items():
        with tempfile.TemporaryDirectory() as name:
            row = figures[label] = measure(workload, given.tasks, Path(name))
        parts = ", ".join(f"{n.lower()} {v:.0f}" for n, v in row["by_stream"].items() if v >= 1)
        print(f"{label:22}{row['tasks']:8}{row['bytes_per_task']:27.1f}   {parts}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
