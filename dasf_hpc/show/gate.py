"""Show: a comparison of runs on the terminal, as Markdown, JUnit XML and GitHub's annotations."""

from __future__ import annotations

import math
from dataclasses import replace
from xml.etree import ElementTree

from rich.console import Console
from rich.markup import escape

from dasf_hpc.analysis.compare import Comparison, Difference, Verdict
from dasf_hpc.show.fit import Column, Kind, show_table
from dasf_hpc.units import count_text, duration_text

#: Functions that are the same are not listed beyond this many.
ROWS = 20

_COLOURS = {
    Verdict.REGRESSION: "red",
    Verdict.IMPROVEMENT: "green",
    Verdict.SAME: "dim",
    Verdict.CANNOT_TELL: "yellow",
}
_HEADINGS = ("Function", "Base", "Head", "Change", "95 % interval", "Verdict")


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print a comparison as a table."""
    shown = _listed(comparison)
    cells = list(zip(*map(_cells, shown), strict=True))
    kinds = (Kind.NAME, *[Kind.NUMBER] * 4, Kind.EXACT)
    colours = [_COLOURS[difference.verdict] for difference in shown]
    # the verdict is what a table is for: whatever is left out, it is not
    columns = [
        Column(heading, texts, kind)
        for heading, texts, kind in zip(_HEADINGS, cells, kinds, strict=True)
    ]
    columns[-1] = replace(columns[-1], styles=colours, kept=True)
    show_table(console, "", columns)
    for note in _remarks(comparison, shown):
        console.print(note, highlight=False, markup=False)
    console.print(f"[{_COLOURS[comparison.verdict]}]{escape(comparison.why)}[/]", highlight=False)


def markdown(comparison: Comparison) -> str:
    """Write a comparison for a pull request."""
    shown = _listed(comparison)
    lines = [
        f"### dasf-hpc: {comparison.verdict.value}",
        "",
        _md(comparison.why),
        "",
        f"| {' | '.join(_HEADINGS)} |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for difference in shown:
        name, *cells = _cells(difference)
        bold = "**" if difference.verdict is Verdict.REGRESSION else ""
        lines.append(f"| {bold}`{_md(name).replace('`', '')}`{bold} | {' | '.join(cells)} |")
    lines += ["", *(f"- {_md(note)}" for note in _remarks(comparison, shown))]
    return "\n".join(lines) + "\n"


def junit(comparison: Comparison) -> str:
    """Write a comparison as JUnit XML: a regression fails, what cannot be told is skipped."""
    cases = comparison.differences
    failed = [d for d in cases if d.verdict is Verdict.REGRESSION]
    skipped = [d for d in cases if d.verdict is Verdict.CANNOT_TELL]
    suite = ElementTree.Element(
        "testsuite",
        name="dasf-hpc compare",
        tests=str(len(cases)),
        failures=str(len(failed)),
        errors="0",
        skipped=str(len(skipped)),
    )
    for difference in cases:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname="dasf-hpc.compare",
            name=_printable(difference.function),
            time=f"{difference.head / 1e9:.6f}",
        )
        message = _printable(f"{difference.function}: {difference.why}")
        if difference.verdict is Verdict.REGRESSION:
            ElementTree.SubElement(case, "failure", message=message, type="regression")
        elif difference.verdict is Verdict.CANNOT_TELL:
            ElementTree.SubElement(case, "skipped", message=message)
        else:
            ElementTree.SubElement(case, "system-out").text = message
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, "unicode", xml_declaration=True) + "\n"


def github(comparison: Comparison) -> str:
    """Write a comparison as GitHub's workflow commands, which annotate a run of Actions."""
    kind = {
        Verdict.REGRESSION: "error",
        Verdict.CANNOT_TELL: "warning",
        Verdict.IMPROVEMENT: "notice",
        Verdict.SAME: "notice",
    }
    lines = [
        f"::{kind[d.verdict]} title={_property(f'{d.function}: {d.verdict.value}')}::"
        f"{_data(f'{d.function}: {d.why}')}"
        for d in comparison.differences
        if d.verdict in (Verdict.REGRESSION, Verdict.IMPROVEMENT)
    ]
    lines.append(f"::{kind[comparison.verdict]} title=dasf-hpc compare::{_data(comparison.why)}")
    return "\n".join(lines) + "\n"


def _listed(comparison: Comparison) -> list[Difference]:
    """Choose what is listed: the whole run, all that changed, and the longest of the others."""
    whole, *functions = comparison.differences
    changed = [d for d in functions if d.verdict in (Verdict.REGRESSION, Verdict.IMPROVEMENT)]
    others = [d for d in functions if d not in changed]
    return [whole, *changed, *others[: max(0, ROWS - len(changed))]]


def _remarks(comparison: Comparison, shown: list[Difference]) -> list[str]:
    left = len(comparison.differences) - len(shown)
    remarks = [f"{len(comparison.base)} base and {len(comparison.head)} head runs."]
    if left:
        remarks.append(f"{left} more functions did not change (--json lists them).")
    counted = [
        d
        for d in shown
        if d.base_count and d.head_count and abs(d.head_count / d.base_count - 1) > 0.01
    ]
    if counted:
        of = ", ".join(
            f"{d.function} {count_text(round(d.base_count))} -> {count_text(round(d.head_count))}"
            for d in counted[:5]
        )
        remarks.append(f"The number of tasks differs: {of}.")
    return [*remarks, *comparison.notes]


def _cells(difference: Difference) -> tuple[str, ...]:
    interval = ""
    if math.isfinite(difference.low):
        interval = f"{difference.low:+.1f} to {difference.high:+.1f} %"
    return (
        difference.function,
        duration_text(difference.base) if difference.base else "",
        duration_text(difference.head) if difference.head else "",
        f"{difference.change:+.1f} %" if math.isfinite(difference.change) else "",
        interval,
        difference.verdict.value,
    )


def _md(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")


def _printable(text: str) -> str:
    """Leave out what XML 1.0 cannot hold."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
