"""Show: a run on the terminal, its progress while it goes and its summary at the end."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dasf_hpc.lost import lost_sentence
from dasf_hpc.nsight.collect import ReportEntry
from dasf_hpc.runs import ListedRun
from dasf_hpc.show.fit import Column, Kind, show_table
from dasf_hpc.show.moments import around_work
from dasf_hpc.show.progress import one_line
from dasf_hpc.trace.holdings import State
from dasf_hpc.trace.own_axis import SENTENCE
from dasf_hpc.trace.summary import GpuTimes, Recorded, Summary
from dasf_hpc.units import count_text, duration_text, share_text


def show_summary(console: Console, summary: Summary, manifest: dict[str, Any]) -> None:
    """Print what a run's trace holds, and what is missing from it."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    merged = manifest.get("merged", {})
    expected = merged.get("workers_expected")
    workers = f"{summary.workers}"
    if expected and expected != summary.workers:
        workers += f" ({expected} expected)"
    more = f" and {len(summary.nodes) - 8} more" if len(summary.nodes) > 8 else ""
    facts.add_row("Nodes", escape(f"{len(summary.nodes)}: {', '.join(summary.nodes[:8])}{more}"))
    count = sum(summary.tasks.values())
    joined = [r for r in summary.reports if r.status == "joined"]
    if not (expected or summary.workers or count) and joined:
        facts.add_row("Tasks", "none: a trace of Nsight reports alone")
    else:
        facts.add_row("Workers", workers)
        states = ", ".join(
            f"{count_text(number)} {state}" for state, number in summary.tasks.items() if number
        )
        facts.add_row("Tasks", f"{count_text(count)} ({states or 'none'})")
    if summary.call_samples:
        facts.add_row("Call stacks", f"{count_text(summary.call_samples)} samples of Python calls")
    if summary.unused:
        facts.add_row("Unused", summary.unused)
    if summary.work >= 0:
        facts.add_row("Duration", f"{duration_text(summary.work)} from first to last task")
        facts.add_row("Start and end", ", ".join(around_work(manifest, summary)) or "none recorded")
    else:
        facts.add_row("Duration", f"{duration_text(summary.duration)} recorded")
    links = ""
    ranges, linked = sum(r.compute_ranges for r in joined), sum(r.linked for r in joined)
    if ranges or count:
        links = f"; {count_text(linked)} of {count_text(ranges)} task ranges linked"
    facts.add_row("Reports", f"{len(joined)} of {len(summary.reports)}{links}")
    _add_recorded(facts, summary.recorded)
    if summary.gpus:
        more = f" and {len(summary.gpus) - 8} more" if len(summary.gpus) > 8 else ""
        named = ", ".join(summary.gpus[:8])
        facts.add_row("GPUs", escape(f"{len(summary.gpus)}: {named}{more}"))
    if summary.gpu is not None:
        _add_gpu_facts(facts, summary.gpu)
    if summary.bound is None:
        bound = "no clock recorded"
    elif summary.bound < 0:
        bound = f"unknown ({summary.bound_source})"
    else:
        bound = f"{duration_text(summary.bound)} ({summary.bound_source})"
    facts.add_row("Clocks agree within", bound)
    for file in summary.own_axis:
        facts.add_row("Not placed", escape(f"{file}: {SENTENCE}"))
    if checked := sum(order.checked for order in summary.causality):
        violations = sum(order.violations for order in summary.causality)
        order = f"{count_text(violations)} of {count_text(checked)} comparisons violate causality"
        if violations:
            worst = max(order.worst for order in summary.causality)
            order += f" beyond what the clocks' bounds allow, by up to {duration_text(worst)}"
        facts.add_row("Order", order)
    if lost := lost_sentence(manifest):
        facts.add_row("Lost", escape(lost))
    for gap in summary.gaps:
        facts.add_row("Missing", escape(gap.sentence))
    for note in manifest.get("notes", []):
        facts.add_row("Note", escape(one_line(note)))
    console.print(facts)
    if summary.functions:
        rows = [(f.prefix, f.count, f.total, f.mean, f.max) for f in summary.functions]
        _show_longest(console, "Longest functions", ("Function", "Tasks"), rows)
    if summary.gpu is not None and summary.gpu.longest:
        rows = [(k.name, k.count, k.total, k.mean, k.max) for k in summary.gpu.longest]
        _show_longest(console, "Longest kernels", ("Kernel", "Times"), rows)


def show_places(console: Console, trace: Path, report: Path | None = None) -> None:
    """Print where the trace is, and the report."""
    console.print(f"Trace: {trace}", soft_wrap=True, highlight=False, markup=False)
    if report is not None:
        console.print(f"Report: {report}", soft_wrap=True, highlight=False, markup=False)


def show_questions(console: Console, run: Path, report: bool) -> None:
    """Print how one learns what a run spent its time on."""
    place = shlex.quote(str(run))
    more = "" if report else f"; all on one page: dasf-hpc report {place}"
    console.print(
        f"What it spent its time on: dasf-hpc analyze where {place} "
        f"(where, functions, balance, ...){more}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _add_recorded(facts: Table, recorded: Sequence[Recorded]) -> None:
    """Say what the reports hold, and once why something is not whole."""
    if not recorded:
        return
    there = [one.short for one in recorded if one.state != State.MISSING]
    missing = [one.short.split(":")[0] for one in recorded if one.state == State.MISSING]
    facts.add_row("Recorded", escape("; ".join(there) or "nothing"))
    if missing:
        facts.add_row("Not recorded", escape(", ".join(missing)))
    reasons = [one.reason for one in recorded if one.state != State.MISSING and one.reason]
    for reason in dict.fromkeys(reasons):
        facts.add_row("", escape(reason))


def _add_gpu_facts(facts: Table, gpu: GpuTimes) -> None:
    share = f" ({share_text(100 * gpu.attributed / gpu.busy)})" if gpu.busy else ""
    facts.add_row(
        "GPU time",
        f"{duration_text(gpu.busy)} busy on {gpu.gpus} GPU(s), {count_text(gpu.kernels)} kernels; "
        f"{duration_text(gpu.attributed)}{share} of tasks",
    )
    for reason, time in list(gpu.unattributed.items())[:3]:
        facts.add_row("", f"{duration_text(time)} of no task: {reason}")


def _show_longest(
    console: Console,
    title: str,
    names: tuple[str, str],
    rows: Sequence[tuple[str, int, int, int, int]],
) -> None:
    """Print a table of names, counts, and total, mean and longest times in ns."""
    columns = [
        Column(names[0], [name for name, *_ in rows]),
        Column(names[1], [count_text(count) for _, count, *_ in rows], Kind.NUMBER),
    ]
    for number, heading in enumerate(("In all", "Mean", "Longest"), 2):
        cells = [duration_text(int(row[number])) for row in rows]
        columns.append(Column(heading, cells, Kind.NUMBER))
    show_table(console, title, columns)


def show_reports(console: Console, reports: Sequence[ReportEntry]) -> None:
    """Print what became of each report, a line each."""
    for report in reports:
        where = f" of {report.node}" if report.node else ""
        told = f": {report.sentence}" if report.sentence else ""
        console.print(
            f"{report.file}{where} {report.status}{told}", soft_wrap=True, highlight=False
        )


def show_runs(console: Console, runs: Sequence[ListedRun]) -> None:
    """Print a list of runs."""
    if not console.is_terminal:
        console.width = 500  # a pipe gets whole lines
    colours = {"complete": "green", "partial": "yellow", "failed": "red", "abandoned": "red"}
    took = [
        duration_text(1e9 * (run.ended - run.started)) if run.started and run.ended else ""
        for run in runs
    ]
    codes = ["" if run.exit_code is None else str(run.exit_code) for run in runs]
    columns = [
        Column("Run", [run.name for run in runs], Kind.EXACT),
        Column(
            "State",
            [run.state for run in runs],
            Kind.EXACT,
            [colours.get(run.state, "cyan") for run in runs],
        ),
        Column("On", [run.on for run in runs], Kind.EXACT),
        Column("Job", [run.job for run in runs]),
        Column("Took", took, Kind.NUMBER),
        Column("Exit", codes, Kind.NUMBER),
        Column("", [run.doing for run in runs]),
    ]
    show_table(console, "", [c for c in columns if c.heading or any(c.cells)], plain=True)
