"""Show: what the doctor found, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dasf_hpc.doctor.check import Check, Status
from dasf_hpc.show.progress import one_line

_STYLES = {
    Status.OK: "green",
    Status.WARN: "yellow",
    Status.FAIL: "bold red",
    Status.COULD_NOT_LOOK: "dim",
}


def show_checks(console: Console, checks: Sequence[Check]) -> None:
    """Print checks by where they were made, and what to do about those that are not ok."""
    room = max((len(check.status) for check in checks), default=0)
    for where in dict.fromkeys(check.where for check in checks):
        console.print(Text(where, "bold"))
        for check in checks:
            if check.where != where:
                continue
            told = Text.assemble((check.name, "bold"), f": {one_line(check.detail)}")
            if check.remedy and check.status is not Status.OK:
                told.append(f"\n{one_line(check.remedy)}", "italic")
            line = Table.grid(padding=(0, 2, 0, 0))
            line.add_column(width=room + 2, no_wrap=True)
            line.add_column(overflow="fold")
            line.add_row(Text(f"  {check.status}", _STYLES[check.status]), told)
            console.print(line)
