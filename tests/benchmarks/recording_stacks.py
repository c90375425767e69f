"""What sampling Python's calls costs: CPU of the sampling thread, throughput of tasks, bytes.

*Looks*: the CPU time of the sampling thread for each look and in each second, as it runs in a
worker (10 ms, or rarer where that takes more than its share of a core), at 1, 2 and 8 threads whose
calls are 10 and 40 deep; they wait, so that looks come when they are due, or compute in Python and
hold the GIL. *Bare* is a thread that sleeps and wakes up as often and does nothing.
*Throughput*: a map of tasks of 1 ms on a worker of one thread, recorded without samples, without
again (what the method cannot tell apart) and with them, in an order that changes; a round's ratio
is taken within the round, of tasks a second and of the CPU time of the worker's process. *Bytes*:
of the samples and of all calls in journal and trace.

    python tests/benchmarks/recording_stacks.py [--rounds 20] [--seconds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import h5py
from distributed import Client, LocalCluster

from dasf_hpc.profile import call_stacks
from dasf_hpc.profile.journal import RECORD_SIZES, Journal, Stream, read_journal
from dasf_hpc.profile.plugins import WorkerTaskPlugin
from dasf_hpc.trace.merge import merge_journals

TASKS = 300
#: Seconds of tasks whose samples are weighed.
WEIGHED_S = 10.0
VARIANTS = ("off", "off again", "dask")


# ------------------------------------------------------------------------------ looks


def _deep(depth: int, stop: threading.Event, computes: bool) -> None:
    if depth > 1:
        _deep(depth - 1, stop, computes)
    elif not computes:
        stop.wait()
    while not stop.is_set():
        sum(range(1000))


class _Worker:
    def __init__(self, threads: list[threading.Thread]) -> None:
        self.active_threads = {thread.ident: "key" for thread in threads}


def looks(threads: int, depth: int, computes: bool, seconds: float, folder: Path) -> dict[str, Any]:
    """Sample threads that run a task, as far as the sampling thread can see, and time that."""
    module: dict[str, Any] = {"__name__": "distributed.worker", "call": _deep}
    exec("def _run_task(*arguments): call(*arguments)", module)
    stop = threading.Event()
    running = [
        threading.Thread(target=module["_run_task"], args=(depth - 1, stop, computes), daemon=True)
        for _ in range(threads)
    ]
    for thread in running:
        thread.start()
    journal = Journal(folder / f"{threads}-{depth}-{computes}.journal", {"role": "worker"})
    worker: Any = _Worker(running)
    sampler = call_stacks.StackSampler()
    sampled = sampler.add(journal, worker)
    sampled.loop = -1  # this thread is no event loop
    time.sleep(0.5)
    begin = time.monotonic(), sampler._spent, sampler._looks, sampled.count
    time.sleep(seconds)
    end = time.monotonic(), sampler._spent, sampler._looks, sampled.count
    sampler.remove(sampled)
    stop.set()
    for thread in running:
        thread.join()
    journal.close()
    passed, spent, count, samples = (b - a for a, b in zip(begin, end, strict=True))
    return {
        "threads": threads,
        "depth": depth,
        "computes": computes,
        "us_a_look": spent / max(1, count) / 1e3,
        "us_a_sample": spent / max(1, samples) / 1e3,
        "share": spent / 1e9 / passed,
        "looks_a_second": count / passed,
    }


def warm(threads: int, depth: int, folder: Path) -> float:
    """Give what one look costs with nothing in between, us: the fastest of many."""
    module: dict[str, Any] = {"__name__": "distributed.worker", "call": _deep}
    exec("def _run_task(*arguments): call(*arguments)", module)
    stop = threading.Event()
    running = [
        threading.Thread(target=module["_run_task"], args=(depth - 1, stop, False), daemon=True)
        for _ in range(threads)
    ]
    for thread in running:
        thread.start()
    journal = Journal(
        folder / f"warm-{threads}-{depth}-{time.monotonic_ns()}.journal", {"role": "worker"}
    )
    worker: Any = _Worker(running)
    sampler = call_stacks.StackSampler()
    sampler._all = (call_stacks.Sampled(journal, 0, -1, worker, None),)
    fastest = []
    for _ in range(20):
        begin = time.thread_time_ns()
        for _ in range(100):
            sampler._look(0)
        fastest.append((time.thread_time_ns() - begin) / 100)
    stop.set()
    for thread in running:
        thread.join()
    journal.close()
    return min(fastest) / 1e3


def bare(seconds: float) -> dict[str, float]:
    """Time a thread that wakes up as often and does nothing."""
    figures: dict[str, float] = {}

    def wake() -> None:
        begin, count = time.thread_time_ns(), round(seconds / 0.01)
        for _ in range(count):
            time.sleep(0.01)
        spent = time.thread_time_ns() - begin
        figures.update(us_a_look=spent / count / 1e3, share=spent / 1e9 / seconds)

    thread = threading.Thread(target=wake)
    thread.start()
    thread.join()
    return figures


# ------------------------------------------------------------------------------ throughput


def millisecond(turns: int) -> int:
    """Compute in Python for about 1 ms, always the same."""
    number = 0
    for step in range(turns):
        number += step
    return number


def turns_of_a_millisecond() -> int:
    """Give how often that takes to go round on this machine, at its best."""
    turns = 10_000
    taken = []
    for _ in range(50):
        begin = time.perf_counter()
        millisecond(turns)
        taken.append(time.perf_counter() - begin)
    return round(turns * 0.001 / min(taken))


def throughput(rounds: int, folder: Path) -> dict[str, Any]:
    """Run maps of tasks of 1 ms, by variant."""
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    spent: dict[str, list[float]] = {name: [] for name in VARIANTS}
    work = [turns_of_a_millisecond()] * TASKS
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=":0", memory_limit=0
        ) as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(millisecond, work, pure=False))
        for number in range(rounds):
            for variant in random.Random(number).sample(VARIANTS, len(VARIANTS)):
                plugin = WorkerTaskPlugin(
                    "timed", folder / f"{variant}-{number}", stacks=variant.partition(" ")[0]
                )
                client.register_plugin(plugin)
                (before,) = client.run(time.process_time).values()
                begin = time.perf_counter()
                client.gather(client.map(millisecond, work, pure=False))
                rates[variant].append(TASKS / (time.perf_counter() - begin))
                (after,) = client.run(time.process_time).values()
                spent[variant].append((after - before) / TASKS)
                client.unregister_worker_plugin("timed")
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return {
        name: {
            "tasks_per_s": spread(rates[name]),
            "ratio": spread([a / b for a, b in zip(rates[name], rates["off"], strict=True)]),
            "cpu": spread([a / b for a, b in zip(spent[name], spent["off"], strict=True)]),
        }
        for name in VARIANTS
    }


def spread(values: list[float]) -> dict[str, float]:
    """Give the median and the quartiles of values."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": middle, "low": low, "high": high}


# ------------------------------------------------------------------------------ bytes


def size(folder: Path) -> dict[str, float]:
    """Give the bytes of a sample, its share of the calls counted in, in journal and trace."""
    journals = folder / "weighed"
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=":0", memory_limit=0
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(WorkerTaskPlugin("weighed", journals))
        work = [turns_of_a_millisecond()] * round(WEIGHED_S / 0.001)
        client.gather(client.map(millisecond, work, pure=False))
        client.unregister_worker_plugin("weighed")
    samples = held = 0
    for path in journals.glob("worker-*.journal"):
        contents = read_journal(path)
        samples += len(contents.records[Stream.CALL_SAMPLES])
        held += RECORD_SIZES[Stream.CALL_SAMPLES] * len(contents.records[Stream.CALL_SAMPLES])
        held += RECORD_SIZES[Stream.STACKS] * len(contents.records[Stream.STACKS])
        held += sum(len(text.encode()) + 1 for text in contents.strings.values() if "\x1f" in text)
    merge_journals(journals).write(folder / "sized.h5")
    with h5py.File(folder / "sized.h5") as file:
        stored = sum(
            column.id.get_storage_size()
            for table in ("call_samples", "stacks")
            for column in file[table].values()
        )
        names = [f"frame_{name}s" for name in ("function", "module", "file", "origin")]
        stored += sum(file["dictionaries"][name].id.get_storage_size() for name in names)
    return {"samples": samples, "journal": held / samples, "trace": stored / samples}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only-throughput", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = bare(given.seconds)
        rows = [
            looks(threads, depth, computes, given.seconds, folder)
            for threads in (() if given.only_throughput else (1, 2, 8))
            for depth in (10, 40)
            for computes in (False, True)
        ]
        for row in rows:
            row["us_warm"] = warm(row["threads"], row["depth"], folder)
        figures: dict[str, Any] = {
            "bare": alone,
            "looks": rows,
            "one": max((row["share"] for row in rows if row["threads"] == 1), default=None),
            "throughput": throughput(given.rounds, folder),
        }
        figures["bytes"] = size(folder)
    print(
        f"{'threads':>8}{'deep':>6}  {'':9}{'us a look':>10}{'warm':>8}{'% of a core':>13}{'/s':>7}"
    )
    print(f"{'bare':>8}{'':>17}{alone['us_a_look']:10.1f}{'':8}{100 * alone['share']:13.2f}")
    for row in rows:
        print(
            f"{row['threads']:8}{row['depth']:6}  {'computing' if row['computes'] else 'waiting':9}"
            f"{row['us_a_look']:10.1f}{row['us_warm']:8.1f}{100 * row['share']:13.2f}"
            f"{row['looks_a_second']:7.0f}"
        )
    for label, row in figures["throughput"].items():
        ratio, cpu = row["ratio"], row["cpu"]
        print(
            f"{label:10}{row['tasks_per_s']['median']:8.0f} tasks of 1 ms/s, over off "
            f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]; CPU of the worker "
            f"a task, over off {cpu['median']:.3f} [{cpu['low']:.3f}, {cpu['high']:.3f}]"
        )
    held = figures["bytes"]
    print(
        f"a sample: {held['journal']:.1f} bytes in the journal, {held['trace']:.1f} in the trace "
        f"({held['samples']} samples)"
    )
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
