"""Trend, as a page: one file that opens offline, with a small chart of each series."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dasf_hpc.errors import RunDirectoryError
from dasf_hpc.show.export import written
from dasf_hpc.show.report import _allowed, _environment, _resource, _script
from dasf_hpc.trend.find import Change, Trend, places
from dasf_hpc.trend.series import Series
from dasf_hpc.trend.text import latest_text, level_text, most_text, percent_text, value_text
from dasf_hpc.units import count_text

#: Charts of a configuration that are open at once; the others are below them, closed.
OPEN = 12
#: Places where something changed that the first screen tells of.
CARDS = 3
#: Rows of a table that are seen at once.
SEEN = 20
#: The size of a chart and the room around what is drawn, in its own units.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340.0, 120.0, 6.0, 6.0, 16.0, 18.0


def write_page(found: Trend, target: Path) -> Path:
    """Write the page of a trend.

    Raises
    ------
    RunDirectoryError
        If it cannot be written.
    """
    try:
        with written(target) as file:
            file.write(page(found, target.absolute().parent).encode("utf-8", "replace"))
    except OSError as error:
        raise RunDirectoryError(
            f"The page cannot be written: {error.filename or target}: {error.strerror}."
        ) from None
    return target


def page(found: Trend, folder: Path) -> str:
    """Make the page of a trend.

    Parameters
    ----------
    found
        The trend.
    folder
        Where the page will be: links to reports start there.
    """
    tables_script, script = _resource("tables.js"), _script("theme.js", "trend.js")
    data = [
        [series.configuration, series.at, [value_text(v, series.about.unit) for v in series.values]]
        for series in found.series
    ]
    points = [
        [
            [point.label, _date(point.started), len(point.runs), point.runs[0].name]
            for point in one.points
        ]
        for one in found.configurations
    ]
    packed = json.dumps({"series": data, "points": points}, separators=(",", ":"))
    return (
        _environment()
        .get_template("trend.html")
        .render(
            sentence=found.sentence,
            subtitle=_subtitle(found),
            parts=[_part(found, number) for number in range(len(found.configurations))],
            cards=[
                [_shown(found, change, folder) for change in one]
                for one in places(found.series, found.changes)[:CARDS]
            ],
            changes=[_shown(found, change, folder) for change in found.changes],
            seen=SEEN,
            notes=found.notes,
            skipped=found.skipped,
            data=Markup(packed.replace("<", "\\u003c")),
            style=_resource("report.css") + _resource("trend.css"),
            tables_script=tables_script,
            script=script,
            scripts_allowed=Markup(" ").join(map(_allowed, (tables_script, script))),
        )
    )


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds > 0 else ""


def _subtitle(found: Trend) -> str:
    points = [point for one in found.configurations for point in one.points]
    runs = sum(len(point.runs) for point in points)
    times = [point.started for point in points if point.started > 0]
    parts = [f"{count_text(runs)} runs", f"{count_text(len(points))} points"]
    if times:
        parts.append(f"{_date(min(times))} to {_date(max(times))}")
    return " · ".join(parts)


def _part(found: Trend, number: int) -> dict[str, Any]:
    """Give a configuration: its charts, those of the run and of what changed first."""
    changed = {change.series for change in found.changes}
    mine = [i for i, series in enumerate(found.series) if series.configuration == number]
    mine.sort(key=lambda i: (bool(found.series[i].function), i not in changed))
    charts = [_chart(found, i) for i in mine]
    first = max(OPEN, sum(not found.series[i].function or i in changed for i in mine))
    first = min(first, 2 * OPEN)
    return {
        "name": found.configurations[number].name,
        "open": charts[:first],
        "closed": charts[first:],
    }


def _chart(found: Trend, number: int) -> dict[str, Any]:
    """Give a chart: where each point, each level and each change is drawn."""
    series = found.series[number]
    changes = sorted((one for one in found.changes if one.series == number), key=lambda one: one.at)
    count = len(found.configurations[series.configuration].points)
    least, most = min(series.values), max(series.values)
    reach = max(most - least, 0.1 * abs(most)) or 1.0
    base = max(0.0, (most + least - reach) / 2)
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(at: float) -> float:
        return round(LEFT + wide * (at + 0.5) / count, 1)

    def y(value: float) -> float:
        return round(TOP + tall * (1 - (value - base) / reach), 1)

    unit = series.about.unit
    points = [(x(at), y(value)) for at, value in zip(series.at, series.values, strict=True)]
    ends = [-0.5, *(change.at - 0.5 for change in changes), count - 0.5]
    levels = [changes[0].before, *(change.after for change in changes)] if changes else []
    dates = [
        _date(found.configurations[series.configuration].points[at].started)[:10]
        for at in (series.at[0], series.at[-1])
    ]
    looked = found.looked[number]
    chance = (
        "too few points to tell"
        if math.isnan(looked.p)
        else "no change"
        if not changes
        else ", ".join(f"{percent_text(c)} {c.direction} at {c.range}".strip() for c in changes)
    )
    return {
        "number": number,
        "name": series.name,
        "latest": value_text(series.values[-1], unit),
        "said": chance,
        "worse": any(change.worse and change.still for change in changes),
        "changed": bool(changes),
        "points": points,
        "line": " ".join(f"{a},{b}" for a, b in points),
        "levels": [
            (x(first), x(last), y(level.median))
            for first, last, level in zip(ends, ends[1:], levels, strict=False)
        ],
        "changes": [(x(change.at - 0.5), change.worse) for change in changes],
        "top": value_text(base + reach, unit),
        "bottom": value_text(base, unit),
        "dates": dates,
    }


def _shown(found: Trend, change: Change, folder: Path) -> dict[str, Any]:
    """Give a change as a row of the table, and a card of it."""
    series: Series = found.series[change.series]
    unit = series.about.unit
    return {
        "name": series.name,
        "function": series.function,
        "severity": "serious" if change.worse and change.still else "notice",
        "change": f"{percent_text(change)} {change.direction}".strip(),
        "percent": 0 if math.isnan(change.percent) else change.percent,
        "range": change.range,
        "at": change.at,
        "before": level_text(change.before, unit),
        "after": level_text(change.after, unit),
        "medians": (change.before.median, change.after.median),
        "now": latest_text(change, unit),
        "most": most_text(change),
        "commits": change.commits,
        "software": change.software,
        "chart": change.series,
        "runs": [
            {"name": name, "href": _link(report, folder)}
            for name, report in (
                (change.last_before, change.report_before),
                (change.first_after, change.report_after),
            )
        ],
    }


def _link(report: str, folder: Path) -> str:
    """Give the way from the page to a report; empty where there is none."""
    if not report:
        return ""
    from urllib.parse import quote

    return quote(os.path.relpath(Path(report).absolute(), folder))
