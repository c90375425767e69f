"""Trend, as text: on the terminal with sparklines, and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console

from dasf_hpc.show.fit import Column, Kind, show_table
from dasf_hpc.trend.find import Change, Level, Trend
from dasf_hpc.trend.series import Series
from dasf_hpc.units import bytes_text, count_text, duration_text

#: Series that are listed of a configuration, changes, and configurations.
SERIES, CHANGES, CONFIGURATIONS = 12, 20, 4
#: Commits that are listed of a change, and changes whose commits are.
COMMITS, LISTED = 8, 3
#: Points of a sparkline.
SPARKS = 24
_BARS = "▁▂▃▄▅▆▇█"
_PLAIN = "._-=+*%#"


def value_text(value: float, unit: str) -> str:
    """Write a value of a series."""
    if math.isnan(value):
        return ""
    return {"ns": duration_text, "bytes": bytes_text}.get(unit, count_text)(value)


def level_text(level: Level, unit: str) -> str:
    """Write a level with its interval, where it is known."""
    text = value_text(level.median, unit)
    if math.isnan(level.low):
        return text
    return f"{text} ({value_text(level.low, unit)} to {value_text(level.high, unit)})"


def percent_text(change: Change) -> str:
    """Write how much a series changed."""
    return "" if math.isnan(change.percent) else f"{change.percent:+.1f} %"


def latest_text(change: Change, unit: str) -> str:
    """Say if a change is still so."""
    return "still so" if change.still else f"gone, now {value_text(change.latest, unit)}"


def most_text(change: Change) -> str:
    """Name the function that contributed most to a change of the run."""
    if not change.function:
        return ""
    if math.isnan(change.contribution) or change.contribution >= 99.5:
        return change.function
    return f"{change.function} ({change.contribution:.0f} %)"


def sparkline(values: Sequence[float], width: int = SPARKS, bars: str = _BARS) -> str:
    """Draw values as a line of bars, each the median of as many points as fall on it."""
    if not values:
        return ""
    parts = np.array_split(np.asarray(values, float), min(width, len(values)))
    shown = [float(np.median(part)) for part in parts]
    least, most = min(shown), max(shown)
    # a spread of less than a tenth is drawn as what it is: small
    reach = max(most - least, 0.1 * abs(most)) or 1.0
    base = (most + least - reach) / 2
    return "".join(
        bars[min(len(bars) - 1, max(0, int((v - base) / reach * len(bars))))] for v in shown
    )


def show_trend(console: Console, found: Trend) -> None:
    """Print a trend."""
    bars = _BARS if "utf" in console.encoding.lower() else _PLAIN
    for number, one in enumerate(found.configurations[:CONFIGURATIONS]):
        series = [s for s in found.series if s.configuration == number]
        if not series:
            continue
        changed = {change.series for change in found.changes}
        chosen = [
            s for s in series if not s.function or found.series.index(s) in changed
        ]  # all of the run, then what changed, then the longest
        chosen += [s for s in series if s not in chosen and s.measure == "total"]
        left = len(series) - len(chosen[:SERIES])
        _show_series(console, one.name, found, chosen[:SERIES], left, bars)
    if found.changes:
        _show_changes(console, found)
    for sentence in [*_remarks(found), found.sentence]:
        console.print(sentence, highlight=False, markup=False, soft_wrap=not console.is_terminal)


def _show_series(
    console: Console, name: str, found: Trend, series: list[Series], left: int, bars: str
) -> None:
    counts = [sum(found.series[change.series] is one for change in found.changes) for one in series]
    columns = [
        Column("Series", [one.name for one in series]),
        Column("Over time", [sparkline(one.values, bars=bars) for one in series], Kind.EXACT),
        Column("Changes", [count_text(n) if n else "" for n in counts], Kind.NUMBER),
        Column("First", [value_text(one.values[0], one.about.unit) for one in series], Kind.NUMBER),
        Column(
            "Latest", [value_text(one.values[-1], one.about.unit) for one in series], Kind.NUMBER
        ),
        Column("Points", [count_text(len(one.values)) for one in series], Kind.NUMBER),
    ]
    show_table(console, name, columns, [f"{left} series"] if left else [])


def _show_changes(console: Console, found: Trend) -> None:
    shown = found.changes[:CHANGES]
    units = [found.series[change.series].about.unit for change in shown]
    pairs = list(zip(shown, units, strict=True))
    colours = ["red" if c.worse else "green" if c.direction == "faster" else "" for c in shown]
    whole = all(change.commit_before and change.commit_after for change in shown)
    columns = [
        Column("What", [found.series[change.series].name for change in shown]),
        Column("Change", [f"{percent_text(c)} {c.direction}".strip() for c in shown], Kind.EXACT),
        Column("Began", [change.range for change in shown], Kind.EXACT if whole else Kind.NAME),
        Column("Now", [latest_text(c, unit) for c, unit in pairs], Kind.EXACT),
        Column("Most by", [most_text(change) for change in shown]),
        Column("Before", [value_text(c.before.median, unit) for c, unit in pairs], Kind.NUMBER),
        Column("After", [value_text(c.after.median, unit) for c, unit in pairs], Kind.NUMBER),
    ]
    columns[1] = replace(columns[1], styles=colours, kept=True)
    left = len(found.changes) - len(shown)
    show_table(console, "Changes", columns, [f"{left} changes"] if left else [])
    for change in _listed(found):
        console.print(f"Commits {change.range}:", highlight=False, markup=False)
        for line in change.commits[:COMMITS]:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        if len(change.commits) > COMMITS:
            console.print(f"  and more (git log {change.range.replace(' ', '')})", markup=False)


def _listed(found: Trend) -> list[Change]:
    """Give changes whose commits are listed, one of each range."""
    ranges = {change.range: change for change in reversed(found.changes) if change.commits}
    return sorted(ranges.values(), key=found.changes.index)[:LISTED]


def _more_skipped(count: int) -> str:
    return f"{count} more {'was' if count == 1 else 'were'} left out."


def _remarks(found: Trend) -> list[str]:
    software = {
        change.range: change.software for change in found.changes[:CHANGES] if change.software
    }
    return [
        *found.skipped[:5],
        *([_more_skipped(len(found.skipped) - 5)] if len(found.skipped) > 5 else []),
        *(f"Other software at {where}: {what}." for where, what in software.items()),
        *found.notes,
    ]


def markdown(found: Trend) -> str:
    """Write a trend as Markdown."""
    lines = ["### dasf-hpc: trend", "", _md(found.sentence), ""]
    if found.changes:
        lines += [
            "| What | Change | Began | Before | After | Now | Most by |",
            "| --- | --- | --- | ---: | ---: | --- | --- |",
        ]
    for change in found.changes[:CHANGES]:
        series = found.series[change.series]
        unit = series.about.unit
        cells = (
            f"`{_md(series.name).replace('`', '')}`",
            f"{percent_text(change)} {change.direction}".strip(),
            _md(change.range),
            level_text(change.before, unit),
            level_text(change.after, unit),
            latest_text(change, unit),
            f"`{_md(most_text(change)).replace('`', '')}`" if change.function else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    if len(found.changes) > CHANGES:
        lines += ["", f"{len(found.changes) - CHANGES} more changes (`--json` lists them)."]
    for change in _listed(found):
        lines += ["", f"Commits {_md(change.range)}:", ""]
        lines += [f"- {_md(line)}" for line in change.commits]
    lines += ["", *(f"- {_md(remark)}" for remark in _remarks(found))]
    return "\n".join(lines).rstrip() + "\n"


def _md(text: str) -> str:
    shown = "".join(c if c.isprintable() else " " for c in text)
    return shown.replace("|", "\\|").replace("<", "&lt;")
