"""Trend, the answer: which series changed, from what to what, since when, and if still so."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from dasf_hpc.steps import Step, Told
from dasf_hpc.trend.changepoints import LEAST, LEVEL, Looked, changes, discoveries, look
from dasf_hpc.trend.commits import commits_between
from dasf_hpc.trend.gather import Gathered
from dasf_hpc.trend.series import Configuration, Point, Series, configurations, series_of, short

#: Changes that are smaller are not told: of a series' level, %, and of times in sum, s.
RELATIVE, ABSOLUTE = 2.0, 0.1
#: What an interval that is told holds.
CONFIDENCE = 0.95
#: A change of which so much is left is still so.
STILL = 0.5
#: Autocorrelation from which on it is said: the chances rest on its estimate.
CORRELATED = 0.3
#: So many points off is where a change is said to be, at most, in 95 of 100 (measured).
WITHIN = 2
#: Of the last so many points a change counts for `--fail-on-change`.
RECENT = 20


@dataclass(frozen=True)
class Level:
    """A level between two changes: the median of its points and an interval; NaN: not known."""

    median: float
    low: float
    high: float
    points: int


@dataclass(frozen=True)
class Change:
    """A series whose level changed.

    Attributes
    ----------
    series
        Its position in `Trend.series`.
    at
        The first point after it, its position among the points of the configuration.
    before, after
        The levels.
    percent
        The relative change, %; NaN: from nothing.
    direction
        What it became, in a word.
    worse
        Whether it took longer, or failed more often.
    last_before, first_after
        Names of the runs between which it began.
    commit_before, commit_after
        Their commits; empty: not known.
    commits
        What lies between them, a line each, where a repository is at hand.
    software
        How the software changed, or empty.
    latest
        The latest level.
    still
        Whether it is still so.
    function, contribution
        Of the run's times: the function that contributed most, and its part of what executing took
        more or less, %; NaN: not known.
    report_before, report_after
        Reports of those runs; empty: there is none.
    """

    series: int
    at: int
    before: Level
    after: Level
    percent: float
    direction: str
    worse: bool
    last_before: str
    first_after: str
    commit_before: str
    commit_after: str
    commits: list[str]
    software: str
    latest: float
    still: bool
    function: str
    contribution: float
    report_before: str
    report_after: str

    @property
    def range(self) -> str:
        """The commits between which it began, or the runs where those are not known."""
        if self.commit_before and self.commit_before == self.commit_after:
            return f"at {short(self.commit_after)}, the same commit before and after"
        ends = (
            short(self.commit_before) or self.last_before,
            short(self.commit_after) or self.first_after,
        )
        return " .. ".join(ends)


@dataclass(frozen=True)
class Trend:
    """What came out.

    Attributes
    ----------
    sentence
        In a sentence.
    configurations
        What runs were compared.
    series, looked
        What was looked at, and how sure it is that it changed.
    changes
        Of whole runs first; in each the latest first.
    level
        The share of false ones among the series said to change, %.
    notes
        What else is to know.
    skipped
        Runs that were left out, and why.
    """

    sentence: str
    configurations: list[Configuration]
    series: list[Series]
    looked: list[Looked]
    changes: list[Change]
    level: float
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Give it as what JSON can hold: of functions only their series."""
        found = asdict(self)
        for number, one in enumerate(self.configurations):
            found["configurations"][number] = {
                "name": one.name,
                "script": one.script,
                "arguments": one.arguments,
                "hardware": one.hardware,
                "points": [
                    {
                        "label": point.label,
                        "revision": point.revision,
                        "started": point.started,
                        "runs": [run.name for run in point.runs],
                        "not_whole": [run.name for run in point.runs if run.partial],
                    }
                    for point in one.points
                ],
            }
        for described, series in zip(found["series"], self.series, strict=True):
            described |= {"name": series.name, "unit": series.about.unit}
        for described, change in zip(found["changes"], self.changes, strict=True):
            described |= {"name": self.series[change.series].name, "range": change.range}
        answer: dict[str, Any] = _without_nan(found)
        return answer


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def trend(
    gathered: Gathered,
    level: float = LEVEL,
    relative: float = RELATIVE,
    absolute: float = ABSOLUTE,
    told: Told = lambda step: None,
) -> Trend:
    """Find where series of runs change.

    Parameters
    ----------
    gathered
        The runs.
    level
        The share of false ones among the series said to change; of a series alone the chance that
        it is said to though it never does.
    relative
        A smaller change than this is not told, %.
    absolute
        A smaller change of a time in sum than this is not told, s.
    told
        Called with the progress.
    """
    those = configurations(gathered.points)
    series: list[Series] = []
    notes = []
    for number, one in enumerate(those):
        made, left_out = series_of(one, number)
        series += made
        if left_out and len(one.points) >= LEAST:
            notes.append(
                f"{one.script or 'runs'}: {left_out} functions that take less than 1 % or are not "
                "among the 20 longest were not looked at."
            )
    looked = []
    for number, one_series in enumerate(series):
        told(Step(f"Looking for changes: {one_series.name}", number, len(series)))
        if len(one_series.at) < LEAST:
            looked.append(Looked(math.nan, math.nan))
        else:
            looked.append(look(one_series.values))
    chances = [one.p for one in looked if not math.isnan(one.p)]
    allowed = discoveries(chances, level) if chances else 0.0
    found: list[Change] = []
    for number, (one_series, seen) in enumerate(zip(series, looked, strict=True)):
        if not math.isnan(seen.p) and seen.p <= allowed:
            told(Step(f"Placing changes: {one_series.name}", number, len(series)))
            least = absolute * 1e9 if one_series.about.unit == "ns" else 0.0
            if one_series.measure == "median":
                least = 0.0
            at = _large(one_series, changes(one_series.values, allowed), relative, least)
            points = those[one_series.configuration].points
            found += [
                _change(number, series, points, at, which, gathered) for which in range(len(at))
            ]
    order = {name: n for n, name in enumerate(("span", "wall", "executing"))}
    found.sort(
        key=lambda c: (
            bool(series[c.series].function),
            order.get(series[c.series].measure, 3),
            -c.at,
            c.series,
        )
    )
    notes += _notes(those, series, looked, level)
    return Trend(
        sentence=_sentence(those, series, looked, found),
        configurations=those,
        series=series,
        looked=looked,
        changes=found,
        level=100 * level,
        notes=notes,
        skipped=gathered.skipped,
    )


def fails(found: Trend, recent: int = RECENT) -> list[Change]:
    """Give the changes for the worse that are still so and began within the last so many points.

    Parameters
    ----------
    found
        The trend.
    recent
        So many; 0: all.
    """
    return [
        change
        for change in found.changes
        if change.worse and change.still and (not recent or _age(found, change) <= recent)
    ]


def places(series: Sequence[Series], found: Sequence[Change]) -> list[list[Change]]:
    """Put changes together that began at the same place, as far as that is known.

    Parameters
    ----------
    series
        All series.
    found
        The changes, those of whole runs first: the first one of a place leads.

    Returns
    -------
    list of list of Change
        What is worse and still so first, the latest first.
    """
    made: list[list[Change]] = []
    for change in found:
        which = series[change.series].configuration
        for one in made:
            alike = series[one[0].series].configuration == which
            if alike and abs(one[0].at - change.at) <= WITHIN:
                one.append(change)
                break
        else:
            made.append([change])
    return sorted(made, key=lambda one: (not any(c.worse and c.still for c in one), -one[0].at))


def _age(found: Trend, change: Change) -> int:
    """Give how many points there are since a change."""
    which = found.series[change.series].configuration
    return len(found.configurations[which].points) - change.at


# ---------------------------------------------------------------------------------- a change


def _large(series: Series, at: list[int], relative: float, least: float) -> list[int]:
    """Take away changes that are smaller than what is told, the smallest first."""
    kept = list(at)
    while kept:
        levels = [_level(series, *ends).median for ends in _parts(series, kept)]
        sizes = [abs(after - before) for before, after in itertools.pairwise(levels)]
        small = [
            size < max(least, relative / 100 * before)
            for size, before in zip(sizes, levels, strict=False)
        ]
        if not any(small):
            break
        smallest = min(np.flatnonzero(small).tolist(), key=lambda n: sizes[n])
        del kept[smallest]
    return kept


def _parts(series: Series, at: Sequence[int]) -> list[tuple[int, int]]:
    ends = [0, *at, len(series.values)]
    return list(itertools.pairwise(ends))


def _level(series: Series, first: int, last: int) -> Level:
    """Give the median of some points, with the interval that order statistics give.

    Notes
    -----
    Between the k-th smallest and the k-th largest of n values lies the median of what they are
    drawn from with a chance of 1 - 2 P(B < k), B binomial of n and 1/2, whatever the distribution
    (W. Thompson, Annals of Mathematical Statistics 1936).
    """
    values = sorted(series.values[first:last])
    count = len(values)
    rank = int(binom.ppf((1 - CONFIDENCE) / 2, count, 0.5))
    low = high = math.nan
    if rank >= 1 and 2 * binom.cdf(rank - 1, count, 0.5) <= 1 - CONFIDENCE:
        low, high = values[rank - 1], values[count - rank]
    return Level(float(np.median(values)), low, high, count)


def _change(
    number: int,
    all_series: Sequence[Series],
    points: Sequence[Point],
    at: Sequence[int],
    which: int,
    gathered: Gathered,
) -> Change:
    series = all_series[number]
    parts = _parts(series, at)
    before, after = (_level(series, *parts[which + i]) for i in (0, 1))
    latest = _level(series, *parts[-1]).median
    percent = 100 * (after.median / before.median - 1) if before.median else math.nan
    step = after.median - before.median
    left, right = points[series.at[at[which] - 1]], points[series.at[at[which]]]
    about = series.about
    worse = step > 0 and (about.more == "slower" or series.measure in ("failures", "memory"))
    function, contribution = "", math.nan
    if not series.function and about.more == "slower":
        spans = [(series.at[a], series.at[b - 1] + 1) for a, b in parts[which : which + 2]]
        function, contribution = _explained(all_series, series.configuration, *spans)
    last_before, first_after = left.runs[-1].name, right.runs[0].name
    folders = [
        gathered.jobs[name].parent for name in (first_after, last_before) if name in gathered.jobs
    ]
    return Change(
        series=number,
        at=series.at[at[which]],
        before=before,
        after=after,
        percent=percent,
        direction=about.more if step > 0 else about.less,
        worse=worse,
        last_before=last_before,
        first_after=first_after,
        commit_before=left.revision,
        commit_after=right.revision,
        commits=commits_between([*folders, Path.cwd()], left.revision, right.revision),
        software=_software(left, right),
        latest=latest,
        still=(latest - before.median) / step > STILL,
        function=function,
        contribution=contribution,
        report_before=str(gathered.report(last_before) or ""),
        report_after=str(gathered.report(first_after) or ""),
    )


def _software(left: Point, right: Point) -> str:
    """Say how the software changed between two points."""
    before, after = ({*p.runs[0].software.split(", ")} - {""} for p in (left, right))
    if before == after or not before or not after:
        return ""
    gone, come = (", ".join(sorted(one)) or "none" for one in (before - after, after - before))
    return f"{gone} → {come}"


def _explained(
    all_series: Sequence[Series],
    configuration: int,
    before: tuple[int, int],
    after: tuple[int, int],
) -> tuple[str, float]:
    """Give the function whose time changed most, and its part of what executing changed, %."""

    def step(series: Series) -> float:
        values = dict(zip(series.at, series.values, strict=True))
        sides = [[values[i] for i in range(*span) if i in values] for span in (before, after)]
        if not all(sides):
            return 0.0
        return float(np.median(sides[1]) - np.median(sides[0]))

    of = [one for one in all_series if one.configuration == configuration]
    whole = sum(step(one) for one in of if one.measure == "executing")
    steps = {one.function: step(one) for one in of if one.function and one.measure == "total"}
    if not steps or not whole:
        return "", math.nan
    most = max(steps, key=lambda name: steps[name] * math.copysign(1, whole))
    share = 100 * steps[most] / whole
    return (most, share) if share > 0 else ("", math.nan)


# ------------------------------------------------------------------------------------- words


def _sentence(
    those: Sequence[Configuration],
    series: Sequence[Series],
    looked: Sequence[Looked],
    found: Sequence[Change],
) -> str:
    points = sum(len(one.points) for one in those)
    runs = sum(len(point.runs) for one in those for point in one.points)
    of = f"{_counted(runs, 'run')}, {_counted(points, 'point')}"
    if not series or all(math.isnan(one.p) for one in looked):
        return f"Cannot tell: {of}; {LEAST} points of one configuration are needed at least."
    if not found:
        return f"No change: {of}, {_counted(len(series), 'series', 'series')}."
    at = places(series, found)
    first = at[0][0]
    name = series[first.series].name
    percent = "" if math.isnan(first.percent) else f" by {abs(first.percent):.1f} %"
    most = f", most of it by {first.function}" if first.function else ""
    changed = len({change.series for change in found})
    return (
        f"{name[:1].upper()}{name[1:]} became {first.direction}{percent} ({first.range}) and "
        f"{'is still so' if first.still else 'is no longer so'}{most}. "
        f"{changed} of {_counted(len(series), 'series', 'series')} changed, at "
        f"{_counted(len(at), 'place')}, in {of}."
    )


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _notes(
    those: Sequence[Configuration],
    series: Sequence[Series],
    looked: Sequence[Looked],
    level: float,
) -> list[str]:
    notes = []
    if len(those) > 1:
        notes.append(
            f"{len(those)} configurations, each with series of its own: scripts, arguments or "
            "hardware differ."
        )
    few = [one for one in those if len(one.points) < LEAST]
    notes += [
        f"{one.name}: {_counted(len(one.points), 'point')}, too few to tell: "
        f"{LEAST} are needed at least."
        for one in few[:5]
    ]
    if len(few) > 5:
        notes.append(f"{len(few) - 5} more configurations have too few points.")
    for one in those:
        unwhole = [run for point in one.points for run in point.runs if run.partial]
        if unwhole:
            notes.append(
                f"{one.script or 'runs'}: the times of {_counted(len(unwhole), 'run')} do not "
                f"count, such as {unwhole[0].name}: {'; '.join(unwhole[0].partial)}."
            )
    tested = [one for one in looked if not math.isnan(one.p)]
    if tested:
        notes.append(
            f"{_counted(len(tested), 'series', 'series')} were tested; of those said to change "
            f"{100 * level:g} % are false at most in expectation (Benjamini-Hochberg)."
        )
    tied = [s.name for s, one in zip(series, looked, strict=True) if one.correlation >= CORRELATED]
    if tied:
        notes.append(
            f"Neighbouring points are alike (autocorrelation of {CORRELATED:g} and more) in "
            f"{_counted(len(tied), 'series', 'series')}, such as {tied[0]}: that was allowed for "
            "by an estimate, and chances are less sure there."
        )
    return notes
