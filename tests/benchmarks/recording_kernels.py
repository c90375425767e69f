"""What the plugins and nsys cost tasks that launch CUDA kernels, against a bare worker.

Each variant has a scheduler and a worker process of its own, all on this machine and up all the
time: bare, bare again (A/A: what the method cannot tell apart), with all three plugins, and with
them under ``nsys profile`` as a run has it. In each round the same tasks run on one worker after
the other, in an order that changes; a round's ratio is taken within the round. A task launches a
number of kernels one after the other and waits for them: small ones, so that launching is what
takes the time, and large ones, that take some 100 us on a GPU of 2022.

    python tests/benchmarks/recording_kernels.py [--nsys NSYS] [--rounds 10] [--json FILE]

``--on host`` does the same additions with NumPy, where there is no GPU: it tries the method.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster

from dasf_hpc.launch.node import has_nvidia_driver
from dasf_hpc.launch.worker_command import choose_nsys, nsys_command
from dasf_hpc.nsight.export import find_nsys
from dasf_hpc.nsight.sessions import make_way
from dasf_hpc.profile.plugins import GPUAnnotationPlugin, ResourceMonitor, WorkerTaskPlugin

BARE, AGAIN, PLUGINS, WITH_NSYS = "bare", "bare again", "all three", "all three and nsys"

#: Numbers of float32 in an array: a kernel over the first takes a few us, over the second, at
#: 2 TB/s, some 100 us.
SIZES = {"gpu": {"small": 100_000, "large": 25_000_000}, "host": {"small": 1_000, "large": 100_000}}

#: A worker's start under nsys takes seconds, its report as many.
START_TIMEOUT_S, END_TIMEOUT_S = 60.0, 60.0


def launch(number: int, size: int, kernels: int, on_gpu: bool) -> float:
    """Be a task: launch kernels and wait for them."""
    if on_gpu:
        import cupy as xp
    else:
        import numpy as xp

    values = xp.full(size, number % 7, dtype="float32")
    for _ in range(kernels - 1):
        values += 1
    return float(values[0])


def tasks_per_second(client: Client, tasks: int, size: int, kernels: int, on_gpu: bool) -> float:
    """Run the tasks on the client's worker."""
    begun = time.perf_counter()
    futures = client.map(
        launch, range(tasks), size=size, kernels=kernels, on_gpu=on_gpu, pure=False
    )
    values = client.gather(futures)
    seconds = time.perf_counter() - begun
    if values != [n % 7 + kernels - 1 for n in range(tasks)]:
        raise SystemExit("the kernels computed something else than they were asked to")
    return tasks / seconds


@contextlib.contextmanager
def worker(name: str, folder: Path, nsys: Path | None) -> Iterator[Client]:
    """Give a client of a scheduler with one worker process of one thread, set up as a variant."""
    folder.mkdir()
    with (
        LocalCluster(
            n_workers=0, protocol="tcp", host="127.0.0.1", dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        command = [
            *(sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address),
            *("--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0"),
            *("--local-directory", str(folder), "--death-timeout", "60"),
        ]
        if nsys is not None:
            choice = choose_nsys((), has_nvidia_driver())
            command = nsys_command(str(nsys), choice, str(folder / "report"), command)
            version = find_nsys(str(nsys)).version_text
            if version:
                make_way(version)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            begun = time.monotonic()
            while not cluster.scheduler.workers:
                late = time.monotonic() - begun > START_TIMEOUT_S
                if late or process.poll() is not None:
                    said = (folder / "log").read_text(errors="replace")[-2000:]
                    raise SystemExit(f"the worker of variant {name!r} did not start:\n{said}")
                time.sleep(0.1)
            if name in (PLUGINS, WITH_NSYS):
                for plugin in (
                    WorkerTaskPlugin(directory=folder, stacks="off"),
                    ResourceMonitor.for_workers(100, directory=folder),
                    GPUAnnotationPlugin(directory=folder),
                ):
                    client.register_plugin(plugin)
            yield client
            # not retired: a last worker that holds results cannot be
            for address in list(cluster.scheduler.workers):
                cluster.scheduler.loop.add_callback(cluster.scheduler.close_worker, address)
            process.wait(END_TIMEOUT_S)
            if nsys is not None and not list(folder.glob("report.*")):
                raise SystemExit(f"nsys wrote no report:\n{(folder / 'log').read_text()[-2000:]}")
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)


def spread(values: list[float]) -> dict[str, float]:
    """Give median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def measure(
    clients: dict[str, Client], given: argparse.Namespace, deadline: float
) -> dict[str, Any]:
    """Run the rounds of every size, as many as there is time for."""
    on_gpu = given.on == "gpu"
    sizes = SIZES[given.on]
    figures: dict[str, Any] = {}
    order = random.Random(0)
    for number, (label, size) in enumerate(sizes.items()):
        words = (given.tasks, size, given.kernels, on_gpu)
        for client in clients.values():
            tasks_per_second(client, *words)  # compiles the kernels, and warms up
        share = (deadline - time.monotonic()) / (len(sizes) - number)
        until = time.monotonic() + share
        rates: dict[str, list[float]] = {name: [] for name in clients}
        for _ in range(given.rounds):
            for name in order.sample(list(clients), len(clients)):
                rates[name].append(tasks_per_second(clients[name], *words))
            if time.monotonic() > until:
                break
        bare = rates[BARE]
        figures[label] = {
            name: {
                "tasks_per_s": spread(rows),
                "ratio": spread([r / b for r, b in zip(rows, bare, strict=True)]),
                "us_a_kernel_added": spread(
                    [(1 / r - 1 / b) / given.kernels * 1e6 for r, b in zip(rows, bare, strict=True)]
                ),
            }
            for name, rows in rates.items()
        }
        figures[label]["rounds"] = len(bare)
        figures[label]["elements"] = size
    return figures


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nsys", type=Path, help="default: from PATH; without, none is tried")
    parser.add_argument("--on", choices=list(SIZES), default="gpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=100, help="of a round")
    parser.add_argument("--kernels", type=int, default=50, help="of a task")
    parser.add_argument("--seconds", type=float, default=3600, help="the rounds' time at most")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    given = parser.parse_args()
    found = shutil.which("nsys")
    nsys = given.nsys or (Path(found) if found else None)
    if given.on == "gpu":
        try:
            import cupy

            cupy.zeros(1)
        except Exception as error:
            print(f"CuPy cannot use a GPU here: {error}", file=sys.stderr)
            return 1
    names = [BARE, AGAIN, PLUGINS, *([WITH_NSYS] if nsys else [])]
    deadline = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        clients = {
            name: stack.enter_context(
                worker(
                    name, Path(folder) / name.replace(" ", "-"), nsys if name == WITH_NSYS else None
                )
            )
            for name in names
        }
        figures = measure(clients, given, deadline)
    print(f"{'':26}{'tasks/s':>9}{'over bare':>24}{'us a kernel':>26}")
    for label in SIZES[given.on]:
        for name in names:
            row = figures[label][name]
            ratio, added = row["ratio"], row["us_a_kernel_added"]
            print(
                f"{label:7}{name:19}{row['tasks_per_s']['median']:9.1f}"
                f"{ratio['median']:10.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
                f"{added['median']:+10.2f} [{added['low']:+.2f}, {added['high']:+.2f}]"
            )
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
