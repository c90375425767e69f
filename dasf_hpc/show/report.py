"""Show, as a page: one file that opens offline and answers how long, where, why and what to do."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from dasf_hpc.analysis import ANALYSES, Answer, analyse
from dasf_hpc.analysis.answer import Finding, most_severe_first
from dasf_hpc.analysis.executions import Executions, read_executions, run_span
from dasf_hpc.analysis.where import PARTS
from dasf_hpc.errors import RunDirectoryError
from dasf_hpc.lost import lost_sentence
from dasf_hpc.manifest import Manifest
from dasf_hpc.show.coverage import COLOURED, by_time_spent
from dasf_hpc.show.export import written
from dasf_hpc.show.picture import picture
from dasf_hpc.show.timeline import bound_text
from dasf_hpc.steps import Step, Told
from dasf_hpc.trace.open import Trace, open_trace
from dasf_hpc.trace.own_axis import SENTENCE
from dasf_hpc.trace.store import TraceError
from dasf_hpc.trace.summary import NOT_AVAILABLE, Summary, summarise
from dasf_hpc.units import bytes_text, duration_text

#: Name of the report in a run's directory.
REPORT_NAME = "report.html"

#: Parts of the script that draws, in their order.
SCRIPTS = (
    "units.js", "theme.js", "data.js", "coverage.js",
    "timeline.js", "pick.js", "curves.js", "moves.js",
)  # fmt: skip

#: Rows of a table in the page, and those that are seen before one asks for the rest.
ROWS, SEEN = 300, 15

#: Questions that a page of more executions than this does not ask: they play the run again, task
#: by task (measured: 20 s for each million and function asked about).
PATIENCE = {"what_if": 200_000}

#: What says more of some columns than their unit: times that are no durations, and row numbers.
UNITS = {
    **dict.fromkeys(("start", "stop", "first_start", "last_stop"), "moment"),
    "task": "row",
}

#: Nodes in the matrix of communication, and workers in the split: those with most of it.
NODES, WORKERS = 24, 40

#: What of a manifest goes into the page. Settings and arguments stay out: a report is passed on,
#: and they may hold what is private.
FACTS = ("name", "state", "job", "on", "host", "git_revision", "exit_code", "error", "batch_jobs")

#: What the parts of a worker's time have in common, for their colours.
GROUPS = {
    "executing": "executing",
    "deserialising": "overhead",
    "disk": "overhead",
    "paused": "overhead",
    "dispatching": "overhead",
    "transferring": "data",
    "waiting": "data",
}


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what is shown, and what it is sorted by."""

    text: str
    order: float | str


def write_report(path: Path, output: Path | None = None, told: Told = lambda step: None) -> Path:
    """Write a run's report.

    Parameters
    ----------
    path
        A trace, or the directory of a run.
    output
        The file; ``report.html`` beside the trace by default.
    told
        Called with the progress.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    TraceFileError
        If there is no trace, or it cannot be read.
    RunDirectoryError
        If the file cannot be written.
    """
    try:
        with open_trace(path) as trace:
            target = output or trace.path.parent / REPORT_NAME
            page = report_page(trace, Manifest(trace.path.parent).content, told)
            with written(target) as file:
                file.write(page.encode())
    except OSError as error:
        raise RunDirectoryError(
            f"The report cannot be written: {error.filename or target}: {error.strerror}."
        ) from None
    return target


def report_page(trace: Trace, manifest: dict[str, Any], told: Told = lambda step: None) -> str:
    """Make the page of a trace.

    Parameters
    ----------
    trace
        The trace.
    manifest
        Content of the run's ``run.json``; empty where there is none.
    told
        Called with the progress.

    Returns
    -------
    str
        HTML without a reference to anything outside of it.
    """
    answers, failures = _answers(trace, told)
    short = _shorter(manifest.get("name"))
    told(Step("Writing the report", len(ANALYSES), len(ANALYSES)))
    executions = read_executions(trace)
    summary = summarise(trace)
    drawn = picture(trace, executions, answers.get("critical_path"))
    findings = most_severe_first([f for answer in answers.values() for f in answer.findings])
    unanswered = [(name, why) for name, answer in answers.items() for why in answer.unanswered]
    environment = Environment(
        loader=PackageLoader("dasf_hpc.show"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = lambda text: _prose(short(text))
    environment.filters["short"] = short
    return environment.get_template("report.html").render(
        title=manifest.get("name") or trace.path.name,
        job=manifest.get("job"),
        state=manifest.get("state"),
        started=_date(manifest, trace),
        figures=_figures(trace, summary, executions, answers),
        findings=[_with_evidence(trace, finding, answers) for finding in findings],
        unanswered=unanswered + list(failures.items()),
        questions={name: question.text for name, question in ANALYSES.items()},
        colours={
            executions.functions[code]: number
            for number, code in enumerate(by_time_spent(executions)[:COLOURED])
        },
        tables={
            name: {kind: _view(trace, answer, kind) for kind in answer.tables}
            for name, answer in answers.items()
        },
        split=_split(answers.get("where")),
        parts={part: (GROUPS.get(part, "idle"), meaning) for part, meaning in PARTS.items()},
        matrix=_matrix(answers.get("communication")),
        clocks=_clocks(trace),
        unused=summary.unused,
        gaps=[gap.sentence for gap in summary.gaps],
        recorded=[one.sentence for one in summary.recorded],
        facts=_facts(manifest, trace),
        lost=lost_sentence(manifest),
        notes=manifest.get("notes", []),
        drawn=drawn,
        style=_resource("report.css"),
        timeline_style=_resource("timeline.css"),
        tables_script=_resource("tables.js"),
        script=_script(*SCRIPTS),
    )


def _answers(trace: Trace, told: Told) -> tuple[dict[str, Answer], dict[str, str]]:
    """Ask the questions; one that fails costs its own section and no other."""
    answers, failures = {}, {}
    for number, name in enumerate(ANALYSES):
        told(Step(f"Writing the report: {name}", number, len(ANALYSES)))
        if trace.rows("tasks") > PATIENCE.get(name, math.inf):
            failures[name] = f"It takes long for so many tasks: `dasf-hpc analyze {name} RUN`."
            continue
        try:
            answers[name] = analyse(name, trace)
        except TraceError:
            raise
        except Exception as bug:
            failures[name] = f"This analysis failed, which is a bug in it: {bug!r}."
    return answers, failures


def _resource(name: str) -> Markup:
    """Give a file of the package as it is: it is ours, and not to be escaped."""
    return Markup((files("dasf_hpc.show") / "templates" / name).read_text(encoding="utf-8"))


def _script(*names: str) -> Markup:
    """Put scripts together into one that leaves no name of its own in the page."""
    return Markup("'use strict';\n(() => {\n%s})();\n") % Markup("").join(map(_resource, names))


def _shorter(run: str | None) -> Callable[[str], str]:
    """Give what takes the run's name away from its workers' names, which all begin with it."""
    if not run:
        return str
    return lambda text: text.replace(f"{run}-", "worker ")


def _prose(text: str) -> Markup:
    """Set what stands between backquotes as code."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))


# --------------------------------------------------------------------------------- figures


def _date(manifest: dict[str, Any], trace: Trace) -> str:
    seconds = manifest.get("started")
    if not isinstance(seconds, int | float):
        seconds = int(trace.attributes.get("origin_utc_ns", -1)) / 1e9
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds > 0 else ""


def _figures(
    trace: Trace, summary: Summary, executions: Executions, answers: dict[str, Answer]
) -> list[tuple[str, str, str]]:
    """Give the headline numbers: name, value, what it rests on."""
    states = {state: count for state, count in summary.tasks.items() if state != "memory" and count}
    bad = ", ".join(f"{count:,} {state}" for state, count in states.items())
    gpus = trace.rows("gpus")
    length = run_span(trace, executions).duration
    found = [
        ("Duration", duration_text(length), "first to last record"),
        ("Tasks", f"{len(executions):,}", bad or "none failed"),
        (
            "Workers",
            f"{summary.workers:,}",
            f"on {len(summary.nodes)} node{'s' * (len(summary.nodes) != 1)}, "
            + (f"{gpus} GPU{'s' * (gpus != 1)}" if gpus else "no GPU"),
        ),
    ]
    where = answers.get("where")
    if where is not None and len(where.table):
        shares = where.table.set_index("part")["share"]
        idle = shares.drop("executing", errors="ignore")
        found.append(("Executing", f"{shares.get('executing', 0.0):.0f} %", "of the threads' time"))
        if len(idle) and idle.max() > 0:
            worst = str(idle.idxmax()).replace("_", " ")
            found.append(("Most of the rest", f"{idle.max():.0f} %", worst))
    bound = summary.bound
    if bound is not None:
        text = duration_text(bound) if bound >= 0 else "not known"
        found.append(("Clocks agree within", text, str(summary.bound_source)))
    if summary.own_axis:
        named = ", ".join(summary.own_axis[:8])
        found.append(("Not placed", f"{len(summary.own_axis)} reports", f"{named}: {SENTENCE}"))
    losses = [gap for gap in summary.gaps if gap.kind != NOT_AVAILABLE]
    named = f"{len(losses)} kinds of gaps" if losses else "nothing is missing"
    found.append(("Recording", "partial" if losses else "whole", named))
    return found


def _with_evidence(trace: Trace, finding: Finding, answers: dict[str, Answer]) -> dict[str, Any]:
    """Give a finding with the rows it rests on."""
    answer = answers[finding.analysis]
    return {
        "severity": str(finding.severity),
        "analysis": finding.analysis,
        "sentence": finding.sentence,
        "next_step": finding.next_step,
        "table": _view(trace, answer, finding.table, list(finding.rows)[:10]),
    }


def _facts(manifest: dict[str, Any], trace: Trace) -> list[tuple[str, str]]:
    found = [(name.replace("_", " "), manifest[name]) for name in FACTS if manifest.get(name)]
    found += [(f"version of {name}", v) for name, v in manifest.get("versions", {}).items() if v]
    shape = manifest.get("shape") or {}
    found += [(name.replace("_", " "), value) for name, value in shape.items() if value]
    merged = manifest.get("merged") or {}
    for what in ("workers", "reports"):
        if f"{what}_expected" in merged:
            text = f"{merged.get(f'{what}_found')} of {merged[f'{what}_expected']}"
            found.append((f"{what} found", text))
    found += [("trace made by", trace.attributes.get("producer", "?"))]
    found += [("reference clock", trace.attributes.get("reference_clock", "?"))]
    return [
        (name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for name, value in found
    ]


def _clocks(trace: Trace) -> list[tuple[str, str]]:
    return [
        (str(row["clock"]), bound_text(row["bound"], row["source"]))
        for row in trace.clocks.to_dict("records")
    ]


# ---------------------------------------------------------------------------------- tables


def _view(trace: Trace, answer: Answer, name: str, rows: list[int] | None = None) -> dict[str, Any]:
    """Give a table of an answer as cells; columns that say nothing are left out."""
    table = answer.tables[name]
    count = len(table)
    described = answer.columns[name]
    shown = table.head(ROWS) if rows is None else table.loc[table.index.intersection(rows)]
    if "key" in shown and pd.api.types.is_integer_dtype(shown["key"]) and (shown["key"] >= 0).any():
        keys = trace.texts("keys", shown["key"].to_numpy())
        shown = shown.assign(key=pd.Series(keys, shown.index, dtype=object))
    names = [c for c in described if c in shown and not _says_nothing(shown[c])]
    return {
        "name": name,
        "columns": [
            {
                "name": column,
                "title": column.replace("_", " "),
                "meaning": described[column][1],
                "number": pd.api.types.is_numeric_dtype(shown[column]),
            }
            for column in names
        ],
        "rows": [
            [_cell(row[column], UNITS.get(column, described[column][0])) for column in names]
            for row in shown.to_dict("records")
        ],
        "count": count,
        "seen": SEEN,
    }


def _says_nothing(column: pd.Series[Any]) -> bool:
    """Tell whether no row has a value: all are absent, or stand for that."""
    if not pd.api.types.is_numeric_dtype(column):
        return bool(column.isna().all())
    return bool((column.isna() | (column == -1)).all()) and len(column) > 0


def _cell(value: Any, unit: str) -> Cell:
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return Cell("–", -1.0)
    if isinstance(value, str):
        return Cell(value, value)
    if isinstance(value, bool):
        return Cell("yes" if value else "no", float(value))
    number = float(value)
    if number == -1 and unit in ("ns", "moment", "bytes", "%"):
        return Cell("–", -1.0)
    if unit == "row":
        return Cell(f"{number:.0f}", number)
    if unit == "moment":
        return Cell(f"{number / 1e9:,.6f} s", number)
    if unit == "ns":
        return Cell(duration_text(number), number)
    if unit == "bytes":
        return Cell(bytes_text(number), number)
    if unit == "bytes/s":
        return Cell(bytes_text(number) + "/s", number)
    if unit == "%":
        return Cell(f"{number:.1f} %", number)
    text = f"{value:,}" if isinstance(value, int) else f"{number:,.4g}"
    return Cell(f"{text} {unit}".rstrip(), number)


def _split(answer: Answer | None) -> dict[str, Any]:
    """Give, for each worker and for all, the parts of its time as shares of the whole."""
    if answer is None or not len(answer.tables.get("workers", ())):
        return {"rows": [], "left_out": 0}
    table = answer.tables["workers"]
    parts = [part for part in PARTS if part in table]
    shown = table.sort_values("executing").head(WORKERS) if len(table) > WORKERS else table
    rows = [("all workers", table[[*parts, "wall"]].sum())]
    rows += [(f"{row['node']} {row['worker']}", row) for _, row in shown.iterrows()]
    return {
        "rows": [
            {
                "name": name,
                "parts": [
                    {
                        "part": part,
                        "share": 100 * float(row[part]) / max(1, row["wall"]),
                        "time": duration_text(float(row[part])),
                    }
                    for part in parts
                    if row[part] > 0
                ],
            }
            for name, row in rows
        ],
        "left_out": len(table) - len(shown),
    }


def _matrix(answer: Answer | None) -> dict[str, Any]:
    """Give the bytes that went between nodes, those with most of them."""
    if answer is None or not len(answer.table):
        return {"names": [], "rows": []}
    links = answer.table
    traffic = (
        links.groupby("source")["bytes"]
        .sum()
        .add(links.groupby("target")["bytes"].sum(), fill_value=0)
    )
    names = sorted(str(name) for name in traffic.nlargest(NODES).index)
    of = {(str(row["source"]), str(row["target"])): row for row in links.to_dict("records")}
    most = max(1, int(links["bytes"].max()))
    rows = []
    for source in names:
        cells = []
        for target in names:
            link = of.get((source, target))
            cells.append(
                {
                    "text": bytes_text(link["bytes"]) if link else "",
                    "hint": f"{source} to {target}: {link['messages']:,} messages, "
                    f"{bytes_text(link['throughput'])}/s"
                    if link
                    else "",
                    # ten steps
                    "heat": -(-10 * int(link["bytes"]) // most) if link else 0,
                }
            )
        rows.append((source, cells))
    return {"names": names, "rows": rows, "left_out": len(traffic) - len(names)}
