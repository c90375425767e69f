"""Scaling, shown in words: tables and sentences on the terminal, and as Markdown."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from dasf_hpc.analysis.answer import Severity
from dasf_hpc.scaling.table import UNITS, Scaling
from dasf_hpc.show.fit import Column, Kind, show_table
from dasf_hpc.units import count_text, duration_text, share_text, three_digits

#: Functions that are listed: those with the largest share of a run.
ROWS = 15

NONE = "–"

_COLOURS = {Severity.SERIOUS: "red", Severity.WARNING: "yellow", Severity.NOTICE: "cyan"}


@dataclass(frozen=True)
class Grid:
    """A table as it is shown: headings with what they mean, and cells; the first column names."""

    headings: list[str]
    meanings: list[str]
    rows: list[list[str]]


def factor_text(value: float) -> str:
    """Write a factor of an efficiency, 1 for none lost: ``0.87``."""
    return f"{value:.2f}" if math.isfinite(value) else NONE


def scales_grid(found: Scaling) -> Grid:
    """Give the table by scale."""
    meaning = {name: text for name, (_, text) in found.answer.columns["scales"].items()}
    more = UNITS[found.by][1]
    columns = {
        "scale": f"{more[:1].upper()}{more[1:]}",
        "runs": "Runs",
        "time": "Time",
        "time_min": "Fastest to slowest",
        "speedup": "Speed-up",
        "efficiency": "Efficiency",
        "computation_scalability": "Computation scalability",
        "parallel_efficiency": "Parallel efficiency",
        "load_balance": "Load balance",
        "serialisation": "Serialisation",
        "transfer": "Transfer",
    }
    rows = []
    for row in found.answer.tables["scales"].to_dict("records"):
        spread = f"{duration_text(row['time_min'])} to {duration_text(row['time_max'])}"
        rows.append(
            [
                count_text(row["scale"]),
                count_text(row["runs"]),
                duration_text(row["time"]),
                spread if row["runs"] > 1 else NONE,
                three_digits(row["speedup"]),
                share_text(row["efficiency"]),
                *(factor_text(row[name]) for name in list(columns)[6:]),
            ]
        )
    return Grid(list(columns.values()), [meaning[name] for name in columns], rows)


def functions_grid(found: Scaling, most: int | None = ROWS) -> Grid:
    """Give the table by function, the largest first: its times at each scale, and how they grew."""
    table = found.answer.tables["functions"]
    meaning = {name: text for name, (_, text) in found.answer.columns["functions"].items()}
    one, more = UNITS[found.by]
    names = list(dict.fromkeys(table["function"]))
    smallest, largest = found.scales[0], found.scales[-1]
    headings = [
        "Function",
        "Stops at",
        "Growth",
        "Own speed-up",
        "At work",
        *(f"Executing, {count_text(s)} {one if s == 1 else more}" for s in found.scales),
    ]
    meanings = [
        meaning["function"],
        f"the first scale where: {meaning['grown']}",
        f"{meaning['growth']}; here at {count_text(largest)} {more}",
        f"{meaning['speedup']}; here at {count_text(largest)} {more}",
        f"{meaning['wall_share']}; at {count_text(smallest)} and at {count_text(largest)}",
        *([meaning["executing"]] * len(found.scales)),
    ]
    rows = []
    for name in names[:most]:
        own = {
            int(row["scale"]): row for row in table[table["function"] == name].to_dict("records")
        }
        grown = [scale for scale, row in own.items() if row["grown"]]
        last = own[largest]
        growth = last["growth"]
        rows.append(
            [
                name,
                count_text(min(grown)) if grown else NONE,
                f"{growth:.2f}" if math.isfinite(growth) else NONE,
                three_digits(last["speedup"]) if math.isfinite(last["speedup"]) else NONE,
                f"{share_text(own[smallest]['wall_share'])} to {share_text(last['wall_share'])}",
                *(
                    duration_text(own[s]["executing"]) if own[s]["executing"] > 0 else NONE
                    for s in found.scales
                ),
            ]
        )
    return Grid(headings, meanings, rows)


def left_text(found: Scaling, most: int | None = ROWS) -> str:
    """Say how many functions are not listed; empty: none."""
    count = found.answer.tables["functions"]["function"].nunique()
    left = count - (count if most is None else min(count, most))
    return f"{left} more function{'s' * (left != 1)} with less time (--json)" if left else ""


def title(found: Scaling) -> str:
    """Say in a sentence what was looked at."""
    kind = "Weak" if found.weak else "Strong"
    scales = ", ".join(count_text(scale) for scale in found.scales)
    runs = len(found.runs)
    return f"{kind} scaling over {scales} {UNITS[found.by][1]}, {runs} run{'s' * (runs != 1)}"


def show_scaling(console: Console, found: Scaling) -> None:
    """Print how a program scales."""
    for number, grid in enumerate((scales_grid(found), functions_grid(found))):
        cells = list(zip(*grid.rows, strict=True))
        columns = [
            Column(
                heading,
                texts,
                Kind.NAME if number and not i else Kind.NUMBER,
                kept=not i or heading == "Efficiency",
            )
            for i, (heading, texts) in enumerate(zip(grid.headings, cells, strict=True))
        ]
        left = left_text(found) if number else ""
        heading = "By function" if number else title(found)
        show_table(console, heading, columns, [left] if left else [])
    whole = not console.is_terminal  # a pipe gets whole lines
    for finding in found.answer.findings:
        text = Text(f"{finding.severity.value} ", _COLOURS[finding.severity])
        console.print(text.append(finding.sentence, "default"), soft_wrap=whole, highlight=False)
        if finding.next_step:
            console.print(Text(f"  {finding.next_step}", "dim"), soft_wrap=whole, highlight=False)
    for why in found.answer.unanswered:
        console.print(Text(f"not known: {why}"), soft_wrap=whole, highlight=False)
    for run in found.left_out:
        console.print(Text(f"left out: {run.name}: {run.failed}"), soft_wrap=whole, highlight=False)


def markdown(found: Scaling) -> str:
    """Write how a program scales for a paper's draft, or an issue."""
    lines = [f"### {title(found)}", ""]
    for grid in (scales_grid(found), functions_grid(found)):
        lines.append(f"| {' | '.join(map(_md, grid.headings))} |")
        lines.append(f"| {' | '.join(['---', *['---:'] * (len(grid.headings) - 1)])} |")
        named = grid.headings[0] == "Function"
        for name, *cells in grid.rows:
            first = f"`{_md(name).replace('`', '')}`" if named else name
            lines.append(f"| {' | '.join([first, *cells])} |")
        lines.append("")
    if left := left_text(found):
        lines += [f"- {left}"]
    lines += [f"- {_md(finding.sentence)}" for finding in found.answer.findings]
    lines += [f"- Not known: {_md(why)}" for why in found.answer.unanswered]
    lines += [f"- Left out: {_md(run.name)}: {_md(run.failed)}" for run in found.left_out]
    return "\n".join(lines) + "\n"


def _md(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")
