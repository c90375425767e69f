"""What all three plugins cost a worker: CPU a task and throughput, against none, pinned to a core.

Client, scheduler, worker and sampler share one core, as the figure is meant: what recording costs
cannot hide on an idle one. In each round the same storm of tasks runs bare, bare again (A/A: what
the method cannot tell apart) and with the plugins, in an order that changes; a round's ratio is
taken within the round. Calls are not sampled here: `recording_stacks.py` measures that.

    python tests/benchmarks/recording_throughput.py [--rounds 12] [--tasks 2000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster
from distributed.diagnostics.plugin import WorkerPlugin

from dasf_hpc.profile.plugins import GPUAnnotationPlugin, ResourceMonitor, WorkerTaskPlugin

Plugins = Callable[[Path], list[WorkerPlugin]]

VARIANTS: dict[str, Plugins] = {
    "bare": lambda folder: [],
    "bare again": lambda folder: [],
    "all three": lambda folder: [
        WorkerTaskPlugin(directory=folder, stacks="off"),
        ResourceMonitor.for_workers(100, directory=folder),
        GPUAnnotationPlugin(directory=folder),
    ],
    "tasks only": lambda folder: [WorkerTaskPlugin(directory=folder, stacks="off")],
    "ranges only": lambda folder: [GPUAnnotationPlugin(directory=folder)],
    "monitor only": lambda folder: [ResourceMonitor.for_workers(100, directory=folder)],
}


def increment(value: int) -> int:
    """Be a task."""
    return value + 1


def add(first: int, second: int) -> int:
    """Be a task with two dependencies."""
    return first + second


def storm(client: Client, tasks: int) -> None:
    """Run half of the tasks as a map and sum them up by twos."""
    level = client.map(increment, range(tasks // 2), pure=False)
    while len(level) > 1:
        odd = level[-1:] if len(level) % 2 else []
        level = [*client.map(add, level[:-1:2], level[1::2], pure=False), *odd]
    level[0].result()


def process_time() -> float:
    """Give the CPU seconds of the process, on the worker."""
    return time.process_time()


def run_once(client: Client, plugins: list[WorkerPlugin], tasks: int) -> tuple[float, float]:
    """Run a storm with some plugins attached; give tasks a second and worker CPU us a task."""
    for plugin in plugins:
        client.register_plugin(plugin)
    if any(isinstance(plugin, ResourceMonitor) for plugin in plugins):
        time.sleep(3)  # the sampler's own start is not what is measured
    [before] = client.run(process_time).values()
    begin = time.perf_counter()
    storm(client, tasks)
    seconds = time.perf_counter() - begin
    [after] = client.run(process_time).values()
    for plugin in plugins:
        client.unregister_worker_plugin(plugin.name)
    return tasks / seconds, (after - before) / tasks * 1e6


def spread(values: list[float]) -> dict[str, float]:
    """Give median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def measure(rounds: int, tasks: int, variants: list[str], folder: Path) -> dict[str, Any]:
    """Run the rounds; ratios and differences are against the round's bare storm."""
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            memory_limit=0,
            local_directory=str(folder),
        ) as cluster,
        Client(cluster) as client,
    ):
        storm(client, tasks)
        order = random.Random(0)
        for done in range(rounds):
            for name in order.sample(variants, len(variants)):
                plugins = VARIANTS[name](folder / f"{done}-{name}")
                results[name].append(run_once(client, plugins, tasks))
            print(f"round {done + 1} of {rounds}", file=sys.stderr)
    bare = results["bare"]
    return {
        name: {
            "tasks_per_s": spread([r[0] for r in rows]),
            "ratio": spread([r[0] / b[0] for r, b in zip(rows, bare, strict=True)]),
            "cpu_us_added": spread([r[1] - b[1] for r, b in zip(rows, bare, strict=True)]),
        }
        for name, rows in results.items()
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--each", action="store_true", help="each plugin by itself, too")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    given = parser.parse_args()
    os.sched_setaffinity(0, {given.core})
    variants = list(VARIANTS) if given.each else list(VARIANTS)[:3]
    with tempfile.TemporaryDirectory() as name:
        figures = measure(given.rounds, given.tasks, variants, Path(name))
    print(f"{'':14}{'tasks/s':>9}{'over bare (goal: 0.985)':>28}{'CPU us a task (goal: 20)':>28}")
    for label, row in figures.items():
        ratio, cpu = row["ratio"], row["cpu_us_added"]
        print(
            f"{label:14}{row['tasks_per_s']['median']:9.0f}"
            f"{ratio['median']:12.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
            f"{cpu['median']:+11.1f} [{cpu['low']:+.1f}, {cpu['high']:+.1f}]"
        )
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
