"""Scaling, what is measured of a run: its size, its time, its efficiencies, its functions' time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dasf_hpc.analysis.compare import measure
from dasf_hpc.analysis.efficiencies import factors
from dasf_hpc.analysis.executions import Executions, group_sums, read_executions, workers
from dasf_hpc.manifest import Manifest
from dasf_hpc.steps import Step, Told
from dasf_hpc.trace.open import Trace, open_trace

#: POP's factors of a run, as `dasf_hpc.analysis.efficiencies.Factors` has them.
FACTORS = (
    "parallel_efficiency",
    "load_balance",
    "communication_efficiency",
    "serialisation",
    "transfer",
)
#: What a scale may be counted in.
BY = ("nodes", "workers", "threads", "gpus")


@dataclass(frozen=True)
class FunctionTime:
    """What a function took in a run.

    Attributes
    ----------
    count
        Executions.
    executing
        Their time in sum, ns.
    wall
        Time in which one of them executed at least, ns.
    """

    count: int
    executing: int
    wall: int


@dataclass(frozen=True)
class RunMeasure:
    """What is measured of a run.

    Attributes
    ----------
    name
        The run's directory, or the trace's file.
    path
        Where it is.
    scale
        How many `by` says, nodes or workers say, that it ran on.
    nodes, workers, threads, gpus
        How many took part; threads are those that run tasks.
    time
        From the first task's start to the last one's end, ns.
    useful
        Time in which tasks executed, in sum over the threads, ns.
    factors
        By name (`FACTORS`), from 0 to 1; NaN: not known.
    functions
        By name.
    job
        Script and arguments, to be compared and not to be shown: they may hold what is private.
        Empty where not known, and of a study's runs.
    script
        The script's name alone; empty where not known.
    partial
        Why its recording is not whole; empty: it is.
    failed
        Why its time says nothing; empty: it does.
    """

    name: str
    path: Path
    scale: int
    nodes: int
    workers: int
    threads: int
    gpus: int
    time: int
    useful: int
    factors: dict[str, float]
    functions: dict[str, FunctionTime]
    job: str = ""
    script: str = ""
    partial: list[str] = field(default_factory=list)
    failed: str = ""


def measure_run(path: Path, by: str = "nodes", scale: int | None = None) -> RunMeasure:
    """Measure a run.

    Parameters
    ----------
    path
        Its directory, or its trace.
    by
        What its scale is counted in (`BY`).
    scale
        Its scale, where that is known beforehand.

    Raises
    ------
    TraceFileError
        If there is no trace, or it cannot be read.
    """
    with open_trace(path) as trace:
        return _measured(trace, path, by, scale)


def _measured(trace: Trace, path: Path, by: str, scale: int | None) -> RunMeasure:
    runs = read_executions(trace, ("prefix", "state", "thread"))
    found = workers(trace, runs)
    manifest = Manifest(trace.path.parent).content
    shape = manifest.get("shape", {}).get("nodes")
    nodes = len(set(found["node_row"]))
    if isinstance(shape, int):  # of node jobs on one machine its trace knows one host
        nodes = max(nodes, shape)
    known = factors(trace)
    sizes = {
        "nodes": nodes,
        "workers": len(found),
        "threads": int(found["threads"].sum()),
        "gpus": len({gpu for of in found["gpus"] for gpu in of}),
    }
    exit_code = manifest.get("exit_code")
    failed = "" if len(runs) else "no task was executed"
    if isinstance(exit_code, int) and exit_code:
        failed = f"it ended with the code {exit_code}"
    elif not sizes[by] and scale is None:
        failed = f"it has no {by}"
    job = ""
    if scale is None:  # a study's runs have the arguments of its plan
        job = " ".join([str(manifest.get("job", "")), *map(str, manifest.get("arguments", []))])
    return RunMeasure(
        name=path.name if path.is_dir() else trace.path.parent.name,
        path=path,
        scale=sizes[by] if scale is None else scale,
        **sizes,
        time=known.duration if len(runs) else 0,
        useful=known.useful,
        factors={name: float(getattr(known, name)) for name in FACTORS},
        functions=_functions(runs),
        job=job.strip(),
        script=Path(str(manifest.get("job", ""))).name,
        partial=measure(trace).partial if len(runs) else [],
        failed=failed,
    )


def _functions(runs: Executions) -> dict[str, FunctionTime]:
    width = max(1, len(runs.functions))
    count = np.bincount(runs.function, minlength=width)
    total = group_sums(runs.function, runs.duration, width)
    order = np.lexsort((runs.start, runs.function))
    ends = np.cumsum(count)
    found = {}
    for code, name in enumerate(runs.functions):
        if not count[code]:
            continue
        rows = order[ends[code] - count[code] : ends[code]]
        start, stop = runs.start[rows], np.maximum.accumulate(runs.stop[rows])
        # what each adds to those before it
        before = np.concatenate([start[:1], stop[:-1]])
        wall = int(np.maximum(stop - np.maximum(start, before), 0).sum())
        found[name] = FunctionTime(int(count[code]), int(total[code]), wall)
    return found


def measure_runs(
    paths: Sequence[tuple[Path, int | None]], by: str, told: Told = lambda step: None
) -> list[RunMeasure]:
    """Measure several runs.

    Parameters
    ----------
    paths
        Of each run, and its scale where that is known beforehand.
    by
        What scales are counted in (`BY`).
    told
        Called with the progress.

    Raises
    ------
    TraceFileError
        If one has no trace, or it cannot be read.
    """
    measured = []
    for number, (path, scale) in enumerate(paths):
        told(Step("Reading the runs", number, len(paths)))
        measured.append(measure_run(path, by, scale))
    return measured
