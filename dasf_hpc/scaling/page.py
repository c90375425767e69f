"""Scaling, as a page: one file that opens offline, with a link to the report of every run."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dasf_hpc.analysis.answer import Finding, Severity
from dasf_hpc.errors import RunDirectoryError
from dasf_hpc.scaling.chart import Chart, Dot, Line, draw
from dasf_hpc.scaling.fit import Fit
from dasf_hpc.scaling.table import PARTS, UNITS, Scaling, scaled
from dasf_hpc.scaling.words import (
    NONE,
    Grid,
    factor_text,
    functions_grid,
    scales_grid,
    title,
)
from dasf_hpc.show.export import written
from dasf_hpc.show.page_tables import cut
from dasf_hpc.show.report import REPORT_NAME, _allowed, _prose, _resource
from dasf_hpc.units import count_text, duration_text, share_text, three_digits

#: Functions of the page's table.
FUNCTIONS = 100
#: A law is drawn so many times beyond the largest scale.
BEYOND = 2.0
#: Points of a curve.
POINTS = 80

_COLOURS = {
    "computation_scalability": "f2",
    "load_balance": "f5",
    "serialisation": "f6",
    "transfer": "c0",
}


def write_page(found: Scaling, target: Path, name: str) -> Path:
    """Write a page of how a program scales.

    Parameters
    ----------
    found
        What the runs say.
    target
        The file.
    name
        What the page is called.

    Raises
    ------
    RunDirectoryError
        If the file cannot be written.
    """
    try:
        with written(target) as file:
            file.write(page(found, target.absolute().parent, name).encode())
    except OSError as error:
        raise RunDirectoryError(f"{target} cannot be written: {error.strerror}.") from None
    return target


def page(found: Scaling, folder: Path, name: str) -> str:
    """Make a page of how a program scales.

    Parameters
    ----------
    found
        What the runs say.
    folder
        Where it will lie: links to reports are relative to that.
    name
        What it is called.

    Returns
    -------
    str
        HTML that refers to nothing but the runs' reports.
    """
    environment = Environment(
        loader=PackageLoader("dasf_hpc.scaling"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = _prose
    environment.filters["cut"] = cut
    script = Markup("'use strict';\n(() => {\n%s%s})();\n") % (
        _resource("theme.js"),
        Markup("document.body.dataset.ready = 'yes';\n"),
    )
    tables = _resource("tables.js")
    findings = [_shown(finding) for finding in found.answer.findings]
    functions = functions_grid(found, FUNCTIONS)
    count = found.answer.tables["functions"]["function"].nunique()
    return environment.get_template("scaling.html").render(
        title=cut(name, 80),
        subtitle=title(found),
        findings=findings,
        charts=_charts(found, folder),
        scales=scales_grid(found),
        functions=functions,
        functions_left=count - len(functions.rows),
        laws=_laws(found),
        runs=(runs := _runs(found, folder)),
        remarks=any(run["remark"] for run in runs),
        run_headings=[*_sizes(found), "Time", "Parallel efficiency"],
        unanswered=found.answer.unanswered,
        left_out=found.left_out,
        weak=found.weak,
        unit=UNITS[found.by],
        style=_resource("report.css"),
        own_style=_own("scaling.css"),
        tables_script=tables,
        script=script,
        scripts_allowed=Markup(" ").join(map(_allowed, (tables, script))),
    )


def _own(name: str) -> Markup:
    return Markup((files("dasf_hpc.scaling") / "templates" / name).read_text(encoding="utf-8"))


def _shown(finding: Finding) -> dict[str, str]:
    words = {
        Severity.SERIOUS: "serious",
        Severity.WARNING: "warning",
        Severity.NOTICE: "good to know",
    }
    return {
        "severity": finding.severity.value,
        "word": words[finding.severity],
        "sentence": finding.sentence,
        "next_step": finding.next_step,
    }


# -------------------------------------------------------------------------------------- drawings


def _charts(found: Scaling, folder: Path) -> list[Chart]:
    more = UNITS[found.by][1]
    table = found.answer.tables["scales"]
    scales = [float(scale) for scale in found.scales]
    reach = [*scales, scales[-1] * BEYOND]
    first = float(table["time"].iloc[0])
    kind = "Scaled speed-up" if found.weak else "Speed-up"
    law, beyond = _law_lines(found, first, False)
    speedups = draw(
        kind,
        more,
        reach,
        [
            Line("ideal", "idle-line", [(n, n / scales[0]) for n in reach], "dotted"),
            *law,
            *beyond,
        ],
        _dots(found, folder, first, False),
        logarithmic=True,
    )
    law, _ = _law_lines(found, first, True)
    efficiency = draw(
        "Efficiency",
        more,
        scales,
        [Line("ideal", "idle-line", [(n, 100.0) for n in scales], "dotted"), *law],
        _dots(found, folder, first, True),
        percent=True,
    )
    factors = [
        Line(
            name.replace("_", " "),
            _COLOURS[name],
            list(zip(scales, table[name].astype(float).tolist(), strict=True)),
            style,
            marks=True,
        )
        for name, style in zip(PARTS, ("solid", "dashed", "solid", "dashed"), strict=True)
        if np.isfinite(table[name].astype(float)).any()
    ]
    charts = [speedups, efficiency]
    if factors:
        charts.append(draw("POP factors", more, scales, factors))
    return charts


def _speedup(found: Scaling, first: float, scale: float, time: float, efficiency: bool) -> float:
    """Give the speed-up of a time over that of the smallest scale, or the efficiency in %."""
    grown = scale / found.scales[0]
    speedup = first / time * (grown if found.weak else 1)
    return 100 * speedup / grown if efficiency else speedup


def _law_lines(found: Scaling, first: float, efficiency: bool) -> tuple[list[Line], list[Line]]:
    """Draw the better law over the scales, with its interval, and beyond them."""
    fit = found.chosen
    if fit is None:
        return [], []
    least, most = found.scales[0], found.scales[-1]
    name = fit.law.title[:1].upper() + fit.law.title[1:]

    def curve(start: float, stop: float) -> tuple[list[Any], list[Any]]:
        n = np.geomspace(start, stop, POINTS)
        line = [(s, _speedup(found, first, s, t, efficiency))
                for s, t in zip(n.tolist(), fit.times(n).tolist(), strict=True)]  # fmt: skip
        if not fit.freedom:
            return line, []
        band = [
            (s, *(_speedup(found, first, s, t, efficiency) for t in (high, low)))
            for s, (low, high) in zip(n.tolist(), fit.interval(n).tolist(), strict=True)
        ]
        return line, band

    points, band = curve(least, most)
    within = Line(f"{name}{', 95 % interval' if band else ''}", "c0", points, band=band)
    points, band = curve(most, most * BEYOND)
    return [within], [Line("the same beyond what was run", "c0", points, "dashed", band=band)]


def _dots(found: Scaling, folder: Path, first: float, efficiency: bool) -> list[Dot]:
    dots = []
    for run in found.runs:
        y = _speedup(found, first, run.scale, run.time, efficiency)
        value = share_text(y) if efficiency else three_digits(y)
        what = "efficiency" if efficiency else "speed-up"
        told = f"{scaled(run.scale, found.by)}: {duration_text(run.time)}, {what} {value}"
        dots.append(Dot(float(run.scale), y, told, _report(run.path, folder)))
    return dots


def _report(path: Path, folder: Path) -> str:
    """Give the address of a run's report from a page in a folder; empty where there is none."""
    directory = path if path.is_dir() else path.parent
    report = directory.absolute() / REPORT_NAME
    return quote(os.path.relpath(report, folder)) if report.is_file() else ""


# ---------------------------------------------------------------------------------------- tables


def _sizes(found: Scaling) -> dict[str, str]:
    """Give the columns that say how large a run was, and where their values stand."""
    sizes = {"Nodes": "nodes", "Workers": "workers", "Threads": "threads"}
    return {"GPUs": "scale", **sizes} if found.by == "gpus" else sizes


def _runs(found: Scaling, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for run in sorted([*found.runs, *found.left_out], key=lambda run: run.scale):
        rows.append(
            {
                "href": _report(run.path, folder),
                "name": cut(run.name, 60),
                "cells": [
                    *(count_text(getattr(run, name)) for name in _sizes(found).values()),
                    duration_text(run.time) if run.time else NONE,
                    factor_text(run.factors["parallel_efficiency"]),
                ],
                "remark": f"left out: {run.failed}" if run.failed else "; ".join(run.partial),
            }
        )
    return rows


def _laws(found: Scaling) -> Grid:
    """Give the table of laws and their parameters."""
    rows = [
        [
            ("the better one: " if fit is found.chosen and len(found.fits) > 1 else "")
            + fit.law.title,
            fit.law.parameters[name][0],
            _number(estimate.value),
            f"{_number(estimate.low)} to {_number(estimate.high)}" if fit.freedom else NONE,
            _aicc(fit),
            _chance(fit.lack),
        ]
        for fit in found.fits
        for name, estimate in fit.parameters.items()
    ]
    return Grid(
        ["Law", "Parameter", "Value", "95 % interval", "AICc", "Lack of fit, p"],
        [
            "the law that was fitted, by least squares of relative errors",
            "what it is",
            "its best value",
            "by the profile of the sum of squares",
            "Akaike's criterion for few runs; of two laws the one with less is better",
            "chance that runs lie so far from the law by the noise that their repeats show",
        ],
        rows,
    )


def _number(value: float) -> str:
    return "0" if abs(value) < 5e-7 else three_digits(value)


def _chance(p: float) -> str:
    if not np.isfinite(p):
        return NONE
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _aicc(fit: Fit) -> str:
    return f"{fit.aicc:.1f}" if np.isfinite(fit.aicc) else NONE
