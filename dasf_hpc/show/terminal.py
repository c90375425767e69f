"""Show: a run on the terminal, its progress while it goes and its summary at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dasf_hpc.lost import lost_sentence
from dasf_hpc.nsight.collect import ReportEntry
from dasf_hpc.runs import ListedRun
from dasf_hpc.trace.holdings import State
from dasf_hpc.trace.own_axis import SENTENCE
from dasf_hpc.trace.summary import GpuTimes, Recorded, Summary
from dasf_hpc.units import duration_text

#: Dask gives functions that it fuses names of up to 120 characters; a kernel's name may have
#: thousands.
NAME_MOST = 128


def show_summary(console: Console, summary: Summary, manifest: dict[str, Any], trace: Path) -> None:
    """Print what a run's trace holds, and what is missing from it."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    merged = manifest.get("merged", {})
    expected = merged.get("workers_expected")
    workers = f"{summary.workers}"
    if expected and expected != summary.workers:
        workers += f" ({expected} expected)"
    facts.add_row("Nodes", f"{len(summary.nodes)}: {', '.join(summary.nodes[:8])}")
    count = sum(summary.tasks.values())
    joined = [r for r in summary.reports if r.status == "joined"]
    if not (expected or summary.workers or count) and joined:
        facts.add_row("Tasks", "none: a trace of Nsight reports alone")
    else:
        facts.add_row("Workers", workers)
        states = ", ".join(f"{number} {state}" for state, number in summary.tasks.items() if number)
        facts.add_row("Tasks", f"{count} ({states or 'none'})")
    if summary.unused:
        facts.add_row("Unused", summary.unused)
    facts.add_row("Duration", duration_text(summary.duration))
    links = ""
    ranges, linked = sum(r.compute_ranges for r in joined), sum(r.linked for r in joined)
    if ranges or count:
        links = f"; {linked} of {ranges} task ranges linked"
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
        order = f"{violations} of {checked} comparisons violate causality"
        if violations:
            worst = max(order.worst for order in summary.causality)
            order += f" beyond what the clocks' bounds allow, by up to {duration_text(worst)}"
        facts.add_row("Order", order)
    if lost := lost_sentence(manifest):
        facts.add_row("Lost", escape(lost))
    for gap in summary.gaps:
        facts.add_row("Missing", escape(gap.sentence))
    for note in manifest.get("notes", []):
        facts.add_row("Note", note)
    console.print(facts)
    if summary.functions:
        rows = [(f.prefix, f.count, f.total, f.mean, f.max) for f in summary.functions]
        console.print(_longest("Longest functions", ("Function", "Tasks"), rows))
    if summary.gpu is not None and summary.gpu.longest:
        rows = [(k.name, k.count, k.total, k.mean, k.max) for k in summary.gpu.longest]
        console.print(_longest("Longest kernels", ("Kernel", "Times"), rows))
    console.print(f"Trace: {trace}", soft_wrap=True, highlight=False)


def _add_recorded(facts: Table, recorded: Sequence[Recorded]) -> None:
    """Say what the reports hold, and once why something is not whole."""
    if not recorded:
        return
    facts.add_row("Recorded", escape("; ".join(one.short for one in recorded)))
    reasons = [one.reason for one in recorded if one.state != State.MISSING and one.reason]
    for reason in dict.fromkeys(reasons):
        facts.add_row("", escape(reason))


def _add_gpu_facts(facts: Table, gpu: GpuTimes) -> None:
    share = f" ({gpu.attributed / gpu.busy:.1%})" if gpu.busy else ""
    facts.add_row(
        "GPU time",
        f"{duration_text(gpu.busy)} busy on {gpu.gpus} GPU(s), {gpu.kernels} kernels; "
        f"{duration_text(gpu.attributed)}{share} of tasks",
    )
    for reason, time in list(gpu.unattributed.items())[:3]:
        facts.add_row("", f"{duration_text(time)} of no task: {reason}")


def _longest(
    title: str, names: tuple[str, str], rows: Sequence[tuple[str, int, int, int, int]]
) -> Table:
    """Make a table of names, counts, and total, mean and longest times in ns."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    # the name alone gives way where a line is too short, and goes on in the next one
    table.add_column(names[0], overflow="fold", max_width=64)
    for name in (names[1], "Total", "Mean", "Max"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, count, *times in rows:
        row = escape(visible(name)), f"{count}", *(duration_text(time) for time in times)
        table.add_row(*row)
    return table


def visible(name: str) -> str:
    """Give a name on one line, of `NAME_MOST` characters at most; its end is kept."""
    if not name.isprintable():
        name = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name
        )
    if len(name) <= NAME_MOST:
        return name
    half = NAME_MOST // 2
    return f"{name[:half]}…{name[len(name) - half + 1 :]}"


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
    table = Table(box=None)
    for name in ("Run", "State", "On", "Job", "Took", "Exit"):
        table.add_column(name, no_wrap=True, overflow="fold")
    table.add_column("", no_wrap=True, overflow="ellipsis")
    colours = {"complete": "green", "partial": "yellow", "failed": "red", "abandoned": "red"}
    for run in runs:
        took = "" if not run.started or not run.ended else f"{run.ended - run.started:.0f} s"
        colour = colours.get(run.state, "cyan")
        table.add_row(
            run.name,
            f"[{colour}]{run.state}[/]",
            run.on,
            escape(run.job),
            took,
            "" if run.exit_code is None else str(run.exit_code),
            escape(run.doing[:100]),
        )
    if not console.is_terminal:
        console.width = 500  # a pipe gets whole lines
    console.print(table)
