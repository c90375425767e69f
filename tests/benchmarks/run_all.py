"""All benchmarks, each in a process of its own, and one table of their figures.

    python tests/benchmarks/run_all.py [--quick] [--only merge_speed ...] [--json FILE]

A benchmark that cannot run here is left out, and the table says why. What a figure means stands at
the head of its script. ``--quick`` takes minutes rather than an hour, for figures that say less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

#: A benchmark that takes longer hangs, seconds.
TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Figure:
    """A figure of a benchmark and the goal for it.

    Attributes
    ----------
    name, unit
        What it is.
    path
        Where it stands in the benchmark's JSON: names, and positions in lists, between dots. A
        ``*`` stands for every element: the worst of them counts, the others are the spread.
    goal
        The largest value that is good enough, or with `least` the smallest; None: there is none.
    scale
        The value is multiplied by this.
    low, high
        Where the ends of the figure's spread stand.
    """

    name: str
    unit: str
    path: str
    goal: float | None = None
    least: bool = False
    scale: float = 1.0
    low: str = ""
    high: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A script, its words (others for ``--quick``), the programs it needs, and its figures.

    A script that is not there is left out. ``to_stdout`` is for one whose ``--json`` takes no file.
    """

    script: str
    figures: tuple[Figure, ...]
    words: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    to_stdout: bool = False


BENCHMARKS = (
    Benchmark(
        "recording_task.py",
        tuple(
            Figure(
                f"{arm}, {shape}: CPU a task, cold caches",
                "us",
                f"{shape}.{arm}.us",
                goal,
                low=f"{shape}.{arm}.low",
                high=f"{shape}.{arm}.high",
            )
            for shape in ("map", "tree", "array")
            for arm, goal in (
                ("bare again", None),
                ("empty plugin", None),
                ("task plugin", None),
                ("all three", 10),
            )
        ),
        quick=("--tasks", "300"),
    ),
    Benchmark(
        "recording_stacks.py",
        (
            Figure("sampling calls of one thread, at most", "% of a core", "one", 1, scale=100),
            Figure(
                "throughput of tasks of 1 ms with sampled calls, over without",
                "",
                "throughput.dask.ratio.median",
                0.985,
                least=True,
                low="throughput.dask.ratio.low",
                high="throughput.dask.ratio.high",
            ),
            Figure(
                "the same, without over without",
                "",
                "throughput.off again.ratio.median",
                low="throughput.off again.ratio.low",
                high="throughput.off again.ratio.high",
            ),
            Figure(
                "CPU of the worker a task of 1 ms with sampled calls, over without",
                "",
                "throughput.dask.cpu.median",
                low="throughput.dask.cpu.low",
                high="throughput.dask.cpu.high",
            ),
            Figure("a sample of calls in the journal", "bytes", "bytes.journal"),
            Figure("a sample of calls in the trace", "bytes", "bytes.trace"),
        ),
        quick=("--rounds", "3", "--seconds", "1"),
    ),
    Benchmark(
        "recording_kernels.py",
        tuple(
            Figure(
                f"tasks of {size} CUDA kernels, {what} over bare",
                "",
                f"{size}.{name}.ratio.median",
                low=f"{size}.{name}.ratio.low",
                high=f"{size}.{name}.ratio.high",
            )
            for size in ("small", "large")
            for what, name in (
                ("plugins and nsys", "all three and nsys"),
                ("plugins", "all three"),
                ("bare", "bare again"),
            )
        ),
        quick=("--rounds", "3"),
        needs=("nsys", "gpu"),
    ),
    Benchmark(
        "recording_sampler.py",
        (
            Figure("node sampler at 100 ms", "% of a core", "cpu_percent_of_a_core", 1),
            Figure("its cadence, p99, while tasks hold the GIL", "ms", "gap_p99_ms", 150),
        ),
        quick=("--seconds", "4"),
    ),
    Benchmark(
        "recording_size.py",
        (Figure("journal", "bytes/task", "*.bytes_per_task", 150),),
        quick=("--tasks", "3000"),
    ),
    Benchmark(
        "merge_size.py",
        (Figure("trace.h5, all tables of a task", "bytes/task", "bytes_a_task", 45),),
        quick=("--tasks", "3000"),
    ),
    Benchmark(
        "merge_speed.py",
        (
            Figure(
                "merge of 64 journals x 100,000 tasks",
                "million events/s",
                "1.events_per_s",
                1,
                least=True,
                scale=1e-6,
            ),
            Figure("the same over reading and writing its bytes", "x", "1.over_copy", 2),
            Figure("memory of a merge, 1 to 75 million events", "MiB", "*.peak_mib", 512),
        ),
        words=("--sizes", "1", "75"),
        quick=("--sizes", "1", "5"),
    ),
    Benchmark(
        "merge_open.py",
        (Figure("open, one column of a 60th of 75 million events", "s", "*.s", 1),),
        words=("--events", "75"),
        quick=("--events", "5"),
    ),
    Benchmark(
        "join_speed.py",
        (
            Figure("merge and join of a report of 10 million kernels", "s", "-1.join_s"),
            Figure("its memory", "MiB", "*.peak_mib", 512),
        ),
        quick=("--sizes", "1"),
    ),
    Benchmark(
        "end_of_run.py",
        (
            Figure(
                "a run's end without report.html, 1 million tasks, 8 reports",
                "s",
                "0 kernels a task.merge_s",
                15,
            ),
            Figure("the same, CPU time", "s", "0 kernels a task.merge_cpu_s"),
            Figure("the same and report.html", "s", "0 kernels a task.wall_s", 15),
            Figure("with 2 million kernels, and report.html", "s", "2 kernels a task.wall_s", 15),
        ),
        quick=("--tasks", "0.02"),
    ),
    Benchmark(
        "analysis_speed.py",
        (
            Figure("slowest analysis of 10 million tasks", "s", "*.wall_s"),
            Figure("largest memory of one", "MiB", "*.peak_mib"),
        ),
        quick=("--tasks", "0.2"),
    ),
    Benchmark(
        "show_size.py",
        (
            Figure("report.html of 10 million tasks", "MB", "results.0.mb", 10),
            Figure("CPU time to write it", "s", "results.0.cpu_s"),
        ),
        words=("--tasks", "10", "--what", "report"),
        quick=("--tasks", "0.2", "--what", "report"),
    ),
    Benchmark(
        "timeline_zoom.py",
        (
            Figure("a zoom step in the timeline of a million tasks, p95", "ms", "p95_ms", 16),
            Figure("its median", "ms", "median_ms"),
            Figure("page of that timeline", "MB", "mb", 12),
            Figure("until it is drawn", "s", "load_s", 3),
        ),
        quick=("--tasks", "0.05"),
        needs=("browser",),
    ),
    Benchmark(
        "perfetto_load.py",
        (
            Figure("Perfetto file of a million tasks", "MB", "0.mb", 84),
            Figure("until Perfetto's page shows it", "s", "0.load_s", 17),
        ),
        quick=("--tasks", "0.05"),
        needs=("browser",),
    ),
    Benchmark(
        "clock_error.py",
        (
            Figure("error of a task's time on another host, p99", "us", "error_us.p99"),
            Figure("times that are off by more than their bound says", "", "above_bound", 0),
        ),
        quick=("--seconds", "5"),
        needs=("slurm",),
        to_stdout=True,
    ),
    Benchmark(
        "submit_overhead.py",
        (Figure("submit over plain dask-jobqueue, wall time", "x", "medians.ratio"),),
        quick=("--pairs", "1"),
        needs=("slurm", "nsys"),
    ),
    Benchmark(
        "trend_alarms.py",
        (
            Figure("series said to change that never do", "%", "alarms.*.alarms", 5, scale=100),
            Figure(
                "steps of 10 % in noise of 3 % found within 2 points",
                "%",
                "middle.*.within",
                95,
                least=True,
                scale=100,
            ),
        ),
        quick=("--series", "200"),
    ),
)


@dataclass
class Row:
    """A line of the table; ``met`` is None where there is no goal or no figure."""

    script: str
    figure: str
    unit: str = ""
    goal: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    met: bool | None = None
    skipped: str = ""


def values_at(found: Any, path: str) -> list[float]:
    """Give what stands at a path in a benchmark's JSON.

    Raises
    ------
    KeyError
        If there is nothing.
    """
    here = [found]
    rest = path
    while rest:
        step, _, rest = rest.partition(".")
        try:
            if step == "*":
                here = [v for one in here for v in (one.values() if isinstance(one, dict) else one)]
            else:
                here = [one[int(step)] if isinstance(one, list) else one[step] for one in here]
        except (LookupError, TypeError, ValueError):
            raise KeyError(path) from None
    return [float(value) for value in here]


def row_of(script: str, figure: Figure, found: Any) -> Row:
    """Give a figure's line."""
    row = Row(script, figure.name, figure.unit)
    if figure.goal is not None:
        row.goal = f"{'≥' if figure.least else '≤'} {figure.goal:g}"
    try:
        values = [value * figure.scale for value in values_at(found, figure.path)]
        row.value = min(values) if figure.least else max(values)
        if len(values) > 1:
            row.low, row.high = min(values), max(values)
        elif figure.low:
            (row.low,), (row.high,) = (
                [value * figure.scale for value in values_at(found, path)]
                for path in (figure.low, figure.high)
            )
    except (KeyError, ValueError) as error:
        row.skipped = f"its JSON has no {error}"
        return row
    if figure.goal is not None:
        row.met = row.value >= figure.goal if figure.least else row.value <= figure.goal
    return row


def why_not_here(benchmark: Benchmark) -> str:
    """Say what keeps a benchmark from running here, in a word or none."""
    if not (HERE / benchmark.script).exists():
        return "there is no such script"
    for program in benchmark.needs:
        if program == "slurm":
            from testbed import slurm

            reason = slurm.why_not_here()
            if reason:
                return f"SLURM: {reason}"
        elif program == "gpu":
            from conftest import why_no_gpu

            if no_gpu := why_no_gpu():
                return no_gpu
        elif shutil.which(program) is None:
            return f"{program} is not installed"
    return ""


def run(benchmark: Benchmark, quick: bool) -> list[Row]:
    """Run a benchmark and give its lines."""

    def skipped(reason: str) -> list[Row]:
        return [
            Row(benchmark.script, figure.name, figure.unit, skipped=reason)
            for figure in benchmark.figures
        ]

    reason = why_not_here(benchmark)
    if reason:
        return skipped(reason)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "figures.json"
        words = [*(benchmark.quick if quick else benchmark.words), "--json"]
        if not benchmark.to_stdout:
            words.append(str(result))
        try:
            done = subprocess.run(
                [sys.executable, str(HERE / benchmark.script), *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return skipped(f"it did not end in {TIMEOUT_S:g} s")
        try:
            found = json.loads(done.stdout if benchmark.to_stdout else result.read_text())
        except (OSError, ValueError):
            last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
            return skipped(f"it failed ({done.returncode}): {last}")
    return [row_of(benchmark.script, figure, found) for figure in benchmark.figures]


def machine() -> str:
    """Name this machine."""
    model = platform.processor() or platform.machine()
    with Path("/proc/cpuinfo").open() as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().total / 2**30
    return f"{names[0] if names else model}, {cores} cores, {memory:.0f} GiB"


def number(value: float | None) -> str:
    """Write a number with three digits that count."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def show(console: Console, rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False)
    for name in ("figure", "goal", "measured", "spread", "met?"):
        table.add_column(name, no_wrap=name != "figure")
    for row in rows:
        if row.skipped:
            table.add_row(row.figure, row.goal, f"left out: {row.skipped}")
            continue
        spread = "" if row.low is None else f"[{number(row.low)} to {number(row.high)}]"
        met = {True: "yes", False: "no", None: ""}[row.met]
        table.add_row(
            row.figure, row.goal, f"{number(row.value)} {row.unit}", spread.replace("[", r"\["), met
        )
    console.print(table)


def main() -> int:
    """Run them and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--only", nargs="+", choices=[b.script.removesuffix(".py") for b in BENCHMARKS], default=[]
    )
    parser.add_argument("--json", type=Path, help="write the table to a file")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(f"{machine()}; Python {platform.python_version()}", highlight=False)
    rows: list[Row] = []
    for benchmark in BENCHMARKS:
        if given.only and benchmark.script.removesuffix(".py") not in given.only:
            continue
        begun = time.monotonic()
        rows += run(benchmark, given.quick)
        print(f"{benchmark.script} took {time.monotonic() - begun:.0f} s", file=sys.stderr)
    if given.quick:
        console.print("Quick: shorter and smaller than the figures' names say.")
    show(console, rows)
    if given.json:
        found = {"machine": machine(), "quick": given.quick, "rows": [asdict(row) for row in rows]}
        given.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
