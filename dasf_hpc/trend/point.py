"""Trend, one run: the few figures that are kept of it, small enough to keep them of every run."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from dasf_hpc.analysis.compare import RunMeasures, measure
from dasf_hpc.analysis.executions import group_quantiles, read_executions
from dasf_hpc.trace.open import Trace

#: Functions that are kept of a run, those with the longest time.
FUNCTIONS = 60
#: Characters of a function's name that are kept.
NAME = 120
#: Hexadecimal digits of the arguments' digest: enough to tell configurations apart, too few to
#: make sure of a guess.
DIGITS = 6

_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d)-(\d\d)-(\d\d)-(.*)-[0-9a-f]{4}")


@dataclass(frozen=True)
class FunctionFigures:
    """Of a function: executions, their time in sum and their median, ns; -1: not known."""

    count: int
    total: int
    median: int


@dataclass(frozen=True)
class RunPoint:
    """What is kept of a run; times in ns, -1 where something is not known.

    Nothing of it is private: no environment, no argument, no host.

    Attributes
    ----------
    name
        The run's directory.
    started
        Seconds of the epoch.
    script
        The script's path in its repository; elsewhere its name and that of its folder.
    arguments
        The first digits of a digest of the arguments; empty: not known.
    revision
        The commit, with ``+`` where files differed from it; empty: not known.
    batch
        What made it together with its repeats, such as one `ci`; empty: nothing did.
    hardware, software
        As of `dasf_hpc.analysis.compare.RunMeasures`.
    partial
        Why its times do not count; empty: they do.
    span
        From the start of the first task to the end of the last one.
    wall
        How long the script ran.
    executing
        The time of all executions in sum.
    memory
        Most resident memory of a worker process, bytes.
    gpu_busy
        The time in which GPUs were busy, in sum.
    failures
        Executions that failed or were lost.
    functions
        By name.
    """

    name: str
    started: float
    script: str = ""
    arguments: str = ""
    revision: str = ""
    batch: str = ""
    hardware: str = ""
    software: str = ""
    partial: list[str] = field(default_factory=list)
    span: int = -1
    wall: int = -1
    executing: int = -1
    memory: int = -1
    gpu_busy: int = -1
    failures: int = -1
    functions: dict[str, FunctionFigures] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Give it as what JSON can hold; what is not known is left out."""
        left_out: tuple[object, ...] = (-1, "", [], {})
        found = {name: value for name, value in asdict(self).items() if value not in left_out}
        if self.functions:
            found["functions"] = {
                name: [one.count, one.total, one.median] for name, one in self.functions.items()
            }
        return found


def point_of(document: Mapping[str, Any]) -> RunPoint:
    """Read what `RunPoint.document` gives; entries that are not known are ignored.

    Raises
    ------
    ValueError
        If it is not one.
    """
    values: dict[str, Any] = {}
    try:
        document = {"name": "", **document}
        for one in fields(RunPoint):
            if one.name not in document:
                continue
            value = document[one.name]
            if one.name == "functions":
                value = {
                    str(name): FunctionFigures(*map(_whole, figures))
                    for name, figures in dict(value).items()
                }
            elif one.name == "partial":
                value = [str(reason) for reason in list(value)]
            elif one.name == "started":
                value = float(value)
                if not 0 <= value < 1e11:
                    raise ValueError(f"it began at {value}")
            elif one.type == "int":
                value = _whole(value)
            else:
                value = str(value)
            values[one.name] = value
        return RunPoint(**values)
    except (TypeError, OverflowError, AttributeError) as error:
        raise ValueError(str(error)) from None


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value < 2**63:
        raise ValueError(f"{value!r} is no figure")
    return int(value)


def measured(trace: Trace) -> RunPoint:
    """Measure a trace; what only the run's manifest knows is left out.

    Raises
    ------
    TraceError
        If the trace is damaged.
    """
    found = measure(trace)
    runs = read_executions(trace, ("prefix", "state"))
    width = max(1, len(runs.functions))
    medians = group_quantiles(runs.function, runs.duration, width, (0.5,))[:, 0]
    middle = dict(zip(runs.functions, medians.tolist(), strict=False))
    longest = sorted(found.functions, key=lambda name: -found.functions[name][1])[:FUNCTIONS]
    busy = trace.gpus["busy"].to_numpy(np.int64)
    return RunPoint(
        name="",
        started=max(0.0, int(trace.attributes.get("origin_utc_ns", 0)) / 1e9),
        hardware=found.hardware,
        software=found.software,
        partial=found.partial,
        span=found.duration,
        executing=sum(total for _, total in found.functions.values()),
        memory=_most_memory(trace),
        gpu_busy=int(busy[busy >= 0].sum()) if (busy > 0).any() else -1,
        failures=int(runs.in_state("error", "lost").sum()),
        functions={
            name[:NAME]: FunctionFigures(*found.functions[name], int(middle[name]))
            for name in longest
        },
    )


def _most_memory(trace: Trace) -> int:
    most = -1
    if trace.rows("process_samples"):
        for piece in trace.pieces("process_samples", ["memory"]):
            most = max(most, int(piece["memory"].max()))
    return most


def of_manifest(manifest: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Give what a run's manifest knows of it, as arguments of `RunPoint`."""
    job = str(manifest.get("job") or "")
    found: dict[str, Any] = {"name": directory.name, "script": script_of(job)}
    started = manifest.get("started")
    if isinstance(started, int | float) and started > 0:
        found["started"] = float(started)
    given = manifest.get("arguments")
    if isinstance(given, list):
        digest = sha256(json.dumps(given, default=str).encode()).hexdigest()
        found["arguments"] = digest[:DIGITS]
    found["revision"] = str(manifest.get("git_revision") or "")
    ends = manifest.get("job_started"), manifest.get("job_ended")
    if all(isinstance(end, int | float) for end in ends):
        found["wall"] = max(0, int((ends[1] - ends[0]) * 1e9))  # type: ignore[operator]
    return found


def script_of(job: str) -> str:
    """Name a job so that it has the same name in another checkout."""
    path = Path(job)
    if not job or ":" in job or not path.is_absolute():  # a module, an example
        return job
    try:
        top = subprocess.run(
            ["git", "rev-parse", "--show-toplevel"],
            cwd=path.parent, capture_output=True, text=True, timeout=10, check=True,
            stdin=subprocess.DEVNULL,
        ).stdout.strip()  # fmt: skip
        return str(path.resolve().relative_to(Path(top).resolve()))
    except (OSError, subprocess.SubprocessError, ValueError):
        return "/".join(path.parts[-2:])


def of_measures(found: RunMeasures, batch: str) -> RunPoint:
    """Take a run from a baseline, which knows neither commit nor arguments.

    The time and the script stand in the name of the run's directory, if it still has it.
    """
    named = _STAMP.fullmatch(found.name)
    started = 0.0
    if named:
        from datetime import datetime

        day, hours, minutes, seconds, _ = named.groups()
        started = datetime.fromisoformat(f"{day}T{hours}:{minutes}:{seconds}").timestamp()
    return RunPoint(
        name=found.name,
        started=started,
        script=named.group(5) if named else "",
        batch=batch,
        hardware=found.hardware,
        software=found.software,
        partial=found.partial,
        span=found.duration,
        executing=sum(total for _, total in found.functions.values()),
        functions={
            name[:NAME]: FunctionFigures(count, total, -1)
            for name, (count, total) in found.functions.items()
        },
    )
