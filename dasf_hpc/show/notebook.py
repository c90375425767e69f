"""Show, in a notebook: a run as a piece of HTML that needs no script, no style and no network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from dasf_hpc.analysis import analyse
from dasf_hpc.analysis.answer import Answer, finding_html
from dasf_hpc.analysis.executions import read_executions, run_span
from dasf_hpc.analysis.headline import headline
from dasf_hpc.errors import TraceFileError
from dasf_hpc.show.coverage import COLOURED, DIGITS, busy_workers, by_time_spent
from dasf_hpc.trace.open import Trace, open_trace
from dasf_hpc.trace.summary import NOT_AVAILABLE, Summary
from dasf_hpc.units import duration_text

#: Questions whose findings are shown. The others' are in the report: they take longer, or advise
#: nothing.
ASKED = ("where", "functions", "balance", "critical_path", "gpu", "communication")

#: Findings and functions that are shown, and workers that are drawn.
FINDINGS, FUNCTIONS, ROWS = 4, 5, 12

#: Bins of the timeline, and its measures in pixels.
BINS, WIDTH, LANE, LABEL = 240, 720, 14, 130

#: The report's palette of functions, the last one for all others.
PALETTE = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999999",
)  # fmt: skip

_SMALL = 'style="font-size:.9em;opacity:.8"'


def summary_text(summary: Summary) -> str:
    """Say in a few words what a run was."""
    count, nodes = sum(summary.tasks.values()), len(summary.nodes)
    others = [f"{n:,} {state}" for state, n in summary.tasks.items() if n and state != "memory"]
    return (
        f"{count:,} task{'s' * (count != 1)}{f' ({chr(44).join(others)})' if others else ''} on "
        f"{summary.workers:,} worker{'s' * (summary.workers != 1)} of {nodes:,} "
        f"node{'s' * (nodes != 1)}, {duration_text(summary.duration)}"
    )


def run_html(
    directory: Path | None,
    trace: Trace | None,
    summary: Summary | None,
    problems: Sequence[str] = (),
) -> str:
    """Show a run: what it was, findings, a small timeline, and where the rest is.

    Parameters
    ----------
    directory
        The run's directory; None where there is none yet.
    trace, summary
        What was merged; None where nothing was.
    problems
        What is not recorded, a sentence each.
    """
    if directory is None:
        return "<p>dasf-hpc: nothing is recorded yet.</p>"
    parts = [f"<p><b>dasf-hpc</b> {escape(directory.name)}"]
    if trace is None or summary is None:
        parts[0] += f": {'no trace' if problems else 'recording'}</p>"
    else:
        parts[0] += f"<br>{escape(summary_text(summary))}</p>"
        parts += [_findings(trace), timeline_svg(trace), _functions(summary)]
        gaps = [gap.sentence for gap in summary.gaps if gap.kind != NOT_AVAILABLE]
        parts += [f"<p><b>missing</b> {escape(sentence)}</p>" for sentence in gaps]
    parts += [f"<p><b>problem</b> {escape(sentence)}</p>" for sentence in problems]
    parts.append(_links(directory))
    return f"<div>{''.join(parts)}</div>"


def result_html(directory: Path, summary: Summary, error: Exception | None) -> str:
    """Show the result of a run of `submit`."""
    problems = [] if error is None else [str(error)]
    try:
        with open_trace(directory) as trace:
            return run_html(directory, trace, summary, problems)
    except TraceFileError as gone:  # the run was moved or deleted since
        return run_html(directory, None, None, [*problems, str(gone)])


def _findings(trace: Trace) -> str:
    answers: dict[str, Answer] = {}
    for name in ASKED:
        try:
            answers[name] = analyse(name, trace)
        except Exception:  # the report names the bug; the other questions' findings are no worse
            continue
    found = headline(trace, answers).findings
    if not found:
        return "<p>Nothing found that should be changed.</p>"
    more = len(found) - FINDINGS
    rest = f"<p {_SMALL}>{more} more in the report.</p>" if more > 0 else ""
    return "".join(map(finding_html, found[:FINDINGS])) + rest


def _functions(summary: Summary) -> str:
    """List the longest functions."""
    if not summary.functions:
        return ""
    rows = "".join(
        f"<tr><td style='text-align:left'>{escape(f.prefix)}</td><td>{f.count:,}</td>"
        + "".join(f"<td>{duration_text(time)}</td>" for time in (f.total, f.mean, f.max))
        + "</tr>"
        for f in summary.functions[:FUNCTIONS]
    )
    names = ("function", "tasks", "total", "mean", "max")
    return f"<table><tr>{''.join(f'<th>{n}</th>' for n in names)}</tr>{rows}</table>"


def _links(directory: Path) -> str:
    """Link what is there: relative to a notebook below whose folder it lies, else as a file."""
    links = []
    for name, text in (("report.html", "report"), ("trace.h5", "trace")):
        path = directory / name
        if path.is_file():
            links.append(f'<a href="{escape(_address(path))}" target="_blank">{text}</a>')
    links.append(f"<code>{escape(str(directory))}</code>")
    return f"<p {_SMALL}>{' · '.join(links)}</p>"


def _address(path: Path) -> str:
    relative = os.path.relpath(path.absolute())
    return path.absolute().as_uri() if relative.startswith(os.pardir) else quote(relative)


def timeline_svg(trace: Trace) -> str:
    """Draw how busy each worker was over the run, and with what most of the time."""
    executions = read_executions(trace)
    rows = busy_workers(trace, executions, BINS)
    if not rows:
        return ""
    shapes = []
    drawn = rows[:ROWS]
    for number, (name, text) in enumerate(drawn):
        y = number * (LANE + 3)
        shown = name if len(name) <= 20 else "…" + name[-19:]
        shapes.append(
            f'<text x="0" y="{y + LANE - 3}" font-size="11" fill="currentColor">'
            f"<title>{escape(name)}</title>{escape(shown)}</text>"
        )
        shapes += _bars(text["busy"], text["most"], y)
    height = len(drawn) * (LANE + 3)
    shapes.append(
        f'<text x="{LABEL}" y="{height + 12}" font-size="11" fill="currentColor">0</text>'
        f'<text x="{WIDTH}" y="{height + 12}" font-size="11" text-anchor="end" '
        f'fill="currentColor">{duration_text(run_span(trace, executions).duration)}</text>'
    )
    more = len(rows) - len(drawn)
    legend = " ".join(
        f'<span style="color:{PALETTE[number]}">■</span> {escape(executions.functions[code])}'
        for number, code in enumerate(by_time_spent(executions)[:COLOURED].tolist())
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {height + 16}" width="100%" style="max-width:{WIDTH}px" '
        f'role="img" aria-label="Timeline of {len(rows)} workers">{"".join(shapes)}</svg>'
        f"<div {_SMALL}>{legend}{f' … and {more} more workers' if more > 0 else ''}</div>"
    )


def _bars(busy: str, most: str, y: int) -> list[str]:
    """Draw a worker's bins, neighbours that look alike as one."""
    scale = (WIDTH - LABEL) / BINS
    levels = [round(6 * max(0, DIGITS.find(letter)) / (len(DIGITS) - 1) + 0.49) for letter in busy]
    shapes, first = [], 0
    for place in range(1, BINS + 1):
        alike = place < BINS and (levels[place], most[place]) == (levels[first], most[first])
        if alike:
            continue
        if levels[first]:
            tall = LANE * min(levels[first], 6) / 6
            shapes.append(
                f'<rect x="{LABEL + first * scale:.1f}" y="{y + LANE - tall:.1f}" '
                f'width="{(place - first) * scale:.1f}" height="{tall:.1f}" '
                f'fill="{PALETTE[int(most[first])]}"/>'
            )
        first = place
    return shapes
