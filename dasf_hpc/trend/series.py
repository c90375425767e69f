"""Trend, the series: runs of one configuration, repeats together, as points of what is measured."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dasf_hpc.launch.worker_command import file_stem
from dasf_hpc.trend.point import RunPoint

#: A run that begins within so many seconds of the end of one of the same commit repeats it.
REPEATS_S = 3600.0
#: Functions that are looked at: those that take so much of a configuration's time, %, and at most
#: so many.
SHARE, FUNCTIONS = 1.0, 20
#: A function that fewer of the points executed is not looked at.
_OF_POINTS = 0.5


@dataclass(frozen=True)
class Measure:
    """What is measured of a run.

    Attributes
    ----------
    name
        In words.
    unit
        ns, bytes, or empty for a number.
    more, less
        What more and less of it is called.
    """

    name: str
    unit: str
    more: str
    less: str


#: Of a whole run, in the order in which they are shown.
OF_RUN: dict[str, Measure] = {
    "span": Measure("first to last task", "ns", "slower", "faster"),
    "wall": Measure("the script, start to end", "ns", "slower", "faster"),
    "executing": Measure("executing, in sum", "ns", "slower", "faster"),
    "memory": Measure("most memory of a worker", "bytes", "more", "less"),
    "gpu_busy": Measure("GPUs busy", "ns", "more", "less"),
    "failures": Measure("failures", "", "more", "fewer"),
}
#: Of a function.
OF_FUNCTION: dict[str, Measure] = {
    "total": Measure("in sum", "ns", "slower", "faster"),
    "median": Measure("median execution", "ns", "slower", "faster"),
}


@dataclass(frozen=True)
class Point:
    """Runs of one commit that belong together.

    Attributes
    ----------
    revision
        The commit; empty: not known.
    started
        When the first of them began, seconds of the epoch.
    runs
        Oldest first.
    """

    revision: str
    started: float
    runs: tuple[RunPoint, ...]

    @property
    def label(self) -> str:
        """The commit, short, or else the name of the first run."""
        return short(self.revision) or self.runs[0].name


@dataclass(frozen=True)
class Configuration:
    """Runs that can be compared.

    Attributes
    ----------
    script, arguments, hardware
        What they have in common.
    points
        In the order of time.
    """

    script: str
    arguments: str
    hardware: str
    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        """What tells it from others, in words."""
        parts = [self.script or "runs", self.hardware]
        if self.arguments:
            parts.insert(1, f"arguments #{self.arguments}")
        return "; ".join(filter(None, parts))


@dataclass(frozen=True)
class Series:
    """A measure over the points of a configuration.

    Attributes
    ----------
    configuration
        Its position.
    function
        The function; empty: of the whole run.
    measure
        Key in `OF_RUN` or `OF_FUNCTION`.
    at
        Which points have it.
    values
        The median of each of those points.
    runs
        The values of each point's runs.
    """

    configuration: int
    function: str
    measure: str
    at: list[int]
    values: list[float]
    runs: list[list[float]]

    @property
    def about(self) -> Measure:
        """What is measured."""
        return (OF_FUNCTION if self.function else OF_RUN)[self.measure]

    @property
    def name(self) -> str:
        """What is measured, of what."""
        return f"{self.function}: {self.about.name}" if self.function else self.about.name


def short(revision: str) -> str:
    """Shorten a commit as git does."""
    return revision[:9] + "+" * (revision.endswith("+") and len(revision) > 9)


def configurations(points: Sequence[RunPoint]) -> list[Configuration]:
    """Divide runs by script, arguments and hardware; the one with most runs comes first.

    Parameters
    ----------
    points
        Runs, oldest first. One that knows neither folder nor arguments, as those of baselines,
        goes to the others of its name and hardware, if those are alike.
    """
    of: dict[tuple[str, str, str], list[RunPoint]] = {}
    vague: list[RunPoint] = []
    for point in points:
        if point.arguments:
            of.setdefault((point.script, point.arguments, point.hardware), []).append(point)
        else:
            vague.append(point)
    known = list(of)
    for point in vague:
        stem = _stem(point.script)
        alike = [k for k in known if k[2] == point.hardware and stem in ("", _stem(k[0]))]
        key = alike[0] if len(alike) == 1 else (point.script, "", point.hardware)
        of.setdefault(key, []).append(point)
    made = [
        Configuration(*key, tuple(together(sorted(runs, key=lambda r: (r.started, r.name)))))
        for key, runs in of.items()
    ]
    return sorted(made, key=lambda one: -sum(len(p.runs) for p in one.points))


def _stem(script: str) -> str:
    """Give what the name of a run's directory has of its script."""
    last = re.split(r"[/:]", script)[-1]
    return file_stem(last.removesuffix(".py").removesuffix(".ipynb"))[:40]


def together(runs: Sequence[RunPoint]) -> list[Point]:
    """Put repeats into one point.

    Runs of one batch are repeats; so are runs of one commit without changed files that follow each
    other. A commit that is run again when another one was run in between belongs to its first
    place; one that is run again later, with nothing in between, is a point of its own: what changes
    then is not the code.
    """
    made: list[Point] = []
    ends: list[float] = []
    for run in runs:
        place = None
        if run.batch:
            place = next((i for i, p in enumerate(made) if p.runs[0].batch == run.batch), None)
        if place is None and run.revision and not run.revision.endswith("+"):
            same = [i for i, point in enumerate(made) if point.revision == run.revision]
            if same and (same[-1] < len(made) - 1 or run.started - ends[same[-1]] < REPEATS_S):
                place = same[-1]
        if place is None:
            made.append(Point(run.revision, run.started, (run,)))
            ends.append(0.0)
            place = len(made) - 1
        else:
            made[place] = replace(made[place], runs=(*made[place].runs, run))
        ends[place] = run.started + max(0, run.wall, run.span) / 1e9
    return made


def series_of(configuration: Configuration, number: int) -> tuple[list[Series], int]:
    """Give the series of a configuration.

    Parameters
    ----------
    configuration
        The configuration.
    number
        Its position.

    Returns
    -------
    series, left_out
        Those of the whole run first, then those of functions, the longest first; and how many
        functions were left out, for they take too little or are too seldom there.
    """
    found = [_series(configuration, number, "", measure, _of_run(measure)) for measure in OF_RUN]
    points = configuration.points
    weights: dict[str, list[float]] = {}
    for point in points:
        for run in point.runs:
            for name, figures in run.functions.items():
                if run.executing > 0:
                    share = figures.total / run.executing / len(point.runs)
                    weights.setdefault(name, []).append(share)
    shares = {name: sum(given) / len(points) for name, given in weights.items()}
    names = sorted(shares, key=lambda name: -shares[name])
    chosen = [name for name in names[:FUNCTIONS] if 100 * shares[name] >= SHARE]
    taken = 0
    for name in chosen:
        of_function = [
            _series(configuration, number, name, measure, _of_function(name, measure))
            for measure in OF_FUNCTION
        ]
        if len(of_function[0].at) >= _OF_POINTS * len(points):
            found += of_function
            taken += 1
    return [series for series in found if series.at], len(names) - taken


def _of_run(measure: str) -> Callable[[RunPoint], int]:
    if measure == "failures":
        return lambda run: run.failures
    return lambda run: -1 if run.partial else int(getattr(run, measure))


def _of_function(name: str, measure: str) -> Callable[[RunPoint], int]:
    def value(run: RunPoint) -> int:
        figures = run.functions.get(name)
        return -1 if figures is None or run.partial else int(getattr(figures, measure))

    return value


def _series(
    configuration: Configuration,
    number: int,
    function: str,
    measure: str,
    value: Callable[[RunPoint], int],
) -> Series:
    at, values, runs = [], [], []
    for position, point in enumerate(configuration.points):
        known = [float(v) for v in map(value, point.runs) if v >= 0]
        if known:
            at.append(position)
            values.append(float(np.median(known)))
            runs.append(known)
    if measure == "failures" and not any(values):
        at = []
    if not all(map(math.isfinite, values)):  # point_of reads none
        at = []
    return Series(number, function, measure, at, values, runs)
